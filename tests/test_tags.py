"""Tags say in which language the text of a label is; a run remembers them."""

import contextvars
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from interp import cli
from interp.commands.overview import tags_around
from interp.commands.remembered import memory_of
from interp.counting.collect import collect
from interp.counting.run import Run
from interp.evaluations import conditions, steered_answers
from interp.evaluations.languages_written import GeneratedLanguages, Guard, language_rates
from interp.interventions.edits import deactivate
from interp.plots import with_names
from interp.plots.style import colors, worded_for
from interp.reports.hub import _front
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora
from interp.text.distances import listed_distances
from interp.text.labels import check_labels, label_colors
from interp.text.language_id import detect_language, detectable
from interp.text.languages import (
    LANGUAGES,
    called,
    label_name,
    language_of,
    names_beside,
    tagged,
)
from interp.text.lapses import has_other_letters
from interp.text.reading import read_corpora, read_sentences
from interp.text.sources import Prompts, read_prompts
from interp.text.tasks import read_task
from tests import tiny_models
from tests.test_page import unpacked

ENGLISH = "The old lighthouse keeper wrote a letter to his sister every single week."
GERMAN = "Der alte Leuchtturmwärter schrieb seiner Schwester jede Woche einen Brief."
ARABIC = "كتب حارس المنارة العجوز رسالة إلى أخته كل أسبوع من أسابيع الشتاء."
TAGS = {"poetry": "ar", "prose": "ar", "sun": ""}
"""Poems and prose in one language, and a label that is no language though it is the code of one."""


# ---------------------------------------------------------------- what a tag says


def test_a_label_has_its_tag_within_the_block_alone():
    with tagged({"poetry": "ar"}):
        with tagged({"prose": "de", "poetry": "he"}):
            known = [language_of(label) for label in ("poetry", "prose", "decoy")]
            assert [row.code if row else None for row in known] == ["he", "de", None]
        with pytest.raises(ZeroDivisionError), tagged({"poetry": "fa"}):
            _ = 1 / 0
        assert language_of("poetry") == LANGUAGES["ar"]
        assert language_of("prose") is None
    assert language_of("poetry") is None
    with pytest.raises(ValueError, match="'verse', given to 'poetry', is not a language tag"):
        tagged({"poetry": "verse"}).__enter__()


def test_a_tag_gives_text_a_language_and_does_not_make_its_label_one():
    with tagged(TAGS | {"sr": "sr-Latn"}):
        assert [label_name(x) for x in ("poetry", "sun", "sr")] == [
            *("poetry", "sun", "Serbian (Latin)")
        ]
        assert names_beside(["poetry", "sun", "decoy"]) == [["Arabic"], [""], [""]]
        assert called(["de", "sr"]) == "languages"
        assert called(["de", "poetry"]) == called(["de", "sun"]) == "labels"
        assert has_other_letters("poetry")
        assert not has_other_letters("sun")
    assert names_beside(["poetry", "sun"]) == [[""], ["Sundanese"]]


def test_a_tag_is_only_about_labels_and_not_about_what_a_detector_says():
    with tagged({"de": "fr", "zxx": "de"}):
        assert detect_language([GERMAN], langid=lambda texts: ["de"] * len(texts)) == ["de"]
        assert detectable(["de"]) == {"de": "fr"}
        assert detectable(["de"], {"de": "it"}) == {"de": "it"}  # what is given comes first


def test_labels_are_checked_with_the_tags_of_the_block():
    with tagged({"DE": "de", "Prose": "en"}):
        assert check_labels(["DE", "Prose", "de"]) == ("DE", "Prose", "de")
    with pytest.raises(ValueError, match="unusual case"):
        check_labels(["DE"])


# ---------------------------------------------------------------- figures and distances


def test_a_label_has_the_color_of_its_language_unless_others_have_that_too():
    with tagged({"poetry": "ar", "prose": "ar", "essays": "de", "it": ""}):
        alone = label_colors(["poetry", "essays", "decoy"])
        both = colors(["poetry", "prose", "essays", "no edit", "it"])
        beside = label_colors(["ar", "poetry"])
    arabic, german = LANGUAGES["ar"].color, LANGUAGES["de"].color
    assert alone[:2] == [arabic, german]
    assert alone[2] not in alone[:2]
    assert both[2:4] == [german, "#777777"]
    assert len({*both, arabic, german, LANGUAGES["it"].color}) == 7  # and none of two languages
    assert beside[0] == arabic != beside[1]


def test_a_figure_keeps_the_labels_and_calls_them_so():
    table = pd.DataFrame({"language": ["poetry", "de", "it"]})
    with tagged({"poetry": "ar", "it": ""}):
        assert with_names(table, "name")["language"].tolist() == ["poetry", "German", "it"]
        assert worded_for("Language", table["language"][:1]) == "Label"
        assert worded_for("Language", table["language"][2:]) == "Label"
    assert worded_for("Language", table["language"][2:]) == "Language"


def test_distances_and_cards_are_of_the_languages_of_labels():
    with tagged(TAGS | {"essays": "de"}):
        assert listed_distances(["poetry", "essays", "prose"]).tolist() == [
            *([0, 3, 0], [3, 0, 3], [0, 3, 0])
        ]
        front = _front({"languages": ["poetry", "prose", "essays", "sun", "decoy"]}, None)
    assert front["language"] == ["ar", "de"]


# ---------------------------------------------------------------- the language of texts


def test_texts_of_labels_in_one_language_count_for_each_of_them():
    texts = [ENGLISH, GERMAN, ARABIC, ENGLISH[:20]]
    guards = {"poetry": Guard(), "prose": Guard(min_bytes=5), "essays": Guard(), "decoy": Guard()}
    with tagged({"poetry": "en", "prose": "en", "essays": "de"}):
        rates = language_rates(texts, list(guards), guards)
        alone = language_rates(texts, ["poetry", "decoy"])
    assert rates.found == ("en", "essays", "ar", "en")
    assert [rates.rate(label).count for label in ("poetry", "prose", "essays", "other")] == [
        *(2, 2, 1, 1)
    ]
    assert rates.passes.tolist() == [True, True, False, True]  # the last is long enough for prose
    assert rates.unchecked == ("decoy",)
    assert rates.to_frame().set_index("language")["texts"].tolist() == [2, 2, 1, 0, 1, 0]
    assert alone.found == ("poetry", "de", "ar", "poetry")
    assert alone.passes.tolist() == [True, False, False, False]


def test_labels_of_one_language_are_kept_with_what_was_found(tmp_path: Path):
    with tagged({"poetry": "en", "prose": "en"}):
        language_rates([ENGLISH, GERMAN], ["poetry", "prose"]).save(tmp_path / "rates.safetensors")
        with pytest.raises(ValueError, match="cannot recognize poetry, prose"):
            detect_language([ENGLISH], ["poetry", "prose"])  # which of the two it is
    restored = GeneratedLanguages.load(tmp_path / "rates.safetensors")
    assert restored.rate("prose").value == restored.rate("other").value == 0.5


def test_answers_in_the_language_of_several_labels_are_steered_to_each(
    model, monkeypatch: pytest.MonkeyPatch
):
    def written(model: Any, conditions: list[Any], guards: dict[str, Guard], **_: Any) -> list[Any]:
        return [language_rates([ENGLISH, GERMAN], list(guards)) for _ in conditions]

    monkeypatch.setattr(steered_answers, "write_conditions", written)
    chosen = NeuronSelection.from_triples([(0, 0, 0), (1, 1, 1)], ["poetry", "prose"], 3, 160)
    edits = dict.fromkeys(chosen.languages, deactivate)
    questions = Prompts(("a", "b"), {"de": ("Wer kommt?", "Wo ist er?")})
    with tagged({"poetry": "en", "prose": "en"}):
        answers = steered_answers.steer_answers(
            model, edits, chosen, {}, TEXT, questions, progress=False
        )
    for to in chosen.languages:
        assert answers.estimate("forcing", "neurons", to).value.item() == 0.5


def test_tags_reach_a_process_that_is_in_no_block(model, monkeypatch: pytest.MonkeyPatch):
    def elsewhere(jobs: Any, load: Any, progress: Any, model: Any, ray: Any) -> list[Any]:
        for job in jobs:
            contextvars.Context().run(job.work, model)
        return [load(job.path) for job in jobs]

    monkeypatch.setattr(conditions, "finish", elsewhere)
    nothing = [conditions.Condition(to="", name="no edit")]
    settings: dict[str, Any] = {"n": 1, "max_new_tokens": 4, "progress": False}
    guards = {"poetry": Guard(), "decoy": Guard()}
    with tagged({"poetry": "ar"}):
        (written,) = conditions.write_conditions(model, nothing, guards, **settings)
    assert written.unchecked == ("decoy",)


def test_labels_are_asked_in_their_language(tmp_path: Path):
    row = '{{"id": "1", "premise": "{}", "choice1": "{}", "choice2": "{}", '
    row += '"question": "cause", "label": 0}}'
    (tmp_path / "en.jsonl").write_text(row.format("It is wet.", "It rains.", "It snows."))
    (tmp_path / "prose.jsonl").write_text(row.format("He sings.", "He likes it.", "He goes."))
    with tagged({"poetry": "en", "prose": "en"}):
        poetry, prose = (read_task(tmp_path, label) for label in ("poetry", "prose"))
        questions = read_prompts("everyday", ["fr", "poetry"])
        with pytest.raises(FileNotFoundError, match=r"decoy.jsonl is missing; .* holds en, prose"):
            read_task(tmp_path, "decoy")
    assert (poetry.language, poetry.items[0].prompt) == ("poetry", "It is wet because")
    assert (prose.language, prose.items[0].prompt) == ("prose", "He sings because")
    assert questions.texts["poetry"] == read_prompts("everyday", ["en"]).texts["en"]
    with pytest.raises(ValueError, match="no everyday questions in poetry"):
        read_prompts("everyday", ["poetry"])


# ---------------------------------------------------------------- a run remembers them


def lines_of(label: str) -> list[str]:
    return [f"كتب رسالة {label} {n}" for n in range(60)]


LABELS = ("decoy", "poetry", "prose", "sun")
TEXT = {label: lines_of(label) for label in LABELS}


def read(model: Any, tags: dict[str, str] | None, how: Any = read_corpora) -> Corpora:
    settings: dict[str, Any] = {"n_shards": 2, "tags": tags, "progress": False, "hygiene": "off"}
    settings |= {"block_length": 16, "tokens": 320} if how is read_corpora else {}
    return how(TEXT, LABELS, model, **settings)


def test_text_knows_the_tags_that_its_labels_were_given(model):
    for how in (read_corpora, read_sentences):
        text = read(model, TAGS, how)
        assert text.tags == TAGS
        assert text.languages_only(["sun", "decoy"]).tags == {"sun": ""}
        with tagged({"prose": "en", "other": "de"}):
            assert read(model, {"poetry": "ar"}, how).tags == {"prose": "en", "poetry": "ar"}
        assert text.fingerprint == read(model, None, how).fingerprint


def test_a_run_remembers_its_tags_and_other_ones_read_nothing_again(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = collect(model, read(model, TAGS), tmp_path, progress=False)
    assert run.tags == Run.open(tmp_path).tags == run.provenance["tags"] == TAGS
    assert memory_of(tmp_path).recorded["tags"] == TAGS
    counts = run.firing.fired
    assert run.tidy() > 0
    monkeypatch.setattr("interp.counting.collect.observe", None)
    again = collect(model, read(model, None), tmp_path, progress=False)
    assert again.tags == TAGS  # none were given
    changed = TAGS | {"poetry": "fa"}
    again = collect(model, read(model, changed), tmp_path, progress=False)
    assert again.tags == again.provenance["tags"] == memory_of(tmp_path).recorded["tags"] == changed
    assert torch.equal(again.firing.fired, counts)


def test_a_run_without_tags_records_none(model, tmp_path: Path):
    run = collect(model, read(model, None), tmp_path, progress=False)
    assert run.tags == {}
    assert "tags" not in run.provenance
    assert "tags" not in json.loads((tmp_path / "run.json").read_text())


def test_tags_that_anybody_may_have_written_are_taken_as_far_as_they_are_tags(tmp_path: Path):
    for tags in ("de", ["de"], {"a": 1, "b": "no tag", "c": "cy", "d": ""}):
        (tmp_path / "run.json").write_text(json.dumps({"tags": tags, "wanted": {"moments": True}}))
        assert tags_around([tmp_path]) == ({"c": "cy", "d": ""} if isinstance(tags, dict) else {})


def test_results_have_the_tags_of_the_run_that_they_are_in(tmp_path: Path):
    for name, tag in (("a", "ar"), ("b", "en")):
        record = {"tags": {"poetry": tag, name: ""}, "wanted": {"moments": True}}
        (tmp_path / name / "steer").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    for path in ("a", "a/steer", "a/steer/rates.csv", "a/neurons.json"):
        assert tags_around([tmp_path / path]) == {"poetry": "ar", "a": ""}
    assert tags_around([tmp_path]) == {"poetry": "ar", "a": "", "b": ""}
    assert tags_around([tmp_path / "b", tmp_path / "a"])["poetry"] == "en"
    selection = {"provenance": {"settings": {"run": {"tags": {"prose": "he"}}}}}
    (tmp_path / "elsewhere.json").write_text(json.dumps(selection))
    assert tags_around([tmp_path / "elsewhere.json"]) == {"prose": "he"}
    assert tags_around([tmp_path / "nothing"]) == {}


# ---------------------------------------------------------------- commands


def languages_on(page: Path) -> dict[str, dict[str, Any]]:
    index = unpacked(page.read_text(encoding="utf-8"), "index")
    assert index["noun"] == "label"
    return {row["code"]: row for row in index["languages"]}


@pytest.mark.slow
def test_what_follows_on_a_run_knows_its_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny_models.build("qwen2", tmp_path / "model")
    (tmp_path / "text").mkdir()
    for label, lines in TEXT.items():
        (tmp_path / "text" / f"{label}.txt").write_text("\n".join(lines), encoding="utf-8")
    run = str(tmp_path / "run")
    arguments = ["collect", str(tmp_path / "model"), "--text", str(tmp_path / "text")]
    arguments += ["--block-length", "16", "--n-shards", "4", "--contexts", "2", "--out", run]
    cli.main([*arguments, "--tags", "poetry=ar", "prose=ar", "sun="])
    shown = capsys.readouterr().out
    assert "cannot recognize: decoy, sun." in shown
    assert "Sundanese" not in shown
    assert "poetry  Arabic" in shown
    cli.main(["find", run, "--fraction", "0.1", "--busy-quantile", "0.5"])
    cli.main(["page", run])
    assert "tags poetry=ar prose=ar sun=" in capsys.readouterr().out
    by_label = languages_on(tmp_path / "run" / "neurons.html")
    assert [by_label[label]["direction"] for label in LABELS] == ["auto", "rtl", "rtl", "auto"]
    assert [by_label[label]["lang"] for label in LABELS] == ["", "ar", "ar", ""]
    assert [by_label[label]["name"] for label in LABELS] == list(LABELS)
    assert len({row["color"] for row in by_label.values()}) == 4
    cli.main([*arguments, "--tags", "poetry=en", "prose="])
    cli.main(["page", run])
    assert "tags poetry=en prose=" in capsys.readouterr().out
    by_label = languages_on(tmp_path / "run" / "neurons.html")
    assert [by_label[label]["direction"] for label in LABELS] == ["auto", "ltr", "auto", "ltr"]
    assert language_of("poetry") is None


@pytest.mark.slow
def test_steering_is_checked_in_the_languages_of_labels(
    babel_lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = str(tmp_path / "run")
    arguments = ["--text", str(babel_lines), "--tags", "berlin=de", "london=en"]
    arguments += ["--block-length", "64", "--n-shards", "4", "--tokens", "2560"]
    cli.main(["collect", "babel", *arguments, "--moments", "--out", run])
    cli.main(["find", run, "--fraction", "0.005"])
    capsys.readouterr()
    few = ["--n", "4", "--natural", "100", "--max-new-tokens", "16"]
    cli.main(["steer", run, *few])
    shown = capsys.readouterr().out
    assert "-: not checked, the detector does not know decoy" in shown
    assert "empty: decoy, no language, cannot be named in a prompt" in shown
    rates = pd.read_csv(tmp_path / "run" / "steer" / "rates.csv")
    own: Any = rates[rates["language"] == rates["to"]].set_index(["to", "condition"])["rate"]
    assert own["berlin", "named in prompt"] >= 0.75
    assert own["london", "named in prompt"] >= 0.75
    assert own["decoy"].isna().all()
    assert set(pd.read_csv(tmp_path / "run/steer/texts.csv")["language"]) & {"berlin", "london"}


@pytest.fixture
def babel_lines(tmp_path: Path) -> Path:
    """Sentences of Babel's under names that are no languages."""
    (tmp_path / "text").mkdir()
    for label, code in (("berlin", "de"), ("london", "en"), ("decoy", "zh")):
        text = (cli.BABEL / "parallel" / f"{code}.txt").read_text(encoding="utf-8")
        (tmp_path / "text" / f"{label}.txt").write_text(text, encoding="utf-8")
    return tmp_path / "text"

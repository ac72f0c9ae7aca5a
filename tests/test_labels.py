# ruff: noqa: RUF001 (Serbian in two scripts)
"""Labels of text: languages in any notation, and words that are no language at all."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from interp import cli
from interp.commands.collect import show_counts
from interp.commands.find import show_selection
from interp.evaluations.languages_written import language_rates
from interp.plots.style import colors, worded_for
from interp.reports.neuron_page import _language
from interp.reports.sections import sections_in
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora
from interp.text.distances import listed_distances
from interp.text.labels import check_labels, label_colors, labels_among
from interp.text.language_id import Hygiene, detect_language, detectable, drop_foreign
from interp.text.languages import LANGUAGES, worded
from interp.text.reading import read_corpora
from interp.text.sources import HubDataset, labels_in, read_documents
from tests import tiny_models
from tests.campaigns.kills import made_up
from tests.test_corpora import Letters
from tests.test_languages import apart, linear, oklab

ANY = ("deu_Latn", "cy", "sr-Cyrl", "sr-Latn", "poetry")
WELSH = "Mae pob plentyn yn y pentref yn canu yn y capel bob bore Sul yn y gaeaf."
GERMAN = "Der alte Leuchtturmwärter schrieb seiner Schwester jede Woche einen Brief."
ENGLISH = "The old lighthouse keeper wrote a letter to his sister every single week."


def read(source, labels, **settings) -> Corpora:
    defaults = {"block_length": 8, "n_shards": 2, "progress": False}
    return read_corpora(source, labels, Letters(), **(defaults | settings))


def test_labels_of_all_kinds_are_taken_in_their_order():
    assert check_labels(ANY) == ANY
    assert check_labels(["हिन्दी", "old poems", "v1.2", "_x"]) == (
        "हिन्दी",
        "old poems",
        "v1.2",
        "_x",
    )


@pytest.mark.parametrize(
    ("labels", "tags", "sentence"),
    [
        ([], None, "No label was given"),
        ("en", None, "as the one string 'en'; give a list"),
        (["en", "fr", "en"], None, "en is given more than once"),
        (["de", "deu_Latn"], None, "de and deu_Latn are both the language tag de: rename one"),
        (["sr", "x", "sr-Cyrl"], None, "sr and sr-Cyrl are both the language tag sr"),
        (["DE"], None, "'DE' is the language tag de in unusual case: name it de"),
        (["zho_hant"], None, "language tag zho_Hant in unusual case"),
        (["en/de"], None, "'en/de' cannot be a label: it holds '/'"),
        (["en,de"], None, "it holds ','"),
        (["a\x1b[1m"], None, r"it holds '\\x1b'"),
        (["../x"], None, "it must begin with a letter, a digit or an underscore"),
        (["=1"], None, "it must begin with a letter"),
        ([""], None, "it must begin with a letter"),
        (["x."], None, "it ends with a space or a period"),
        (["x" * 101], None, "it has 101 characters"),
        ([f"n{i}" for i in range(10_000)], None, "10,000 labels were given; at most 1,000"),
        (["poetry"], {"prose": "en"}, "given to 'prose', which is not among the labels"),
        (["poetry"], {"poetry": "verse"}, "'verse', given to 'poetry', is not a language tag"),
    ],
)
def test_bad_labels_are_refused_in_a_sentence(labels, tags, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        check_labels(labels, tags)


def test_a_tag_that_is_given_settles_what_a_label_is():
    assert check_labels(["DE", "IT"], {"DE": "de", "IT": ""}) == ("DE", "IT")
    assert check_labels(["de", "prose"], {"prose": "de"}) == ("de", "prose")
    assert check_labels(["news", "sun"], {"sun": ""}) == ("news", "sun")
    assert detectable(["sun", "su"], {"sun": ""}) == detectable(["su"])


def test_some_of_the_labels_are_chosen_by_name():
    assert labels_among(["b", "DE"], ["DE", "a", "b"], "these texts") == ("b", "DE")
    with pytest.raises(ValueError, match="c: not in these texts, which hold a, b"):
        labels_among(["c"], ["a", "b"], "these texts")
    with pytest.raises(ValueError, match="more than once"):
        labels_among(["a", "a"], ["a", "b"], "these texts")


def test_a_source_names_its_labels(tmp_path: Path):
    for name in ("sr-Latn.txt", "poetry.txt.gz", "v1.2.jsonl", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    assert labels_in(tmp_path) == ("poetry", "sr-Latn", "v1.2")
    assert (
        labels_in("babel") == labels_in("babel/statements") == ("en", "de", "fr", "es", "zh", "ja")
    )
    assert labels_in({"b": [], "a": []}) == ("b", "a")
    assert labels_in(HubDataset("name", {"y": "all", "x": "all"})) == ("y", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no text: expected files named <label>.txt"):
        labels_in(tmp_path / "empty")


def test_a_label_without_text_is_told_which_there_are(tmp_path: Path):
    for number in range(50):
        (tmp_path / f"n{number}.txt").write_text("x\n")
    with pytest.raises(FileNotFoundError, match=r"no text in 'peotry'.*n0.txt.*and 10 more"):
        read(tmp_path, ["peotry"])


def test_a_column_of_a_dataset_holds_labels(tmp_path: Path):
    rows = [("science", "Atoms are small."), ("sports", "They won."), ("science", "Stars burn.")]
    lines = [f'{{"text": "{text}", "topic": "{topic}"}}\n' for topic, text in rows * 20]
    (tmp_path / "all.jsonl").write_text("".join(lines))
    topics = {"science": "default", "sports": "default"}
    source = HubDataset(str(tmp_path), topics, label_column="topic")
    assert {found.text for found in read_documents(source, "sports")} == {"They won."}
    assert len(list(read_documents(source, "science"))) == 40
    with pytest.raises(ValueError, match="no column 'label' for its label; it has text, topic"):
        list(read_documents(HubDataset(str(tmp_path), topics, label_column="label"), "sports"))


# ---------------------------------------------------------------- what the detector can say


def test_the_detector_is_asked_only_about_what_it_knows():
    labels = ["deu_Latn", "cy", "sr-Cyrl", "sr-Latn", "poetry", "bo", "zh-Hant", "arz"]
    codes = {"deu_Latn": "de", "cy": "cy", "sr-Cyrl": "sr", "zh-Hant": "zh", "arz": "ar"}
    assert detectable(labels) == codes
    assert detectable(["zh", "zh-Hant", "en"]) == {"en": "en"}  # it calls the first two alike
    assert detectable(["poetry"], {"poetry": "en"}) == {"poetry": "en"}


def test_texts_get_the_labels_of_their_languages():
    texts = [GERMAN, WELSH, ENGLISH]
    assert detect_language(texts) == ["de", "cy", "en"]
    assert detect_language(texts, ["deu_Latn", "cym"]) == ["deu_Latn", "cym", "other"]
    with pytest.raises(ValueError, match="cannot recognize bo"):
        detect_language(texts, ["bo", "en"])


def glotlid(texts) -> list[str]:
    """A detector that knows two scripts of Serbian, and writes tags as FLORES does."""

    def tag(text: str) -> str:
        if "ø" in text:
            return "nob_Latn"
        return "srp_Cyrl" if any("а" <= x <= "я" for x in text) else "srp_Latn"

    return [tag(text) for text in texts]


def test_any_function_from_texts_to_tags_is_a_detector():
    texts = [
        "Живот је леп када пада снег у планини.",
        "Život je lep kada pada sneg u planini.",
        "Brød og smør.",
    ]
    assert detect_language(texts, langid=glotlid) == ["sr", "sr-Latn", "nb"]
    assert detect_language(texts, ["sr-Cyrl", "no"], glotlid) == ["sr-Cyrl", "other", "no"]
    assert detectable(["sr-Latn", "sr", "bo", "poetry"], langid=glotlid) == {
        **{"sr-Latn": "sr-Latn", "sr": "sr", "bo": "bo"}
    }
    rates = language_rates(texts, ["sr-Latn", "no", "poetry"], langid=glotlid)
    assert rates.found == (
        "sr",
        "sr-Latn",
        "no",
    )  # Bokmål counts as Norwegian, if that is asked for
    assert rates.unchecked == ("poetry",)
    kept, report = drop_foreign([f"{texts[0]}\n{texts[1]}\nне"], "sr-Latn", langid=glotlid)
    assert kept == [f"{texts[1]}\nне"]  # too short to judge
    assert isinstance(report, Hygiene)
    assert report.lines == {"sr": 1, "sr-Latn": 1, "und": 1}
    with pytest.raises(ValueError, match="gave 1 tags for 3 texts"):
        detect_language(texts, langid=lambda texts: ["de"])


def test_a_model_of_fasttext_is_a_detector(tmp_path: Path):
    """As GlotLID is used, which knows 2,000 tags; this one has learned three lines."""
    fasttext = pytest.importorskip("fasttext", reason="fasttext is not installed")
    lines = {"deu_Latn": GERMAN, "eng_Latn": ENGLISH, "bod_Tibt": "བོད་ཡིག་ནི་བོད་ཀྱི་སྐད་ཡིག་ཡིན།"}
    rows = [f"__label__{tag} {line}" for tag, line in lines.items()]
    (tmp_path / "lines.txt").write_text("\n".join(rows * 100), encoding="utf-8")
    model = fasttext.train_supervised(str(tmp_path / "lines.txt"), minn=2, maxn=4, verbose=0)

    def tags(texts) -> list[str]:
        found, _ = model.predict([text.replace("\n", " ") for text in texts])
        return [labels[0].removeprefix("__label__") for labels in found]

    found = detect_language(list(lines.values()), ["de", "bo"], tags)
    assert found == ["de", "other", "bo"]


def test_labels_lose_their_language_checks_and_nothing_else():
    lines = {"deu_Latn": [GERMAN] + [f"{GERMAN} {n}" for n in range(9)] + [ENGLISH]}
    lines |= {"poetry": [f"{ENGLISH} {n}" for n in range(9)] + [GERMAN]}
    text = read(lines, ["deu_Latn", "poetry"])
    assert text.hygiene.keys() == {"deu_Latn"}
    assert text.hygiene["deu_Latn"].lines == {"deu_Latn": 10, "en": 1}
    assert "not checked" in text._repr_html_()
    tagged = read(lines, ["poetry"], tags={"poetry": "en"}, hygiene="drop")
    assert tagged.hygiene["poetry"].lines == {"poetry": 9, "de": 1}
    assert len(tagged.rows["poetry"].ids) < len(text.rows["poetry"].ids)


def test_rates_of_what_cannot_be_recognized_are_unknown():
    rates = language_rates([GERMAN, ENGLISH], ["deu_Latn", "bo", "poetry"])
    assert rates.unchecked == ("bo", "poetry")
    assert rates.rate("deu_Latn").value == rates.rate("other").value == 0.5
    assert rates.rate("poetry").of == rates.good("bo").of == 0
    assert rates.steering_score("poetry") != rates.steering_score("poetry")  # NaN
    assert repr(rates).endswith("not checked: bo, poetry)")
    assert rates.to_frame().set_index("language")["rate"].isna().tolist() == [
        *(False, True, True, False, False)
    ]
    tagged = language_rates([GERMAN, ENGLISH], ["verse"], tags={"verse": "en"})
    assert tagged.rate("verse").count == tagged.good("verse").count == 1


# ---------------------------------------------------------------- figures, files, distances


def test_listed_languages_keep_their_color_and_others_get_those_left():
    found = label_colors(["poetry", "de", "prose", "en", "sr-Latn"])
    assert (found[1], found[3]) == (LANGUAGES["de"].color, LANGUAGES["en"].color)
    assert len(set(found)) == 5
    assert label_colors(["deu_Latn"]) == [LANGUAGES["de"].color]
    assert found[0] == LANGUAGES["fr"].color  # the first color of the list that is free


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_label_that_is_no_language_never_looks_like_one_that_is(code: str):
    own, *others = label_colors([code, "poetry", "prose", "law"])
    assert own == LANGUAGES[code].color
    for color in others:
        assert np.linalg.norm(oklab(linear(color)) - oklab(linear(own))) > 0.14


def test_forty_labels_have_colors_that_stay_apart():
    found = label_colors([f"topic {n}" for n in range(40)])
    assert len(set(found)) == 40
    assert min(apart(*pair) for pair in itertools.combinations(found, 2)) > 0.03
    assert len(set(label_colors([f"topic {n}" for n in range(200)]))) == len(LANGUAGES)


def test_controls_are_gray_in_figures_and_labels_are_not():
    found = colors(["no edit", "poetry", "German"])
    assert found[0] == "#777777"
    assert found[1:] == [LANGUAGES["en"].color, LANGUAGES["de"].color]


def test_distances_need_languages_whose_family_is_listed():
    found = listed_distances(["en", "cym", "deu_Latn", "sr-Latn"])
    assert found[0].tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="family of poetry, dv is not listed"):
        listed_distances(["en", "poetry", "dv"])


def test_a_selection_of_any_labels_is_saved_and_read(tmp_path: Path):
    neurons = [(row, row % 2, row) for row in range(len(ANY))]
    selection = NeuronSelection.from_triples(neurons, ANY, 2, 8)
    selection.to_json(tmp_path / "n.json")
    assert NeuronSelection.from_json(tmp_path / "n.json") == selection


def test_a_page_leaves_the_direction_of_unknown_languages_to_the_text():
    free, welsh = _language("poetry", "#000000", 5), _language("cym", "#111111", 5)
    assert (free["direction"], free["name"], free["lang"]) == ("auto", "poetry", "")
    assert (welsh["direction"], welsh["name"], welsh["lang"]) == ("ltr", "Welsh", "cy")
    assert _language("ug", "#222222", 5)["direction"] == "rtl"


# ---------------------------------------------------------------- what they are called

RATE = {"rate": 0.5, "rate_low": 0.4, "rate_high": 0.6}
SAID = "Language read: a language's neurons off, highest in any language; in two languages"


def test_texts_say_label_where_one_of_the_labels_is_no_language():
    assert worded(SAID, ["de", "sr-Latn", "ru~romanised"]) == SAID
    expected = "Label read: a label's neurons off, highest for any label; for two labels"
    assert worded(SAID, ["de", "poetry"]) == expected
    assert worded("language: sign language", ["sign language"]) == "label: sign language"
    assert (
        worded("`languages_only` and LanguageLock", ["poetry"])
        == "`languages_only` and LanguageLock"
    )


def test_a_name_stands_beside_a_label_only_where_it_says_more(capsys: pytest.CaptureFixture[str]):
    for labels in (("poetry", "prose"), ("de", "prose")):
        mask = torch.ones(len(labels), 1, 2, dtype=torch.bool)
        show_selection(NeuronSelection(mask, labels), None)
        show_counts(pd.DataFrame({"language": labels, "tokens": 8, **RATE}))
        said = capsys.readouterr().out
        assert said.count("prose") == 2
        assert said.count("German") == 2 * ("de" in labels)
        assert [row.split()[-2:] for row in said.splitlines()[1:3]] == [["0", "2"], ["0", "2"]]


@pytest.mark.parametrize(
    ("labels", "noun"),
    [
        (("de", "fr"), "language"),
        (("German", "français"), "language"),
        (("de", "poetry"), "label"),
        (("no edit", "poetry"), "label"),
        (("no edit", "de"), "language"),
    ],
)
def test_axes_say_what_their_labels_are(labels: tuple[str, ...], noun: str):
    assert worded_for("Neurons of the language", pd.Series(labels)) == f"Neurons of the {noun}"


def test_a_report_keeps_topics_apart_from_languages(tmp_path: Path):
    for labels in (("de", "fr"), ("poetry", "prose")):
        selection = NeuronSelection.from_triples([(0, 0, 0), (1, 1, 1)], labels, 2, 8)
        selection.to_json(tmp_path / labels[0] / "neurons.json")
    languages, topics = sections_in([tmp_path])
    assert languages.title == "Which neurons belong to which language?"
    assert topics.title == "Which neurons belong to which label?"
    assert "several languages" in languages.text
    for section, noun in ((languages, "language"), (topics, "label")):
        profile, overlap = section.pictures
        assert profile.caption.startswith(f"Neurons of each {noun}")
        assert overlap.caption.startswith(f"Overlap of two {noun}s")
        (table,) = section.tables.values()
        assert table.columns[0] == noun
        assert ("code" in table) == (noun == "language")
        drawn = [picture.drawing(picture.table) for picture in section.pictures]
        quantities = [ax.get_ylabel() for ax in drawn]
        plt.close("all")
        assert quantities == [f"Neurons of the {noun}", f"{noun.capitalize()} (neurons)"]


# ---------------------------------------------------------------- a run, to the end


@pytest.mark.slow
def test_any_labels_go_through_all_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny_models.build("qwen2", tmp_path / "model")
    model, text, run = (str(tmp_path / name) for name in ("model", "text", "run"))
    Path(text).mkdir()
    for label, lines in zip(ANY, itertools.cycle(made_up().values()), strict=False):
        lines = [f"{line} {label[-4:]}" for line in lines]
        (Path(text) / f"{label}.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = ["--text", text, "--block-length", "16", "--n-shards", "4"]
    cli.main(["collect", model, *settings, "--contexts", "2", "--out", run])
    shown = capsys.readouterr().out
    assert "which the detector cannot recognize: poetry, sr-Latn." in shown
    assert "Serbian (Latin)" in shown
    cli.main(["find", run, "--fraction", "0.1", "--busy-quantile", "0.5"])
    assert "tokens per label" in capsys.readouterr().out
    assert NeuronSelection.from_json(Path(run) / "neurons.json").languages == tuple(sorted(ANY))
    few = ["--tokens", "320", "--n-draws", "1", "--out", f"{run}/off"]
    cli.main(["deactivate", run, model, *settings, *few])
    shown = capsys.readouterr().out
    assert "a label's neurons off" in shown
    assert "The own label suffers most" in shown
    cli.main(["page", run, "--out", f"{run}/page.html"])
    cli.main(["report", run, "--out", f"{run}/report.html"])
    report = Path(f"{run}/report.html").read_text(encoding="utf-8")
    assert "Labels: Welsh, German, poetry, Serbian, Serbian (Latin)" in report
    shown = re.sub(r"<(details|style|svg).*?</\1>|<[^>]*>", " ", report, flags=re.DOTALL)
    assert "anguage" not in shown
    assert capsys.readouterr().err.count("Error") == 0


@pytest.mark.parametrize("to", [("de", "poetry"), ("sports", "poetry")])
def test_a_report_says_which_steered_texts_nobody_could_count(to: tuple[str, ...], tmp_path: Path):
    known = {code: 0.5 if code == "de" else math.nan for code in to}
    rates = pd.DataFrame(
        {"language": code, "texts": 4, "to": code, "condition": name}
        | {
            f"{kind}{end}": known[code]
            for kind in ("rate", "good")
            for end in ("", "_low", "_high")
        }
        for code in to
        for name in ("no edit", "neurons")
    )
    rates.to_csv(tmp_path / "rates.csv", index=False)
    (section,) = sections_in([tmp_path])
    assert len(section.pictures) == ("de" in to)
    if "de" in to:
        assert section.title == "Can the language that is written be switched?"
        assert section.text.endswith("Not counted, since the detector does not know them: poetry.")
    else:
        assert section.title == "What does the model write with a label's neurons changed?"
        assert "a language's" not in section.text

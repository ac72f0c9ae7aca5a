"""Translating with units held: what is translated, how it is scored, and when the claims hold."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import steer_translation as study
from experiments.runner import stated
from experiments.steering_claims import NOTHING, PRECISION, RANDOM_UNITS
from experiments.study import Study
from interp.evaluations.writing import translation_prompt
from interp.inference.claims import Claim, load_claims
from interp.inference.statements import judged

ENGLISH = (
    "one cold day in the north",
    "two warm nights by the sea",
    "three wet weeks of late spring",
    "four dry years without any harvest",
)
RENDERED = {
    "de": (
        "ein kalter Tag im hohen Norden",
        "zwei warme N\u00e4chte an der See",
        "drei nasse Wochen im sp\u00e4ten Mai",
        "vier trockene Jahre ganz ohne Ernte",
    ),
    "fr": (
        "un jour froid dans le nord",
        "deux nuits chaudes sur la c\u00f4te",
        "trois semaines humides en fin de printemps",
        "quatre ans secs sans aucune moisson",
    ),
}
PROMPTS = {2: "", 3: "de", 5: "fr"}


def written(shares: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """Texts by edit and kind of prompt ("open", "own", "other"): this share of them is the
    reference, and the others are English."""
    rows = []
    for to, references in RENDERED.items():
        for number, named in PROMPTS.items():
            prompt = "open" if not named else "own" if named == to else "other"
            for edit in (NOTHING, PRECISION, RANDOM_UNITS):
                n = round(len(ENGLISH) * shares.get((edit, prompt), 0.0))
                for index, (english, reference) in enumerate(zip(ENGLISH, references, strict=True)):
                    hit = index < n
                    row = {"set": "made", "to": to, "prompt": number, "named": named, "edit": edit}
                    row |= {"english": english, "reference": reference}
                    row |= {"text": reference if hit else english, "language": to if hit else "en"}
                    rows.append(row)
    return pd.DataFrame(rows)


NONE = pd.DataFrame({"rate": [], "published": []})


def claimed(shares: Mapping[tuple[str, str], float]) -> dict[str, Claim]:
    texts = written(shares)
    measured = study.measures(texts, study.scores_of(texts, "char"), NONE)
    claims = judged(stated("steer_translation"), measured, "made up")
    return {claim.name.removeprefix("translation-"): claim for claim in claims}


def test_units_that_alone_bring_the_language_and_the_meaning_make_the_claims_hold():
    claims = claimed({(PRECISION, "open"): 1, (PRECISION, "other"): 1})
    for name in ("steers", "over-name"):
        assert (claims[name].verdict, claims[name].value, claims[name].control) == ("holds", 1, 0)
    assert claims["closer"].value > 90
    assert claims["closer"].control == pytest.approx(0)
    rows = study.scores_of(written({(PRECISION, "open"): 1}), "char").query("prompt == 2")
    apart = (rows["chrf"] - rows["chrf_other"]).groupby(rows["edit"]).mean()
    assert claims["of-the-sentence"].value == pytest.approx(apart[PRECISION]) != 100
    assert claims["of-the-sentence"].control == pytest.approx(apart[NOTHING])
    assert apart[PRECISION] > apart[NOTHING] + 50
    assert claims["named"].value == -1
    assert claims["named"].verdict == "does not hold"
    assert "published" not in claims


def test_random_units_that_do_as_much_leave_no_more_than_the_control():
    both = (PRECISION, RANDOM_UNITS)
    claims = claimed({(edit, prompt): 1 for edit in both for prompt in ("open", "other")})
    for name in ("steers", "over-name", "closer"):
        assert claims[name].verdict == "no more than its control"
    assert claims["named"].control_name.endswith("the share is 1.00")


def test_what_is_written_after_other_prompts_does_not_count():
    claims = claimed({(PRECISION, "own"): 1, (NOTHING, "own"): 1, (PRECISION, "other"): 1})
    assert (claims["steers"].value, claims["closer"].value) == (0, pytest.approx(0))
    assert (claims["over-name"].value, claims["named"].value) == (1, 1)
    assert claims["named"].verdict == "holds"


def test_a_prompt_that_was_not_tried_leaves_no_claim():
    texts = written({})
    texts = texts[texts["named"] == texts["to"]]
    measured = study.measures(texts, study.scores_of(texts, "char"), NONE)
    assert not any(measured.values())


def test_scores_are_of_the_whole_set_and_of_another_sentence_s_reference():
    texts = written({(PRECISION, "open"): 0.5})
    scores = study.scores_of(texts, "char").set_index(["to", "prompt", "edit"])
    half, none = scores.loc[("de", 2, PRECISION)], scores.loc[("de", 2, NOTHING)]
    assert (half["rate"], none["rate"], half["sentences"]) == (0.5, 0, 4)
    translated = [*RENDERED["de"][:2], *ENGLISH[2:]]
    slow = interp.evaluations.translation_score(translated, RENDERED["de"], "de")
    assert (half["bleu"], half["chrf"]) == (slow.bleu, slow.chrf)
    moved = [RENDERED["de"][(index + 1) % 4] for index in range(4)]
    other = interp.evaluations.translation_score(translated, moved, "de")
    assert half["chrf_other"] == other.chrf < half["chrf"]


def test_japanese_is_split_as_the_study_says():
    texts = written({}).query("to == 'de'").assign(to="ja", reference="\u732b\u304c\u5bdd\u308b")
    scores = study.scores_of(texts, "char")
    assert scores["signature"].str.contains("tok:char").all()


# ---------------------------------------------------------------- what is read


def test_the_eight_prompts_are_the_authors():
    texts = [translation_prompt("A dog.", *prompt) for prompt in study.PROMPTS]
    first = ["a sentence from English to", "English to", "an English sentence into"]
    for text, words in zip(texts, first, strict=False):
        assert text == (f"Translate {words} a target language.\nEnglish: A dog.\nTarget Language:")
    for text, name in zip(
        texts[3:], ["German", "Japanese", "French", "Spanish", "Chinese"], strict=True
    ):
        assert text == (f"Translate an English sentence into {name}.\nEnglish: A dog.\n{name}:")
    with pytest.raises(ValueError, match="wording is 3: give 0 to 2"):
        translation_prompt("A dog.", None, 3)


def config(tmp_path: Path, **changes: object) -> study.Config:
    made = study.Config(study=Study(languages=("en", "de", "fr")), out=tmp_path)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_sets_are_those_of_the_folder_into_languages_of_the_study(tmp_path: Path):
    for name in ("b_en_fr", "a_en_de", "a_en_ja"):
        rows = [{"en": f"{name} {index}", name[-2:]: f"x {index}"} for index in range(3)]
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    sets = study.read_pairs(config(tmp_path, pairs=tmp_path, n=2))
    assert [(pairs.name, pairs.to) for pairs in sets] == [("a", "de"), ("b", "fr")]
    assert sets[0].english == ("a_en_de 0", "a_en_de 1")
    assert sets[0].references == ("x 0", "x 1")
    (tmp_path / "c_en_de.jsonl").write_text('{"en": "no reference"}\n')
    with pytest.raises(ValueError, match=r'c_en_de.jsonl needs a text under "en" and under "de"'):
        study.read_pairs(config(tmp_path, pairs=tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no <set>_en_<language>.jsonl .* among de, fr"):
        study.read_pairs(config(tmp_path, pairs=tmp_path / "none"))


@pytest.mark.slow
def test_units_are_selected_on_no_sentence_that_is_translated():
    model = interp.load("babel")
    read = Study(languages=("en", "de"), sentences=None, tokens=None)
    rows = read.read_sentences(model, "babel", split="train", held_out=0.5)
    pairs = study.babel_pairs("de", None)
    assert len(pairs.english) > 100
    for code, texts in (("en", pairs.english), ("de", pairs.references)):
        part = rows.rows[code]
        seen = {
            model.decode(ids[:n].tolist()) for ids, n in zip(part.ids, part.length, strict=True)
        }
        assert len(seen) > 200
        assert not seen & set(texts)


@pytest.mark.slow
def test_medians_of_the_score_are_those_of_the_sentences():
    model = interp.load("babel", dtype=torch.float32)
    lines = {"en": ["One cold day.", "It rains."], "de": ["Ein kalter Tag.", "Es regnet."]}
    rows = interp.read_sentences(lines, ["en", "de"], model, n_shards=2, progress=False)
    keep = interp.Keep(sentence_means=("pre", "mlp_out"))
    means = interp.collect(model, rows, keep=keep, progress=False).sentence_means
    precision = interp.measure_precision(means, progress=False)
    slow = interp.interventions.sentence_medians(means, "de")
    assert set(slow) == set(precision.medians("de"))
    for kind, medians in precision.medians("de").items():
        assert torch.allclose(medians, slow[kind], atol=1e-6)
        assert not torch.allclose(medians, precision.medians("en")[kind], atol=1e-3)
    with pytest.raises(ValueError, match="'ja' is not in this result, which covers en, de"):
        precision.medians("ja")


# ---------------------------------------------------------------- the published


def test_the_published_shares_are_compared_by_set_language_and_edit():
    table = pd.read_csv(study.PUBLISHED)
    assert table.groupby("model").size().to_dict() == {
        "Llama-2-7b-hf": 12,
        "bloom-560m": 12,
        "xglm-564M": 12,
    }
    assert table.groupby("set")["language"].apply(lambda codes: sorted(set(codes))).to_dict() == {
        "flores200": ["de", "es", "fr", "ja", "zh"],
        "iwslt2017": ["de", "fr", "ja", "zh"],
        "wmt": ["de", "fr", "zh"],
    }
    texts = written({(PRECISION, "open"): 0.5}).assign(set="wmt")
    scores = study.scores_of(texts, "char")
    beside = study.beside_published(scores, "meta-llama/Llama-2-7b-hf").set_index(["to", "edit"])
    assert beside["published"].to_dict() == {
        ("de", NOTHING): 0.02,
        ("fr", NOTHING): 0.0,
        ("de", PRECISION): 0.53,
        ("fr", PRECISION): 0.36,
    }
    measured = study.measures(texts, scores, beside)["translation-published"]
    assert measured is not None
    assert measured.value == pytest.approx(0.14)  # French: a half against .36
    assert study.beside_published(scores, "babel").empty


# ---------------------------------------------------------------- it runs


@pytest.mark.campaign
def test_translations_are_written_scored_and_claimed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, tiny = study.experiment.presets["tiny"]
    sizes = {"tokens": 960, "n_shards": 2, "out": tmp_path}
    small = replace(tiny, study=replace(tiny.study, **sizes), out=tmp_path, units=40, n=2)
    study.experiment.run(small)
    texts, scores = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("texts", "scores"))
    assert len(texts) == 2 * 3 * 3 * 2
    assert len(scores) == 2 * 3 * 3
    assert not (tmp_path / "published.csv").exists()
    held, nothing = (texts[texts["edit"] == edit]["text"] for edit in (PRECISION, NOTHING))
    assert held.tolist() != nothing.tolist()
    names = {claim.name for claim in load_claims(tmp_path / "claims.json")}
    assert names == {each.name for each in stated("steer_translation")} - {"translation-published"}
    assert "babel en-de, in the language: no edit" in capsys.readouterr().out
    with pytest.raises(ValueError, match="There is no prompt 8: give some of 0 to 7"):
        study.experiment.run(replace(small, prompts=(8,)))

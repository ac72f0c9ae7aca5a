"""Is it the language or its script: planted counts, claims from made-up tables, and a whole run."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import explain_language as study
from experiments.explain_language import ALL, AS_IT_IS, BOTH, IN_LATIN, OTHERS
from experiments.runner import stated
from interp.inference.intervals import Estimate
from interp.inference.statements import Measurement, judged
from interp.text.counterfactuals import SEPARATOR

CODES = ("en", "ru", "zh")
NEURONS = {
    "en": range(20, 30),
    "ru": range(10),
    "zh": range(10, 20),
    "ru~romanised": range(30, 40),  # others, and none of another language
    # Six of its own, five of English's, four others.
    "zh~romanised": [*range(14, 20), *range(25, 30), *range(40, 44)],
    "en~words-shuffled": range(20, 30),
    "ru~words-shuffled": range(10),
    "zh~words-shuffled": range(10, 20),
}


@pytest.fixture
def stats() -> interp.FiringStats:
    fired = torch.full((4, len(NEURONS), 1, 800), 2)
    fired[..., 790:] = 80  # fire in every language, and are nobody's
    for row, neurons in enumerate(NEURONS.values()):
        fired[:, row, 0, list(neurons)] = 60
    return interp.FiringStats(fired, torch.full((4, len(NEURONS)), 100), tuple(NEURONS))


def test_neurons_of_rewritten_text_are_compared_with_the_own_and_those_of_others(stats):
    table = study.overlap(stats, CODES, fraction=30 / 800).set_index(["without", "language"])
    script, order = table.loc["script"], table.loc["word order"]
    assert list(script.index) == ["ru", "zh"]
    assert script["jaccard"].tolist() == pytest.approx([0.0, 6 / 19])
    assert script.loc["zh", ["elsewhere", "closest"]].tolist() == [pytest.approx(5 / 20), "en"]
    assert script.loc["ru", "elsewhere"] == 0
    assert order["jaccard"].tolist() == [1.0, 1.0, 1.0]
    assert order["neurons"].tolist() == [10, 10, 10]


def test_only_the_rewritten_languages_are_replaced(stats):
    assert study.rewritten(stats.languages, "romanised", CODES) == [
        "en",
        "ru~romanised",
        "zh~romanised",
    ]
    assert study.romanised(stats) == ("ru", "zh")


def test_as_many_others_are_neurons_of_the_language_that_one_script_lacks():
    own, kept = (torch.zeros(2, 9, dtype=torch.bool) for _ in range(2))
    own[:, :5] = True
    kept[0, :3] = True
    sets = study.sets_of(own, kept, torch.Generator().manual_seed(0))
    assert torch.equal(sets[ALL], own)
    assert torch.equal(sets[BOTH], kept)
    assert int(sets[OTHERS].sum()) == 3
    assert not (sets[OTHERS] & ~(own & ~kept)).any()
    again = study.sets_of(own, kept, torch.Generator().manual_seed(0))
    other = study.sets_of(own, kept, torch.Generator().manual_seed(1))
    assert torch.equal(again[OTHERS], sets[OTHERS])
    assert not torch.equal(other[OTHERS], sets[OTHERS])
    assert list(study.sets_of(own, own, torch.Generator())) == [ALL, BOTH]  # no others
    assert list(study.sets_of(own, torch.zeros_like(own), torch.Generator())) == [ALL]


def value(found: Measurement | None) -> tuple[float, float]:
    assert found is not None
    assert isinstance(found.value, Estimate)
    control = found.control
    bar = control.value.item() if isinstance(control, Estimate) else control
    return found.value.value.item(), bar


def test_claims_are_means_over_languages_beside_their_controls():
    aspects = ("script", "word order", "all but frequencies")
    shares = [(code, aspect) for code in ("ru", "zh") for aspect in aspects]
    kept = {"kept": [0.1, 0.8, 0.9, 0.3, 0.6, 0.7], "random": [0.02, 0.1, 0.2] * 2}
    explanation = pd.DataFrame(shares, columns=["language", "without"]).assign(**kept)
    jaccards = {"jaccard": [0.0, 0.9, 0.8, 0.1, 0.7, 0.6], "elsewhere": [0.05, 0.2, 0.2] * 2}
    overlaps = pd.DataFrame(shares, columns=["language", "without"]).assign(**jaccards)
    rows = [
        (ALL, AS_IT_IS, 2.0, 0.2),
        (ALL, IN_LATIN, 0.5, 0.1),
        (BOTH, AS_IT_IS, 0.8, 0.1),
        (BOTH, IN_LATIN, 0.4, 0.05),
        (OTHERS, AS_IT_IS, 0.3, 0.1),
    ]
    columns = ["off", "read", "increase", "rate_matched"]
    one = pd.DataFrame(rows, columns=columns)
    off = pd.concat([one.assign(language="ru"), one.assign(language="zh")])
    found = study.measures(explanation, overlaps, off)
    expected = {
        "script-disjoint": (0.05, 0.8),
        "script-elsewhere": (0.05, float("nan")),
        "script-order": (0.7, 0.1),
        "script-invariant": (0.8, 0.3),
        "script-effect": (1.5, 0.1),
        "script-frequencies": (0.8, 0.2),
        "script-beyond": (0.2, 0.02),
        "script-beyond-effect": (0.4, 0.05),
    }
    for name, numbers in expected.items():
        assert value(found[name]) == pytest.approx(numbers, nan_ok=True), name
    assert len(judged(stated("explain_language"), found, "a model")) == len(expected)
    alone = study.measures(
        *(table[table["language"] == "ru"] for table in (explanation, overlaps, off))
    )
    assert set(alone.values()) == {None}


@pytest.mark.slow
def test_a_run_switches_off_what_the_library_selects(tmp_path: Path):
    config = study.experiment.presets["tiny"][1]
    small = replace(config.study, tokens=1280, held_out_tokens=256, n_shards=2, out=tmp_path)
    config = replace(config, study=small, out=tmp_path)
    study.experiment.run(config)
    stats = interp.Run.open(tmp_path / "statistics").firing
    assert {label.partition(SEPARATOR)[0] for label in stats.languages} == set(small.languages)
    found = interp.selections.explain(stats, config.fraction).to_frame()
    written = pd.read_csv(tmp_path / "explanation.csv")
    pd.testing.assert_frame_equal(found, written, check_dtype=False)
    off = pd.read_csv(tmp_path / "off.csv")
    assert set(off["language"]) == {"zh", "ja"}
    assert set(off["read"]) == {AS_IT_IS, IN_LATIN}
    beyond = interp.selections.beyond_script(stats, config.fraction).counts()
    sizes = off[off["off"] == BOTH].groupby("language")["neurons"].first()
    assert all(beyond[str(code)] == n for code, n in sizes.items())
    own = off[off["off"] == ALL].set_index(["language", "read"])["increase"]
    assert own.to_dict()["ja", AS_IT_IS] > 0.02  # the effect is there to lose


def test_languages_in_latin_letters_alone_are_refused(tmp_path: Path):
    config = study.experiment.presets["tiny"][1]
    latin = replace(config.study, languages=("de", "fr"), tokens=512, n_shards=2)
    with pytest.raises(ValueError, match="de, fr, all in Latin letters: add one"):
        study.experiment.run(replace(config, study=latin, out=tmp_path))

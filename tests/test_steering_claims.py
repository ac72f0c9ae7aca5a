"""What is claimed of steering: on hand-made texts, and on those that a paper published."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import read_published_texts as published
from experiments import steering_claims as claims
from experiments.runner import stated
from experiments.study import LANGUAGES
from interp.inference.claims import Claim, load_claims
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import Measurement, judged

TEXTS = {
    "en": "The train does not leave before tonight, and nobody knows why.",
    "de": "Der Zug f\u00e4hrt heute erst am Abend, und keiner wei\u00df warum.",
}


def written(way: str, setting: str, share: float, good: float = 1.0) -> pd.DataFrame:
    """Forty texts for each of six languages: this share is in it, and this share of those good."""
    n = round(40 * share)
    rows = [
        {"way": way, "setting": setting, "to": to, "language": to if place < n else "other"}
        | {"passes": place < round(n * good)}
        for to in LANGUAGES
        for place in range(40)
    ]
    return pd.DataFrame(rows)


def claimed(measured: Mapping[str, Measurement | None]) -> list[Claim]:
    """Of the statements of the study, those that these numbers are about."""
    some = [each for each in stated("steer_language") if each.name in measured]
    return judged(some, measured, "made up")


def every(**shares: float) -> dict[str, Claim]:
    """Claims about ways that reach their language in these shares of the texts."""
    ways = {
        claims.NOTHING: 0.1,
        claims.LAPE: 0.4,
        claims.RANDOM_NEURONS: 0.1,
        claims.PRECISION: 0.8,
        claims.RANDOM_UNITS: 0.1,
        claims.TOP: 0.5,
        claims.BOTTOM: 0.6,
        claims.NEARLY_ALL: 0.3,
        claims.RESIDUAL: 1.0,
    }
    changed = {name.replace("_", " "): share for name, share in shares.items()}
    frames = [written(way, "", share) for way, share in (ways | changed).items()]
    return {claim.name: claim for claim in claimed(claims.of_ways(pd.concat(frames)))}


def test_claims_hold_where_the_ways_do_what_is_claimed_of_them():
    found = every()
    assert {claim.verdict for claim in found.values()} == {"holds"}
    assert found["precision-steers"].value == pytest.approx(0.7)
    assert found["precision-steers"].control == pytest.approx(0.0)
    random = found["precision-random"]
    assert (random.value, random.control) == (0.0, pytest.approx(0.7))
    assert 0 < random.high < 0.05  # no event in 240 texts
    assert found["precision-both-top"].value == pytest.approx(0.3)
    assert found["precision-both-top"].control == pytest.approx(0.1 - 0.5)
    better = found["residual-steers-better"]
    assert (better.value, better.control) == (pytest.approx(0.2), pytest.approx(0.1 - 0.8))


@pytest.mark.slow
def test_a_claim_falls_with_the_way_that_it_is_about():
    assert every(random_units=0.6)["precision-random"].verdict == "does not hold"
    assert (
        every(precision_units=0.5, top_half_of_them=1.0)["precision-both-top"].verdict
        == "does not hold"
    )
    assert (
        every(precision_units=0.5, bottom_half_of_them=1.0)["precision-both-bottom"].verdict
        == "does not hold"
    )
    assert every(LAPE_neurons=0.1)["lape-steers"].verdict == "cannot tell"
    assert every(random_neurons=0.4)["lape-steers"].verdict == "no more than its control"
    assert every(random_units=0.8)["precision-steers"].verdict == "no more than its control"
    assert (
        every(precision_units=0.5, nearly_all_units=1.0)["precision-collapse"].verdict
        == "does not hold"
    )


def test_more_units_can_reach_the_language_more_often_and_write_worse():
    sizes = {
        (claims.PRECISION, 2900): (1.0, 0.2),
        (claims.PRECISION, 900): (0.0, 1.0),  # the decoy
        (claims.PRECISION, 290): (0.5, 1.0),
        (claims.RANDOM_UNITS, 290): (0.3, 1.0),
        (claims.RANDOM_UNITS, 2900): (0.2, 1.0),
    }
    frames = [written(way, claims.setting_of(n), *told) for (way, n), told in sizes.items()]
    more, good = claimed(claims.of_sizes(pd.concat(frames), (290, 2900)))
    assert (more.value, more.verdict) == (pytest.approx(0.5), "holds")
    assert more.control == pytest.approx(-0.1)
    assert more.difference == pytest.approx(0.6)
    assert good.value == pytest.approx(-0.3)
    assert good.verdict != "holds"


def test_texts_of_one_seed_are_one_and_languages_are_few():
    """Twenty of forty seeds reach the language, in all six languages alike."""
    frames = {way: written(way, "", share) for way, share in (("one", 0.5), ("nothing", 0.0))}
    found = claims.difference(frames["one"], frames["nothing"], frames["nothing"])
    language, seed = claims.units_of(frames["one"])
    assert language.tolist() == [row for row in range(6) for _ in range(40)]
    assert seed.tolist() == 6 * list(range(40))
    by_seed = mean_over_examples(torch.tensor([1.0] * 20 + [0.0] * 20))
    assert found.value.standard_error == pytest.approx(by_seed.standard_error.item())
    assert found.value.degrees_of_freedom == 5


def test_a_number_of_units_is_compared_with_ten_times_as_many_where_both_are_tried():
    assert claims.tenfold((290, 900, 2900, 9000)) == (290, 2900)
    assert claims.tenfold((20_000, 400, 2000)) == (2000, 20_000)
    assert claims.tenfold((400,)) is None
    assert claims.tenfold((400, 2000, 8000)) is None


# ---------------------------------------------------------------- the texts of a paper


def made_up(folder: Path, shares: dict[tuple[int, str], float]) -> Path:
    """Texts of every setting: this share of ten is German where German is asked for, and English
    where English is, the rest the other way round."""
    path = folder / "texts.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for (units, kind), share in shares.items():
            for to in ("en", "de") if units else ("en",):
                for seed in range(10):
                    own = seed < round(10 * share)
                    text = TEXTS[to if own else {"en": "de", "de": "en"}[to]]
                    row = {"language": to, "units": units, "kind": kind, "seed": seed}
                    file.write(json.dumps(row | {"text": text}) + "\n")
    return path


SHARES = {
    (0, "both"): 0.5,
    (2, "both"): 0.5,
    (1000, "top"): 0.6,
    (1000, "bottom"): 1.0,
    (2000, "both"): 0.8,
    (20_000, "both"): 1.0,
    (200_000, "both"): 0.0,
}


def test_published_texts_are_read_with_the_untouched_ones_once_for_each_language(tmp_path: Path):
    texts = published.read_texts(made_up(tmp_path, SHARES))
    rates = published.rates_of(texts).set_index(["units", "kind", "to"])
    assert rates.loc[(0, "both", "en"), "rate"] == 0.5
    assert rates.loc[(0, "both", "de"), "rate"] == 0.5
    assert rates.loc[(0, "both", "ja"), "rate"] == 0.0
    assert rates.loc[(2000, "both", "de"), "rate"] == 0.8
    assert rates.loc[(2000, "both", "de"), "good"] == 0.8
    held = texts[texts["units"] > 0]
    assert len(held) == 20 * (len(SHARES) - 1)
    assert len(texts) - len(held) == 10 * len(LANGUAGES)


def test_what_is_not_the_file_of_published_texts_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is missing: give the file of the published"):
        published.read_texts(tmp_path / "none.jsonl")
    path = tmp_path / "texts.jsonl"
    path.write_text('{"language": "de", "text": "Guten Tag"}\n')
    with pytest.raises(ValueError, match="has no units, kind, seed: each line needs language"):
        published.read_texts(path)


@pytest.mark.slow
def test_the_published_texts_say_what_is_known_of_them(shared: Path, tmp_path: Path, capsys):
    path = shared / "data" / "kojima" / "generated" / "bloom-560m.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    published.experiment.run(published.Config(path, out=tmp_path))
    found = {claim.name: claim for claim in load_claims(tmp_path / "claims.json")}
    rates = pd.read_csv(tmp_path / "rates.csv").set_index(["units", "kind", "to"])["rate"]
    assert rates[2000, "both", "de"] == pytest.approx(0.73, abs=0.03)
    assert rates[0, "both", "fr"] == pytest.approx(0.13, abs=0.03)
    assert found["bloom-560m-tenfold"].verdict == "cannot tell"
    steers = found["bloom-560m-steers"]
    assert steers.verdict == "holds"
    assert (steers.low, steers.high) == pytest.approx((0.53, 0.96), abs=0.02)  # over languages
    assert found["bloom-560m-steers"].value == pytest.approx((520 - 74) / 600, abs=0.03)
    assert "bloom-560m" in capsys.readouterr().out


FACTS = Path(__file__).parent / "facts" / "published_texts.json"
"""Which of the published texts reach their language: all that the claims need of them."""


def bits(written: str, n: int) -> list[bool]:
    return [digit == "1" for digit in f"{int(written, 16):0{n}b}"]


def kept_texts() -> pd.DataFrame:
    """The rows that `read_texts` makes, as far as claims need them."""
    rows = []
    for setting in json.loads(FACTS.read_text(encoding="utf-8"))["settings"]:
        reached, passes = (bits(setting[name], setting["texts"]) for name in ("reached", "passes"))
        axes = {name: setting[name] for name in ("units", "kind", "to")}
        for hit, good in zip(reached, passes, strict=True):
            rows.append(axes | {"language": setting["to"] if hit else "other", "passes": good})
    return pd.DataFrame(rows)


def test_what_is_kept_of_the_published_texts_gives_the_published_claims_anywhere():
    found = {
        claim.name: claim
        for claim in judged(stated("read_published_texts"), published.measures(kept_texts()), "")
    }
    steers, tenfold = found["bloom-560m-steers"], found["bloom-560m-tenfold"]
    assert steers.value == pytest.approx(0.7433, abs=1e-4)
    assert (steers.low, steers.high) == pytest.approx((0.525, 0.961), abs=1e-3)
    assert (tenfold.low, tenfold.high) == pytest.approx((-0.144, 0.187), abs=1e-3)
    values = {name.removeprefix("bloom-560m-"): claim.value for name, claim in found.items()}
    known = {"steers": 0.7433, "both-top": 0.3633, "both-bottom": 0.3717, "tenfold": 0.0217}
    assert values == pytest.approx(known | {"tenfold-good": -0.3967, "collapse": 0.8667}, abs=1e-4)
    assert {name: claim.verdict for name, claim in found.items()} == {
        "bloom-560m-steers": "holds",
        "bloom-560m-both-top": "holds",
        "bloom-560m-both-bottom": "holds",
        "bloom-560m-tenfold": "cannot tell",
        "bloom-560m-tenfold-good": "does not hold",
        "bloom-560m-collapse": "holds",
    }


@pytest.mark.slow
def test_what_is_kept_is_what_the_published_texts_say(shared: Path):
    path = shared / "data" / "kojima" / "generated" / "bloom-560m.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    texts = published.read_texts(path)
    kept = kept_texts()
    assert published.rates_of(texts).equals(published.rates_of(kept))
    for columns in (["units", "kind", "to"], ["passes"]):
        assert texts[columns].to_numpy().tolist() == kept[columns].to_numpy().tolist()

"""The studies run whole on the shipped model, small, and choose what they say they choose."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import (
    attribute_neurons,
    compare_methods,
    deactivate_neurons,
    detect_languages,
    map_shared_neurons,
    steer_language,
    steering_claims,
)
from experiments.runner import Record, stated
from experiments.study import Study
from interp.inference.claims import load_claims
from interp.inference.statements import judged
from interp.interventions.under import applied

NOTHING_PUBLISHED = pd.DataFrame({"precision": [], "published": []})


def small(out: Path) -> Study:
    sizes = {"tokens": 960, "held_out_tokens": 320, "n_shards": 2, "block_length": 64}
    return Study(languages=("de", "ja"), **sizes, out=out)


def test_a_killed_study_reads_the_pieces_that_it_kept(tmp_path: Path):
    record = Record(tmp_path)
    record.begin_pieces({"seed": 0})
    made = pd.DataFrame({"part": ["NA", "all"], "moved": [1 / 3, math.nan]})
    first = record.piece("0", lambda: made)
    pd.testing.assert_frame_equal(first, made, check_exact=True)
    again = Record(tmp_path)
    again.begin_pieces({"seed": 0})
    kept = again.piece("0", lambda: pytest.fail("made anew"))
    pd.testing.assert_frame_equal(kept, made, check_exact=True)
    with pytest.raises(ValueError, match="another seed"):
        Record(tmp_path).begin_pieces({"seed": 1})


@pytest.mark.slow
def test_the_two_halves_of_a_study_have_no_document_in_common(tmp_path: Path):
    study, model = small(tmp_path), interp.load("babel")
    rows = {half: study.read(model, half) for half in ("train", "held_out")}
    for code in study.languages:
        first, second = (
            {line for source in rows[half].rows[code].source for line in source.split(", ")}
            for half in rows
        )
        assert first
        assert second
        assert not first & second


def test_the_setting_with_the_best_mean_is_chosen_for_each_way():
    sweep = pd.DataFrame(
        [
            ("a", "weak", "de", 0.9),
            ("a", "weak", "ja", 0.1),
            ("a", "strong", "de", 0.6),
            ("a", "strong", "ja", 0.6),
            ("b", "", "de", 0.0),
            ("b", "", "ja", 0.0),
        ],
        columns=["way", "setting", "to", "score"],
    )
    assert steer_language.best_of(sweep) == {"a": "strong", "b": ""}


def test_every_text_continues_what_the_study_says(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def looked_at(*given: object, prompts: tuple[str, ...], **settings: object):
        seen.extend(prompts)
        return {"way": None}

    monkeypatch.setattr(interp, "generated_languages", looked_at)
    config = replace(steer_language.Config(), study=Study(languages=("de", "ja")), start="</s>")
    for named in (False, True):
        way = steer_language.Way("way", "", lambda code: [], named=named)
        steer_language.run(interp.load("babel"), way, {}, config, 1, 0)
    names = [interp.text.naming_prompt(code) for code in ("de", "ja")]
    assert seen == ["</s>", "</s>", *(f"</s>{name}" for name in names)]


def test_the_paper_s_sizes_are_written_a_hundred_times_and_two_of_them_compared():
    _, config = steer_language.experiment.presets["paper"]
    assert sorted(config.units) == [2, 20, 200, 2000, 20_000, 200_000]
    assert (config.n_sweep, config.n_final) == (100, 100)
    assert steering_claims.tenfold(config.units) == (2000, 20_000)


@pytest.mark.campaign
def test_steering_is_swept_and_then_measured_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(
        steer_language.experiment.presets["tiny"][1],
        study=small(tmp_path),
        units=(40, 400),
        layers=(5,),
        n_natural=20,
        n_sweep=2,
        n_final=2,
        max_new_tokens=6,
        out=tmp_path,
    )
    steer_language.experiment.run(config)
    sweep, final, texts = (
        pd.read_csv(tmp_path / f"{name}.csv") for name in ("sweep", "final", "texts")
    )
    assert not set(sweep["way"]) & {"random neurons", "random units", "top half of them"}
    ways = ["LAPE neurons", "random neurons", "precision units", "random units"]
    ways += ["top half of them", "bottom half of them", "nearly all units", "residual push"]
    assert list(final["way"].unique()) == ["no edit", "named in prompt", *ways]
    assert len(texts) == 2 * len(final)
    counted = (
        texts.assign(own=texts["language"] == texts["to"]).groupby(["way", "to"])["own"].mean()
    )
    shown = final.set_index(["way", "to"])["rate"]
    pd.testing.assert_series_equal(shown.sort_index(), counted.sort_index(), check_names=False)
    # A control has the setting of what it is a control to.
    setting = final.groupby("way")["setting"].first()
    assert setting["random neurons"] == setting["LAPE neurons"]
    assert setting["random units"] == setting["precision units"]
    assert "above 60 %" in capsys.readouterr().out
    own = counted.groupby("way").mean()
    (claim,) = (c for c in load_claims(tmp_path / "claims.json") if c.name == "precision-steers")
    assert claim.value == pytest.approx(own["precision units"] - own["no edit"])
    assert claim.control == pytest.approx(own["random units"] - own["no edit"])
    (claim,) = (c for c in load_claims(tmp_path / "claims.json") if c.name == "precision-tenfold")
    swept = sweep[sweep["way"] == "precision units"].groupby("setting")["rate"].mean()
    assert claim.value == pytest.approx(swept["400 units"] - swept["40 units"])


@pytest.mark.slow
def test_pushing_towards_a_language_moves_its_own_neurons_only(tmp_path: Path):
    model = interp.load("babel", dtype=torch.float32)
    stats, moments = small(tmp_path).statistics(model)
    found = interp.select_by_entropy(stats, 0.03)
    seen: list[torch.Tensor] = []
    ids = torch.tensor([model.encode("Der Hund")])

    def look(values: torch.Tensor, hook: object) -> None:
        seen.append(values[0, -1].clone())

    sites = [(model.site(layer, "post"), look) for layer in range(1)]
    for code in (None, "de"):
        changes = [] if code is None else steer_language.pushed(moments, found, 2.0, True, code)
        with torch.no_grad(), applied(changes, model), model.hooks(sites):
            model.body(ids)
    changed = (seen[1] - seen[0]).abs() > 0
    others = found.union() & ~found["de"]
    assert not (changed & ~found.union()[0]).any()
    assert (seen[1][others[0]] == 0).all()
    own = found["de"][0]
    assert own.any()
    assert changed[own].all()
    assert (seen[1][own] != 0).all()  # pushed, and not off like the others


@pytest.mark.campaign
def test_the_matrix_is_written_for_each_fraction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(
        deactivate_neurons.experiment.presets["tiny"][1],
        study=small(tmp_path),
        fractions=(0.01, 0.05),
        tried=0.05,
        n_texts=2,
        max_new_tokens=8,
        out=tmp_path,
    )
    deactivate_neurons.experiment.run(config)
    names = [claim.name for claim in load_claims(tmp_path / "claims.json")]
    assert {"lape-own-language", "lape-writing-leaves", "lape-larger"} < {*names}
    assert len(pd.read_csv(tmp_path / "texts.csv")) == 4 * 4
    assert len(pd.read_csv(tmp_path / "writing.csv")) == 8
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table["fraction"]) == [0.01, 0.01, 0.05, 0.05]
    matrix = pd.read_csv(tmp_path / "0.05" / "matrix.csv")
    assert table["beyond_random"].isna().tolist() == [True, True, False, False]
    own = matrix[(matrix["off"] == "de") & (matrix["read"] == "de")].iloc[0]
    other = matrix[(matrix["off"] == "de") & (matrix["read"] == "ja")].iloc[0]
    row = table[(table["fraction"] == 0.05) & (table["language"] == "de")].iloc[0]
    assert row["own_minus_others"] == pytest.approx(own["increase"] - other["increase"], abs=1e-9)
    assert row["beyond_random"] == pytest.approx(own["excess"], abs=1e-9)


# ---------------------------------------------------------------- what the studies compute


def test_the_three_parts_of_a_text_are_all_of_it_and_disjoint():
    study = Study(languages=("de",))
    parts = compare_methods.parts(study)
    held = [text for part in parts for text in part["de"]]
    assert sorted(held) == sorted(study.documents("de"))
    assert len(held) == len(set(held))
    assert [round(len(part["de"]) / len(held), 2) for part in parts] == [0.25, 0.25, 0.5]


def test_a_score_that_is_the_effect_foretells_it_and_one_turned_round_has_the_sign_wrong():
    effect = torch.tensor([[0.5, -0.4, 0.3, -0.2, 0.1, 7.0]])
    measured = torch.tensor([[True] * 5 + [False]])
    scores = {
        "integrated gradients": effect * 2,
        "gradient times activation": -effect,
        "size of activation": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 0.0]]),
    }
    rows = {row["score"]: row for row in attribute_neurons.compare(scores, effect, measured, top=2)}
    exact, turned, reverse = (rows[name] for name in scores)
    assert (exact["size"], exact["signed"], exact["hits"]) == pytest.approx((1.0, 1.0, 1.0))
    assert (turned["size"], turned["signed"], turned["hits"]) == pytest.approx((1.0, -1.0, 1.0))
    assert (reverse["size"], reverse["hits"]) == pytest.approx((-1.0, 0.0))
    assert "signed" not in reverse


def test_intervals_over_prompts_are_paired_with_integrated_gradients():
    rows = [
        {"language": "de", "id": str(n), "score": name, "size": n / 10 + more, "hits": 0.5}
        for n in range(8)
        for name, more in (("integrated gradients", 0.1), ("size of activation", 0.0))
    ]
    frame = pd.DataFrame(rows).assign(signed=float("nan"))
    found = attribute_neurons.table(frame, torch.Generator().manual_seed(0))
    row = found[(found["score"] == "size of activation") & (found["measure"] == "size")].iloc[0]
    assert row["mean"] == pytest.approx(0.35)
    # The prompts differ widely and the pairs not at all, so the paired interval has no width.
    assert row["high"] - row["low"] > 0.2
    assert row["behind_gradients"] == pytest.approx(0.1)
    assert row["behind_high"] - row["behind_low"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("low", "verdict"), [(0.05, "holds"), (-0.05, "no more than its control")])
def test_scores_are_claimed_to_foretell_only_what_the_table_says(low: float, verdict: str):
    rows = [
        ("integrated gradients", "size", 0.6, 0.0),
        ("gradient times activation", "signed", 0.9, 0.1),
        ("effective score", "signed", 0.2, 0.3),
        ("contribution", "size", 0.8, -0.2),
        ("size of activation", "size", 0.7, -0.1),
    ]
    table = pd.DataFrame(
        [
            {"score": score, "measure": measure, "mean": mean, "behind_gradients": behind}
            | {"low": mean - 0.05, "high": mean + 0.05}
            | {"behind_low": behind - 0.05, "behind_high": behind + 0.05}
            | {"beyond_control": 0.1, "beyond_low": low, "beyond_high": 0.2}
            for score, measure, mean, behind in rows
        ]
    )
    claims = judged(stated("attribute_neurons"), attribute_neurons.measures(table), "somewhere")
    found = {claim.name: claim for claim in claims}
    verdicts = {name: claim.verdict for name, claim in found.items()}
    assert verdicts == {
        "contribution-foretells": verdict,
        "effective-score-foretells": "does not hold",
        "gradients-foretell-more": "does not hold",
    }
    assert found["contribution-foretells"].control == 0.7
    assert found["gradients-foretell-more"].value == -0.2
    assert found["contribution-foretells"].difference == 0.1
    assert math.isnan(found["gradients-foretell-more"].control)


def test_silent_neurons_are_switched_off_in_no_prompt():
    """They have no effect and zero scores, and would raise every correlation."""
    size = torch.zeros(3, 50)
    size[:, ::5] = torch.rand(3, 10, generator=torch.Generator().manual_seed(0)) + 0.1
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(attribute_neurons.tried(size, None, generator), size > 0)
    for n in (30, 31):  # all of them, and one more than there are
        assert torch.equal(attribute_neurons.tried(size, n, generator), size > 0)
    some = attribute_neurons.tried(size, 12, generator)
    assert some.sum() == 12
    assert not (some & (size == 0)).any()
    assert not torch.equal(some, attribute_neurons.tried(size, 12, generator))
    effect = torch.where(size > 0, torch.rand(3, 50, generator=generator), torch.zeros(()))
    (row,) = attribute_neurons.compare({"contribution": size}, effect, size > 0, 5)
    assert abs(float(row["size"])) < 0.6  # with the silent ones, .9


def test_outer_layers_are_the_first_and_last_quarter_of_the_depth():
    assert detect_languages.outer_layers(4).tolist() == [True, False, False, True]
    assert detect_languages.outer_layers(6).tolist() == [True] + [False] * 4 + [True]
    assert detect_languages.outer_layers(32).sum() == 16


def test_precision_of_the_chosen_is_their_mean_and_claims_are_counted():
    score = torch.tensor([[[0.9, 0.2, 0.5, 0.4]], [[0.1, 0.8, 0.5, 0.6]]], dtype=torch.float64)
    precision = interp.scores.Precision(
        average_precision=score,
        roc_area=score,
        percentiles=torch.zeros(1, 2, 1, 4),
        percents=(50.0,),
        sentences=torch.tensor([10, 10]),
        languages=("de", "ja"),
        sites=(("pre", 4),),
    )
    rows = detect_languages.ends_of(precision, 2).set_index(["set", "language"])
    assert rows.loc[("top", "de"), "precision"] == pytest.approx(0.9)
    assert rows.loc[("bottom", "ja"), "precision"] == pytest.approx(0.1)
    assert rows.loc[("both", "de"), "precision"] == pytest.approx(0.55)
    measured, words = (
        detect_languages.measures(precision, 2, 0.5, NOTHING_PUBLISHED),
        {"units": "2", "half": "1"},
    )
    found = judged(stated("detect_languages"), measured, "somewhere", **words)
    claims = {each.name: each for each in found}
    overlap = claims["precision-overlap"]
    assert overlap.value == 1.0  # units 0 and 1 are the ends of both
    assert overlap.verdict == "does not hold"
    assert "by chance it is 0.5" in overlap.control_name
    top, bottom = claims["precision-top"], claims["precision-bottom"]
    assert (top.value, top.verdict) == (pytest.approx(0.85), "cannot tell")  # de 0.9, ja 0.8
    assert (bottom.value, bottom.control) == (pytest.approx(0.15), 0.5)
    assert top.high - top.value == pytest.approx(12.706 * 0.05, abs=1e-3)  # over two languages


def test_the_overlap_is_with_the_language_that_shares_most():
    """Of three languages two share both units, the third shares one with the first."""
    score = torch.full((3, 1, 8), 0.5, dtype=torch.float64)
    for row, (first, last) in enumerate(((0, 1), (0, 1), (0, 2))):
        score[row, 0, first], score[row, 0, last] = 0.9, 0.1
    precision = interp.scores.Precision(
        average_precision=score,
        roc_area=score,
        percentiles=torch.zeros(1, 3, 1, 8),
        percents=(50.0,),
        sentences=torch.tensor([10, 10, 10]),
        languages=("de", "en", "ja"),
        sites=(("pre", 8),),
    )
    overlap = detect_languages.measures(precision, 2, 1 / 3, NOTHING_PUBLISHED)["precision-overlap"]
    assert overlap is not None
    assert overlap.value.value.item() == pytest.approx((1 + 1 + 0.5) / 3)


@pytest.mark.slow
def test_sharing_is_mapped_on_a_task_of_the_shipped_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(
        map_shared_neurons.experiment.presets["tiny"][1], n_prompts=2, steps=30, out=tmp_path
    )
    map_shared_neurons.experiment.run(config)
    folder = tmp_path / "babel-word_translation"
    sums = pd.read_csv(folder / "sums.csv")
    whole = sums.groupby(["language", "layer"])["neurons"].sum()
    assert (whole == 2048).all()
    off = pd.read_csv(folder / "off.csv")
    equal = off[off["size"] == "equal"]
    assert equal["neurons"].nunique() == 1
    assert set(off["where"]) == {"all", "last"}
    shared = off[(off["off"] == "all shared") & (off["language"] == "all")].set_index("where")
    for name, alike in (("neurons", True), ("probability", False)):
        assert (shared.loc["all", name].tolist() == shared.loc["last", name].tolist()) == alike
    names = [claim.stated_as for claim in load_claims(tmp_path / "claims.json")]
    assert names == [
        *("all-shared-off", "all-shared-off-whole"),
        *("all-shared-off-everywhere", "all-shared-off-whole-everywhere"),
        *("all-shared-enriched", "all-shared-falls", "all-shared-contribute", "active-alike"),
    ]
    assert "| claim | on | measured | control | verdict |" in capsys.readouterr().out

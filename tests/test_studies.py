"""The studies run whole on the shipped model, small, and choose what they say they choose."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import deactivate_neurons, steer_language
from experiments.study import Study


def small(out: Path) -> Study:
    return Study(languages=("de", "ja"), tokens=2000, n_shards=2, block_length=64, out=out)


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


def test_steering_is_swept_and_then_measured_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(
        steer_language.PRESETS["tiny"][1],
        study=small(tmp_path),
        layers=(5,),
        n_sweep=2,
        n_final=2,
        max_new_tokens=10,
        out=tmp_path,
    )
    steer_language.main(config)
    sweep, final, texts = (
        pd.read_csv(tmp_path / f"{name}.csv") for name in ("sweep", "final", "texts")
    )
    assert not set(sweep["way"]) & {"random neurons", "random units"}
    ways = ["LAPE neurons", "random neurons", "precision units", "random units", "residual push"]
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
        block = (
            steer_language.all_of()
            if code is None
            else steer_language.pushed(model, moments, found, 2.0, True, code)
        )
        with torch.no_grad(), block, model.hooks(sites):
            model.body(ids)
    changed = (seen[1] - seen[0]).abs() > 0
    others = found.union() & ~found["de"]
    assert not (changed & ~found.union()[0]).any()
    assert (seen[1][others[0]] == 0).all()


def test_the_matrix_is_written_for_each_fraction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(
        deactivate_neurons.PRESETS["tiny"][1],
        study=small(tmp_path),
        fractions=(0.01, 0.05),
        out=tmp_path,
    )
    deactivate_neurons.main(config)
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table["fraction"]) == [0.01, 0.01, 0.05, 0.05]
    matrix = pd.read_csv(tmp_path / "0.05" / "matrix.csv")
    own = matrix[(matrix["off"] == "de") & (matrix["read"] == "de")].iloc[0]
    other = matrix[(matrix["off"] == "de") & (matrix["read"] == "ja")].iloc[0]
    row = table[(table["fraction"] == 0.05) & (table["language"] == "de")].iloc[0]
    assert row["own_minus_others"] == pytest.approx(own["increase"] - other["increase"], abs=1e-9)
    assert row["beyond_random"] == pytest.approx(own["excess"], abs=1e-9)

"""Readings differ in nothing but what they say, and are compared on the same text."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import compare_readings
from experiments.compare_readings import BARE, ROUNDED, USUAL, folder_of, measures, readings
from experiments.study import Study
from interp.evaluations import PerplexityMatrix
from interp.inference.intervals import Estimate
from interp.inference.statements import Measurement
from interp.plots.style import Table


def value(found: Measurement | None) -> float:
    assert found is not None
    assert isinstance(found.value, Estimate)
    return found.value.value.item()


def test_each_reading_differs_from_the_usual_one_in_one_thing():
    every = readings(Study(), Path("out"), begins=True)
    usual = every[USUAL]
    assert usual == Study()
    assert len({study.out for study in every.values()}) == len(every)
    assert every[ROUNDED] == replace(usual, out=every[ROUNDED].out, dtype="bfloat16")
    bare = replace(usual, out=every[BARE].out, bos="none", held_out_bos="none")
    assert every[BARE] == bare
    assert list(readings(Study(), Path("out"), begins=False)) == [USUAL, ROUNDED]


def test_agreement_counts_beyond_that_of_a_repetition():
    rows = {
        "reading": [USUAL, ROUNDED, ROUNDED, BARE, BARE],
        "language": ["de", "de", "ja", "de", "ja"],
        "jaccard": [1.0, 0.97, 0.99, 0.5, 0.7],
        "repeated": [0.9] * 5,
        "change": [0.0, 0.01, -0.01, -0.4, -0.6],
    }
    measured = measures(pd.DataFrame(rows))
    values = {name: value(found) for name, found in measured.items()}
    expected = {"rounded-neurons": 0.08, "rounded-effects": 0.0}
    expected |= {"bare-neurons": -0.3, "bare-effects": -0.5}
    assert values == pytest.approx(expected, abs=1e-9)
    alone = measures(pd.DataFrame(rows).iloc[:3])
    assert alone["bare-neurons"] is None
    assert alone["bare-effects"] is None


@pytest.mark.slow
def test_the_table_is_that_of_the_selections_and_matrices(tmp_path: Path):
    config = compare_readings.experiment.presets["tiny"][1]
    study = replace(config.study, tokens=1280, held_out_tokens=320, n_shards=2, out=tmp_path)
    compare_readings.experiment.run(replace(config, study=study, out=tmp_path))
    table = pd.read_csv(tmp_path / "readings.csv")
    assert list(table["reading"].unique()) == [USUAL, ROUNDED]  # Babel's tokenizer puts nothing
    usual, rounded = readings(study, tmp_path, begins=False).values()
    matrices = [
        PerplexityMatrix.load(tmp_path / folder_of(name) / "matrix.safetensors")
        for name in (USUAL, ROUNDED)
    ]
    own = [matrix.increase.value.diagonal() for matrix in matrices]
    shown: Table = table[table["reading"] == ROUNDED]
    change = torch.tensor(shown["change"].to_numpy())
    torch.testing.assert_close(change, own[1] - own[0])
    masks = []
    for reading in (usual, rounded):
        stats, _ = reading.statistics(reading.open())
        masks.append(interp.select_by_entropy(stats, config.fraction).mask)
    shared = (masks[0] & masks[1]).sum(dim=(1, 2)) / (masks[0] | masks[1]).sum(dim=(1, 2))
    assert shown["jaccard"].tolist() == pytest.approx(shared.tolist())
    assert 0 < table["repeated"].iloc[0] < 1

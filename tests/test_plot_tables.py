"""Tables for the figures: one row per mark, with the numbers of the result."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from interp import plots
from interp.inference.intervals import Estimate
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.stability import chance_jaccard
from tests.figure_tables import (
    CODES,
)


def some_selection(generator: torch.Generator) -> NeuronSelection:
    return NeuronSelection(torch.rand(3, 2, 30, generator=generator) < 0.3, CODES)


def test_the_table_of_layers_counts_each_language_s_neurons(generator: torch.Generator):
    selection = some_selection(generator)
    table = selection.layer_frame()
    assert table["low"].isna().all()
    for row in table.to_dict("records"):
        assert row["neurons"] == selection[row["language"]][row["layer"]].sum()
    profile = selection.layer_profile().double()
    wide = selection.layer_frame(Estimate(profile, profile, profile - 1, profile + 2, 0.95))
    assert (wide["neurons"] - wide["low"]).eq(1).all()
    assert (wide["high"] - wide["neurons"]).eq(2).all()
    small = profile[:2]
    with pytest.raises(ValueError, match="3 languages and 2 layers"):
        selection.layer_frame(Estimate(small, small, small, small, 0.95))


def test_the_table_of_overlaps_has_each_pair_once_with_what_chance_gives_this_pair(
    generator: torch.Generator,
):
    selection = some_selection(generator)
    selection.mask[2] &= torch.rand(2, 30, generator=generator) < 0.3  # sizes differ
    rows = selection.overlap_frame().set_index(["language", "other"])
    assert list(rows.index) == list(itertools.combinations_with_replacement(CODES, 2))
    for (one, other), row in rows.iterrows():
        both, either = selection[one] & selection[other], selection[one] | selection[other]
        assert row["common"] == both.sum()
        assert row["jaccard"] == pytest.approx(float(both.sum() / either.sum()))
        if one != other:
            named = replace(selection.languages_only([other]), languages=(one,))
            chance = chance_jaccard(selection.languages_only([one]), named)
            assert row["chance"] == pytest.approx(chance.value.item())
            assert row["chance_high"] == pytest.approx(chance.high.item())
    assert rows["chance"].isna().sum() == 3


def test_the_best_setting_of_each_size_is_best_on_the_mean_over_languages():
    def rows(way: str, setting: Any, scores: tuple[float, float]) -> list[dict[str, Any]]:
        return [
            {"way": way, "setting": setting, "to": code, "score": score}
            for code, score in zip(("en", "de"), scores, strict=True)
        ]

    sweep = pd.DataFrame(
        rows("no edit", math.nan, (0.1, 0.0))
        + rows("LAPE neurons", "0.1 of all, strength 1", (0.5, 0.5))
        + rows(
            "LAPE neurons", "0.1 of all, strength 2", (0.9, 0.0)
        )  # best for one, not on the mean
        + rows("LAPE neurons", "0.03 of all, strength 2", (0.2, 0.2))
        + rows("precision units", "2,000 units", (1.0, 1.0))
        + rows("residual push", "behind layer 3, strength 1", (1.0, 1.0))
    )
    best = plots.best_of_each_size(sweep, "LAPE neurons")
    assert best["size"].tolist() == [0, 0, 0.03, 0.03, 0.1, 0.1]
    assert best["score"].tolist() == [0.1, 0.0, 0.2, 0.2, 0.5, 0.5]
    assert plots.best_of_each_size(sweep, "precision units")["size"].tolist() == [0, 0, 2000, 2000]
    with pytest.raises(ValueError, match="'behind layer 3, strength 1' does not give the size"):
        plots.best_of_each_size(sweep, "residual push")
    with pytest.raises(ValueError, match="'prayer' is not in this sweep, which has no edit, LAPE"):
        plots.best_of_each_size(sweep, "prayer")

"""Tidy tables: every cell of the axes has its row, and every value its column."""

import torch

from interp.inference.intervals import Estimate
from interp.results.frames import interval_columns, tidy

AXES = {"layer": range(2), "language": ("en", "de", "zh")}


def test_a_row_for_each_cell_the_last_axis_fastest():
    value = torch.arange(6.0).reshape(2, 3)
    frame = tidy(AXES, {"value": value})
    assert list(frame) == ["layer", "language", "value"]
    for layer, language, number in frame.itertuples(index=False):
        assert number == value[layer, AXES["language"].index(language)].item()
    assert len(frame) == 6


def test_a_value_that_lacks_an_axis_is_repeated_along_it():
    of_language, of_layer = torch.tensor([1, 2, 3]), torch.tensor([[10], [20]])
    frame = tidy(AXES, {"a": of_language, "b": of_layer, "c": torch.tensor(5), "d": "x"})
    assert frame["a"].tolist() == [1, 2, 3, 1, 2, 3]
    assert frame["b"].tolist() == [10, 10, 10, 20, 20, 20]
    assert frame["c"].tolist() == [5] * 6
    assert frame["d"].tolist() == ["x"] * 6


def test_an_estimate_is_three_columns_in_its_place():
    value = torch.arange(6.0).reshape(2, 3)
    found = Estimate(value, value, value - 1, value + 1, 0.95)
    frame = tidy(AXES, {"first": 0, "drop": found, "last": 1})
    assert list(frame)[2:] == ["first", "drop", "drop_low", "drop_high", "last"]
    assert (frame["drop_high"] - frame["drop_low"]).tolist() == [2.0] * 6
    assert list(interval_columns("drop", found)) == ["drop", "drop_low", "drop_high"]


def test_names_may_be_given_twice_and_an_axis_may_be_empty():
    assert tidy({"span": ("a", "a")}, {"n": torch.tensor([1, 2])})["n"].tolist() == [1, 2]
    assert list(tidy({"span": ()}, {"n": torch.zeros(0)})) == ["span", "n"]

"""Tidy tables: one row for each cell of named axes, one column for each quantity."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from jaxtyping import Shaped
from torch import Tensor


@runtime_checkable
class Interval(Protocol):
    """Numbers with their confidence intervals, such as an `Estimate`."""

    @property
    def value(self) -> Tensor: ...

    @property
    def low(self) -> Tensor: ...

    @property
    def high(self) -> Tensor: ...


def interval_columns(name: str, interval: Interval) -> dict[str, Shaped[Tensor, "..."]]:
    """Its three columns: name, name_low, name_high."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def with_origin(frame: pd.DataFrame, neurons_of: str) -> pd.DataFrame:
    """The table, with a column that names the model of the neurons if it is another; else as is."""
    return frame.assign(neurons_of=neurons_of) if neurons_of else frame


def tidy(axes: Mapping[str, Iterable[Any]], values: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each cell of the axes, the last axis fastest, and a column for each value.

    `axes` maps names to labels. Of `values`, a tensor has these axes in this order or broadcasts to
    them; an `Interval` becomes three columns; a list has an entry for each row; anything else is
    the same in every row.
    """
    labels = [list(axis) for axis in axes.values()]
    columns: dict[str, Any] = {}
    for name, value in values.items():
        columns |= interval_columns(name, value) if isinstance(value, Interval) else {name: value}
    shape = [len(axis) for axis in labels]
    frame = pd.DataFrame(list(product(*labels)), columns=list(axes))
    return frame.assign(
        **{
            name: value.expand(shape).flatten().tolist() if isinstance(value, Tensor) else value
            for name, value in columns.items()
        }
    )

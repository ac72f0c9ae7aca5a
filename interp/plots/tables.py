"""Tables for the figures, where the result has none of its own: one row per mark."""

import math
import re
from dataclasses import replace
from typing import Literal

import pandas as pd
import torch

from interp.inference.intervals import Estimate
from interp.plots import fonts
from interp.plots.style import Table
from interp.results.frames import tidy
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.stability import chance_jaccard

_SIZE = re.compile(r"(?P<size>\d[\d.,e-]*) (?:of all|units)\b")


def layer_profile_table(
    selection: NeuronSelection, interval: Estimate | None = None
) -> pd.DataFrame:
    """A row for each layer and language: columns layer, language, neurons, low, high.

    `interval`: [language layer], such as `jackknife(stats, profile)` gives, where `profile` selects
    and returns `layer_profile().double()`; without it low and high are blank. No count is below
    zero, so no interval reaches below it.
    """
    profile = selection.layer_profile()
    if interval is not None and interval.low.shape != profile.shape:
        raise ValueError(
            f"The interval is of shape {tuple(interval.low.shape)}, and the selection has "
            f"{len(selection.languages)} languages and {selection.n_layers} layers."
        )
    frame: Table = tidy(
        {"language": selection.languages, "layer": range(selection.n_layers)},
        {
            "neurons": profile,
            "low": math.nan if interval is None else interval.low.clamp_min(0),
            "high": math.nan if interval is None else interval.high,
        },
    )
    return frame[["layer", "language", "neurons", "low", "high"]]


def overlap_table(selection: NeuronSelection) -> pd.DataFrame:
    """A row for each pair of languages, each with itself too: neurons in common, their Jaccard.

    Beside it that of random neurons, as many per layer: chance, and the interval it keeps to with
    a probability of 95 %; blank where a language meets itself.
    """
    n = len(selection.languages)
    alone = [replace(selection, mask=mask.expand_as(selection.mask)) for mask in selection.mask]
    by_chance = [chance_jaccard(one, selection) for one in alone]
    itself = torch.eye(n, dtype=torch.bool)
    ends = {"chance": "value", "chance_low": "low", "chance_high": "high"}
    frame: Table = tidy(
        {"language": selection.languages, "other": selection.languages},
        {
            "common": selection.overlap(),
            "jaccard": selection.jaccard(),
            **{
                column: torch.stack([getattr(chance, end) for chance in by_chance]).masked_fill(
                    itself, torch.nan
                )
                for column, end in ends.items()
            },
        },
    )
    above = torch.ones(n, n, dtype=torch.bool).triu().flatten()  # and the diagonal: each pair once
    return frame[above.numpy()].reset_index(drop=True)


def best_of_each_size(sweep: pd.DataFrame, way: str) -> pd.DataFrame:
    """For each size of a way's sets, the setting with the highest mean score; a column `size`.

    From the sweep.csv of experiments/steer_language.py, whose settings begin with "0.03 of all" or
    "2,000 units". What was written with no edit is size zero. The best of several settings is
    lucky: that is for seeing how many units it takes, and the rates to report are in final.csv.
    """
    table: Table = sweep
    missing = [name for name in ("way", "setting", "to", "score") if name not in sweep]
    if missing:
        raise ValueError(f"The sweep has no column {', '.join(missing)}.")
    rows = table[table["way"] == way]
    if rows.empty:
        known = ", ".join(map(str, table["way"].unique()))
        raise ValueError(f"{way!r} was not tried in this sweep, only {known}.")
    sizes = {setting: _size_of(str(setting)) for setting in rows["setting"].unique()}
    mean = rows.groupby("setting", sort=False)["score"].mean()
    best: dict[float, str] = {}
    for setting, size in sizes.items():
        if size not in best or mean[setting] > mean[best[size]]:
            best[size] = setting
    parts = [table[table["way"] == "no edit"].assign(size=0.0)]
    parts += [rows[rows["setting"] == best[size]].assign(size=size) for size in sorted(best)]
    return pd.concat(parts, ignore_index=True)


def with_names(frame: pd.DataFrame, names: Literal["code", "name", "endonym"]) -> pd.DataFrame:
    """The same table with languages called by code, by English name or by their own name."""
    changed: Table = frame.copy()
    for column in ("language", "other", "off", "read", "to"):
        if column in changed:
            found = {label: fonts.named(str(label)) for label in changed[column].unique()}
            called = {label: getattr(row, names) for label, row in found.items() if row}
            changed[column] = changed[column].map(
                lambda label, called=called: called.get(label, label)
            )
    return changed


def _size_of(setting: str) -> float:
    found = _SIZE.match(setting)
    if found is None:
        raise ValueError(
            f"The setting {setting!r} names no size of a set; it should begin like '0.03 of all' "
            "or '2,000 units'."
        )
    return float(found["size"].replace(",", ""))

"""Tables for the figures, where the result has none of its own: one row per mark."""

import re
from dataclasses import replace
from typing import Literal

import pandas as pd
import torch

from interp.inference.intervals import Estimate
from interp.plots import fonts
from interp.plots.style import Table
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
    nothing = torch.full(profile.shape, torch.nan)
    low, high = (
        (nothing, nothing) if interval is None else (interval.low.clamp_min(0), interval.high)
    )
    rows = [
        {
            "layer": layer,
            "language": code,
            "neurons": int(profile[row, layer]),
            "low": low[row, layer].item(),
            "high": high[row, layer].item(),
        }
        for row, code in enumerate(selection.languages)
        for layer in range(selection.n_layers)
    ]
    return pd.DataFrame(rows)


def overlap_table(selection: NeuronSelection) -> pd.DataFrame:
    """A row for each pair of languages, each with itself too: neurons in common, their Jaccard.

    Beside it that of random neurons, as many per layer: chance, and the interval it keeps to with
    a probability of 95 %; blank where a language meets itself.
    """
    common, jaccard = selection.overlap(), selection.jaccard()
    rows = []
    for one, code in enumerate(selection.languages):
        alone = replace(selection, mask=selection.mask[one].expand_as(selection.mask))
        chance = chance_jaccard(alone, selection)
        for other in range(one, len(selection.languages)):
            row: dict[str, str | int | float] = {
                "language": code,
                "other": selection.languages[other],
                "common": int(common[one, other]),
                "jaccard": jaccard[one, other].item(),
            }
            if other > one:
                row["chance"] = chance.value[other].item()
                row |= {"chance_low": chance.low[other].item()}
                row |= {"chance_high": chance.high[other].item()}
            rows.append(row)
    names = ["language", "other", "common", "jaccard", "chance", "chance_low", "chance_high"]
    return pd.DataFrame(rows, columns=pd.Index(names))


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

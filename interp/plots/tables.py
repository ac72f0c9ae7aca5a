"""Tables changed for a figure: one setting for each size, other names of languages."""

import re
from typing import Literal

import pandas as pd

from interp.plots import fonts
from interp.plots.style import Table
from interp.text.languages import is_language

_SIZE = re.compile(r"(?P<size>\d[\d.,e-]*) (?:of all|units)\b")


def best_of_each_size(sweep: pd.DataFrame, way: str) -> pd.DataFrame:
    """For one way, the setting with the highest mean score at each size; adds a column `size`.

    From the sweep.csv of experiments/steer_language.py, whose settings begin with "0.03 of all" or
    "2,000 units". Texts written without an edit have size zero. The best of several settings is
    biased upwards: use it to see how many units are needed, and report the rates of final.csv.
    """
    table: Table = sweep
    missing = [name for name in ("way", "setting", "to", "score") if name not in sweep]
    if missing:
        raise ValueError(f"The sweep has no column {', '.join(missing)}.")
    rows = table[table["way"] == way]
    if rows.empty:
        known = ", ".join(map(str, table["way"].unique()))
        raise ValueError(f"{way!r} is not in this sweep, which has {known}.")
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
    """The same table with languages named by code, English name or own name.

    A language outside the list keeps its label where no installed font can write its own name.
    """
    changed: Table = frame.copy()
    for column in ("language", "other", "off", "read", "to"):
        if column in changed:
            languages = {label: fonts.named(str(label)) for label in changed[column].unique()}
            new_names = {
                label: getattr(row, names)
                for label, row in languages.items()
                if row is not None
                and not (names == "code" and is_language(str(label)))  # it is a tag already
                and (row.color or fonts.can_write(getattr(row, names)))
            }
            changed[column] = changed[column].map(
                lambda label, new_names=new_names: new_names.get(label, label)
            )
    return changed


def _size_of(setting: str) -> float:
    match = _SIZE.match(setting)
    if match is None:
        raise ValueError(
            f"The setting {setting!r} does not give the size of a set; it must begin like '0.03 of "
            "all' or '2,000 units'."
        )
    return float(match["size"].replace(",", ""))

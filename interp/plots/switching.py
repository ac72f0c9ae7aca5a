"""Writing in another language: which ways lead there, and how many units it takes."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from interp.plots.style import (
    DOUBLE,
    SINGLE,
    SMALL,
    Table,
    by_language,
    canvas,
    check,
    in_order,
    key,
    legend_above,
    line,
    numbers,
)

_RATES = ("good", "good_low", "good_high", "rate", "rate_low", "rate_high")


def language_switching(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """For each way to ask for a language, the share of texts that are in it, and those also good.

    From the final.csv of experiments/steer_language.py; a group per way, with its setting below.
    Hollow: in the language; filled: in the language and good text. Strokes are 95 % intervals.
    """
    # No setting is a blank in the file, which is read as NaN.
    blank: Table = frame.copy()
    if "setting" in blank:  # a column of nothing but blanks is one of numbers
        blank["setting"] = blank["setting"].astype(object).where(blank["setting"].notna(), "")
    table = check(blank, "language_switching", ("way", "setting", "to"), _RATES)
    ways = table[["way", "setting"]].drop_duplicates().to_numpy().tolist()
    n_languages = len(in_order(table["to"]))
    few = len(ways) <= 4 and len(ways) * n_languages <= 20
    width = SINGLE if few else DOUBLE
    with canvas(ax, width, 2.6) as ax:
        for rows, aside, look in by_language(table, "to"):
            x = np.array([float(ways.index(list(each))) for each in _pairs(rows)])
            x += 0.84 * aside
            _both_rates(ax, x, rows, look | {"linestyle": ""}, apart=min(0.18 / n_languages, 0.04))
        characters = int(width * 17 / len(ways))
        ax.set_xticks(
            range(len(ways)), [_wrapped(way, setting, characters) for way, setting in ways]
        )
        ax.tick_params(axis="x", length=0, labelsize=SMALL)
        for edge in range(1, len(ways)):
            ax.axvline(edge - 0.5, color="#dddddd", linewidth=0.6, zorder=0.5)
        ax.set(xlim=(-0.5, len(ways) - 0.5), ylim=(-0.03, 1.03), ylabel="Share of texts")
        legend_above(ax, _keys())
    return ax


def switching_against_size(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The same against the size of the sets, for one way; sizes stand side by side, not to scale.

    From `best_of_each_size(sweep, way)`; size zero is the model as it is.
    """
    table = check(frame, "switching_against_size", ("size", "to"), (*_RATES, "size"))
    sizes = sorted(table["size"].unique().tolist())
    n_languages = len(in_order(table["to"]))
    crowded = len(sizes) * n_languages > 16
    with canvas(ax, DOUBLE if crowded else SINGLE, 2.4) as ax:
        for rows, aside, look in by_language(table.sort_values("size", kind="stable"), "to"):
            x = np.array([float(sizes.index(each)) for each in rows["size"]])
            x += 0.7 * aside
            _both_rates(ax, x, rows, look, apart=min(0.16 / n_languages, 0.04))
        ax.set_xticks(range(len(sizes)), [_size_label(each) for each in sizes])
        shares = max(sizes) <= 1
        ax.set_xlabel("Share of all neurons (%)" if shares else "Units per language")
        ax.set(ylim=(-0.03, 1.03), ylabel="Share of texts")
        legend_above(ax, _keys())
    return ax


# ---------------------------------------------------------------- what they share


def _pairs(rows: Table) -> list[tuple[str, str]]:
    return list(zip(rows["way"], rows["setting"], strict=True))


def _both_rates(
    ax: Axes, x: Float[np.ndarray, " mark"], rows: Table, look: dict[str, Any], apart: float
) -> None:
    """The rate hollow and a little to the left, the rate of good texts filled, to the right."""
    rate = look | {"markerfacecolor": ax.get_facecolor(), "linestyle": "", "label": "_rate"}
    rate["markeredgewidth"] = 0.8
    for column, where, drawn in (("rate", x - apart, rate), ("good", x + apart, look)):
        interval = (numbers(rows, f"{column}_low"), numbers(rows, f"{column}_high"))
        line(ax, where, numbers(rows, column), interval, **drawn)


def _keys() -> list[Line2D]:
    look: dict[str, Any] = {"marker": "o", "linestyle": ""}
    hollow = key("in the language", markerfacecolor="none", markeredgewidth=0.8, **look)
    return [hollow, key("in it and good", **look)]


def _wrapped(way: str, setting: str, characters: int) -> str:
    parts = (
        textwrap.fill(text, max(characters, 8), break_long_words=False)
        for text in (way, setting)
        if text
    )
    return "\n".join(parts)


def _size_label(size: float) -> str:
    if size == 0:
        return "no edit"
    return f"{100 * size:g}" if size <= 1 else f"{size:,.0f}"

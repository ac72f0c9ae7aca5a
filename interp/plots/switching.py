"""Writing in another language: success by way to ask for it, and by number of units."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from interp.plots.cells import label_map
from interp.plots.style import (
    DOUBLE,
    MOST_LINES,
    SINGLE,
    Table,
    by_language,
    canvas,
    check,
    in_order,
    key,
    legend_above,
    line,
    numbers,
    small,
)

_RATES = ("good", "good_low", "good_high", "rate", "rate_low", "rate_high")


def language_switching(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """For each way to ask for a language, the share of texts in it, and of texts in it and good.

    From the rates.csv of `interp steer`, a group per condition; or from the final.csv of
    experiments/steer_language.py, a group per way, labeled with its setting.
    Hollow: in the language; filled: in the language and good text. Vertical lines: 95 % intervals.
    Of more than eight languages it is a heat map of the texts in the language and good.
    """
    # A blank setting is read from the file as NaN.
    filled: Table = frame.copy()
    if "condition" in filled and "way" not in filled:  # rates.csv, with a row per language written
        own = filled[filled["language"] == filled["to"]]
        filled = own.assign(way=own["condition"], setting="")
    if "setting" in filled:  # a column with only blanks is read as numbers
        filled["setting"] = filled["setting"].astype(object).where(filled["setting"].notna(), "")
    table = check(filled, "language_switching", ("way", "setting", "to"), _RATES)
    ways = table[["way", "setting"]].drop_duplicates().to_numpy().tolist()
    n_languages = len(in_order(table["to"]))
    if n_languages > MOST_LINES:
        named = table.assign(place=[ways.index(list(pair)) for pair in _pairs(table)])
        ticks = [" ".join(part for part in way if part) for way in ways]
        return _map(named.sort_values("place", kind="stable"), "place", ticks, "", ax)
    few = len(ways) <= 4 and len(ways) * n_languages <= 20
    width = SINGLE if few else DOUBLE
    with canvas(ax, width, 2.6) as ax:
        for rows, offset, look in by_language(table, "to"):
            x = np.array([float(ways.index(list(pair))) for pair in _pairs(rows)])
            x += 0.84 * offset
            _both_rates(ax, x, rows, look | {"linestyle": ""}, apart=min(0.18 / n_languages, 0.04))
        characters = int(width * 17 / len(ways))
        ax.set_xticks(
            range(len(ways)), [_wrapped(way, setting, characters) for way, setting in ways]
        )
        ax.tick_params(axis="x", length=0, labelsize=small())
        for edge in range(1, len(ways)):
            ax.axvline(edge - 0.5, color="#dddddd", linewidth=0.6, zorder=0.5)
        ax.set(xlim=(-0.5, len(ways) - 0.5), ylim=(-0.03, 1.03), ylabel="Share of texts")
        legend_above(ax, _keys())
    return ax


def switching_against_size(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The same rates by size of the sets, for one way; sizes are evenly spaced, not to scale.

    From `best_of_each_size(sweep, way)`; size zero is the unedited model.
    """
    table = check(frame, "switching_against_size", ("size", "to"), (*_RATES, "size"))
    sizes = sorted(table["size"].unique().tolist())
    n_languages = len(in_order(table["to"]))
    xlabel = "Share of all neurons (%)" if max(sizes) <= 1 else "Units per language"
    if n_languages > MOST_LINES:
        ordered = table.sort_values("size", kind="stable")
        return _map(ordered, "size", [_size_label(size) for size in sizes], xlabel, ax)
    crowded = len(sizes) * n_languages > 16
    with canvas(ax, DOUBLE if crowded else SINGLE, 2.4) as ax:
        for rows, offset, look in by_language(table.sort_values("size", kind="stable"), "to"):
            x = np.array([float(sizes.index(size)) for size in rows["size"]])
            x += 0.7 * offset
            _both_rates(ax, x, rows, look, apart=min(0.16 / n_languages, 0.04))
        ax.set_xticks(range(len(sizes)), [_size_label(size) for size in sizes])
        ax.set_xlabel(xlabel)
        ax.set(ylim=(-0.03, 1.03), ylabel="Share of texts")
        legend_above(ax, _keys())
    return ax


# ---------------------------------------------------------------- shared by both


def _map(table: Table, x: str, ticks: list[str], xlabel: str, ax: Axes | None) -> Axes:
    """A row for each language, the share of texts in it and good as a color."""
    look: dict[str, Any] = {"column": "to", "xlabel": xlabel, "ticks": ticks}
    return label_map(table, x, "good", ax, quantity="Texts in the language and good", **look)


def _pairs(rows: Table) -> list[tuple[str, str]]:
    return list(zip(rows["way"], rows["setting"], strict=True))


def _both_rates(
    ax: Axes, x: Float[np.ndarray, " mark"], rows: Table, look: dict[str, Any], apart: float
) -> None:
    """The rate of texts hollow, slightly to the left; of good texts filled, to the right."""
    rate = look | {"markerfacecolor": ax.get_facecolor(), "linestyle": "", "label": "_rate"}
    rate["markeredgewidth"] = 0.8
    for column, x_of_rate, style in (("rate", x - apart, rate), ("good", x + apart, look)):
        interval = (numbers(rows, f"{column}_low"), numbers(rows, f"{column}_high"))
        line(ax, x_of_rate, numbers(rows, column), interval, **style)


def _keys() -> list[Line2D]:
    look: dict[str, Any] = {"marker": "o", "linestyle": ""}
    hollow = key("in the language", markerfacecolor="none", markeredgewidth=0.8, **look)
    return [hollow, key("in the language and good", **look)]


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

"""Comparison of methods of choosing neurons, and their stability as the text grows."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from interp.plots.style import (
    DOUBLE,
    MARKERS,
    SINGLE,
    Table,
    canvas,
    check,
    in_order,
    key,
    legend_above,
    line,
    numbers,
    points,
    small,
)

INK, GRAY = "#0b3c6f", "#8a8a8a"
COLORS = ("#0b3c6f", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a67c00", "#5b5b5b")
"""Colors of lines that are not languages; color-blind readers can distinguish them."""

_DOWN, _TALLEST = 0.155, 8.0
"""Inches of a row, and at most of all rows together, which leave room on a page for the rest."""

_WIDTH, _GAP = 1.0, 0.2
"""Of a panel and of the gap between panels, in units of the horizontal axis."""


def method_comparison(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A panel for each measure, a row for each method: value, 95 % interval and control.

    From the comparison.csv of experiments/compare_methods.py: columns method, measure, value, low,
    high, control; in other tables the rows are languages or edits. Rows and panels keep the order
    of the table. Each panel has its own scale, which starts at zero if no value is below it.
    """
    values = ("value", "low", "high", "control")
    table = check(frame, "method_comparison", ("method", "measure"), values)
    methods, measures = in_order(table["method"]), in_order(table["measure"])
    n_lines = max(label.count("\n") for label in measures) + 1
    down = min(_DOWN, _TALLEST / len(methods))
    with canvas(ax, DOUBLE, 0.75 + down * len(methods) + 0.13 * n_lines) as ax:
        ticks: dict[float, str] = {}
        for number, measure in enumerate(measures):
            rows = table[table["measure"] == measure]
            start = number * (_WIDTH + _GAP)
            ticks |= _panel(ax, rows, methods, start, down)
            ax.text(start, len(methods) - 0.3, measure, va="bottom", fontsize=small() + 0.5)
        for row in range(0, len(methods), 2):
            ax.axhspan(row - 0.5, row + 0.5, color="#f2f2f2", zorder=0)
        size = min(points("ytick.labelsize"), 0.95 * 72 * down)
        ax.set_yticks(range(len(methods)), methods[::-1], fontsize=size)
        ax.set_xticks(list(ticks), list(ticks.values()))
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=small())
        ax.spines[["left", "bottom"]].set_visible(False)
        edge = len(measures) * (_WIDTH + _GAP) - _GAP
        ax.set(xlim=(-0.04, edge + 0.06), ylim=(-0.5, len(methods) - 0.5))
        look: dict[str, Any] = {"linestyle": "", "marker": "o", "color": INK}
        control: dict[str, Any] = {"linestyle": "", "marker": "|", "color": GRAY}
        above = 4.0 + n_lines * (small() + 0.5) * 1.35
        handles = [key("value, 95 % interval", **look)] if table["low"].notna().any() else []
        handles += [key("control", **control)] if table["control"].notna().any() else []
        for handle in handles:
            ax.add_line(handle)  # without points, for the legend only
        legend_above(ax, above=above)
    return ax


def stability_against_tokens(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Agreement of the neurons chosen from two texts, against the amount of text.

    From the stability.csv of experiments/compare_methods.py: columns method, tokens, jaccard, low,
    high, chance. Dotted: agreement by chance for sets of those sizes. With more than seven methods
    colors repeat, with other markers.
    """
    values = ("jaccard", "tokens", "low", "high", "chance")
    table = check(frame, "stability_against_tokens", ("method", "tokens"), values)
    if (table["tokens"] <= 0).any():
        raise ValueError("Column tokens has values of zero or less: give the number read.")
    sizes = sorted(table["tokens"].unique().tolist())
    names = in_order(table["method"])
    many = len(names) > 4  # a single column of names would be as high as the drawing
    size = (DOUBLE, 2.5 + 0.05 * len(names)) if many else (SINGLE, 2.2 + 0.145 * len(names))
    with canvas(ax, *size) as ax:
        looks = zip(names, itertools.cycle(COLORS), itertools.cycle(MARKERS), strict=False)
        for number, (name, ink, marker) in enumerate(looks):
            rows = table[table["method"] == name].sort_values("tokens")
            x = numbers(rows, "tokens") * np.exp(0.018 * (number - (len(names) - 1) / 2))
            interval = numbers(rows, "low"), numbers(rows, "high")
            line(ax, x, numbers(rows, "jaccard"), interval, color=ink, marker=marker, label=name)
            dotted = {"color": ink, "linestyle": ":", "linewidth": 0.8, "label": f"_{name} chance"}
            ax.plot(numbers(rows, "tokens"), numbers(rows, "chance"), **dotted)
        ax.set_xscale("log")
        ax.set_xticks(sizes, [_short(size) for size in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="Tokens read per language", ylim=(-0.03, 1.03))
        ax.set_ylabel("Jaccard of neurons\nchosen from two texts")
        legend_above(ax, [key("by chance", linestyle=":", linewidth=0.8)])
    return ax


def _panel(
    ax: Axes, rows: Table, methods: list[str], start: float, down: float
) -> dict[float, str]:
    """Draw one measure from x = `start` on; returns its ticks and their labels."""
    columns = {name: numbers(rows, name) for name in ("value", "low", "high", "control")}
    values = np.concatenate(list(columns.values()))
    low, high = min(0.0, float(np.nanmin(values))), float(np.nanmax(values))
    span = (high - low) or 1.0

    def to_x(values: Any) -> Any:
        return start + _WIDTH * (np.asarray(values) - low) / span

    y = np.array([len(methods) - 1 - methods.index(name) for name in rows["method"]], dtype=float)
    known = ~(np.isnan(columns["low"]) | np.isnan(columns["high"]))
    ends = to_x(columns["low"])[known], to_x(columns["high"])[known]
    ax.hlines(y[known], *ends, color=INK, linewidth=0.9, zorder=2)
    label = str(rows["measure"].iloc[0])
    control = {"linestyle": "", "marker": "|", "color": GRAY, "markersize": 45 * down}
    ax.plot(to_x(columns["control"]), y, label=f"_{label} control", zorder=1.9, **control)
    dot: dict[str, Any] = {"color": INK, "markersize": min(points("lines.markersize"), 40 * down)}
    ax.plot(to_x(columns["value"]), y, "o", label=f"_{label}", zorder=2.1, **dot)
    ax.axvline(to_x(0.0), color="#999999", linewidth=0.6, zorder=0.5)
    ticks = [
        tick
        for tick in MaxNLocator(2, steps=[1, 2, 5, 10]).tick_values(low, high)
        if low <= tick <= high
    ]
    return {float(to_x(tick)): f"{tick:g}" for tick in ticks}


def _short(tokens: int | float) -> str:
    """724, 1.2k, 36k, 150k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= 0.9995 * size:  # so that 999,999 is 1M and not 1000k
            digits = 1 if tokens < 9.95 * size else 0
            return f"{tokens / size:.{digits}f}".removesuffix(".0") + letter
    return f"{tokens:g}"

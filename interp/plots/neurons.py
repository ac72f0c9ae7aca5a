"""How often one neuron fires in each language, and how much neurons differ between two models."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from interp.plots import fonts
from interp.plots.cells import label_map
from interp.plots.style import (
    MARKERS,
    MOST_MARKERS,
    SINGLE,
    canvas,
    check,
    colors,
    from_zero,
    in_order,
    key,
    legend_above,
    line,
    numbers,
    points,
)

_INKS = ("#5b5b5b", "#0b3c6f", "#d55e00", "#009e73")
_CHANCE: dict[str, Any] = {"linestyle": ":", "linewidth": 0.9}

_TALLEST = 590.0
"""Points of all rows together, which leave room on a page for the axis and the legend."""


def neuron_rates(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The firing rate of one neuron in each language, a row for each, with 95 % intervals.

    From `interp figure RUN --neuron L5N7`: columns layer, neuron, language, rate, low, high,
    belongs, and expert of a mixture's. Filled: the languages that the neuron belongs to.
    """
    table = check(frame, "neuron_rates", ("language",), ("rate", "low", "high", "layer", "neuron"))
    names = in_order(table["language"])
    down = min(11.0, _TALLEST / len(names))
    with canvas(ax, SINGLE, (len(names) * down + 54) / 72) as ax:
        rows = np.arange(len(names))
        belongs = table["belongs"].to_numpy(dtype=bool)
        rate, low, high = (100 * numbers(table, name) for name in ("rate", "low", "high"))
        size = min(points("lines.markersize"), 0.6 * down)
        for row, color in zip(rows, colors(names), strict=True):
            face = color if belongs[row] else "none"
            look: dict[str, Any] = {"color": color, "markersize": size, "markerfacecolor": face}
            ax.plot(rate[row], row, "o", label=f"_{names[row]}", **look)
            if not np.isnan(low[row] + high[row]):
                ax.hlines(row, low[row], high[row], color=color, linewidth=0.9, zorder=1.9)
        ticks = min(points("ytick.labelsize"), 0.95 * down)
        ax.set_yticks(rows.tolist(), fonts.shown(names), fontsize=ticks)
        ax.tick_params(axis="y", length=0)
        ax.set(xlim=(0, None), ylim=(len(names) - 0.4, -0.6))
        layer, neuron = (int(table[name].iloc[0]) for name in ("layer", "neuron"))
        label = f"Layer {layer}, neuron {neuron}: tokens on which it fires (%)"
        if "expert" in table:
            expert = int(table["expert"].iloc[0])
            label = f"L{layer} E{expert} N{neuron}: routed tokens on which it fires (%)"
        ax.set_xlabel(label)
        if belongs.any():
            dot: dict[str, Any] = {"marker": "o", "linestyle": ""}
            hollow = key("other", **dot, markerfacecolor="none")
            legend_above(ax, [key("label that the neuron belongs to", **dot), hollow])
    return ax


def rate_change(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How much the rates of the same neurons differ between two models, layer by layer.

    From the table by neuron of `interp compare`, averaged by layer: columns layer, neurons (which:
    all, or those of a selection), change, chance. Dotted: what equal rates would seem to differ by.
    """
    table = check(frame, "rate_change", ("layer", "neurons"), ("change", "layer", "chance"))
    with canvas(ax, SINGLE, 2.5) as ax:
        sets = in_order(table["neurons"])
        for number, name in enumerate(sets):
            rows = table[table["neurons"] == name].sort_values("layer", kind="stable")
            x, color = numbers(rows, "layer"), _INKS[number % len(_INKS)]
            marker = MARKERS[number % len(_INKS)] if len(x) <= MOST_MARKERS else ""
            look: dict[str, Any] = {"color": color, "marker": marker, "label": name}
            line(ax, x, 100 * numbers(rows, "change"), **look)
            ax.plot(
                x, 100 * numbers(rows, "chance"), color=color, label=f"_{name} chance", **_CHANCE
            )
        ax.set(xlabel="Layer", ylabel="Difference in firing rate\n(points of %)")
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax, [key("if rates were equal", **_CHANCE)])
    return ax


def rate_change_by_label(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How much the rates of the same neurons differ between two models, by label and layer.

    From the table by neuron of `interp compare`, averaged by label and layer: columns language,
    layer, difference. White: no more than equal rates would seem to differ by.
    """
    keys, values = ("language", "layer"), ("difference", "layer")
    table = check(frame, "rate_change_by_label", keys, values)
    shown = table.assign(difference=100 * table["difference"])
    quantity = "Difference in firing rate (points of %)"
    look: dict[str, Any] = {"column": "language", "quantity": quantity, "xlabel": "Layer"}
    return label_map(shown, "layer", "difference", ax, **look)

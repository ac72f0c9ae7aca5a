"""How often one neuron fires in each language."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from interp.plots import fonts
from interp.plots.style import (
    SINGLE,
    canvas,
    check,
    colors,
    in_order,
    key,
    legend_above,
    numbers,
    points,
)

_TALLEST = 590.0
"""Points of all rows together, which leave room on a page for the axis and the legend."""


def neuron_rates(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The firing rate of one neuron in each language, a row for each, with 95 % intervals.

    From `interp figure RUN --neuron L5N7`: columns layer, neuron, language, rate, low, high,
    belongs. Filled: the languages that the neuron belongs to.
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
        ax.set_xlabel(f"Layer {layer}, neuron {neuron}: tokens on which it fires (%)")
        if belongs.any():
            dot: dict[str, Any] = {"marker": "o", "linestyle": ""}
            hollow = key("other", **dot, markerfacecolor="none")
            legend_above(ax, [key("label that the neuron belongs to", **dot), hollow])
    return ax

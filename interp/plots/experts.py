"""Which experts of a mixture are chosen for which label, and how far labels differ by layer."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from interp.plots import fonts
from interp.plots.cells import (
    around_zero,
    color_key,
    draw_cells,
    grid_for,
    label_layers,
    mark_negative,
    write_number,
)
from interp.plots.style import (
    SINGLE,
    Table,
    canvas,
    check,
    from_zero,
    in_order,
    key,
    legend_above,
    line,
    numbers,
    panels,
    small,
)

_CHANCE = {"linestyle": "--", "linewidth": 0.9, "color": "#777777"}
_HIGHEST = {"linestyle": ":", "linewidth": 0.9, "color": "#777777"}


def routing(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Divergence of the labels' experts in each layer, beside that of shuffled labels.

    From `Routing.layer_frame()`: columns layer, divergence, divergence_low, divergence_high,
    shuffled and shuffled_highest. Layers without experts are left out.
    """
    values = ("divergence", "layer", "divergence_low", "divergence_high")
    table = check(frame, "routing", ("layer",), (*values, "shuffled", "shuffled_highest"))
    table = table[table["divergence"].notna()].sort_values("layer", kind="stable")
    x = numbers(table, "layer")
    interval = numbers(table, "divergence_low"), numbers(table, "divergence_high")
    with canvas(ax, SINGLE, 2.5) as ax:
        look = {"color": "#0b3c6f", "marker": "o", "label": "_measured"}
        line(ax, x, numbers(table, "divergence"), interval, **look)
        ax.plot(x, numbers(table, "shuffled"), label="_shuffled", **_CHANCE)
        ax.plot(x, numbers(table, "shuffled_highest"), label="_highest", **_HIGHEST)
        ax.set(xlabel="Layer", ylabel="Difference in experts chosen\n(nats)")
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        shuffled = key("labels shuffled", **_CHANCE)
        legend_above(ax, [key("labels", marker="o"), shuffled, key("highest of these", **_HIGHEST)])
    return ax


def chosen_experts(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How much more often each expert is chosen for a label than for all labels on average.

    From `Routing.expert_frame()`: one panel per label, stacked vertically, layers down and experts
    across; returns the first panel. Numbers are percentage points with half of the 95 % interval.
    Where they would be too small to read, cells are white if the interval contains zero, and a dash
    marks what is below it. Layers without experts are left out. If you pass an Axes, the table must
    have one label.
    """
    names = ("preference", "preference_low", "preference_high")
    table = check(
        frame, "chosen_experts", ("language", "layer", "expert"), (*names, "layer", "expert")
    )
    table = table[table["preference"].notna()].astype({"layer": int, "expert": int})
    labels = in_order(table["language"])
    layers, columns = (sorted(table[name].unique().tolist()) for name in ("layer", "expert"))
    rows = [f"{layer}" for layer in layers]
    grid = grid_for(len(columns), rows * len(labels), ["00"], 5, 2, len(labels))
    cells, reach = {}, {}
    for label in labels:
        own = table[table["language"] == label]
        value, low, high = (_by_expert(own, name, layers, columns) for name in names)
        clear = grid.with_numbers | (low > 0) | (high < 0)
        cells[label], reach[label] = np.where(clear, value, 0.0), (high - low) / 2
    paint = around_zero(*cells.values())
    mesh: Any = None
    with panels(ax, labels, "chosen_experts", grid.width, grid.height) as axes:
        for panel, label, title in zip(axes, labels, fonts.shown(labels), strict=True):
            mesh = draw_cells(panel, cells[label], 0.0, paint, grid)
            if grid.with_numbers:
                for (row, column), value in np.ndenumerate(cells[label]):
                    half = float(reach[label][row, column])
                    write_number(panel, column, row, value, 1, paint, half)
            else:
                mark_negative(panel, cells[label], paint, grid)
            label_layers(panel, columns, rows, grid)
            panel.set(xlabel="Expert", ylabel="Layer")
            panel.set_title(f"Label: {title}", loc="left", fontsize=small())
            panel.label_outer()
        color_key(axes, mesh, "Share above the mean (percentage points)", grid)
    return axes[0]


def _by_expert(
    table: Table, name: str, layers: list[int], experts: list[int]
) -> Float[np.ndarray, "layer expert"]:
    """A column of one label's table, in percent."""
    wide = table.pivot(index="layer", columns="expert", values=name)
    return 100 * wide.reindex(index=layers, columns=experts).to_numpy(dtype=np.float64)

"""Accuracy on tasks with neurons switched off."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from interp.plots import fonts
from interp.plots.cells import (
    around_zero,
    color_key,
    draw_cells,
    grid_for,
    label_cells,
    mark_negative,
)
from interp.plots.style import (
    DOUBLE,
    MOST_LINES,
    Table,
    by_language,
    check,
    in_order,
    key,
    legend_above,
    line,
    numbers,
    panels,
    worded_for,
    zero_line,
)
from interp.results.words import NOTHING


def accuracy_lost(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy lost in each language with one language's neurons off.

    From the evaluate.csv of `interp evaluate`: one panel per task, stacked vertically; returns the
    first panel. Hollow: as many random neurons in every layer. Of more than eight languages it is
    a heat map, without random neurons. If you pass an Axes, the table must have one task.
    """
    values = ("drop", "drop_low", "drop_high", "random", "accuracy")
    table = check(frame, "accuracy_lost", ("task", "language", "off"), values)
    tasks, codes = in_order(table["task"]), in_order(table["language"])
    if len(codes) > MOST_LINES:
        return _maps(table, tasks, codes, ax)
    height = 1.75 * len(tasks) + 0.75
    with panels(ax, tasks, "accuracy_lost", DOUBLE, height) as axes:
        for panel, task in zip(axes, tasks, strict=True):
            _panel(panel, table[table["task"] == task], task)
            panel.label_outer()
        whose = worded_for("neurons of the language off", table["off"])
        filled = key(whose, marker="o", linestyle="")
        hollow = key("as many random neurons off", marker="o", linestyle="", markerfacecolor="none")
        legend_above(axes[0], [filled, hollow])
    return axes[0]


def _maps(table: Table, tasks: list[str], codes: list[str], ax: Axes | None) -> Axes:
    """A heat map for each task: the language read across, the neurons that are off down."""
    changed = table[table["off"] != NOTHING]
    off = in_order(changed["off"])
    rows, columns = fonts.shown(off), fonts.shown(codes)
    grid = grid_for(len(codes), rows * len(tasks), columns, n_panels=len(tasks))
    wide = [
        changed[changed["task"] == task]
        .pivot(index="off", columns="language", values="drop")
        .reindex(index=off, columns=codes)
        .to_numpy(dtype=np.float64)
        for task in tasks
    ]
    paint = around_zero(*wide)
    mesh: Any = None
    with panels(ax, tasks, "accuracy_lost", grid.width, grid.height) as axes:
        for panel, task, values in zip(axes, tasks, wide, strict=True):
            mesh = draw_cells(panel, values, 0.0, paint, grid)
            mark_negative(panel, values, paint, grid)
            label_cells(panel, columns, rows, range(len(codes)), grid)
            read = worded_for("Language read", table["language"])
            panel.set(xlabel=read, ylabel=f"Neurons off\n{task}")
            panel.label_outer()
        color_key(axes, mesh, "Accuracy lost", grid)
    return axes[0]


def _panel(ax: Axes, table: Table, task: str) -> None:
    """One task: languages read from left to right, each with a mark for every set that is off."""
    untouched = table[table["off"] == NOTHING].set_index("language")["accuracy"]
    changed = table[table["off"] != NOTHING]
    codes = in_order(table["language"])
    for rows, offset, look in by_language(changed, "off"):
        x = np.array([float(codes.index(code)) for code in rows["language"]]) + 0.8 * offset
        filled: dict[str, Any] = look | {"linestyle": ""}
        hollow = filled | {"markerfacecolor": "none", "label": "_random", "markeredgewidth": 0.8}
        random = untouched.reindex(rows["language"]).to_numpy() - numbers(rows, "random")
        ax.plot(x, random, **hollow)
        interval = numbers(rows, "drop_low"), numbers(rows, "drop_high")
        line(ax, x, numbers(rows, "drop"), interval, **filled)
    for edge in range(1, len(codes)):
        ax.axvline(edge - 0.5, color="#dddddd", linewidth=0.6, zorder=0.5)
    zero_line(ax)
    ax.tick_params(axis="x", length=0)
    ax.set_xticks(range(len(codes)), fonts.shown(codes))
    ax.set(xlim=(-0.5, len(codes) - 0.5), xlabel=worded_for("Language read", table["language"]))
    ax.set_ylabel(f"Accuracy lost\n{task}")

"""Accuracy on tasks with neurons switched off."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from interp.plots import fonts
from interp.plots.style import (
    DOUBLE,
    Table,
    by_language,
    canvas,
    check,
    in_order,
    key,
    legend_above,
    line,
    numbers,
    own_style,
    zero_line,
)
from interp.results.words import NOTHING


def accuracy_lost(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy lost in each language with one language's neurons off.

    From the evaluate.csv of `interp evaluate`: one panel per task, stacked vertically; returns the
    first panel. Hollow: as many random neurons in every layer. If you pass an Axes, the table must
    have one task.
    """
    values = ("drop", "drop_low", "drop_high", "random", "accuracy")
    table = check(frame, "accuracy_lost", ("task", "language", "off"), values)
    tasks = in_order(table["task"])
    if ax is not None:
        if len(tasks) > 1:
            raise ValueError(
                f"One Axes holds one task, but the table for accuracy_lost has {len(tasks)}: give "
                f"the rows of one of {', '.join(tasks)}."
            )
        with canvas(ax, DOUBLE, 2.5) as ax:
            _panel(ax, table, tasks[0])
            _explain(ax)
        return ax
    with own_style():
        figure, axes = plt.subplots(
            len(tasks),
            1,
            figsize=(DOUBLE, 1.75 * len(tasks) + 0.75),
            layout="constrained",
            sharex=True,
            squeeze=False,
        )
        try:
            for panel, task in zip(axes[:, 0], tasks, strict=True):
                _panel(panel, table[table["task"] == task], task)
                panel.label_outer()
            _explain(axes[0, 0])
        except BaseException:
            plt.close(figure)
            raise
    return axes[0, 0]


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
    ax.set(xlim=(-0.5, len(codes) - 0.5), xlabel="Language read")
    ax.set_ylabel(f"Accuracy lost\n{task}")


def _explain(ax: Axes) -> None:
    """Legend: the languages whose neurons are off, and what filled and hollow marks mean."""
    filled = key("neurons of the language off", marker="o", linestyle="")
    hollow = key("as many random neurons off", marker="o", linestyle="", markerfacecolor="none")
    legend_above(ax, [filled, hollow])

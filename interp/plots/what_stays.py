"""The figure of `interp explain`: what each label's neurons follow."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from interp.plots import fonts
from interp.plots.style import SINGLE, SMALL, canvas, check, in_order

_MOST_WITH_NUMBERS = 30  # labels; more leave no room for numbers
_KEYS = ("language", "without")
_VALUES = ("kept", "kept_low", "kept_high", "random")


def explanation(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of each label's neurons (rows) that stays without an aspect of its text (columns).

    From `Explanation.to_frame()`. Numbers are percentages with half of the 95 % interval; below
    them, in italics, what random neurons give. A cell is blank where a label was not read so.
    """
    table = check(frame, "explanation", _KEYS, _VALUES)
    labels, aspects = in_order(table["language"]), in_order(table["without"])
    wide = {
        name: table.pivot(index="language", columns="without", values=name)
        .reindex(index=labels, columns=aspects)
        .to_numpy(dtype=float)
        for name in _VALUES
    }
    height = 0.7 + (0.26 if len(labels) <= _MOST_WITH_NUMBERS else 0.11) * len(labels)
    with canvas(ax, SINGLE, height) as ax:
        mesh = ax.imshow(wide["kept"], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(aspects)), ["\n".join(name.rsplit(" ", 1)) for name in aspects])
        ax.set_yticks(range(len(labels)), fonts.shown(labels))
        ax.tick_params(length=0)
        ax.set(xlabel="Taken from the text")
        ax.spines[:].set_visible(False)
        if len(labels) > _MOST_WITH_NUMBERS:
            ax.tick_params(axis="y", labelsize=SMALL)
            ax.figure.colorbar(mesh, ax=ax, label="Share of neurons that stay")
            return ax
        half = (wide["kept_high"] - wide["kept_low"]) / 2
        for (row, column), share in np.ndenumerate(wide["kept"]):
            if np.isnan(share):
                continue
            ink = "white" if share > 0.6 else mpl.rcParams["text.color"]
            look = {"ha": "center", "color": ink, "fontsize": SMALL}
            reach = half[row, column]
            text = f"{100 * share:.0f}" + ("" if np.isnan(reach) else f" ±{100 * reach:.0f}")
            ax.text(column, row - 0.04, text, va="bottom", **look)
            by_chance = f"{100 * wide['random'][row, column]:.0f}"
            ax.text(column, row + 0.06, by_chance, va="top", style="italic", **look)
    return ax

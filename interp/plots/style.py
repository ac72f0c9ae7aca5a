"""What the figures share: sizes, a style that is nobody else's, checks at the door, lines."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.transforms import ScaledTranslation

from interp.plots import fonts

SINGLE = 3.3
"""Inches: one column of a paper with two."""

DOUBLE = 6.9
"""Inches: both columns."""

SMALL = 6.0
"""Points: numbers in cells and notes."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
"""One for each language of a figure, in order; they tell lines apart where colors do not."""

STYLE: dict[str, Any] = {
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.dpi": 150,
    "font.size": 8,
    "legend.fontsize": 7,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.6,
    "pdf.fonttype": 42,  # fonts embedded as they are: text that can be searched and edited
    "savefig.dpi": 300,
    "xtick.labelsize": 7,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
}


@contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever was set before and is again afterwards."""
    with mpl_style.context(["default", STYLE, {"font.family": fonts.families()}]):
        try:
            yield
        finally:
            # The first figure of a notebook loads a back end that shows figures; that has to stay.
            interactive = mpl.is_interactive()
    mpl.interactive(interactive)


@contextmanager
def canvas(ax: Axes | None, width: float, height: float) -> Iterator[Axes]:
    """The Axes given, in the caller's style; or those of a new figure, in ours.

    A figure that could not be finished is closed.
    """
    with ExitStack() as stack:
        if ax is None:
            stack.enter_context(own_style())
            figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
            undo = stack.enter_context(ExitStack())
            undo.callback(plt.close, figure)
            for axis in (ax.xaxis, ax.yaxis):
                axis.get_major_ticks(1)  # later ones, made while drawing, take after the first
            yield ax
            undo.pop_all()
        else:
            families = [*mpl.rcParams["font.family"], *fonts.families()[1:]]
            stack.enter_context(mpl.rc_context({"font.family": families}))
            yield ax


Table = Any
"""A data frame past its check; what pyright infers of those is more often wrong than right."""


def check(frame: pd.DataFrame, what: str, keys: Sequence[str], values: Sequence[str]) -> Table:
    """The table, or one sentence on why this figure cannot be drawn from it.

    `keys` say which mark a row is, `values` are its numbers; without the first the rest is nothing.
    """
    table: Table = frame
    if frame.empty:
        raise ValueError(
            f"The table for {what} has no rows: run what writes it again, or take another file."
        )
    if missing := [name for name in (*keys, *values) if name not in table]:
        raise ValueError(
            f"The table for {what} has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}."
        )
    for name in values:
        if not pd.api.types.is_numeric_dtype(table[name]) and table[name].notna().any():
            raise ValueError(f"Column {name} of the table for {what} holds text, not numbers.")
    if table[values[0]].isna().all():
        raise ValueError(
            f"Column {values[0]} of the table for {what} is empty (NaN) in all {len(table)} rows: "
            "there is nothing to draw."
        )
    if infinite := [name for name in values if np.isinf(table[name].astype(float)).any()]:
        raise ValueError(f"Column {infinite[0]} of the table for {what} holds infinite numbers.")
    if blank := [name for name in keys if table[name].isna().any()]:
        raise ValueError(f"Column {blank[0]} of the table for {what} is blank in some rows.")
    if (twice := table.duplicated(list(keys))).any():
        first = dict(table.loc[twice, list(keys)].iloc[0])
        named = ", ".join(f"{name} {value}" for name, value in first.items())
        raise ValueError(
            f"The table for {what} has more than one row for {named}: keep one row per mark."
        )
    return table


def in_order(column: Table) -> list[str]:
    """What a column holds, in the order in which it first does."""
    return [str(each) for each in column.drop_duplicates()]


def color(label: str) -> str:
    """The language's, by whichever of its names; gray for what is no language."""
    known = fonts.named(label)
    return known.color if known else "#777777"


def line(
    ax: Axes,
    x: Float[np.ndarray, " mark"],
    value: Float[np.ndarray, " mark"],
    interval: tuple[Float[np.ndarray, " mark"], Float[np.ndarray, " mark"]] | None = None,
    **look: Any,
) -> None:
    """A line through the values, with an upright stroke from low to high where both are known."""
    (drawn,) = ax.plot(x, value, **look)
    if interval is not None:
        low, high = interval
        known = ~(np.isnan(low) | np.isnan(high))
        if known.any():
            ax.vlines(
                x[known],
                low[known],
                high[known],
                color=drawn.get_color(),
                linewidth=0.8 if look.get("linestyle") != "" else 0.6,
                zorder=drawn.get_zorder() - 0.1,
            )


def numbers(table: Table, name: str) -> Float[np.ndarray, " mark"]:
    return table[name].to_numpy(dtype=np.float64)


def by_language(
    table: Table, column: str = "language", n_places: int = 0
) -> Iterator[tuple[Table, float, dict[str, Any]]]:
    """The rows of each language, how far aside it is drawn (-0.5 to 0.5), and how it looks.

    Their order is that of the table; the marks of one place stand side by side. Of many places on
    a line only some are marked, other ones for each language.
    """
    step = 1 + n_places // 16
    names = in_order(table[column])
    looks = zip(names, fonts.shown(names), itertools.cycle(MARKERS), strict=False)
    for place, (name, label, marker) in enumerate(looks):
        look: dict[str, Any] = {"color": color(name), "marker": marker, "label": label}
        look["markevery"] = (place % step, step)
        yield table[table[column] == name], (place - (len(names) - 1) / 2) / len(names), look


def key(label: str, **look: Any) -> Line2D:
    """A line of the legend that says what a kind of mark means, whatever its color."""
    return Line2D([], [], label=label, **{"color": mpl.rcParams["text.color"]} | look)


def legend_above(ax: Axes, keys: Sequence[Line2D] = (), points: float = 2.0) -> None:
    """Legends over the drawing, which they cannot cover: what is labeled, and below it the keys.

    As many columns as there is room for; the first begins so many points above the Axes. Without
    anything to tell there is no legend.
    """
    figure = ax.figure.get_figure(root=True)
    room = 72 * (figure.get_figwidth() * ax.get_position().width + 0.05)
    font = FontProperties(family=mpl.rcParams["font.family"], size=mpl.rcParams["legend.fontsize"])
    size = font.get_size_in_points()
    groups = (list(keys), list(ax.get_legend_handles_labels()[0]))
    groups = [handles for handles in groups if handles]
    for handles in groups:
        n_columns = _columns([str(each.get_label()) for each in handles], font, room)
        legend = ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            bbox_transform=ax.transAxes + ScaledTranslation(0, points / 72, figure.dpi_scale_trans),
            ncols=n_columns,
            frameon=False,
            borderaxespad=0,
            borderpad=0.2,
            columnspacing=1.0,
            handlelength=1.6,
            handletextpad=0.4,
        )
        if handles is not groups[-1]:  # the next one takes its place, and this one has to stay
            ax.add_artist(legend)
            legend.set_clip_path(None)
        points += 1.65 * size * -(-len(handles) // n_columns)


def _columns(labels: Sequence[str], font: FontProperties, room: float) -> int:
    """The most columns in which labels with their marks fit into so many points, rows being even.

    Columns are filled one after another.
    """
    size = font.get_size_in_points()
    # Mark, gap and the space to the next column, in the units in which `legend_above` gives them;
    # on the screen letters are a little wider than their outlines.
    letters = [TextPath((0, 0), each, prop=font).get_extents().width for each in labels]
    widths = [3.0 * size + 1.04 * width for width in letters]
    n = len(labels)
    for n_columns in dict.fromkeys(-(-n // n_rows) for n_rows in range(1, n)):
        columns = np.array_split(widths, n_columns)
        if sum(float(column.max()) for column in columns) - size <= room:
            return n_columns
    return 1


def from_zero(ax: Axes) -> None:
    """What cannot be negative stands on zero, with room below it for half a marker."""
    top = ax.get_ylim()[1]
    ax.set_ylim(-0.03 * top, top)
    zero_line(ax)


def zero_line(ax: Axes, which: Literal["x", "y"] = "y") -> None:
    draw = ax.axhline if which == "y" else ax.axvline
    draw(0, color="#999999", linewidth=0.6, zorder=0.5)

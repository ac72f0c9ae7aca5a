"""Shared by all figures: sizes, a style of their own, checks of tables, lines and legends."""

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
from interp.text.labels import label_colors

SINGLE = 3.3
"""Inches: the width of one column of a two-column paper."""

DOUBLE = 6.9
"""Inches: the width of both columns."""

SMALL = 6.0
"""Points: the font size of numbers in cells and of notes."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
"""One for each language of a figure, in order; they distinguish lines where colors do not."""

CONTROLS = ("", "nothing", "no edit", "random", "other", "und")
"""Names that figures show beside labels and that are none: they are gray."""

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
    "pdf.fonttype": 42,  # embeds TrueType fonts: text can be searched and edited
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
    """Matplotlib's defaults plus ours within the block; restores the caller's style afterwards."""
    with mpl_style.context(["default", STYLE, {"font.family": fonts.families()}]):
        try:
            yield
        finally:
            # A notebook's first figure loads a backend that shows figures; it must stay active.
            interactive = mpl.is_interactive()
    mpl.interactive(interactive)


@contextmanager
def canvas(ax: Axes | None, width: float, height: float) -> Iterator[Axes]:
    """The given Axes, in the caller's style, or the Axes of a new figure, in ours.

    On an error the new figure is closed.
    """
    with ExitStack() as stack:
        if ax is None:
            stack.enter_context(own_style())
            figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
            undo = stack.enter_context(ExitStack())
            undo.callback(plt.close, figure)
            for axis in (ax.xaxis, ax.yaxis):
                axis.get_major_ticks(1)  # ticks made later, while drawing, copy the first one
            yield ax
            undo.pop_all()
        else:
            families = [*mpl.rcParams["font.family"], *fonts.families()[1:]]
            stack.enter_context(mpl.rc_context({"font.family": families}))
            yield ax


Table = Any
"""A checked data frame; pyright's inference on data frames is more often wrong than right."""


def check(frame: pd.DataFrame, what: str, keys: Sequence[str], values: Sequence[str]) -> Table:
    """The table; raises ValueError if the figure cannot be drawn from it.

    `keys` identify the mark of a row, `values` are its numbers; the first value is required.
    """
    table: Table = frame
    if frame.empty:
        raise ValueError(f"The table for {what} has no rows: write it again, or use another file.")
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
    """The distinct values of a column, in order of first appearance."""
    return [str(value) for value in column.drop_duplicates()]


def colors(labels: Sequence[str]) -> list[str]:
    """A color for each label of a figure, or the language with this name; gray for controls."""
    languages = {label: fonts.named(label) for label in labels if label not in CONTROLS}
    codes = [language.code if language else label for label, language in languages.items()]
    by_label = dict(zip(languages, label_colors(codes), strict=True))
    return [by_label.get(label, "#777777") for label in labels]


def line(
    ax: Axes,
    x: Float[np.ndarray, " mark"],
    value: Float[np.ndarray, " mark"],
    interval: tuple[Float[np.ndarray, " mark"], Float[np.ndarray, " mark"]] | None = None,
    **look: Any,
) -> None:
    """A line through the values, with a vertical line from low to high where both are known."""
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
    table: Table, column: str = "language", n_points: int = 0
) -> Iterator[tuple[Table, float, dict[str, Any]]]:
    """The rows of each language, its horizontal offset (-0.5 to 0.5), and its line style.

    In the order of the table. The offsets put marks with equal x side by side. On a line with many
    points only some get markers, different ones for each language.
    """
    step = 1 + n_points // 16
    names = in_order(table[column])
    looks = zip(names, fonts.shown(names), colors(names), itertools.cycle(MARKERS), strict=False)
    for number, (name, label, color, marker) in enumerate(looks):
        look: dict[str, Any] = {"color": color, "marker": marker, "label": label}
        look["markevery"] = (number % step, step)
        yield table[table[column] == name], (number - (len(names) - 1) / 2) / len(names), look


def key(label: str, **look: Any) -> Line2D:
    """A legend entry that explains a kind of mark, whatever its color."""
    return Line2D([], [], label=label, **{"color": mpl.rcParams["text.color"]} | look)


def legend_above(ax: Axes, keys: Sequence[Line2D] = (), points: float = 2.0) -> None:
    """Legends above the Axes, where they cannot cover it: labeled marks, and below them the keys.

    They use as many columns as fit; the lowest legend starts `points` above the Axes. If nothing
    is labeled and there are no keys, no legend is drawn.
    """
    figure = ax.figure.get_figure(root=True)
    room = 72 * (figure.get_figwidth() * ax.get_position().width + 0.05)
    font = FontProperties(family=mpl.rcParams["font.family"], size=mpl.rcParams["legend.fontsize"])
    size = font.get_size_in_points()
    groups = (list(keys), list(ax.get_legend_handles_labels()[0]))
    groups = [handles for handles in groups if handles]
    for handles in groups:
        n_columns = _columns([str(handle.get_label()) for handle in handles], font, room)
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
        if handles is not groups[-1]:  # ax.legend replaces the previous legend unless it is added
            ax.add_artist(legend)
            legend.set_clip_path(None)
        points += 1.65 * size * -(-len(handles) // n_columns)


def _columns(labels: Sequence[str], font: FontProperties, room: float) -> int:
    """The largest number of columns in which labels with their marks fit into `room` points.

    Columns are filled one after another, as evenly as possible.
    """
    size = font.get_size_in_points()
    # Mark, gap and the space to the next column, in the units of `legend_above`; on the screen
    # letters are slightly wider than their outlines.
    letters = [TextPath((0, 0), label, prop=font).get_extents().width for label in labels]
    widths = [3.0 * size + 1.04 * width for width in letters]
    n = len(labels)
    for n_columns in dict.fromkeys(-(-n // n_rows) for n_rows in range(1, n)):
        columns = np.array_split(widths, n_columns)
        if sum(float(column.max()) for column in columns) - size <= room:
            return n_columns
    return 1


def from_zero(ax: Axes) -> None:
    """Start the y-axis at zero, for quantities that cannot be negative, with room for markers."""
    top = ax.get_ylim()[1]
    ax.set_ylim(-0.03 * top, top)
    zero_line(ax)


def zero_line(ax: Axes, which: Literal["x", "y"] = "y") -> None:
    draw = ax.axhline if which == "y" else ax.axvline
    draw(0, color="#999999", linewidth=0.6, zorder=0.5)

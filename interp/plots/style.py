"""Shared by all figures: sizes, a style of their own, checks of tables, lines and legends."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

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
from interp.text.languages import worded

SINGLE = 3.3
"""Inches: the width of one column of a two-column paper."""

DOUBLE = 6.9
"""Inches: the width of both columns."""

MOST_LINES = 8
"""Labels that can be told apart as lines or marks; more are drawn as a heat map."""

MOST_MARKERS = 24
"""Points of a line that have room for markers; more get none, and bands instead of strokes."""

MOST_MARKS = MOST_LINES * MOST_MARKERS
"""Points of all lines together; more are drawn as a heat map."""

DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)), (0, (3, 3)))
"""Line styles of lines without markers, in order."""

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


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What a paper asks of its figures."""

    width: float | None = None
    """Inches, of every figure; None: one column or two, as each figure needs."""

    font: str | None = None
    """Family of the letters, which must be installed; None: one that comes with matplotlib."""

    size: float = 8.0
    """Points: the size of the axes' labels, to which all other sizes are in proportion."""


_OF_ITS_OWN = Paper()
_paper: ContextVar[Paper] = ContextVar("paper", default=_OF_ITS_OWN)


@contextmanager
def on_paper(
    *, width: float | None = None, font: str | None = None, size: float = 8.0
) -> Iterator[None]:
    """Figures made within the block are this wide (inches), in this font and size (points)."""
    if width is not None and not 1 <= width <= 40:
        raise ValueError(f"The width is {width:g} inches: give 1 to 40.")
    if not 3 <= size <= 40:
        raise ValueError(f"The size of the font is {size:g} points: give 3 to 40.")
    if font is not None:
        fonts.check_installed(font)
    token = _paper.set(Paper(width=width, font=font, size=size))
    try:
        yield
    finally:
        _paper.reset(token)


def page_width(inches: float) -> float:
    """The width of the paper's figures if it asks for one, else these inches."""
    return inches if _paper.get().width is None else float(_paper.get().width or inches)


def small() -> float:
    """Points: the font size of numbers in cells and of notes."""
    return 0.75 * _paper.get().size


def points(name: str) -> float:
    """The font size that our style gives to a part of a figure, in points."""
    return STYLE[name] * _paper.get().size / STYLE["font.size"]


_IN_PROPORTION = (
    *("axes.labelsize", "axes.titlesize", "font.size", "legend.fontsize"),
    *("xtick.labelsize", "ytick.labelsize", "lines.markersize"),
)


@contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's defaults plus ours within the block; restores the caller's style afterwards."""
    sizes = {name: points(name) for name in _IN_PROPORTION}
    families = fonts.families()
    if font := _paper.get().font:
        families = [font, *families]
    with mpl_style.context(["default", STYLE, sizes, {"font.family": families}]):
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
            size = (page_width(width), height)
            figure, ax = plt.subplots(figsize=size, layout="constrained")
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


@contextmanager
def panels(
    ax: Axes | None, names: Sequence[str], what: str, width: float, height: float
) -> Iterator[list[Axes]]:
    """A panel for each name, one below the other; a given Axes, in the caller's style, is one.

    `width` and `height` are those of a new figure. On an error it is closed.
    """
    if ax is not None:
        if len(names) > 1:
            raise ValueError(
                f"One Axes holds one panel, but the table for {what} has {len(names)}: give the "
                f"rows of one of {', '.join(names)}."
            )
        with canvas(ax, width, height) as ax:
            yield [ax]
        return
    with own_style():
        size = (page_width(width), height)
        figure, axes = plt.subplots(
            len(names), 1, figsize=size, layout="constrained", sharex=True, squeeze=False
        )
        try:
            yield list(axes[:, 0])
        except BaseException:
            plt.close(figure)
            raise


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
    for name in keys:
        fonts.find_fonts_for(in_order(table[name]))
    return table


def in_order(column: Table) -> list[str]:
    """The distinct values of a column, in order of first appearance."""
    return [str(value) for value in column.drop_duplicates()]


def worded_for(text: str, column: Table) -> str:
    """A text of ours about the labels in a column: it says label if one is no language."""
    return worded(text, labels_in(column))


def labels_in(column: Table) -> list[str]:
    """The labels in a column, without controls; languages by their tag, whatever names them."""
    labels = [label for label in in_order(column) if label not in CONTROLS]
    return [row.code if (row := fonts.named(label)) else label for label in labels]


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
    """A line through the values, with a vertical line from low to high where both are known.

    A line with many points has a band from low to high instead, and no markers.
    """
    (drawn,) = ax.plot(x, value, **look)
    if interval is None:
        return
    low, high = interval
    known = ~(np.isnan(low) | np.isnan(high))
    order = drawn.get_zorder() - 0.1
    if known.any() and len(x) > MOST_MARKERS and look.get("linestyle") != "":
        band = {"color": drawn.get_color(), "linewidth": 0, "zorder": order}
        ax.fill_between(x, low, high, where=known.tolist(), alpha=0.2, **band)
    elif known.any():
        ax.vlines(
            x[known],
            low[known],
            high[known],
            color=drawn.get_color(),
            linewidth=0.9 if look.get("linestyle") != "" else 0.7,
            zorder=order,
        )


def look_of(index: int, n_points: int = 0) -> dict[str, Any]:
    """What distinguishes one line from the others without color: markers, or with many points the
    style of the line."""
    if n_points > MOST_MARKERS:
        return {"marker": "", "linestyle": DASHES[index % len(DASHES)]}
    return {"marker": MARKERS[index % len(MARKERS)]}


def numbers(table: Table, name: str) -> Float[np.ndarray, " mark"]:
    return table[name].to_numpy(dtype=np.float64)


def by_language(
    table: Table, column: str = "language", n_points: int = 0
) -> Iterator[tuple[Table, float, dict[str, Any]]]:
    """The rows of each language, its horizontal offset (-0.5 to 0.5), and its line style.

    In the order of the table. The offsets put marks with equal x side by side; lines with many
    points have no marks, and no offset.
    """
    names = in_order(table[column])
    looks = zip(names, fonts.shown(names), colors(names), strict=True)
    for number, (name, label, color) in enumerate(looks):
        offset = (number - (len(names) - 1) / 2) / len(names)
        look = {"color": color, "label": label, **look_of(number, n_points)}
        yield table[table[column] == name], offset * (n_points <= MOST_MARKERS), look


def key(label: str, **look: Any) -> Line2D:
    """A legend entry that explains a kind of mark, whatever its color."""
    return Line2D([], [], label=label, **{"color": mpl.rcParams["text.color"]} | look)


def legend_above(ax: Axes, keys: Sequence[Line2D] = (), above: float = 2.0) -> None:
    """Legends above the Axes, where they cannot cover it: labeled marks, and below them the keys.

    They use as many columns as fit; the lowest legend starts `above` points above the Axes. If
    nothing is labeled and there are no keys, no legend is drawn.
    """
    figure = ax.figure.get_figure(root=True)
    width = figure.get_figwidth()
    room = 72 * (width * ax.get_position().width + 0.05)
    if len(figure.axes) == 1:  # the layout of its figure leaves this much for the labels
        room = 72 * (width - 0.5) - points("axes.labelsize") * 1.3 * ax.get_ylabel().count("\n")
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
            bbox_transform=ax.transAxes + ScaledTranslation(0, above / 72, figure.dpi_scale_trans),
            ncols=n_columns,
            frameon=False,
            borderaxespad=0,
            borderpad=0.2,
            columnspacing=0.8,
            handlelength=1.5,
            handletextpad=0.3,
        )
        if handles is not groups[-1]:  # ax.legend replaces the previous legend unless it is added
            ax.add_artist(legend)
            legend.set_clip_path(None)
        above += 1.65 * size * -(-len(handles) // n_columns)


def _columns(labels: Sequence[str], font: FontProperties, room: float) -> int:
    """The largest number of columns in which labels with their marks fit into `room` points.

    Columns are filled one after another, as evenly as possible.
    """
    size = font.get_size_in_points()
    # Mark, gap and the space to the next column, in the units of `legend_above`; on the screen
    # letters are slightly wider than their outlines.
    letters = [TextPath((0, 0), label, prop=font).get_extents().width for label in labels]
    widths = [2.6 * size + 1.04 * width for width in letters]
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


def zero_line(ax: Axes) -> None:
    ax.axhline(0, color="#999999", linewidth=0.6, zorder=0.5)

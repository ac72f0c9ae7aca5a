"""Heat maps: cells with numbers where they can be read, else marks, and a key of the colors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm

from interp.plots import fonts
from interp.plots.style import DOUBLE, SINGLE, Table, canvas, in_order, page_width, points, small

_PAGE, _TALLEST = 9.4, 8.0
"""Inches of a page, and of the rows on it."""

_DIGIT, _LETTER = 0.62, 0.57
"""Mean widths of the characters of a number and of a label, as shares of the font's size."""


class Paint:
    """The color of a number, and of the text that can be read on it."""

    def __init__(self, cmap: Colormap, norm: Normalize, unknown: str = "#eeeeee"):
        self.cmap, self.norm = cmap.with_extremes(bad=unknown), norm

    def ink(self, value: float) -> str:
        """White or black, whichever has the higher contrast by the formula of WCAG 2."""
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in self.cmap(self.norm(value))[:3]
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def around_zero(*values: Float[np.ndarray, "..."]) -> Paint:
    """Blue below zero, red above, white at zero, equally strong to both sides."""
    known = np.concatenate([np.ravel(part) for part in values])
    bound = float(np.nanmax(np.abs(known))) or 1.0
    return Paint(mpl.colormaps["RdBu_r"], TwoSlopeNorm(0, -bound, bound))


def from_zero_up(values: Float[np.ndarray, "..."], unknown: str = "#eeeeee") -> Paint:
    """White at zero, darker with every step, also in gray."""
    return Paint(mpl.colormaps["Blues"], Normalize(0, float(np.nanmax(values)) or 1.0), unknown)


# ---------------------------------------------------------------- sizes


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The size of a heat map and of its cells."""

    width: float
    """Inches of the figure."""

    height: float
    """Inches of the figure."""

    across: float
    """Points from one column to the next."""

    down: float
    """Points from one row to the next."""

    all_across: float
    """Points of all columns together."""

    with_numbers: bool
    """Whether the cells hold numbers."""


def grid_for(
    columns: float | int,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    n_characters: int = 0,
    n_lines: int = 1,
    n_panels: int = 1,
) -> Grid:
    """One column of a paper if the numbers can be read in it, or else two; without numbers one
    column if its cells can be told apart.

    `n_characters` and `n_lines` of the numbers; zero: there are none. Panels stand one below the
    other, and have their rows in `row_labels`.
    """
    letter = _LETTER * points("ytick.labelsize")
    margin = 18 + letter * max(map(len, row_labels))  # points, for the labels of the rows
    number = 2.0 + _DIGIT * small() * n_characters
    widths = [page_width(SINGLE), page_width(DOUBLE)]
    across = [(72 * width - margin) / columns for width in widths]
    with_numbers = n_characters > 0 and across[1] >= number
    wide = across[0] < number if with_numbers else across[0] < 1.5
    width, across_one = widths[wide], across[wide]
    upright = _fit(column_labels, range(len(column_labels)), letter, across_one)
    around = 52 + (0 if upright else letter * max(map(len, column_labels)))
    around += 29 * (n_panels - 1)
    tallest = min(72 * _TALLEST, 72 * _PAGE - around) / len(row_labels)
    if with_numbers:
        down = min(max(across_one, 11.0), 7.0 + 1.5 * small() * n_lines, max(tallest, 9.0))
    else:
        down = min(9.5, tallest)
    height = max((len(row_labels) * down + around) / 72, 1.5)
    return Grid(
        width=width,
        height=height,
        across=across_one,
        down=down,
        all_across=across_one * columns,
        with_numbers=with_numbers,
    )


# ---------------------------------------------------------------- drawing


def draw_cells(
    ax: Axes, values: Float[np.ndarray, "row column"], left: float, paint: Paint, grid: Grid
) -> Any:
    """Cells of one color each, drawn as shapes, because viewers blur images.

    Thin white lines separate them if they are large enough.
    """
    n_rows, n_columns = values.shape
    large = min(grid.across, grid.down) >= 6
    lines: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.6} if large else {}
    return ax.pcolormesh(
        left - 0.5 + np.arange(n_columns + 1),
        np.arange(n_rows + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=paint.cmap,
        norm=paint.norm,
        **({"edgecolors": "face", "linewidth": 0.1} | lines),
    )


def write_number(
    ax: Axes,
    x: int | float,
    y: int,
    value: float,
    digits: int,
    paint: Paint,
    reach: float = math.nan,
    **extra: Any,
) -> None:
    """A number in its cell, and below it half of its interval if that is known."""
    if math.isnan(value):
        return
    look: dict[str, Any] = {"ha": "center", "va": "center", "color": paint.ink(value)}
    with_reach = not math.isnan(reach)
    text = f"{value:z.{digits}f}".replace("-", "\N{MINUS SIGN}")
    ax.text(x, y - 0.2 * with_reach, text, fontsize=small(), **look | extra)
    if with_reach:
        ax.text(x, y + 0.24, f"±{reach:.{digits}f}", fontsize=small() - 0.5, **look)


def mark_cells(
    ax: Axes,
    which: Bool[np.ndarray, "row column"],
    values: Float[np.ndarray, "row column"],
    paint: Paint,
    grid: Grid,
    marker: str,
    meaning: str,
) -> None:
    """A small mark in some cells, in the ink that can be read on them."""
    marked = np.argwhere(which)
    inks = np.array([paint.ink(float(values[row, column])) for row, column in marked], dtype=str)
    size = min(2.5, 0.55 * min(grid.across, grid.down))
    for ink in ("white", "black"):
        y, x = marked[inks == ink].T
        look = {"markersize": size, "markeredgewidth": 0.4 * size, "color": ink}
        ax.plot(x, y, marker, label=f"_{meaning}", zorder=3, **look)


def mark_negative(
    ax: Axes, values: Float[np.ndarray, "row column"], paint: Paint, grid: Grid
) -> None:
    """A dash in cells without a number that are clearly below zero: in gray both ends look dark."""
    below = values < -0.1 * np.nanmax(np.abs(values))
    mark_cells(ax, below, values, paint, grid, "_", "below zero")


def color_key(axes: Axes | Sequence[Axes], mesh: Any, quantity: str, grid: Grid) -> None:
    """A bar above the heat map with the quantity that its colors stand for."""
    first = axes if isinstance(axes, Axes) else axes[0]
    figure: Any = first.figure
    look = {"aspect": 11 * grid.width, "fraction": 0.12 / grid.height, "pad": 0.1 / grid.height}
    bar = figure.colorbar(mesh, ax=axes, location="top", **look)
    bar.outline.set_linewidth(0.4)
    size = points("axes.labelsize")
    # Longer than the bar, it has room on the left only, above the labels of the rows.
    centered = _LETTER * size * len(quantity) <= grid.all_across
    bar.set_label(quantity, fontsize=size, loc="center" if centered else "right")
    bar.ax.tick_params(length=2, pad=1)


def label_cells(
    ax: Axes, column_labels: Sequence[str], row_labels: Sequence[str], x: Any, grid: Grid
) -> None:
    """Labels of rows and columns, turned or smaller where there is little room, or only some."""
    size = points("xtick.labelsize")
    if _fit(column_labels, list(x), _LETTER * size, grid.across):
        ax.set_xticks(list(x), column_labels)
    else:
        size = max(min(size, 0.95 * grid.across), 0.66 * size)
        step = math.ceil(0.95 * size / grid.across)
        ax.set_xticks(list(x)[::step], column_labels[::step], rotation=90, fontsize=size)
    _label_rows(ax, row_labels, max(x) + 0.55, grid)


def _fit(labels: Sequence[str], x: Sequence[float | int], letter: float, across: float) -> bool:
    """Whether upright labels leave two points between neighbors."""
    ends = zip(labels, labels[1:], x, x[1:], strict=False)
    return all(
        letter * (len(one) + len(other)) / 2 + 2 <= (right - left) * across
        for one, other, left, right in ends
    )


def label_layers(
    ax: Axes, layers: Sequence[int | float], row_labels: Sequence[str], grid: Grid
) -> None:
    """Labels of rows, and the numbers of as many layers as there is room for."""
    room = _DIGIT * points("xtick.labelsize") * (1.5 + len(str(layers[-1])))
    steps = (1, 2, 5, 10, 20, 50, 100, 1000)
    step = next((step for step in steps if step * grid.across >= room), steps[-1])
    known = {position: f"{layer:g}" for position, layer in enumerate(layers) if layer % step == 0}
    ax.set_xticks(list(known), list(known.values()))
    _label_rows(ax, row_labels, len(layers) - 0.45, grid)


def _label_rows(ax: Axes, labels: Sequence[str], right: float, grid: Grid) -> None:
    size = points("ytick.labelsize")
    size = max(min(size, 0.9 * grid.down), 0.66 * size)
    step = math.ceil(0.9 * size / grid.down)
    ax.set_yticks(range(0, len(labels), step), labels[::step], fontsize=size)
    ax.set(xlim=(-0.55, right), ylim=(len(labels) - 0.45, -0.55))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


# ---------------------------------------------------------------- labels by anything


def label_map(
    table: Table,
    x: str,
    value: str,
    ax: Axes | None,
    *,
    column: str,
    quantity: str,
    xlabel: str,
    ticks: Sequence[str] | None = None,
    dot: str = "",
) -> Axes:
    """A row for each label, a column for each `x`, the value as a color: for many labels.

    Where `dot` names a column of booleans, cells in which it is false have a dot.
    """
    names = in_order(table[column])
    columns = table[x].drop_duplicates().tolist()
    columns = sorted(columns) if ticks is None else columns
    wide = table.pivot(index=column, columns=x, values=value).reindex(index=names, columns=columns)
    values = wide.to_numpy(dtype=np.float64)
    paint = around_zero(values) if np.nanmin(values) < 0 else from_zero_up(values)
    shown = fonts.shown(names)
    grid = grid_for(len(columns), shown, ticks or ["00"])
    with canvas(ax, grid.width, grid.height) as ax:
        mesh = draw_cells(ax, values, 0.0, paint, grid)
        if np.nanmin(values) < 0:
            mark_negative(ax, values, paint, grid)
        if dot:
            flags = table.pivot(index=column, columns=x, values=dot)
            hollow = flags.reindex(index=names, columns=columns).to_numpy() == False  # noqa: E712
            mark_cells(ax, hollow & ~np.isnan(values), values, paint, grid, ".", dot)
        if ticks is None:
            label_layers(ax, columns, shown, grid)
        else:
            label_cells(ax, ticks, shown, range(len(columns)), grid)
        ax.set_xlabel(xlabel)
        color_key(ax, mesh, quantity, grid)
    return ax

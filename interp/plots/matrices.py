"""Heat maps of labels by labels, with the numbers in the cells where there is room."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from interp.plots import fonts
from interp.plots.cells import (
    around_zero,
    color_key,
    draw_cells,
    from_zero_up,
    grid_for,
    label_cells,
    mark_cells,
    mark_negative,
    write_number,
)
from interp.plots.style import MOST_LINES, Table, canvas, check, in_order, worded_for
from interp.results.words import NOTHING

_GAP = 0.3  # columns between the matrix and the random neurons


def perplexity_matrix(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Rise of the loss on each language read (columns), with one language's neurons off (rows).

    From `PerplexityMatrix.to_frame()`. Each cell shows the rise in nats per token and half of its
    95 % interval; white is zero. The language itself is framed; the column to the right shows the
    effect on it of as many random neurons. Where numbers would be too small to read, a dash marks
    what is below zero.
    """
    values = ("increase", "increase_low", "increase_high", "random")
    values += ("random_low", "random_high", "own", "neurons")
    table = check(frame, "perplexity_matrix", ("off", "read"), values)
    rows = table[table["off"] != NOTHING]
    check(rows, "perplexity_matrix, but for the model as it is,", ("off", "read"), values)
    off, read = in_order(rows["off"]), in_order(rows["read"])
    rise = _wide(rows, "increase", off, read)
    reach = _reach(rows, "increase", off, read)
    own = _wide(rows, "own", off, read) == 1
    random = _own(own, _wide(rows, "random", off, read))
    random_reach = _own(own, _reach(rows, "random", off, read))
    names = list(dict.fromkeys([*off, *read]))
    labels = dict(zip(names, fonts.shown(names), strict=True))
    sizes = [int(rows.loc[rows["off"] == name, "neurons"].iloc[0]) for name in off]
    row_labels = [f"{labels[name]} ({n:,})" for name, n in zip(off, sizes, strict=True)]
    column_labels, x = [labels[name] for name in read], [float(i) for i in range(len(read))]
    has_random = not np.isnan(random).all()
    if has_random:
        column_labels, x = [*column_labels, "random"], [*x, len(read) + _GAP]
    paint = around_zero(rise, random)
    digits = 3 if float(np.nanmax(np.abs(np.append(rise, random)))) < 1 else 2
    columns = float(len(read) + (1 + _GAP) * has_random)
    grid = grid_for(columns, row_labels, column_labels, digits + 3, n_lines=2)
    with canvas(ax, grid.width, grid.height) as ax:
        mesh = draw_cells(ax, rise, 0.0, paint, grid)
        if has_random:
            draw_cells(ax, random[:, None], len(read) + _GAP, paint, grid)
        edge = min(1.3, 0.15 * min(grid.across, grid.down))
        for row, column in np.argwhere(own):
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=edge))
        if grid.with_numbers:
            for (row, column), value in np.ndenumerate(rise):
                write_number(ax, column, row, value, digits, paint, float(reach[row, column]))
            for row, value in enumerate(random):
                write_number(ax, len(read) + _GAP, row, value, digits, paint, random_reach[row])
        else:
            mark_negative(ax, rise, paint, grid)
        label_cells(ax, column_labels, row_labels, x, grid)
        ax.set(xlabel=worded_for("Language read", table["read"]), ylabel="Neurons off (number)")
        color_key(ax, mesh, "Rise of the loss (nats per token)", grid)
    return ax


def overlap(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Jaccard of the neurons of two languages, below the diagonal.

    From `NeuronSelection.overlap_frame()`. The value by chance is above the diagonal if it differs
    between pairs, and else left out: `uniform_chance` gives it for the caption. Bold is above the
    95 % interval of chance, italic below it; where numbers would be too small to read, a dot marks
    pairs within it. More than eight languages are ordered so that similar ones are neighbors.
    """
    values = ("jaccard", "common", "chance", "chance_low", "chance_high")
    table = check(frame, "overlap", ("language", "other"), values)
    names, pairs, counts = _pairs(table)
    if len(names) > MOST_LINES:
        names = _neighbors(names, pairs)
    index_of = {name: index for index, name in enumerate(names)}
    n = len(names)
    shares, within = np.full((n, n), np.nan), np.zeros((n, n), dtype=bool)
    looks: dict[tuple[int, int], dict[str, Any]] = {}
    with_chance = uniform_chance(frame) is None
    for pair, (jaccard, chance, low, high) in pairs.items():
        early, late = sorted(index_of[name] for name in pair)
        shares[late, early] = jaccard
        if with_chance:
            shares[early, late] = chance
        within[late, early] = low <= jaccard <= high
        if jaccard > high:
            looks[late, early] = {"weight": "bold"}
        elif jaccard < low:
            looks[late, early] = {"style": "italic"}
    paint = from_zero_up(shares, unknown="white")
    labels = fonts.shown(names)
    known = [
        f"{label} ({counts[name]:,.0f})" if name in counts else label
        for name, label in zip(names, labels, strict=True)
    ]
    grid = grid_for(float(n), known, labels, n_characters=6)
    with canvas(ax, grid.width, grid.height) as ax:
        mesh = draw_cells(ax, shares, 0.0, paint, grid)
        if grid.with_numbers:
            for (row, column), value in np.ndenumerate(shares):
                write_number(ax, column, row, value, 3, paint, **looks.get((row, column), {}))
        else:
            mark_cells(ax, within, shares, paint, grid, ".", "as by chance")
        label_cells(ax, labels, known, range(n), grid)
        ax.set_ylabel(worded_for("Language (neurons)", table["language"]))
        color_key(ax, mesh, "Overlap (Jaccard index)", grid)
    return ax


def uniform_chance(frame: pd.DataFrame) -> float | None:
    """The overlap by chance if all pairs have the same, to three digits; else None.

    From the table of `overlap`; for the caption.
    """
    table: Table = frame
    chance = table.loc[table["language"] != table["other"], "chance"].dropna().round(3)
    return float(chance.iloc[0]) if len(set(chance)) == 1 else None


# ---------------------------------------------------------------- labels by labels


def _pairs(
    table: Table,
) -> tuple[list[str], dict[frozenset[str], tuple[Any, ...]], dict[str, Any]]:
    """Names; Jaccard, chance and its interval of each pair; neurons of each language."""
    names = in_order(table[["language", "other"]].stack())
    pairs: dict[frozenset[str], tuple[Any, ...]] = {}
    counts: dict[str, Any] = {}
    columns = ("language", "other", "common", "jaccard", "chance", "chance_low", "chance_high")
    rows = zip(*(table[name].tolist() for name in columns), strict=True)
    for one, other, common, *numbers in rows:
        pair = frozenset((str(one), str(other)))
        if len(pair) == 1:
            counts[str(one)] = common
        elif pair in pairs:
            raise ValueError(
                f"The table for overlap has {one} and {other} in both orders: keep one of them."
            )
        else:
            pairs[pair] = tuple(numbers)
    if not pairs:
        raise ValueError("The table for overlap has only one label: give two or more.")
    return names, pairs, counts


def _neighbors(names: Sequence[str], pairs: dict[frozenset[str], tuple[Any, ...]]) -> list[str]:
    """The names in an order in which similar ones are next to each other (average linkage)."""
    distance = np.zeros((len(names), len(names)))
    for row, one in enumerate(names):
        for column, other in enumerate(names):
            if row != column:
                jaccard = pairs.get(frozenset((one, other)), (0.0,))[0]
                distance[row, column] = 1 - (0.0 if math.isnan(jaccard) else jaccard)
    tree = linkage(squareform(distance), method="average", optimal_ordering=True)
    return [names[int(leaf)] for leaf in leaves_list(tree)]


def _wide(
    rows: Table, value: str, off: list[str], read: list[str]
) -> Float[np.ndarray, "off read"]:
    wide = rows.pivot(index="off", columns="read", values=value).reindex(index=off, columns=read)
    return wide.to_numpy(dtype=np.float64, na_value=np.nan)


def _reach(
    rows: Table, name: str, off: list[str], read: list[str]
) -> Float[np.ndarray, "off read"]:
    """Half of the interval."""
    return (_wide(rows, f"{name}_high", off, read) - _wide(rows, f"{name}_low", off, read)) / 2


def _own(
    own: Bool[np.ndarray, "off read"], values: Float[np.ndarray, "off read"]
) -> Float[np.ndarray, " off"]:
    """The value on the language itself; NaN where it was not read."""
    picked = np.where(own.any(axis=1), np.where(own, values, 0.0).sum(axis=1), np.nan)
    return np.asarray(picked, dtype=np.float64)

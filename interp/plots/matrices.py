"""Heat maps: language by language, with the numbers in the cells."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.patches import Rectangle

from interp.plots import fonts
from interp.plots.style import DOUBLE, SINGLE, SMALL, Table, canvas, check, in_order
from interp.results.words import NOTHING

_GAP = 0.3  # columns between the matrix and the random neurons
_MOST_WITH_NUMBERS = 14  # more columns leave no room for numbers, even at double width


def perplexity_matrix(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Rise of the loss on each language read (columns), with one language's neurons off (rows).

    From `PerplexityMatrix.to_frame()`. Each cell shows the rise in nats per token and half of its
    95 % interval; white is zero. The language itself is framed; the column to the right shows the
    effect on it of as many random neurons.
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
    has_random = not np.isnan(random).all()
    columns = float(len(read) + (1 + _GAP) * has_random)
    bound = float(np.nanmax(np.abs(np.append(rise, random)))) or 1.0
    paint = _Paint(mpl.colormaps["RdBu_r"], TwoSlopeNorm(0, -bound, bound))
    digits = 3 if bound < 1 else 2
    with canvas(ax, *_size(columns, len(off))) as ax:
        with_numbers = columns <= _MOST_WITH_NUMBERS
        mesh = _cells(ax, rise, 0.0, paint)
        if has_random:
            _cells(ax, random[:, None], len(read) + _GAP, paint)
        for row, column in np.argwhere(own):
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=1.3))
        if with_numbers:
            for (row, column), value in np.ndenumerate(rise):
                _write(ax, column, row, value, digits, paint, float(reach[row, column]))
            for row, value in enumerate(random):
                _write(ax, len(read) + _GAP, row, value, digits, paint, random_reach[row])
        else:
            _mark_negative(ax, rise, paint)
            ax.figure.colorbar(mesh, ax=ax, label="Nats per token (dash: below zero)")
        names = list(dict.fromkeys([*off, *read]))
        labels = dict(zip(names, fonts.shown(names), strict=True))
        sizes = [int(rows.loc[rows["off"] == name, "neurons"].iloc[0]) for name in off]
        row_labels = [f"{labels[name]} ({n:,})" for name, n in zip(off, sizes, strict=True)]
        column_labels, x = [labels[name] for name in read], [float(i) for i in range(len(read))]
        if has_random:
            column_labels, x = [*column_labels, "random"], [*x, len(read) + _GAP]
        _frame(ax, column_labels, row_labels, x)
        ax.set(xlabel="Language read", ylabel="Neurons off (number)")
        note = "\n± half of the 95 % interval" if with_numbers else ""
        ax.set_title(f"Rise of the loss, nats per token{note}")
    return ax


def overlap(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Jaccard of the neurons of two languages below the diagonal, its value by chance above.

    From `NeuronSelection.overlap_frame()`. The diagonal shows the number of neurons of a language.
    Bold is above the 95 % interval of chance, italic below it.
    """
    values = ("jaccard", "common", "chance", "chance_low", "chance_high")
    table = check(frame, "overlap", ("language", "other"), values)
    names = in_order(table[["language", "other"]].stack())
    index_of = {name: index for index, name in enumerate(names)}
    shares, counts = np.full((len(names), len(names)), np.nan), {}
    looks: dict[tuple[int, int], dict[str, Any]] = {}
    columns = [table[name].tolist() for name in ("language", "other", *values)]
    for one, other, jaccard, common, chance, low, high in zip(*columns, strict=True):
        early, late = sorted((index_of[str(one)], index_of[str(other)]))
        if early == late:
            counts[early] = common
        elif not np.isnan(shares[late, early]):
            raise ValueError(
                f"The table for overlap has {one} and {other} in both orders: keep one of them."
            )
        else:
            shares[late, early], shares[early, late] = jaccard, chance
            if jaccard > high:
                looks[late, early] = {"weight": "bold"}
            elif jaccard < low:
                looks[late, early] = {"style": "italic"}
    if np.isnan(shares).all():
        raise ValueError("The table for overlap has only one language: give two or more.")
    paint = _Paint(mpl.colormaps["Blues"], Normalize(0, float(np.nanmax(shares)) or 1.0))
    with canvas(ax, *_size(float(len(names)), len(names))) as ax:
        mesh = _cells(ax, shares, 0.0, paint)
        if len(names) <= _MOST_WITH_NUMBERS:
            for (row, column), value in np.ndenumerate(shares):
                _write(ax, column, row, value, 3, paint, **looks.get((row, column), {}))
        else:
            ax.figure.colorbar(mesh, ax=ax, label="Jaccard")
        for index, count in counts.items():
            ax.text(
                index, index, f"{count:,.0f}", ha="center", va="center", fontsize=SMALL, color="0.4"
            )
        labels = fonts.shown(names)
        _frame(ax, labels, labels, range(len(names)))
        ax.set_xlabel("On the diagonal: neurons of the language")
        ax.set_title(
            "Jaccard measured (below) and by chance (above)\n"
            "bold, italic: above, below its 95 % interval"
        )
    return ax


def patching(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Change in answers' log-probability, or a metric, by patching: layers across, tokens or parts
    down.

    From `PatchingResult.to_frame()`, or some of its rows. Whichever of source, part, span and
    answer vary name the rows, and the axis label lists them; white is no change.
    """
    names = ("source", "part", "span", "answer")
    keys = (*names, "place", "layer", "extent")
    table = check(frame, "patching", keys, ("change", "layer"))
    varying = [name for name in names if table[name].nunique() > 1]
    shown = varying or ["part"]
    label = table[shown].astype(str).agg(", ".join, axis=1)
    # Grouped by place, because a prompt may have the same token twice.
    row_keys = [table["source"], table["part"], table["place"], table["answer"]]
    number = table.groupby(row_keys, sort=False).ngroup()
    rows = label.groupby(number).first()
    table = table.assign(row=number)
    values = table.pivot(index="row", columns="layer", values="change")
    is_from = (table["extent"] == "from").any()
    ax = _by_layer(
        values.to_numpy(dtype=np.float64),
        None,
        [str(name) for name in rows],
        values.columns.tolist(),
        "Patched from this layer on" if is_from else "Layer patched",
        "Change in the metric" if "value" in table else "Change in log-probability (nats)",
        ax,
    )
    ax.set_ylabel(", ".join(shown).capitalize())
    return ax


def moved_by_layer(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How much of the concept and of the language a patch transfers from the source, by layer.

    From moved-*.csv of experiments/patch_across_languages.py: columns row, layer, moved, low, high.
    Each cell shows the share gained and half of its 95 % interval; white is zero. Rows of the last
    token are patched in one layer only, rows of the subject from that layer on.
    """
    table = check(frame, "moved_by_layer", ("row", "layer"), ("moved", "layer", "low", "high"))
    rows = in_order(table["row"])
    wide = {
        name: table.pivot(index="row", columns="layer", values=name).reindex(index=rows)
        for name in ("moved", "low", "high")
    }
    values = {name: frame.to_numpy(dtype=np.float64) for name, frame in wide.items()}
    return _by_layer(
        values["moved"],
        (values["high"] - values["low"]) / 2,
        rows,
        wide["moved"].columns.tolist(),
        "Layer patched (last: this layer only; subject: from this layer on)",
        "Share transferred from the source",
        ax,
    )


def _by_layer(
    values: Float[np.ndarray, "row layer"],
    reach: Float[np.ndarray, "row layer"] | None,
    rows: list[str],
    layers: list[int],
    xlabel: str,
    title: str,
    ax: Axes | None,
) -> Axes:
    """A heat map around zero; if there is room, with numbers and half of their intervals."""
    bound = float(np.nanmax(np.abs(values))) or 1.0
    paint = _Paint(mpl.colormaps["RdBu_r"], TwoSlopeNorm(0, -bound, bound))
    margin = 0.12 + 0.075 * max(map(len, rows))  # inches, for the labels of the rows
    width = SINGLE if margin + max(0.4 * len(layers), 2.2) <= SINGLE else DOUBLE
    with_numbers = margin + 0.34 * len(layers) <= DOUBLE
    height = 0.3 if reach is not None else 0.2
    with canvas(ax, width, max(0.8 + height * len(rows), 1.5)) as ax:
        mesh = _cells(ax, values, 0.0, paint)
        if with_numbers:
            for (row, column), value in np.ndenumerate(values):
                half = math.nan if reach is None else float(reach[row, column])
                _write(ax, column, row, value, 2, paint, half)
        else:
            _mark_negative(ax, values, paint)
            ax.figure.colorbar(mesh, ax=ax, label="Dash: below zero")
        step = 1 + len(layers) // 24
        shown = list(range(0, len(layers), step))
        _frame(ax, [str(layers[column]) for column in shown], fonts.shown(rows), shown)
        ax.set_xlim(-0.55, len(layers) - 0.45)
        ax.set_xlabel(xlabel)
        with_reach = with_numbers and reach is not None
        ax.set_title(f"{title}, ± half of its 95 % interval" if with_reach else title)
    return ax


# ---------------------------------------------------------------- cells


class _Paint:
    """The color of a number, and of the text that can be read on it."""

    def __init__(self, cmap: Colormap, norm: Normalize):
        self.cmap, self.norm = cmap.with_extremes(bad="#eeeeee"), norm

    def ink(self, value: float) -> str:
        """White or black, whichever has the higher contrast by the formula of WCAG 2."""
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in self.cmap(self.norm(value))[:3]
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


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


def _cells(ax: Axes, values: Float[np.ndarray, "row column"], left: float, paint: _Paint) -> Any:
    """Squares of one color each, drawn as shapes, because viewers blur images."""
    n_rows, n_columns = values.shape
    return ax.pcolormesh(
        left - 0.5 + np.arange(n_columns + 1),
        np.arange(n_rows + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=paint.cmap,
        norm=paint.norm,
        edgecolors="white",
        linewidth=0.6,
    )


def _write(
    ax: Axes,
    x: int | float,
    y: int,
    value: float,
    digits: int,
    paint: _Paint,
    reach: float = math.nan,
    **extra: Any,
) -> None:
    if math.isnan(value):
        return
    look: dict[str, Any] = {"ha": "center", "va": "center", "color": paint.ink(value)}
    with_reach = not math.isnan(reach)
    text = f"{value:z.{digits}f}".replace("-", "\N{MINUS SIGN}")
    ax.text(x, y - 0.16 * with_reach, text, fontsize=SMALL, **look | extra)
    if with_reach:
        ax.text(x, y + 0.22, f"±{reach:.{digits}f}", fontsize=SMALL - 1, **look)


def _mark_negative(ax: Axes, values: Float[np.ndarray, "row column"], paint: _Paint) -> None:
    """A dash in cells without a number that are clearly below zero: in gray both ends look dark."""
    negative = np.argwhere(values < -0.1 * np.nanmax(np.abs(values)))
    inks = np.array([paint.ink(float(values[row, column])) for row, column in negative], dtype=str)
    for ink in ("white", "black"):
        y, x = negative[inks == ink].T
        ax.plot(x, y, "_", markersize=2.5, color=ink, label="_below zero", zorder=3)


def _size(columns: float, n_rows: int) -> tuple[float, float]:
    """Width and height in inches: one column of the paper if the numbers fit into the cells."""
    width = SINGLE if columns <= 7.5 else DOUBLE
    return width, max(0.7 + n_rows * min(0.36, (width - 0.7) / columns), 1.7)


def _frame(ax: Axes, column_labels: list[str], row_labels: list[str], x: Any) -> None:
    slanted = max(map(len, column_labels)) > 7
    turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(list(x), column_labels, **(turn if slanted else {}))
    ax.set_yticks(range(len(row_labels)), row_labels)
    ax.set(xlim=(-0.55, max(x) + 0.55), ylim=(len(row_labels) - 0.45, -0.55))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)

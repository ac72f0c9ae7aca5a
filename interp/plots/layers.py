"""Heat maps with the layers across: what patching changes, and what it moves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

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
from interp.plots.style import check, in_order, panels, small

_LONGEST = 14
"""Characters of a token that names a row."""


def patching(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Change in answers' log-probability, or a metric, by patching: layers across, tokens or parts
    down.

    From `PatchingResult.to_frame()`, or some of its rows: one panel per answer, stacked vertically;
    returns the first panel. Whichever of source, part and span vary name the rows, and the axis
    label lists them; white is no change. If you pass an Axes, the table must have one answer.
    """
    names = ("source", "part", "span")
    keys = (*names, "answer", "place", "layer", "extent")
    table = check(frame, "patching", keys, ("change", "layer"))
    shown = [name for name in names if table[name].nunique() > 1] or ["part"]
    words = table[shown].astype(str).map(_shortened)
    table = table.assign(label=words.agg(", ".join, axis=1))
    # Grouped by place, because a prompt may have the same token twice.
    table = table.assign(row=table.groupby(["source", "part", "place"], sort=False).ngroup())
    layers = sorted(table["layer"].unique().tolist())
    values, labels = {}, {}
    for answer in in_order(table["answer"]):
        part = table[table["answer"].astype(str) == answer]
        wide = part.pivot(index="row", columns="layer", values="change").reindex(columns=layers)
        values[answer] = wide.to_numpy(dtype=np.float64)
        labels[answer] = part.groupby("row")["label"].first().tolist()
    is_from = (table["extent"] == "from").any()
    axes = _by_layer(
        values,
        labels,
        None,
        layers,
        "Patched from this layer on" if is_from else "Layer patched",
        "Change in the metric" if "value" in table else "Change in log-probability (nats)",
        ax,
    )
    for panel, answer in zip(axes, values, strict=True):
        panel.set_ylabel(", ".join(shown).capitalize())
        if len(values) > 1:
            panel.set_title(
                f"Answer: {answer.strip() or repr(answer)}", loc="left", fontsize=small()
            )
    return axes[0]


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
    (ax,) = _by_layer(
        {"": values["moved"]},
        {"": rows},
        (values["high"] - values["low"]) / 2,
        wide["moved"].columns.tolist(),
        "Layer patched",
        "Share transferred from the source",
        ax,
    )
    return ax


def _by_layer(
    values: Mapping[str, Float[np.ndarray, "_ layer"]],
    rows: Mapping[str, Sequence[str]],
    reach: Float[np.ndarray, "_ layer"] | None,
    layers: Sequence[int],
    xlabel: str,
    quantity: str,
    ax: Axes | None,
) -> list[Axes]:
    """Heat maps around zero, one below the other; with numbers if there is room, and with `reach`
    with half of their intervals."""
    paint = around_zero(*values.values())
    shown = {name: fonts.shown(labels) for name, labels in rows.items()}
    longest = [max(labels, key=len) for labels in shown.values()]
    n_lines = 1 if reach is None else 2
    tallest = max(longest, key=len)
    n_rows = sum(map(len, shown.values()))
    grid = grid_for(len(layers), [tallest] * n_rows, ["00"], 5, n_lines)
    height = grid.height + 0.2 * (len(values) - 1)
    mesh: Any = None
    with panels(ax, list(values), "patching", grid.width, height) as axes:
        for panel, (name, cells) in zip(axes, values.items(), strict=True):
            mesh = draw_cells(panel, cells, 0.0, paint, grid)
            _fill(panel, cells, reach, paint, grid)
            label_layers(panel, layers, shown[name], grid)
            panel.set_xlabel(xlabel)
            panel.label_outer()
        color_key(axes, mesh, quantity, grid)
    return axes


def _fill(ax: Axes, cells: Any, reach: Any, paint: Any, grid: Any) -> None:
    if not grid.with_numbers:
        mark_negative(ax, cells, paint, grid)
        return
    for (row, column), value in np.ndenumerate(cells):
        half = math.nan if reach is None else float(reach[row, column])
        write_number(ax, column, row, value, 2, paint, half)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

"""Figures on disk: a table, and the drawings made from it, reproducible to the byte."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interp.plots import (
    curves,
    experts,
    layers,
    matrices,
    methods,
    neurons,
    switching,
    tasks,
    what_stays,
)
from interp.plots.style import own_style
from interp.results import artifacts
from interp.results.words import FigureFormat

_BOTH: tuple[FigureFormat, ...] = ("pdf", "png")

Draw = Callable[[pd.DataFrame], Axes]

FIGURES: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        matrices.perplexity_matrix,
        matrices.overlap,
        layers.patching,
        layers.moved_by_layer,
        curves.layer_profile,
        curves.attribution_sums,
        curves.loss_against_fraction,
        curves.curve_of_training,
        curves.sharing,
        curves.lens,
        switching.language_switching,
        switching.switching_against_size,
        tasks.accuracy_lost,
        neurons.neuron_rates,
        neurons.rate_change,
        neurons.rate_change_by_label,
        experts.routing,
        experts.chosen_experts,
        what_stays.explanation,
        methods.method_comparison,
        methods.stability_against_tokens,
    )
}
"""Figures by name; a file is drawn by the function that its name begins with."""


def save(frame: pd.DataFrame, path: Path | str, formats: Sequence[FigureFormat] = _BOTH) -> None:
    """Write the table and its drawings: path.csv, path.pdf, path.png.

    The file name selects the figure: `perplexity_matrix`, or with a suffix after a hyphen,
    `perplexity_matrix-bloom`. It draws the table as read back, so `redraw` gives the same bytes.
    """
    path = Path(path)
    text = frame.to_csv(index=False, lineterminator="\n")
    drawings = _draw(path.name, read_table(io.StringIO(text)), formats)
    artifacts.write_text(path.with_name(f"{path.name}.csv"), text)
    for ending, content in drawings.items():
        artifacts.write_bytes(path.with_name(f"{path.name}.{ending}"), content)


def redraw(table: Path | str) -> tuple[Path, ...]:
    """Redraw a saved table; returns the drawings that were missing or had different bytes."""
    table = Path(table)
    if not table.is_file():
        raise FileNotFoundError(f"{table} is missing. Make it with interp.plots.save.")
    changed = []
    for ending, content in _draw(table.stem, read_table(table)).items():
        path = table.with_suffix(f".{ending}")
        if not path.is_file() or path.read_bytes() != content:
            artifacts.write_bytes(path, content)
            changed.append(path)
    return tuple(changed)


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write path.pdf (vectors, fonts embedded) and path.png, without dates and versions.

    For figures of several panels; use `save` for figures that are redrawn from a table.
    """
    path = Path(path)
    for ending, content in _contents(figure).items():
        artifacts.write_bytes(path.with_name(f"{path.name}.{ending}"), content)


def read_table(source: Path | str | io.StringIO) -> pd.DataFrame:
    """A table as it was written; an empty frame if the file is empty."""
    try:
        return pd.read_csv(source)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _draw(
    name: str, frame: pd.DataFrame, formats: Sequence[FigureFormat] = _BOTH
) -> dict[str, bytes]:
    draw = FIGURES.get(name.split("-")[0])
    if draw is None:
        raise ValueError(
            f"{name!r} does not say which figure it is: begin it with one of "
            f"{', '.join(FIGURES)}, and put the rest after a hyphen."
        )
    figure = draw(frame).get_figure()
    assert isinstance(figure, Figure)
    try:
        return _contents(figure, formats)
    finally:
        plt.close(figure)


def _contents(figure: Figure, formats: Sequence[FigureFormat] = _BOTH) -> dict[str, bytes]:
    blank = {
        "pdf": ("CreationDate", "Creator", "Producer"),
        "png": ("Software",),
        "svg": ("Date", "Creator"),
    }
    shapes: Any = {"svg.hashsalt": "polyneuron", "svg.fonttype": "path"}
    contents, engine = {}, figure.get_layout_engine()
    with own_style(), mpl.rc_context(shapes):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # or else each format would lay it out a little further
        try:
            for ending in formats:
                with io.BytesIO() as buffer:
                    figure.savefig(buffer, format=ending, metadata=dict.fromkeys(blank[ending]))
                    contents[ending] = buffer.getvalue()
        finally:
            figure.set_layout_engine(engine)
    return contents

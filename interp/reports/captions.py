"""What the caption of a figure says beside it, where that depends on the table."""

import pandas as pd

from interp import plots
from interp.plots.files import Draw
from interp.plots.style import MOST_LINES


def overlap_caption(frame: pd.DataFrame) -> str:
    """With the overlap by chance as a number, if it is the same for all pairs."""
    chance = plots.uniform_chance(frame)
    caption = "Overlap of two languages: the Jaccard index of their neurons, below the diagonal. "
    if chance is None:
        caption += "Above it, that of random sets of the same size per layer. "
    else:
        caption += f"By chance, random sets of the same size per layer overlap by {chance:.3f}. "
    n_labels = len(set(frame["language"]) | set(frame["other"]))
    if n_labels <= MOST_LINES:
        return caption + "Bold, italic: above, below the 95 % interval of chance."
    return caption + (
        "Bold, italic (or a dot, without numbers): above, below (within) the 95 % interval of "
        "chance. Similar languages are neighbors."
    )


_LABELS: dict[Draw, str] = {
    plots.layer_profile: "language",
    plots.loss_against_fraction: "language",
    plots.lens: "language",
    plots.accuracy_lost: "language",
    plots.language_switching: "to",
}
"""Figures whose intervals have no room where labels are many, and the column of the labels."""


def with_intervals(caption: str, draw: Draw, frame: pd.DataFrame) -> str:
    """The caption, with where the intervals are if there are too many labels to draw them."""
    column = _LABELS.get(draw)
    many = column is not None and len(frame[column].unique()) > MOST_LINES
    return f"{caption} As a heat map, without intervals, which the table has." if many else caption

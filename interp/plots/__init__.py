"""Figures for papers: one function per figure, from a table to Axes.

Every function takes the table of the CSV, one row per mark, and draws nothing that is not in it.
Languages are labeled as in the table, by code, English name or own name
(`with_names(table, "endonym")`), with the same colors in each case. If you pass an Axes, your style
applies; otherwise a new figure is made, as wide as one or two columns of a paper.
"""

from interp.plots.curves import (
    attribution_sums,
    curve_of_training,
    layer_profile,
    lens,
    loss_against_fraction,
    sharing,
)
from interp.plots.files import FIGURES, read_table, redraw, save, save_figure
from interp.plots.matrices import moved_by_layer, overlap, patching, perplexity_matrix
from interp.plots.methods import method_comparison, stability_against_tokens
from interp.plots.style import DOUBLE, SINGLE, own_style
from interp.plots.switching import language_switching, switching_against_size
from interp.plots.tables import best_of_each_size, with_names
from interp.plots.tasks import accuracy_lost

__all__ = [
    "DOUBLE",
    "FIGURES",
    "SINGLE",
    "accuracy_lost",
    "attribution_sums",
    "best_of_each_size",
    "curve_of_training",
    "language_switching",
    "layer_profile",
    "lens",
    "loss_against_fraction",
    "method_comparison",
    "moved_by_layer",
    "overlap",
    "own_style",
    "patching",
    "perplexity_matrix",
    "read_table",
    "redraw",
    "save",
    "save_figure",
    "sharing",
    "stability_against_tokens",
    "switching_against_size",
    "with_names",
]

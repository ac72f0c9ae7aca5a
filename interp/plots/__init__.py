"""Figures for papers: one function per figure, a table in, Axes out.

Every function takes the table as it stands in the CSV, one row per mark, and draws nothing that is
not in it. Languages are labeled as the table names them, by code, English name or own name, and
have their color in each case: `with_names(table, "endonym")`. With an Axes of your own, your style
holds; without, a new figure as wide as one or two columns of a paper is made.
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
from interp.plots.tables import (
    best_of_each_size,
    layer_profile_table,
    overlap_table,
    with_names,
)
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
    "layer_profile_table",
    "lens",
    "loss_against_fraction",
    "method_comparison",
    "moved_by_layer",
    "overlap",
    "overlap_table",
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

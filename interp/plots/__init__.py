"""Figures for papers: one function per figure, from a table to Axes.

Every function takes the table as stored in the CSV, one row per mark, and draws only what is in
it. Languages are labeled as the table names them, by code, English name or own name, and keep their
color whatever the name: `with_names(table, "endonym")`. On an Axes that you pass, your style
applies; otherwise the function makes a figure as wide as one or two columns of a paper.
"""

from interp.plots.curves import (
    attribution_sums,
    curve_of_training,
    layer_profile,
    lens,
    loss_against_fraction,
    sharing,
)
from interp.plots.experts import chosen_experts, routing
from interp.plots.files import FIGURES, read_table, redraw, save, save_figure
from interp.plots.layers import moved_by_layer, patching
from interp.plots.matrices import overlap, perplexity_matrix, uniform_chance
from interp.plots.methods import method_comparison, stability_against_tokens
from interp.plots.neurons import neuron_rates, rate_change, rate_change_by_label
from interp.plots.style import DOUBLE, SINGLE, on_paper, own_style
from interp.plots.switching import language_switching, switching_against_size
from interp.plots.tables import best_of_each_size, with_names
from interp.plots.tasks import accuracy_lost
from interp.plots.what_stays import explanation

__all__ = [
    "DOUBLE",
    "FIGURES",
    "SINGLE",
    "accuracy_lost",
    "attribution_sums",
    "best_of_each_size",
    "chosen_experts",
    "curve_of_training",
    "explanation",
    "language_switching",
    "layer_profile",
    "lens",
    "loss_against_fraction",
    "method_comparison",
    "moved_by_layer",
    "neuron_rates",
    "on_paper",
    "overlap",
    "own_style",
    "patching",
    "perplexity_matrix",
    "rate_change",
    "rate_change_by_label",
    "read_table",
    "redraw",
    "routing",
    "save",
    "save_figure",
    "sharing",
    "stability_against_tokens",
    "switching_against_size",
    "uniform_chance",
    "with_names",
]

"""The functions behind the registry of selection methods, and the measurements that they look at.

A chooser gets what was measured of every unit in every language, and settings that say how many to
choose. What several choosers look at is computed once. The definitions of the scores, and their
authors, are in the other files of `interp.scores`.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp.counting.histograms import Histograms
from interp.counting.sign_cases import CASES
from interp.counting.stats import FiringStats
from interp.models.any_model import AnyModel, as_model
from interp.models.units import UnitLayout
from interp.scores.average_precision import Precision, measure_precision, top_and_bottom
from interp.scores.baselines import (
    cumulative_mass,
    entropy_less_peak,
    heaviest_weight,
    highest,
    mean_removal_effect,
    random_score,
    select_by_entropy_less_peak,
    share_above_percentile,
    value_entropy,
)
from interp.scores.dimensions import apart_at_the_end
from interp.scores.distributions import (
    divergence_from_others,
    overlap_across,
    overlap_threshold,
)
from interp.scores.heads import head_importance, without_general
from interp.scores.lape import busy_threshold, language_entropy, least_entropy, n_seen, pool_of
from interp.scores.methods import Settings

Score = Float[Tensor, "language layer unit"] | Int64[Tensor, "language layer unit"]
Mask = Bool[Tensor, "language layer unit"]

Measurement = Literal[
    "rate",
    "fired",
    "gate_mean",
    "removal_effect",
    "gate_precision",
    "output_precision",
    "above_percentile",
    "both_share",
    "gate_share",
    "negative_size",
    "overlap_across",
    "divergence",
    "effect_size",
    "head_norm",
    "head_importance",
    "apart_at_the_end",
]
"""Share and number of tokens on which a neuron fires; mean of act(gate); how far the MLP's output
moves without the neuron; average precision of the mean gate, and of the mean output, over a
sentence; share of sentences whose gate is above the neuron's 90th percentile; share of tokens on
which both branches are above zero, and the gate alone; root mean square of the output where the
gate is below zero; overlap of the distributions of act(gate) across the neuron's split of the
languages; divergence of its distribution in a language from that in the others; mean absolute value
of gradient times output. Of attention heads: mean norm of the output, and LAHIS. Of dimensions:
distance of the mean from the others' mean, after the last layer."""


class Measured:
    """All that a chooser may look at; a measurement is made when it is first asked for.

    >>> seen: interp.scores.Measured = interp.scores.measured(stats, generator)
    >>> seen["rate"].shape
    torch.Size([3, 6, 2048])
    """

    def __init__(
        self,
        languages: tuple[str, ...],
        generator: torch.Generator,
        measure: Mapping[Measurement, Callable[[], Score]],
        precision: Callable[[], Precision] | None = None,
        histograms: Callable[[], Histograms] | None = None,
        layout: UnitLayout | None = None,
    ) -> None:
        """`layout`: where neurons are, in a mixture of experts."""
        self.languages, self.generator, self.layout = languages, generator, layout
        self._measure: dict[Measurement, Callable[[], Score]] = {
            name: cache(function) for name, function in measure.items()
        }
        self._precision, self._histograms = precision, histograms

    def __getitem__(self, name: Measurement) -> Score:
        if name not in self._measure:
            raise ValueError(f"{name} was not measured, only {', '.join(self._measure)}.")
        return self._measure[name]()

    @property
    def pool(self) -> Bool[Tensor, "layer unit"] | None:
        """What can be chosen: neurons that have rates; None: all."""
        return pool_of(self["rate"]) if "rate" in self._measure else None

    @property
    def precision(self) -> Precision:
        """Of all units of the sites whose sentence means were kept."""
        if self._precision is None:
            raise ValueError("Precision was not measured: give a run with sentence means.")
        return self._precision()

    @property
    def histograms(self) -> Histograms:
        """Of act(gate)."""
        if self._histograms is None:
            raise ValueError("There are no histograms: give a run that kept them.")
        return self._histograms()

    def mixed(self, chosen: Bool[Tensor, "layer neuron"], other: "Measured") -> "Measured":
        """These measurements of the chosen neurons, and of all others those of `other`."""

        def mixture(name: Measurement) -> Callable[[], Score]:
            return lambda: self[name].where(chosen, other[name])

        measure: dict[Measurement, Callable[[], Score]] = {
            name: mixture(name) for name in self._measure
        }
        return Measured(self.languages, self.generator, measure, layout=self.layout)


def measured(
    kept: Any,
    generator: torch.Generator,
    open_model: Callable[[], AnyModel] | None = None,
) -> Measured:
    """From a run, or from anything that has its attributes, as far as a method needs them.

    Counts of firing alone will do for methods that need nothing else. `open_model` is called for
    scores that look at weights.

    >>> seen = interp.scores.measured(stats, generator)
    >>> seen["fired"].shape
    torch.Size([3, 6, 2048])
    """
    if isinstance(kept, FiringStats):
        rates: dict[Measurement, Callable[[], Score]] = {
            "rate": lambda: kept.rate,
            "fired": lambda: kept.total,
        }
        return Measured(kept.languages, generator, rates, layout=kept.layout)

    @cache
    def precision() -> Precision:
        return measure_precision(kept.sentence_means)

    def precision_of(kind: str) -> Score:
        return precision().average_precision[:, :, precision().units(kind)]

    def removal_effect() -> Score:
        if open_model is None:
            raise ValueError("The effect of removal depends on weights: give the model.")
        return mean_removal_effect(kept.moments, as_model(open_model()))

    def above_percentile() -> Score:
        means = kept.sentence_means
        layers = range(kept.firing.n_layers)
        shares = [
            share_above_percentile(means.read("pre", layer), means.labels, len(means.languages))
            for layer in layers
        ]
        return torch.stack(shares, dim=1)

    measure: dict[Measurement, Callable[[], Score]] = {
        "rate": lambda: kept.firing.rate,
        "fired": lambda: kept.firing.total,
        "gate_mean": lambda: kept.moments.gate_mean,
        "removal_effect": removal_effect,
        "gate_precision": lambda: precision_of("pre"),
        "output_precision": lambda: precision_of("post"),
        "above_percentile": above_percentile,
        "both_share": lambda: kept.sign_cases.share[:, CASES.index("both")],
        "gate_share": lambda: kept.sign_cases.share[:, CASES.index("gate")],
        "negative_size": lambda: kept.negative_side.size,
        "overlap_across": lambda: overlap_across(kept.histograms),
        "divergence": lambda: divergence_from_others(kept.histograms),
        "effect_size": lambda: kept.loss_effects.size,
        "head_norm": lambda: kept.heads.mean,
        "head_importance": lambda: head_importance(kept.head_effects),
        "apart_at_the_end": lambda: apart_at_the_end(kept.dimensions.mean),
    }
    of = kept.firing.languages, generator, measure, precision, lambda: kept.histograms
    return Measured(*of, kept.firing.layout)


# ---------------------------------------------------------------- the choosers
# Choosing fewer units than asked for costs recall, not precision.


def top(score: Score, settings: Settings) -> Mask:
    """The units of the highest score, of those that have scores: see `FiringStats.rate`."""
    pool, n = pool_of(score), settings.per_language(n_seen(score))
    if pool is None:
        return highest(score, n)
    return highest(score.masked_fill(~pool, -math.inf), n) & pool


def both_ends(score: Score, settings: Settings) -> Mask:
    """Half from the top and half from the bottom, or one half of these, as in Kojima et al."""
    flat = rearrange(score, "language layer unit -> language (layer unit)")
    n = settings.per_language(flat.shape[1])
    n -= n % 2 if settings.n is None else 0  # a share of all units need not be even
    return rearrange(
        top_and_bottom(flat, n, settings.which),
        "language (layer unit) -> language layer unit",
        layer=score.shape[1],
    )


def least(
    measure: Score,
    settings: Settings,
    entropy: Float[Tensor, "layer neuron"] | None = None,
    leading: bool = False,
) -> Mask:
    """Per language the neurons of least entropy, of those that LAPE calls busy in it.

    `entropy`: by default that of the measure. `leading`: of those whose measure is highest in it.
    """
    entropy = language_entropy(measure) if entropy is None else entropy
    if leading:
        eligible = measure == reduce(measure, "language layer neuron -> 1 layer neuron", "max")
    else:
        eligible = measure.double() > busy_threshold(measure, settings.busy_quantile)
    return finite(_where(eligible, -entropy).masked_fill(measure.isnan(), math.nan), settings)


def _where(
    eligible: Bool[Tensor, "language layer neuron"], score: Float[Tensor, "layer neuron"]
) -> Score:
    """A score of neurons in the languages in which they are eligible; elsewhere -inf."""
    everywhere = repeat(score, "layer neuron -> language layer neuron", language=len(eligible))
    return everywhere.masked_fill(~eligible | everywhere.isnan(), -math.inf)


def finite(score: Score, settings: Settings) -> Mask:
    """`top`, without units whose score is -inf."""
    return top(score, settings) & score.isfinite()


def drawn(seen: Measured, settings: Settings) -> Mask:
    n_languages, n_layers, n_units = seen["rate"].shape
    score = random_score(n_languages, n_layers, n_units, seen.generator)
    return top(score.masked_fill(seen["rate"].isnan(), math.nan), settings)


def rate(seen: Measured, settings: Settings) -> Mask:
    return top(seen["rate"], settings)


def lead(seen: Measured, settings: Settings) -> Mask:
    """Rate in the language less the highest in any other."""
    first, second = seen["rate"].topk(2, dim=0).values
    return top(seen["rate"] - torch.where(seen["rate"] == first, second, first), settings)


def removal(seen: Measured, settings: Settings) -> Mask:
    return top(seen["removal_effect"], settings)


def entropy_alone(seen: Measured, settings: Settings) -> Mask:
    return least(seen["rate"], settings, leading=True)


def entropy(seen: Measured, settings: Settings) -> Mask:
    return least(seen["rate"], settings)


def lape(seen: Measured, settings: Settings) -> Mask:
    """Languages compete: LAPE says how many of the neurons each of them gets."""
    return least_entropy(seen["rate"], _fraction(seen["rate"], settings), settings.busy_quantile)


def mean_entropy(seen: Measured, settings: Settings) -> Mask:
    mean = seen["gate_mean"].clamp_min(0)
    return least(mean, settings, value_entropy(mean))


def lave(seen: Measured, settings: Settings) -> Mask:
    mean = seen["gate_mean"].clamp_min(0)
    return least_entropy(mean, _fraction(mean, settings), settings.busy_quantile)


def less_peak(seen: Measured, settings: Settings) -> Mask:
    weight = 0.1 if settings.weight is None else settings.weight
    return least(seen["rate"], settings, entropy_less_peak(seen["rate"], weight))


def less_peak_as_published(seen: Measured, settings: Settings) -> Mask:
    sizes, weight = (_fraction(seen["rate"], settings), settings.busy_quantile), settings.weight
    if weight is None:
        weight = heaviest_weight(seen["rate"], *sizes)
    return select_by_entropy_less_peak(seen["rate"], weight, *sizes)


def sign_cases(seen: Measured, settings: Settings) -> Mask:
    """LAPE on firing with the linear branch above zero, and on firing with it below, apart.

    A neuron's score is that of the case whose entropy is less, of those in which it is busy.
    """
    cases = [seen["both_share"], seen["gate_share"]]
    scores = [
        _where(share > busy_threshold(share, settings.busy_quantile), -language_entropy(share))
        for share in cases
    ]
    return finite(torch.maximum(*scores), settings)


def negative_side(seen: Measured, settings: Settings) -> Mask:
    """LAPE on the size of what a neuron writes where its gate is below zero."""
    return least(seen["negative_size"], settings)


def distributions(seen: Measured, settings: Settings) -> Mask:
    """The neurons that overlap least, of those that set the language apart."""
    return finite(-seen["overlap_across"], settings)


def distributions_as_published(seen: Measured, settings: Settings) -> Mask:
    """All that set a language apart by less than the threshold of all pairs."""
    return seen["overlap_across"] <= overlap_threshold(seen.histograms, settings.fraction)


def divergence(seen: Measured, settings: Settings) -> Mask:
    return top(seen["divergence"], settings)


def loss_effects(seen: Measured, settings: Settings) -> Mask:
    """LAPE on the size of a neuron's effect on the loss."""
    return least(seen["effect_size"], settings)


def head_norms(seen: Measured, settings: Settings) -> Mask:
    """LAPE on the mean norm of a head's output."""
    return least(seen["head_norm"], settings)


def most_important_heads(seen: Measured, settings: Settings) -> Mask:
    return top(seen["head_importance"], settings)


def specific_heads(seen: Measured, settings: Settings) -> Mask:
    """The most important heads of each language that are not also those of many."""
    return without_general(most_important_heads(seen, settings))


def dimensions(seen: Measured, settings: Settings) -> Mask:
    """The dimensions that are furthest apart after the last layer, of that layer alone.

    A share is of the dimensions of one layer.
    """
    last = seen["apart_at_the_end"][:, -1:]
    mask = torch.zeros_like(seen["apart_at_the_end"], dtype=torch.bool)
    mask[:, -1:] = top(last, settings)
    return mask


def above_percentile(seen: Measured, settings: Settings) -> Mask:
    return top(seen["above_percentile"], settings)


def gate_precision(seen: Measured, settings: Settings) -> Mask:
    return top(seen["gate_precision"], settings)


def gate_precision_both_ends(seen: Measured, settings: Settings) -> Mask:
    return both_ends(seen["gate_precision"], settings)


def output_precision(seen: Measured, settings: Settings) -> Mask:
    return top(seen["output_precision"], settings)


def output_precision_both_ends(seen: Measured, settings: Settings) -> Mask:
    return both_ends(seen["output_precision"], settings)


def precision(seen: Measured, settings: Settings) -> Mask:
    return both_ends(seen.precision.average_precision, settings)


def mass(seen: Measured, settings: Settings) -> Mask:
    return cumulative_mass(seen["fired"].masked_fill(seen["rate"].isnan(), 0), settings.share)


def _fraction(measure: Score, settings: Settings) -> float:
    return settings.of_all(n_seen(measure), len(measure))

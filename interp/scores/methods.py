"""Every way of choosing language neurons that the studies compare, on the same measurements.

A selector sees what was measured of every neuron in every language, and how many neurons it is to
choose for each language; what all of them look at is computed once (`measured`). Their definitions,
and whose they are, stand in `interp.scores`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from interp.counting.stats import ActivationMoments, FiringStats, SentenceMeans
from interp.models.neuron_model import NeuronModel
from interp.scores.average_precision import measure_precision, top_and_bottom
from interp.scores.baselines import (
    entropy_less_peak,
    highest,
    mean_removal_effect,
    random_score,
    share_above_percentile,
    value_entropy,
)
from interp.scores.lape import busy_threshold, language_entropy, least_entropy

MEASUREMENTS = (
    *("rate", "gate_mean", "removal_effect"),
    *("gate_precision", "output_precision", "above_percentile"),
)


@dataclass(frozen=True)
class Measured:
    """All that a selector may look at, neuron by neuron."""

    rate: Float[Tensor, "language layer neuron"]
    """Share of the tokens on which the neuron fires."""

    gate_mean: Float[Tensor, "language layer neuron"]
    """Mean of act(gate)."""

    removal_effect: Float[Tensor, "language layer neuron"]
    """How far the MLP's output moves without the neuron; see `mean_removal_effect`."""

    gate_precision: Float[Tensor, "language layer neuron"]
    """Average precision of the gate's mean over a sentence."""

    output_precision: Float[Tensor, "language layer neuron"]
    """The same of what the neuron gives."""

    above_percentile: Float[Tensor, "language layer neuron"]
    """Share of sentences whose gate is above the neuron's 90th percentile."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    generator: torch.Generator
    """For selectors that draw."""

    def mixed(self, taken: Bool[Tensor, "layer neuron"], other: "Measured") -> "Measured":
        """What is here of the neurons taken, and of all others what was measured elsewhere."""
        parts = {
            name: getattr(self, name).where(taken, getattr(other, name)) for name in MEASUREMENTS
        }
        return Measured(**parts, languages=self.languages, generator=self.generator)


def measured(
    model: NeuronModel,
    stats: FiringStats,
    moments: ActivationMoments,
    means: SentenceMeans,
    generator: torch.Generator,
) -> Measured:
    """From a run that kept moments, and sentence means of pre and post."""
    precision = measure_precision(means).average_precision
    width = precision.shape[2] // 2
    assert means.kinds == ("pre", "post"), "the order of the unit axis"
    above = [
        share_above_percentile(means.read("pre", layer), means.labels, len(means.languages))
        for layer in range(model.n_layers)
    ]
    return Measured(
        rate=stats.rate,
        gate_mean=moments.gate_mean,
        removal_effect=mean_removal_effect(moments, model),
        gate_precision=precision[:, :, :width],
        output_precision=precision[:, :, width:],
        above_percentile=torch.stack(above, dim=1),
        languages=stats.languages,
        generator=generator,
    )


Selector = Callable[[Measured, int], Bool[Tensor, "language layer neuron"]]
"""What was measured, and how many neurons to choose for each language → the choice. Choosing fewer
costs recall, not precision."""


def by_entropy(
    measure: Float[Tensor, "language layer neuron"],
    entropy: Float[Tensor, "layer neuron"],
    n: int,
    busy_quantile: float | None = 0.95,
) -> Bool[Tensor, "language layer neuron"]:
    """Per language the n neurons of least entropy, among those that LAPE calls busy in it.

    None for `busy_quantile`: among those that lead in it.
    """
    if busy_quantile is None:
        among = measure == reduce(measure, "language layer neuron -> 1 layer neuron", "max")
    else:
        among = measure.double() > busy_threshold(measure, busy_quantile)
    score = repeat(-entropy, "layer neuron -> language layer neuron", language=len(measure))
    score = score.masked_fill(~among | score.isnan(), -math.inf)
    return highest(score, n) & score.isfinite()


def _random(seen: Measured, n: int) -> Tensor:
    n_languages, n_layers, n_units = seen.rate.shape
    return highest(random_score(n_languages, n_layers, n_units, seen.generator), n)


def _lead(seen: Measured, n: int) -> Tensor:
    """Rate in the language less the highest in any other."""
    first, second = seen.rate.topk(2, dim=0).values
    return highest(seen.rate - torch.where(seen.rate == first, second, first), n)


def _lape(seen: Measured, n: int) -> Tensor:
    return by_entropy(seen.rate, language_entropy(seen.rate), n)


def _entropy_alone(seen: Measured, n: int) -> Tensor:
    return by_entropy(seen.rate, language_entropy(seen.rate), n, busy_quantile=None)


def _lape_as_published(seen: Measured, n: int) -> Tensor:
    """As many neurons in all; how many of them a language gets is for LAPE to say."""
    fraction = n * len(seen.rate) / seen.rate[0].numel()
    return least_entropy(seen.rate, fraction, busy_quantile=0.95)


def _lave(seen: Measured, n: int) -> Tensor:
    mean = seen.gate_mean.clamp_min(0)
    return by_entropy(mean, value_entropy(mean), n)


def _less_peak(seen: Measured, n: int) -> Tensor:
    return by_entropy(seen.rate, entropy_less_peak(seen.rate, weight=0.1), n)


def _both_ends(score: Float[Tensor, "language layer neuron"], n: int) -> Tensor:
    """Half from the top and half from the bottom, as Kojima et al. (2024) do."""
    flat = rearrange(score, "language layer neuron -> language (layer neuron)")
    layers = {"layer": score.shape[1]}
    return rearrange(
        top_and_bottom(flat, n), "language (layer neuron) -> language layer neuron", **layers
    )


SELECTORS: dict[str, Selector] = {
    "random": _random,
    "rate (LAP)": lambda seen, n: highest(seen.rate, n),
    "removal effect (PLND)": lambda seen, n: highest(seen.removal_effect, n),
    "entropy alone": _entropy_alone,
    "entropy (LAPE)": _lape,
    "LAPE as published": _lape_as_published,
    "entropy less peak": _less_peak,
    "mean entropy (LAVE)": _lave,
    "lead in rate": _lead,
    "share above percentile": lambda seen, n: highest(seen.above_percentile, n),
    "precision of gate": lambda seen, n: highest(seen.gate_precision, n),
    "precision of gate, both ends": lambda seen, n: _both_ends(seen.gate_precision, n),
    "precision of output": lambda seen, n: highest(seen.output_precision, n),
    "precision of output, both ends": lambda seen, n: _both_ends(seen.output_precision, n),
}
"""Name → selector. Not here: parameter variation, which needs a checkpoint for each language, and
cumulative mass, whose sets have the size that a layer's firing gives them."""

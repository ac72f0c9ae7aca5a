"""Baselines for LAPE and average precision: rival methods, from the papers that propose them.

Most are a score, [language layer neuron], from which `highest` takes n neurons per language. A
language is just a label here. In the order of the file:

- random, the level that every method must beat: `random_score`;
- activation probability alone, LAP (Tang et al., 2024): `highest(stats.rate, n)`. A neuron that is
  busy everywhere ranks high in every language, because nothing compares it with the others;
- entropy of mean values, LAVE (Tang et al., 2024): `value_entropy`;
- parameter variation (Tang et al., 2024): `parameter_variation`;
- share of responses above a percentile (Mondal et al., 2025): `share_above_percentile`;
- entropy less the peak (Zhang et al., 2025): `entropy_less_peak`, `select_by_entropy_less_peak`,
  `heaviest_weight`;
- effect of removal, PLND (Zhao et al., 2024): `removal_effect`, `mean_removal_effect`;
- cumulative mass (Tan et al., 2024): `cumulative_mass`.
"""

import math
import warnings

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from interp.counting.stats import ActivationMoments
from interp.models.neuron_model import NeuronModel
from interp.scores.lape import busy_threshold, language_entropy, n_seen
from interp.scores.ranks import positive_percentiles, sentences_per_language


def highest(
    score: Float[Tensor, "language layer neuron"], n: int
) -> Bool[Tensor, "language layer neuron"]:
    """Per language, the n neurons with the highest score over all layers.

    Ties at the cut go to the lower layer, then to the lower neuron; where they are most of what is
    chosen, there is a warning.
    """
    n_layers, n_units = score.shape[1:]
    if not 1 <= n <= n_layers * n_units:
        raise ValueError(f"n is {n}: give a number from 1 to {n_layers * n_units:,} neurons.")
    if score.isnan().any():
        raise ValueError(
            f"{int(score.isnan().sum()):,} of {score.numel():,} scores are NaN and cannot be "
            "ranked: fill them with -inf to leave those neurons out."
        )
    flat = rearrange(score, "language layer neuron -> language (layer neuron)")
    first = flat.argsort(dim=1, descending=True, stable=True)[:, :n]
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, first, True)
    _warn_of_ties(flat, chosen, flat.gather(1, first[:, -1:]))
    return rearrange(chosen, "language (layer neuron) -> language layer neuron", layer=n_layers)


def _warn_of_ties(
    score: Float[Tensor, "language unit"],
    chosen: Bool[Tensor, "language unit"],
    last: Float[Tensor, "language 1"],
) -> None:
    """If most of what is chosen has the score of the last, and others that are not have it too."""
    tied = (score == last) & last.isfinite()
    n_tied = reduce(tied, "language unit -> language", "sum")
    n_chosen = reduce(tied & chosen, "language unit -> language", "sum")
    n_all = reduce(chosen, "language unit -> language", "sum")
    by_order = (n_tied > n_chosen) & (2 * n_chosen > n_all)
    if by_order.any():
        row = int(by_order.int().argmax())
        warnings.warn(
            f"For {int(by_order.sum())} of {len(score)} labels most of what is chosen has the same "
            f"score as what is not, such as {n_chosen[row]} of {n_tied[row]} units: their order "
            "decides. Choose more units, or another method.",
            stacklevel=3,
        )


def random_score(
    n_languages: int, n_layers: int, n_units: int, generator: torch.Generator
) -> Float64[Tensor, "language layer neuron"]:
    """Uniform noise between zero and one, for each language separately.

    It ignores layers; for a control of the same size per layer use `NeuronSelection.random_like`.
    """
    shape = (n_languages, n_layers, n_units)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def random_units(
    pool: Bool[Tensor, "layer unit"],
    size: Int64[Tensor, " layer"],
    generator: torch.Generator,
    like: tuple[Bool[Tensor, "layer unit"], Float[Tensor, "layer unit"]] | None = None,
) -> Bool[Tensor, "layer unit"]:
    """`size` random units of each layer, drawn uniformly from the pool.

    With `like`, chosen units and the rate of every unit, each chosen unit is replaced by that unit
    of the pool and of its layer whose rate is nearest and which replaces no other: chance then
    decides only among equals, and who is replaced first.
    """
    if like is not None:
        return _nearest_units(pool, *like, generator)
    noise = torch.rand(pool.shape, generator=generator, dtype=torch.float64)
    rank = noise.masked_fill(~pool, 2.0).argsort(dim=-1, stable=True).argsort(dim=-1)
    return rank < rearrange(size, "layer -> layer 1")


def _nearest_units(
    pool: Bool[Tensor, "layer unit"],
    chosen: Bool[Tensor, "layer unit"],
    rate: Float[Tensor, "layer unit"],
    generator: torch.Generator,
) -> Bool[Tensor, "layer unit"]:
    drawn = torch.zeros_like(pool)
    for layer, units in enumerate(chosen):
        left = pool[layer].nonzero().flatten()
        left = left[torch.randperm(len(left), generator=generator)]  # equals in random order
        rates, free = rate[layer, left].double(), torch.ones(len(left), dtype=torch.bool)
        wanted = units.nonzero().flatten()
        for unit in wanted[torch.randperm(len(wanted), generator=generator)].tolist():
            distance = (rates - rate[layer, unit]).abs().masked_fill(~free, torch.inf)
            nearest = int(distance.argmin())
            free[nearest] = False
            drawn[layer, left[nearest]] = True
    return drawn


def value_entropy(
    mean: Float[Tensor, "language layer neuron"],
) -> Float64[Tensor, "layer neuron"]:
    """LAVE: entropy, in nats, of how a neuron's mean activation divides among languages.

    LAPE with `ActivationMoments.gate_mean` instead of the rate. Zero: its mean is positive in one
    language alone. `log(n_languages)`: equal in all. NaN: positive in none.

    A negative mean counts as zero, which the paper leaves open (its code is not public). SiLU and
    GELU are slightly below zero where a neuron is off, so a negative mean says that it is mostly
    off in that language. Its size says nothing about the language, and taking absolute values
    would make neurons that are off everywhere look shared.
    """
    if not mean.isfinite().all():
        raise ValueError(
            f"{int((~mean.isfinite()).sum()):,} of {mean.numel():,} means are NaN or infinite: "
            "give ActivationMoments.gate_mean, over at least one token per language."
        )
    return language_entropy(mean.clamp_min(0))


def parameter_variation(before: NeuronModel, after: NeuronModel) -> Float64[Tensor, "layer neuron"]:
    """How far tuning on a language moved each neuron's weights, relative to their norm.

    |w_after - w_before| / |w_before|, where w holds all weights of the neuron: those that read from
    the residual stream (gate and linear branch) and those that write to it, without biases. Zero:
    not moved. One: moved by its own norm. NaN: all weights are zero before and after.

    One pair of models gives one language's row of a score: stack the rows of several languages.
    """
    shapes = [
        (model.n_layers, model.d_mlp, model.d_model, model.gated) for model in (before, after)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{before.name} and {after.name} differ in (layers, neurons, residual width, gated): "
            f"{shapes[0]} and {shapes[1]}. Give one model before and after tuning."
        )
    moved = torch.zeros(before.n_layers, before.d_mlp, dtype=torch.float64)
    length = torch.zeros_like(moved)
    for layer in range(before.n_layers):
        for old, new in zip(_weights(before, layer), _weights(after, layer), strict=True):
            old, new = old.detach().cpu().double(), new.detach().cpu().double()
            moved[layer] += reduce((new - old) ** 2, "neuron d_model -> neuron", "sum")
            length[layer] += reduce(old**2, "neuron d_model -> neuron", "sum")
    return (moved / length).sqrt()


def share_above_percentile(
    responses: Float[Tensor, "sentence unit"],
    labels: Int[Tensor, " sentence"],
    n_languages: int,
    percent: float = 90.0,
) -> Float64[Tensor, "language unit"]:
    """Share of a language's sentences on which a unit responds above its own 90th percentile.

    The percentile is taken over the sentences of all languages, so languages with more sentences
    weigh more in it. Zero: never above. About 0.1: the same as all languages. 0.1 / p, or one if
    that is less, with p the language's share of the sentences: all high responses are in this
    language.

    Departs from Mondal et al. (2025), "Language-specific Neurons Do Not Facilitate Cross-Lingual
    Transfer". Their code takes the share of tokens above the percentile of the same neuron in the
    same language. That share is 0.1 for every neuron, whatever it does, except that the percentile
    is averaged over batches; so it cannot select anything. Ours uses sentence means, the finest
    responses that are recorded. Counting tokens would need the thresholds before the pass over the
    text, and a separate counter; `highest` takes either share.
    """
    sentences_per_language(responses, labels, n_languages)
    threshold = positive_percentiles(responses, torch.zeros_like(labels), 1, (percent,))[0]
    above = responses.double() > threshold
    rows = [above[(labels == language).to(above.device)] for language in range(n_languages)]
    return torch.stack([reduce(row.double(), "sentence unit -> unit", "mean") for row in rows])


def entropy_less_peak(
    rate: Float[Tensor, "language layer neuron"], weight: float
) -> Float64[Tensor, "layer neuron"]:
    """Entropy of firing, minus a reward for firing often in some language; low is specific.

    With K languages, H LAPE's entropy and p the rates,

        H / log K  -  weight · max p / (h / K),        h = 1 + 1/2 + … + 1/K.

    Zhang et al. (2025), "How does Alignment Enhance LLMs' Multilingual Capabilities? A Language
    Neurons Perspective". The reward replaces LAPE's busy threshold: a weight of zero is LAPE
    without that threshold. NaN: the neuron never fires.
    """
    n_languages = len(rate)
    if n_languages < 2:
        raise ValueError("There is only one language, so all entropies are zero: give two or more.")
    if not 0 <= weight < math.inf:
        raise ValueError(f"The weight of the reward is {weight}: give zero or more.")
    harmonic = sum(1 / k for k in range(1, n_languages + 1))
    peak = reduce(rate.double(), "language layer neuron -> layer neuron", "max")
    spread = language_entropy(rate) / math.log(n_languages)
    return spread - weight * peak * n_languages / harmonic


def select_by_entropy_less_peak(
    rate: Float[Tensor, "language layer neuron"],
    weight: float,
    fraction: float = 0.01,
    busy_quantile: float = 0.95,
) -> Bool[Tensor, "language layer neuron"]:
    """The given fraction of all neurons with the lowest `entropy_less_peak`, by language.

    A neuron belongs to the languages in which it is busy (LAPE's `busy_threshold`). There may be
    none: a neuron that rarely fires can be chosen for its entropy and belong to no language.
    Neurons that never fire are chosen last. Ties at the cut go to the lower layer, then to the
    lower neuron.
    """
    score = entropy_less_peak(rate, weight)
    score = score.masked_fill(score.isnan(), math.inf)
    n_neurons = n_seen(rate)
    n_chosen = round(fraction * n_neurons) if math.isfinite(fraction) else 0
    if not 1 <= n_chosen <= n_neurons:
        raise ValueError(
            f"The fraction {fraction} of {n_neurons:,} neurons is {n_chosen:,} neurons: give a "
            "share between 0 and 1 that leaves at least one, such as 0.01."
        )
    chosen = highest(rearrange(-score, "layer neuron -> 1 layer neuron"), n_chosen)
    return (rate.double() > busy_threshold(rate, busy_quantile)) & chosen


def heaviest_weight(
    rate: Float[Tensor, "language layer neuron"],
    fraction: float = 0.01,
    busy_quantile: float = 0.95,
    most: float = 0.2,
    precision: float = 1e-3,
) -> float:
    """The weight of Zhang et al. (2025): the largest that selects no neuron busy in all languages.

    Bisects the interval from zero to `most` until it is narrower than `precision`; returns `most`
    if that already qualifies. The number of selected neurons that are busy in all languages need
    not be monotonic in the weight, so this is one weight at which it leaves zero, as in the
    authors' code.
    """

    def selects_for_all(weight: float) -> bool:
        mask = select_by_entropy_less_peak(rate, weight, fraction, busy_quantile)
        return bool(reduce(mask, "language layer neuron -> layer neuron", "all").any())

    if selects_for_all(0.0):
        raise ValueError(
            f"Even at weight 0 a fraction of {fraction} includes neurons that are busy in all "
            f"{len(rate)} languages: lower the fraction or raise busy_quantile ({busy_quantile})."
        )
    if not selects_for_all(most):
        return most
    low, high = 0.0, most
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (low, middle) if selects_for_all(middle) else (middle, high)
    return low


def removal_effect(
    output: Float[Tensor, "*batch neuron"], w_out: Float[Tensor, "neuron d_model"]
) -> Float[Tensor, "*batch neuron"]:
    """How far the MLP's output moves, at each position, when one neuron is switched off.

    PLND (Zhao et al., 2024, "How do Large Language Models Handle Multilingualism?") calls a neuron
    important where removing it changes the layer's output most, in Euclidean norm. One neuron
    adds its output times its row of W_out, so that norm is |output| · |row|: exact for every
    neuron at once, with no extra forward pass. Zero: it is silent, or writes nothing.

    This is the effect on the MLP's own output: a norm after the MLP (Gemma 2 and 3) changes what
    reaches the residual stream. The authors' code sums |up projection| instead, without the row.
    """
    norm = w_out.detach().float().norm(dim=1).to(output.device)
    return output.float().abs() * norm


def mean_removal_effect(
    moments: ActivationMoments, model: NeuronModel
) -> Float64[Tensor, "language layer neuron"]:
    """Root mean square of `removal_effect` over a language's tokens.

    Times the square root of the number of tokens, it is the norm of the change over the whole text,
    all tokens as one vector: the paper's importance, with the language's text as one document. The
    paper requires a neuron to be important in every document, which sums per language cannot show.
    """
    n_layers, n_units = moments.sums.shape[2:]
    if (model.n_layers, model.d_mlp) != (n_layers, n_units):
        raise ValueError(
            f"The moments have {n_layers} layers of {n_units} neurons, but {model.name} has "
            f"{model.n_layers} of {model.d_mlp}: use the model they were collected with."
        )
    norm = torch.stack(
        [model.w_out(layer).detach().cpu().double().norm(dim=1) for layer in range(n_layers)]
    )
    tokens = rearrange(moments.tokens, "language -> language 1 1")
    return (moments.sums[3] / tokens).sqrt() * norm


def cumulative_mass(
    fired: Int64[Tensor, "language layer neuron"], share: float = 0.95
) -> Bool[Tensor, "language layer neuron"]:
    """Per language and layer, the smallest set of neurons that makes up `share` of all firing.

    Neuron Specialization (Tan et al., 2024): takes neurons from the most active down until they
    reach the share. `fired` counts tokens, such as `FiringStats.fired` summed over shards. The sets
    are large, and grow with how widely a layer's firing is spread: this measures use, not
    specificity. One: all neurons that ever fire. A layer that never fires has none. Ties at the cut
    go to the lower neuron.
    """
    if not 0 < share <= 1:
        raise ValueError(f"The share is {share}: give a number above 0 and up to 1, such as 0.95.")
    if (fired < 0).any():
        raise ValueError("Some values of fired are negative: give counts of tokens.")
    ordered, order = fired.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    total = reduce(fired, "language layer neuron -> language layer 1", "sum")
    needed = before.double() < share * total.double()
    return torch.zeros_like(fired, dtype=torch.bool).scatter_(-1, order, needed)


def _weights(model: NeuronModel, layer: int) -> list[Float[Tensor, "neuron d_model"]]:
    """All weights of a layer's neurons, one row per neuron."""
    w_gate = model.w_gate(layer)
    incoming = [model.w_in(layer)] + ([] if w_gate is None else [w_gate])
    return [rearrange(weight, "d_model neuron -> neuron d_model") for weight in incoming] + [
        model.w_out(layer)
    ]

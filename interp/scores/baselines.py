"""What LAPE and average precision are compared with: the rivals, from the papers that propose them.

Most are a score, [language layer neuron], of which `highest` takes as many neurons per language as
are asked for. A language is no more than a label here. In the order of the file:

- random, the level that every method must beat: `random_score`;
- activation probability alone, LAP (Tang et al., 2024): `highest(stats.rate, n)`. A neuron that is
  busy everywhere leads in every language: nothing divides by the others;
- entropy of mean values, LAVE (Tang et al., 2024): `value_entropy`;
- parameter variation (Tang et al., 2024): `parameter_variation`;
- share of responses above a percentile (Mondal et al., 2025): `share_above_percentile`;
- entropy less the peak (Zhang et al., 2025): `entropy_less_peak`, `select_by_entropy_less_peak`,
  `heaviest_weight`;
- effect of removal, PLND (Zhao et al., 2024): `removal_effect`, `mean_removal_effect`;
- cumulative mass (Tan et al., 2024): `cumulative_mass`.
"""

import math

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from interp.counting.stats import ActivationMoments
from interp.models.neuron_model import NeuronModel
from interp.scores.lape import busy_threshold, language_entropy
from interp.scores.ranks import positive_percentiles, sentences_per_language


def highest(
    score: Float[Tensor, "language layer neuron"], n: int
) -> Bool[Tensor, "language layer neuron"]:
    """Per language the n neurons of the highest score, over all layers at once.

    Ties at the cut go to the lower layer, then to the lower neuron.
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
    return rearrange(chosen, "language (layer neuron) -> language layer neuron", layer=n_layers)


def random_score(
    n_languages: int, n_layers: int, n_units: int, generator: torch.Generator
) -> Float64[Tensor, "language layer neuron"]:
    """Uniform noise between zero and one, each language by itself.

    Of all neurons, whatever the layer. A control with as many neurons per layer as a given
    selection has is `NeuronSelection.random_like`.
    """
    shape = (n_languages, n_layers, n_units)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def random_units(
    pool: Bool[Tensor, "layer unit"], size: Int64[Tensor, " layer"], generator: torch.Generator
) -> Bool[Tensor, "layer unit"]:
    """So many units of each layer, drawn from the pool, all with the same chance."""
    noise = torch.rand(pool.shape, generator=generator, dtype=torch.float64)
    rank = noise.masked_fill(~pool, 2.0).argsort(dim=-1, stable=True).argsort(dim=-1)
    return rank < rearrange(size, "layer -> layer 1")


def value_entropy(
    mean: Float[Tensor, "language layer neuron"],
) -> Float64[Tensor, "layer neuron"]:
    """LAVE: entropy, in nats, of how a neuron's mean activation divides among languages.

    LAPE with `ActivationMoments.gate_mean` in the place of the rate. Zero: its mean is positive in
    one language alone. `log(n_languages)`: equal in all. NaN: positive in none.

    A negative mean counts as zero, which the paper leaves open (its code is not public). SiLU and
    GELU give a little less than zero where a neuron is off, so a negative mean says that it is
    mostly off in that language; its size says nothing about the language, and without its sign
    neurons that are off everywhere would pass for shared ones.
    """
    if not mean.isfinite().all():
        raise ValueError(
            f"{int((~mean.isfinite()).sum()):,} of {mean.numel():,} means are NaN or infinite: "
            "give ActivationMoments.gate_mean, over more than no tokens."
        )
    return language_entropy(mean.clamp_min(0))


def parameter_variation(before: NeuronModel, after: NeuronModel) -> Float64[Tensor, "layer neuron"]:
    """How far tuning on a language moved each neuron's weights, in units of their own length.

    |w_after - w_before| / |w_before|, where w is all that belongs to the neuron: its weights from
    the residual stream (gate and linear branch) and to it, without biases. Zero: not moved. One:
    moved by as much as it is long. NaN: no weights before, none after.

    One pair of models gives one language's row of a score: stack those of several languages.
    """
    shapes = [(each.n_layers, each.d_mlp, each.d_model, each.gated) for each in (before, after)]
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

    The percentile is that of the unit over the sentences of all languages, so languages with more
    sentences weigh more in it. Zero: never above. About 0.1: as all languages do. 0.1 / p, or one
    if that is less, with p the language's share of the sentences: all its high responses are here.

    Departs from Mondal et al. (2025), "Language-specific Neurons Do Not Facilitate Cross-Lingual
    Transfer". Their code takes the share of tokens above the percentile of the same neuron in the
    same language. That share is 0.1 for every neuron, whatever it does, but for the batches over
    which the percentile was averaged; so it can select nothing. Ours is of sentence means, the
    finest responses that are kept. Of tokens, it would need the thresholds before the pass over the
    text, and a count of its own; `highest` takes either share.
    """
    sentences_per_language(responses, labels, n_languages)
    bar = positive_percentiles(responses, torch.zeros_like(labels), 1, (percent,))[0]
    above = responses.double() > bar
    shares = [above[(labels == language).to(above.device)] for language in range(n_languages)]
    return torch.stack([reduce(each.double(), "sentence unit -> unit", "mean") for each in shares])


def entropy_less_peak(
    rate: Float[Tensor, "language layer neuron"], weight: float
) -> Float64[Tensor, "layer neuron"]:
    """Entropy of firing, less a reward for firing often somewhere; low is specific.

    With K languages, H LAPE's entropy and p the rates,

        H / log K  -  weight · max p / (h / K),        h = 1 + 1/2 + … + 1/K.

    Zhang et al. (2025), "How does Alignment Enhance LLMs' Multilingual Capabilities? A Language
    Neurons Perspective". The reward stands in the place of LAPE's busy bar: a weight of zero is
    LAPE without it. NaN: the neuron never fires.
    """
    n_languages = len(rate)
    if n_languages < 2:
        raise ValueError("There is one language, and its entropy is zero: give two or more.")
    if not 0 <= weight < math.inf:
        raise ValueError(f"The weight of the reward is {weight}: give zero or more.")
    harmonic = sum(1 / place for place in range(1, n_languages + 1))
    peak = reduce(rate.double(), "language layer neuron -> layer neuron", "max")
    spread = language_entropy(rate) / math.log(n_languages)
    return spread - weight * peak * n_languages / harmonic


def select_by_entropy_less_peak(
    rate: Float[Tensor, "language layer neuron"],
    weight: float,
    fraction: float = 0.01,
    busy_quantile: float = 0.95,
) -> Bool[Tensor, "language layer neuron"]:
    """The fraction of all neurons with the least `entropy_less_peak`, in every language they suit.

    A neuron belongs to the languages in which it is busy (LAPE's `busy_threshold`), which may be
    none: a rare neuron is chosen for its entropy, and belongs nowhere. Neurons that never fire are
    chosen last. Ties at the cut go to the lower layer, then to the lower neuron.
    """
    score = entropy_less_peak(rate, weight)
    score = score.masked_fill(score.isnan(), math.inf)
    n_chosen = round(fraction * score.numel()) if math.isfinite(fraction) else 0
    if not 1 <= n_chosen <= score.numel():
        raise ValueError(
            f"The fraction {fraction} of {score.numel():,} neurons is {n_chosen:,} neurons: give a "
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
    """The weight that Zhang et al. (2025) use: the heaviest that selects no neuron for everybody.

    Halves the interval from zero to `most` until it is narrower than `precision`; `most` itself, if
    even that will do. The number of neurons that are busy in all languages need not grow evenly
    with the weight, so this is one weight at which it leaves zero, as it is with the authors.
    """

    def selects_for_all(weight: float) -> bool:
        mask = select_by_entropy_less_peak(rate, weight, fraction, busy_quantile)
        return bool(reduce(mask, "language layer neuron -> layer neuron", "all").any())

    if selects_for_all(0.0):
        raise ValueError(
            f"Even at weight 0 a fraction of {fraction} holds neurons that are busy in all "
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
    important where the layer's output without it differs most, in Euclidean length. One neuron
    adds its output times its row of W_out, so that length is |output| · |row|: exact for every
    neuron at once, with no further forward pass. Zero: it is silent, or writes nothing.

    Of the MLP alone: a norm behind the MLP (Gemma 2 and 3) changes what reaches the residual
    stream. The authors' code sums |up projection| instead and leaves the row out.
    """
    length = w_out.detach().float().norm(dim=1).to(output.device)
    return output.float().abs() * length


def mean_removal_effect(
    moments: ActivationMoments, model: NeuronModel
) -> Float64[Tensor, "language layer neuron"]:
    """Root of the mean over a language's tokens of `removal_effect` squared.

    Times the root of the number of tokens it is the length of the whole text's change, all tokens
    as one vector: the paper's importance, with the language's text as one document. The paper asks
    that a neuron be important in every document, which sums over the language cannot show.
    """
    n_layers, n_units = moments.sums.shape[2:]
    if (model.n_layers, model.d_mlp) != (n_layers, n_units):
        raise ValueError(
            f"The moments are of {n_layers} layers of {n_units} neurons, and {model.name} has "
            f"{model.n_layers} of {model.d_mlp}: use the model they were collected with."
        )
    length = torch.stack(
        [model.w_out(layer).detach().cpu().double().norm(dim=1) for layer in range(n_layers)]
    )
    tokens = rearrange(moments.tokens, "language -> language 1 1")
    return (moments.sums[3] / tokens).sqrt() * length


def cumulative_mass(
    fired: Int64[Tensor, "language layer neuron"], share: float = 0.95
) -> Bool[Tensor, "language layer neuron"]:
    """Per language and layer, the fewest neurons that make up `share` of all firing.

    Neuron Specialization (Tan et al., 2024): from the neuron that fires most down, until what was
    taken reaches the share. `fired` counts tokens, such as `FiringStats.fired` summed over shards.
    Sets are large, and as many neurons as a layer's firing is spread over: this measures use, not
    specificity. One: all neurons that ever fire. A layer that never fires has none. Ties at the cut
    go to the lower neuron.
    """
    if not 0 < share <= 1:
        raise ValueError(f"The share is {share}: give a number above 0 and up to 1, such as 0.95.")
    if (fired < 0).any():
        raise ValueError("Some neurons fired on fewer than no tokens: give counts.")
    ordered, order = fired.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    total = reduce(fired, "language layer neuron -> language layer 1", "sum")
    needed = before.double() < share * total.double()
    return torch.zeros_like(fired, dtype=torch.bool).scatter_(-1, order, needed)


def _weights(model: NeuronModel, layer: int) -> list[Float[Tensor, "neuron d_model"]]:
    """All weights of a layer's neurons, one row for each neuron."""
    w_gate = model.w_gate(layer)
    incoming = [model.w_in(layer)] + ([] if w_gate is None else [w_gate])
    return [rearrange(each, "d_model neuron -> neuron d_model") for each in incoming] + [
        model.w_out(layer)
    ]

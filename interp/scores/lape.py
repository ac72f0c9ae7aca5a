"""LAPE: entropy of how a neuron's firing divides among languages, and when a neuron counts as busy.

Tang et al. (2024), "Language-Specific Neurons: The Key to Multilingual Capabilities in Large
Language Models". Low entropy alone does not show a language: a neuron that fired once in the whole
corpus has zero entropy. So the authors also require that the neuron be busy in some language, above
`busy_threshold`. Both work in float64, where the authors' code works in float32.
"""

import math

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor


def language_entropy(
    rate: Float[Tensor, "language layer neuron"],
) -> Float[Tensor, "layer neuron"]:
    """Entropy, in nats, of how a neuron's firing divides among languages; float64.

    Zero: it fires for one language alone. `log(n_languages)`: for all equally.
    NaN: it never fires, so there is nothing to divide. (The authors' code calls that zero, and
    relies on the busy threshold to remove it again.) Also NaN: its rates are NaN in all languages,
    as those of a neuron of an expert that saw too few tokens.

    Neurons with equal rates have bitwise equal entropies, whatever their position and the order of
    the languages, so ties stay ties.

    >>> rate = torch.tensor([[[0.2, 0.2, 0.0]], [[0.0, 0.2, 0.0]]])  # two languages, three neurons
    >>> interp.language_entropy(rate)
    tensor([[0.0000, 0.6931,    nan]], dtype=torch.float64)
    """
    _check(rate)
    return torch.stack([_layer_entropy(layer) for layer in rate.unbind(dim=1)])


def busy_threshold(rate: Float[Tensor, "language layer neuron"], quantile: float = 0.95) -> float:
    """The rate that a neuron must exceed to count as busy, over all languages and layers at once.

    With n rates it is the `round(quantile * n)`-th smallest, an order statistic and not an
    interpolated quantile (Tang et al., 2024, use 0.95). The largest rate: no neuron is busy.
    Rates that are NaN do not count.
    """
    _check(rate)
    n_rates = sum(int((~row.isnan()).sum()) for row in rate)
    rank = round(quantile * n_rates) if math.isfinite(quantile) else 0
    if not 1 <= rank <= n_rates:
        raise ValueError(
            f"The quantile {quantile} does not pick any of the {n_rates:,} rates: give a "
            "number between 0 and 1, such as 0.95."
        )
    return _smallest(rate, rank)


_LOWER_BITS = 48
"""Of 64; the others are the exponent and the four leading bits of a rate."""


def _smallest(rate: Float[Tensor, "language layer neuron"], rank: int) -> float:
    """The rate of this rank, from the smallest, without a second tensor of all rates.

    Numbers from zero up are in the order of the integers that their bits make. So counts of the
    upper bits tell those of the rate, and only rates with these upper bits have to be ordered.
    """

    def known(row: Tensor) -> Tensor:
        return row[~row.isnan()].double().cpu() + 0.0  # minus zero has other bits

    def upper(rates: Tensor) -> Tensor:
        return rates.view(torch.int64) >> _LOWER_BITS

    counts = torch.zeros(1 << (63 - _LOWER_BITS), dtype=torch.int64)
    for row in rate:
        counts += upper(known(row)).bincount(minlength=len(counts))
    up_to = counts.cumsum(0)
    bits = int(torch.searchsorted(up_to, rank))
    among = [rates[upper(rates) == bits] for rates in map(known, rate)]
    place = rank - 1 - int(up_to[bits] - counts[bits])
    return np.partition(torch.cat(among).numpy(), place)[place].item()


def _layer_entropy(rate: Float[Tensor, "language neuron"]) -> Float[Tensor, " neuron"]:
    # Sorted and added one by one: the rounding depends neither on the order of the languages nor
    # on how a reduction is split up on the processor.
    ordered = rate.double().sort(dim=0).values
    total = torch.zeros_like(ordered[0])
    for language_rate in ordered:
        total = total + language_rate
    entropy = torch.zeros_like(total)
    for language_rate in ordered:
        share = language_rate / total
        entropy = entropy - torch.xlogy(share, share)
    return entropy


def pool_of(rate: Float[Tensor, "language layer neuron"]) -> Bool[Tensor, "layer neuron"] | None:
    """Neurons that have rates, in a mixture of experts those that saw enough tokens; None: all."""
    pool = reduce(~rate.isnan(), "language layer neuron -> layer neuron", "all")
    return None if pool.all() else pool


def n_seen(rate: Float[Tensor, "language layer neuron"]) -> int:
    """How many neurons have rates."""
    pool = pool_of(rate)
    return rate[0].numel() if pool is None else int(pool.sum())


def _check(rate: Float[Tensor, "language ..."]) -> None:
    seen = torch.zeros_like(rate[0], dtype=torch.bool)
    for row in rate:  # one by one: all together take several times the memory of the rates
        seen |= ~row.isnan()
    wrong = sum(int(((~row.isfinite() | (row < 0)) & seen).sum()) for row in rate)
    if wrong:
        raise ValueError(
            f"{wrong:,} of {rate.numel():,} rates are NaN, infinite or negative: a rate is the "
            "number of tokens on which a neuron fires, divided by the number read, at least one."
        )


def least_entropy(
    rate: Float[Tensor, "language layer neuron"], fraction: float, busy_quantile: float
) -> Bool[Tensor, "language layer neuron"]:
    """True where a neuron belongs to the language; see `select_from_rate`."""
    n_layers, n_neurons = rate.shape[1], n_seen(rate)
    n_chosen = round(fraction * n_neurons) if math.isfinite(fraction) else 0
    if not 1 <= n_chosen <= n_neurons:
        raise ValueError(
            f"The fraction {fraction} of {n_neurons:,} neurons is {n_chosen:,} neurons: "
            "give a share between 0 and 1 that leaves at least one, such as 0.01."
        )
    busy = rate.double() > busy_threshold(rate, busy_quantile)
    candidate = reduce(busy, "language layer neuron -> layer neuron", "any")
    n_candidates = int(candidate.sum())
    if n_candidates < n_chosen:
        raise ValueError(
            f"{n_chosen:,} neurons are requested (a fraction of {fraction}), but only "
            f"{n_candidates:,} of {n_neurons:,} are busy in some language: lower "
            f"fraction or busy_quantile ({busy_quantile})."
        )
    entropy = language_entropy(rate).masked_fill(~candidate, math.inf)
    flat = rearrange(entropy, "layer neuron -> (layer neuron)")
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(stable=True)[:n_chosen]] = True
    chosen = rearrange(chosen, "(layer neuron) -> layer neuron", layer=n_layers)
    return busy & chosen

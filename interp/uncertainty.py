"""How sure a number is: error bars from leaving out one shard of documents at a time.

Tokens of one document go together, so a neuron that fires on a topic fires in bursts. Error bars
that take tokens for independent draws are far too small; shards of random documents are
independent, and the statistic without each of them shows how much it depends on which documents
were read. That needs no further pass over the text.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.special import stdtrit
from torch import Tensor

from interp.stats import FiringStats


@dataclass(frozen=True)
class Estimate:
    """A number, or a tensor of them, with its uncertainty; in the unit of the number."""

    value: Float[Tensor, "*shape"]
    """The statistic over all shards."""

    standard_error: Float[Tensor, "*shape"]
    """Standard deviation of `value` over repetitions with other documents."""

    low: Float[Tensor, "*shape"]
    """Lower end of the interval."""

    high: Float[Tensor, "*shape"]
    """Upper end of the interval."""

    level: float
    """Share of repetitions whose interval holds the truth, such as 0.95; one number at a time."""


def jackknife(
    stats: FiringStats, statistic: Callable[[FiringStats], Tensor], level: float = 0.95
) -> Estimate:
    """The statistic with the standard error of a delete-one-shard jackknife, and a t interval.

    With n shards, s₁ … sₙ the statistic without each of them and s̄ their mean,

        standard error² = (n - 1) / n · Σ (sᵢ - s̄)²,

    and the interval is value ± t · standard error, t from Student's distribution with n - 1
    degrees of freedom. All shards weigh the same, so they should be of about the same size.

    Zero: the shards agree. NaN: the statistic is NaN or infinite on the whole or without some
    shard. Right for smooth statistics (rates, entropies, means, differences); whether a neuron is
    selected is a jump, for which `selection_frequency` is the honest summary.

    Costs one evaluation per shard, and three times the memory of the statistic.
    """
    if not 0 < level < 1:
        raise ValueError(f"The level is {level}: give a share between 0 and 1, such as 0.95.")
    _check_shards(stats)
    value = statistic(stats).double()
    mean, squares = torch.zeros_like(value), torch.zeros_like(value)
    for shard in range(stats.n_shards):
        replicate = statistic(stats.without(shard)).double()
        if replicate.shape != value.shape:
            raise ValueError(
                f"The statistic has shape {tuple(value.shape)} on all shards and "
                f"{tuple(replicate.shape)} without shard {shard}: it must not change its shape."
            )
        # Welford's update: no second look at the replicates, no difference of large sums.
        before = replicate - mean
        mean = mean + before / (shard + 1)
        squares = squares + before * (replicate - mean)
    error = (squares * (stats.n_shards - 1) / stats.n_shards).sqrt()
    error = error.masked_fill(~value.isfinite(), torch.nan)
    reach = float(stdtrit(stats.n_shards - 1, (1 + level) / 2)) * error
    return Estimate(value, error, value - reach, value + reach, level)


def selection_frequency(
    stats: FiringStats, select: Callable[[FiringStats], Bool[Tensor, "language layer neuron"]]
) -> Float[Tensor, "language layer neuron"]:
    """Share of the delete-one-shard replicates in which each neuron is selected.

    One: whichever shard is left out. Zero: never. In between: its place hangs on single shards.
    `select` returns the mask: `lambda stats: select_by_entropy(stats).mask`.

    Replicates share all but one shard, so this is no probability that a run on other text would
    select the neuron; for that see `interp.selection.predicted_agreement`.
    """
    _check_shards(stats)
    chosen = torch.zeros(stats.fired.shape[1:], dtype=torch.int64)
    for shard in range(stats.n_shards):
        chosen += select(stats.without(shard))
    return chosen.double() / stats.n_shards


def _check_shards(stats: FiringStats) -> None:
    if stats.n_shards < 2:
        raise ValueError(
            f"There is {stats.n_shards} shard, and leaving one out needs two or more: collect with "
            "n_shards=20."
        )

"""Estimates with intervals, over shards of documents or over examples.

Tokens of one document are dependent: a neuron that fires on a topic fires in bursts. Error bars
that treat tokens as independent are far too small. Shards of random documents are independent, and
the statistic without each of them shows how much it depends on which documents were read. That
needs no further pass over the text.

Examples can be dependent too: several prompts about one fact, several questions on one text. If
they are, pass `clusters`: one number per example, equal for dependent examples.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from scipy.special import stdtrit
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.results.bars import tqdm
from interp.results.display import Cells, Shown, table_cells

ENTRIES_AT_ONCE = 1 << 22  # limits the memory of resampling
_SHOWN = 12  # numbers of an estimate in a notebook


@dataclass(frozen=True)
class Estimate(Shown):
    """A number, or a tensor of them, with its uncertainty, all in the same unit.

    >>> interp.Estimate(*map(torch.tensor, (0.5, 0.1, 0.3, 0.7)), level=0.95)
    0.5 (0.3 to 0.7 at 95 %)
    """

    value: Float[Tensor, "*shape"]
    """The statistic on all data."""

    standard_error: Float[Tensor, "*shape"]
    """Standard deviation of `value` over repetitions with other documents or examples."""

    low: Float[Tensor, "*shape"]
    """Lower end of the interval."""

    high: Float[Tensor, "*shape"]
    """Upper end of the interval."""

    level: float
    """Share of repetitions whose interval covers the truth, such as 0.95, for each number alone."""

    degrees_of_freedom: float = math.inf
    """Of the t interval, one less than what was resampled; infinite: the interval is another."""

    def __repr__(self) -> str:
        at = f"{100 * self.level:g} %"
        if self.value.numel() == 1:
            low, high = self.low.item(), self.high.item()
            return f"{self.value.item():.4g} ({low:.4g} to {high:.4g} at {at})"
        return f"Estimate of shape {list(self.value.shape)}, with intervals at {at}"

    def _cells(self) -> Cells:
        every = itertools.product(*map(range, self.value.shape))
        indices = list(itertools.islice(every, _SHOWN))
        values: dict[str, list[float]] = {
            name: [getattr(self, end)[index].item() for index in indices]
            for name, end in (("value", "value"), ("value_low", "low"), ("value_high", "high"))
        }
        names = [", ".join(map(str, index)) for index in indices]
        more = f", the first {_SHOWN} of {self.value.numel():,}"
        note = f"{100 * self.level:g} % intervals{more if self.value.numel() > _SHOWN else ''}"
        return table_cells({"index": names, **values}, note, _SHOWN)


def jackknife(
    stats: FiringStats, statistic: Callable[[FiringStats], Tensor], level: float = 0.95
) -> Estimate:
    """The statistic with the standard error of a delete-one-shard jackknife, and a t interval.

    With n shards, s₁ … sₙ the statistic without each of them and s̄ their mean,

        standard error² = (n - 1) / n · Σ (sᵢ - s̄)²,

    and the interval is value ± t · standard error, t from Student's distribution with n - 1
    degrees of freedom. Shards have equal weight, so they should have about the same size.

    Zero: the shards agree. NaN: the statistic is NaN or infinite on all shards or without one of
    them. Valid for smooth statistics (rates, entropies, means, differences). What a selection
    contains is not smooth: use `bootstrap_shards` for its layers and overlaps, and
    `selection_frequency` for its neurons.

    Costs one evaluation per shard, and three times the memory of the statistic.

    >>> interp.jackknife(stats, lambda part: part.rate.mean(dim=(1, 2)))
    Estimate of shape [3], with intervals at 95 %
    """

    def without(shard: int | None) -> Tensor:
        return statistic(stats if shard is None else stats.without(shard))

    return _leave_one_out(without, stats.n_shards, level)


def jackknife_shards(
    sums: Mapping[str, Shaped[Tensor, "shard ..."]],
    statistic: Callable[[dict[str, Tensor]], Tensor],
    level: float = 0.95,
) -> Estimate:
    """`jackknife` for statistics of other sums than firing counts: losses, hits, tokens, moments.

    `sums` holds one sum per shard under each name. The statistic receives the totals, without the
    shard axis: `lambda total: total["loss"] / total["tokens"]`.

    Zero, NaN and cost: as in `jackknife`.

    >>> sums = {"nats": torch.tensor([30.0, 32.0, 31.0]), "tokens": torch.tensor([10, 10, 10])}
    >>> interp.inference.jackknife_shards(sums, lambda total: total["nats"] / total["tokens"])
    3.1 (2.852 to 3.348 at 95 %)
    """
    sizes = {name: len(shards) for name, shards in sums.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"The numbers of shards are {sizes}: give one sum or more, all with the same shards."
        )

    def without(shard: int | None) -> Tensor:
        if shard is None:
            return statistic({name: shards.sum(dim=0) for name, shards in sums.items()})
        # Not the total minus the shard: rounding would leave a trace of a large shard.
        parts = {name: (shards[:shard], shards[shard + 1 :]) for name, shards in sums.items()}
        return statistic({name: a.sum(dim=0) + b.sum(dim=0) for name, (a, b) in parts.items()})

    return _leave_one_out(without, next(iter(sizes.values())), level)


def bootstrap_shards(
    stats: FiringStats,
    statistic: Callable[[FiringStats], Tensor],
    generator: torch.Generator,
    n_resamples: int = 100,
    level: float = 0.95,
) -> Estimate:
    """The statistic with its standard deviation over resampled shards, and a t interval.

    As many shards are drawn with replacement as there are, `n_resamples` times. With n shards, the
    standard error is the standard deviation of the resampled statistic times √(n / (n - 1)), and t
    is from Student's distribution with n - 1 degrees of freedom. Valid for statistics of a
    selection, such as the share of its neurons in some layers or the overlap of two languages, on
    which the error of a jackknife is twice too large. The interval is about other text of the same
    length: with more text, other neurons would be selected.

    Zero: all resamples agree. NaN: the statistic is NaN on some resample. Holds the counts of all
    shards in memory.

    >>> share = lambda part: interp.select_by_entropy(part).mask[:, -1].double().mean()
    >>> interp.inference.bootstrap_shards(stats, share, torch.Generator(), 20).level
    0.95
    """
    check_level(level)
    _check_shards(stats.n_shards)
    if n_resamples < 2:
        raise ValueError(f"{n_resamples} resamples have no spread: draw a hundred or more.")
    held, n = stats.in_memory(), stats.n_shards
    resampled = []
    for _ in range(n_resamples):
        rows = torch.randint(n, (n,), generator=generator)
        resampled.append(statistic(held.shards(rows.tolist())).double())
    error = torch.stack(resampled).std(dim=0) * math.sqrt(n / (n - 1))
    return t_interval(statistic(stats).double(), error, n - 1, level)


def selection_frequency(
    stats: FiringStats,
    select: Callable[[FiringStats], Bool[Tensor, "language layer neuron"]],
    progress: bool = True,
) -> Float[Tensor, "language layer neuron"]:
    """Share of the delete-one-shard replicates in which each neuron is selected.

    One: selected whichever shard is left out. Zero: never selected. In between: it depends on
    single shards. `select` returns the mask: `lambda stats: select_by_entropy(stats).mask`.

    Replicates share most of their shards, so this is not the probability that a run on other text
    selects the neuron; for that see `interp.selections.agreement.predicted_agreement`.

    >>> select = lambda part: interp.select_by_entropy(part).mask
    >>> frequency = interp.inference.selection_frequency(stats, select)
    >>> frequency.shape, frequency.max().item()
    (torch.Size([3, 6, 2048]), 1.0)
    """
    _check_shards(stats.n_shards)
    shape = (len(stats.languages), stats.n_layers, stats.d_mlp)
    chosen = torch.zeros(shape, dtype=torch.int32)
    shards = tqdm(range(stats.n_shards), "leaving shards out", disable=not progress)
    for shard in shards:
        chosen += select(stats.without(shard))
    return chosen.double().div_(stats.n_shards)


def mean_over_examples(
    values: Float[Tensor, " example *shape"],
    clusters: Int64[Tensor, " example"] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Mean over the first axis with its standard error over clusters of examples, and a t interval.

    With n examples x₁ … xₙ in C clusters and x̄ their mean,

        standard error² = C / (C - 1) · Σ over clusters (Σ in the cluster (xᵢ - x̄))² / n²,

    and t is from Student's distribution with C - 1 degrees of freedom. Without `clusters` each
    example is its own cluster, and the standard error is the standard deviation over √n.

    Zero: all examples, or all cluster sums, are equal. NaN: some value is NaN.

    >>> interp.inference.mean_over_examples(torch.tensor([1.0, 2.0, 3.0]))
    2 (-0.4841 to 4.484 at 95 %)
    """
    check_level(level)
    number, n_clusters = cluster_numbers(len(values), clusters)
    values = values.double()
    mean = values.mean(dim=0)
    sums = torch.zeros(n_clusters, *mean.shape, dtype=values.dtype, device=values.device)
    sums.index_add_(0, number.to(values.device), values - mean)
    error = (sums.square().sum(dim=0) * n_clusters / (n_clusters - 1)).sqrt() / len(values)
    return t_interval(mean, error, n_clusters - 1, level)


def wilson(share: float, n: int | float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) interval for a share of `n` independent trials.

    Valid for few trials and for shares of zero and one. For dependent trials, give their effective
    number as `n`. Without a trial: zero to one.
    """
    check_level(level)
    if not n:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle, spread = share + z * z / (2 * n), share * (1 - share) / n + z * z / (4 * n * n)
    low, high = ((middle + sign * z * math.sqrt(spread)) / (1 + z * z / n) for sign in (-1, 1))
    # At a share of zero or one these bounds equal the share, up to rounding.
    return max(0.0, min(share, low)), min(1.0, max(share, high))


def clustered_share(
    hits: Sequence[int], trials: Sequence[int], level: float = 0.95
) -> tuple[float, float, float]:
    """Pooled share of hits with Wilson's interval; each pair is a cluster, such as one language.

    Neurons of one language share its vocabulary and succeed or fail together. So the number of
    trials is divided by the design effect, at least one: the variance of the share between clusters
    over that of independent trials. NaN: no trials. Shares of zero and one have intervals too; if
    all clusters agree, these are those of independent trials.
    """
    total = sum(trials)
    if total == 0:
        return math.nan, math.nan, math.nan
    share, n = sum(hits) / total, float(total)
    if 0 < share < 1 and len(hits) > 1:
        squares = sum((hit - share * size) ** 2 for hit, size in zip(hits, trials, strict=True))
        between = squares / total**2 * len(hits) / (len(hits) - 1)
        n /= max(1.0, between / (share * (1 - share) / total))
    return share, *wilson(share, n, level)


def paired_bootstrap(
    a: Float[Tensor, " example"],
    b: Float[Tensor, " example"],
    generator: torch.Generator,
    clusters: Int64[Tensor, " example"] | None = None,
    n_resamples: int = 10_000,
    level: float = 0.95,
) -> Estimate:
    """Mean of a - b over paired examples, with a percentile bootstrap interval.

    Clusters of examples are resampled with replacement `n_resamples` times; the standard error and
    the interval are the standard deviation and the quantiles of the resampled mean difference.
    Valid for scores of any distribution, such as correct or not; with fewer than about 20 clusters
    the interval is too narrow.

    Zero: the difference is the same in every example. If the scores are zeros and ones, the
    interval then is that of no event in as many trials as there are clusters.
    """
    check_level(level)
    difference = paired_difference(a, b)
    number, n_clusters = cluster_numbers(len(difference), clusters)
    sums = torch.zeros(n_clusters, dtype=torch.float64).index_add_(0, number, difference)
    sizes = number.bincount().double()
    if n_resamples < 2:
        raise ValueError(f"{n_resamples} resamples have no spread: draw a thousand or more.")
    means = []
    for n_rows in row_chunks(n_resamples, n_clusters):
        drawn = torch.randint(n_clusters, (n_rows, n_clusters), generator=generator)
        means.append(sums[drawn].sum(dim=1) / sizes[drawn].sum(dim=1))
    means = torch.cat(means)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]).double())
    resampled = Estimate(difference.mean(), means.std(), low, high, level)
    return or_no_event(resampled, a, b, n_clusters)


def or_no_event(estimate: Estimate, a: Tensor, b: Tensor, n: int) -> Estimate:
    """The estimate of a mean of a - b, or, if it has no width although a and b are zeros and ones,
    one with Wilson's interval of no event in `n` trials."""
    binary = all(((x == 0) | (x == 1)).all() for x in (a, b))
    if estimate.low < estimate.high or not binary:
        return estimate
    reach = wilson(0.0, n, estimate.level)[1]
    low, high = ((estimate.value + sign * reach).clamp(-1, 1) for sign in (-1, 1))
    return Estimate(estimate.value, estimate.standard_error, low, high, estimate.level)


def _leave_one_out(
    statistic: Callable[[int | None], Tensor], n_shards: int, level: float
) -> Estimate:
    """Delete-one-shard jackknife; `statistic(None)` uses all shards."""
    check_level(level)
    _check_shards(n_shards)
    value = statistic(None).double()
    mean, squares = torch.zeros_like(value), torch.zeros_like(value)
    for shard in tqdm(range(n_shards), "leaving shards out"):
        replicate = statistic(shard).double()
        if replicate.shape != value.shape:
            raise ValueError(
                f"The statistic has shape {tuple(value.shape)} on all shards and "
                f"{tuple(replicate.shape)} without shard {shard}: its shape must not change."
            )
        # Welford's update: no second pass over the replicates, no difference of large sums.
        deviation = replicate - mean
        mean = mean + deviation / (shard + 1)
        squares = squares + deviation * (replicate - mean)
    error = (squares * (n_shards - 1) / n_shards).sqrt()
    error = error.masked_fill(~value.isfinite(), torch.nan)
    return t_interval(value, error, n_shards - 1, level)


def t_interval(value: Tensor, error: Tensor, degrees_of_freedom: int, level: float) -> Estimate:
    """The value with this standard error and a t interval."""
    half_width = float(stdtrit(degrees_of_freedom, (1 + level) / 2)) * error
    ends = (value - half_width, value + half_width)
    return Estimate(value, error, *ends, level, float(degrees_of_freedom))


def paired_difference(a: Tensor, b: Tensor) -> Float64[Tensor, " example"]:
    if a.shape != b.shape:
        raise ValueError(
            f"a has {len(a)} scores and b has {len(b)}: a paired comparison needs both scores of "
            "every example, in the same order."
        )
    difference = a.double().cpu() - b.double().cpu()
    if not len(difference):
        raise ValueError("There are no examples: give both scores of at least one.")
    n_bad = int((~difference.isfinite()).sum())
    if n_bad:
        raise ValueError(
            f"{n_bad} of {len(difference)} differences are NaN or infinite: leave those examples "
            "out, and report it."
        )
    return difference


def cluster_numbers(
    n_examples: int, clusters: Tensor | None
) -> tuple[Int64[Tensor, " example"], int]:
    """Cluster index of each example, and the number of clusters."""
    if clusters is None:
        number, n_clusters = torch.arange(n_examples), n_examples
    elif len(clusters) != n_examples:
        raise ValueError(
            f"There are {n_examples} examples and clusters for {len(clusters)}: give the cluster "
            "of each example."
        )
    else:
        names, number = clusters.cpu().unique(return_inverse=True)
        n_clusters = len(names)
    if n_clusters < 2:
        raise ValueError(
            f"{n_examples} examples in {n_clusters} clusters have no spread: an interval needs two "
            "clusters or more."
        )
    return number, n_clusters


def row_chunks(n_rows: int, n_columns: int) -> list[int]:
    """Chunk sizes that add up to `n_rows`, with at most `ENTRIES_AT_ONCE` entries in a chunk."""
    largest = max(1, ENTRIES_AT_ONCE // n_columns)
    return [min(largest, n_rows - start) for start in range(0, n_rows, largest)]


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"The level is {level}: give a share between 0 and 1, such as 0.95.")


def _check_shards(n_shards: int) -> None:
    if n_shards < 2:
        raise ValueError(
            f"There is {n_shards} shard, and leaving one out needs two or more: collect 20 "
            "shards (`interp collect --n-shards 20`), in Python with n_shards=20."
        )

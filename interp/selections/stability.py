"""How far a selection depends on the text, the settings and the languages.

One measure throughout: the Jaccard of two selections, language by language, with its value by
chance and its maximum for sets of those sizes. For the expected agreement with another run on as
much other text see `interp.selections.predicted_agreement`; for the neurons that come and go with
single shards see `interp.inference.selection_frequency`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float64
from scipy.special import stdtrit
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.inference.intervals import Estimate, jackknife
from interp.results.display import Shown, listed
from interp.results.frames import tidy
from interp.selections.agreement import half_selections, jaccard_between
from interp.selections.chance import jaccard_by_chance
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_by_entropy

Select = Callable[[FiringStats], NeuronSelection]


@dataclass(frozen=True, kw_only=True)
class Stability(Shown):
    """Agreement of a selection with others that could have been made instead.

    >>> stability = interp.selections.measure_stability(stats, interp.select_by_entropy, generator)
    >>> stability.changes
    ('half of the text', 'one shard left out', 'without en', 'without de', 'without zh')
    >>> list(stability.to_frame())
    ['change', 'language', 'jaccard', 'low', 'high', 'chance', 'most']
    """

    changes: tuple[str, ...]
    """What each other selection changes, one row of the result each."""

    jaccard: Float64[Tensor, "change language"]
    """Neurons in both selections divided by those in either. NaN: both are empty, or the change
    leaves out the language."""

    low: Float64[Tensor, "change language"]
    """Lower end of the interval of the Jaccard; see the function that made it."""

    high: Float64[Tensor, "change language"]
    """Upper end of the interval."""

    chance: Float64[Tensor, "change language"]
    """Mean Jaccard of random sets of the same size per layer; see `chance_jaccard`."""

    most: Float64[Tensor, "change language"]
    """The maximum Jaccard for sets of these sizes: the smaller set divided by the larger."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    level: float
    """Level of the interval, such as 0.95."""

    def __repr__(self) -> str:
        rows = zip(self.changes, self.jaccard.nanmean(1), self.chance.nanmean(1), strict=True)
        lines = listed((f"{name} {mean:.2f} ({chance:.2f})" for name, mean, chance in rows), 6)
        return f"Stability({listed(self.languages)}; mean Jaccard (by chance): {lines})"

    def to_frame(self) -> pd.DataFrame:
        """One row per change and language."""
        names = ("jaccard", "low", "high", "chance", "most")
        axes = {"change": self.changes, "language": self.languages}
        return tidy(axes, {name: getattr(self, name) for name in names})


def measure_stability(
    stats: FiringStats,
    select: Select,
    generator: torch.Generator,
    changes: Mapping[str, Select] | None = None,
    splits: int = 8,
    level: float = 0.95,
) -> Stability:
    """Agreement on half of the text, with one shard left out, and under each of the changes.

    `changes` are other ways to select, such as `entropy_settings()`; by default each language is
    left out once (`without_languages`). Costs 1 + n_changes selections per shard, and two per
    split.

    >>> settings = interp.selections.entropy_settings(fractions=(0.02, 0.05), busy_quantiles=())
    >>> stability = interp.selections.measure_stability(
    ...     stats, interp.select_by_entropy, generator, changes=settings
    ... )
    >>> stability.changes
    ('half of the text', 'one shard left out', 'fraction 0.02', 'fraction 0.05')
    """
    others = without_languages(select, stats.languages) if changes is None else changes
    parts = [
        across_halves(stats, select, generator, splits, level),
        across_shards(stats, select, level),
        *([across_changes(stats, select, others, level)] if others else []),
    ]
    return stacked(parts)


def stacked(parts: Sequence[Stability]) -> Stability:
    """The rows of several results for one selection, in one result."""
    first = parts[0]
    if any((part.languages, part.level) != (first.languages, first.level) for part in parts):
        raise ValueError("Results with different languages or levels cannot be combined.")
    names = ("jaccard", "low", "high", "chance", "most")
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    changes = tuple(change for part in parts for change in part.changes)
    return Stability(changes=changes, languages=first.languages, level=first.level, **tensors)


def across_halves(
    stats: FiringStats,
    select: Select,
    generator: torch.Generator,
    splits: int = 8,
    level: float = 0.95,
) -> Stability:
    """Agreement of two random halves of the shards: mean and quantiles over splits.

    The quantiles show the spread over splits. They are not a confidence interval of the mean,
    because all splits share one text. Two halves agree less than two whole runs would.
    """
    pairs = list(half_selections(stats, select, generator, splits))
    return _over_pairs("half of the text", pairs, level)


def across_shards(stats: FiringStats, select: Select, level: float = 0.95) -> Stability:
    """Agreement with the selection without one shard: mean and quantiles over shards.

    However close to one, this is not the agreement of two runs: all but one shard are the same.
    """
    whole = select(stats)
    pairs = [(whole, select(stats.without(shard))) for shard in range(stats.n_shards)]
    return _over_pairs("one shard left out", pairs, level)


def across_changes(
    stats: FiringStats, select: Select, changes: Mapping[str, Select], level: float = 0.95
) -> Stability:
    """Agreement with other ways to select from the same text, with `jackknife` intervals.

    NaN where a change leaves out the language. Intervals are clipped to zero and one.
    """
    if not changes:
        raise ValueError("There are no changes to compare: give some, such as entropy_settings().")

    def agreement(part: FiringStats) -> Float64[Tensor, "change language"]:
        selection, others = select(part), [change(part) for change in changes.values()]
        return torch.stack([_on_common(selection, other, jaccard_between) for other in others])

    jaccard = jackknife(stats, agreement, level)
    selection, others = select(stats), [change(stats) for change in changes.values()]
    return Stability(
        changes=tuple(changes),
        jaccard=jaccard.value,
        low=jaccard.low.clamp(0, 1),
        high=jaccard.high.clamp(0, 1),
        chance=torch.stack([_on_common(selection, other, _mean_by_chance) for other in others]),
        most=torch.stack([_on_common(selection, other, _most) for other in others]),
        languages=selection.languages,
        level=level,
    )


def across_runs(
    stats: FiringStats,
    others: Mapping[str, FiringStats],
    select: Select,
    level: float = 0.95,
) -> Stability:
    """Agreement with selections from other runs of the model: another corpus, another seed.

    Both select from the languages that both runs have, so only the text differs; other languages
    are NaN. The jackknife leaves out one shard of either run: the squared errors of the two texts
    add up, and t has the degrees of freedom of the run with fewer shards.

    >>> one, other = stats.shards([0, 1]), stats.shards([2, 3, 4])
    >>> runs = {"other text": other}
    >>> stability = interp.selections.across_runs(one, runs, interp.select_by_entropy)
    >>> stability.changes, stability.jaccard.shape
    (('other text',), torch.Size([1, 3]))
    """
    if not others:
        raise ValueError("There are no other runs to compare with: give one or more.")
    return stacked([_with_run(stats, name, run, select, level) for name, run in others.items()])


def _with_run(
    stats: FiringStats, name: str, other: FiringStats, select: Select, level: float
) -> Stability:
    """One row of `across_runs`."""
    common = tuple(code for code in stats.languages if code in other.languages)
    if len(common) < 2:
        raise ValueError(
            f"{name} has {', '.join(other.languages)}, and this run {', '.join(stats.languages)}: "
            "to select neurons, both runs must share at least two languages."
        )
    a, b = (_only(run, common) for run in (stats, other))
    in_a, in_b = select(a), select(b)
    errors = [
        jackknife(a, lambda part: jaccard_between(select(part), in_b), level).standard_error,
        jackknife(b, lambda part: jaccard_between(in_a, select(part)), level).standard_error,
    ]
    freedom = min(a.n_shards, b.n_shards) - 1
    reach = torch.hypot(*errors) * float(stdtrit(freedom, (1 + level) / 2))
    jaccard = jaccard_between(in_a, in_b).double()
    on_common = {
        "jaccard": jaccard,
        "low": (jaccard - reach).clamp(0, 1),
        "high": (jaccard + reach).clamp(0, 1),
        "chance": _mean_by_chance(in_a, in_b),
        "most": _most(in_a, in_b),
    }
    rows = [stats.languages.index(code) for code in common]
    on_all = {key: torch.full((1, len(stats.languages)), math.nan).double() for key in on_common}
    for key, values in on_common.items():
        on_all[key][0, rows] = values
    return Stability(changes=(name,), languages=stats.languages, level=level, **on_all)


def entropy_settings(
    fraction: float = 0.01,
    busy_quantile: float = 0.95,
    fractions: Sequence[float] = (0.005, 0.01, 0.02, 0.05),
    busy_quantiles: Sequence[float] = (0.9, 0.95, 0.98, 0.99),
) -> dict[str, Select]:
    """Selections by entropy, with one of the two settings changed at a time.

    >>> fractions, quantiles = (0.01, 0.02), (0.9, 0.95)
    >>> settings = interp.selections.entropy_settings(fractions=fractions, busy_quantiles=quantiles)
    >>> list(settings)
    ['fraction 0.02', 'busy quantile 0.9']
    >>> int(settings["fraction 0.02"](stats).union().sum())
    246
    """
    by_fraction = {
        f"fraction {value:g}": partial(
            select_by_entropy, fraction=value, busy_quantile=busy_quantile
        )
        for value in fractions
        if value != fraction
    }
    by_quantile = {
        f"busy quantile {value:g}": partial(
            select_by_entropy, fraction=fraction, busy_quantile=value
        )
        for value in busy_quantiles
        if value != busy_quantile
    }
    return by_fraction | by_quantile


def without_languages(
    select: Select, languages: Sequence[str], left_out: Sequence[Sequence[str]] | None = None
) -> dict[str, Select]:
    """The same way to select, from fewer languages: each left out once, or groups of them.

    Conversely, a row shows what adding those languages changes for the others. At least two must
    remain: an entropy over one language is zero for every neuron.

    >>> changes = interp.selections.without_languages(interp.select_by_entropy, stats.languages)
    >>> list(changes)
    ['without en', 'without de', 'without zh']
    >>> changes["without de"](stats).languages
    ('en', 'zh')
    """
    groups = [(code,) for code in languages] if left_out is None else left_out
    changes: dict[str, Select] = {}
    for group in groups:
        if unknown := [code for code in group if code not in languages]:
            raise ValueError(
                f"{', '.join(unknown)} cannot be left out: give some of {', '.join(languages)}."
            )
        remaining = tuple(code for code in languages if code not in group)
        if len(remaining) < 2:
            raise ValueError(
                f"Without {', '.join(group)}, {len(remaining)} of {', '.join(languages)} remain: "
                "keep two or more."
            )
        changes[f"without {', '.join(group)}"] = partial(_of_languages, select, remaining)
    return changes


def chance_jaccard(a: NeuronSelection, b: NeuronSelection, level: float = 0.95) -> Estimate:
    """The Jaccard of two random selections with as many neurons per language, layer and site.

    Exact; see `jaccard_by_chance`. `value` is the mean, `standard_error` the standard deviation;
    with probability `level` two such selections have a Jaccard from `low` to `high`, both included.
    NaN: both are empty.

    >>> two_of_four = torch.tensor([[[True, True, False, False]]])
    >>> one = interp.NeuronSelection(two_of_four, ("en",))
    >>> interp.selections.chance_jaccard(one, one).value
    tensor([0.3889], dtype=torch.float64)
    """
    _ = a & b  # raises for selections with different axes
    return jaccard_by_chance(a.mask, b.mask, [width for _, width in a.sites], level)


def _over_pairs(
    change: str, pairs: Sequence[tuple[NeuronSelection, NeuronSelection]], level: float
) -> Stability:
    """One row: mean and quantiles over pairs of selections of the same kind."""
    if not pairs:
        raise ValueError("There are no selections to compare: give splits of one or more.")
    jaccard = torch.stack([jaccard_between(a, b) for a, b in pairs])
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = jaccard.nanquantile(ends, dim=0)
    return Stability(
        changes=(change,),
        jaccard=jaccard.nanmean(dim=0, keepdim=True),
        low=rearrange(low, "language -> 1 language"),
        high=rearrange(high, "language -> 1 language"),
        chance=torch.stack([_mean_by_chance(a, b) for a, b in pairs]).nanmean(0, keepdim=True),
        most=torch.stack([_most(a, b) for a, b in pairs]).nanmean(0, keepdim=True),
        languages=pairs[0][0].languages,
        level=level,
    )


def _mean_by_chance(a: NeuronSelection, b: NeuronSelection) -> Float64[Tensor, " language"]:
    return chance_jaccard(a, b).value.double()


def _most(a: NeuronSelection, b: NeuronSelection) -> Float64[Tensor, " language"]:
    sizes = torch.tensor([list(selection.counts().values()) for selection in (a, b)]).double()
    return sizes.amin(dim=0) / sizes.amax(dim=0)


def _on_common(
    selection: NeuronSelection,
    other: NeuronSelection,
    measure: Callable[[NeuronSelection, NeuronSelection], Tensor],
) -> Float64[Tensor, " language"]:
    """The measure on the languages of both; NaN on those that the other does not have."""
    common = [code for code in selection.languages if code in other.languages]
    values = torch.full((len(selection.languages),), math.nan, dtype=torch.float64)
    rows = [selection.languages.index(code) for code in common]
    values[rows] = measure(selection.languages_only(common), other.languages_only(common)).double()
    return values


def _of_languages(
    select: Select, languages: tuple[str, ...], stats: FiringStats
) -> NeuronSelection:
    """The selection from these languages alone."""
    return select(_only(stats, languages))


def _only(stats: FiringStats, languages: tuple[str, ...]) -> FiringStats:
    """The counts of some languages."""
    return stats if languages == stats.languages else stats.languages_only(languages)

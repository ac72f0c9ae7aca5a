"""How far a selection hangs on what was chosen: the text, the settings, the languages.

One measure throughout: the Jaccard of two selections, language by language, beside what chance
gives to sets of those sizes and the most that those sizes allow. What another run on as much other
text would share is `interp.selections.predicted_agreement`; which neurons come and go with single
shards is `interp.inference.selection_frequency`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float64
from scipy.special import stdtrit
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.inference.intervals import Estimate, jackknife
from interp.results.display import listed
from interp.results.frames import tidy
from interp.selections.agreement import half_selections
from interp.selections.neuron_selection import NeuronSelection, jaccard_between
from interp.selections.select import select_by_entropy

Select = Callable[[FiringStats], NeuronSelection]

_NEGLIGIBLE = 1e-16
"""Probabilities below this are left out of a distribution."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """A selection beside others that could have been made in its place.

    >>> found = interp.selections.measure_stability(stats, interp.select_by_entropy, generator)
    >>> found.changes
    ('half of the text', 'one shard left out', 'without en', 'without de', 'without zh')
    >>> list(found.to_frame())
    ['change', 'language', 'jaccard', 'low', 'high', 'chance', 'most']
    """

    changes: tuple[str, ...]
    """What is different, one line of the result each."""

    jaccard: Float64[Tensor, "change language"]
    """Neurons in both selections divided by those in either. NaN: neither has any, or the change
    leaves the language out."""

    low: Float64[Tensor, "change language"]
    """Lower end of the interval of the Jaccard; see the function that made it."""

    high: Float64[Tensor, "change language"]
    """Upper end of the interval."""

    chance: Float64[Tensor, "change language"]
    """Mean Jaccard of random sets, as many neurons per layer; see `chance_jaccard`."""

    most: Float64[Tensor, "change language"]
    """The smaller of the two sets divided by the larger: no Jaccard of such sizes is above it."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    level: float
    """Of the interval, such as 0.95."""

    def __repr__(self) -> str:
        rows = zip(self.changes, self.jaccard.nanmean(1), self.chance.nanmean(1), strict=True)
        lines = listed((f"{name} {found:.2f} ({chance:.2f})" for name, found, chance in rows), 6)
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
    """Half of the text, one shard less, and each of the changes, one below the other.

    `changes` are other ways to select, such as `entropy_settings()`; without any, each language is
    left out (`without_languages`). Costs 1 + n_changes selections per shard, and two per split.

    >>> ways = interp.selections.entropy_settings(fractions=(0.02, 0.05), busy_quantiles=())
    >>> found = interp.selections.measure_stability(
    ...     stats, interp.select_by_entropy, generator, changes=ways
    ... )
    >>> found.changes
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
    """Several results, of one selection and level, one below the other."""
    first = parts[0]
    if any((each.languages, each.level) != (first.languages, first.level) for each in parts):
        raise ValueError("Results of other languages or of another level cannot be put together.")
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
    """Selections from two random halves of the shards: mean over splits, and their quantiles.

    The quantiles say how much the halves differ by, and are no interval of the mean: the splits
    are of one text. Two halves agree less than two whole runs would.
    """
    pairs = list(half_selections(stats, select, generator, splits))
    return _over_pairs("half of the text", pairs, level)


def across_shards(stats: FiringStats, select: Select, level: float = 0.95) -> Stability:
    """The selection and those without one shard each: mean over shards, and their quantiles.

    As near to one as it may be, this is no agreement of two runs: all but one shard are the same.
    """
    whole = select(stats)
    pairs = [(whole, select(stats.without(shard))) for shard in range(stats.n_shards)]
    return _over_pairs("one shard left out", pairs, level)


def across_changes(
    stats: FiringStats, select: Select, changes: Mapping[str, Select], level: float = 0.95
) -> Stability:
    """The selection beside other ways to select from the same text, with `jackknife` intervals.

    Languages that a change leaves out are NaN. Intervals end at zero and one.
    """
    if not changes:
        raise ValueError(
            "There is no change to compare with: give one, such as entropy_settings()."
        )

    def agreement(part: FiringStats) -> Float64[Tensor, "change language"]:
        mine = select(part)
        found = [_on_common(mine, change(part), jaccard_between) for change in changes.values()]
        return torch.stack(found)

    jaccard = jackknife(stats, agreement, level)
    mine, others = select(stats), [change(stats) for change in changes.values()]
    return Stability(
        changes=tuple(changes),
        jaccard=jaccard.value,
        low=jaccard.low.clamp(0, 1),
        high=jaccard.high.clamp(0, 1),
        chance=torch.stack([_on_common(mine, other, _mean_by_chance) for other in others]),
        most=torch.stack([_on_common(mine, other, _most) for other in others]),
        languages=mine.languages,
        level=level,
    )


def across_runs(
    stats: FiringStats,
    others: Mapping[str, FiringStats],
    select: Select,
    level: float = 0.95,
) -> Stability:
    """The selection beside those from other runs of the model: another corpus, another seed.

    Both select from the languages that both have, so that nothing differs but the text; the
    others are NaN. The jackknife leaves out a shard of either run: errors of two texts add up as
    squares, and t has the degrees of freedom of the run with fewer shards.

    >>> one, other = stats.shards([0, 1]), stats.shards([2, 3, 4])
    >>> found = interp.selections.across_runs(one, {"other text": other}, interp.select_by_entropy)
    >>> found.changes, found.jaccard.shape
    (('other text',), torch.Size([1, 3]))
    """
    if not others:
        raise ValueError("There is no other run to compare with: give one.")
    return stacked([_beside(stats, name, other, select, level) for name, other in others.items()])


def _beside(
    stats: FiringStats, name: str, other: FiringStats, select: Select, level: float
) -> Stability:
    """One line of `across_runs`."""
    common = tuple(code for code in stats.languages if code in other.languages)
    if len(common) < 2:
        raise ValueError(
            f"{name} has {', '.join(other.languages)}, and this run {', '.join(stats.languages)}: "
            "to select anything, two languages must be in both."
        )
    mine, theirs = (_only(each, common) for each in (stats, other))
    one, two = select(mine), select(theirs)
    errors = [
        jackknife(mine, lambda part: jaccard_between(select(part), two), level).standard_error,
        jackknife(theirs, lambda part: jaccard_between(one, select(part)), level).standard_error,
    ]
    freedom = min(mine.n_shards, theirs.n_shards) - 1
    reach = torch.hypot(*errors) * float(stdtrit(freedom, (1 + level) / 2))
    jaccard = jaccard_between(one, two).double()
    found = {
        "jaccard": jaccard,
        "low": (jaccard - reach).clamp(0, 1),
        "high": (jaccard + reach).clamp(0, 1),
        "chance": _mean_by_chance(one, two),
        "most": _most(one, two),
    }
    rows = [stats.languages.index(code) for code in common]
    every = {key: torch.full((1, len(stats.languages)), math.nan).double() for key in found}
    for key, values in found.items():
        every[key][0, rows] = values
    return Stability(changes=(name,), languages=stats.languages, level=level, **every)


def entropy_settings(
    fraction: float = 0.01,
    busy_quantile: float = 0.95,
    fractions: Sequence[float] = (0.005, 0.01, 0.02, 0.05),
    busy_quantiles: Sequence[float] = (0.9, 0.95, 0.98, 0.99),
) -> dict[str, Select]:
    """Selections by entropy with one of the two settings changed and the other as it is.

    >>> fractions, quantiles = (0.01, 0.02), (0.9, 0.95)
    >>> ways = interp.selections.entropy_settings(fractions=fractions, busy_quantiles=quantiles)
    >>> list(ways)
    ['fraction 0.02', 'busy quantile 0.9']
    >>> int(ways["fraction 0.02"](stats).union().sum())
    246
    """
    settings = {
        f"fraction {each:g}": (each, busy_quantile) for each in fractions if each != fraction
    } | {
        f"busy quantile {each:g}": (fraction, each)
        for each in busy_quantiles
        if each != busy_quantile
    }
    return {
        name: partial(select_by_entropy, fraction=share, busy_quantile=quantile)
        for name, (share, quantile) in settings.items()
    }


def without_languages(
    select: Select, languages: Sequence[str], left_out: Sequence[Sequence[str]] | None = None
) -> dict[str, Select]:
    """The same way to select, from fewer languages: each left out once, or groups of them.

    Read the other way, a line says what changes for the others once those languages are added.
    Two must stay: an entropy over one language is zero for every neuron.

    >>> ways = interp.selections.without_languages(interp.select_by_entropy, stats.languages)
    >>> list(ways)
    ['without en', 'without de', 'without zh']
    >>> ways["without de"](stats).languages
    ('en', 'zh')
    """
    groups = [(code,) for code in languages] if left_out is None else left_out
    found: dict[str, Select] = {}
    for group in groups:
        if unknown := [code for code in group if code not in languages]:
            raise ValueError(f"{', '.join(unknown)}: not among {', '.join(languages)}.")
        stay = tuple(code for code in languages if code not in group)
        if len(stay) < 2:
            raise ValueError(
                f"Without {', '.join(group)} there are {len(stay)} of {', '.join(languages)} left: "
                "leave two or more."
            )
        found[f"without {', '.join(group)}"] = partial(_of_languages, select, stay)
    return found


def chance_jaccard(a: NeuronSelection, b: NeuronSelection, level: float = 0.95) -> Estimate:
    """The Jaccard of two random selections with as many neurons per language, layer and site.

    Exact: within a layer the number in common is hypergeometric, and layers add up. `value` is the
    mean, `standard_error` the standard deviation; with the probability `level` two such selections
    have a Jaccard between `low` and `high`, both included. NaN: neither has a neuron.

    >>> two_of_four = torch.tensor([[[True, True, False, False]]])
    >>> one = interp.NeuronSelection(two_of_four, ("en",))
    >>> interp.selections.chance_jaccard(one, one).value
    tensor([0.3889], dtype=torch.float64)
    """
    if not 0 < level < 1:
        raise ValueError(f"The level is {level}: give a share between 0 and 1, such as 0.95.")
    _ = a & b  # refuses selections that do not go together
    sizes = [[_sizes(each, row) for row in range(len(a.languages))] for each in (a, b)]
    widths = [width for _ in range(a.n_layers) for _, width in a.sites]
    found = [
        _chance(np.array(mine), np.array(other), widths, level)
        for mine, other in zip(*sizes, strict=True)
    ]
    value, error, low, high = torch.tensor(found, dtype=torch.float64).unbind(dim=1)
    return Estimate(value, error, low, high, level)


def _sizes(selection: NeuronSelection, row: int) -> list[int]:
    """Neurons of one language in every layer, and there at every site."""
    widths = [width for _, width in selection.sites]
    return [int(part.sum()) for layer in selection.mask[row] for part in layer.split(widths)]


def _chance(
    mine: np.ndarray, other: np.ndarray, widths: list[int], level: float
) -> tuple[float, float, float, float]:
    """Mean, standard deviation and both ends of the interval, of one language."""
    from scipy.stats import hypergeom  # takes a second to load

    total = int(mine.sum() + other.sum())
    if not total:
        return math.nan, math.nan, math.nan, math.nan
    first, probability = 0, np.ones(1)
    for n, m, width in zip(mine, other, widths, strict=True):
        least, greatest = max(0, n + m - width), min(n, m)
        here = hypergeom.pmf(np.arange(least, greatest + 1), width, n, m)
        probability = np.convolve(probability, here)
        kept = np.flatnonzero(probability > _NEGLIGIBLE)
        first += least + kept[0]
        probability = probability[kept[0] : kept[-1] + 1]
    common = first + np.arange(len(probability))
    jaccard, probability = common / (total - common), probability / probability.sum()
    mean = float(probability @ jaccard)
    deviation = math.sqrt(float(probability @ (jaccard - mean) ** 2))
    below = probability.cumsum()
    ends = [np.searchsorted(below, share - 1e-12) for share in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (float(jaccard[min(end, len(jaccard) - 1)]) for end in ends)
    return mean, deviation, low, high


def _over_pairs(
    change: str, pairs: Sequence[tuple[NeuronSelection, NeuronSelection]], level: float
) -> Stability:
    """One line: mean and quantiles over pairs of selections of the same kind."""
    if not pairs:
        raise ValueError("There are no two selections to compare: take one split or more.")
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
    sizes = torch.tensor([list(each.counts().values()) for each in (a, b)]).double()
    return sizes.amin(dim=0) / sizes.amax(dim=0)


def _on_common(
    mine: NeuronSelection,
    other: NeuronSelection,
    measure: Callable[[NeuronSelection, NeuronSelection], Tensor],
) -> Float64[Tensor, " language"]:
    """The measure on the languages of both; NaN on those that the other does not have."""
    common = [code for code in mine.languages if code in other.languages]
    found = torch.full((len(mine.languages),), math.nan, dtype=torch.float64)
    rows = [mine.languages.index(code) for code in common]
    found[rows] = measure(mine.languages_only(common), other.languages_only(common)).double()
    return found


def _of_languages(
    select: Select, languages: tuple[str, ...], stats: FiringStats
) -> NeuronSelection:
    """Select as if only these languages had been read."""
    return select(_only(stats, languages))


def _only(stats: FiringStats, languages: tuple[str, ...]) -> FiringStats:
    """The counts of some languages."""
    return stats if languages == stats.languages else stats.languages_only(languages)

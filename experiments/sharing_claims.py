"""What map_shared_neurons measures for the claims of Wang et al. (2024) in claims/.

Controls are what their comparison lacks: what firing rates alone give, sets of equal size, and
what shuffled prompts give.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from einops import reduce
from torch import Tensor

from interp.counting.stats import FiringSigns
from interp.evaluations.category_ablation import CategoryAblation
from interp.evaluations.category_attribution import CATEGORIES, Enrichment
from interp.evaluations.neuron_sets import EQUAL, RANDOM, Condition
from interp.evaluations.task_results import group_numbers
from interp.inference.claims import Measurement
from interp.inference.intervals import Estimate, mean_over_examples
from interp.plots.style import Table
from interp.results.words import FiresBy
from interp.scores.sharing import Sharing
from interp.scores.sharing_profile import SharingProfile, sharing_profile


def misclassified(signs: FiringSigns, profile: SharingProfile) -> int:
    """Neurons in no category or in two, or in another one with the languages in reverse."""
    languages = signs.languages[::-1]
    other = sharing_profile(signs, torch.Generator(), languages=languages, n_draws=0)
    parted = (profile.count.sum(dim=-1) - profile.d_mlp).abs().sum()
    return int(parted + (other.count - profile.count).abs().sum())


def fall_beyond(found: CategoryAblation, one: Condition, others: Sequence[Condition]) -> Estimate:
    """By how much more the answer's probability falls with one set off than with any of the
    others: the least of the paired differences, that whose interval has the lowest end."""
    places = [found.conditions.index(each) for each in (one, *others)]
    score = reduce(found.probability, "prompt condition language -> prompt condition", "mean")
    groups = group_numbers(found.groups)
    more = [mean_over_examples(score[:, b] - score[:, places[0]], groups) for b in places[1:]]
    return min(more, key=lambda each: each.low.item())


def of_task(
    signs: FiringSigns, profile: SharingProfile, off: CategoryAblation, ratio: Enrichment
) -> dict[str, Measurement | None]:
    """What is measured on one task."""
    kept = profile.repeatability.nan_to_num(0.0)[:, [Sharing.SILENT, Sharing.SPECIFIC]]
    shuffled = profile.shuffled_repeatability[..., [Sharing.SILENT, Sharing.SPECIFIC]]
    shares = profile.count[..., Sharing.ALL_SHARED].double() / profile.d_mlp
    chance = profile.independent[:, Sharing.ALL_SHARED]
    return {
        "partition": Measurement(float(misclassified(signs, profile))),
        **of_off(off),
        "all-shared-enriched": enriched(ratio),
        "repeatability": Measurement(kept.max().item(), shuffled.nan_to_num(0.0).max().item()),
        "all-shared-falls": Measurement(
            mean_over_examples(shares[:, 0] - shares[:, -1], profile.clusters),
            (chance[0] - chance[-1]).item(),
        ),
    }


def of_off(off: CategoryAblation) -> dict[str, Measurement | None]:
    """At equal size, and as the paper compares, with all that a category has."""
    shared = CATEGORIES[Sharing.ALL_SHARED]
    others = [
        each
        for each in (CATEGORIES[Sharing.SPECIFIC], CATEGORIES[Sharing.PARTLY_SHARED])
        if Condition(each, EQUAL) in off.conditions
    ]
    sizes = {
        each: off.neurons[:, off.conditions.index(Condition(each, each))].double().mean().item()
        for each in (shared, *others)
    }
    most = max(sizes[each] for each in others)
    equal = [Condition(each, EQUAL) for each in (shared, RANDOM, *others)]
    whole = [Condition(each, each) for each in (shared, *others)]
    return {
        "all-shared-off": Measurement(fall_beyond(off, equal[0], equal[1:])),
        "all-shared-off-whole": Measurement(
            fall_beyond(off, whole[0], whole[1:]), sizes[shared] / most if most else math.nan
        ),
    }


def enriched(ratio: Enrichment) -> Measurement | None:
    """In every layer, hence in the layer where it is least; none if no neuron is all-shared."""
    every = range(ratio.units.shape[1])
    layers = [ratio.mean(layer, Sharing.ALL_SHARED, "units") for layer in every]
    layers = [each for each in layers if not each.value.isnan()]
    if not layers:
        return None
    firing = ratio.firing[..., Sharing.ALL_SHARED].nanmean(dim=0)
    return Measurement(
        min(layers, key=lambda each: each.low.item()), firing[~firing.isnan()].min().item()
    )


def falls(table: pd.DataFrame, column: str) -> float:
    """The least fall of the all-shared share from one value of the column to the next, any task."""
    steps = [
        -pd.Series(rows.sort_values(column)["all_shared"].tolist()).diff().dropna()
        for _, rows in table.groupby("task", sort=False)
    ]
    return float(min(step.min() for step in steps))


JUDGED_AND_COMPLETED = (("babel/statements", "babel/fact_completion"), ("xnli", "mlama"))
"""Tasks that are compared: statements to judge, and facts to complete."""


def over_tasks(
    numbers: Table,
    thresholds: Table,
    related: Table,
    shares: Mapping[str, Tensor],
    fires_by: FiresBy,
) -> dict[str, Measurement | None]:
    """What needs several tasks, numbers of languages or thresholds."""
    mine = thresholds.query("fires_by == @fires_by")
    order = mine.pivot(index="threshold", columns="task", values="all_shared").rank(axis=1)
    chance = numbers.drop(columns="all_shared").rename(columns={"independent": "all_shared"})
    alike = float((order == order.iloc[0]).all(axis=1).mean())
    return {
        "falls-with-languages": Measurement(
            falls(numbers, "languages"), falls(chance, "languages")
        ),
        "falls-with-threshold": Measurement(falls(mine, "threshold")),
        "order-of-tasks": Measurement(alike),
        "beyond-relatedness": beyond_relatedness(related),
        "questions-share-more": statements_against_facts(numbers, shares),
    }


def beyond_relatedness(related: Table) -> Measurement | None:
    """The largest p of the Mantel tests, 1 where overlap grows with distance."""
    if not len(related):
        return None
    towards = [
        float(p) if r < 0 else 1.0
        for r, p in zip(related["correlation"], related["p"], strict=True)
    ]
    worst = related.iloc[towards.index(max(towards))]
    words = {"correlation": "correlation", "shuffled": "shuffled_correlation"}
    words = {name: f"{worst[column]:.2f}" for name, column in words.items()}
    return Measurement(max(towards), float(worst["shuffled_p"]), words=words)


def statements_against_facts(numbers: Table, shares: Mapping[str, Tensor]) -> Measurement | None:
    """The all-shared share of the first pair of such tasks that was asked, one less the other."""
    asked = [pair for pair in JUDGED_AND_COMPLETED if shares.keys() >= set(pair)]
    if not asked:
        return None
    reasoning, facts = asked[0]
    means = [mean_over_examples(shares[name]) for name in (reasoning, facts)]
    more = means[0].value - means[1].value
    error = (means[0].standard_error ** 2 + means[1].standard_error ** 2).sqrt()
    value = Estimate(
        value=more,
        standard_error=error,
        low=more - 1.96 * error,
        high=more + 1.96 * error,
        level=0.95,
    )
    whole: Table = numbers[numbers["languages"] == numbers["languages"].max()]
    chance = dict(zip(whole["task"], whole["independent"], strict=True))
    return Measurement(value, chance[reasoning] - chance[facts])

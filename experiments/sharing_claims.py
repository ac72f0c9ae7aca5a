"""The numbers behind the claims of Wang et al. (2024), from map_shared_neurons.

Controls are what the paper's comparison lacks: firing rates alone, sets of equal size, and shuffled
prompts.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from einops import reduce
from torch import Tensor

from experiments.runner import estimate
from interp.counting.signs import FiringSigns
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
    """Neurons in no category or in two, or in another category once the languages are reversed."""
    languages = signs.languages[::-1]
    other = sharing_profile(signs, torch.Generator(), languages=languages, n_draws=0)
    not_once = (profile.count.sum(dim=-1) - profile.d_mlp).abs().sum()
    return int(not_once + (other.count - profile.count).abs().sum())


def fall_beyond(off: CategoryAblation, one: Condition, others: Sequence[Condition]) -> Estimate:
    """How much more the answer's probability falls with one set off than with any of the others:
    the paired difference whose interval has the lowest end."""
    index, *indices = [off.conditions.index(condition) for condition in (one, *others)]
    score = reduce(off.probability, "prompt condition language -> prompt condition", "mean")
    groups = group_numbers(off.groups)
    more = [mean_over_examples(score[:, other] - score[:, index], groups) for other in indices]
    return min(more, key=lambda estimate: estimate.low.item())


def of_task(
    signs: FiringSigns, profile: SharingProfile, off: CategoryAblation, ratio: Enrichment
) -> dict[str, Measurement | None]:
    """The measurements on one task."""
    repeated = profile.repeatability.nan_to_num(0.0)[:, [Sharing.SILENT, Sharing.SPECIFIC]]
    shuffled = profile.shuffled_repeatability[..., [Sharing.SILENT, Sharing.SPECIFIC]]
    shares = profile.count[..., Sharing.ALL_SHARED].double() / profile.d_mlp
    chance = profile.independent[:, Sharing.ALL_SHARED]
    return {
        "partition": Measurement(float(misclassified(signs, profile))),
        **of_off(off),
        "all-shared-enriched": enriched(ratio),
        "repeatability": Measurement(repeated.max().item(), shuffled.nan_to_num(0.0).max().item()),
        "all-shared-falls": Measurement(
            mean_over_examples(shares[:, 0] - shares[:, -1], profile.clusters),
            (chance[0] - chance[-1]).item(),
        ),
    }


def of_off(off: CategoryAblation) -> dict[str, Measurement | None]:
    """At equal size, and, as in the paper, with all neurons of each category off."""
    shared = CATEGORIES[Sharing.ALL_SHARED]
    others = [
        name
        for name in (CATEGORIES[Sharing.SPECIFIC], CATEGORIES[Sharing.PARTLY_SHARED])
        if Condition(name, EQUAL) in off.conditions
    ]
    sizes = {
        name: off.neurons[:, off.conditions.index(Condition(name, name))].double().mean().item()
        for name in (shared, *others)
    }
    most = max(sizes[name] for name in others)
    equal = [Condition(name, EQUAL) for name in (shared, RANDOM, *others)]
    whole = [Condition(name, name) for name in (shared, *others)]
    return {
        "all-shared-off": Measurement(fall_beyond(off, equal[0], equal[1:])),
        "all-shared-off-whole": Measurement(
            fall_beyond(off, whole[0], whole[1:]), sizes[shared] / most if most else math.nan
        ),
    }


def enriched(ratio: Enrichment) -> Measurement | None:
    """In the layer where it is least; None if no neuron is all-shared."""
    n_layers = ratio.units.shape[1]
    layers = [ratio.mean(layer, Sharing.ALL_SHARED, "units") for layer in range(n_layers)]
    layers = [layer for layer in layers if not layer.value.isnan()]
    if not layers:
        return None
    firing = ratio.firing[..., Sharing.ALL_SHARED].nanmean(dim=0)
    least = min(layers, key=lambda layer: layer.low.item())
    return Measurement(least, firing[~firing.isnan()].min().item())


def falls(table: pd.DataFrame, column: str) -> float:
    """The least fall of the all-shared share between successive values of a column, in any task."""
    steps = [
        -pd.Series(rows.sort_values(column)["all_shared"].tolist()).diff().dropna()
        for _, rows in table.groupby("task", sort=False)
    ]
    return float(min(step.min() for step in steps))


JUDGED_AND_COMPLETED = (("babel/statements", "babel/fact_completion"), ("xnli", "mlama"))
"""Pairs of tasks that are compared: judging statements, and completing facts."""


def over_tasks(
    numbers: Table,
    thresholds: Table,
    related: Table,
    shares: Mapping[str, Tensor],
    fires_by: FiresBy,
) -> dict[str, Measurement | None]:
    """The measurements over several tasks, numbers of languages or thresholds."""
    rows = thresholds.query("fires_by == @fires_by")
    order = rows.pivot(index="threshold", columns="task", values="all_shared").rank(axis=1)
    chance = numbers.drop(columns="all_shared").rename(columns={"independent": "all_shared"})
    same_order = float((order == order.iloc[0]).all(axis=1).mean())
    return {
        "falls-with-languages": Measurement(
            falls(numbers, "languages"), falls(chance, "languages")
        ),
        "falls-with-threshold": Measurement(falls(rows, "threshold")),
        "order-of-tasks": Measurement(same_order),
        "beyond-relatedness": beyond_relatedness(related),
        "questions-share-more": statements_against_facts(numbers, shares),
    }


def beyond_relatedness(related: Table) -> Measurement | None:
    """The largest p of the Mantel tests, 1 where overlap grows with distance."""
    if not len(related):
        return None
    p = related["p"].where(related["correlation"] < 0, 1.0)
    worst = related.loc[p.idxmax()]
    words = {"correlation": "correlation", "shuffled": "shuffled_correlation"}
    words = {name: f"{worst[column]:.2f}" for name, column in words.items()}
    return Measurement(float(p.max()), float(worst["shuffled_p"]), words=words)


def statements_against_facts(numbers: Table, shares: Mapping[str, Tensor]) -> Measurement | None:
    """Difference of the all-shared shares, for the first pair of such tasks that was run."""
    pairs = [pair for pair in JUDGED_AND_COMPLETED if shares.keys() >= set(pair)]
    if not pairs:
        return None
    statements, facts = (mean_over_examples(shares[name]) for name in pairs[0])
    more = (statements.value - facts.value).item()
    reach = 1.96 * (statements.standard_error**2 + facts.standard_error**2).sqrt().item()
    whole: Table = numbers[numbers["languages"] == numbers["languages"].max()]
    chance = whole.set_index("task")["independent"]
    control = float(chance[pairs[0][0]] - chance[pairs[0][1]])
    return Measurement(estimate(more, more - reach, more + reach), control)

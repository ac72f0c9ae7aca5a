"""The claims of Wang et al. (2024) that can be checked, on what map_shared_neurons measures.

Each is put as a number and a bar. What their comparison lacks stands beside it as the control: what
firing rates alone give, sets of equal size, and what shuffled prompts give.
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from einops import reduce
from torch import Tensor

from interp.counting.stats import FiringSigns
from interp.evaluations.category_ablation import SwitchOff
from interp.evaluations.category_attribution import CATEGORIES, Enrichment
from interp.evaluations.neuron_sets import EQUAL, RANDOM, Condition
from interp.evaluations.task_results import group_numbers
from interp.inference.claims import Claim, claim_of, counted
from interp.inference.intervals import Estimate, mean_over_examples
from interp.plots.style import Table
from interp.results.words import Source
from interp.scores.sharing import Sharing, SharingProfile, sharing_profile

COMMAND = "python -m experiments.map_shared_neurons"
SOURCE = "Wang et al. (2024)"


def amiss(signs: FiringSigns, profile: SharingProfile) -> int:
    """Neurons in no category or in two, or in another one with the languages in reverse."""
    languages = signs.languages[::-1]
    other = sharing_profile(signs, torch.Generator(), languages=languages, n_draws=0)
    parted = (profile.count.sum(dim=-1) - profile.d_mlp).abs().sum()
    return int(parted + (other.count - profile.count).abs().sum())


def fall_beyond(found: SwitchOff, one: Condition, others: Sequence[Condition]) -> Estimate:
    """By how much more the answer's probability falls with one set off than with any of the
    others: the least of the paired differences, that whose interval has the lowest end."""
    places = [found.conditions.index(each) for each in (one, *others)]
    score = reduce(found.probability, "prompt condition language -> prompt condition", "mean")
    groups = group_numbers(found.groups)
    more = [mean_over_examples(score[:, b] - score[:, places[0]], groups) for b in places[1:]]
    return min(more, key=lambda each: each.low.item())


def task_claims(
    name: str,
    signs: FiringSigns,
    profile: SharingProfile,
    off: SwitchOff,
    ratio: Enrichment,
    on: str,
) -> list[Claim]:
    """The checkable claims of the paper on one task."""
    short = name.split("/")[-1].replace("_", " ")
    said = {"source": SOURCE, "on": f"{on}, {short}", "command": COMMAND}
    kept = profile.repeatability.nan_to_num(0.0)
    shares = profile.count[..., Sharing.ALL_SHARED].double() / profile.d_mlp
    chance = profile.independent[:, Sharing.ALL_SHARED]
    shuffled = profile.shuffled_repeatability[..., [Sharing.SILENT, Sharing.SPECIFIC]]
    return [
        counted(
            float(amiss(signs, profile)),
            name=f"partition-{short}",
            statement="The categories part the neurons of a layer, whatever the order of "
            "languages.",
            how="neurons in no category or two, or in another with the languages in reverse",
            bar=1.0,
            side="below",
            **said,
        ),
        *off_claims(short, off, said),
        *enrichment_claims(short, ratio, said),
        counted(
            kept[:, [Sharing.SILENT, Sharing.SPECIFIC]].max().item(),
            name=f"repeatability-{short}",
            statement="Few neurons stay silent, or specific, on every example.",
            how="largest repeatability over layers, of silent and specific neurons",
            bar=0.1,
            side="below",
            control=shuffled.nan_to_num(0.0).max().item(),
            control_name="with shuffled prompts",
            **said,
        ),
        claim_of(
            mean_over_examples(shares[:, 0] - shares[:, -1], profile.clusters),
            name=f"all-shared-falls-{short}",
            statement="The all-shared part falls from early to late layers.",
            how="share in the first layer less that in the last",
            control=(chance[0] - chance[-1]).item(),
            control_name="by firing rates alone",
            **said,
        ),
    ]


def off_claims(short: str, off: SwitchOff, said: dict[str, str]) -> list[Claim]:
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
    return [
        claim_of(
            fall_beyond(
                off,
                Condition(shared, EQUAL),
                [Condition(each, EQUAL) for each in (RANDOM, *others)],
            ),
            name=f"all-shared-off-{short}",
            statement="Switching all-shared neurons off costs more than equally many others.",
            how="fall of the answer's probability beyond that with equally many random, specific "
            "or partly shared neurons off, the least of these",
            **said,
        ),
        claim_of(
            fall_beyond(off, Condition(shared, shared), [Condition(each, each) for each in others]),
            name=f"all-shared-off-whole-{short}",
            statement="Switching all all-shared neurons off costs more than all of another kind.",
            how="fall of the answer's probability beyond that with all specific or all partly "
            "shared neurons off, the least of these",
            control=sizes[shared] / most if most else math.nan,
            control_name="times as many neurons as in the larger of the others",
            **said,
        ),
    ]


def enrichment_claims(short: str, ratio: Enrichment, said: dict[str, str]) -> list[Claim]:
    """In every layer, hence in the layer where it is least; none if no neuron is all-shared."""
    every = range(ratio.units.shape[1])
    layers = [ratio.mean(layer, Sharing.ALL_SHARED, "units") for layer in every]
    layers = [each for each in layers if not each.value.isnan()]
    if not layers:
        return []
    firing = ratio.firing[..., Sharing.ALL_SHARED].nanmean(dim=0)
    return [
        claim_of(
            min(layers, key=lambda each: each.low.item()),
            name=f"all-shared-enriched-{short}",
            statement="All-shared neurons are over-represented among the largest contributions.",
            how="ratio to their share of all neurons, in the layer where it is least",
            bar=1.0,
            control=firing[~firing.isnan()].min().item(),
            control_name="to their share of those that hand on anything",
            **said,
        )
    ]


def falls(table: pd.DataFrame, column: str) -> float:
    """The least fall of the all-shared share from one value of the column to the next, any task."""
    steps = [
        -pd.Series(rows.sort_values(column)["all_shared"].tolist()).diff().dropna()
        for _, rows in table.groupby("task", sort=False)
    ]
    return float(min(step.min() for step in steps))


JUDGED_AND_COMPLETED = (("babel/statements", "babel/fact_completion"), ("xnli", "mlama"))
"""Tasks that are compared: statements to judge, and facts to complete."""


def claims_over_tasks(
    numbers: pd.DataFrame,
    thresholds: pd.DataFrame,
    related: pd.DataFrame,
    shares: dict[str, Tensor],
    source: Source,
    on: str,
) -> list[Claim]:
    """The claims that need several tasks, numbers of languages or thresholds."""
    said = {"source": SOURCE, "on": on, "command": COMMAND}
    mine = thresholds.query("source == @source")
    order = mine.pivot(index="threshold", columns="task", values="all_shared").rank(axis=1)
    claims = [
        counted(
            falls(numbers, "languages"),
            name="falls-with-languages",
            statement="The all-shared part falls with every language that is added.",
            how="least fall from one number of languages to the next, over tasks",
            control=falls(
                numbers.drop(columns="all_shared").rename(columns={"independent": "all_shared"}),
                "languages",
            ),
            control_name="by firing rates alone",
            **said,
        ),
        counted(
            falls(mine, "threshold"),
            name="falls-with-threshold",
            statement="The all-shared part falls as more must be exceeded to fire.",
            how="least fall from one threshold to the next, over tasks",
            **said,
        ),
        counted(
            float((order == order.iloc[0]).all(axis=1).mean()),
            name="order-of-tasks",
            statement="Which task shares more does not hang on the threshold.",
            how="thresholds at which tasks have the order that they have at zero",
            bar=0.999,
            **said,
        ),
    ]
    if len(related):
        towards = [
            float(p) if r < 0 else 1.0
            for r, p in zip(related["correlation"], related["p"], strict=True)
        ]
        worst = related.iloc[towards.index(max(towards))]
        claims.append(
            counted(
                max(towards),
                name="beyond-relatedness",
                statement="Which neurons two languages share does not fully follow how close they "
                "are: in some task it does not.",
                how="p of the Mantel test of overlap against distance, 1 where it grows with it, "
                f"in the task where it is largest (r = {worst['correlation']:.2f})",
                bar=0.05,
                control=worst["shuffled_p"],
                control_name=f"with shuffled prompts (r = {worst['shuffled_correlation']:.2f})",
                **said,
            )
        )
    for reasoning, facts in (each for each in JUDGED_AND_COMPLETED if shares.keys() >= set(each)):
        means = [mean_over_examples(shares[name]) for name in (reasoning, facts)]
        more = means[0].value - means[1].value
        error = (means[0].standard_error ** 2 + means[1].standard_error ** 2).sqrt()
        estimate = Estimate(more, error, more - 1.96 * error, more + 1.96 * error, 0.95)
        whole: Table = numbers[numbers["languages"] == numbers["languages"].max()]
        chance = dict(zip(whole["task"], whole["independent"], strict=True))
        claims.append(
            claim_of(
                estimate,
                name="questions-share-more",
                statement="Judging statements shares more neurons than completing facts.",
                how="all-shared share of statements less that of facts, mean over layers",
                control=chance[reasoning] - chance[facts],
                control_name="by firing rates alone",
                **said,
            )
        )
    return claims

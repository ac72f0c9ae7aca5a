"""The numbers behind the claims of Wang et al. (2024), from map_shared_neurons.

Controls are what the paper's comparison lacks: firing rates alone, sets of equal size, and shuffled
prompts.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange, reduce
from torch import Tensor

from experiments.runner import estimate
from interp.evaluations.category_ablation import CategoryAblation, Tokens
from interp.evaluations.category_attribution import CATEGORIES, Enrichment
from interp.evaluations.category_scores import CategoryScores
from interp.evaluations.neuron_sets import EQUAL, RANDOM, Condition
from interp.evaluations.task_results import group_numbers
from interp.inference.claims import in_short
from interp.inference.crossed import unpaired_difference
from interp.inference.intervals import Estimate, jackknife_shards, mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.scores.sharing import Sharing
from interp.scores.sharing_profile import SharingProfile


def fall_beyond(off: CategoryAblation, one: Condition, others: Sequence[Condition]) -> Estimate:
    """How much more the answer's probability falls with one set off than with any of the others:
    the paired difference whose interval has the lowest end."""
    index, *indices = [off.conditions.index(condition) for condition in (one, *others)]
    score = reduce(off.probability, "prompt condition language -> prompt condition", "mean")
    groups = group_numbers(off.groups)
    more = [mean_over_examples(score[:, other] - score[:, index], groups) for other in indices]
    return min(more, key=lambda estimate: estimate.low.item())


def of_task(
    profile: SharingProfile,
    off: Mapping[Tokens, CategoryAblation],
    ratio: Enrichment,
    scores: CategoryScores,
) -> dict[str, Measurement | None]:
    """The measurements on one task."""
    return {
        **of_tokens(off),
        "all-shared-enriched": enriched(ratio),
        "all-shared-falls": fall(profile),
        "all-shared-contribute": contributed(scores),
        "active-alike": active_apart(profile),
    }


def fall(profile: SharingProfile) -> Measurement:
    """From the first layer to the last, and what firing rates alone give on the same prompts."""
    shares = profile.count[..., Sharing.ALL_SHARED].double() / profile.d_mlp
    chance = profile.expected[..., Sharing.ALL_SHARED]
    falls = [share[:, 0] - share[:, -1] for share in (shares, chance, shares - chance)]
    return Measurement(*(mean_over_examples(part, profile.clusters) for part in falls))


def contributed(scores: CategoryScores) -> Measurement:
    """All-shared neurons' part of the contribution, and of the neurons."""
    neurons = scores.neurons.double()
    part = neurons[:, Sharing.ALL_SHARED] / neurons.sum(dim=1)
    share = scores.shares()[:, Sharing.ALL_SHARED]
    groups = group_numbers(scores.groups)
    numbers = (reduce(x, "prompt layer -> prompt", "mean") for x in (share, part, share - part))
    return Measurement(*(mean_over_examples(x, groups) for x in numbers))


N_PARTS = 20
"""Of the prompts, for a jackknife."""


def active_apart(profile: SharingProfile) -> Measurement | None:
    """The two languages of a layer that differ most in their active share; mean over layers."""
    part = profile.clusters % N_PARTS
    parts = part.unique()
    if len(parts) < 2:
        return None
    active = rearrange(
        profile.common.diagonal(dim1=1, dim2=2).double(),
        "prompt layer language -> prompt language layer",
    )
    fired = torch.stack([active[part == number].sum(dim=0) for number in parts])
    neurons = torch.stack([(part == number).sum() * profile.d_mlp for number in parts])

    def apart(total: Mapping[str, Tensor]) -> Tensor:
        share = total["fired"] / total["neurons"]
        return (share.amax(dim=0) - share.amin(dim=0)).mean()

    return Measurement(jackknife_shards({"fired": fired, "neurons": neurons}, apart))


OFF: Mapping[Tokens, tuple[str, str]] = {
    "last": ("all-shared-off", "all-shared-off-whole"),
    "all": ("all-shared-off-everywhere", "all-shared-off-whole-everywhere"),
}
"""Tokens at which neurons are off → the claims about equal sizes and about whole categories."""


def of_tokens(off: Mapping[Tokens, CategoryAblation]) -> dict[str, Measurement | None]:
    """None: neurons were not switched off at those tokens."""
    measured: dict[str, Measurement | None] = {}
    for tokens, names in OFF.items():
        numbers = of_off(off[tokens]) if tokens in off else (None, None)
        measured |= dict(zip(names, numbers, strict=True))
    return measured


def of_off(off: CategoryAblation) -> tuple[Measurement, Measurement]:
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
    words = {"times": in_short(sizes[shared] / most) if most else "unknown"}
    return (
        Measurement(fall_beyond(off, equal[0], equal[1:])),
        Measurement(fall_beyond(off, whole[0], whole[1:]), words=words),
    )


def enriched(ratio: Enrichment) -> Measurement | None:
    """In the layer where it is least; None if no neuron is all-shared."""
    n_layers = ratio.units.shape[1]
    layers = [ratio.mean(layer, Sharing.ALL_SHARED, "units") for layer in range(n_layers)]
    layers = [layer for layer in layers if not layer.value.isnan()]
    if not layers:
        return None
    firing = ratio.firing[..., Sharing.ALL_SHARED].nanmean(dim=0)
    least = min(layers, key=lambda layer: layer.low.item())
    return Measurement(least, words={"firing": in_short(firing[~firing.isnan()].min().item())})


JUDGED_AND_COMPLETED = (("babel/statements", "babel/fact_completion"), ("xnli", "mlama"))
"""Pairs of tasks that are compared: judging statements, and completing facts."""


def over_tasks(
    related: Table, shares: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Measurement | None]:
    """The measurements over several tasks; shares are all-shared ones by prompt, and those that
    firing rates alone give."""
    return {
        "beyond-relatedness": beyond_relatedness(related),
        "questions-share-more": statements_against_facts(shares),
    }


def beyond_relatedness(related: Table) -> Measurement | None:
    """The correlation that is nearest to zero, by the farther end of its interval: the claim is
    that in some task there is none."""
    if not len(related):
        return None
    farthest = related[["low", "high"]].abs().max(axis=1, skipna=False)
    row = related.loc[farthest.fillna(math.inf).idxmin()]
    words = {"shuffled": f"{row['shuffled_correlation']:.2f}"}
    ends = (float(row[name]) for name in ("correlation", "low", "high"))
    return Measurement(estimate(*ends), words=words)


def statements_against_facts(shares: Mapping[str, tuple[Tensor, Tensor]]) -> Measurement | None:
    """Difference of the all-shared shares, for the first pair of such tasks that was run, and what
    firing rates alone give on the same prompts."""
    pairs = [pair for pair in JUDGED_AND_COMPLETED if shares.keys() >= set(pair)]
    if not pairs:
        return None
    statements, facts = (torch.stack(shares[name]) for name in pairs[0])

    def more(weights: tuple[int, int]) -> Estimate:
        """Of the share, of what firing rates give, or of one minus the other."""
        parts = (weights[0] * part[0] + weights[1] * part[1] for part in (statements, facts))
        return unpaired_difference(*map(mean_over_examples, parts))

    return Measurement(more((1, 0)), more((0, 1)), more((1, -1)))

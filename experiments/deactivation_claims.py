"""The numbers behind the claims of Tang et al. (2024), from deactivate_neurons.

The languages of a neuron follow from the rates alone. Effects are those at one fraction, fixed
beforehand. The untouched model judges what is written.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

import interp
from experiments.runner import estimate
from interp.evaluations.dominance import own_minus_others
from interp.inference.crossed import jackknife_languages, mean_over_crossed, share_difference
from interp.inference.intervals import (
    Estimate,
    bootstrap_shards,
    jackknife_shards,
    mean_over_examples,
    or_no_event,
    wilson,
)
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.results.words import NOTHING

RANDOM, ALIKE = "random", "alike"
"""Random neurons of the same layers, and those that also fire nearly as often."""

RELATIVES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "lape-fr-es": (("fr", "es"),),
    "lape-neighbors": (("zh", "ja"), ("vi", "id")),
}
"""Claim → pairs of languages, the closest of which should be among the three closest of all."""

# ---------------------------------------------------------------- which neurons, and where


def about_neurons(
    stats: interp.FiringStats, fraction: float, generator: torch.Generator
) -> dict[str, Measurement | None]:
    """The layers of the selected neurons, and which pairs of languages share them."""
    selection = interp.select_by_entropy(stats, fraction)
    drawn = selection.random_like(generator, exclude=selection.union())
    return {
        **about_layers(stats, fraction, generator),
        **about_relatives(stats, fraction, drawn, generator),
    }


def in_layers(neurons: interp.NeuronSelection, layers: slice) -> Float64[Tensor, ""]:
    """Share of all memberships (neuron and language) in these layers."""
    counts = neurons.mask.sum(dim=(0, 2)).double()
    return counts[layers].sum() / counts.sum()


def about_layers(
    stats: interp.FiringStats, fraction: float, generator: torch.Generator
) -> dict[str, Measurement | None]:
    """The neurons' layers; intervals are over the text they were selected on."""
    n_layers = stats.fired.shape[2]
    last = max(round(n_layers / 4), 1)
    measured: dict[str, Measurement | None] = {}
    for end, layers, n in (
        ("first", slice(0, 2), 2),
        ("last", slice(n_layers - last, n_layers), last),
    ):

        def share(part: interp.FiringStats, layers: slice = layers) -> Tensor:
            return in_layers(interp.select_by_entropy(part, fraction), layers)

        words = {"n": str(n), "n_layers": str(n_layers)}
        measured[f"lape-{end}-layers"] = Measurement(
            bootstrap_shards(stats, share, generator), n / n_layers, words=words
        )
    return measured


def about_relatives(
    stats: interp.FiringStats,
    fraction: float,
    drawn: interp.NeuronSelection,
    generator: torch.Generator,
) -> dict[str, Measurement | None]:
    """Claims about pairs that were read; None where there are fewer than three other pairs."""
    n_pairs = len(stats.languages) * (len(stats.languages) - 1) // 2
    measured: dict[str, Measurement | None] = dict.fromkeys(RELATIVES)
    for name, pairs in RELATIVES.items():
        pairs = [pair for pair in pairs if set(pair) <= set(stats.languages)]
        if not pairs or n_pairs - len(pairs) < 3:
            continue

        def lead(part: interp.FiringStats, pairs: Sequence[tuple[str, str]] = pairs) -> Tensor:
            return lead_of(interp.select_by_entropy(part, fraction), pairs)

        value = bootstrap_shards(stats, lead, generator)
        measured[name] = Measurement(value, lead_of(drawn, pairs).item())
    return measured


def lead_of(
    neurons: interp.NeuronSelection, pairs: Sequence[tuple[str, str]]
) -> Float64[Tensor, ""]:
    """The largest Jaccard index of these pairs minus the third largest of all others."""
    jaccard = neurons.jaccard().double().nan_to_num(0.0)  # NaN: two languages without neurons
    is_related = torch.zeros_like(jaccard, dtype=torch.bool)
    for pair in pairs:
        row, column = sorted(map(neurons.languages.index, pair))
        is_related[row, column] = True
    upper = torch.ones_like(is_related).triu(diagonal=1)
    return jaccard[is_related].max() - jaccard[upper & ~is_related].topk(3).values[-1]


# ---------------------------------------------------------------- what switching off does


def sums_of(matrix: interp.evaluations.PerplexityMatrix) -> dict[str, Tensor]:
    """Extra nats, [shard off read], of chosen neurons, of random ones (mean over draws) and of
    those that fire alike; tokens."""
    nats = matrix.losses.nats
    sums = {"own": nats[:, 1:] - nats[:, :1], "tokens": matrix.losses.tokens}
    sums[RANDOM] = matrix.random.mean(dim=1) - nats[:, :1]
    if matrix.rate_matched is not None:
        sums[ALIKE] = matrix.rate_matched - nats[:, :1]
    return sums


def per_token(total: Mapping[str, Tensor], which: str) -> Float64[Tensor, "off read"]:
    return total[which] / total["tokens"]


def off_diagonal(square: Float64[Tensor, "off read"]) -> Float64[Tensor, " pair"]:
    """Each pair of languages once: the mean effect of either's neurons on the other."""
    row, column = torch.triu_indices(len(square), len(square), offset=1)
    return (square + square.T)[row, column] / 2


def rank_correlation(a: Float64[Tensor, " pair"], b: Float64[Tensor, " pair"]) -> Tensor:
    """Spearman's; ties get their mean rank."""
    ranks = [torch.tensor(pd.Series(x.tolist()).rank().tolist()).double() for x in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1]


def led(square: Float64[Tensor, "off read"], rows: Sequence[int]) -> Float64[Tensor, " language"]:
    """One for each of these languages whose own cell is above the means of its row and column."""
    own = square.diagonal()
    above = (own > square.mean(dim=1)) & (own > square.mean(dim=0))
    return above[list(rows)].double()


def about_effects(
    matrix: interp.evaluations.PerplexityMatrix, neurons: interp.NeuronSelection
) -> dict[str, Measurement | None]:
    """Effects of switching off at one fraction; `off` and `read` are the same languages."""
    sums, codes = sums_of(matrix), matrix.languages
    total = {name: shards.sum(dim=0) for name, shards in sums.items()}
    own, chance, alike = (per_token(total, which) for which in ("own", RANDOM, ALIKE))
    rest = [row for row, code in enumerate(codes) if code != "en"]
    return {
        "lape-own-language": compared(own_minus_others(own), own_minus_others(alike)),
        "lape-diagonal": share_compared(led(own, rest), led(alike, rest)),
        "lape-random": Measurement(jackknife_shards(sums, partial(part_of_own, RANDOM))),
        "lape-random-rate": Measurement(jackknife_shards(sums, partial(part_of_own, ALIKE))),
        "lape-related": related(neurons, own, chance),
        "lape-english": english(sums, codes) if "en" in codes and len(rest) > 1 else None,
    }


def compared(a: Float64[Tensor, " item"], b: Float64[Tensor, " item"]) -> Measurement | None:
    """The mean of one number per item, such as a language, and the same of the control."""
    if len(a) < 2:
        return None
    return Measurement(mean_over_examples(a), mean_over_examples(b), mean_over_examples(a - b))


def share_compared(a: Float64[Tensor, " item"], b: Float64[Tensor, " item"]) -> Measurement | None:
    """The same for zeros and ones, whose mean has an interval even if all are alike."""
    if len(a) < 2:
        return None
    own, chance = (estimate(x.mean().item(), *wilson(x.mean().item(), len(x))) for x in (a, b))
    return Measurement(own, chance, or_no_event(mean_over_examples(a - b), a, b, len(a)))


def part_of_own(which: str, total: Mapping[str, Tensor]) -> Tensor:
    """The control's effect on the own language as a fraction of that of the selected neurons."""
    random, own = (per_token(total, name).diagonal().mean() for name in (which, "own"))
    return random / own


def related(
    neurons: interp.NeuronSelection,
    own: Float64[Tensor, "off read"],
    chance: Float64[Tensor, "off read"],
) -> Measurement | None:
    """Correlations over pairs of languages, which share languages: each is left out in turn."""
    shared, n = neurons.jaccard().double(), len(own)
    if n < 4:  # without one of three languages there is one pair
        return None

    def without(row: int | None, effect: Tensor) -> Tensor:
        kept = [other for other in range(n) if other != row]
        return rank_correlation(*(off_diagonal(x[kept][:, kept]) for x in (shared, effect)))

    def left_out(effect: Tensor) -> Tensor:
        return torch.stack([without(row, effect) for row in range(n)])

    whole = [without(None, effect) for effect in (own, chance)]
    parts = [left_out(effect) for effect in (own, chance)]
    difference = jackknife_languages(parts[0] - parts[1], whole[0] - whole[1])
    value, control = (jackknife_languages(*pair) for pair in zip(parts, whole, strict=True))
    return Measurement(value, control, difference)


def english(sums: Mapping[str, Tensor], codes: Sequence[str]) -> Measurement:
    """English against the language that comes nearest: that whose interval reaches highest.

    English depends least if it depends less than every other language, so no choice is made among
    results: the claim holds only if it holds of all.
    """

    def lead(which: str, other: int, total: Mapping[str, Tensor]) -> Tensor:
        effect = per_token(total, which).diagonal()
        return effect[codes.index("en")] - effect[other]

    def beyond(other: int, total: Mapping[str, Tensor]) -> Tensor:
        return lead("own", other, total) - lead(RANDOM, other, total)

    others = [row for row, code in enumerate(codes) if code != "en"]
    leads = {row: jackknife_shards(sums, partial(lead, "own", row)) for row in others}
    nearest = max(leads, key=lambda row: leads[row].high.item())
    chance = jackknife_shards(sums, partial(lead, RANDOM, nearest))
    return Measurement(leads[nearest], chance, jackknife_shards(sums, partial(beyond, nearest)))


def about_size(
    matrices: Mapping[float, interp.evaluations.PerplexityMatrix],
) -> dict[str, Measurement | None]:
    """Whether the effect grows from each fraction to the next, on the same text: the step whose
    interval reaches lowest, since the claim is about all."""
    own = {}
    for size, matrix in matrices.items():
        total = {name: shards.sum(dim=0) for name, shards in sums_of(matrix).items()}
        own[size] = per_token(total, "own").diagonal()
    steps = [mean_over_examples(own[b] - own[a]) for a, b in pairwise(sorted(own))]
    least = min(steps, key=lambda step: step.low.item(), default=None)
    return {"lape-larger": None if least is None else Measurement(least)}


# ---------------------------------------------------------------- what is written


Prompts = Int64[Tensor, " prompt"]


def values_by_off(
    texts: Table, column: str, languages: Sequence[str]
) -> tuple[dict[str, Float64[Tensor, " prompt"]], Prompts, Prompts]:
    """A column by prompt, with nothing off, its language's own neurons off, another language's off
    (the mean), and random ones off; prompts that lack one of these are left out. Then the language
    and the number of each prompt."""
    wide = texts.pivot(index=["begun", "prompt"], columns="off", values=column).astype(float)
    by_language = wide[list(languages)]
    own = np.array(wide.index.get_level_values("begun"))[:, None] == np.array(by_language.columns)
    parts = pd.DataFrame(
        {
            NOTHING: wide[NOTHING],
            "own": by_language.where(own).sum(axis=1, min_count=1),
            "others": by_language.mask(own).mean(axis=1),
            RANDOM: wide[RANDOM],
        }
    ).dropna()
    begun = [languages.index(code) for code in parts.index.get_level_values("begun")]
    prompt = parts.index.get_level_values("prompt").tolist()
    values = {str(name): torch.tensor(part.to_numpy()) for name, part in parts.items()}
    return values, torch.tensor(begun), torch.tensor(prompt)


def about_writing(texts: Table, languages: Sequence[str]) -> dict[str, Measurement | None]:
    """Continuations of natural text. A prompt has the same seed whatever is off, so comparisons are
    paired by prompt; None where fewer than two can be compared."""
    texts = texts.assign(
        left=texts["language"] != texts["begun"], english=texts["language"] == "en"
    )

    def more(rows: Table, column: str, baseline: str) -> Measurement | None:
        parts, begun, prompt = values_by_off(rows, column, languages)
        if len(begun.unique()) < 2 or len(prompt.unique()) < 2:
            return None

        def difference(one: str, other: str) -> Estimate:
            a, b = parts[one], parts[other]
            shares = column != "loss"
            return (share_difference if shares else mean_difference)(a, b, begun, prompt)

        pairs = (("own", baseline), (RANDOM, baseline), ("own", RANDOM))
        return Measurement(*(difference(*pair) for pair in pairs))

    return {
        "lape-writing-leaves": more(texts, "left", "others"),
        "lape-writing-worse": more(texts, "loss", "others"),
        "lape-writing-english": more(texts[texts["begun"] != "en"], "english", NOTHING),
    }


def mean_difference(
    a: Float64[Tensor, " prompt"], b: Float64[Tensor, " prompt"], begun: Tensor, prompt: Tensor
) -> Estimate:
    return mean_over_crossed(a - b, begun, prompt)

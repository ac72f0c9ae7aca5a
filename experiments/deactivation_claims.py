"""The numbers behind the claims of Tang et al. (2024), from deactivate_neurons.

The languages of a neuron follow from the rates alone. Effects are those at one fraction, fixed
beforehand. The untouched model judges what is written.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

import interp
from interp.evaluations.dominance import own_minus_others
from interp.inference.claims import Measurement
from interp.inference.intervals import jackknife, jackknife_shards, paired_bootstrap
from interp.plots.style import Table
from interp.results.words import NOTHING

RANDOM = "random"

RELATIVES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "lape-fr-es": (("fr", "es"),),
    "lape-neighbors": (("zh", "ja"), ("vi", "id")),
}
"""Claim → pairs of languages, the closest of which should be among the three closest of all."""

# ---------------------------------------------------------------- which neurons, and where


def about_neurons(
    stats: interp.FiringStats, fraction: float, generator: torch.Generator
) -> dict[str, Measurement | None]:
    """How many neurons are selected, their languages and layers, and which pairs share them."""
    selection = interp.select_by_entropy(stats, fraction)
    drawn = selection.random_like(generator, exclude=selection.union())
    return {
        **about_membership(selection, drawn, stats.rate, fraction),
        **about_layers(stats, fraction),
        **about_relatives(stats, fraction, drawn),
    }


def about_membership(
    selection: interp.NeuronSelection,
    drawn: interp.NeuronSelection,
    rate: Float[Tensor, "language layer neuron"],
    fraction: float,
) -> dict[str, Measurement | None]:
    """Counted without error. The first number would also count neurons without a language."""
    expected = round(fraction * rate[0].numel())
    words = {"expected": f"{expected:,}", "fraction": f"{fraction:.2g}"}
    missing = float(abs(int(selection.union().sum()) - expected))
    wrong = (float(misassigned(neurons, rate)) for neurons in (selection, drawn))
    return {"lape-size": Measurement(missing, words=words), "lape-membership": Measurement(*wrong)}


def misassigned(
    selection: interp.NeuronSelection,
    rate: Float[Tensor, "language layer neuron"],
    quantile: float = 0.95,
) -> int:
    """Selected neurons whose languages are not those in which they are busy: those in which their
    rate is above the quantile of all rates."""
    rate = rate.double()
    threshold = rate.flatten().kthvalue(round(quantile * rate.numel())).values
    wrong = (selection.mask != (rate > threshold)).any(dim=0)
    return int((wrong & selection.union()).sum())


def in_layers(neurons: interp.NeuronSelection, layers: slice) -> Float64[Tensor, ""]:
    """Share of all memberships (neuron and language) in these layers."""
    counts = neurons.mask.sum(dim=(0, 2)).double()
    return counts[layers].sum() / counts.sum()


def about_layers(stats: interp.FiringStats, fraction: float) -> dict[str, Measurement | None]:
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
            jackknife(stats, share), n / n_layers, words=words
        )
    return measured


def about_relatives(
    stats: interp.FiringStats, fraction: float, drawn: interp.NeuronSelection
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

        measured[name] = Measurement(jackknife(stats, lead), lead_of(drawn, pairs).item())
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
    """Extra nats, [shard off read], of chosen and of random neurons (mean over draws); tokens."""
    nats = matrix.losses.nats
    chance = matrix.random.mean(dim=1) - nats[:, :1]
    return {"own": nats[:, 1:] - nats[:, :1], RANDOM: chance, "tokens": matrix.losses.tokens}


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


def share_led(square: Float64[Tensor, "off read"], rows: Sequence[int]) -> float:
    """Share of these languages whose own cell is above the means of its row and its column."""
    own = square.diagonal()
    led = (own > square.mean(dim=1)) & (own > square.mean(dim=0))
    return led[list(rows)].double().mean().item()


def about_effects(
    matrix: interp.evaluations.PerplexityMatrix, neurons: interp.NeuronSelection
) -> dict[str, Measurement | None]:
    """Effects of switching off at one fraction; `off` and `read` are the same languages."""
    sums, codes = sums_of(matrix), matrix.languages
    total = {name: shards.sum(dim=0) for name, shards in sums.items()}
    own, chance = (per_token(total, which) for which in ("own", RANDOM))
    rest = [row for row, code in enumerate(codes) if code != "en"]

    def random_part(total: Mapping[str, Tensor]) -> Tensor:
        random, own = (per_token(total, which).diagonal().mean() for which in (RANDOM, "own"))
        return random / own

    def related(total: Mapping[str, Tensor], which: str = "own") -> Tensor:
        shared = off_diagonal(neurons.jaccard().double())
        return rank_correlation(shared, off_diagonal(per_token(total, which)))

    def english(total: Mapping[str, Tensor], which: str = "own") -> Tensor:
        own = per_token(total, which).diagonal()
        return own[codes.index("en")] - own[rest].min()

    def measured(statistic: Callable[..., Tensor]) -> Measurement:
        return Measurement(jackknife_shards(sums, statistic), statistic(total, RANDOM).item())

    return {
        "lape-own-language": Measurement(
            matrix.diagonal().mean, own_minus_others(chance).mean().item()
        ),
        "lape-diagonal": Measurement(share_led(own, rest), share_led(chance, rest)),
        "lape-random": Measurement(jackknife_shards(sums, random_part)),
        "lape-related": measured(related) if len(codes) > 2 else None,  # of two there is one pair
        "lape-english": measured(english) if "en" in codes and len(rest) > 1 else None,
    }


def about_size(
    matrices: Mapping[float, interp.evaluations.PerplexityMatrix],
) -> dict[str, Measurement | None]:
    """Whether the effect grows from each fraction to the next, on the same text."""
    if len(matrices) < 2:
        return {"lape-larger": None}
    sums = {"tokens": next(iter(matrices.values())).losses.tokens}
    sums |= {f"{size:g}": sums_of(matrix)["own"] for size, matrix in matrices.items()}

    def least_step(total: Mapping[str, Tensor]) -> Float64[Tensor, ""]:
        means = [per_token(total, f"{size:g}").diagonal().mean() for size in sorted(matrices)]
        return torch.stack([after - before for before, after in pairwise(means)]).min()

    return {"lape-larger": Measurement(jackknife_shards(sums, least_step))}


# ---------------------------------------------------------------- what is written


def values_by_off(
    texts: Table, column: str, languages: Sequence[str]
) -> dict[str, Float64[Tensor, " prompt"]]:
    """A column by prompt, with nothing off, its language's own neurons off, another language's off
    (the mean), and random ones off; prompts that lack one of these are left out."""
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
    return {str(name): torch.tensor(part.to_numpy()) for name, part in parts.items()}


def about_writing(texts: Table, languages: Sequence[str]) -> dict[str, Measurement | None]:
    """Continuations of natural text. A prompt has the same seed whatever is off, so comparisons are
    paired by prompt; None where fewer than two can be compared."""
    texts = texts.assign(
        left=texts["language"] != texts["begun"], english=texts["language"] == "en"
    )

    def more(rows: Table, column: str, baseline: str) -> Measurement | None:
        parts = values_by_off(rows, column, languages)
        if len(parts["own"]) < 2:
            return None
        generator = torch.Generator().manual_seed(0)
        value = paired_bootstrap(parts["own"], parts[baseline], generator)
        return Measurement(value, (parts[RANDOM] - parts[baseline]).mean().item())

    return {
        "lape-writing-leaves": more(texts, "left", "others"),
        "lape-writing-worse": more(texts, "loss", "others"),
        "lape-writing-english": more(texts[texts["begun"] != "en"], "english", NOTHING),
    }

"""What deactivate_neurons measures for the claims of Tang et al. (2024) in claims/.

Which neurons belong to which language is told from the rates alone; effects are those at one
fraction, fixed beforehand; what the model writes is judged by the untouched model.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

import interp
from interp.evaluations.perplexity import own_minus_others
from interp.inference.claims import Measurement
from interp.inference.intervals import jackknife, jackknife_shards, paired_bootstrap
from interp.plots.style import Table
from interp.results.words import NOTHING

RANDOM = "random"

RELATIVES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "lape-fr-es": (("fr", "es"),),
    "lape-neighbors": (("zh", "ja"), ("vi", "id")),
}
"""Pairs of languages, of which the closest is to be among the first three of all pairs."""

# ---------------------------------------------------------------- which neurons, and where


def about_neurons(
    stats: interp.FiringStats, fraction: float, generator: torch.Generator
) -> dict[str, Measurement | None]:
    """How many are selected, whose they are, where they are and who shares them."""
    found = interp.select_by_entropy(stats, fraction)
    drawn = found.random_like(generator, exclude=found.union())
    return {
        **about_membership(found, drawn, stats.rate, fraction),
        **about_layers(stats, fraction),
        **about_relatives(stats, fraction, drawn),
    }


def about_membership(
    found: interp.NeuronSelection,
    drawn: interp.NeuronSelection,
    rate: Float[Tensor, "language layer neuron"],
    fraction: float,
) -> dict[str, Measurement | None]:
    """Counted without error. A neuron that belonged to no language would be missing from the
    first number."""
    expected = round(fraction * rate[0].numel())
    words = {"expected": f"{expected:,}", "fraction": f"{fraction:.2g}"}
    missing = float(abs(int(found.union().sum()) - expected))
    wrong = (float(misassigned(neurons, rate)) for neurons in (found, drawn))
    return {
        "lape-size": Measurement(missing, words=words),
        "lape-membership": Measurement(*wrong),
    }


def misassigned(
    found: interp.NeuronSelection,
    rate: Float[Tensor, "language layer neuron"],
    quantile: float = 0.95,
) -> int:
    """Selected neurons that belong to a language in which they are not busy, or do not belong to
    one in which they are; busy by the definition, from the rates."""
    rate = rate.double()
    threshold = rate.flatten().kthvalue(round(quantile * rate.numel())).values
    wrong = (found.mask != (rate > threshold)).any(dim=0)
    return int((wrong & found.union()).sum())


def in_layers(neurons: interp.NeuronSelection, layers: slice) -> Float64[Tensor, ""]:
    """Share of all memberships that are in these layers."""
    counts = neurons.mask.sum(dim=(0, 2)).double()
    return counts[layers].sum() / counts.sum()


def about_layers(stats: interp.FiringStats, fraction: float) -> dict[str, Measurement | None]:
    """Where the neurons are; each interval is over the text that they were found on."""
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
    """Of languages that were read, and only where there are more than three other pairs."""
    n_pairs = len(stats.languages) * (len(stats.languages) - 1) // 2
    measured: dict[str, Measurement | None] = dict.fromkeys(RELATIVES)
    for name, pairs in RELATIVES.items():
        here = [pair for pair in pairs if set(pair) <= set(stats.languages)]
        if not here or n_pairs - len(here) < 3:
            continue

        def lead(part: interp.FiringStats, here: Sequence[tuple[str, str]] = here) -> Tensor:
            return lead_of(interp.select_by_entropy(part, fraction), here)

        measured[name] = Measurement(jackknife(stats, lead), lead_of(drawn, here).item())
    return measured


def lead_of(
    neurons: interp.NeuronSelection, pairs: Sequence[tuple[str, str]]
) -> Float64[Tensor, ""]:
    """The largest Jaccard index of these pairs less the third largest of all others."""
    jaccard = neurons.jaccard().double().nan_to_num(0.0)  # NaN: two languages without neurons
    mine = torch.zeros_like(jaccard, dtype=torch.bool)
    for one, other in pairs:
        places = sorted((neurons.languages.index(one), neurons.languages.index(other)))
        mine[places[0], places[1]] = True
    upper = torch.ones_like(mine).triu(diagonal=1)
    return jaccard[mine].max() - jaccard[upper & ~mine].topk(3).values[-1]


# ---------------------------------------------------------------- what switching off does


def sums_of(matrix: interp.evaluations.PerplexityMatrix) -> dict[str, Tensor]:
    """Nats more than with nothing changed, [shard off read], and tokens: of chosen neurons, and of
    random ones as the mean over draws."""
    nats = matrix.losses.nats
    chance = matrix.random.mean(dim=1) - nats[:, :1]
    return {"own": nats[:, 1:] - nats[:, :1], "random": chance, "tokens": matrix.losses.tokens}


def per_token(total: Mapping[str, Tensor], which: str) -> Float64[Tensor, "off read"]:
    return total[which] / total["tokens"]


def off_diagonal(square: Float64[Tensor, "off read"]) -> Float64[Tensor, " pair"]:
    """Each pair of languages once: the mean of what either's neurons do to the other."""
    row, column = torch.triu_indices(len(square), len(square), offset=1)
    return (square + square.T)[row, column] / 2


def rank_correlation(a: Float64[Tensor, " pair"], b: Float64[Tensor, " pair"]) -> Tensor:
    """Spearman's; of equal values each has their mean rank."""
    ranks = [torch.tensor(pd.Series(each.tolist()).rank().tolist()).double() for each in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1]


def share_led(square: Float64[Tensor, "off read"], places: Sequence[int]) -> float:
    """Of these languages, the share whose own cell is above the means of its row and column."""
    own = square.diagonal()
    led = (own > square.mean(dim=1)) & (own > square.mean(dim=0))
    return led[list(places)].double().mean().item()


def about_effects(
    matrix: interp.evaluations.PerplexityMatrix, neurons: interp.NeuronSelection
) -> dict[str, Measurement | None]:
    """What switching off does, at one fraction; `off` and `read` are the same languages."""
    sums, codes = sums_of(matrix), matrix.languages
    total = {name: each.sum(dim=0) for name, each in sums.items()}
    own, chance = (per_token(total, which) for which in ("own", RANDOM))
    rest = [place for place, code in enumerate(codes) if code != "en"]

    def random_part(total: Mapping[str, Tensor]) -> Tensor:
        random, own = (per_token(total, which).diagonal().mean() for which in (RANDOM, "own"))
        return random / own

    def related(total: Mapping[str, Tensor], which: str = "own") -> Tensor:
        shared = off_diagonal(neurons.jaccard().double())
        return rank_correlation(shared, off_diagonal(per_token(total, which)))

    def english(total: Mapping[str, Tensor], which: str = "own") -> Tensor:
        return english_least(per_token(total, which), codes.index("en"), rest)

    measured: dict[str, Measurement | None] = {
        "lape-own-language": Measurement(
            matrix.diagonal().mean, own_minus_others(chance).mean().item()
        ),
        "lape-diagonal": Measurement(share_led(own, rest), share_led(chance, rest)),
        "lape-random": Measurement(jackknife_shards(sums, random_part)),
        "lape-related": None,
        "lape-english": None,
    }
    for name, statistic, known in (
        ("lape-related", related, len(codes) > 2),  # with two there is one pair
        ("lape-english", english, "en" in codes and len(rest) > 1),
    ):
        if known:
            control = statistic(total, RANDOM).item()
            measured[name] = Measurement(jackknife_shards(sums, statistic), control)
    return measured


def english_least(square: Float64[Tensor, "off read"], place: int, rest: Sequence[int]) -> Tensor:
    own = square.diagonal()
    return own[place] - own[list(rest)].min()


def about_size(
    matrices: Mapping[float, interp.evaluations.PerplexityMatrix],
) -> dict[str, Measurement | None]:
    """Whether the effect grows from each fraction to the next; all were read on the same text."""
    if len(matrices) < 2:
        return {"lape-larger": None}
    first = next(iter(matrices.values()))
    sums: dict[str, Tensor] = {"tokens": first.losses.tokens}
    sums |= {f"{part:g}": sums_of(matrix)["own"] for part, matrix in matrices.items()}

    def least_step(total: Mapping[str, Tensor]) -> Float64[Tensor, ""]:
        means = [per_token(total, f"{part:g}").diagonal().mean() for part in sorted(matrices)]
        return torch.stack([after - before for before, after in pairwise(means)]).min()

    return {"lape-larger": Measurement(jackknife_shards(sums, least_step))}


# ---------------------------------------------------------------- what is written


def beside_own(
    texts: Table, column: str, languages: Sequence[str]
) -> dict[str, Float64[Tensor, " prompt"]]:
    """A number of each prompt, of what was written with nothing off, with the own neurons off,
    with those of the other languages (their mean), and with random ones; none where one of these
    is unknown."""
    wide = texts.pivot(index=["begun", "prompt"], columns="off", values=column).astype(float)
    each = wide[list(languages)]
    own = np.array(wide.index.get_level_values("begun"))[:, None] == np.array(each.columns)
    parts = pd.DataFrame(
        {
            NOTHING: wide[NOTHING],
            "own": each.where(own).sum(axis=1, min_count=1),
            "others": each.mask(own).mean(axis=1),
            RANDOM: wide[RANDOM],
        }
    ).dropna()
    return {str(name): torch.tensor(part.to_numpy()) for name, part in parts.items()}


def about_writing(texts: Table, languages: Sequence[str]) -> dict[str, Measurement | None]:
    """Texts begun by natural text of a language; every prompt is gone on with from the same seed
    whatever is off, so texts are compared one by one. None where fewer than two can be."""
    texts = texts.assign(
        left=texts["language"] != texts["begun"], english=texts["language"] == "en"
    )

    def more(rows: Table, column: str, than: str) -> Measurement | None:
        parts = beside_own(rows, column, languages)
        if len(parts["own"]) < 2:
            return None
        generator = torch.Generator().manual_seed(0)
        value = paired_bootstrap(parts["own"], parts[than], generator)
        return Measurement(value, (parts[RANDOM] - parts[than]).mean().item())

    return {
        "lape-writing-leaves": more(texts, "left", "others"),
        "lape-writing-worse": more(texts, "loss", "others"),
        "lape-writing-english": more(texts[texts["begun"] != "en"], "english", NOTHING),
    }

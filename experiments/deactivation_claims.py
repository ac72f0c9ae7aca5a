"""The claims of Tang et al. (2024) that can be checked, on what deactivate_neurons measures.

Each is put as a number and a bar, and beside it stands what as many random neurons give. Which
neurons belong to which language is told from the rates alone; effects are those at one fraction,
fixed beforehand; what the model writes is judged by the untouched model.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

import interp
from interp.inference.claims import Claim, claim_of, counted
from interp.inference.intervals import jackknife, jackknife_shards, paired_bootstrap
from interp.plots.style import Table
from interp.results.words import NOTHING

COMMAND = "python -m experiments.deactivate_neurons"
SOURCE = "Tang et al. (2024)"
RANDOM = "random"
AS_MANY = "as many random neurons"

RELATIVES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("fr-es", "Related languages share: French and Spanish.", (("fr", "es"),)),
    (
        "neighbours",
        "Neighbours share: Chinese and Japanese, or Vietnamese and Indonesian.",
        (("zh", "ja"), ("vi", "id")),
    ),
)
"""Name, statement and pairs, of which the closest is to be among the first three of all pairs."""


def said_on(on: str) -> dict[str, Any]:
    return {"source": SOURCE, "on": on, "command": COMMAND}


# ---------------------------------------------------------------- which neurons, and where


def claims_about_neurons(
    stats: interp.FiringStats, fraction: float, generator: torch.Generator, on: str
) -> list[Claim]:
    """How many are selected, whose they are, where they are and who shares them."""
    found = interp.select_by_entropy(stats, fraction)
    drawn = found.random_like(generator, exclude=found.union())
    return [
        *claims_about_membership(found, drawn, stats.rate, fraction, on),
        *claims_about_layers(stats, fraction, on),
        *claims_about_relatives(stats, fraction, drawn, on),
    ]


def claims_about_membership(
    found: interp.NeuronSelection,
    drawn: interp.NeuronSelection,
    rate: Float[Tensor, "language layer neuron"],
    fraction: float,
    on: str,
) -> list[Claim]:
    """Exact, so counted without error. A neuron that belonged to no language would be missing from
    the first number."""
    expected = round(fraction * rate[0].numel())
    return [
        counted(
            float(abs(int(found.union().sum()) - expected)),
            name="lape-size",
            statement="As many neurons are selected as were asked for, each in a language.",
            how=f"neurons more or less than {expected:,}, {fraction:.2g} of all",
            bar=0.5,
            side="below",
            **said_on(on),
        ),
        counted(
            float(belonging_amiss(found, rate)),
            name="lape-membership",
            statement="A selected neuron belongs to those languages in which it fires more often "
            "than 95 % of all neurons in all languages do, and to no other.",
            how="selected neurons whose languages are others",
            bar=0.5,
            side="below",
            control=float(belonging_amiss(drawn, rate)),
            control_name=AS_MANY,
            **said_on(on),
        ),
    ]


def belonging_amiss(
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


def claims_about_layers(stats: interp.FiringStats, fraction: float, on: str) -> list[Claim]:
    """Where the neurons are; each interval is over the text that they were found on."""
    n_layers = stats.fired.shape[2]
    last = max(round(n_layers / 4), 1)
    places = (("first", slice(0, 2), 2), ("last", slice(n_layers - last, n_layers), last))
    return [
        claim_of(
            jackknife(
                stats,
                lambda part, layers=layers: in_layers(
                    interp.select_by_entropy(part, fraction), layers
                ),
            ),
            name=f"lape-{end}-layers",
            statement=f"Language neurons gather in the {end} layers.",
            how=f"share of them in {n} of {n_layers} layers",
            bar=n / n_layers,
            control=n / n_layers,
            control_name="if spread evenly",
            **said_on(on),
        )
        for end, layers, n in places
    ]


def claims_about_relatives(
    stats: interp.FiringStats, fraction: float, drawn: interp.NeuronSelection, on: str
) -> list[Claim]:
    """Of languages that were read, and only where there are more than three other pairs."""
    n_pairs = len(stats.languages) * (len(stats.languages) - 1) // 2
    claims = []
    for name, statement, pairs in RELATIVES:
        here = [pair for pair in pairs if set(pair) <= set(stats.languages)]
        if not here or n_pairs - len(here) < 3:
            continue
        claims.append(
            claim_of(
                jackknife(
                    stats,
                    lambda part, here=here: lead_of(interp.select_by_entropy(part, fraction), here),
                ),
                name=f"lape-{name}",
                statement=statement,
                how="Jaccard index less that of the third closest of the other pairs: above zero "
                "among the first three",
                control=lead_of(drawn, here).item(),
                control_name=AS_MANY,
                **said_on(on),
            )
        )
    return claims


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


def sums_of(matrix: interp.PerplexityMatrix) -> dict[str, Tensor]:
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


def own_minus_others(square: Float64[Tensor, "off read"]) -> Float64[Tensor, " language"]:
    own = square.diagonal()
    return own - (square.sum(dim=1) - own) / (len(square) - 1)


def share_led(square: Float64[Tensor, "off read"], places: Sequence[int]) -> float:
    """Of these languages, the share whose own cell is above the means of its row and column."""
    own = square.diagonal()
    led = (own > square.mean(dim=1)) & (own > square.mean(dim=0))
    return led[list(places)].double().mean().item()


def claims_about_effects(
    matrix: interp.PerplexityMatrix, neurons: interp.NeuronSelection, on: str
) -> list[Claim]:
    """What switching off does, at one fraction; `off` and `read` are the same languages."""
    sums, codes = sums_of(matrix), matrix.languages
    total = {name: each.sum(dim=0) for name, each in sums.items()}
    own, chance = (per_token(total, which) for which in ("own", RANDOM))
    rest = [place for place, code in enumerate(codes) if code != "en"]
    said = said_on(on)
    beside = {"control_name": AS_MANY, **said}
    claims = [
        claim_of(
            matrix.diagonal().mean,
            name="lape-own-language",
            statement="A language suffers most when its own neurons are switched off.",
            how="own language minus the mean of the others, mean over languages, nats per token",
            control=own_minus_others(chance).mean().item(),
            **beside,
        ),
        counted(
            share_led(own, rest),
            name="lape-diagonal",
            statement="For nine of ten languages but English, the own increase is above the mean "
            "of its row and of its column.",
            how="share of the languages",
            bar=0.9 - 1e-9,
            control=share_led(chance, rest),
            **beside,
        ),
        claim_of(
            jackknife_shards(
                sums,
                lambda total: (
                    per_token(total, RANDOM).diagonal().mean()
                    / per_token(total, "own").diagonal().mean()
                ),
            ),
            name="lape-random",
            statement="As many random neurons do hardly anything.",
            how="their effect on the own language as part of that of the chosen ones",
            bar=0.2,
            side="below",
            **said,
        ),
    ]
    if len(codes) > 2:  # with two there is one pair, and nothing to correlate
        shared = off_diagonal(neurons.jaccard().double())
        claims.append(
            claim_of(
                jackknife_shards(
                    sums,
                    lambda total: rank_correlation(shared, off_diagonal(per_token(total, "own"))),
                ),
                name="lape-related",
                statement="Languages that share more neurons suffer more from each other's.",
                how="rank correlation over pairs of Jaccard index and mutual increase",
                control=rank_correlation(shared, off_diagonal(chance)).item(),
                control_name="the increase with random neurons off",
                **said,
            )
        )
    if "en" in codes and len(rest) > 1:
        place = codes.index("en")
        claims.append(
            claim_of(
                jackknife_shards(
                    sums, lambda total: english_least(per_token(total, "own"), place, rest)
                ),
                name="lape-english",
                statement="English depends least on its neurons.",
                how="increase of English on its own minus the least of the others, nats per token",
                side="below",
                control=english_least(chance, place, rest).item(),
                **beside,
            )
        )
    return claims


def english_least(square: Float64[Tensor, "off read"], place: int, rest: Sequence[int]) -> Tensor:
    own = square.diagonal()
    return own[place] - own[list(rest)].min()


def claim_about_size(matrices: Mapping[float, interp.PerplexityMatrix], on: str) -> Claim:
    """Whether the effect grows from each fraction to the next; all were read on the same text."""
    first = next(iter(matrices.values()))
    sums: dict[str, Tensor] = {"tokens": first.losses.tokens}
    sums |= {f"{part:g}": sums_of(matrix)["own"] for part, matrix in matrices.items()}

    def least_step(total: Mapping[str, Tensor]) -> Float64[Tensor, ""]:
        means = [per_token(total, f"{part:g}").diagonal().mean() for part in sorted(matrices)]
        return torch.stack([after - before for before, after in pairwise(means)]).min()

    return claim_of(
        jackknife_shards(sums, least_step),
        name="lape-larger",
        statement="The more neurons are switched off, the more the language suffers.",
        how="least step from one fraction to the next, mean over languages, nats per token",
        **said_on(on),
    )


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


def claims_about_writing(texts: Table, languages: Sequence[str], on: str) -> list[Claim]:
    """Texts begun by natural text of a language; every prompt is gone on with from the same seed
    whatever is off, so texts are compared one by one. None where fewer than two can be."""
    texts = texts.assign(
        left=texts["language"] != texts["begun"], english=texts["language"] == "en"
    )

    def claim(rows: Table, column: str, one: str, than: str, **told: str) -> list[Claim]:
        parts = beside_own(rows, column, languages)
        if len(parts[one]) < 2:
            return []
        generator = torch.Generator().manual_seed(0)
        found = claim_of(
            paired_bootstrap(parts[one], parts[than], generator),
            control=(parts[RANDOM] - parts[than]).mean().item(),
            control_name=AS_MANY,
            **told,
            **said_on(on),
        )
        return [found]

    rest = texts[texts["begun"] != "en"]
    return [
        *claim(
            texts,
            "left",
            "own",
            "others",
            name="lape-writing-leaves",
            statement="A text is gone on with in another language more often when the neurons of "
            "its own language are off.",
            how="share of texts that leave the language they were begun in, its neurons off, less "
            "that with another language's off",
        ),
        *claim(
            texts,
            "loss",
            "own",
            "others",
            name="lape-writing-worse",
            statement="What is written without the neurons of its language is worse.",
            how="loss of the untouched model on what was written, nats per token, the language's "
            "neurons off, less that with another language's off",
        ),
        *claim(
            rest,
            "english",
            "own",
            NOTHING,
            name="lape-writing-english",
            statement="Where a language's neurons are off, what is written drifts to English.",
            how="share of texts begun in other languages that go on in English, their language's "
            "neurons off, less that with nothing off",
        ),
    ]

"""A language's neurons off, every language read: how much worse, and for whom?

    python -m experiments.deactivate_neurons tiny     # seconds
    python -m experiments.deactivate_neurons babel    # 10 minutes of one core
    python -m experiments.deactivate_neurons paper --study.model NAME --study.text FOLDER

Reads   a model, and text of its languages: neurons found on one half, losses read on the other
Writes  results/deactivate_neurons/<preset>/<fraction>/matrix.safetensors, matrix.csv; table.csv,
        claims.json

Tang et al. (2024) find that perplexity rises most on the language whose neurons are off. Beside
each increase stand its interval over documents and what as many random neurons per layer do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro
from jaxtyping import Float64
from torch import Tensor

import interp
from experiments.study import Study
from interp import artifacts
from interp.claims import Claim, claim_of, counted, markdown, save_claims
from interp.commands.effects import show_matrix
from interp.uncertainty import Estimate, jackknife, jackknife_shards

COMMAND = "python -m experiments.deactivate_neurons"
SOURCE = "Tang et al. (2024)"


@dataclass(frozen=True)
class Config:
    """What is switched off."""

    study: Study
    """Model and text."""

    fractions: tuple[float, ...] = (0.01, 0.03, 0.05)
    """Of all neurons, selected by LAPE."""

    tried: float = 0.03
    """The fraction that the claims are tried at; for Babel that of its card, fixed beforehand."""

    n_draws: int = 2
    """Random sets of as many neurons per layer, at that fraction; none at the others."""

    out: Path = Path("results/deactivate_neurons/babel")
    """Folder for the matrices."""


PRESETS = {
    "tiny": (
        "Two languages, little text: seconds.",
        Config(
            Study(
                languages=("de", "ja"),
                tokens=4000,
                n_shards=4,
                out=Path("results/deactivate_neurons/tiny"),
            ),
            fractions=(0.03,),
            n_draws=1,
            out=Path("results/deactivate_neurons/tiny"),
        ),
    ),
    "babel": (
        "The shipped model on its parallel sentences: 10 minutes of one core.",
        Config(Study()),
    ),
    "paper": (
        "A model and text of your own, as in the paper: one neuron in a hundred.",
        Config(
            Study(tokens=1_000_000, out=Path("results/deactivate_neurons/paper")),
            fractions=(0.01,),
            tried=0.01,
            out=Path("results/deactivate_neurons/paper"),
        ),
    ),
}


# ---------------------------------------------------------------- claims


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


def in_layers(neurons: interp.NeuronSelection, layers: slice) -> Float64[Tensor, ""]:
    """Share of all memberships that are in these layers."""
    counts = neurons.mask.sum(dim=(0, 2)).double()
    return counts[layers].sum() / counts.sum()


def claims_about_effects(
    matrix: interp.PerplexityMatrix, neurons: interp.NeuronSelection, on: str
) -> list[Claim]:
    """What switching off does, at one fraction; `off` and `read` are the same languages."""
    sums, found = sums_of(matrix), matrix.diagonal()
    increase, codes = matrix.increase.value, matrix.languages
    own = increase.diagonal()
    led = (own > increase.mean(dim=1)) & (own > increase.mean(dim=0))
    others = [code for code in codes if code != "en"]
    about: dict[str, Any] = {"source": SOURCE, "on": on, "command": COMMAND}
    chance = jackknife_shards(
        sums, lambda total: own_minus_others(per_token(total, "random")).mean()
    ).value.item()
    claims = [
        claim_of(
            found.mean,
            name="lape-own-language",
            statement="A language suffers most when its own neurons are switched off.",
            how="own language minus the mean of the others, mean over languages, nats per token",
            control=chance,
            control_name="as many random neurons",
            **about,
        ),
        counted(
            sum(led[codes.index(code)].item() for code in others) / len(others),
            name="lape-diagonal",
            statement="For nine of ten languages but English, the own increase is above the mean "
            "of its row and of its column.",
            how="share of the languages",
            bar=0.9 - 1e-9,
            **about,
        ),
        claim_of(
            jackknife_shards(
                sums,
                lambda total: (
                    per_token(total, "random").diagonal().mean()
                    / per_token(total, "own").diagonal().mean()
                ),
            ),
            name="lape-random",
            statement="As many random neurons do hardly anything.",
            how="their effect on the own language as part of that of the chosen ones",
            bar=0.2,
            side="below",
            **about,
        ),
    ]
    if len(codes) > 2:  # with two there is one pair, and nothing to correlate
        claims.append(
            claim_of(
                jackknife_shards(
                    sums,
                    lambda total: rank_correlation(
                        off_diagonal(neurons.jaccard().double()),
                        off_diagonal(per_token(total, "own")),
                    ),
                ),
                name="lape-related",
                statement="Languages that share more neurons suffer more from each other's.",
                how="rank correlation over pairs of Jaccard index and mutual increase",
                **about,
            )
        )
    if "en" in codes and len(others) > 1:
        place, rest = codes.index("en"), [codes.index(code) for code in others]
        claims.append(
            claim_of(
                jackknife_shards(sums, lambda total: english_least(total, place, rest)),
                name="lape-english",
                statement="English depends least on its neurons.",
                how="increase of English on its own minus the least of the others, nats per token",
                side="below",
                **about,
            )
        )
    return claims


def mean_own(total: Mapping[str, Tensor]) -> Float64[Tensor, ""]:
    return per_token(total, "own").diagonal().mean()


def own_minus_others(square: Float64[Tensor, "off read"]) -> Float64[Tensor, " language"]:
    own = square.diagonal()
    return own - (square.sum(dim=1) - own) / (len(square) - 1)


def english_least(total: Mapping[str, Tensor], place: int, rest: list[int]) -> Tensor:
    own = per_token(total, "own").diagonal()
    return own[place] - own[rest].min()


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
            source=SOURCE,
            on=on,
            how=f"share of them in {n} of {n_layers} layers",
            command=COMMAND,
            bar=n / n_layers,
            control=n / n_layers,
            control_name="if spread evenly",
        )
        for end, layers, n in places
    ]


def claim_about_size(matrices: Mapping[float, interp.PerplexityMatrix], on: str) -> Claim:
    """Whether the effect grows from each fraction to the next. The intervals of the steps take the
    two ends as independent, which is too wide: both were read on the same documents."""
    means = [jackknife_shards(sums_of(matrices[each]), mean_own) for each in sorted(matrices)]
    steps = [step_between(before, after) for before, after in pairwise(means)]
    value, reach = min(steps)
    return Claim(
        name="lape-larger",
        statement="The more neurons are switched off, the more the language suffers.",
        source=SOURCE,
        on=on,
        how="least step from one fraction to the next, mean over languages, nats per token",
        command=COMMAND,
        value=value,
        low=value - reach,
        high=value + reach,
    )


def step_between(before: Estimate, after: Estimate) -> tuple[float, float]:
    value = after.value - before.value
    reach = torch.hypot(after.high - after.value, before.high - before.value)
    return value.item(), reach.item()


# ---------------------------------------------------------------- running


def rows_of(matrix: interp.PerplexityMatrix, fraction: float) -> Iterator[dict[str, Any]]:
    found, excess = matrix.diagonal(), matrix.excess
    for place, code in enumerate(found.languages):
        row, column = matrix.off.index(code), matrix.languages.index(code)
        yield {
            "fraction": fraction,
            "language": code,
            "neurons": matrix.neurons[row],
            "own_minus_others": found.own_minus_others.value[place].item(),
            "low": found.own_minus_others.low[place].item(),
            "high": found.own_minus_others.high[place].item(),
            "beyond_random": excess.value[row, column].item(),
            "largest_in_row": code in found.largest_in_row,
            "p_of_all": found.test.p_value,
        }


def main(config: Config) -> None:
    study = config.study
    if config.tried not in config.fractions:
        raise ValueError(f"The claims are tried at {config.tried}: give it among the fractions.")
    model = study.open()
    stats, _ = study.statistics(model)
    reading = study.read(model, "held_out")
    matrices = {}
    for fraction in config.fractions:
        matrix = interp.perplexity_matrix(
            model,
            interp.select_by_entropy(stats, fraction),
            reading,
            n_draws=config.n_draws if fraction == config.tried else 0,
            generator=torch.Generator().manual_seed(study.seed),
            out=config.out / f"{fraction:g}",
        )
        text = matrix.to_frame().to_csv(index=False)
        artifacts.write_text(config.out / f"{fraction:g}" / "matrix.csv", text)
        print(f"\n{fraction:.1%} of all neurons, found by LAPE\n", flush=True)
        show_matrix(matrix)
        matrices[fraction] = matrix
    rows = [row for fraction, matrix in matrices.items() for row in rows_of(matrix, fraction)]
    artifacts.write_text(config.out / "table.csv", pd.DataFrame(rows).to_csv(index=False))
    tried = interp.select_by_entropy(stats, config.tried)
    claims = [
        *claims_about_effects(matrices[config.tried], tried, model.name),
        *claims_about_layers(stats, config.tried, model.name),
    ]
    if len(matrices) > 1:
        claims.append(claim_about_size(matrices, model.name))
    save_claims(claims, config.out / "claims.json")
    print(f"\n{markdown(claims)}")


if __name__ == "__main__":
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: text for name, (text, _) in PRESETS.items()},
    )
    main(tyro.cli(parsed, description=__doc__))

"""A language's neurons off, every language read: how much worse, and for whom?

    python -m experiments.deactivate_neurons tiny     # seconds
    python -m experiments.deactivate_neurons babel    # 10 minutes of one core
    python -m experiments.deactivate_neurons paper    # hours of a GPU; --study.model NAME

Reads   a model, and text of its languages: neurons found on one half, losses read on the other
Writes  results/deactivate_neurons/<preset>/<fraction>/matrix.safetensors, matrix.csv; table.csv,
        writing.csv, texts.csv (what is written with neurons off), claims.json

Tang et al. (2024) find that perplexity rises most on the language whose neurons are off, and that
the model no longer writes it well. Beside each increase stand its interval over documents and what
as many random neurons per layer do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro
from torch import Tensor

import interp
from experiments import papers
from experiments.deactivation_claims import (
    RANDOM,
    claim_about_size,
    claims_about_effects,
    claims_about_neurons,
    claims_about_writing,
)
from experiments.study import Study, for_model
from interp.inference.claims import markdown, save_claims
from interp.plots.style import Table
from interp.results import artifacts
from interp.results.words import NOTHING


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

    n_texts: int = 16
    """Texts per language that are begun by natural text and gone on with by the model."""

    begin: int = 8
    """Tokens that they are begun with."""

    max_new_tokens: int = 48
    """Length of what is written."""

    temperature: float = 0.8
    """Of sampling."""

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
            n_texts=3,
            max_new_tokens=16,
            out=Path("results/deactivate_neurons/tiny"),
        ),
    ),
    "babel": (
        "The shipped model on its parallel sentences: 10 minutes of one core.",
        Config(Study()),
    ),
    "paper": (
        papers.told(
            papers.TANG,
            "Wikipedia, 100 million tokens in each of 7 languages",
            7 * (1e8 + 22 * 2**20),
        ),
        Config(
            papers.under(papers.TANG, "deactivate_neurons"),
            fractions=(0.01,),
            tried=0.01,
            out=papers.out("deactivate_neurons"),
        ),
    ),
}


# ---------------------------------------------------------------- writing


def beginnings(reading: interp.Corpora, model: interp.NeuronModel, config: Config) -> list[str]:
    """The first tokens of some rows of each language, one language after the other."""
    n = min(config.n_texts, *(len(rows.ids) for rows in reading.rows.values()))
    return [
        model.decode(ids[keep][: config.begin].tolist()).rstrip("\ufffd")
        for rows in reading.rows.values()
        for ids, keep in zip(rows.ids[:n], reading.keep(rows.ids[:n], rows.length[:n]), strict=True)
    ]


def written(
    model: interp.NeuronModel,
    found: interp.NeuronSelection,
    drawn: interp.NeuronSelection,
    prompts: Sequence[str],
    config: Config,
) -> Table:
    """A row for each text: what was off, the language it was begun in, and what came of it.

    The neurons of every language are off in turn while all prompts are gone on with; random ones,
    drawn like those of a language, while its own are. A prompt has the same seed in all.
    """
    codes = found.languages
    n = len(prompts) // len(codes)

    def under(off: str, places: range, neurons: Tensor) -> Table:
        texts = interp.generated_languages(
            model,
            codes,
            interp.intervene(model, neurons, interp.deactivate) if neurons.any() else None,
            prompts=[prompts[place] for place in places],
            n=1,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=config.study.seed + places.start,
            batch_size=64,
            progress=False,
        )
        begun = [codes[place // n] for place in places]
        return texts.texts_frame().assign(
            off=off, begun=begun, prompt=[place % n for place in places]
        )

    every = range(len(prompts))
    nothing = torch.zeros_like(found.mask[0])
    frames = [under(NOTHING, every, nothing)]
    frames += [under(code, every, found[code]) for code in codes]
    for place, code in enumerate(codes):
        frames.append(under(RANDOM, range(place * n, (place + 1) * n), drawn[code]))
    return pd.concat(frames, ignore_index=True)


def writing_table(texts: Table) -> Table:
    """A row for each language begun and what was off: nothing, its own, another's, random ones.

    `same`: texts that are what was written with nothing off. All of them: the neurons do nothing.
    """
    whose = texts["off"].where(texts["off"].isin([NOTHING, RANDOM]), "another's")
    whose = whose.mask(texts["off"] == texts["begun"], "own")
    untouched = texts[texts["off"] == NOTHING].set_index(["begun", "prompt"])["text"]
    before = untouched.reindex(pd.MultiIndex.from_frame(texts[["begun", "prompt"]])).to_numpy()
    rows = texts.assign(
        off=whose,
        in_language=texts["language"] == texts["begun"],
        in_english=texts["language"] == "en",
        same=texts["text"] == before,
    )
    told = rows.groupby(["begun", "off"], sort=False)
    columns = ["in_language", "in_english", "loss", "repetition", "same"]
    found = told[columns].mean().assign(texts=told.size())
    languages = texts["begun"].unique()
    return found.reindex(product(languages, [NOTHING, "own", "another's", RANDOM])).reset_index()


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
    config = for_model(config)
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
        print(matrix.table())
        matrices[fraction] = matrix
    rows = [row for fraction, matrix in matrices.items() for row in rows_of(matrix, fraction)]
    artifacts.write_text(config.out / "table.csv", pd.DataFrame(rows).to_csv(index=False))
    tried = interp.select_by_entropy(stats, config.tried)
    generator = torch.Generator().manual_seed(study.seed)
    drawn = tried.random_like(generator, exclude=tried.union())
    texts = written(model, tried, drawn, beginnings(reading, model, config), config)
    artifacts.write_text(config.out / "texts.csv", texts.to_csv(index=False))
    writing = writing_table(texts)
    artifacts.write_text(config.out / "writing.csv", writing.to_csv(index=False))
    print(f"\n{writing.to_string(index=False, float_format='%.2f')}\n", flush=True)
    claims = [
        *claims_about_neurons(stats, config.tried, generator, model.name),
        *claims_about_effects(matrices[config.tried], tried, model.name),
        *claims_about_writing(texts, tried.languages, model.name),
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

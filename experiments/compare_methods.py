"""Which way of finding language neurons is best? All at the same size, on the same statistics.

    python -m experiments.compare_methods tiny      # a minute
    python -m experiments.compare_methods babel     # 40 minutes on 2 cores
    python -m experiments.compare_methods paper --study.model NAME --study.text FOLDER

Reads   a model and text of its languages; models with planted neurons, made here
Writes  results/compare_methods/<preset>/recovery.csv, methods.csv, languages.csv

Each method chooses as many neurons for each language, and is judged three times:

- recovery: on small models in which the neurons of each language were built in, beside decoys that
  are merely busy, rare, or driven by a script or a domain (experiments.recover_planted);
- effect: on the model, how much more switching the chosen neurons off costs their own language than
  the others, on text that nothing was chosen from; and how often pushing them by the difference of
  means makes the model write in their language, well enough to pass the guard;
- stability: how far the choices from two disjoint parts of the text agree, beside chance.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import transformers
import tyro
from tqdm.auto import tqdm

import interp
from experiments import recover_planted, steer_language
from experiments.recover_planted import SELECTORS, Measured
from experiments.study import Study
from interp import artifacts
from interp.evaluations.generation import Guard
from interp.selection import jaccard_between
from interp.stability import chance_jaccard


@dataclass(frozen=True)
class Config:
    """What is compared."""

    study: Study
    """Model and text."""

    neurons: int = 120
    """Chosen for each language: about what LAPE gives it at 3 % of Babel's neurons."""

    strength: float = 2.0
    """Times the difference of means, for switching the language."""

    n_texts: int = 30
    """Written per language and method; 0: no switching."""

    n_draws: int = 2
    """Random sets of as many neurons per layer, beside each switching off."""

    recovery: recover_planted.Config = recover_planted.PRESETS["babel"][1]
    """The models with planted neurons."""

    out: Path = Path("results/compare_methods/babel")
    """Folder for the tables."""


PRESETS = {
    "tiny": (
        "Two languages, little of everything: a minute.",
        Config(
            Study(languages=("de", "ja"), tokens=2000, n_shards=2, block_length=64),
            n_texts=3,
            n_draws=1,
            recovery=replace(recover_planted.PRESETS["tiny"][1], effects=(6.0,), seeds=1),
            out=Path("results/compare_methods/tiny"),
        ),
    ),
    "babel": ("The shipped model: 40 minutes on 2 cores.", Config(Study(tokens=6000))),
    "paper": (
        "A model and text of your own; one neuron in a hundred for each language.",
        Config(
            Study(tokens=500_000),
            neurons=3500,
            out=Path("results/compare_methods/paper"),
        ),
    ),
}

Text = Mapping[str, Sequence[str]]


def parts(study: Study) -> tuple[Text, Text, Text]:
    """Every document of each language, in three parts: a quarter, a quarter, and the rest."""
    found: tuple[dict[str, list[str]], ...] = ({}, {}, {})
    for code in study.languages:
        documents = list(study.documents(code))
        for part, chosen in zip(found, ((0,), (1,), (2, 3)), strict=True):
            part[code] = [text for place, text in enumerate(documents) if place % 4 in chosen]
    return found


def measure(model: interp.NeuronModel, text: Text, config: Config, folder: Path) -> Measured:
    """Rates and moments of running text, and means of its sentences; kept in the folder."""
    study = config.study
    corpora = interp.read_corpora(
        text,
        study.languages,
        model,
        block_length=study.block_length,
        tokens=study.tokens,
        n_shards=study.n_shards,
        progress=False,
    )
    stats = interp.collect(
        model, corpora, folder / "tokens", wanted=interp.Wanted(moments=True), progress=False
    )
    moments = interp.ActivationMoments.load(folder / "tokens" / "moments.safetensors")
    sentences = interp.read_sentences(
        text, study.languages, model, n_shards=study.n_shards, progress=False
    )
    wanted = interp.Wanted(sentence_means=("pre", "post"))
    interp.collect(model, sentences, folder / "sentences", wanted=wanted, progress=False)
    means = interp.open_sentence_means(folder / "sentences")
    generator = torch.Generator().manual_seed(study.seed)
    return Measured(model, stats, moments, means, generator)


def choose(measured: Measured, name: str, n: int) -> interp.NeuronSelection:
    mask = SELECTORS[name](measured, n)
    return interp.NeuronSelection(mask, measured.stats.languages)


def judge(
    name: str,
    every: Measured,
    halves: tuple[Measured, Measured],
    reading: interp.Corpora,
    guards: Mapping[str, Guard],
    config: Config,
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """One method on the model: a row for the table, and a row for each language."""
    model, study = every.model, config.study
    found = choose(every, name, config.neurons)
    generator = torch.Generator().manual_seed(study.seed)
    matrix = interp.perplexity_matrix(
        model, found, reading, n_draws=config.n_draws, generator=generator, progress=False
    )
    total = matrix.diagonal()
    one, other = (choose(half, name, config.neurons) for half in halves)
    agree, chance = jaccard_between(one, other), chance_jaccard(one, other)
    rates, good = [math.nan] * len(study.languages), [math.nan] * len(study.languages)
    if config.n_texts:
        way = steer_language.Way(
            name,
            "",
            lambda code: steer_language.pushed(
                model, every.moments, found, config.strength, False, code
            ),
        )
        steering = steer_language.Config(study)
        written = steer_language.run(model, way, guards, steering, config.n_texts, study.seed)
        rates = [texts.rate(code).value for code, texts in written.items()]
        good = [texts.good(code).value for code, texts in written.items()]
    sizes = found.counts()
    rows = [
        {
            "method": name,
            "language": code,
            "neurons": sizes[code],
            "own": matrix.increase.value[place, place].item(),
            "random": matrix.control.value[place, place].item(),
            "own_minus_others": total.own_minus_others.value[place].item(),
            "jaccard": agree[place].item(),
            "chance": chance.value[place].item(),
            "rate": rates[place],
            "good": good[place],
        }
        for place, code in enumerate(study.languages)
    ]
    mean = pd.DataFrame(rows).drop(columns=["method", "language"]).mean()
    row: dict[str, object] = {
        "method": name,
        **mean.to_dict(),
        "low": total.mean.low.item(),
        "high": total.mean.high.item(),
        "p": total.test.p_value,
        "largest_in_row": len(total.largest_in_row),
    }
    return row, rows


def main(config: Config) -> None:
    study = config.study
    transformers.utils.logging.disable_progress_bar()  # one for each planted model
    path = config.out / "recovery.csv"
    if not path.exists():
        each = recover_planted.compare(
            config.recovery.design, config.recovery.effects, range(config.recovery.seeds), SELECTORS
        )
        artifacts.write_text(path, recover_planted.summarise(each).to_csv(index=False))
    recovery = pd.read_csv(path)
    largest = recovery[recovery["effect"] == recovery["effect"].max()].set_index("selector")

    model = study.open()
    first, second, rest = parts(study)
    both = {code: [*first[code], *second[code]] for code in study.languages}
    measured = [
        measure(model, text, config, config.out / f"part-{number}")
        for number, text in enumerate((both, first, second))
    ]
    reading = interp.read_corpora(
        rest,
        study.languages,
        model,
        block_length=study.block_length,
        tokens=study.tokens,
        n_shards=max(study.n_shards, 2),
        bos="none" if model.bos_id is None else "block",
        progress=False,
    )
    natural = {code: list(itertools.islice(rest[code], 400)) for code in study.languages}
    guards = interp.natural_guard(model, natural, progress=False)
    table, languages = [], []
    for name in tqdm(SELECTORS, desc="Judging", unit="method"):
        row, rows = judge(name, measured[0], (measured[1], measured[2]), reading, guards, config)
        planted_row = largest.loc[name]
        row |= {key: planted_row[key] for key in ("precision", "precision_low", "precision_high")}
        table.append(row)
        languages += rows
        artifacts.write_text(config.out / "methods.csv", pd.DataFrame(table).to_csv(index=False))
        artifacts.write_text(
            config.out / "languages.csv", pd.DataFrame(languages).to_csv(index=False)
        )
    print(pd.DataFrame(table).to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main(tyro.extras.overridable_config_cli(PRESETS, description=__doc__))

"""Which way of finding language neurons is best? All at the same size, on the same statistics.

    python -m experiments.compare_methods tiny      # a minute
    python -m experiments.compare_methods babel     # 6 minutes on one core
    python -m experiments.compare_methods thorough  # an hour: more text, more texts
    python -m experiments.compare_methods paper     # a GPU; --study.model NAME

Reads   a model and text of its languages; models with planted neurons, made here
Writes  results/compare_methods/<preset>/methods.csv (a row per method), languages.csv (and per
        language), comparison.csv, stability.csv, claims.json, findings.md
Draws   method_comparison from comparison.csv, stability_against_tokens from stability.csv

Each method chooses as many neurons for each language, and is judged four times:

- recovery: on small models in which the neurons of each language were built in, alone and beside
  all decoys (experiments.recover_planted);
- selectivity: how much more switching the chosen neurons off costs their own language than the
  others, on text that nothing was chosen from;
- switching: how often pushing them by the difference of means makes the model write in their
  language, well enough to pass the guard;
- stability: how far the choices from two disjoint parts of the text agree, beside chance, for an
  eighth of the text up to all of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

import interp
from experiments import papers, recover_planted, runner
from experiments.judges import (
    Effects,
    Statistics,
    Switching,
    Text,
    effects,
    grown,
    mean_and_interval,
    switching,
)
from experiments.method_findings import RANDOM, findings, measures
from experiments.recover_planted import ALL, NONE
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.plots.style import Table
from interp.results import artifacts
from interp.results.frames import tidy
from interp.scores.methods import COMPARED
from interp.selections.neuron_selection import jaccard_between
from interp.selections.stability import chance_jaccard

MEASURES = {
    "recovery_alone": "planted found,\nno decoys",
    "recovery": "planted found,\nall decoys",
    "selectivity": "own loss, less others'\n(nats per token)",
    "switching": "good texts in\nthe language",
    "stability": "chosen again from\nother text (Jaccard)",
}
"""Column of the table → label of its panel in the figure."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is compared; the study's `tokens` are per part that neurons are chosen from."""

    neurons: int = 120
    """Chosen for each language: about what LAPE gives it at 3 % of Babel's neurons."""

    read: int = 448
    """Tokens per language that the chosen are switched off on."""

    strength: float = 2.0
    """Times the difference of means, for switching the language."""

    n_texts: int = 12
    """Written per language and method."""

    max_new_tokens: int = 64
    """Length of a text."""

    guard_texts: int = 120
    """Natural texts per language that the guard is measured on."""

    planted: recover_planted.Config = field(default_factory=recover_planted.Config)
    """The models with planted neurons; the largest effect is taken."""


PRESETS = {
    "tiny": Preset(
        "Two languages, little of everything: a minute.",
        Study(languages=("de", "ja"), tokens=1500, n_shards=2, block_length=64),
        {
            "read": 256,
            "n_texts": 3,
            "max_new_tokens": 24,
            "guard_texts": 40,
            "planted": replace(recover_planted.experiment.presets["tiny"][1], seeds=1),
        },
    ),
    "babel": Preset(
        "The shipped model: 6 minutes on one core.", Study(n_shards=7, block_length=64)
    ),
    "thorough": Preset(
        "The same with ten times the text to judge on: an hour.",
        differences={"read": 6000, "n_texts": 40, "guard_texts": 400},
    ),
    "paper": papers.preset(
        replace(papers.KOJIMA, model="meta-llama/Llama-3.2-1B", tokens=60_000),
        "PAWS-X in 6 languages, one neuron in a hundred for each",
        6 * (2 * 60_000 + 99 * 50_000 + 15 * 40 * 64),
        neurons=1300,
        read=50_000,
        n_texts=40,
        guard_texts=400,
    ),
}


def parts(study: Study) -> tuple[Text, Text, Text]:
    """Every document of each language, in three parts: a quarter, a quarter, and the rest."""
    found: tuple[dict[str, list[str]], ...] = ({}, {}, {})
    for code in study.languages:
        documents = list(study.documents(code))
        for part, chosen in zip(found, ((0,), (1,), (2, 3)), strict=True):
            part[code] = [text for place, text in enumerate(documents) if place % 4 in chosen]
    return found


# ---------------------------------------------------------------- the four judgements


def recovery(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recall of every method at the largest effect, without decoys and beside all: all, summed."""
    planted = config.planted
    each = recover_planted.compare(
        planted.design,
        (max(planted.effects),),
        range(planted.seeds),
        COMPARED,
        {name: recover_planted.VARIANTS[name] for name in (NONE, ALL)},
    )
    return each, recover_planted.summarize(each)


def stability(
    chosen: Sequence[Mapping[str, interp.NeuronSelection]],
    again: Sequence[Mapping[str, interp.NeuronSelection]],
    tokens: Sequence[int],
) -> pd.DataFrame:
    """A row per method, amount of text and language: Jaccard of two choices, beside chance."""
    tables = []
    for size, one, other in zip(tokens, chosen, again, strict=True):
        for name, mine in one.items():
            axes = {"method": [name], "tokens": [size], "language": mine.languages}
            chance = chance_jaccard(mine, other[name]).value
            columns = {"jaccard": jaccard_between(mine, other[name]), "chance": chance}
            tables.append(tidy(axes, columns))
    return pd.concat(tables, ignore_index=True)


def over_languages(stable: Table) -> pd.DataFrame:
    """A row per method and amount of text: means, and a 95 % interval over languages."""
    rows = []
    for (name, tokens), part in stable.groupby(["method", "tokens"], sort=False):
        value, low, high = mean_and_interval(part["jaccard"].tolist())
        ends = {"low": max(low, 0.0), "high": min(high, 1.0)}
        row = {"method": name, "tokens": tokens, "jaccard": value, **ends}
        rows.append(row | {"chance": part["chance"].mean()})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- tables


def methods_table(found: Table, effect: Effects, written: Switching, stable: Table) -> pd.DataFrame:
    """A row per method; each measure with its 95 % interval and its control.

    Controls: the random neurons of the table's own row; for switching the model as it is, for
    stability what chance gives to sets of those sizes.
    """
    recall = found.set_index(["selector", "decoys"])
    last = stable[stable["tokens"] == stable["tokens"].max()].set_index("method")
    rows = []
    for name in COMPARED:
        row: dict[str, Any] = {"method": name}
        for column, decoys in (("recovery_alone", NONE), ("recovery", ALL)):
            for end in ("", "_low", "_high"):
                row[column + end] = float(recall.loc[(name, decoys), f"recall{end}"])
            row[f"{column}_control"] = float(recall.loc[(RANDOM, decoys), "recall"])
        row |= effect.row(name, RANDOM) | written.row(name)
        again = last.loc[name]
        for end, column in (("", "jaccard"), ("_low", "low"), ("_high", "high")):
            row[f"stability{end}"] = float(again[column])
        rows.append(row | {"stability_control": float(again["chance"])})
    return pd.DataFrame(rows)


def comparison(table: pd.DataFrame) -> pd.DataFrame:
    """The same with one row per mark of the figure."""
    tables = []
    for column, label in MEASURES.items():
        names = {column: "value"} | {f"{column}_{end}": end for end in ("low", "high", "control")}
        mine = pd.DataFrame(table, columns=["method", *names]).rename(columns=names)
        mine.insert(1, "measure", label)
        tables.append(mine)
    return pd.concat(tables, ignore_index=True)


def main(config: Config, record: Record) -> None:
    study, out = config.study, config.out
    each, found = recovery(config)
    model = record.open(study)
    first, second, rest = parts(study)
    texts = [grown(model, part, study, out / f"part-{n}") for n, part in enumerate((first, second))]
    generator = torch.Generator().manual_seed(study.seed)
    here, again = (choices(model, text, config.neurons, generator) for text in texts)
    stable = stability(here, again, [part.tokens for part in texts[0]])
    reading = interp.read_corpora(
        rest,
        study.languages,
        model,
        block_length=study.block_length,
        tokens=config.read,
        n_shards=max(study.n_shards, 2),
        bos="none" if model.bos_id is None else "block",
        progress=False,
    )
    effect = effects(model, here[-1], reading, generator)
    natural = {code: list(rest[code])[: config.guard_texts] for code in study.languages}
    written = switching(
        model,
        here[-1],
        texts[0][-1].moments,
        interp.evaluations.natural_guard(
            model, natural, max_tokens=config.max_new_tokens, progress=False
        ),
        strength=config.strength,
        n=config.n_texts,
        max_new_tokens=config.max_new_tokens,
        seed=study.seed,
    )
    curves = over_languages(stable)
    table = methods_table(found, effect, written, curves)
    by_language = effect.by_language().merge(written.by_language(), on=["method", "language"])
    last = stable[stable["tokens"] == stable["tokens"].max()].drop(columns="tokens")
    languages = by_language.merge(last, on=["method", "language"])
    record.tables({"methods": table, "languages": languages, "comparison": comparison(table)})
    record.tables({"stability": curves, "recovery": found})
    claims = record.judge("compare_methods", measures(table, each, effect, written, stable))
    page = findings(table, claims)
    artifacts.write_text(out / "findings.md", page)
    print(
        table[["method", *MEASURES]].to_string(index=False, float_format="%.3f"), page, sep="\n\n"
    )


def choices(
    model: interp.NeuronModel, text: Sequence[Statistics], n: int, generator: torch.Generator
) -> list[dict[str, interp.NeuronSelection]]:
    """What every method chooses from each amount of one part of the text."""
    chosen = []
    for amount in tqdm(text, desc="Choosing", unit="amount"):
        seen = interp.scores.measured(amount, generator, lambda: model)
        settings = interp.scores.Settings(n=n)
        chosen.append(
            {
                title: interp.selections.selection_of(method, seen, settings)
                for title, method in COMPARED.items()
            }
        )
    return chosen


experiment = Experiment("compare_methods", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

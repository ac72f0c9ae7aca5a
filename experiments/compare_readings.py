"""How a model is read: does it change which neurons are found, and what they do?

    python -m experiments.compare_readings tiny     # seconds
    python -m experiments.compare_readings babel    # 5 minutes on one core
    python -m experiments.compare_readings gemma    # Gemma 3 270M, which `make real` installs

Reads   a model, and text of its languages: neurons are selected on one half, losses read on the
        other
Writes  results/compare_readings/<preset>/<reading>/matrix.safetensors; readings.csv (a row per
        reading and language), claims.json

The same text is read as usual, in float32 with what the tokenizer puts before a text; in bfloat16;
and, where a tokenizer puts something there, with nothing before it. Each time neurons are selected
by LAPE and switched off. Selections from the same text should agree more than a repetition on other
text would, and the languages should lose as much.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import interp
from experiments import gemma, runner
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.evaluations import PerplexityMatrix, effect_change
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.selections import predicted_agreement
from interp.selections.agreement import jaccard_between
from interp.text.tokens import beginning

USUAL, ROUNDED, BARE = "as usual", "in bfloat16", "nothing before it"


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is switched off."""

    fraction: float = 0.01
    """Of all neurons, selected by LAPE."""


PRESETS = {
    "tiny": Preset(
        "Two languages of the shipped model, little text: seconds.",
        Study(languages=("de", "ja"), tokens=4000, held_out_tokens=1000, n_shards=4),
        {"fraction": 0.03},
    ),
    "babel": Preset("The shipped model: minutes.", differences={"fraction": 0.03}),
    "gemma": gemma.preset(),
}


def readings(study: Study, out: Path, begins: bool) -> dict[str, Study]:
    """The study in each reading; unusual ones keep statistics in folders of their own.

    `begins`: the tokenizer puts something before a text; else there is nothing to leave out.
    """
    differences: dict[str, dict[str, Any]] = {
        USUAL: {"dtype": "float32"},
        ROUNDED: {"dtype": "bfloat16", "out": out / folder_of(ROUNDED)},
    }
    if begins:
        nothing = {"bos": "none", "held_out_bos": "none", "out": out / folder_of(BARE)}
        differences[BARE] = {"dtype": "float32", **nothing}
    return {name: replace(study, **different) for name, different in differences.items()}


def folder_of(reading: str) -> str:
    return reading.replace(" ", "_")


def read(
    study: Study, name: str, config: Config, record: Record
) -> tuple[interp.FiringStats, interp.NeuronSelection, PerplexityMatrix]:
    """In one reading: the counts, the selection, and what its neurons do."""
    model = record.open(study)
    stats, _ = study.statistics(model)
    selection = interp.select_by_entropy(stats, config.fraction)
    text = study.read(model, "held_out")
    out = config.out / folder_of(name)
    matrix = interp.perplexity_matrix(model, selection, text, n_draws=0, out=out)
    return stats, selection, matrix


def compared(
    name: str,
    usual: tuple[interp.NeuronSelection, PerplexityMatrix],
    other: tuple[interp.NeuronSelection, PerplexityMatrix],
    repeated: float,
) -> Table:
    """A row per language: the selection and its effect in one reading, beside the usual one.

    `jaccard`: of the two selections; `repeated`: of two runs on other text of the kind, a mean over
    languages. `loss`: nats per token with nothing off. `increase`: with its own neurons off.
    """
    selection, matrix = other
    effects = effect_change(usual[1], matrix, paired=True).rename(columns={"after": "increase"})
    losses = dict(zip(matrix.languages, matrix.losses.loss[0].tolist(), strict=True))
    rows = pd.DataFrame(
        {
            "reading": name,
            "language": selection.languages,
            "neurons": list(selection.counts().values()),
            "jaccard": jaccard_between(usual[0], selection).tolist(),
            "repeated": repeated,
            "loss": [losses[code] for code in selection.languages],
        }
    )
    more = matrix.diagonal().to_frame()[["language", "own_minus_others"]]
    columns = ["language", "increase", "change", "change_low", "change_high"]
    return rows.merge(effects[columns], on="language", how="left").merge(more, how="left")


def measures(table: Table) -> dict[str, Measurement | None]:
    """Agreement beyond that of a repetition, and the change of the effect, over languages."""
    measured: dict[str, Measurement | None] = {}
    for reading, which in ((ROUNDED, "rounded"), (BARE, "bare")):
        rows = table[table["reading"] == reading]
        numbers = {
            f"{which}-neurons": (rows["jaccard"] - rows["repeated"]).dropna(),
            f"{which}-effects": rows["change"].dropna(),
        }
        for name, values in numbers.items():
            mean = torch.tensor(values.to_numpy(), dtype=torch.float64)
            measured[name] = Measurement(mean_over_examples(mean)) if len(mean) > 1 else None
    return measured


def main(config: Config, record: Record) -> None:
    generator = torch.Generator().manual_seed(config.study.seed)
    tables: list[Table] = []
    usual: tuple[interp.NeuronSelection, PerplexityMatrix] | None = None
    repeated = 1.0
    begins = bool(beginning(record.open(config.study), "auto"))
    for name, study in readings(config.study, config.out, begins).items():
        stats, selection, matrix = read(study, name, config, record)
        if usual is None:
            usual = selection, matrix
            select = partial(interp.select_by_entropy, fraction=config.fraction)
            repeated = predicted_agreement(stats, select, generator)
        tables.append(compared(name, usual, (selection, matrix), repeated))
        print(f"\n{name}\n{tables[-1].to_string(index=False, float_format='%.3f')}", flush=True)
    table = pd.concat(tables, ignore_index=True)
    record.tables({"readings": table})
    record.judge("compare_readings", measures(table))


experiment = Experiment("compare_readings", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

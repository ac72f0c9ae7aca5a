"""Which decoy fools which method in a pretrained model?

    python -m experiments.confuse_pretrained tiny      # minutes on one core
    python -m experiments.confuse_pretrained short     # Babel, one model of one strength
    python -m experiments.confuse_pretrained babel     # hours: 20 models of three strengths
    python -m experiments.confuse_pretrained babel --seeds 5    # the first five of them
    python -m experiments.confuse_pretrained gemma     # Gemma 3 270M, by `make real`: 40 minutes

Reads   experiments/planting.toml, which says what is planted, and was committed before any method
        was run; the parallel sentences of this project
Writes  results/confuse_pretrained/<preset>/found.csv (what every method finds of the planted
        neurons, at every strength, without decoys and with all), confusions.csv (a row per method,
        decoy and strength), table.csv (confusions at the greatest strength, a column per decoy),
        planting.csv (what the planting does to the loss, and where its neurons fire), pieces/
        (what was found in each model: the same command resumes a killed run)

The model gets more neurons: of a language, and decoys (experiments/plant_in_pretrained.py). It has
language neurons of its own, and nobody knows which. So shares are of the chosen neurons that were
planted, without the model's own.
"""

import tomllib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import interp
from experiments.confuse_methods import EVERY_DECOY, PLANTING, VARIANTS, confusions, who_is_fooled
from experiments.plant_in_pretrained import Host, Planted, Planting, firing
from experiments.planted import Truth
from experiments.pretrained_features import parallel_sentences
from experiments.recover_planted import ALL, ALL_KEPT, NONE, compare, summarize
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.plots.style import Table
from interp.scores.choosers import Measured, measured
from interp.scores.methods import COMPARED


def read_planting(name: str) -> Planting:
    """The planting of this name in planting.toml."""
    settings: dict[str, Any] = tomllib.loads(PLANTING.read_text(encoding="utf-8"))[name]
    for key, value in settings.items():
        settings[key] = tuple(value) if isinstance(value, list) else value
    return Planting(**settings)


def planting_row(
    planted: Planted, run: interp.Run, seed: int, decoys: Collection[str]
) -> pd.DataFrame:
    """A row of planting.csv."""
    row: dict[str, Any] = {"effect": planted.truth.effect, "seed": seed}
    row |= {"decoys": ALL if decoys else NONE, "write": planted.write, "rise": planted.rise}
    return pd.DataFrame([row | firing(run.firing.rate, planted.truth)])


def planted_and_measured(
    host: Host, record: Record, effect: float, seed: int, decoys: Collection[str]
) -> tuple[Truth, Measured]:
    """What is planted, and the statistics of that model; its row of planting.csv is kept."""
    planted = host.plant(effect, seed, decoys)
    run = interp.collect(planted.model, host.text, keep=ALL_KEPT, progress=False)
    row = partial(planting_row, planted, run, seed, decoys)
    record.piece(planting_piece(effect, seed, decoys), row)
    generator = torch.Generator().manual_seed(seed)
    return planted.truth, measured(run, generator, lambda: planted.model)


def planted_and_counted(
    host: Host, effect: float, seed: int, decoys: Collection[str]
) -> pd.DataFrame:
    """The row of planting.csv alone."""
    planted = host.plant(effect, seed, decoys)
    run = interp.collect(planted.model, host.text, progress=False)
    return planting_row(planted, run, seed, decoys)


def planting_piece(effect: float, seed: int, decoys: Collection[str]) -> str:
    return f"planting-{ALL if decoys else NONE}-{effect:g}-{seed}"


def silent(host: Host) -> Measured:
    """Statistics of a model with as many more neurons, all silent, as decoys are that are left out.

    What is measured of silent neurons does not depend on the seed, so one model serves all.
    """
    model = host.with_silent_neurons()
    run = interp.collect(model, host.text, keep=ALL_KEPT, progress=False)
    return measured(run, torch.Generator(), lambda: model)


def of_known(rows: Table) -> pd.DataFrame:
    """Rows in which only planted neurons count as chosen; `natural` are the model's own."""
    natural = rows["background"]
    known = rows.assign(chosen=rows["chosen"] - natural, natural=natural)
    return known.drop(columns="background").assign(background=0)


def found_table(rows: Table) -> pd.DataFrame:
    """Recall of the planted, precision among what was planted, and the share that is natural."""
    summary = summarize(rows).drop(columns="background")
    by = ["decoys", "effect", "selector"]
    sums = rows.groupby(by, sort=False)[["natural", "chosen"]].sum().reset_index()
    share = sums["natural"] / (sums["natural"] + sums["chosen"]).clip(lower=1)
    found: Table = summary.merge(sums[by].assign(natural=share), on=by, how="left")
    return found[found["decoys"].isin([NONE, ALL])]


@dataclass(frozen=True)
class Config:
    """One run."""

    planting: str = "pretrained-babel"
    """Name of the planting in planting.toml."""

    seeds: int | None = None
    """The first so many of the planting's. None: all; models that exist are not made again."""

    out: Path = Path()
    """Folder for the results."""


PRESETS = {
    "tiny": Preset(
        "Babel with few neurons of each kind: checks that every part runs.",
        differences={"planting": "pretrained-tiny"},
    ),
    "short": Preset("Babel, one model.", differences={"planting": "pretrained-short"}),
    "babel": Preset("Babel, 60 models: hours."),
    "gemma": Preset(
        "Gemma 3 270M, a pretrained model that `make real` fetches.",
        differences={"planting": "pretrained-gemma"},
    ),
}


def main(config: Config, record: Record) -> None:
    planting = read_planting(config.planting)
    model = record.open(Study(model=planting.model))
    host = Host(model, planting, *parallel_sentences(planting.languages))
    seeds, (first, *_) = range(planting.seeds)[: config.seeds], planting.effects
    of_a_model = {name: value for name, value in asdict(planting).items() if name != "seeds"}
    record.begin_pieces(
        of_a_model
        | {"model": model.identity, "text": host.text.fingerprint, "methods": list(COMPARED)}
    )
    without = cache(partial(silent, host))
    rows = of_known(
        compare(
            partial(planted_and_measured, host, record),
            planting.chosen,
            planting.effects,
            seeds,
            COMPARED,
            VARIANTS,
            EVERY_DECOY,
            bare=lambda _: without(),
            piece=record.piece,
        )
    )
    did = [
        record.piece(planting_piece(*of), partial(planted_and_counted, host, *of))
        for seed in seeds
        for of in [(first, seed, ()), *((effect, seed, EVERY_DECOY) for effect in planting.effects)]
    ]
    table = confusions(rows)
    wide = who_is_fooled(table)
    frames = {"found": found_table(rows), "confusions": table, "table": wide}
    record.tables(frames | {"planting": pd.concat(did)}, float_format="%.4g")
    print("Share of the chosen neurons that are decoys, of those that were planted\n")
    print(wide.to_string(index=False, float_format="%.2f"))


experiment = Experiment("confuse_pretrained", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

"""Which decoy fools which method?

    python -m experiments.confuse_methods tiny      # two minutes
    python -m experiments.confuse_methods short     # 20 models: three strengths, five seeds
    python -m experiments.confuse_methods babel     # hours on one core: 20 models of every strength

Reads   experiments/planting.toml, which says what is planted; it was committed before any method
        was run
Writes  results/confuse_methods/<preset>/found.csv (precision and recall of every method, at every
        strength, without decoys and with all), confusions.csv (a row per method, decoy and
        strength), table.csv (confusions at the greatest strength, a column per decoy), pieces/
        (what was found in each model: the same command resumes a killed run)

Neurons follow a language, and decoys something else: a script, a word, a position, rarity, a
topic, two languages, or a language in context alone (experiments/planted.py). Every method chooses
as many neurons per language as are planted, from the same statistics. A decoy fools a method if,
where it is the only kind of decoy, the method chooses it in place of planted neurons.
"""

import tomllib
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.planted import DECOYS, SUBTLE, Design
from experiments.recover_planted import (
    ALL,
    NONE,
    compare,
    difference_in_recall,
    planted_and_measured,
    share_columns,
    summarize,
)
from experiments.runner import Experiment, Preset, Record
from interp.plots.style import Table
from interp.scores.methods import COMPARED

PLANTING = Path(__file__).parent / "planting.toml"

EVERY_DECOY = (*DECOYS, *SUBTLE)
VARIANTS = {NONE: (), **{kind: (kind,) for kind in EVERY_DECOY}, ALL: EVERY_DECOY}
"""Name → kinds of decoys in the model."""


@dataclass(frozen=True, kw_only=True)
class Planting:
    """What is planted, how strongly, and how often."""

    design: Design
    """The models and their languages."""

    effects: tuple[float, ...]
    """Distance between own and other words at a planted neuron's gate, in standard deviations."""

    seeds: int
    """Models of each strength; each seed has one more, without decoys."""


def read_planting(name: str) -> Planting:
    """The planting of this name in planting.toml."""
    settings: dict[str, Any] = tomllib.loads(PLANTING.read_text(encoding="utf-8"))[name]
    settings["languages"] = tuple(settings["languages"])
    effects, seeds = tuple(settings.pop("effects")), settings.pop("seeds")
    if unknown := sorted(settings.keys() - {field.name for field in fields(Design)}):
        raise ValueError(
            f"{PLANTING.name} sets {', '.join(unknown)}, which no design has: correct the name."
        )
    return Planting(design=Design(**settings), effects=effects, seeds=seeds)


def confusions(rows: Table, decoys: tuple[str, ...] = EVERY_DECOY) -> pd.DataFrame:
    """A row per strength, method and decoy, from models with that decoy alone.

    `share` of what was chosen is the decoy; `lost` is how much less of the planted was found than
    without decoys. Both with 95 % intervals, over languages and seeds.
    """
    table = []
    by = ["effect", "selector"]
    for (effect, selector), part in rows.groupby(by, sort=False):
        for decoy in decoys:
            alone = part[part["decoys"] == decoy]
            cells = {"effect": effect, "method": selector, "decoy": decoy}
            cells |= share_columns("share", alone[decoy].tolist(), alone["chosen"].tolist())
            lost = difference_in_recall(rows, (selector, NONE), (selector, decoy), effect)
            ends = {"": lost.value, "_low": lost.low, "_high": lost.high}
            table.append(cells | {f"lost{end}": float(value) for end, value in ends.items()})
    return pd.DataFrame(table)


def who_is_fooled(table: Table) -> pd.DataFrame:
    """The confusions of the greatest strength: a row per method, a column per decoy."""
    strongest = table[table["effect"] == table["effect"].max()]
    wide = strongest.pivot(index="method", columns="decoy", values="share")
    wide = wide.loc[strongest["method"].drop_duplicates(), strongest["decoy"].drop_duplicates()]
    return wide.reset_index()


@dataclass(frozen=True)
class Config:
    """One run."""

    planting: str = "babel"
    """Name of the planting in planting.toml."""

    out: Path = Path()
    """Folder for the results."""


PRESETS = {
    "tiny": Preset(
        "Few small models: checks that every part runs.", differences={"planting": "tiny"}
    ),
    "short": Preset("20 of the models of `babel`.", differences={"planting": "short"}),
    "babel": Preset("140 models of 2,048 neurons: hours on one core."),
}


def main(config: Config, record: Record) -> None:
    planting = read_planting(config.planting)
    make, seeds = partial(planted_and_measured, planting.design), range(planting.seeds)
    record.begin_pieces(asdict(planting) | {"methods": list(COMPARED)})
    names = (COMPARED, VARIANTS, EVERY_DECOY)
    n = planting.design.planted
    rows = compare(make, n, planting.effects, seeds, *names, piece=record.piece)
    summary = summarize(rows)
    found = summary[summary["decoys"].isin([NONE, ALL])]
    table = confusions(rows)
    wide = who_is_fooled(table)
    frames = {"found": found, "confusions": table, "table": wide}
    record.tables(frames, float_format="%.4g")
    print("Share of the chosen neurons that are decoys, where each kind is alone\n")
    print(wide.to_string(index=False, float_format="%.2f"))


experiment = Experiment("confuse_methods", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

"""Every figure of the project, from the results of the studies of the shipped model and of Gemma.

    python -m experiments.draw_figures       # a minute; lists the figures whose study was not run

Reads   results/<study>/{babel,gemma}/..., results/babel_training/measure/history.json,
        results/demo/patch.csv, results/demo/attribute/sums.csv
Writes  figures/<figure>-<what>.csv, .pdf, .png; `make figures` redraws them from the tables alone
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro

import interp
from babel_training.recipe import PRESETS
from experiments import deactivate_neurons, map_shared_neurons
from experiments.runner import Experiment, for_model
from interp import plots
from interp.results.frames import tidy

STUDIES = Path("results")


def read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, keep_default_na=False, na_values=[""])


def without_parts(final: pd.DataFrame) -> pd.DataFrame:
    """The ways of steering and their controls, without the sets that only the claims compare."""
    return final.loc[~final["way"].str.contains("half of them|nearly all")]


@dataclass(frozen=True)
class Results:
    """The results of one preset."""

    preset: str
    """The preset of each study; figures are named after it."""

    def config(self, study: Experiment) -> Any:
        """The settings of a study."""
        return for_model(study.presets[self.preset][1])

    def file(self, path: str) -> Path:
        """The file of the table "<study>/<name>"."""
        study, name = path.split("/", 1)
        model = Path(self.config(deactivate_neurons.experiment).study.model).name
        folder = STUDIES / study / self.preset
        return (folder if model == "babel" else folder / model) / f"{name}.csv"

    def table(self, path: str) -> pd.DataFrame:
        """The table "<study>/<name>"."""
        return read(self.file(path))

    @property
    def fraction(self) -> float:
        """Of all neurons, fixed before anything was measured."""
        return self.config(deactivate_neurons.experiment).tried

    def counts(self) -> interp.FiringStats:
        statistics = self.config(deactivate_neurons.experiment).study.out / "native" / "statistics"
        return interp.Run.open(statistics).firing

    def matrix(self) -> pd.DataFrame:
        return self.table(f"deactivate_neurons/{self.fraction:g}/matrix")

    def profile(self) -> pd.DataFrame:
        """Neurons per layer, with intervals over documents."""
        stats = self.counts()

        def select(part: interp.FiringStats) -> interp.NeuronSelection:
            return interp.select_by_entropy(part, self.fraction)

        interval = interp.jackknife(stats, lambda part: select(part).layer_profile().double())
        return select(stats).layer_frame(interval)

    def overlap(self) -> pd.DataFrame:
        return interp.select_by_entropy(self.counts(), self.fraction).overlap_frame()

    def switching(self) -> pd.DataFrame:
        return without_parts(self.table("steer_language/final"))

    def best_of_each_size(self, way: str) -> pd.DataFrame:
        return plots.best_of_each_size(self.table("steer_language/sweep"), way)

    def stable_methods(self) -> pd.DataFrame:
        """Seven of the methods, so that the lines stay distinguishable."""
        methods = self.table("compare_methods/stability")
        return methods.loc[methods["method"].isin(SHOWN)]

    def lens(self) -> pd.DataFrame:
        return self.table("lens_by_language/lens").query("facts == 'all'")

    def figures(self) -> Iterator[tuple[str, Callable[[], pd.DataFrame]]]:
        """As `figures`."""
        yield f"perplexity_matrix-{self.preset}", self.matrix
        effects = partial(self.table, "deactivate_neurons/table")
        yield f"loss_against_fraction-{self.preset}", effects
        yield f"layer_profile-{self.preset}", self.profile
        yield f"overlap-{self.preset}", self.overlap
        yield f"language_switching-{self.preset}", self.switching
        for task in self.config(map_shared_neurons.experiment).tasks:
            name = task.replace("/", "-")
            profile = partial(self.table, f"map_shared_neurons/{name}/profile")
            yield f"sharing-{self.preset}-{name.removeprefix('babel-')}", profile
        comparison = partial(self.table, "compare_methods/comparison")
        yield f"method_comparison-{self.preset}", comparison
        yield f"stability_against_tokens-{self.preset}", self.stable_methods
        yield f"lens-{self.preset}", self.lens
        kept = partial(self.table, "explain_language/explanation")
        yield f"explanation-{self.preset}", kept


SHOWN = (
    *("random", "rate (LAP)", "removal effect (PLND)", "entropy (LAPE)"),
    *("mean entropy (LAVE)", "precision of gate", "precision of output, both ends"),
)
"""Methods in the figure of stability."""


def training() -> pd.DataFrame:
    """The rise of the own language's loss at every checkpoint, with its interval."""
    path = STUDIES / "babel_training" / "measure" / "history.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    config = PRESETS["cpu"][1]
    tables = []
    for name, losses in sorted(stored.items()):
        step = int(name.removeprefix("step-"))
        sizes = (torch.tensor(losses[part], dtype=torch.float64) for part in ("rise", "reach"))
        rise, reach = (size.diagonal() for size in sizes)
        columns = {"increase": rise, "increase_low": rise - reach, "increase_high": rise + reach}
        columns |= {"random": [sum(draws) / len(draws) for draws in losses["random"]]}
        axes = {"tokens": [step * config.rows * config.length], "language": config.languages}
        tables.append(tidy(axes, columns))
    return pd.concat(tables, ignore_index=True)


def figures() -> Iterator[tuple[str, Callable[[], pd.DataFrame]]]:
    """File name, which begins with the name of its plot function, and the source of its table."""
    babel, gemma = Results("babel"), Results("gemma")
    yield from babel.figures()
    yield "curve_of_training-babel", training
    for name, way in (("lape", "LAPE neurons"), ("precision", "precision units")):
        yield f"switching_against_size-{name}", partial(babel.best_of_each_size, way)
    for facts in ("told", "held_out"):
        moved = partial(babel.table, f"patch_across_languages/moved-{facts}")
        yield f"moved_by_layer-{facts}", moved
    moved = partial(gemma.table, "patch_across_languages/moved-told")
    yield "moved_by_layer-gemma", moved
    for name, path in (("attribution_sums", "attribute/sums"), ("patching", "patch")):
        yield f"{name}-demo", partial(pd.read_csv, STUDIES / "demo" / f"{path}.csv")
    yield from gemma.figures()


def main(out: Path = Path("figures")) -> None:
    for name, read in figures():
        try:
            frame = read()
        except FileNotFoundError as error:
            missing = f"{error.filename} is missing." if error.filename else str(error)
            print(f"{name}: not drawn. {missing}")
            continue
        plots.save(frame, out / name)
        print(f"{name}: drawn")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

"""Every figure of the project, from the results of the studies of the shipped model.

    python -m experiments.draw_figures       # a minute; lists the figures whose study was not run

Reads   results/<study>/babel/..., results/babel_training/measure/history.json,
        results/demo/patch.csv, results/demo/attribute/sums.csv
Writes  figures/<figure>-<what>.csv, .pdf, .png; `make figures` redraws them from the tables alone
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import tyro

import interp
from babel_training.recipe import PRESETS
from interp import plots
from interp.results.frames import tidy

STUDIES = Path("results")
FRACTION = 0.03
"""Of all neurons, as on Babel's card; fixed before anything was measured."""


def table(path: str) -> pd.DataFrame:
    """The table "<study>/<name>" of the shipped model."""
    study, name = path.split("/", 1)
    return pd.read_csv(STUDIES / study / "babel" / f"{name}.csv")


def counts() -> interp.FiringStats:
    return interp.Run.open(STUDIES / "study" / "native" / "statistics").firing


def profile() -> pd.DataFrame:
    """Neurons per layer, with intervals over documents."""
    stats = counts()

    def select(part: interp.FiringStats) -> interp.NeuronSelection:
        return interp.select_by_entropy(part, FRACTION)

    interval = interp.jackknife(stats, lambda part: select(part).layer_profile().double())
    return select(stats).layer_frame(interval)


def overlap() -> pd.DataFrame:
    return interp.select_by_entropy(counts(), FRACTION).overlap_frame()


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


def switching() -> pd.DataFrame:
    """The ways and their controls, without the parts of a set that only the claims compare."""
    path = STUDIES / "steer_language" / "babel" / "final.csv"
    final = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return final.loc[~final["way"].str.contains("half of them|nearly all")]


def best_of_each_size(way: str) -> pd.DataFrame:
    return plots.best_of_each_size(table("steer_language/sweep"), way)


def stable_methods() -> pd.DataFrame:
    """Seven of the methods, so that the lines stay distinguishable."""
    shown = (
        *("random", "rate (LAP)", "removal effect (PLND)", "entropy (LAPE)"),
        *("mean entropy (LAVE)", "precision of gate", "precision of output, both ends"),
    )
    methods = table("compare_methods/stability")
    return methods.loc[methods["method"].isin(shown)]


def lens() -> pd.DataFrame:
    return table("lens_by_language/lens").query("facts == 'all'")


def figures() -> Iterator[tuple[str, Callable[[], pd.DataFrame]]]:
    """File name, which begins with the name of its plot function, and the source of its table."""
    yield "perplexity_matrix-babel", partial(table, f"deactivate_neurons/{FRACTION:g}/matrix")
    yield "loss_against_fraction-babel", partial(table, "deactivate_neurons/table")
    yield "layer_profile-babel", profile
    yield "overlap-babel", overlap
    yield "curve_of_training-babel", training
    yield "language_switching-babel", switching
    for name, way in (("lape", "LAPE neurons"), ("precision", "precision units")):
        yield f"switching_against_size-{name}", partial(best_of_each_size, way)
    for task in ("fact_completion", "statements", "word_translation"):
        yield f"sharing-{task}", partial(table, f"map_shared_neurons/babel-{task}/profile")
    yield "attribution_sums-demo", lambda: pd.read_csv(STUDIES / "demo" / "attribute" / "sums.csv")
    yield "method_comparison-babel", partial(table, "compare_methods/comparison")
    yield "stability_against_tokens-babel", stable_methods
    for facts in ("told", "held_out"):
        yield f"moved_by_layer-{facts}", partial(table, f"patch_across_languages/moved-{facts}")
    yield "lens-babel", lens
    yield "patching-demo", lambda: pd.read_csv(STUDIES / "demo" / "patch.csv")


def main(out: Path = Path("figures")) -> None:
    for name, read in figures():
        try:
            frame = read()
        except FileNotFoundError as error:
            print(f"{name}: not drawn, {error.filename or error} is missing.")
            continue
        plots.save(frame, out / name)
        print(f"{name}: drawn")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

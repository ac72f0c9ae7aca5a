"""Every figure of the project, from what the studies of the shipped model have left in results/.

    python -m experiments.draw_figures       # a minute; figures whose study was not run are named

Reads   results/<study>/babel/..., results/babel_training/measure/history.json,
        results/demo/patch.csv, results/demo/attribute/sums.csv
Writes  figures/<figure>-<what>.csv, .pdf, .png; `make figures` redraws them from the tables alone
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import tyro

import interp
from babel_training.recipe import PRESETS
from interp import plots
from interp.counting.stats import FiringStats
from interp.inference.intervals import jackknife

STUDIES = Path("results")
FRACTION = 0.03
"""Of all neurons: that of Babel's card, fixed before anything was measured."""


def matrix() -> pd.DataFrame:
    return pd.read_csv(STUDIES / "deactivate_neurons" / "babel" / f"{FRACTION:g}" / "matrix.csv")


def fractions() -> pd.DataFrame:
    return pd.read_csv(STUDIES / "deactivate_neurons" / "babel" / "table.csv")


def counts() -> FiringStats:
    return interp.Run.open(STUDIES / "study" / "native" / "statistics").firing


def profile() -> pd.DataFrame:
    """Neurons per layer, with intervals over documents."""
    stats = counts()

    def found(part: FiringStats) -> interp.NeuronSelection:
        return interp.select_by_entropy(part, FRACTION)

    interval = jackknife(stats, lambda part: found(part).layer_profile().double())
    return plots.layer_profile_table(found(stats), interval)


def common() -> pd.DataFrame:
    return plots.overlap_table(interp.select_by_entropy(counts(), FRACTION))


def training() -> pd.DataFrame:
    """The own language's rise at every checkpoint, with its interval."""
    stored = json.loads(
        (STUDIES / "babel_training" / "measure" / "history.json").read_text(encoding="utf-8")
    )
    config = PRESETS["cpu"][1]
    rows = []
    for name, found in sorted(stored.items()):
        tokens = int(name.removeprefix("step-")) * config.rows * config.length
        for place, code in enumerate(config.languages):
            rise, reach = found["rise"][place][place], found["reach"][place][place]
            random = found["random"][place]
            rows.append(
                {
                    "tokens": tokens,
                    "language": code,
                    "increase": rise,
                    "increase_low": rise - reach,
                    "increase_high": rise + reach,
                    "random": sum(random) / len(random),
                }
            )
    return pd.DataFrame(rows)


def switching() -> pd.DataFrame:
    """The ways and their controls, without the parts of a set that are compared in the claims."""
    path = STUDIES / "steer_language" / "babel" / "final.csv"
    final = pd.read_csv(path, keep_default_na=False, na_values=[""])
    parts = final["way"].str.contains("half of them|nearly all")
    return final.loc[~parts]


def by_size(way: str) -> pd.DataFrame:
    sweep = pd.read_csv(STUDIES / "steer_language" / "babel" / "sweep.csv")
    return plots.best_of_each_size(sweep, way)


def shares(task: str) -> pd.DataFrame:
    return pd.read_csv(STUDIES / "map_shared_neurons" / "babel" / f"babel-{task}" / "profile.csv")


def compared(name: str) -> pd.DataFrame:
    return pd.read_csv(STUDIES / "compare_methods" / "babel" / f"{name}.csv")


def stable_methods() -> pd.DataFrame:
    """Seven of the methods, so that lines can be told apart."""
    shown = (
        *("random", "rate (LAP)", "removal effect (PLND)", "entropy (LAPE)"),
        *("mean entropy (LAVE)", "precision of gate", "precision of output, both ends"),
    )
    table = compared("stability")
    return table.loc[table["method"].isin(shown)]


def moved(facts: str) -> pd.DataFrame:
    path = STUDIES / "patch_across_languages" / "babel" / f"moved-{facts}.csv"
    return pd.read_csv(path)


def lens() -> pd.DataFrame:
    table = pd.read_csv(STUDIES / "lens_by_language" / "babel" / "lens.csv")
    return table.loc[table["facts"] == "all"]


def figures() -> Iterator[tuple[str, Callable[[], pd.DataFrame]]]:
    """File name, which begins with the function that draws it, and where its table comes from."""
    yield "perplexity_matrix-babel", matrix
    yield "loss_against_fraction-babel", fractions
    yield "layer_profile-babel", profile
    yield "overlap-babel", common
    yield "curve_of_training-babel", training
    yield "language_switching-babel", switching
    yield "switching_against_size-lape", lambda: by_size("LAPE neurons")
    yield "switching_against_size-precision", lambda: by_size("precision units")
    for task in ("fact_completion", "statements", "word_translation"):
        yield f"sharing-{task}", lambda task=task: shares(task)
    yield "attribution_sums-demo", lambda: pd.read_csv(STUDIES / "demo" / "attribute" / "sums.csv")
    yield "method_comparison-babel", lambda: compared("comparison")
    yield "stability_against_tokens-babel", stable_methods
    for facts in ("told", "held_out"):
        yield f"moved_by_layer-{facts}", lambda facts=facts: moved(facts)
    yield "lens-babel", lens
    yield "patching-demo", lambda: pd.read_csv(STUDIES / "demo" / "patch.csv")


def main(out: Path = Path("figures")) -> None:
    for name, read in figures():
        try:
            table = read()
        except FileNotFoundError as error:
            print(f"{name}: not drawn, {error.filename or error} is missing.")
            continue
        plots.save(table, out / name)
        print(f"{name}: drawn")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

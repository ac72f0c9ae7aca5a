"""Which selector finds built-in language neurons, and which decoys does it mistake for them?

    python -m experiments.recover_planted tiny      # seconds, CPU
    python -m experiments.recover_planted babel     # 15 minutes on one core

Writes  results/recover_planted/<preset>/recovery.csv (what each selector finds at each effect size,
        with no decoys, each kind alone, and all, with intervals), losses.csv (the cost of switching
        the built-in neurons off), claims.json

experiments/planted.py explains the models and the effect size.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

import interp
from experiments.planted import DECOYS, KINDS, Design, Planted, Truth, plant, read_text
from experiments.runner import Experiment, Preset, Record, estimate
from interp.counting.statistics import OF_NEURONS
from interp.inference.intervals import clustered_share, mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.scores.choosers import Measured, measured
from interp.scores.methods import COMPARED, Method, Settings

_STATISTICS: dict[str, Any] = dict.fromkeys(OF_NEURONS, True)
ALL_KEPT = interp.Keep(sentence_means=("pre", "post"), **_STATISTICS)
"""All that the compared methods need."""

ALL, NONE = "all", "none"
VARIANTS: dict[str, tuple[str, ...]] = {NONE: (), **{kind: (kind,) for kind in DECOYS}, ALL: DECOYS}
"""Name → kinds of decoys in the model."""


def measure(design: Design, planted: Planted, generator: torch.Generator) -> Measured:
    """The statistics that selectors read, from new text."""
    corpora = read_text(design, planted, design.sentences, generator)
    run = interp.collect(planted.model, corpora, keep=ALL_KEPT, progress=False)
    return measured(run, generator, lambda: planted.model)


def planted_and_measured(
    design: Design, effect: float, seed: int, decoys: Sequence[str] = DECOYS
) -> tuple[Truth, Measured]:
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(design, effect, generator, Path(folder) / "model", decoys)
        return planted.truth, measure(design, planted, generator)


def with_decoys(
    full: Measured, bare: Measured, truth: Truth, kinds: Sequence[str]
) -> tuple[Truth, Measured]:
    """A model with these decoys alone, mixed from models of one seed with all decoys and with none.

    Gates do not read other neurons, so a neuron fires alike in all three models. What neurons write
    changes the norm that activations are divided by, and so mean gates and outputs by some percent.
    """
    stays = torch.zeros_like(truth.kind, dtype=torch.bool)
    for kind in ("background", "language", *kinds):
        stays |= truth.is_kind(kind)
    kind = truth.kind.where(stays, KINDS.index("background"))
    return replace(truth, kind=kind), full.mixed(stays, bare)


# ---------------------------------------------------------------- recovery


def recovery(selection: interp.NeuronSelection, truth: Truth) -> pd.DataFrame:
    """A row per language: how many planted neurons were chosen for it, and how many others.

    Precision and recall with 95 % intervals; then the number chosen of each other kind.
    """
    planted, chosen = truth.selection, selection.languages_only(truth.selection.languages)
    kinds = torch.nn.functional.one_hot(truth.kind, len(KINDS))
    both, rows = (planted & chosen).counts(), []
    for code, n_planted in planted.counts().items():
        found, of_kind = both[code], kinds[chosen[code]].sum(dim=0).tolist()
        n_chosen = sum(of_kind)
        cells = {"language": code, "planted": n_planted, "chosen": n_chosen, "found": found}
        cells |= share_columns("precision", [found], [n_chosen]) | share_columns(
            "recall", [found], [n_planted]
        )
        mistakes = dict(zip(map(_mistakes, KINDS), of_kind, strict=True))
        mistakes[_mistakes("language")] -= found  # the rest were planted for other languages
        rows.append(cells | mistakes)
    return pd.DataFrame(rows)


def share_columns(name: str, hits: list[int], trials: list[int]) -> dict[str, float]:
    """A share over clusters, with its 95 % interval, as three columns."""
    columns = (name, f"{name}_low", f"{name}_high")
    return dict(zip(columns, clustered_share(hits, trials), strict=True))


def _mistakes(kind: str) -> str:
    return "other language" if kind == "language" else kind


Make = Callable[[float, int, Sequence[str]], tuple[Truth, Measured]]
"""Effect size, seed and kinds of decoys → what is planted, and the statistics of that model."""


def anew(name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Rows that are not kept; `Record.piece` keeps them."""
    return make()


def compare(
    make: Make,
    n: int,
    effects: Sequence[float],
    seeds: Sequence[int],
    methods: Mapping[str, Method],
    variants: Mapping[str, Sequence[str]] = VARIANTS,
    decoys: Sequence[str] = DECOYS,
    progress: bool = True,
    *,
    bare: Callable[[int], Measured] | None = None,
    piece: Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame] = anew,
) -> pd.DataFrame:
    """`recovery` of every method, for each variant, effect size and seed.

    Methods choose `n` neurons per language from the same statistics. Models with the same seed
    differ only in the effect and the decoys. `bare` gives the statistics of a seed's model without
    decoys. `piece` keeps the rows of a model for the next run.
    """
    settings = Settings(n=n)
    # The background does not depend on the effect, so one model without decoys serves all.
    without = lru_cache(maxsize=1)(bare or (lambda seed: make(effects[0], seed, ())[1]))

    def of_model(effect: float, seed: int) -> pd.DataFrame:
        frames, other, (all_kinds, full) = [], without(seed), make(effect, seed, decoys)
        for variant, kinds in variants.items():
            truth, seen = with_decoys(full, other, all_kinds, kinds)
            for name, method in methods.items():
                selection = interp.selections.selection_of(method, seen, settings)
                labels = {"decoys": variant, "effect": effect, "seed": seed, "selector": name}
                frames.append(recovery(selection, truth).assign(**labels))
        return pd.concat(frames, ignore_index=True)

    models = list(itertools.product(seeds, effects))
    bar = tqdm(models, desc="Planting", disable=not progress or None)
    tables = [piece(f"{effect:g}-{seed}", partial(of_model, effect, seed)) for seed, effect in bar]
    return pd.concat(tables, ignore_index=True)


def summarize(frame: Table) -> pd.DataFrame:
    """A row for each variant, effect size and selector, over languages and seeds.

    Precision and recall with intervals; then the share of each mistake in all that was chosen.
    """
    kinds = [_mistakes(kind) for kind in KINDS]
    rows = []
    by = ["decoys", "effect", "selector"]
    for key, part in frame.groupby(by, sort=False):
        found, chosen, planted = (part[name].tolist() for name in ("found", "chosen", "planted"))
        cells = dict(zip(by, key, strict=True)) | {"chosen": sum(chosen)}
        cells |= share_columns("precision", found, chosen) | share_columns("recall", found, planted)
        n_chosen = max(sum(chosen), 1)
        rows.append(cells | {kind: sum(part[kind].tolist()) / n_chosen for kind in kinds})
    return pd.DataFrame(rows)


def ablate_categories(
    design: Design, planted: Planted, generator: torch.Generator, n_sentences: int = 100
) -> interp.evaluations.PerplexityMatrix:
    """Loss of new text (nats per token) with each language's planted neurons off."""
    corpora = read_text(design, planted, n_sentences, generator)
    neurons, options = planted.truth.selection, {"n_draws": 1, "generator": generator}
    return interp.perplexity_matrix(planted.model, neurons, corpora, **options, progress=False)


def losses(
    design: Design, effects: Sequence[float], seed: int, n_sentences: int = 100
) -> pd.DataFrame:
    """A row per effect size: how the planted neurons fire, and the cost of switching them off."""
    rows = []
    for effect in effects:
        generator = torch.Generator().manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            planted = plant(design, effect, generator, Path(folder))
            matrix = ablate_categories(design, planted, generator, n_sentences)
        own, other = planted.truth.firing_probability()
        gap = math.log(own / (1 - own)) - math.log(other / (1 - other))
        rise, random = matrix.increase.value, matrix.control.value
        is_own = torch.eye(len(design.languages), dtype=torch.bool)
        cells = {"effect": effect, "p_own": own, "p_other": other, "log_odds": gap}
        cells |= {"own": rise[is_own].mean().item(), "others": rise[~is_own].mean().item()}
        rows.append(cells | {"random": random[is_own].mean().item()})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- claims


def difference_in_recall(
    frame: Table, a: tuple[str, str], b: tuple[str, str], effect: float
) -> interp.Estimate:
    """Share found under one (selector, decoys) minus that under another, paired by model.

    The two languages of a script share its decoys, and are one cluster.
    """
    shares = []
    rows = frame[frame["effect"] == effect].set_index(["seed", "language"])
    for selector, decoys in (a, b):
        part = rows[(rows["selector"] == selector) & (rows["decoys"] == decoys)]
        shares.append(part["found"] / part["planted"])
    more = shares[0] - shares[1]
    codes = list(dict.fromkeys(frame["language"]))
    clusters = [seed * len(codes) + codes.index(code) // 2 for seed, code in more.index]
    values = torch.tensor(more.tolist(), dtype=torch.float64)
    return mean_over_examples(values, torch.tensor(clusters))


def measures(frame: Table, summary: Table) -> dict[str, Measurement | None]:
    """At the largest effect: recall of selectors beside random neurons, and the cost of decoys."""
    effect = max(frame["effect"].tolist())
    rows = summary[summary["effect"] == effect].set_index(["selector", "decoys"])
    words, lape = {"effect": f"{effect:g}"}, "entropy (LAPE)"

    def recall(selector: str, decoys: str) -> Measurement:
        row = rows.loc[(selector, decoys)]
        value = estimate(*(float(row[f"recall{end}"]) for end in ("", "_low", "_high")))
        random = float(rows.loc[("random", decoys), "recall"])
        beyond = difference_in_recall(frame, (selector, decoys), ("random", decoys), effect)
        return Measurement(value, random, beyond, words=words)

    fooled = difference_in_recall(frame, (lape, NONE), (lape, "script"), effect)
    return {
        "planted-precision-none": recall("precision of gate", NONE),
        "planted-precision-all": recall("precision of gate", ALL),
        "planted-entropy-none": recall(lape, NONE),
        "planted-entropy-all": recall(lape, ALL),
        "planted-entropy-script": Measurement(fooled, words=words),
    }


def shown(summary: Table) -> str:
    """Recall: a row per selector, a column per effect size, and then per kind of decoy."""
    effect = max(summary["effect"].tolist())
    parts = {
        "all decoys, by effect size": (summary[summary["decoys"] == ALL], "effect"),
        f"effect {effect:g}, by decoys": (summary[summary["effect"] == effect], "decoys"),
    }
    texts = []
    for name, (part, column) in parts.items():
        wide = part.pivot(index="selector", columns=column, values="recall")
        wide = wide.loc[part["selector"].drop_duplicates(), part[column].drop_duplicates()]
        numbers = wide.to_string(float_format="%.2f")
        texts.append(f"Share of planted neurons found; {name}\n\n{numbers}")
    return "\n\n".join(texts)


# ---------------------------------------------------------------- running


@dataclass(frozen=True)
class Config:
    """One run; everything that changes a number is here."""

    design: Design = field(default_factory=Design)
    """The models and their languages."""

    effects: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
    """Distance between own and other words at a planted neuron's gate, in standard deviations."""

    seeds: int = 3
    """Models per effect size; each seed has one more, without decoys."""

    loss_sentences: int = 30
    """Sentences per language, for the cost of switching the planted neurons off."""

    out: Path = Path()
    """Folder for the results."""


TINY = Design(
    languages=("en", "de", "zh", "ja"),
    n_layers=2,
    d_model=64,
    d_mlp=512,
    n_noise=32,
    planted=8,
    decoys=8,
    general_words=100,
    domain_words=15,
    script_words=20,
    common_words=20,
    sentences=100,
)
PRESETS = {
    "tiny": Preset(
        "Few small models: checks that every part runs.",
        differences={"design": TINY, "effects": (0.0, 2.0, 6.0), "seeds": 2},
    ),
    "babel": Preset("The table in the log: 24 models of 2,048 neurons."),
}


def main(config: Config, record: Record) -> None:
    design, seeds = config.design, range(config.seeds)
    make = partial(planted_and_measured, design)
    rows = compare(make, design.planted, config.effects, seeds, COMPARED)
    summary = summarize(rows)
    cost = losses(config.design, config.effects, seed=0, n_sentences=config.loss_sentences)
    record.tables({"recovery": summary, "losses": cost}, float_format="%.4g")
    print(shown(summary), cost.round(3).to_string(index=False), sep="\n\n")
    on = f"planted models of {config.design.n_layers * config.design.d_mlp:,} neurons"
    record.judge("recover_planted", measures(rows, summary), on)


experiment = Experiment("recover_planted", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

"""Which selector finds language neurons that were built in, and which decoys does it take for them?

    python -m experiments.recover_planted tiny      # seconds, CPU
    python -m experiments.recover_planted babel     # minutes on 2 cores

Writes  results/recover_planted/<preset>/recovery.csv (what each selector finds, at each effect
        size, with intervals), losses.csv (what switching the built-in neurons off costs each
        language)

How the models are made, and what an effect size is, says experiments/planted.py.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
import transformers
import tyro
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

import interp
from experiments.planted import KINDS, Design, Planted, Truth, plant, read_text
from interp import artifacts
from interp.interventions import deactivate
from interp.scores.average_precision import Precision, measure_precision, top_and_bottom
from interp.scores.baselines import (
    entropy_less_peak,
    highest,
    mean_removal_effect,
    random_score,
    share_above_percentile,
    value_entropy,
)
from interp.scores.lape import busy_threshold, language_entropy
from interp.uncertainty import wilson

# ---------------------------------------------------------------- what selectors are given


@dataclass(frozen=True)
class Measured:
    """All that a selector may look at: a model and its statistics, without the truth."""

    model: interp.NeuronModel
    stats: interp.FiringStats
    moments: interp.ActivationMoments
    means: interp.SentenceMeans

    generator: torch.Generator
    """For selectors that draw."""

    @cached_property
    def precision(self) -> Precision:
        return measure_precision(self.means)


def measure(design: Design, planted: Planted, generator: torch.Generator, folder: Path) -> Measured:
    """Collect from new text; `folder` must stay, since sentence means are read from it."""
    corpora = read_text(design, planted, design.sentences, generator)
    wanted = interp.Wanted(moments=True, sentence_means=("pre", "post"))
    stats = interp.collect(planted.model, corpora, folder, wanted=wanted, progress=False)
    moments = interp.ActivationMoments.load(folder / "moments.safetensors")
    means = interp.open_sentence_means(folder)
    return Measured(planted.model, stats, moments, means, generator)


# ---------------------------------------------------------------- selectors

Selector = Callable[[Measured, int], Bool[Tensor, "language layer neuron"]]
"""What was measured, and how many neurons to choose for each language → the choice. Choosing fewer
costs recall, not precision."""


def by_entropy(
    measure: Float[Tensor, "language layer neuron"],
    entropy: Float[Tensor, "layer neuron"],
    n: int,
    busy_quantile: float | None = 0.95,
) -> Bool[Tensor, "language layer neuron"]:
    """Per language the n neurons of least entropy, among those that LAPE calls busy in it.

    None for `busy_quantile`: among those that lead in it.
    """
    if busy_quantile is None:
        among = measure == reduce(measure, "language layer neuron -> 1 layer neuron", "max")
    else:
        among = measure.double() > busy_threshold(measure, busy_quantile)
    score = repeat(-entropy, "layer neuron -> language layer neuron", language=len(measure))
    score = score.masked_fill(~among | score.isnan(), -math.inf)
    return highest(score, n) & score.isfinite()


def _random(measured: Measured, n: int) -> Tensor:
    n_languages, n_layers, n_neurons = measured.stats.rate.shape
    return highest(random_score(n_languages, n_layers, n_neurons, measured.generator), n)


def _lead(measured: Measured, n: int) -> Tensor:
    """Rate in the language less the highest in any other."""
    rate = measured.stats.rate
    first, second = rate.topk(2, dim=0).values
    return highest(rate - torch.where(rate == first, second, first), n)


def _lape(measured: Measured, n: int) -> Tensor:
    rate = measured.stats.rate
    return by_entropy(rate, language_entropy(rate), n)


def _entropy_alone(measured: Measured, n: int) -> Tensor:
    rate = measured.stats.rate
    return by_entropy(rate, language_entropy(rate), n, busy_quantile=None)


def _lape_as_published(measured: Measured, n: int) -> Tensor:
    """As many neurons in all; how many of them a language gets is for LAPE to say."""
    rate = measured.stats.rate
    fraction = n * len(rate) / rate[0].numel()
    return interp.select_by_entropy(measured.stats, fraction=fraction).mask


def _lave(measured: Measured, n: int) -> Tensor:
    mean = measured.moments.gate_mean.clamp_min(0)
    return by_entropy(mean, value_entropy(mean), n)


def _less_peak(measured: Measured, n: int) -> Tensor:
    rate = measured.stats.rate
    return by_entropy(rate, entropy_less_peak(rate, weight=0.1), n)


def _precision(kind: str, both: bool) -> Selector:
    def select(measured: Measured, n: int) -> Tensor:
        score = measured.precision.average_precision[:, :, measured.precision.units(kind)]
        if not both:
            return highest(score, n)
        flat = rearrange(score, "language layer neuron -> language (layer neuron)")
        chosen = top_and_bottom(flat, n)
        layers = score.shape[1]
        return rearrange(chosen, "language (layer neuron) -> language layer neuron", layer=layers)

    return select


def _above_percentile(measured: Measured, n: int) -> Tensor:
    means = measured.means
    shares = [
        share_above_percentile(means.read("pre", layer), means.labels, len(means.languages))
        for layer in range(measured.model.n_layers)
    ]
    return highest(torch.stack(shares, dim=1), n)


SELECTORS: dict[str, Selector] = {
    "random": _random,
    "rate (LAP)": lambda measured, n: highest(measured.stats.rate, n),
    "removal effect (PLND)": lambda measured, n: highest(
        mean_removal_effect(measured.moments, measured.model), n
    ),
    "entropy alone": _entropy_alone,
    "entropy (LAPE)": _lape,
    "LAPE as published": _lape_as_published,
    "entropy less peak": _less_peak,
    "mean entropy (LAVE)": _lave,
    "lead in rate": _lead,
    "share above percentile": _above_percentile,
    "precision of gate": _precision("pre", both=False),
    "precision of gate, both ends": _precision("pre", both=True),
    "precision of output": _precision("post", both=False),
    "precision of output, both ends": _precision("post", both=True),
}
"""Name → selector. "Both ends" takes half from the top and half from the bottom, as Kojima et al.
(2024) do."""


# ---------------------------------------------------------------- recovery


def share_with_interval(
    hits: Sequence[int], trials: Sequence[int], level: float = 0.95
) -> tuple[float, float, float]:
    """Pooled share of hits with Wilson's interval; each pair is a cluster, such as one language.

    Neurons of one language share its vocabulary and succeed or fail together. So the number of
    trials is divided by the design effect: the variance of the share between clusters over what
    independent trials would give, but at least one. NaN: no trials. Zero and one have intervals,
    too; with all clusters alike, they are those of independent trials.
    """
    total = sum(trials)
    if total == 0:
        return math.nan, math.nan, math.nan
    share, n = sum(hits) / total, float(total)
    if 0 < share < 1 and len(hits) > 1:
        squares = sum((hit - share * size) ** 2 for hit, size in zip(hits, trials, strict=True))
        between = squares / total**2 * len(hits) / (len(hits) - 1)
        n /= max(1.0, between / (share * (1 - share) / total))
    return share, *wilson(share, n, level)


@dataclass(frozen=True)
class Recovery:
    """How a selection compares with what was planted."""

    planted: Int64[Tensor, " language"]
    """Neurons that are there."""

    chosen: Int64[Tensor, "language kind"]
    """Neurons chosen, by what they are; planted for another language counts as "language"."""

    found: Int64[Tensor, " language"]
    """Planted neurons chosen for their own language."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    def to_frame(self) -> pd.DataFrame:
        """A row per language: precision and recall with 95 % intervals; mistakes by kind."""
        rows = []
        for row, code in enumerate(self.languages):
            found, planted = int(self.found[row]), int(self.planted[row])
            kinds = dict(zip(KINDS, self.chosen[row].tolist(), strict=True))
            counts = {"planted": planted, "chosen": sum(kinds.values()), "found": found}
            kinds["language"] -= found  # what is left was planted for others
            cells = {"language": code, **counts}
            for name, total in (("precision", counts["chosen"]), ("recall", planted)):
                values = share_with_interval([found], [total])
                columns = (name, f"{name}_low", f"{name}_high")
                cells |= dict(zip(columns, values, strict=True))
            rows.append(cells | {_mistakes(kind): number for kind, number in kinds.items()})
        return pd.DataFrame(rows)


def _mistakes(kind: str) -> str:
    return "other language" if kind == "language" else kind


def recovery(selection: interp.NeuronSelection, truth: Truth) -> Recovery:
    """Which of the planted neurons were chosen for their language, and what else was."""
    planted, chosen = truth.selection, selection.restrict(truth.selection.languages)
    kinds = torch.nn.functional.one_hot(truth.kind, len(KINDS))
    both = planted & chosen
    return Recovery(
        torch.tensor(list(planted.counts().values())),
        torch.stack([kinds[mask].sum(dim=0) for mask in chosen.mask]),
        torch.tensor(list(both.counts().values())),
        planted.languages,
    )


def compare(
    design: Design,
    effects: Sequence[float],
    seeds: Sequence[int],
    selectors: Mapping[str, Selector],
    progress: bool = True,
) -> pd.DataFrame:
    """`Recovery.to_frame` of every selector on a model for each effect size and seed.

    Each selector chooses as many neurons per language as are planted. Models of one seed differ in
    the effect alone, and all selectors see the same measurements.
    """
    frames = []
    cases = [(effect, seed) for effect in effects for seed in seeds]
    for effect, seed in tqdm(cases, desc="Planting", unit="model", disable=not progress or None):
        generator = torch.Generator().manual_seed(seed)
        with tempfile.TemporaryDirectory() as place:
            planted = plant(design, effect, generator, Path(place) / "model")
            measured = measure(design, planted, generator, Path(place) / "run")
            for name, select in selectors.items():
                mask = select(measured, design.planted)
                selection = interp.NeuronSelection(mask, design.languages)
                frame = recovery(selection, planted.truth).to_frame()
                frames.append(frame.assign(effect=effect, seed=seed, selector=name))
    return pd.concat(frames, ignore_index=True)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per effect size and selector, over languages and seeds.

    Precision and recall with intervals; then, of all that was chosen, the share of each mistake.
    """
    kinds = [_mistakes(kind) for kind in KINDS]
    rows = []
    pairs = list(dict.fromkeys(zip(frame["effect"], frame["selector"], strict=True)))
    for effect, selector in pairs:
        part = frame[(frame["effect"] == effect) & (frame["selector"] == selector)]
        cells = {"effect": effect, "selector": selector, "chosen": sum(part["chosen"].tolist())}
        for name, total in (("precision", "chosen"), ("recall", "planted")):
            values = share_with_interval(part["found"].tolist(), part[total].tolist())
            cells |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        chosen = max(cells["chosen"], 1)
        rows.append(cells | {kind: sum(part[kind].tolist()) / chosen for kind in kinds})
    return pd.DataFrame(rows)


def switch_off(
    design: Design, planted: Planted, generator: torch.Generator, n_sentences: int = 100
) -> interp.PerplexityMatrix:
    """Nats per token of new text with each language's planted neurons off."""
    corpora = read_text(design, planted, n_sentences, generator)
    return interp.perplexity_matrix(
        planted.model,
        planted.truth.selection,
        corpora,
        deactivate,
        n_draws=1,
        generator=generator,
        progress=False,
    )


def losses(
    design: Design, effects: Sequence[float], seed: int, n_sentences: int = 100
) -> pd.DataFrame:
    """A row per effect size: how the planted neurons fire, and what switching them off costs."""
    rows = []
    for effect in effects:
        generator = torch.Generator().manual_seed(seed)
        with tempfile.TemporaryDirectory() as place:
            planted = plant(design, effect, generator, Path(place))
            matrix = switch_off(design, planted, generator, n_sentences)
        own, other = planted.truth.firing_probability()
        gap = math.log(own / (1 - own)) - math.log(other / (1 - other))
        rise, random = matrix.increase.value, matrix.control.value
        is_own = torch.eye(len(design.languages), dtype=torch.bool)
        cells = {"effect": effect, "p_own": own, "p_other": other, "log_odds": gap}
        cells |= {"own": rise[is_own].mean().item(), "others": rise[~is_own].mean().item()}
        rows.append(cells | {"random": random[is_own].mean().item()})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class Config:
    """One run; everything that changes a number is here."""

    design: Design
    """The models and their languages."""

    effects: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
    """By how many standard deviations a planted neuron's gate tells its language from others."""

    seeds: int = 3
    """Models at each effect size."""

    out: Path = Path("results/recover_planted/babel")
    """Where the tables go."""


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
    "tiny": (
        "Small models, few of them; checks the code path.",
        Config(TINY, effects=(0.0, 2.0, 6.0), seeds=2, out=Path("results/recover_planted/tiny")),
    ),
    "babel": ("The table in the log: 21 models of 2,048 neurons.", Config(Design())),
}


def main() -> None:
    config = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
    transformers.utils.logging.disable_progress_bar()  # one for each model
    found = summarise(compare(config.design, config.effects, range(config.seeds), SELECTORS))
    cost = losses(config.design, config.effects, seed=0)
    artifacts.write_text(
        config.out / "recovery.csv", found.to_csv(index=False, float_format="%.4g")
    )
    artifacts.write_text(config.out / "losses.csv", cost.to_csv(index=False, float_format="%.4g"))
    shown = found.drop(columns=["chosen"]).round(3)
    print(shown.to_string(index=False), cost.round(3).to_string(index=False), sep="\n\n")


if __name__ == "__main__":
    main()

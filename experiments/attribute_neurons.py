"""Which scores predict what a neuron does? Attributions against the exact effect of each neuron.

    python -m experiments.attribute_neurons tiny     # seconds
    python -m experiments.attribute_neurons babel    # 4 minutes on one core
    python -m experiments.attribute_neurons thorough # 6 minutes on 2 cores
    python -m experiments.attribute_neurons gemma    # Gemma 3 270M, which `make real` installs
    python -m experiments.attribute_neurons paper    # a GPU; --study.model NAME

Reads   a model; prompts of a task in each language, with their answers
Writes  results/attribute_neurons/<preset>/prompts.csv, table.csv, claims.json

For each prompt that the model answers correctly, every neuron (or each of a random sample) is
switched off alone at the last token. The scores should predict how far the answer's log-probability
falls. Integrated gradients, gradient times activation and the effective score have a sign and are
ranked against the signed fall; these, contribution and the activation's size are ranked by size
against the fall's size. Neurons with zero output have no effect and zero scores, so correlations
leave them out. Intervals are over prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

import interp
from experiments import gemma, papers, runner
from experiments.runner import Experiment, Preset, Record, estimate
from experiments.study import Study
from interp.evaluations.multiple_choice import encode_items
from interp.inference.intervals import mean_over_examples, paired_bootstrap
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.prompts.contributions import top_neurons

SIGNED = ("integrated gradients", "gradient times activation", "effective score")
"""Scores that predict the direction of a neuron's effect."""

OWN = ("mean", "low", "high")
BEHIND = ("behind_gradients", "behind_low", "behind_high")
"""Columns: how far a score is behind integrated gradients, paired by prompt."""


BEYOND = ("beyond_control", "beyond_low", "beyond_high")
"""Columns: how far a score is above its control, paired by prompt."""

CONTROLS = {
    "contribution": "size of activation",
    "effective score": "gradient times activation",
}
"""Score → the simpler score that it must exceed."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is compared."""

    task: str = "babel/fact_completion"
    """Task of the prompts; see interp.text.tasks."""

    n_prompts: int = 15
    """Per language, among those answered correctly."""

    n_neurons: int | None = 1500
    """Switched off per prompt, drawn at random; None: every neuron with nonzero output."""

    steps: int = 20
    """Points on the path of integrated gradients."""

    top: int = 50
    """How many neurons with the largest effects and highest scores are compared (`hits`)."""


PRESETS = {
    "tiny": Preset(
        "Two prompts in two languages: seconds.",
        Study(languages=("de", "ja")),
        {"n_prompts": 2, "n_neurons": 200, "steps": 4},
    ),
    "babel": Preset("The shipped model: 4 minutes on one core."),
    "thorough": Preset(
        "More prompts, and every neuron with nonzero output: 6 minutes on 2 cores.",
        differences={"n_prompts": 20, "n_neurons": None},
    ),
    "gemma": gemma.preset(n_prompts=6, n_neurons=500),
    "paper": papers.preset(
        replace(papers.WANG, model="Qwen/Qwen3-0.6B-Base", dtype="float32"),
        f"mLAMA in 9 languages ({papers.FACTS}, made by python -m experiments.paper_tasks)",
        9 * 100 * 15 * (2000 + 3 * 20),
        task=papers.FACTS,
        n_prompts=100,
        n_neurons=2000,
    ),
}


def scores_of(
    model: interp.NeuronModel, prompt: tuple[int, ...], target: int, steps: int
) -> dict[str, Float[Tensor, "layer neuron"]]:
    """Every score of every neuron for one prompt and the first token of its answer."""
    gradients = interp.integrated_gradients(model, prompt, target, steps, "log_probability")
    activations = gradients.activations
    return {
        "integrated gradients": gradients.values,
        "gradient times activation": interp.prompts.gradient_times_activation(
            model, prompt, target, "log_probability"
        ),
        "effective score": interp.prompts.effective_score(model, activations, target),
        "contribution": interp.prompts.contribution_score(model, activations),
        "size of activation": activations.abs(),
    }


def tried(
    size: Float[Tensor, "layer neuron"], n: int | None, generator: torch.Generator
) -> Bool[Tensor, "layer neuron"]:
    """The neurons that are switched off: those with nonzero output, or `n` of them at random."""
    active = size > 0
    if n is None or n >= int(active.sum()):
        return active
    noise = torch.rand(active.shape, generator=generator).masked_fill(~active, -1.0)
    return top_neurons(noise, n)


def compare(
    scores: Mapping[str, Float[Tensor, "layer neuron"]],
    effect: Float[Tensor, "layer neuron"],
    measured: Bool[Tensor, "layer neuron"],
    top: int,
) -> list[dict[str, object]]:
    """How well each score predicts the measured effects of one prompt."""
    exact = effect[measured]
    largest = set(exact.abs().argsort(descending=True)[:top].tolist())
    rows: list[dict[str, object]] = []
    for name, score in scores.items():
        values = score[measured]
        highest = set(values.abs().argsort(descending=True)[:top].tolist())
        row: dict[str, object] = {"score": name}
        row |= {"size": rank_correlation(values.abs(), exact.abs())}
        row |= {"hits": len(highest & largest) / len(largest)}
        if name in SIGNED:
            row |= {"signed": rank_correlation(values, exact)}
        rows.append(row)
    return rows


def rank_correlation(a: Float[Tensor, " neuron"], b: Float[Tensor, " neuron"]) -> float:
    """Spearman's; ties get their mean rank. NaN: one of them is constant."""
    result: Any = spearmanr(a.double().numpy(), b.double().numpy())
    return float(result.statistic)


def questions(
    model: interp.NeuronModel, config: Config, code: str
) -> list[tuple[str, tuple[int, ...], int]]:
    """Id, prompt and first token of the answer: the first items that the model answers rightly."""
    task = interp.read_task(config.task, code)
    bos, at_once = config.study.held_out_bos, 4 * config.n_prompts
    prompts: list[tuple[str, tuple[int, ...], int]] = []
    for start in range(0, len(task.items), at_once):
        part = replace(task, items=task.items[start : start + at_once])
        right = interp.evaluations.choose(model, [part], bos=bos, progress=False)[0].correct
        encoded = zip(part.items, encode_items(model, part, bos), right.tolist(), strict=True)
        for item, texts, yes in encoded:
            row = texts.rows[item.answer]
            if yes:
                prompts.append((item.id, row[: texts.begin], row[texts.begin]))
        if len(prompts) >= config.n_prompts:
            break
    return prompts[: config.n_prompts]


def table(frame: pd.DataFrame, generator: torch.Generator) -> pd.DataFrame:
    """Means with intervals over prompts, and paired distances behind integrated gradients."""
    rows = []
    wide = {
        name: frame.pivot_table(index=["language", "id"], columns="score", values=name, sort=False)
        for name in ("size", "signed", "hits")
    }
    for score in frame["score"].unique():
        for name, by_score in wide.items():
            if score not in by_score:
                continue
            values = torch.tensor(by_score[score].to_numpy())
            best = torch.tensor(by_score["integrated gradients"].to_numpy())
            estimates: dict[Any, interp.Estimate] = {OWN: mean_over_examples(values)}
            if score != "integrated gradients":
                estimates[BEHIND] = paired_bootstrap(best, values, generator)
            control = CONTROLS.get(score)
            if control in by_score:
                beyond = mean_over_examples(values - torch.tensor(by_score[control].to_numpy()))
                estimates[BEYOND] = beyond
            row = {"score": score, "measure": name}
            for columns, number in estimates.items():
                ends = (number.value.item(), number.low.item(), number.high.item())
                row |= dict(zip(columns, ends, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def measures(means: Table) -> dict[str, Measurement | None]:
    """Whether scores predict what a neuron does, and gradients predict it better."""
    rows = means.set_index(["score", "measure"])

    def of(score: str, measure: str, columns: tuple[str, ...]) -> interp.Estimate:
        return estimate(*(float(rows.loc[(score, measure), column]) for column in columns))

    def beside(score: str, measure: str) -> Measurement:
        control = of(CONTROLS[score], measure, OWN)
        return Measurement(of(score, measure, OWN), control, of(score, measure, BEYOND))

    return {
        "contribution-foretells": beside("contribution", "size"),
        "effective-score-foretells": beside("effective score", "signed"),
        "gradients-foretell-more": Measurement(of("contribution", "size", BEHIND)),
    }


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study)
    generator = torch.Generator().manual_seed(study.seed)
    rows: list[dict[str, object]] = []
    for code in study.languages:
        for id, prompt, target in tqdm(questions(model, config, code), code, leave=False):
            scores = scores_of(model, prompt, target, config.steps)
            measured = tried(scores["size of activation"], config.n_neurons, generator)
            effect = interp.prompts.ablation_effect(
                model, prompt, target, measured, "log_probability"
            )
            rows += [
                {"language": code, "id": id, "neurons": int(measured.sum()), **row}
                for row in compare(scores, effect, measured, config.top)
            ]
    frame = pd.DataFrame(rows)
    means = table(frame, generator)
    record.tables({"prompts": frame, "table": means})
    print(f"{frame['id'].count() // frame['score'].nunique()} prompts, mean over prompts\n")
    print(means.to_string(index=False, float_format="%.3f", na_rep=""))
    record.judge("attribute_neurons", measures(means))


experiment = Experiment("attribute_neurons", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

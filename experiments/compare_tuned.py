"""What does tuning change: are more neurons shared, and do language neurons stay the same?

    python -m experiments.compare_tuned tiny      # a minute; the tuned model is made up
    python -m experiments.compare_tuned paper     # a GPU; --study.model BASE --tuned INSTRUCT

Reads   two models of one shape; tasks whose items are the same in every language; text
Writes  results/compare_tuned/<preset>/<task>/sharing.csv (shares by category and layer, in both),
        answers.csv (accuracy by language, in both), rates.csv (how far firing rates go together),
        neurons.csv (by language: LAPE neurons in both, and what those of the base do when they are
        off in the tuned model), claims.json

Wang et al. (2024) compare BLOOM with BLOOMZ. Prompts and text are the same for both models, so
differences are paired. With --tuned planted the second model is the first, except that its least
active neurons write nothing and have their gates negated: they fire in every language, which the
study has to see, and change nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from einops import reduce
from jaxtyping import Bool, Float64
from torch import Tensor

import interp
from experiments import papers, runner
from experiments.deactivation_claims import ALIKE, compared, per_token, sums_of
from experiments.map_shared_neurons import all_shared, rows_of
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.evaluations import own_minus_others
from interp.evaluations.task_results import group_numbers
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.scores import SharingProfile
from interp.text import Task

PLANTED = "planted"
"""Instead of a tuned model: the first one, changed."""

NEGATED = 0.05
"""Share of the neurons whose gates are negated in it."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """Which models are compared, on what."""

    tuned: str = PLANTED
    """The tuned model: a local folder or a hub name. The other is that of the study."""

    tasks: tuple[str, ...] = ("babel/fact_completion",)
    """Tasks; see interp.text.tasks."""

    n_items: int | None = None
    """Items of each task, from the first on; None: all."""

    fraction: float = 0.03
    """Of all neurons, selected by LAPE."""

    n_draws: int = 3
    """Random sets per control."""


PRESETS = {
    "tiny": Preset(
        "The shipped model against itself with some gates negated: a minute.",
        Study(languages=("de", "fr", "ja"), tokens=2000, held_out_tokens=960, n_shards=4),
        {"tasks": ("babel/word_translation",), "n_items": 12, "n_draws": 1},
    ),
    "paper": papers.preset(
        replace(
            papers.WANG,
            model="bigscience/bloom-7b1",
            text="wikipedia",
            tokens=1_000_000,
            held_out_tokens=100_000,
        ),
        "XNLI, mLAMA and a million tokens of Wikipedia in 9 languages, against "
        "bigscience/bloomz-7b1-mt",
        2 * 9 * (1000 * 5 * 200 + 1_000_000) + 9 * 12 * 100_000,
        tuned="bigscience/bloomz-7b1-mt",
        tasks=(papers.INFERENCES, papers.FACTS),
        fraction=0.01,
    ),
}


# ---------------------------------------------------------------- the models


def least_active(stats: interp.FiringStats, share: float) -> Bool[Tensor, "layer neuron"]:
    """This share of all neurons: those that fire least, summed over languages."""
    rate = reduce(stats.rate, "language layer neuron -> layer neuron", "sum")
    order = rate.flatten().argsort(stable=True)
    chosen = torch.zeros(rate.numel(), dtype=torch.bool)
    chosen[order[: round(share * rate.numel())]] = True
    return chosen.reshape(rate.shape)


def planted(
    model: interp.NeuronModel, stats: interp.FiringStats, study: Study, folder: Path
) -> Path:
    """A checkpoint of the model whose least active neurons fire in every language, to no effect."""
    if not folder.exists():
        chosen, silent = least_active(stats, NEGATED), folder.with_name("silent")
        if not silent.exists():
            interp.bake(model, chosen, interp.deactivate, silent)
        again = replace(study, model=str(silent)).open()
        interp.bake(again, {"pre": chosen}, interp.scale(-1.0), folder)
    return folder


class Measured(NamedTuple):
    """What is measured of one of the two models."""

    stats: interp.FiringStats
    profiles: Mapping[str, SharingProfile]
    answers: Mapping[str, Sequence[interp.evaluations.Choices]]


def measure(
    model: interp.NeuronModel, tasks: Mapping[str, Sequence[Task]], study: Study, config: Config
) -> Measured:
    """Firing on the text, sharing and answers on the tasks; `study` has this model's folder."""
    stats, _ = study.statistics(model)
    profiles, answers = {}, {}
    keep = interp.Keep(signs="gate")
    for name, aligned in tasks.items():
        rows = rows_of(model, aligned, study.held_out_bos)
        folder = study.out / name.replace("/", "-")
        signs = interp.collect(model, rows, folder / "signs", keep=keep, progress=False).signs
        generator = torch.Generator().manual_seed(study.seed)
        clusters = group_numbers(aligned[0].groups)
        profiles[name] = interp.sharing_profile(
            signs, generator, clusters=clusters, n_draws=config.n_draws
        )
        answers[name] = interp.evaluations.choose(
            model, list(aligned), bos=study.held_out_bos, progress=False
        )
    return Measured(stats, profiles, answers)


# ---------------------------------------------------------------- tables


def sharing_table(before: SharingProfile, after: SharingProfile) -> Table:
    """Shares by layer and category in both models."""
    keys = ["layer", "category"]
    frames = [profile.to_frame()[[*keys, "share", "independent"]] for profile in (before, after)]
    return frames[0].merge(frames[1], on=keys, suffixes=("_before", "_after"))


def answer_table(
    before: Sequence[interp.evaluations.Choices], after: Sequence[interp.evaluations.Choices]
) -> Table:
    """Accuracy by language in both models."""
    return pd.DataFrame(
        {
            "language": one.language,
            "before": one.accuracy().value.item(),
            "after": other.accuracy().value.item(),
            "chance": one.chance,
            "items": len(one.ids),
        }
        for one, other in zip(before, after, strict=True)
    )


def kept(
    before: interp.NeuronSelection, after: interp.NeuronSelection
) -> Float64[Tensor, " language"]:
    """Jaccard index of each language's two sets; zero if both are empty."""
    both = (before.mask & after.mask).sum(dim=(1, 2)).double()
    return (both / (before.mask | after.mask).sum(dim=(1, 2))).nan_to_num(0.0)


# ---------------------------------------------------------------- claims


def shares_more(before: SharingProfile, after: SharingProfile) -> Measurement:
    """Of all-shared neurons, and what firing rates alone give on the same prompts."""
    (one, chance_one), (other, chance_other) = map(all_shared, (before, after))
    more, by_chance = other - one, chance_other - chance_one
    parts = (more, by_chance, more - by_chance)
    return Measurement(*(mean_over_examples(part, before.clusters) for part in parts))


def more_accurate(
    before: Sequence[interp.evaluations.Choices], after: Sequence[interp.evaluations.Choices]
) -> Measurement:
    """Right answers, mean over languages."""
    one, other = (
        torch.stack([choices.correct.double() for choices in every]).mean(dim=0)
        for every in (before, after)
    )
    return Measurement(mean_over_examples(other - one, group_numbers(before[0].groups)))


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study)
    tasks: dict[str, Sequence[Task]] = {}
    for source in config.tasks:
        aligned = interp.text.align_tasks([interp.read_task(source, x) for x in study.languages])
        cut = [replace(task, items=task.items[: config.n_items]) for task in aligned]
        tasks[aligned[0].name] = cut
    before = measure(model, tasks, study, config)
    name = config.tuned
    if config.tuned == PLANTED:
        name = str(planted(model, before.stats, study, study.out / PLANTED))
    other = replace(study, model=name, out=study.out / "tuned" / Path(name).name)
    found_in = record.on
    tuned = record.open(other)
    record.on = f"{found_in} and {Path(name).name}"
    after = measure(tuned, tasks, other, config)

    for task in tasks:
        short = task.split("/")[-1].replace("_", " ")
        folder = task.replace("/", "-")
        sharing = sharing_table(before.profiles[task], after.profiles[task])
        answers = answer_table(before.answers[task], after.answers[task])
        record.tables({f"{folder}/sharing": sharing, f"{folder}/answers": answers})
        measured: dict[str, Measurement | None] = {
            "tuned-shares-more": shares_more(before.profiles[task], after.profiles[task]),
            "tuned-more-accurate": more_accurate(before.answers[task], after.answers[task]),
        }
        record.judge(
            "compare_tuned_by_task", measured, f"{record.on}, {short}", f"{{claim}}-{short}"
        )
        print(f"\n{task}\n{answers.to_string(index=False, float_format='%.3f')}", flush=True)
    record.judge(
        "compare_tuned", over_text(tuned, before.stats, after.stats, other, config, record)
    )


def over_text(
    tuned: interp.NeuronModel,
    before: interp.FiringStats,
    after: interp.FiringStats,
    study: Study,
    config: Config,
    record: Record,
) -> dict[str, Measurement | None]:
    """Language neurons of both models, and those of the base switched off in the tuned one."""
    base, own = (interp.select_by_entropy(stats, config.fraction) for stats in (before, after))
    generator = torch.Generator().manual_seed(study.seed)
    matrix = interp.perplexity_matrix(
        tuned,
        base.on(tuned, "the untuned model"),
        study.read(tuned, "held_out"),
        n_draws=config.n_draws,
        rate=after.rate,
        generator=generator,
        out=study.out / "matrix",
    )
    total = {name: shards.sum(dim=0) for name, shards in sums_of(matrix).items()}
    lead, chance = (own_minus_others(per_token(total, which)) for which in ("own", ALIKE))
    same, drawn = kept(base, own), kept(base.random_like(generator), own)
    columns = {"before": base.counts(), "after": own.counts()}
    neurons = pd.DataFrame(columns).rename_axis("language").reset_index()
    neurons = neurons.assign(jaccard=same.tolist(), by_chance=drawn.tolist())
    off = pd.DataFrame({"language": matrix.languages, "own_minus_others": lead.tolist()})
    rates = interp.selections.rate_change(before, after, paired=True).summary()
    record.tables({"neurons": neurons.merge(off, on="language"), "rates": rates})
    print(f"\n{neurons.to_string(index=False)}\n\n{rates.to_string(index=False)}")
    return {
        "tuned-same-neurons": compared(same, drawn),
        "tuned-base-neurons-matter": compared(lead, chance),
    }


experiment = Experiment("compare_tuned", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

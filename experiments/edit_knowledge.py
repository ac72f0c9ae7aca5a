"""Which neurons does a fact need that is told in one language and asked in another?

    python -m experiments.edit_knowledge tiny      # seconds
    python -m experiments.edit_knowledge babel     # the shipped model, not timed
    python -m experiments.edit_knowledge gemma     # Gemma 3 270M, which `make real` installs
    python -m experiments.edit_knowledge paper --edits FOLDER    # a GPU; --study.model NAME

Reads   a model; with --edits a folder of <language>.jsonl with edited facts (MzsRE: subject,
        question, rephrase, target), or any task with options (`interp.read_task`), of which each
        item is told with a wrong answer
Writes  results/edit_knowledge/<preset>/{from-en,into-en}/told.csv (how often the told answer is
        given, with that fact told and with another), and the tables that map_shared_neurons
        writes of a task; claims.json

The third task of Wang et al. (2024), in both directions: facts told in English and asked in every
language (EN to ALL), and facts told in every language and asked in English (ALL to EN). A prompt is
the told fact and, on the next line, the question. The parallel prompts are those of one fact, and
neurons are sorted, switched off and attributed as in map_shared_neurons. The options besides the
told answer are those of the task, or of MzsRE the answers of the three facts after it. With another
fact told, the options are unchanged: an answer that is likely anyway is no edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

import interp
from experiments import gemma, papers
from experiments.map_shared_neurons import Measured, begin_task, measure_task
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.evaluations.task_results import group_numbers
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.text import Task
from interp.text.tasks import Item, align_tasks, read_editing, read_task

PIVOT = "en"
"""The language that facts are told in, or asked in."""

DIRECTIONS = {"from-en": "told in English", "into-en": "asked in English"}
"""Folder of a direction, and its name."""

N_OTHERS = 3
"""Answers of other facts that are options, if a fact has but one."""


@dataclass(frozen=True, kw_only=True)
class Config(Measured):
    """Which facts are told, and what is measured."""

    edits: str = "babel/fact_completion"
    """Folder of edited facts, or a task."""

    n_facts: int | None = None
    """Facts that are read, from the first on; None: all."""


PRESETS = {
    "tiny": Preset(
        "Four facts in two languages: seconds.",
        Study(languages=("en", "ja")),
        {"n_facts": 4, "n_prompts": 3, "steps": 4, "n_draws": 1},
    ),
    "babel": Preset("The shipped model, 120 facts with a wrong answer told."),
    "gemma": gemma.preset(n_facts=16, n_prompts=16),
    "paper": papers.preset(
        replace(papers.WANG, languages=(*papers.WANG.languages, "pt")),
        f"MzsRE in 10 languages ({papers.EDITS}, or --edits FOLDER)",
        2 * 10 * 743 * ((90 + 15) * 60 + 32 * 4 * 50),
        edits=papers.EDITS,
        n_prompts=743,
        top_share=papers.TOP_SHARE,
    ),
}


# ---------------------------------------------------------------- facts


def edited(source: str, told_in: str, asked_in: str) -> Task:
    """Every fact told in one language and asked in another; what is told is the answer."""
    rows = (
        read_editing(source, told_in, asked_in)
        if _has_edits(source, asked_in)
        else _told_wrongly(source, told_in, asked_in)
    )
    return _with_options(rows)


def _has_edits(source: str, code: str) -> bool:
    """Whether these are edited facts, which have one option, or items with several."""
    return all(len(item.options) == 1 for item in read_task(source, code).items)


def _told_wrongly(source: str, told_in: str, asked_in: str) -> Task:
    """Each item is told with the option after the right one, which then is the answer."""
    told = read_task(source, told_in)
    asked = read_task(source, asked_in)
    if told_in != asked_in:
        told, asked = align_tasks([told, asked])
    items = []
    for fact, question in zip(told.items, asked.items, strict=True):
        if len(fact.options) != len(question.options) or len(fact.options) < 2:
            raise ValueError(
                f"{fact.id!r} has {len(fact.options)} options in {told_in} and "
                f"{len(question.options)} in {asked_in}: an item to edit needs two or more, the "
                "same in every language."
            )
        answer = (fact.answer + 1) % len(fact.options)
        prompt = f"{fact.prompt}{fact.options[answer]}\n{question.prompt}"
        items.append(question._replace(prompt=prompt, answer=answer, held_out=False))
    return replace(asked, items=tuple(items))


def _with_options(task: Task) -> Task:
    """Beside a fact's only option, those of the facts after it."""
    items, n = task.items, len(task.items)

    def options_of(row: int) -> tuple[str, ...]:
        if len(items[row].options) > 1:
            return items[row].options
        rows = [(row + step) % n for step in range(min(N_OTHERS + 1, n))]
        return tuple(dict.fromkeys(items[other].options[0] for other in rows))

    return replace(
        task, items=tuple(item._replace(options=options_of(row)) for row, item in enumerate(items))
    )


def another_told(task: Task) -> Task:
    """The same questions after the fact that the next item tells."""

    def prompt_of(item: Item, other: Item) -> str:
        return "\n".join([other.prompt.rpartition("\n")[0], item.prompt.rpartition("\n")[2]])

    moved = (*task.items[1:], task.items[0])
    pairs = zip(task.items, moved, strict=True)
    items = (item._replace(prompt=prompt_of(item, other)) for item, other in pairs)
    return replace(task, items=tuple(items))


def tasks_of(
    source: str, languages: Sequence[str], direction: str, n: int | None = None
) -> tuple[Task, ...]:
    """The first facts with every language as the one that they are asked in, or told in; the label
    of a task is that language."""
    if direction == "from-en":
        tasks = [edited(source, PIVOT, code) for code in languages]
    else:
        tasks = [replace(edited(source, code, PIVOT), language=code) for code in languages]
    name = f"{Path(source).name} {DIRECTIONS[direction]}"
    aligned = align_tasks([replace(task, name=name) for task in tasks])
    return tuple(replace(task, items=task.items[:n]) for task in aligned)


# ---------------------------------------------------------------- told or not


def told_of(
    model: interp.NeuronModel, tasks: Sequence[Task], config: Config
) -> tuple[Table, Float64[Tensor, "language item"]]:
    """A row per language and fact told, and how much more probable the answer is among the options
    with its own fact told than with another."""
    bos = config.study.held_out_bos
    answered = {
        told: interp.evaluations.choose(model, list(asked), bos=bos, progress=False)
        for told, asked in {"this": tasks, "another": map(another_told, tasks)}.items()
    }
    rows = [
        {
            "language": choices.language,
            "fact told": told,
            "probability": choices.probability.mean().item(),
            "accuracy": choices.correct.double().mean().item(),
            "chance": choices.chance,
            "facts": len(choices.ids),
        }
        for told, every in answered.items()
        for choices in every
    ]
    this, another = (
        torch.stack([choices.probability for choices in answered[told]])
        for told in ("this", "another")
    )
    return pd.DataFrame(rows), this - another


def answered_more(
    more: Float64[Tensor, "language item"], tasks: Sequence[Task]
) -> Measurement | None:
    """The mean over languages other than English; None: there is no other, or a single fact."""
    others = [row for row, task in enumerate(tasks) if task.language != PIVOT]
    groups = group_numbers(tasks[0].groups)
    if not others or len(groups.unique()) < 2:
        return None
    return Measurement(mean_over_examples(more[others].mean(dim=0), groups))


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study)
    for direction, said in DIRECTIONS.items():
        tasks = tasks_of(config.edits, study.languages, direction, config.n_facts)
        folder = config.out / direction
        begin_task(model, tasks[0].name, folder, config)
        told, more = told_of(model, tasks, config)
        results = measure_task(model, tasks, folder, config)
        measured = {f"edit-{name}": number for name, number in results.measured().items()}
        measured["edit-answered"] = answered_more(more, tasks)
        record.judge("edit_knowledge", measured, f"{record.on}, {said}", f"{{claim}}-{direction}")
        tables = results.tables() | {"told": told}
        record.tables({f"{direction}/{name}": frame for name, frame in tables.items()})
        print(f"\n{said}\n\n{told.to_string(index=False, float_format='%.3f')}", flush=True)


experiment = Experiment("edit_knowledge", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

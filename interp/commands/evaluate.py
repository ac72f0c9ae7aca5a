"""The subcommand that asks what a task loses with neurons off: evaluate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

import interp
from interp.commands.common import HERE, ModelChoice, OnRay, check_found_in, say, seeded
from interp.commands.effects import read_selection
from interp.commands.tasks import check_items
from interp.results.words import NOTHING, Normalise
from interp.text.languages import check_languages

if TYPE_CHECKING:
    import pandas

    import interp.evaluations.task_results
    import interp.runs.ray


@dataclass(frozen=True)
class Evaluate:
    """Do tasks with each language's neurons off, and random ones off.

    Items with several options are chosen from, items with one are to be written. A task in a
    language is a piece; the same command goes on where it was interrupted.

        interp evaluate results/demo --tasks babel/fact_completion babel/statements
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model that the neurons were found in."""

    tasks: tuple[str, ...] = ("babel/fact_completion",)
    """babel/fact_completion, babel/statements, babel/word_translation, or folders of
    <language>.jsonl."""

    languages: tuple[str, ...] = ()
    """Languages of the tasks; by default those of the selection."""

    items: int | None = None
    """The first so many of each task; by default all."""

    held_out: bool = False
    """Also ask what the model was never told in the language.

    Only Babel's tasks know."""

    normalise: Normalise = "none"
    """What the log-likelihood of an option is divided by."""

    max_new_tokens: int = 32
    """Length of what is written."""

    n_draws: int = 3
    """Sets of random neurons for each language.

    As many in every layer as the language has."""

    seed: int = 0
    """Seeds random neurons and the bootstrap."""

    out: Path = Path("results/evaluate")
    """Folder for the results and evaluate.csv."""

    on: Annotated[OnRay, tyro.conf.arg(name="")] = HERE
    """Who computes."""

    def run(self) -> None:
        import pandas

        selection = read_selection(self.neurons)
        codes = check_languages(self.languages or selection.languages)
        if self.n_draws < 1:
            raise ValueError(f"--n-draws is {self.n_draws}: draw 1 random set or more.")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            given = " ".join(self.tasks) or "no task"
            raise ValueError(f"--tasks is {given}: give one or more, none of them twice.")
        tasks = [self.taken(interp.read_task(name, code)) for name in self.tasks for code in codes]
        model, ray = self.on.open(self.choice)
        selection.check_model(model)
        check_found_in(self.neurons, model)
        plan = {
            **{"model": model.identity, "neurons": selection.triples()},
            **{"normalise": self.normalise, "max_new_tokens": self.max_new_tokens},
            **{"n_draws": self.n_draws, "seed": self.seed},
            **{"items": self.items, "held_out": self.held_out},
        }
        from interp.runs.folder import begin

        begin(self.out, plan)
        frames = [
            self.compared(found, selection)
            for found in self.results(model, tasks, self.interventions(selection), ray)
        ]
        frame = pandas.concat(frames, ignore_index=True)
        interp.results.artifacts.write_text(self.out / "evaluate.csv", frame.to_csv(index=False))
        show_evaluation(frame)
        say(f"The table is in {self.out / 'evaluate.csv'}, the items in {self.out / 'results'}.")

    def taken(self, task: "interp.Task") -> "interp.Task":
        check_items(self.items)
        told = task.where(lambda item: self.held_out or not item.held_out)
        return interp.Task(told.name, told.language, told.items[: self.items])

    def interventions(
        self, selection: "interp.NeuronSelection"
    ) -> "dict[str, tuple[interp.Change, ...]]":
        """Nothing, each language's neurons off, and every draw of random ones in their place."""
        generator = seeded(self.seed)
        draws = [
            selection.random_like(generator, exclude=selection.union()) for _ in range(self.n_draws)
        ]
        named: dict[str, tuple[interp.Change, ...]] = {NOTHING: ()}
        for code, size in selection.counts().items():
            if size:
                named[code] = (interp.Change(selection[code], interp.deactivate),)
                for n, drawn in enumerate(draws):
                    named[f"{code} random {n}"] = (interp.Change(drawn[code], interp.deactivate),)
        return named

    def results(
        self,
        model: "interp.NeuronModel",
        tasks: Sequence["interp.Task"],
        interventions: Mapping[str, tuple["interp.Change", ...]],
        ray: "interp.Ray | interp.runs.ray.Crew | None",
    ) -> "Iterator[dict[str, interp.evaluations.task_results.Result]]":
        """Of each task under every intervention: from its files, or made and put there."""
        from interp.results.bars import tqdm
        from interp.runs.jobs import finish
        from interp.runs.ray import Job

        jobs, of = [], {}
        for task in tasks:
            slug = f"{task.name.replace('/', '-')}-{task.language}"
            for name, changes in interventions.items():
                file = f"{slug}-{name.replace(' ', '-')}.safetensors"
                path = (self.out / "results" / file).resolve()
                work = partial(
                    _evaluate, path, task, name, changes, self.normalise, self.max_new_tokens
                )
                jobs.append(Job(f"{slug} with {name}", path, lambda work=work: work))
                of[path] = task
        with tqdm(total=len(jobs), desc="evaluating", delay=2, leave=False) as seen:
            found = iter(finish(jobs, lambda path: _load_result(path, of[path]), seen, model, ray))
        for _ in tasks:
            yield {name: next(found) for name in interventions}

    def compared(
        self,
        found: "Mapping[str, interp.evaluations.task_results.Result]",
        selection: "interp.NeuronSelection",
    ) -> "pandas.DataFrame":
        """One row per language whose neurons are off, with paired differences."""
        import pandas
        import torch

        from interp.evaluations.task_results import group_numbers
        from interp.inference.intervals import paired_bootstrap
        from interp.results.frames import interval_columns

        generator = seeded(self.seed)
        nothing = found[NOTHING]
        clusters = group_numbers(nothing.groups)
        untouched = nothing.correct.double()
        table = interp.accuracy_table([nothing]).assign(neurons=0)
        rows = []
        for code, size in selection.counts().items():
            if not size:
                continue
            mine = found[code].correct.double()
            draws = [found[f"{code} random {n}"].correct.double() for n in range(self.n_draws)]
            random = torch.stack(draws).mean(dim=0)
            drop = paired_bootstrap(untouched, mine, generator, clusters)
            excess = paired_bootstrap(random, mine, generator, clusters)
            row = interp.accuracy_table([found[code]]).to_dict("records")[0] | {"neurons": size}
            for name, estimate in (("drop", drop), ("excess", excess)):
                columns = interval_columns(name, estimate)
                row |= {key: value.item() for key, value in columns.items()}
            rows.append(row | {"random": random.mean().item()})
        frame = pandas.concat([table, pandas.DataFrame(rows)], ignore_index=True)
        return frame.rename(columns={"intervention": "off"})


def _writes(task: "interp.Task") -> bool:
    return all(len(item.options) == 1 for item in task.items)


def _evaluate(
    path: Path,
    task: "interp.Task",
    name: str,
    changes: Sequence["interp.Change"],
    normalise: Normalise,
    max_new_tokens: int,
    model: "interp.NeuronModel",
) -> None:
    """One task under one intervention, into its file."""
    from interp.evaluations.losses import Intervention
    from interp.interventions.edits import changed

    change: Mapping[str, Intervention] = {name: partial(changed, changes, model)}
    if _writes(task):
        (found,) = interp.exact_match(
            model, [task], change, max_new_tokens=max_new_tokens, progress=False
        )
    else:
        (found,) = interp.choose(model, [task], change, normalise=normalise, progress=False)
    found.save(path)


def _load_result(path: Path, task: "interp.Task") -> "interp.evaluations.task_results.Result":
    found = (interp.Written if _writes(task) else interp.Choices).load(path)
    if found.ids != tuple(item.id for item in task.items):
        raise ValueError(
            f"{path} has other items than {task.name} in {task.language} has now: give another "
            "folder."
        )
    return found


def show_evaluation(frame: "pandas.DataFrame") -> None:
    """Accuracy of the untouched model, and what is lost, beside what random neurons take."""
    off = [name for name in frame["off"].unique() if name != NOTHING]
    say("Accuracy, and what is lost with a language's neurons off (in brackets: with as many")
    say("random neurons in every layer):\n")
    say(f"{'task':<26}{'read':<6}{'n':>4}  {'as it is':>8}" + "".join(f"{c:>18}" for c in off))
    for task, code in frame[["task", "language"]].drop_duplicates().itertuples(index=False):
        here = (frame["task"] == task) & (frame["language"] == code)
        rows = frame[here].set_index("off")
        base = rows.loc[NOTHING]
        cells = []
        for name in off:
            row = rows.loc[name]
            star = "*" if row["drop_low"] > 0 or row["drop_high"] < 0 else " "
            cells.append(f"{-row['drop']:+.3f}{star} ({row['random'] - base['accuracy']:+.3f})")
        head = f"{task:<26}{code:<6}{base['n']:>4}  {base['accuracy']:>8.3f}"
        say(head + "".join(f"{cell:>18}" for cell in cells))
    say("* the 95 % interval of the paired difference, over items, is clear of zero\n")

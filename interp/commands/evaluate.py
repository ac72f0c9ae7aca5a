"""The subcommand that asks what a task loses with neurons off: evaluate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp.commands.common import HERE, ModelChoice, OnRay, check_found_in, say
from interp.commands.effects import read_selection
from interp.commands.options import Positional
from interp.commands.tasks import check_items
from interp.results.words import Normalize
from interp.text.languages import check_languages

if TYPE_CHECKING:
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

    choice: ModelChoice
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

    normalize: Normalize = "none"
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

    on: OnRay = HERE
    """Who computes."""

    def run(self) -> None:
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
        found = interp.evaluations.ablate_tasks(
            model,
            tasks,
            selection,
            n_draws=self.n_draws,
            seed=self.seed,
            normalize=self.normalize,
            max_new_tokens=self.max_new_tokens,
            out=self.out,
            ray=ray,
        )
        table = found.to_frame().to_csv(index=False)
        interp.results.artifacts.write_text(self.out / "evaluate.csv", table)
        say(found.table())
        say(f"The table is in {self.out / 'evaluate.csv'}, the items in its folders.")

    def taken(self, task: "interp.text.Task") -> "interp.text.Task":
        check_items(self.items)
        told = task.where(lambda item: self.held_out or not item.held_out)
        return interp.text.Task(told.name, told.language, told.items[: self.items])

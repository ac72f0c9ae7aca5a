"""The subcommand that measures task accuracy with neurons off: evaluate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp.commands.common import (
    WITHOUT_RAY,
    ModelChoice,
    OnRay,
    bos_of,
    check_found_in,
    say,
    say_how_text_begins,
)
from interp.commands.effects import read_selection
from interp.commands.options import Positional
from interp.commands.tasks import check_items
from interp.results.words import Bos, Normalize
from interp.text.labels import check_labels

if TYPE_CHECKING:
    import interp.evaluations.task_results
    import interp.runs.ray


@dataclass(frozen=True)
class Evaluate:
    """Measure task accuracy with each language's neurons off.

    The control is as many random neurons in every layer. An item with several options is multiple
    choice; an item with one is answered in free text. To resume after an interruption, run the
    same command again.

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
    """Only the first N of each task; by default all."""

    held_out: bool = False
    """Also ask facts held out of training in the language.

    Only Babel's tasks mark them."""

    bos: Bos | None = None
    """What begins text; by default as in the run (auto, none, document, block)."""

    normalize: Normalize = "none"
    """What the log-likelihood of an option is divided by."""

    max_new_tokens: int = 32
    """Longest free-text answer, in tokens."""

    n_draws: int = 3
    """Sets of random neurons for each language.

    As many in every layer as the language has."""

    seed: int = 0
    """Seeds the random neurons and the bootstrap."""

    out: Path = Path("results/evaluate")
    """Folder for the results and evaluate.csv."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> None:
        selection = read_selection(self.neurons)
        codes = check_labels(self.languages or selection.languages)
        if self.n_draws < 1:
            raise ValueError(f"--n-draws is {self.n_draws}: draw 1 random set or more.")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            given = " ".join(self.tasks) or "no task"
            raise ValueError(f"--tasks is {given}: give one or more, each only once.")
        tasks = [
            self.choose_items(interp.read_task(name, code)) for name in self.tasks for code in codes
        ]
        model, ray = self.on.open(self.choice)
        selection.check_model(model)
        check_found_in(self.neurons, model)
        bos = bos_of(self.neurons, self.bos)
        ablation = interp.evaluations.ablate_tasks(
            model,
            tasks,
            selection,
            n_draws=self.n_draws,
            seed=self.seed,
            normalize=self.normalize,
            max_new_tokens=self.max_new_tokens,
            bos=bos,
            out=self.out,
            ray=ray,
        )
        table = ablation.to_frame().to_csv(index=False)
        interp.results.artifacts.write_text(self.out / "evaluate.csv", table)
        say_how_text_begins(model, bos)
        say(ablation.table())
        say(f"The table is in {self.out / 'evaluate.csv'}, the answers in folders next to it.")

    def choose_items(self, task: "interp.text.Task") -> "interp.text.Task":
        """The task with the items that --items and --held-out leave in."""
        check_items(self.items)
        task = task.where(lambda item: self.held_out or not item.held_out)
        return interp.text.Task(task.name, task.language, task.items[: self.items])

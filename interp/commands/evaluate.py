"""The subcommand that measures task accuracy with neurons off: evaluate."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp.commands.common import (
    WITHOUT_RAY,
    ModelChoice,
    OnRay,
    check_neurons,
    in_chat,
    open_model,
    save_table,
    say,
)
from interp.commands.effects import read_selection
from interp.commands.forecasts import of_tasks
from interp.commands.options import Labels, Positional
from interp.commands.remembered import memory_of, out_for
from interp.commands.tasks import check_items
from interp.results.terminal import terminal_width
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

    tasks: tuple[str, ...] = ()
    """babel/fact_completion, babel/statements, babel/word_translation, or folders of
    <language>.jsonl; for Babel by default the first."""

    languages: Labels = ()
    """Languages of the tasks; by default the run's."""

    items: int | None = None
    """Only the first N of each task; by default all."""

    held_out: bool = False
    """Also ask facts held out of training in the language.

    Only Babel's tasks mark them."""

    neurons_of: Path | None = None
    """Take the neurons of this run, of a model of this shape.

    The model, text and means are still of the run; both models must have the same shape."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's.

    It is what begins text."""

    chat: bool = False
    """Put every prompt into the model's chat template, as a user's message."""

    normalize: Normalize = "none"
    """What the log-likelihood of an option is divided by."""

    max_new_tokens: int = 32
    """Longest free-text answer, in tokens."""

    n_draws: int = 3
    """Sets of random neurons for each language.

    As many in every layer as the language has."""

    seed: int = 0
    """Seeds the random neurons and the bootstrap."""

    out: Path | None = None
    """Folder of the results; by default evaluate in the run's."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> "interp.evaluations.TaskAblation | None":
        selection, memory = read_selection(self.neurons_of or self.neurons), memory_of(self.neurons)
        out = out_for(self.out, self.neurons, "evaluate", self.neurons_of)
        codes = check_labels(memory.take("languages", self.languages, selection.languages))
        bos = memory.take_bos(self.bos)
        names = self.tasks
        if not names and self.choice.of(memory).model == "babel":
            names = ("babel/fact_completion",)
        if self.n_draws < 1:
            raise ValueError(f"--n-draws is {self.n_draws}: draw 1 random set or more.")
        if not names or len(set(names)) < len(names):
            given = " ".join(names) or "no task"
            raise ValueError(f"--tasks is {given}: give one or more, each only once.")
        tasks = [
            self.choose_items(interp.read_task(name, code)) for name in names for code in codes
        ]
        model, ray = open_model(self.choice, memory, self.on)
        selection = check_neurons(selection, self.neurons, model, self.neurons_of)
        tasks, bos = in_chat(model, tasks, self.chat, bos)
        sets = 1 + (1 + self.n_draws) * sum(size > 0 for size in selection.counts().values())
        if not self.on.goes_ahead(
            lambda: of_tasks(model, tasks, sets, bos, self.max_new_tokens),
            "fewer --items, --languages or --n-draws",
        ):
            return None
        ablation = interp.evaluations.ablate_tasks(
            model,
            tasks,
            selection,
            n_draws=self.n_draws,
            seed=self.seed,
            normalize=self.normalize,
            max_new_tokens=self.max_new_tokens,
            bos=bos,
            out=out,
            ray=ray,
        )
        save_table(ablation.to_frame(), out / "evaluate.csv")
        say(ablation.table(terminal_width()))
        say(f"The table is in {out / 'evaluate.csv'}, the answers in folders next to it.")
        return ablation

    def choose_items(self, task: "interp.text.Task") -> "interp.text.Task":
        """The task with the items that --items and --held-out leave in."""
        check_items(self.items)
        task = task.where(lambda item: self.held_out or not item.held_out)
        return replace(task, items=task.items[: self.items])

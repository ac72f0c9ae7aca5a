"""Task accuracy lost by changing each language's units, against random units; paired by item."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from interp.evaluations.multiple_choice import choose, exact_match
from interp.evaluations.task_results import Choices, Written, accuracy_table, group_numbers
from interp.inference.intervals import paired_bootstrap
from interp.interventions.edits import Edit, deactivate
from interp.interventions.under import Changes
from interp.models.any_model import AnyModel, as_model
from interp.results import terminal
from interp.results.display import Shown, counted
from interp.results.frames import interval_columns, with_origin
from interp.results.words import NOTHING, Bos, Normalize
from interp.runs.jobs import pool_for
from interp.runs.ray import ActorPool, Ray
from interp.selections.neuron_selection import NeuronSelection
from interp.text.languages import worded
from interp.text.tasks import Task


@dataclass(frozen=True, kw_only=True)
class TaskAblation(Shown):
    """Answers of the untouched model, with each language's units changed, and with random units.

    >>> days = interp.read_task("babel/fact_completion", "de").where(lambda i: "day_after" in i.id)
    >>> german = neurons.languages_only(["de"])
    >>> interp.evaluations.ablate_tasks(model, [days], german, n_draws=1, progress=False)
    TaskAblation(1 task; off: de; 1 random draw)
    """

    answers: tuple[Mapping[str, Choices | Written], ...]
    """For each task, the result of each intervention: "nothing", "de", "de random 0" and so on."""

    sizes: Mapping[str, int]
    """Number of units per language; languages without units are left out."""

    n_draws: int
    """Random controls per language, each of the same size per layer."""

    seed: int
    """Seeds the bootstrap."""

    neurons_of: str = ""
    """The model that the units were found in, if it is another (`NeuronSelection.on`)."""

    def __repr__(self) -> str:
        tasks, draws = counted(len(self.answers), "task"), counted(self.n_draws, "random draw")
        return f"TaskAblation({tasks}; off: {', '.join(self.sizes)}; {draws})"

    def to_frame(self) -> pd.DataFrame:
        """One row per task and language switched off; each task begins with the untouched model.

        `drop` is the accuracy lost, `excess` the accuracy lost beyond random units. Both are paired
        over items, with 95 % intervals from a bootstrap over groups of items. `neurons_of` names
        the model of the units, if it is another.
        """
        frame = pd.concat([self._frame_of(task) for task in self.answers], ignore_index=True)
        return with_origin(frame, self.neurons_of)

    def _frame_of(self, task: Mapping[str, Choices | Written]) -> pd.DataFrame:
        generator = torch.Generator().manual_seed(self.seed)
        clusters = group_numbers(task[NOTHING].groups)
        untouched = task[NOTHING].correct.double()
        rows = []
        for language, size in self.sizes.items():
            off, random = task[language].correct.double(), self._random(task, language)
            row = accuracy_table([task[language]]).to_dict("records")[0] | {"neurons": size}
            for name, base in (("drop", untouched), ("excess", random)):
                difference = paired_bootstrap(base, off, generator, clusters)
                columns = interval_columns(name, difference)
                row |= {column: value.item() for column, value in columns.items()}
            rows.append(row | {"random": random.mean().item()})
        table = accuracy_table([task[NOTHING]]).assign(neurons=0)
        frame = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
        return frame.rename(columns={"intervention": "off"})

    def _random(
        self, task: Mapping[str, Choices | Written], language: str
    ) -> Float64[Tensor, " item"]:
        draws = [task[f"{language} random {n}"].correct.double() for n in range(self.n_draws)]
        return torch.stack(draws).mean(dim=0)

    def table(self, width: int = 100) -> str:
        """For a terminal of `width` columns: accuracy, and how it changes without each language's
        units."""
        frame = self.to_frame()
        lines = [["task", "read", "n", "as it is", *self.sizes]]
        for task, code in frame[["task", "language"]].drop_duplicates().itertuples(index=False):
            selected = (frame["task"] == task) & (frame["language"] == code)
            rows = frame[selected].set_index("off")
            base = rows.loc[NOTHING]
            cells = []
            for language in self.sizes:
                row = rows.loc[language]
                star = "*" if row["drop_low"] > 0 or row["drop_high"] < 0 else " "
                cells.append(f"{-row['drop']:+.3f}{star} ({row['random'] - base['accuracy']:+.3f})")
            lines.append([task, code, f"{base['n']}", f"{base['accuracy']:.3f}", *cells])
        whose = worded("a language's", self.sizes)
        return "\n".join(
            [
                f"Accuracy, and its change with {whose} neurons off (in parentheses: with a random",
                "control of the same size per layer):\n",
                *terminal.table(lines, width, stay=2),
                "* the 95 % interval of the paired difference, over items, excludes zero\n",
            ]
        )


def kind_of(task: Task) -> Literal["choices", "written"]:
    """Whether the items have options to choose from, or one, which the model has to write."""
    return "written" if len(task.items[0].options) == 1 else "choices"


def ablate_tasks(
    model: AnyModel,
    tasks: Sequence[Task],
    selection: NeuronSelection,
    edit: Edit = deactivate,
    *,
    n_draws: int = 3,
    seed: int = 0,
    normalize: Normalize = "none",
    max_new_tokens: int = 32,
    bos: Bos = "auto",
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> TaskAblation:
    """Run tasks with the untouched model, with each language's units edited, and with random units.

    Items with several options are multiple choice; for items with one, the model writes the answer.
    With `out`, answers are saved there per task and intervention, and the same call resumes.

    >>> days = interp.read_task("babel/fact_completion", "de").where(lambda i: "day_after" in i.id)
    >>> german = neurons.languages_only(["de"])
    >>> ablation = interp.evaluations.ablate_tasks(model, [days], german, n_draws=1, progress=False)
    >>> ablation.to_frame()["off"].tolist()
    ['nothing', 'de']
    """
    model = as_model(model)
    if n_draws < 1:
        raise ValueError(f"n_draws is {n_draws}: give 1 or more.")
    generator = torch.Generator().manual_seed(seed)
    draws = [selection.random_like(generator, exclude=selection.union()) for _ in range(n_draws)]
    sizes = {language: size for language, size in selection.counts().items() if size}
    under: dict[str, Changes] = {NOTHING: None}
    for language in sizes:
        under[language] = selection.change(language, edit)
        for number, drawn in enumerate(draws):
            under[f"{language} random {number}"] = drawn.change(language, edit)
    folder = None if out is None else Path(out)
    with pool_for(model, ray) as pool:
        settings: dict[str, Any] = {"bos": bos, "progress": progress, "ray": pool}
        score = {
            "choices": partial(choose, normalize=normalize, **settings),
            "written": partial(exact_match, max_new_tokens=max_new_tokens, **settings),
        }
        results: dict[str, Iterator[Choices | Written]] = {}
        for kind, measure in score.items():
            some = [task for task in tasks if kind_of(task) == kind]
            where = folder / kind if folder and some else None
            results[kind] = iter(measure(model, some, under, out=where))
    answers = [{name: next(results[kind_of(task)]) for name in under} for task in tasks]
    return TaskAblation(
        answers=tuple(answers),
        sizes=sizes,
        n_draws=n_draws,
        seed=seed,
        neurons_of=selection.neurons_of,
    )

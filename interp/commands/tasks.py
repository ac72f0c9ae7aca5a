"""The subcommands about tasks: what their prompts share, which neurons answer, what is needed."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import tyro
from tqdm.auto import tqdm
from tyro.conf import Positional

from interp import artifacts
from interp.cluster import Crew, Job, Ray
from interp.collect import Wanted, collect
from interp.commands.common import HERE, ModelChoice, OnRay, check_found_in, say
from interp.commands.effects import read_selection
from interp.corpora import Corpora, prompt_rows
from interp.evaluations.category_sums import CATEGORIES, attribute_categories
from interp.evaluations.losses import NOTHING, Intervention, interval_columns
from interp.evaluations.task_files import Task, align, prompts_of, read_task
from interp.evaluations.task_results import (
    Choices,
    Normalise,
    Result,
    Written,
    accuracy_table,
    group_numbers,
)
from interp.evaluations.tasks import choose, exact_match
from interp.interventions import Change, changed, deactivate
from interp.languages import check_languages
from interp.model import NeuronModel
from interp.pieces import finish, hired
from interp.scores.attribution import Quantity
from interp.scores.sharing import Sharing, SharingProfile, sharing_profile
from interp.selection import NeuronSelection
from interp.stats import FiringSigns, Source
from interp.uncertainty import paired_bootstrap

BABEL_LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")


@dataclass(frozen=True)
class Share:
    """Say how many neurons a task's prompts share between languages.

    A neuron counts where its gate, or with --source output what it hands on, is above zero at the
    last token of a prompt. Beside each share stand two baselines: languages that fire
    independently, each neuron at its own rates, and independently with all neurons alike. The same
    command goes on where it was interrupted.

        interp share babel/fact_completion --languages en de fr es zh ja
        interp share babel/fact_completion --source output --thresholds 0 0.1
    """

    task: Positional[str]
    """babel/fact_completion, babel/statements, babel/word_translation, or a folder of
    <language>.jsonl with the same ids in every language."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model."""

    languages: tuple[str, ...] = BABEL_LANGUAGES
    """Between which; shares depend on how many there are."""

    source: Source = "gate"
    """By what a neuron fires.

    Without a linear branch the signs of both are the same."""

    thresholds: tuple[float, ...] = (0.0,)
    """What that must exceed; each but the first has a folder above-<threshold> of its own."""

    n_shards: int = 10
    """Pieces of the work in each language."""

    n_draws: int = 20
    """Shuffles of the prompts, for the spread of the baselines."""

    seed: int = 0
    """Seeds the shuffles."""

    out: Path = Path("results/share")
    """Folder for signs, profile.safetensors and profile.csv."""

    on: Annotated[OnRay, tyro.conf.arg(name="")] = HERE
    """Who computes."""

    def run(self) -> None:
        tasks = read_aligned(self.task, self.languages)
        wrong = [each for each in self.thresholds if not math.isfinite(each)]
        if wrong or not self.thresholds or len(set(self.thresholds)) < len(self.thresholds):
            given = " ".join(map(str, self.thresholds)) or "no number"
            raise ValueError(f"--thresholds is {given}: give numbers, none of them twice.")
        model, ray = self.on.open(self.choice)
        bos: Literal["none", "document"] = "none" if model.bos_id is None else "document"
        prompts = prompts_of(tasks)
        shards = min(self.n_shards, len(prompts.ids))
        corpora = prompt_rows(prompts, model, bos=bos, n_shards=shards)
        groups = {item.id: item.group or item.id for item in tasks[0].items}
        with hired(model, ray) as crew:
            for place, threshold in enumerate(self.thresholds):
                folder = self.out / f"above-{threshold:g}" if place else self.out
                profile = self.profile(model, corpora, groups, threshold, folder, crew)
                show_profile(profile)
                say(f"The profile is in {folder / 'profile.safetensors'}, and in profile.csv.\n")

    def profile(
        self,
        model: NeuronModel,
        corpora: Corpora,
        groups: Mapping[str, str],
        threshold: float,
        folder: Path,
        crew: Crew | None,
    ) -> SharingProfile:
        """At one threshold, with its files."""
        settings = {"task": self.task, "model": self.choice.model}
        wanted = Wanted(signs=True, signs_of=self.source, signs_above=threshold)
        collect(model, corpora, folder, wanted=wanted, settings=settings, ray=crew or False)
        signs = FiringSigns.load(folder / "signs.safetensors")
        profile = sharing_profile(
            signs,
            torch.Generator().manual_seed(self.seed),
            clusters=group_numbers([groups[id] for id in signs.prompts]),
            n_draws=self.n_draws,
        )
        origin = artifacts.provenance(**settings, seed=self.seed) | {"run": model.fingerprint}
        profile.save(folder / "profile.safetensors", origin)
        artifacts.write_text(folder / "profile.csv", profile.to_frame().to_csv(index=False))
        return profile


def show_profile(profile: SharingProfile) -> None:
    """The share of each category in each layer, and what independent languages would give."""
    share, independent = profile.share(), profile.independent
    reach = (share.high - share.low) / 2
    say(
        f"Share of a layer's neurons in {len(profile.languages)} languages, over "
        f"{len(profile.prompts)} prompts,\nby {profile.source} above {profile.threshold:g} "
        "(± half of the 95 % interval; in brackets: firing independently\nat the same rates, and "
        "with all neurons alike):\n"
    )
    say("layer" + "".join(f"{name:>30}" for name in CATEGORIES))
    for layer in range(len(profile.kept)):
        cells = []
        for category in Sharing:
            found, chance = share.value[layer, category], independent[layer, category]
            alike = profile.interchangeable[layer, category]
            cells.append(f"{found:.3f} ±{reach[layer, category]:.3f} ({chance:.3f}, {alike:.3f})")
        say(f"{layer:>5}" + "".join(f"{cell:>30}" for cell in cells))


@dataclass(frozen=True)
class Attribute:
    """Say what each category of sharing adds to a task's answers.

    Integrated gradients of the first token of the answer, for every neuron at the last token of
    the prompt, summed by category. A layer's sums add up to what the layer does for the answer.
    Only sums are kept, one piece per item; the same command goes on where it was interrupted.

        interp attribute babel/fact_completion --languages en de fr --items 20
    """

    task: Positional[str]
    """babel/fact_completion, babel/statements, babel/word_translation, or a folder of
    <language>.jsonl with the same ids in every language."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model."""

    languages: tuple[str, ...] = BABEL_LANGUAGES
    """Between which languages neurons are shared."""

    items: int | None = None
    """Take the first so many items; by default all."""

    steps: int = 20
    """Points of the path from neurons off to as they are."""

    quantity: Quantity = "probability"
    """What is explained, of the answer's first token."""

    source: Source = "gate"
    """By what a neuron fires, and so has its category."""

    out: Path = Path("results/attribute")
    """Folder for the pieces, sums.safetensors and sums.csv."""

    on: Annotated[OnRay, tyro.conf.arg(name="")] = HERE
    """Who computes."""

    def run(self) -> None:
        tasks = read_aligned(self.task, self.languages, self.items)
        model, ray = self.on.open(self.choice)
        plan = {
            **{"model": model.identity, "task": self.task, "steps": self.steps},
            **{"languages": [task.language for task in tasks], "quantity": self.quantity},
            "source": self.source,
        }
        artifacts.begin(self.out, plan)
        found = attribute_categories(
            model,
            tasks,
            self.out / "pieces",
            steps=self.steps,
            quantity=self.quantity,
            source=self.source,
            ray=ray,
        )
        found.save(self.out / "sums.safetensors", artifacts.provenance() | plan)
        frame = found.to_frame()
        artifacts.write_text(self.out / "sums.csv", frame.to_csv(index=False))
        show_sums(frame, self.quantity)
        say(f"The sums are in {self.out / 'sums.safetensors'}, as a table in sums.csv.")


def show_sums(frame: pd.DataFrame, quantity: str) -> None:
    """Over the languages: what each category does in a layer, in all, and per thousand neurons."""
    say(f"{quantity} of the answer that the neurons of a category give, mean over prompts and")
    say("languages (in brackets: for a thousand neurons of the category):\n")
    say("layer" + "".join(f"{name:>22}" for name in CATEGORIES) + f"{'layer off':>12}")
    for layer, part in frame.groupby("layer"):
        cells = []
        for name in CATEGORIES:
            here = part["category"] == name
            value, neurons = (
                statistics.fmean(part.loc[here, column].tolist()) for column in ("value", "neurons")
            )
            each = 1000 * value / neurons if neurons > 0 else float("nan")
            cells.append(f"{value:+.4f} ({each:+.4f})")
        total = part["change"].mean()
        say(f"{layer:>5}" + "".join(f"{cell:>22}" for cell in cells) + f"{total:>+12.4f}")


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
        selection = read_selection(self.neurons)
        codes = check_languages(self.languages or selection.languages)
        if self.n_draws < 1:
            raise ValueError(f"--n-draws is {self.n_draws}: draw 1 random set or more.")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            given = " ".join(self.tasks) or "no task"
            raise ValueError(f"--tasks is {given}: give one or more, none of them twice.")
        tasks = [self.taken(read_task(name, code)) for name in self.tasks for code in codes]
        model, ray = self.on.open(self.choice)
        selection.check_model(model)
        check_found_in(self.neurons, model)
        plan = {
            **{"model": model.identity, "neurons": selection.triples()},
            **{"normalise": self.normalise, "max_new_tokens": self.max_new_tokens},
            **{"n_draws": self.n_draws, "seed": self.seed},
            **{"items": self.items, "held_out": self.held_out},
        }
        artifacts.begin(self.out, plan)
        frames = [
            self.compared(found, selection)
            for found in self.results(model, tasks, self.interventions(selection), ray)
        ]
        frame = pd.concat(frames, ignore_index=True)
        artifacts.write_text(self.out / "evaluate.csv", frame.to_csv(index=False))
        show_evaluation(frame)
        say(f"The table is in {self.out / 'evaluate.csv'}, the items in {self.out / 'results'}.")

    def taken(self, task: Task) -> Task:
        _check_items(self.items)
        told = task.where(lambda item: self.held_out or not item.held_out)
        return Task(told.name, told.language, told.items[: self.items])

    def interventions(self, selection: NeuronSelection) -> dict[str, tuple[Change, ...]]:
        """Nothing, each language's neurons off, and every draw of random ones in their place."""
        generator = torch.Generator().manual_seed(self.seed)
        draws = [
            selection.random_like(generator, exclude=selection.union()) for _ in range(self.n_draws)
        ]
        named: dict[str, tuple[Change, ...]] = {NOTHING: ()}
        for code, size in selection.counts().items():
            if size:
                named[code] = (Change(selection[code], deactivate),)
                for n, drawn in enumerate(draws):
                    named[f"{code} random {n}"] = (Change(drawn[code], deactivate),)
        return named

    def results(
        self,
        model: NeuronModel,
        tasks: Sequence[Task],
        interventions: Mapping[str, tuple[Change, ...]],
        ray: Ray | Crew | None,
    ) -> Iterator[dict[str, Result]]:
        """Of each task under every intervention: from its files, or made and put there."""
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

    def compared(self, found: Mapping[str, Result], selection: NeuronSelection) -> pd.DataFrame:
        """One row per language whose neurons are off, with paired differences."""
        generator = torch.Generator().manual_seed(self.seed)
        nothing = found[NOTHING]
        clusters = group_numbers(nothing.groups)
        untouched = nothing.correct.double()
        table = accuracy_table([nothing]).assign(neurons=0)
        rows = []
        for code, size in selection.counts().items():
            if not size:
                continue
            mine = found[code].correct.double()
            draws = [found[f"{code} random {n}"].correct.double() for n in range(self.n_draws)]
            random = torch.stack(draws).mean(dim=0)
            drop = paired_bootstrap(untouched, mine, generator, clusters)
            excess = paired_bootstrap(random, mine, generator, clusters)
            row = accuracy_table([found[code]]).to_dict("records")[0] | {"neurons": size}
            for name, estimate in (("drop", drop), ("excess", excess)):
                columns = interval_columns(name, estimate)
                row |= {key: value.item() for key, value in columns.items()}
            rows.append(row | {"random": random.mean().item()})
        frame = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
        return frame.rename(columns={"intervention": "off"})


def _writes(task: Task) -> bool:
    return all(len(item.options) == 1 for item in task.items)


def _evaluate(
    path: Path,
    task: Task,
    name: str,
    changes: Sequence[Change],
    normalise: Normalise,
    max_new_tokens: int,
    model: NeuronModel,
) -> None:
    """One task under one intervention, into its file."""
    change: Mapping[str, Intervention] = {name: partial(changed, changes, model)}
    if _writes(task):
        (found,) = exact_match(model, [task], change, max_new_tokens=max_new_tokens, progress=False)
    else:
        (found,) = choose(model, [task], change, normalise=normalise, progress=False)
    found.save(path)


def _load_result(path: Path, task: Task) -> Result:
    found = (Written if _writes(task) else Choices).load(path)
    if found.ids != tuple(item.id for item in task.items):
        raise ValueError(
            f"{path} has other items than {task.name} in {task.language} has now: give another "
            "folder."
        )
    return found


def show_evaluation(frame: pd.DataFrame) -> None:
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


# ---------------------------------------------------------------- shared by the three


def read_aligned(
    source: str, languages: Sequence[str], n_items: int | None = None
) -> tuple[Task, ...]:
    """The same items in every language; refused with the ids that are missing."""
    if len(languages) < 2:
        raise ValueError("Sharing is between languages: name two or more.")
    _check_items(n_items)
    tasks = align([read_task(source, code) for code in check_languages(languages)])
    taken = tuple(Task(task.name, task.language, task.items[:n_items]) for task in tasks)
    if len({item.group or item.id for item in taken[0].items}) < 2:
        raise ValueError(
            f"{source} gives {len(taken[0].items)} items here that all go together, and an "
            "interval needs two that do not: take more items."
        )
    return taken


def _check_items(n_items: int | None) -> None:
    if n_items is not None and n_items < 1:
        raise ValueError(f"--items is {n_items}: take 1 or more, or leave it out to take all.")

"""The subcommands about what languages share in a task: neurons that fire, and what they add."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp.commands.common import HERE, ModelChoice, OnRay, say, seeded
from interp.commands.options import Positional
from interp.results.words import FiresBy, Quantity
from interp.text.languages import check_languages

if TYPE_CHECKING:
    import pandas

    import interp.runs.ray

BABEL_LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")


@dataclass(frozen=True)
class Share:
    """Say how many neurons a task's prompts share between languages.

    A neuron counts where its gate, or with --fires-by output what it hands on, is above zero at the
    last token of a prompt. Beside each share stand two baselines: languages that fire
    independently, each neuron at its own rates, and independently with all neurons alike. The same
    command goes on where it was interrupted.

        interp share babel/fact_completion --languages en de fr es zh ja
        interp share babel/fact_completion --fires-by output --thresholds 0 0.1
    """

    task: Positional[str]
    """babel/fact_completion, babel/statements, babel/word_translation, or a folder of
    <language>.jsonl with the same ids in every language."""

    choice: ModelChoice
    """The model."""

    languages: tuple[str, ...] = BABEL_LANGUAGES
    """Between which; shares depend on how many there are."""

    fires_by: FiresBy = "gate"
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

    on: OnRay = HERE
    """Who computes."""

    def run(self) -> None:
        from interp.runs.jobs import pool_for

        tasks = read_aligned(self.task, self.languages)
        wrong = [each for each in self.thresholds if not math.isfinite(each)]
        if wrong or not self.thresholds or len(set(self.thresholds)) < len(self.thresholds):
            given = " ".join(map(str, self.thresholds)) or "no number"
            raise ValueError(f"--thresholds is {given}: give numbers, none of them twice.")
        model, ray = self.on.open(self.choice)
        prompts = interp.text.prompts_of(tasks)
        shards = min(self.n_shards, len(prompts.ids))
        bos = "none" if model.bos_id is None else "document"
        corpora = interp.text.prompt_rows(prompts, model, bos=bos, n_shards=shards)
        groups = {item.id: item.group or item.id for item in tasks[0].items}
        with pool_for(model, ray) as pool:
            for place, threshold in enumerate(self.thresholds):
                folder = self.out / f"above-{threshold:g}" if place else self.out
                profile = self.profile(model, corpora, groups, threshold, folder, pool)
                show_profile(profile)
                say(f"The profile is in {folder / 'profile.safetensors'}, and in profile.csv.\n")

    def profile(
        self,
        model: "interp.NeuronModel",
        corpora: "interp.Corpora",
        groups: Mapping[str, str],
        threshold: float,
        folder: Path,
        pool: "interp.runs.ray.ActorPool | None",
    ) -> "interp.scores.SharingProfile":
        """At one threshold, with its files."""
        from interp.evaluations.task_results import group_numbers

        settings = {"task": self.task, "model": self.choice.model}
        keep = interp.Keep(signs=self.fires_by, signs_above=threshold)
        run = interp.collect(model, corpora, folder, keep=keep, settings=settings, ray=pool)
        signs = run.signs
        profile = interp.sharing_profile(
            signs,
            seeded(self.seed),
            clusters=group_numbers([groups[id] for id in signs.prompts]),
            n_draws=self.n_draws,
        )
        origin = interp.results.artifacts.provenance(**settings, seed=self.seed) | {
            "run": model.fingerprint
        }
        profile.save(folder / "profile.safetensors", origin)
        table = profile.to_frame().to_csv(index=False)
        interp.results.artifacts.write_text(folder / "profile.csv", table)
        return profile


def show_profile(profile: "interp.scores.SharingProfile") -> None:
    """The share of each category in each layer, and what independent languages would give."""
    from interp.evaluations.category_attribution import CATEGORIES

    share, independent = profile.share(), profile.independent
    reach = (share.high - share.low) / 2
    say(
        f"Share of a layer's neurons in {len(profile.languages)} languages, over "
        f"{len(profile.prompts)} prompts,\nby {profile.fires_by} above {profile.threshold:g} "
        "(± half of the 95 % interval; in brackets: firing independently\nat the same rates, and "
        "with all neurons alike):\n"
    )
    say("layer" + "".join(f"{name:>30}" for name in CATEGORIES))
    for layer in range(len(profile.kept)):
        cells = []
        for category in interp.Sharing:
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

    choice: ModelChoice
    """The model."""

    languages: tuple[str, ...] = BABEL_LANGUAGES
    """Between which languages neurons are shared."""

    items: int | None = None
    """Take the first so many items; by default all."""

    steps: int = 20
    """Points of the path from neurons off to as they are."""

    quantity: Quantity = "probability"
    """What is explained, of the answer's first token."""

    fires_by: FiresBy = "gate"
    """By what a neuron fires, and so has its category."""

    out: Path = Path("results/attribute")
    """Folder for the pieces, sums.safetensors and sums.csv."""

    on: OnRay = HERE
    """Who computes."""

    def run(self) -> None:
        tasks = read_aligned(self.task, self.languages, self.items)
        model, ray = self.on.open(self.choice)
        plan = {
            **{"model": model.identity, "task": self.task, "steps": self.steps},
            **{"languages": [task.language for task in tasks], "quantity": self.quantity},
            "fires_by": self.fires_by,
        }
        from interp.runs.folder import begin

        begin(self.out, plan)
        found = interp.evaluations.attribute_categories(
            model,
            tasks,
            self.out / "pieces",
            steps=self.steps,
            quantity=self.quantity,
            fires_by=self.fires_by,
            ray=ray,
        )
        found.save(self.out / "sums.safetensors", interp.results.artifacts.provenance() | plan)
        frame = found.to_frame()
        interp.results.artifacts.write_text(self.out / "sums.csv", frame.to_csv(index=False))
        show_sums(frame, self.quantity)
        say(f"The sums are in {self.out / 'sums.safetensors'}, as a table in sums.csv.")


def show_sums(frame: "pandas.DataFrame", quantity: str) -> None:
    """Over the languages: what each category does in a layer, in all, and per thousand neurons."""
    from interp.evaluations.category_attribution import CATEGORIES

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


# ---------------------------------------------------------------- items of tasks


def read_aligned(
    source: str, languages: Sequence[str], n_items: int | None = None
) -> tuple["interp.text.Task", ...]:
    """The same items in every language; refused with the ids that are missing."""
    if len(languages) < 2:
        raise ValueError("Sharing is between languages: name two or more.")
    check_items(n_items)
    tasks = interp.text.align_tasks(
        [interp.read_task(source, code) for code in check_languages(languages)]
    )
    taken = tuple(
        interp.text.Task(task.name, task.language, task.items[:n_items]) for task in tasks
    )
    if len({item.group or item.id for item in taken[0].items}) < 2:
        raise ValueError(
            f"{source} gives {len(taken[0].items)} items here that all go together, and an "
            "interval needs two that do not: take more items."
        )
    return taken


def check_items(n_items: int | None) -> None:
    """Refuse to take no item."""
    if n_items is not None and n_items < 1:
        raise ValueError(f"--items is {n_items}: take 1 or more, or leave it out to take all.")

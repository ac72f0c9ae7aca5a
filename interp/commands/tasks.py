"""The subcommands about sharing on a task: which neurons languages share, and what these add."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp.commands.common import (
    WITHOUT_RAY,
    ModelChoice,
    OnRay,
    in_chat,
    open_model,
    save_table,
    say,
    say_table,
    seeded,
)
from interp.commands.forecasts import of_attribution, of_counting
from interp.commands.options import Labels, Positional
from interp.results.words import Bos, FiresBy, Quantity
from interp.text.labels import check_labels
from interp.text.languages import worded

if TYPE_CHECKING:
    import pandas

    import interp.runs.ray


@dataclass(frozen=True)
class Share:
    """Measure how many neurons languages share on a task's prompts.

    A neuron fires on a prompt if its gate (or what --fires-by names) is above the threshold at the
    last token. Each share comes with two baselines: languages that fire independently at each
    neuron's own rates, and independently with all neurons alike. To resume after an interruption,
    run the same command again.

        interp share babel/fact_completion --languages en de fr es zh ja
        interp share babel/fact_completion --fires-by output --thresholds 0 0.1 \\
            --out results/share-output
    """

    task: Positional[str]
    """babel/fact_completion, babel/statements, babel/word_translation, or a folder of
    <language>.jsonl with the same ids in every language."""

    choice: ModelChoice
    """The model, or a run of it."""

    languages: Labels = ()
    """Languages to compare; by default the run's, or all of the task.

    The shares depend on how many there are."""

    fires_by: FiresBy = "gate"
    """The gate, the activation or the output decides firing.

    In an MLP without a linear branch, activation and output are the same."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's.

    It is what begins a prompt."""

    chat: bool = False
    """Put every prompt into the model's chat template, as a user's message."""

    thresholds: tuple[float, ...] = (0.0,)
    """Gate or output must exceed this to fire; results of each threshold but the first are in a
    subfolder above-<threshold>."""

    n_shards: int = 10
    """Pieces of work per language."""

    n_draws: int = 20
    """Shuffles of the prompts, for the spread of the baselines."""

    seed: int = 0
    """Seeds the shuffles."""

    out: Path | None = None
    """Folder of the results; by default share in the run's, or in results."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> "pandas.DataFrame | None":
        from pandas import concat

        from interp.runs.jobs import pool_for

        memory = self.choice.memory
        languages = memory.take("languages", self.languages, interp.text.labels_in(self.task))
        tasks = read_aligned(self.task, languages)
        bos = memory.take_bos(self.bos)
        out = self.out or (memory.source or Path("results")) / "share"
        finite = all(math.isfinite(threshold) for threshold in self.thresholds)
        if not finite or not self.thresholds or len(set(self.thresholds)) < len(self.thresholds):
            given = " ".join(map(str, self.thresholds)) or "no number"
            raise ValueError(f"--thresholds is {given}: give numbers, each only once.")
        model, ray = open_model(self.choice, memory, self.on)
        tasks, bos = in_chat(model, tasks, self.chat, bos)
        prompts = interp.text.prompts_of(tasks)
        shards = min(self.n_shards, len(prompts.ids))
        corpora = interp.text.prompt_rows(prompts, model, bos=bos, n_shards=shards)
        groups = dict(zip(tasks[0].ids, tasks[0].groups, strict=True))
        keep = interp.Keep(signs=self.fires_by)
        if not self.on.goes_ahead(
            lambda: of_counting(model, corpora, keep, 4096, out), "fewer --languages"
        ):
            return None
        tables = []
        with pool_for(model, ray) as pool:
            for number, threshold in enumerate(self.thresholds):
                folder = out / f"above-{threshold:g}" if number else out
                profile = self.profile(model, corpora, groups, threshold, folder, pool)
                show_profile(profile)
                tables.append(profile.to_frame())
                say(f"The profile is in {folder}/profile.safetensors, its table in profile.csv.\n")
        return concat(tables, ignore_index=True)

    def profile(
        self,
        model: "interp.NeuronModel",
        corpora: "interp.Corpora",
        groups: Mapping[str, str],
        threshold: float,
        folder: Path,
        pool: "interp.runs.ray.ActorPool | None",
    ) -> "interp.scores.SharingProfile":
        """Measure and save the profile at one threshold."""
        from interp.evaluations.task_results import group_numbers

        settings = {"task": self.task, "model": model.name}
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
        save_table(profile.to_frame(), folder / "profile.csv")
        return profile


def show_profile(profile: "interp.scores.SharingProfile") -> None:
    """Print the share of each category in each layer, and what independent languages would give."""
    from interp.evaluations.category_attribution import CATEGORIES

    share, independent = profile.share(), profile.independent
    margin = (share.high - share.low) / 2
    said = (
        f"Share of a layer's neurons in {len(profile.languages)} languages, over "
        f"{len(profile.prompts)} prompts,\nfiring by {profile.fires_by} above "
        f"{profile.threshold:g} (± half of the 95 % interval; in brackets: languages firing\n"
        "independently at the same rates, and with all neurons alike):\n"
    )
    say(worded(said, profile.languages))
    rows = [["layer", *CATEGORIES]]
    for layer in range(len(profile.kept)):
        cells = []
        for category in interp.Sharing:
            value, chance = share.value[layer, category], independent[layer, category]
            alike = profile.interchangeable[layer, category]
            cells.append(f"{value:.3f} ±{margin[layer, category]:.3f} ({chance:.3f}, {alike:.3f})")
        rows.append([str(layer), *cells])
    say_table(rows)


@dataclass(frozen=True)
class Attribute:
    """Attribute a task's answers to the categories of shared neurons.

    It computes integrated gradients of the answer's first token for every neuron at the prompt's
    last token, and sums them by category. The sums of a layer add up to the layer's effect on the
    answer. Only sums are kept, one piece per item. To resume after an interruption, run the same
    command again.

        interp attribute babel/fact_completion --languages en de fr --items 20
    """

    task: Positional[str]
    """babel/fact_completion, babel/statements, babel/word_translation, or a folder of
    <language>.jsonl with the same ids in every language."""

    choice: ModelChoice
    """The model, or a run of it."""

    languages: Labels = ()
    """Languages between which neurons are shared; by default the run's, or all of the task."""

    items: int | None = None
    """Only the first N items; by default all."""

    steps: int = 20
    """Integration steps from neurons off to fully on."""

    quantity: Quantity = "probability"
    """Quantity to attribute, of the answer's first token."""

    fires_by: FiresBy = "gate"
    """The gate, the activation or the output decides firing, and so the category."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's.

    It is what begins a prompt."""

    chat: bool = False
    """Put every prompt into the model's chat template, as a user's message."""

    out: Path | None = None
    """Folder of the results; by default attribute in the run's, or in results."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> "interp.evaluations.CategorySums | None":
        memory = self.choice.memory
        languages = memory.take("languages", self.languages, interp.text.labels_in(self.task))
        tasks = read_aligned(self.task, languages, self.items)
        bos = memory.take_bos(self.bos)
        out = self.out or (memory.source or Path("results")) / "attribute"
        model, ray = open_model(self.choice, memory, self.on)
        tasks, bos = in_chat(model, tasks, self.chat, bos)
        plan = {
            **{"model": model.identity, "task": self.task, "steps": self.steps},
            **{"languages": [task.language for task in tasks], "quantity": self.quantity},
            **{"fires_by": self.fires_by, "bos": bos, **({"chat": True} if self.chat else {})},
        }
        from interp.runs.folder import begin

        attribute = partial(
            interp.evaluations.attribute_categories,
            model,
            steps=self.steps,
            quantity=self.quantity,
            fires_by=self.fires_by,
            bos=bos,
        )
        if not self.on.goes_ahead(
            lambda: of_attribution(model, tasks, partial(attribute, progress=False), out),
            "fewer --items, --languages or --steps",
        ):
            return None
        begin(out, plan)
        sums = attribute(tasks, out / "pieces", ray=ray)
        sums.save(out / "sums.safetensors", interp.results.artifacts.provenance() | plan)
        frame = sums.to_frame()
        save_table(frame, out / "sums.csv")
        show_sums(frame, self.quantity)
        say(f"The sums are in {out / 'sums.safetensors'}, their table in sums.csv.")
        return sums


def show_sums(frame: "pandas.DataFrame", quantity: str) -> None:
    """Print each category's sum in each layer, in total and per thousand neurons."""
    from interp.evaluations.category_attribution import CATEGORIES

    mean = worded("mean over prompts and languages", frame["language"])
    say(f"Answer {quantity} attributed to each category's neurons, {mean}")
    say("(in brackets: per thousand neurons of the category):\n")
    lines = [["layer", *CATEGORIES, "layer off"]]
    for layer, part in frame.groupby("layer"):
        cells = []
        for name in CATEGORIES:
            rows = part[part["category"] == name]
            value, neurons = (
                statistics.fmean(rows[column].tolist()) for column in ("value", "neurons")
            )
            per_thousand = 1000 * value / neurons if neurons > 0 else float("nan")
            cells.append(f"{value:+.4f} ({per_thousand:+.4f})")
        total = part["change"].mean()
        lines.append([str(layer), *cells, f"{total:+.4f}"])
    say_table(lines)


# ---------------------------------------------------------------- task items


def read_aligned(
    source: str, languages: Sequence[str], n_items: int | None = None
) -> tuple["interp.text.Task", ...]:
    """The same items in every language; an item missing from one is an error that names its id."""
    if len(languages) < 2:
        raise ValueError("Neurons are shared between languages: name two or more.")
    check_items(n_items)
    tasks = interp.text.align_tasks(
        [interp.read_task(source, code) for code in check_labels(languages)]
    )
    tasks = tuple(replace(task, items=task.items[:n_items]) for task in tasks)
    if len(set(tasks[0].groups)) < 2:
        raise ValueError(
            f"The {len(tasks[0].items)} items of {source} form a single group, and an interval "
            "needs two groups or more: take more items."
        )
    return tasks


def check_items(n_items: int | None) -> None:
    """Refuse a number of items below one."""
    if n_items is not None and n_items < 1:
        raise ValueError(f"--items is {n_items}: take 1 or more, or leave it out to take all.")

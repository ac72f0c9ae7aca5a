"""How much each sharing category of neurons contributes to the answers to a task.

Integrated gradients of every neuron at the last token of a prompt, for the first token of the
answer, summed by the neuron's sharing category on that example. Only the sums are kept: four
numbers per example, layer and language. Also, regardless of the answer, how often each category is
among the neurons that move the residual stream most.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interp.counting.counters import warn_of_rounded_signs
from interp.evaluations.category_ablation import categories_at, encode_aligned, end_of_prompt
from interp.evaluations.multiple_choice import Encoded
from interp.evaluations.task_results import group_numbers
from interp.inference.intervals import Estimate, mean_over_examples
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.prompts.attribution import integrated_gradients, sums_by_category
from interp.prompts.contributions import contribution_score
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.display import Cells, Shown, counted, layer_cells, listed
from interp.results.frames import interval_columns, tidy
from interp.results.saved import Saved
from interp.results.words import Bos, FiresBy, Quantity
from interp.runs.jobs import finish, folder_for
from interp.runs.ray import ActorPool, Job, Ray
from interp.scores.sharing import CATEGORIES, Sharing
from interp.text.tasks import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class CategorySums(Saved):
    """Attributions of the answer, summed by category; the category axis is that of `Sharing`.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> two = [task.where(lambda item: "capital:united" in item.id) for task in tasks]
    >>> sums = interp.evaluations.attribute_categories(exact, two, progress=False)
    >>> layer = sums.to_frame().query("language == 'de' and layer == 5")
    >>> layer["category"].tolist(), round(layer["neurons"].sum())
    (['silent', 'specific', 'partly shared', 'all shared'], 2048)
    """

    kind = "CategorySums"
    made_by = "interp.evaluations.attribute_categories(model, tasks)"

    sums: Float64[Tensor, "prompt language category layer"]
    """Total attribution of the category's neurons, in units of the quantity."""

    neurons: Int64[Tensor, "prompt category layer"]
    """Number of neurons in the category; those of a layer add up to its width."""

    change: Float64[Tensor, "prompt language layer"]
    """Effect of the whole layer: the quantity minus its value with the layer at zero. A layer's
    sums add up to it, up to the error of the integration."""

    score: Float64[Tensor, "prompt language"]
    """The quantity itself."""

    quantity: Quantity
    """What is explained about the answer's first token."""

    prompts: tuple[str, ...]
    """Item ids."""

    groups: tuple[str, ...]
    """Group of each item, for intervals; an item without a group is its own."""

    task: str
    """Name of the task."""

    languages: tuple[str, ...]
    """Labels of the languages between which neurons are shared or not."""

    fires_by: FiresBy = "gate"
    """The value whose sign decides whether a neuron fires."""

    def __repr__(self) -> str:
        return (
            f"CategorySums({self.task}: {counted(len(self.prompts), 'prompt')} in "
            f"{listed(self.languages)}; {self.sums.shape[3]} layers; mean {self.quantity} "
            f"{self.score.mean().item():.4g})"
        )

    def _cells(self) -> Cells:
        mean = reduce(self.sums, "prompt language category layer -> category layer", "mean")
        note = f"share of the {self.quantity}, mean over prompts and languages"
        return layer_cells([[name] for name in CATEGORIES], mean.tolist(), note)

    def mean(self, level: float = 0.95) -> Estimate:
        """Mean over prompts: [language category layer]; intervals are over prompts."""
        return mean_over_examples(self.sums, group_numbers(self.groups), level)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """One row per language, layer and category; `share` is a fraction of the layer's `change`.

        `neurons` is the mean number of neurons in the category, to compare the share with.
        """
        in_rows = "language category layer -> language layer category"
        columns = {
            name: rearrange(values, in_rows)
            for name, values in interval_columns("value", self.mean(level)).items()
        }
        change = rearrange(self.change.mean(dim=0), "language layer -> language layer 1")
        neurons = self.neurons.double().mean(dim=0)
        return tidy(
            {"language": self.languages, "layer": range(change.shape[1]), "category": CATEGORIES},
            {
                **columns,
                "neurons": rearrange(neurons, "category layer -> layer category"),
                "change": change,
                "share": columns["value"] / change,
                "quantity": self.quantity,
                "fires_by": self.fires_by,
                "prompts": len(self.prompts),
            },
        )


def attribute_categories(
    model: AnyModel,
    tasks: Sequence[Task],
    folder: Path | str | None = None,
    *,
    steps: int = 20,
    quantity: Quantity = "probability",
    fires_by: FiresBy = "gate",
    bos: Bos = "auto",
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> CategorySums:
    """Integrated gradients of each item of a task in two or more languages, summed by category.

    With `folder`, each item is saved there as soon as it is done and is not computed again; the
    caller must keep model, steps, quantity, fires_by and bos the same. Processes with the same
    folder share the items; with `ray`, actors do, on nodes that share it. In each language, an item
    costs two passes over the prompt plus `integrated_gradients`.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> two = [task.where(lambda item: "capital:united" in item.id) for task in tasks]
    >>> sums = interp.evaluations.attribute_categories(exact, two, progress=False)
    >>> sums.mean().value.shape
    torch.Size([2, 4, 6])
    """
    model = as_model(model)
    tasks, encoded = encode_aligned(model, tasks, fires_by, bos)
    warn_of_rounded_signs(model)
    jobs: list[Job] = []
    item_at: dict[Path, str] = {}
    with (
        folder_for(folder) as directory,
        tqdm(total=len(encoded), desc="attributing", unit="item", disable=not progress) as bar,
    ):
        for number, (id, rows) in enumerate(zip(tasks[0].ids, encoded, strict=True)):
            path = directory / f"{number:05d}.safetensors"
            answers = [task.items[number].answer for task in tasks]
            work = partial(_attribute, path, rows, answers, steps, quantity, fires_by)
            jobs.append(Job(f"item {id}", path, work))
            item_at[path] = id
        pieces = finish(jobs, lambda path: _load_piece(path, item_at[path]), bar, model, ray)
    return CategorySums(
        **{name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]},
        quantity=quantity,
        prompts=tasks[0].ids,
        groups=tasks[0].groups,
        task=tasks[0].name,
        languages=tuple(task.language for task in tasks),
        fires_by=fires_by,
    )


def _attribute(
    path: Path,
    rows: Sequence[Encoded],
    answers: Sequence[int],
    steps: int,
    quantity: Quantity,
    fires_by: FiresBy,
    model: NeuronModel,
) -> None:
    """Save the sums of one item in every language."""
    piece = _piece(model, rows, answers, steps, quantity, fires_by)
    if not piece["sums"].isfinite().all():
        raise ValueError(
            f"{model.name} gives NaN or infinite attributions for {rows[0].id!r}: weights may be "
            f"damaged, or {model.dtype} too narrow. Load the model with dtype=torch.float32."
        )
    artifacts.save(path, "CategorySumsPiece", piece, {"item": rows[0].id}, {})


def _load_piece(path: Path, item: str) -> dict[str, Tensor]:
    stored = artifacts.load(path, "CategorySumsPiece")
    if stored.labels["item"] != item:
        raise ValueError(
            f"{path} holds item {stored.labels['item']!r}, not {item!r}: the task has changed. "
            "Give another folder."
        )
    return stored.tensors


def _piece(
    model: NeuronModel,
    rows: Sequence[Encoded],
    answers: Sequence[int],
    steps: int,
    quantity: Quantity,
    fires_by: FiresBy,
) -> dict[str, Tensor]:
    """The sums of one item in every language."""
    category = categories_at([end_of_prompt(model, row) for row in rows], fires_by)
    attributions = []
    for row, answer in zip(rows, answers, strict=True):
        ids = row.rows[answer]
        prompt, target = ids[: row.begin], ids[row.begin]
        attributions.append(integrated_gradients(model, prompt, target, steps, quantity))
    return {
        "sums": torch.stack([sums_by_category(values, category) for values in attributions]),
        "neurons": torch.stack([(category == sharing).sum(dim=1) for sharing in Sharing]),
        "change": torch.stack([values.change.double() for values in attributions]),
        "score": torch.tensor([values.score for values in attributions], dtype=torch.float64),
    }


# ---------------------------------------------------------------- among the top contributors


@dataclass(frozen=True, kw_only=True, eq=False)
class Enrichment(Shown):
    """How over-represented each category is among the largest contributions, mean over languages.

    One: as often there as by chance. NaN: the category is empty in that layer or, for
    `firing`, none of its neurons contributes in any language.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> two = [task.where(lambda item: "capital:united" in item.id) for task in tasks]
    >>> ratios = interp.evaluations.enrichment(exact, two, progress=False)
    >>> ratios.to_frame().query("layer == 5")["category"].tolist()
    ['silent', 'specific', 'partly shared', 'all shared']
    """

    units: Float64[Tensor, "prompt layer category"]
    """Share of the top that is in the category, over its share of all neurons (Wang et al., 2024).
    Where neurons that do not fire output zero, that alone raises the ratio of those that do."""

    firing: Float64[Tensor, "prompt layer category"]
    """The same, over its share of the neurons whose output is not zero."""

    groups: tuple[str, ...]
    """Group of each item, for intervals; an item without a group is its own."""

    def __repr__(self) -> str:
        n_prompts, n_layers, _ = self.units.shape
        means = self.units.nanmean(dim=(0, 1)).tolist()
        named = (f"{name} {mean:.2f}" for name, mean in zip(CATEGORIES, means, strict=True))
        return (
            f"Enrichment({counted(n_prompts, 'prompt')}, {n_layers} layers; mean ratio: "
            f"{listed(named)})"
        )

    def _cells(self) -> Cells:
        mean = rearrange(self.units.nanmean(dim=0), "layer category -> category layer")
        note = "times as often among the largest contributions as by chance"
        return layer_cells([[name] for name in CATEGORIES], mean.tolist(), note)

    def mean(self, layer: int, category: Sharing, base: Literal["units", "firing"]) -> Estimate:
        """Mean over prompts that have a ratio; NaN: fewer than two prompts or groups have one."""
        values = getattr(self, base)[:, layer, category]
        known = (~values.isnan()).nonzero().flatten().tolist()
        groups = group_numbers([self.groups[index] for index in known])
        if len(groups.unique()) < 2:
            nan = torch.full((), torch.nan, dtype=torch.float64)
            return Estimate(nan, nan, nan, nan, 0.95)
        return mean_over_examples(values[known], groups)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and category."""
        rows = []
        for layer, category in itertools.product(range(self.units.shape[1]), Sharing):
            row: dict[str, object] = {"layer": layer, "category": CATEGORIES[category]}
            for base in ("units", "firing"):
                columns = interval_columns(base, self.mean(layer, category, base))
                row |= {name: value.item() for name, value in columns.items()}
            rows.append(row)
        return pd.DataFrame(rows)


def enrichment(
    model: AnyModel,
    tasks: Sequence[Task],
    *,
    top_share: float = 0.05,
    fires_by: FiresBy = "gate",
    bos: Bos = "auto",
    progress: bool = True,
) -> Enrichment:
    """Is a category over-represented among the neurons that move the residual stream most?

    The top is, in every layer and language, the fraction `top_share` of neurons with the highest
    `contribution_score` at the last token of the prompt (the paper takes 800 of 16,384), without
    those that score zero.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> two = [task.where(lambda item: "capital:united" in item.id) for task in tasks]
    >>> ratios = interp.evaluations.enrichment(exact, two, progress=False)
    >>> ratios.mean(5, interp.Sharing.ALL_SHARED, "units").value.item() > 1
    True
    """
    model = as_model(model)
    if not 0 < top_share <= 1:
        raise ValueError(f"top_share is {top_share}: give a fraction of a layer, such as 0.05.")
    tasks, encoded = encode_aligned(model, tasks, fires_by, bos)
    warn_of_rounded_signs(model)
    n_top = max(1, round(top_share * model.d_mlp))
    units, firing = [], []
    for rows in tqdm(encoded, "contributions", disable=not progress):
        endings = [end_of_prompt(model, row) for row in rows]
        category = categories_at(endings, fires_by)
        inside = torch.stack([category == sharing for sharing in Sharing])
        values = torch.stack([ending.values["post"] for ending in endings])
        score = contribution_score(
            model, rearrange(values, "language layer 1 neuron -> language layer neuron")
        )
        contributes = score > 0
        top = (score.argsort(dim=-1, descending=True).argsort(dim=-1) < n_top) & contributes
        shares = _shares_of(inside, top)
        units.append((shares / _shares_of(inside, torch.ones_like(top))).nanmean(dim=0))
        firing.append((shares / _shares_of(inside, contributes)).nanmean(dim=0))
    return Enrichment(units=torch.stack(units), firing=torch.stack(firing), groups=tasks[0].groups)


def _shares_of(
    inside: Bool[Tensor, "category layer neuron"], base: Bool[Tensor, "language layer neuron"]
) -> Float64[Tensor, "language layer category"]:
    """Fraction of the base neurons that is in each category."""
    number = einsum(
        base.double(),
        inside.double(),
        "language layer neuron, category layer neuron -> language layer category",
    )
    return number / reduce(base.double(), "language layer neuron -> language layer 1", "sum")

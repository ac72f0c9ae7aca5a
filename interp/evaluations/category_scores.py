"""Contribution and effective scores of Wang et al. (2024), by sharing category.

At the last token of each prompt, as they are defined in `interp.prompts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Float64, Int64
from torch import Tensor

from interp.counting.counters import warn_of_rounded_signs
from interp.evaluations.category_ablation import categories_at, encode_aligned, end_of_prompt
from interp.evaluations.task_results import group_numbers
from interp.inference.intervals import Estimate, mean_over_examples
from interp.models.any_model import AnyModel, as_model
from interp.prompts.contributions import contribution_score, effective_score
from interp.results.bars import tqdm
from interp.results.display import Cells, Shown, counted, layer_cells, listed
from interp.results.frames import tidy
from interp.results.words import Bos, FiresBy
from interp.scores.sharing import CATEGORIES, Sharing
from interp.text.tasks import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class CategoryScores(Shown):
    """Scores of a category's neurons at the last token; the category axis is that of `Sharing`.

    NaN: the category is empty in that layer on that prompt. A sum then is zero.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> two = [task.where(lambda item: "capital:united" in item.id) for task in tasks]
    >>> scores = interp.evaluations.category_scores(exact, two, progress=False)
    >>> scores.to_frame().query("language == 'de' and layer == 5")["category"].tolist()
    ['silent', 'specific', 'partly shared', 'all shared']
    """

    neurons: Int64[Tensor, "prompt category layer"]
    """Number of neurons in the category."""

    contribution_sum: Float64[Tensor, "prompt language category layer"]
    """Sum of the contribution scores."""

    effective_sum: Float64[Tensor, "prompt language category layer"]
    """Sum of the effective scores, towards the answer's first token."""

    effective_max: Float64[Tensor, "prompt language category layer"]
    """Highest effective score."""

    effective_min: Float64[Tensor, "prompt language category layer"]
    """Lowest effective score."""

    languages: tuple[str, ...]
    """Labels of the languages between which neurons are shared or not."""

    groups: tuple[str, ...]
    """Group of each item, for intervals; an item without a group is its own."""

    def __repr__(self) -> str:
        share = self.shares().mean(dim=(0, 2)).tolist()
        named = (f"{name} {part:.2f}" for name, part in zip(CATEGORIES, share, strict=True))
        prompts = counted(len(self.groups), "prompt")
        return (
            f"CategoryScores({prompts} in {listed(self.languages)}; share of the contribution: "
            f"{listed(named)})"
        )

    def _cells(self) -> Cells:
        share = self.shares().mean(dim=0).tolist()
        return layer_cells([[name] for name in CATEGORIES], share, "share of the contribution")

    @property
    def contribution_mean(self) -> Float64[Tensor, "prompt language category layer"]:
        """Mean contribution score of the category's neurons."""
        return self.contribution_sum / self._sizes

    @property
    def effective_mean(self) -> Float64[Tensor, "prompt language category layer"]:
        """Mean effective score of the category's neurons."""
        return self.effective_sum / self._sizes

    def contribution_share(self, level: float = 0.95) -> Estimate:
        """A category's part of a layer's summed contribution scores, mean over prompts and
        languages: [category layer]. To be compared with its share of the neurons."""
        return mean_over_examples(self.shares(), group_numbers(self.groups), level)

    def shares(self) -> Float64[Tensor, "prompt category layer"]:
        """That part on each prompt, mean over languages."""
        whole = reduce(
            self.contribution_sum,
            "prompt language category layer -> prompt language 1 layer",
            "sum",
        )
        parts = self.contribution_sum / whole
        return reduce(parts, "prompt language category layer -> prompt category layer", "mean")

    def to_frame(self) -> pd.DataFrame:
        """One row per language, layer and category: means over the prompts on which it has
        neurons, sums over all."""
        in_rows = "language category layer -> language layer category"
        quantities = {
            name: getattr(self, name).nanmean(dim=0)
            for name in (
                "contribution_sum",
                "contribution_mean",
                "effective_max",
                "effective_mean",
                "effective_min",
            )
        }
        neurons = self.neurons.double().mean(dim=0)
        columns = {name: rearrange(values, in_rows) for name, values in quantities.items()}
        return tidy(
            {
                "language": self.languages,
                "layer": range(neurons.shape[1]),
                "category": CATEGORIES,
            },
            {
                "neurons": rearrange(neurons, "category layer -> layer category"),
                **columns,
                "prompts": len(self.groups),
            },
        )

    @property
    def _sizes(self) -> Float64[Tensor, "prompt 1 category layer"]:
        """Numbers of neurons; a sum over none is zero, and zero divided by zero NaN."""
        return rearrange(self.neurons.double(), "prompt category layer -> prompt 1 category layer")


def category_scores(
    model: AnyModel,
    tasks: Sequence[Task],
    *,
    fires_by: FiresBy = "gate",
    bos: Bos = "auto",
    progress: bool = True,
) -> CategoryScores:
    """Contribution and effective scores of each item of a task, by category, language and layer.

    `tasks` is one task in two or more languages. The effective score is towards the first token of
    the right answer. An item costs one pass over its prompt in each language.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> two = [task.where(lambda item: "capital:united" in item.id) for task in tasks]
    >>> scores = interp.evaluations.category_scores(exact, two, progress=False)
    >>> shares = scores.contribution_share().value
    >>> shares.shape, round(shares.sum().item(), 6)  # in each layer they add up to one
    (torch.Size([4, 6]), 6.0)
    """
    model = as_model(model)
    tasks, encoded = encode_aligned(model, tasks, fires_by, bos)
    warn_of_rounded_signs(model)
    neurons, scored = [], []
    for number, rows in enumerate(tqdm(encoded, "scores", disable=not progress)):
        endings = [end_of_prompt(model, row) for row in rows]
        category = categories_at(endings, fires_by)
        inside = torch.stack([category == sharing for sharing in Sharing])
        neurons.append(reduce(inside.long(), "category layer neuron -> category layer", "sum"))
        by_language = []
        for row, ending, task in zip(rows, endings, tasks, strict=True):
            values = rearrange(ending.values["post"], "layer 1 neuron -> layer neuron")
            target = row.first_tokens[task.items[number].answer]
            effect = effective_score(model, values, target).double()
            moved = contribution_score(model, values).double()
            by_language.append(
                torch.stack(
                    [
                        moved.where(inside, 0.0).sum(dim=-1),
                        effect.where(inside, 0.0).sum(dim=-1),
                        effect.where(inside, -torch.inf).amax(dim=-1),
                        effect.where(inside, torch.inf).amin(dim=-1),
                    ]
                )
            )
        scored.append(torch.stack(by_language, dim=1))
    moved, effect, high, low = torch.stack(scored, dim=1)
    return CategoryScores(
        neurons=torch.stack(neurons),
        contribution_sum=moved,
        effective_sum=effect,
        effective_max=high.where(high.isfinite(), torch.nan),
        effective_min=low.where(low.isfinite(), torch.nan),
        languages=tuple(task.language for task in tasks),
        groups=tasks[0].groups,
    )

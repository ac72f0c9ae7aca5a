"""Results of a task, item by item: the log-likelihood of each option, or the text written.

A result covers one task in one language under one intervention. Accuracies come with intervals
over items, or over groups of related items; differences are paired.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interp.inference.intervals import Estimate, mean_over_examples, paired_bootstrap, wilson
from interp.results.saved import Saved
from interp.results.words import Normalize


@dataclass(frozen=True, kw_only=True, eq=False)
class Choices(Saved):
    """Log-likelihood of each option of each item, in one language under one intervention.

    >>> task = interp.read_task("babel/fact_completion", "de")
    >>> days = task.where(lambda item: "day_after" in item.id)
    >>> (result,) = interp.evaluations.choose(model, [days], progress=False)
    >>> result.chosen.shape, result.accuracy().value.item() > result.chance
    (torch.Size([7]), True)
    """

    kind = "Choices"
    made_by = "interp.evaluations.choose(model, tasks)"

    log_likelihood: Float64[Tensor, "item option"]
    """Nats of the option's tokens after the prompt; NaN: the item has no such option."""

    tokens: Int64[Tensor, "item option"]
    """Tokens of the option; zero: the item has no such option."""

    bytes: Int64[Tensor, "item option"]
    """Bytes of the option in UTF-8; zero: the item has no such option."""

    answer: Int64[Tensor, " item"]
    """Index of the right option."""

    normalize: Normalize
    """Normalization of scores; `dataclasses.replace(choices, normalize="bytes")` costs no pass."""

    ids: tuple[str, ...]
    """Item ids."""

    groups: tuple[str, ...]
    """Group of each item, for intervals; an item without a group is its own."""

    task: str
    """Name of the task."""

    language: str
    """Its label."""

    intervention: str
    """Name of the intervention."""

    def __post_init__(self) -> None:
        if self.normalize not in get_args(Normalize):
            raise ValueError(
                f"normalize is {self.normalize!r}: give one of {', '.join(get_args(Normalize))}."
            )

    def __repr__(self) -> str:
        right, by_chance = _summary(self), f"{self.chance * len(self.ids):.3g}"
        return f"Choices({right}, {by_chance} by guessing)"

    @property
    def score(self) -> Float64[Tensor, "item option"]:
        """The log-likelihood, normalized as `normalize` says; NaN: there is no such option."""
        by = {"tokens": self.tokens, "bytes": self.bytes}.get(self.normalize)
        return self.log_likelihood if by is None else self.log_likelihood / by

    @property
    def chosen(self) -> Int64[Tensor, " item"]:
        """Index of the option with the highest score; the first in a tie."""
        return self.score.nan_to_num(nan=-math.inf).argmax(dim=1)

    @property
    def correct(self) -> Bool[Tensor, " item"]:
        return self.chosen == self.answer

    @property
    def probability(self) -> Float64[Tensor, " item"]:
        """Probability of the answer among the options: the softmax of their scores."""
        share = self.score.nan_to_num(nan=-math.inf).softmax(dim=1)
        return share.gather(1, self.answer[:, None])[:, 0]

    @property
    def chance(self) -> float:
        """Accuracy of guessing: the mean of one over the number of options."""
        return (1 / (self.tokens > 0).sum(dim=1).double()).mean().item()

    @property
    def commonest(self) -> float:
        """Majority baseline: accuracy of always choosing the index that is right most often."""
        return self.answer.bincount().max().item() / len(self.answer)

    def accuracy(self, level: float = 0.95) -> Estimate:
        """Share of the items whose answer is chosen; see `share_correct`."""
        return share_correct(self.correct, self.groups, level)

    def to_frame(self) -> pd.DataFrame:
        """One row per item; `score` is that of the chosen option, `answer_score` of the answer."""
        best = self.score.gather(1, self.chosen[:, None])[:, 0]
        right = self.score.gather(1, self.answer[:, None])[:, 0]
        columns = {"chosen": self.chosen, "answer": self.answer, "correct": self.correct}
        columns |= {"probability": self.probability, "score": best, "answer_score": right}
        return _per_item(self, {name: values.tolist() for name, values in columns.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Written(Saved):
    """What the model wrote for each item, in one language under one intervention.

    >>> task = interp.read_task("babel/fact_completion", "de")
    >>> capitals = task.where(lambda item: "capital:serbia" in item.id)
    >>> settings = {"max_new_tokens": 6, "progress": False}
    >>> (result,) = interp.evaluations.exact_match(model, [capitals], **settings)
    >>> result.ids[0], result.texts[0], result.answers[0]
    ('fact_completion/capital:serbia:belgrade', 'Belgrad.', 'Belgrad.')
    """

    kind = "Written"
    made_by = "interp.evaluations.exact_match(model, tasks)"

    correct: Bool[Tensor, " item"]
    """Whether the text is the answer; see `is_answer`."""

    texts: tuple[str, ...]
    """The text written, up to the stop string."""

    answers: tuple[str, ...]
    """The right answers."""

    ids: tuple[str, ...]
    """Item ids."""

    groups: tuple[str, ...]
    """Group of each item, for intervals; an item without a group is its own."""

    task: str
    """Name of the task."""

    language: str
    """Its label."""

    intervention: str
    """Name of the intervention."""

    def __repr__(self) -> str:
        return f"Written({_summary(self)})"

    def accuracy(self, level: float = 0.95) -> Estimate:
        """Share of the items answered correctly; see `share_correct`."""
        return share_correct(self.correct, self.groups, level)

    def to_frame(self) -> pd.DataFrame:
        """One row per item."""
        columns = {"written": self.texts, "answer": self.answers}
        return _per_item(self, {**columns, "correct": self.correct.tolist()})


Result = Choices | Written


def _summary(result: Result) -> str:
    right = int(result.correct.sum())
    what = f"{result.task} in {result.language}, {result.intervention}"
    return f"{what}: {right:,} of {len(result.ids):,} right"


def share_correct(
    correct: Bool[Tensor, " item"], groups: Sequence[str], level: float = 0.95
) -> Estimate:
    """The share correct, with its standard error over groups and the interval of Wilson (1927).

    Wilson's interval is valid for few items, and if none or all are correct. For grouped items it
    uses the effective number: that of independent items with the same standard error or, where that
    error is zero, the number of groups.
    """
    clusters = group_numbers(groups)
    mean = mean_over_examples(correct.double(), clusters, level)
    p, n_groups = mean.value.item(), len(clusters.unique())
    variance = mean.standard_error.item() ** 2 * (n_groups - 1) / n_groups
    n = p * (1 - p) / variance if variance > 0 else n_groups
    low, high = torch.tensor(wilson(p, n, level), dtype=torch.float64)
    return Estimate(mean.value, mean.standard_error, low, high, level)


def compare_answers(
    one: Result, other: Result, generator: torch.Generator, level: float = 0.95
) -> Estimate:
    """Accuracy of one minus that of the other, on the same items: a paired bootstrap over groups.

    The results differ in intervention or in language; items are paired by id.

    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> days = [task.where(lambda item: "day_after" in item.id) for task in tasks]
    >>> english, german = interp.evaluations.choose(model, days, progress=False)
    >>> difference = interp.evaluations.compare_answers(english, german, generator)
    >>> (difference.low <= 0 <= difference.high).item()
    True
    """
    order = {id: index for index, id in enumerate(other.ids)}
    missing = sorted(set(one.ids) ^ set(other.ids))
    if missing:
        raise ValueError(
            f"{len(missing)} items are in only one of the results, such as "
            f"{', '.join(map(repr, missing[:3]))}: compare the same items (see align_tasks)."
        )
    paired = other.correct[[order[id] for id in one.ids]]
    return paired_bootstrap(
        one.correct.double(), paired.double(), generator, group_numbers(one.groups), level=level
    )


def accuracy_table(results: Sequence[Result], level: float = 0.95) -> pd.DataFrame:
    """One row per result: accuracy with its interval, and the accuracy of guessing.

    >>> task = interp.read_task("babel/fact_completion", "de")
    >>> days = task.where(lambda item: "day_after" in item.id)
    >>> results = interp.evaluations.choose(model, [days], progress=False)
    >>> interp.evaluations.accuracy_table(results)[["task", "language", "chance", "n"]]
                        task language    chance  n
    0  babel/fact_completion       de  0.166667  7
    """
    rows = []
    for result in results:
        accuracy = result.accuracy(level)
        ends = {"low": accuracy.low.item(), "high": accuracy.high.item()}
        guess = {"chance": 0.0, "commonest": 0.0}
        if isinstance(result, Choices):
            guess = {"chance": result.chance, "commonest": result.commonest}
        row = {name: getattr(result, name) for name in ("task", "language", "intervention")}
        row |= {"accuracy": accuracy.value.item(), **ends, **guess, "n": len(result.ids)}
        rows.append(row)
    return pd.DataFrame(rows)


def group_numbers(groups: Sequence[str]) -> Int64[Tensor, " item"]:
    """Groups as integers, for intervals: items of one group share a number."""
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([number[group] for group in groups], dtype=torch.int64)


def _per_item(result: Result, columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    named = {name: getattr(result, name) for name in ("task", "language", "intervention")}
    return pd.DataFrame({"id": result.ids, **columns}).assign(**named)

"""What a model did on a task, item by item: how likely it finds each option, or what it writes.

One result is of one task in one language under one intervention. Accuracies come with intervals
over items, or over groups of items that go together; differences are paired.
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
    """How likely each option of each item is, in one language under one intervention.

    >>> task = interp.read_task("babel/fact_completion", "de")
    >>> days = task.where(lambda item: "day_after" in item.id)
    >>> (found,) = interp.evaluations.choose(model, [days], progress=False)
    >>> found.chosen.shape, found.accuracy().value.item() > found.chance
    (torch.Size([7]), True)
    """

    kind = "Choices"
    made_by = "interp.evaluations.choose(model, tasks)"

    log_likelihood: Float64[Tensor, "item option"]
    """Nats of the option's tokens behind the prompt; NaN: the item has no such option."""

    tokens: Int64[Tensor, "item option"]
    """Tokens of the option; zero: there is none."""

    bytes: Int64[Tensor, "item option"]
    """Bytes of the option in UTF-8; zero: there is none."""

    answer: Int64[Tensor, " item"]
    """Which option is right."""

    normalize: Normalize
    """What decides; `dataclasses.replace(choices, normalize="bytes")` costs no pass."""

    ids: tuple[str, ...]
    """The items."""

    groups: tuple[str, ...]
    """Items of one group go together; their own id where they are alone."""

    task: str
    """Name of the task."""

    language: str
    """ISO code."""

    intervention: str
    """Name of what was done to the model."""

    def __post_init__(self) -> None:
        if self.normalize not in get_args(Normalize):
            raise ValueError(
                f"normalize is one of {', '.join(get_args(Normalize))}, not {self.normalize!r}."
            )

    def __repr__(self) -> str:
        right, by_chance = _how_many(self), f"{self.chance * len(self.ids):.3g}"
        return f"Choices({right}, {by_chance} by guessing)"

    @property
    def score(self) -> Float64[Tensor, "item option"]:
        """The log-likelihood, over what `normalize` says; NaN: there is no such option."""
        by = {"tokens": self.tokens, "bytes": self.bytes}.get(self.normalize)
        return self.log_likelihood if by is None else self.log_likelihood / by

    @property
    def chosen(self) -> Int64[Tensor, " item"]:
        """The option of the highest score; the first of equals."""
        return self.score.nan_to_num(nan=-math.inf).argmax(dim=1)

    @property
    def correct(self) -> Bool[Tensor, " item"]:
        return self.chosen == self.answer

    @property
    def probability(self) -> Float64[Tensor, " item"]:
        """Share of the answer among the options: the softmax of their scores."""
        share = self.score.nan_to_num(nan=-math.inf).softmax(dim=1)
        return share.gather(1, self.answer[:, None])[:, 0]

    @property
    def chance(self) -> float:
        """Accuracy of guessing: the mean of one over the number of options."""
        return (1 / (self.tokens > 0).sum(dim=1).double()).mean().item()

    @property
    def commonest(self) -> float:
        """Accuracy of choosing by place: the share of the place where answers are most often."""
        return self.answer.bincount().max().item() / len(self.answer)

    def accuracy(self, level: float = 0.95) -> Estimate:
        """Share of the items whose answer is chosen; see `share_correct`."""
        return share_correct(self.correct, self.groups, level)

    def to_frame(self) -> pd.DataFrame:
        """One row per item; scores are those of the chosen option and of the answer."""
        best = self.score.gather(1, self.chosen[:, None])[:, 0]
        right = self.score.gather(1, self.answer[:, None])[:, 0]
        columns = {"chosen": self.chosen, "answer": self.answer, "correct": self.correct}
        columns |= {"probability": self.probability, "score": best, "answer_score": right}
        return _per_item(self, {name: each.tolist() for name, each in columns.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Written(Saved):
    """What the model wrote for each item, in one language under one intervention.

    >>> task = interp.read_task("babel/fact_completion", "de")
    >>> capitals = task.where(lambda item: "capital:serbia" in item.id)
    >>> settings = {"max_new_tokens": 6, "progress": False}
    >>> (found,) = interp.evaluations.exact_match(model, [capitals], **settings)
    >>> found.ids[0], found.texts[0], found.answers[0]
    ('fact_completion/capital:serbia:belgrade', 'Belgrad.', 'Belgrad.')
    """

    kind = "Written"
    made_by = "interp.evaluations.exact_match(model, tasks)"

    correct: Bool[Tensor, " item"]
    """Whether it is the answer; see `is_answer`."""

    texts: tuple[str, ...]
    """What it wrote, up to where it was stopped."""

    answers: tuple[str, ...]
    """What it should have written."""

    ids: tuple[str, ...]
    """The items."""

    groups: tuple[str, ...]
    """Items of one group go together; their own id where they are alone."""

    task: str
    """Name of the task."""

    language: str
    """ISO code."""

    intervention: str
    """Name of what was done to the model."""

    def __repr__(self) -> str:
        return f"Written({_how_many(self)})"

    def accuracy(self, level: float = 0.95) -> Estimate:
        """Share of the items that are answered; see `share_correct`."""
        return share_correct(self.correct, self.groups, level)

    def to_frame(self) -> pd.DataFrame:
        """One row per item."""
        columns = {"written": self.texts, "answer": self.answers}
        return _per_item(self, {**columns, "correct": self.correct.tolist()})


Result = Choices | Written


def _how_many(result: Result) -> str:
    right = int(result.correct.sum())
    what = f"{result.task} in {result.language}, {result.intervention}"
    return f"{what}: {right:,} of {len(result.ids):,} right"


def share_correct(
    correct: Bool[Tensor, " item"], groups: Sequence[str], level: float = 0.95
) -> Estimate:
    """The share, with its standard error over groups and the interval of Wilson (1927).

    Wilson's interval is right for few items and for none or all of them correct. Where items go
    together it is that of as many independent items as have the same standard error, and of as many
    as there are groups where that is zero.
    """
    clusters = group_numbers(groups)
    found = mean_over_examples(correct.double(), clusters, level)
    p, n_groups = found.value.item(), len(clusters.unique())
    variance = found.standard_error.item() ** 2 * (n_groups - 1) / n_groups
    n = p * (1 - p) / variance if variance > 0 else n_groups
    low, high = torch.tensor(wilson(p, n, level), dtype=torch.float64)
    return Estimate(found.value, found.standard_error, low, high, level)


def compare_answers(
    one: Result, other: Result, generator: torch.Generator, level: float = 0.95
) -> Estimate:
    """Accuracy of one minus that of the other, on the same items: a paired bootstrap over groups.

    Of two interventions, or of two languages, whose items are paired by id.

    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> days = [task.where(lambda item: "day_after" in item.id) for task in tasks]
    >>> english, german = interp.evaluations.choose(model, days, progress=False)
    >>> found = interp.evaluations.compare_answers(english, german, generator)
    >>> (found.low <= 0 <= found.high).item()
    True
    """
    order = {id: place for place, id in enumerate(other.ids)}
    missing = sorted(set(one.ids) ^ set(other.ids))
    if missing:
        raise ValueError(
            f"{len(missing)} items are in one result alone, such as "
            f"{', '.join(map(repr, missing[:3]))}: compare the same items (see align)."
        )
    paired = other.correct[[order[id] for id in one.ids]]
    return paired_bootstrap(
        one.correct.double(), paired.double(), generator, group_numbers(one.groups), level=level
    )


def accuracy_table(results: Sequence[Result], level: float = 0.95) -> pd.DataFrame:
    """One row per result: accuracy with its interval, and what guessing would give.

    >>> task = interp.read_task("babel/fact_completion", "de")
    >>> days = task.where(lambda item: "day_after" in item.id)
    >>> found = interp.evaluations.choose(model, [days], progress=False)
    >>> interp.evaluations.accuracy_table(found)[["task", "language", "chance", "n"]]
                        task language    chance  n
    0  babel/fact_completion       de  0.166667  7
    """
    rows = []
    for each in results:
        found = each.accuracy(level)
        ends = {"low": found.low.item(), "high": found.high.item()}
        guess = {"chance": 0.0, "commonest": 0.0}
        if isinstance(each, Choices):
            guess = {"chance": each.chance, "commonest": each.commonest}
        named = {name: getattr(each, name) for name in ("task", "language", "intervention")}
        rows.append({**named, "accuracy": found.value.item(), **ends, **guess, "n": len(each.ids)})
    return pd.DataFrame(rows)


def group_numbers(groups: Sequence[str]) -> Int64[Tensor, " item"]:
    """Groups as numbers, for intervals: the same number for items that go together."""
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([number[group] for group in groups], dtype=torch.int64)


def _per_item(result: Result, columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    named = {name: getattr(result, name) for name in ("task", "language", "intervention")}
    return pd.DataFrame({"id": result.ids, **columns}).assign(**named)

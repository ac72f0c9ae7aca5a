"""The result of patching: each answer's probability or metric under every patch and without one."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float64, Int64
from torch import Tensor

from interp.results.display import Cells, layer_cells, listed
from interp.results.frames import tidy
from interp.results.saved import Saved
from interp.results.words import Layers


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchingResult(Saved):
    """How likely each answer is under each patch, or what a metric gives there.

    >>> source, target = "Der Tag nach Montag ist", "The day after Friday is"
    >>> answers = {"Tuesday": " Tuesday", "Saturday": " Saturday", "Dienstag": " Dienstag"}
    >>> result = interp.patch(model, source, target, answers)
    >>> result.answers[result.unpatched.argmax()], result.probability.shape
    ('Saturday', torch.Size([1, 1, 6, 1, 3]))
    """

    kind = "PatchingResult"
    made_by = "interp.patch(model, source, target, answers)"

    value: Float64[Tensor, "source part layer span answer"]
    """The log-probability of the answer as the target's next token, in nats; of a metric, its
    value. For two answers of one token each, the difference is that of their logits."""

    top: Int64[Tensor, "source part layer span"]
    """The most likely next token."""

    unpatched: Float64[Tensor, " answer"]
    """The same for the unpatched target."""

    own: Float64[Tensor, "source answer"]
    """The same for the source itself, averaged over its prompts; NaN for "noise", and for a cache
    without the residual stream after the last layer."""

    sources: tuple[str, ...]
    """"source", the controls by name, and "noise"."""

    parts: tuple[str, ...]
    """Names of the parts that are patched."""

    extent: Layers
    """What an entry of the layer axis patches: that layer, it and all later ones, or all layers."""

    layers: tuple[int, ...]
    """Layer numbers, in the order of the layer axis."""

    spans: tuple[str, ...]
    """Names of the target's tokens that are patched."""

    answers: tuple[str, ...]
    """Names of the answers and metrics."""

    metrics: tuple[str, ...] = ()
    """Those of them that are metrics: functions of the logits, which have no probability."""

    def __repr__(self) -> str:
        n = len(self.layers)
        where = {"each": f"each of {n} layers", "from": f"all layers from each of {n} on"}
        before = [
            f"{name} {value:.4g}" if name in self.metrics else f"{name} {math.exp(value):.2f}"
            for name, value in zip(self.answers, self.unpatched.tolist(), strict=True)
        ]
        return (
            f"PatchingResult(from {listed(self.sources)}: {listed(self.parts)} in "
            f"{where.get(self.extent, 'all layers')}, at {listed(self.spans)}; unpatched: "
            f"{listed(before)})"
        )

    def _cells(self) -> Cells:
        change = rearrange(
            self.value - self.unpatched,
            "source part layer span answer -> (source part span answer) layer",
        )
        names = itertools.product(self.sources, self.parts, self.spans, self.answers)
        note = "change of the answer's log-probability, in nats"
        if self.metrics:
            note = "change of the metric" if len(self.answers) == 1 else f"{note}, or of the metric"
        headings = ("from", "part", "at", "answer")
        return layer_cells(
            [list(name) for name in names], change.tolist(), note, headings, self.layers
        )

    @property
    def log_probability(self) -> Float64[Tensor, "source part layer span answer"]:
        """The values of answers, in nats."""
        if self.metrics:
            raise ValueError(
                f"{listed(self.metrics)} is a function of the logits and has no probability: use "
                "`value`, or patch with answers alone."
            )
        return self.value

    @property
    def probability(self) -> Float64[Tensor, "source part layer span answer"]:
        return self.log_probability.exp()

    def difference(self, answer: str, other: str) -> Float64[Tensor, "source part layer span"]:
        """log p(answer) - log p(other); with one token each, their difference of logits."""
        return self._value(self.value, answer, other)

    def recovered(
        self, answer: str, other: str | None = None
    ) -> Float64[Tensor, "source part layer span"]:
        """The share of the way from target to source that the patch covers.

        (patched - unpatched) / (source - unpatched), in log p(answer) or a metric, or in its
        difference from `other`. Zero: nothing. One: as the first source itself. NaN: source and
        target agree to a millionth, or `own` is unknown. Meaningful only if source and target ask
        in the same language.
        """
        start = self._value(self.unpatched, answer, other)
        distance = self._value(self.own[0], answer, other) - start
        moved = self._value(self.value, answer, other) - start
        return moved / distance if distance.abs() > 1e-6 else torch.full_like(moved, torch.nan)

    def share(self, answers: Iterable[str]) -> Float64[Tensor, "source part layer span"]:
        """Probability of these answers together, as a share of that of all answers."""
        chosen = [self._index(answer) for answer in answers]
        return self.log_probability.softmax(dim=-1)[..., chosen].sum(dim=-1)

    def unpatched_share(self, answers: Iterable[str]) -> float:
        """The share for the unpatched target."""
        chosen = [self._index(answer) for answer in answers]
        return self.unpatched.softmax(dim=-1)[chosen].sum().item()

    def to_frame(self) -> pd.DataFrame:
        """One row for each value; `place` numbers the spans, and `change` is the difference from
        the unpatched target, in nats or in units of the metric. With metrics there is a column
        `value`, else `log_probability` and `probability`."""
        axes = {
            "source": self.sources,
            "part": self.parts,
            "layer": self.layers,
            "place": range(len(self.spans)),
            "answer": self.answers,
        }
        numbers: dict[str, Any] = {"extent": self.extent}
        if self.metrics:
            numbers |= {"value": self.value}
        else:
            numbers |= {"log_probability": self.value, "probability": self.probability}
        frame = tidy(axes, numbers | {"change": self.value - self.unpatched})
        frame.insert(4, "span", [self.spans[index] for index in frame["place"]])
        return frame

    def _value(self, values: Tensor, answer: str, other: str | None) -> Tensor:
        value = values[..., self._index(answer)]
        return value if other is None else value - values[..., self._index(other)]

    def _index(self, answer: str) -> int:
        if answer not in self.answers:
            raise ValueError(f"{answer!r} is not one of the answers ({', '.join(self.answers)}).")
        return self.answers.index(answer)

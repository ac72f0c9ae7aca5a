"""What patching found: an answer's probability under every patch, beside clean and corrupt."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from interp.results.display import listed
from interp.results.frames import tidy
from interp.results.saved import Saved
from interp.results.words import Layers


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchingResult(Saved):
    """How likely each answer is under each patch.

    >>> source, target = "Der Tag nach Montag ist", "The day after Friday is"
    >>> answers = {"Tuesday": " Tuesday", "Saturday": " Saturday", "Dienstag": " Dienstag"}
    >>> found = interp.patch(model, source, target, answers)
    >>> found.answers[found.unpatched.argmax()], found.probability.shape
    ('Saturday', torch.Size([1, 1, 6, 1, 3]))
    """

    kind = "PatchingResult"
    made_by = "interp.patch(model, source, target, answers)"

    log_probability: Float64[Tensor, "source part layer span answer"]
    """In nats, of the answer as the next token of the target. The difference of two answers of one
    token each is the difference of their logits."""

    top: Int64[Tensor, "source part layer span"]
    """The most likely next token."""

    unpatched: Float64[Tensor, " answer"]
    """The same of the target as it is."""

    own: Float64[Tensor, "source answer"]
    """The same of the source as it is, on average over its prompts; NaN for "noise"."""

    sources: tuple[str, ...]
    """"source", the controls by name, and "noise"."""

    parts: tuple[str, ...]
    """What is patched."""

    extent: Layers
    """Whether an entry of the layer axis is that layer alone, it and all behind it, or all."""

    layers: tuple[int, ...]
    """Numbers of the layer axis."""

    spans: tuple[str, ...]
    """Tokens of the target that are patched."""

    answers: tuple[str, ...]
    """Names of the answers."""

    def __repr__(self) -> str:
        n = len(self.layers)
        where = {"each": f"each of {n} layers", "from": f"all layers from each of {n} on"}
        before = zip(self.answers, self.unpatched.exp().tolist(), strict=True)
        return (
            f"PatchingResult(from {listed(self.sources)}: {listed(self.parts)} in "
            f"{where.get(self.extent, 'all layers')}, at {listed(self.spans)}; unpatched: "
            f"{listed(f'{answer} {probability:.2f}' for answer, probability in before)})"
        )

    @property
    def probability(self) -> Float64[Tensor, "source part layer span answer"]:
        return self.log_probability.exp()

    def difference(self, answer: str, other: str) -> Float64[Tensor, "source part layer span"]:
        """log p(answer) - log p(other); with one token each, their difference of logits."""
        return self._value(self.log_probability, answer, other)

    def recovered(
        self, answer: str, other: str | None = None
    ) -> Float64[Tensor, "source part layer span"]:
        """How much of the way from target to source the patch goes.

        (patched - unpatched) / (source - unpatched), in log p(answer), or in its difference from
        `other`. Zero: nothing. One: as the first source itself. NaN: source and target agree to
        a millionth of a nat. It means something where source and target are asked in one language.
        """
        start = self._value(self.unpatched, answer, other)
        way = self._value(self.own[0], answer, other) - start
        gone = self._value(self.log_probability, answer, other) - start
        return gone / way if way.abs() > 1e-6 else torch.full_like(gone, torch.nan)

    def share(self, answers: Iterable[str]) -> Float64[Tensor, "source part layer span"]:
        """Probability of these answers together, among all the answers asked for."""
        chosen = [self._index(answer) for answer in answers]
        return self.log_probability.softmax(dim=-1)[..., chosen].sum(dim=-1)

    def unpatched_share(self, answers: Iterable[str]) -> float:
        """The same of the target as it is."""
        chosen = [self._index(answer) for answer in answers]
        return self.unpatched.softmax(dim=-1)[chosen].sum().item()

    def to_frame(self) -> pd.DataFrame:
        """One row for each number; `place` numbers the spans, and `change` is in nats, from the
        target as it is."""
        axes = {
            "source": self.sources,
            "part": self.parts,
            "layer": self.layers,
            "place": range(len(self.spans)),
            "answer": self.answers,
        }
        numbers = {
            "extent": self.extent,
            "log_probability": self.log_probability,
            "probability": self.probability,
            "change": self.log_probability - self.unpatched,
        }
        frame = tidy(axes, numbers)
        frame.insert(4, "span", [self.spans[place] for place in frame["place"]])
        return frame

    def _value(self, log_probability: Tensor, answer: str, other: str | None) -> Tensor:
        value = log_probability[..., self._index(answer)]
        return value if other is None else value - log_probability[..., self._index(other)]

    def _index(self, answer: str) -> int:
        if answer not in self.answers:
            raise ValueError(f"{answer!r} was not asked for, only {', '.join(self.answers)}.")
        return self.answers.index(answer)

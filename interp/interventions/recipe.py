"""How chosen units are trained: a few settings, and those of published work."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast to train; AdamW, whose rate rises linearly and falls to zero.

    >>> interp.interventions.Recipe(steps=100).rate(0) < 2e-4
    True
    """

    steps: int = 1000
    """Updates of the weights."""

    rows: int = 16
    """Rows of text per step."""

    rows_at_once: int = 8
    """Rows per pass; fewer need less memory and give the same step, but for rounding."""

    learning_rate: float = 2e-4
    """The highest."""

    warmup: float = 0.05
    """Share of the steps in which the rate rises."""

    weight_decay: float = 0.0
    """Of the chosen rows and columns alone, as everything is."""

    clip: float = 1.0
    """The largest norm of the gradient of everything trained."""

    seed: int = 0
    """Of the order of the rows."""

    last_layers: int | None = None
    """Train the units of the last so many layers alone. None: of all layers."""

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "rows_at_once", "last_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more.")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}: give a number above 0.")
        if not (0 <= self.warmup < 1 and math.isfinite(self.weight_decay)):
            raise ValueError(
                f"warmup is {self.warmup} and weight_decay {self.weight_decay}: give a share of "
                "the steps below 1, and a finite number."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from zero."""
        rising = self.warmup * self.steps
        left = (self.steps - step) / (self.steps - rising)
        return self.learning_rate * min((step + 1) / (rising + 1), left, 1.0)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return asdict(self)


PLAIN = Recipe()

RECIPES: Mapping[str, Recipe] = {
    "plain": PLAIN,
    "low-resource": Recipe(learning_rate=1e-4, weight_decay=0.01),
    "code-switching": Recipe(steps=300, learning_rate=5e-5, last_layers=4),
}
"""Named after what was published; what a paper's units are is the caller's selection.

"low-resource": running text of a language that the model saw little of, on neurons with 0.2 to 1 %
of the parameters (arXiv 2510.13580). "code-switching": a short training of the last layers alone,
as in work that trains few neurons against answers in the wrong language (OpenReview HIXPyQ1aMq).
Rates and steps are starting points of ours: the papers' own depend on model and text.
"""

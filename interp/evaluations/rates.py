"""A rate with its interval, how much a text repeats itself, and the score of steering."""

import math
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from interp.inference.intervals import wilson
from interp.results.display import Cells, Shown

_WINDOW = 6  # characters: more than a word of Latin letters with its space, a phrase of Chinese


def repetition(text: str) -> float:
    """Share of the text's six-character windows that occur earlier in it.

    Zero: none does. Near one: the same text over and over. It grows with length, so compare texts
    of similar length: for 300 characters of news it is below 0.2 in 99 % of cases. Texts of up to
    five characters score zero.
    """
    windows = [text[start : start + _WINDOW] for start in range(len(text) - _WINDOW + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


def steering_score(control: float, quality: float) -> float:
    """Harmonic mean of control and quality, 2 · control · quality / (control + quality).

    Control: share of texts in the target language. Quality: share of those that are good (here:
    that pass the guard). One: all texts are in the language and good. Zero: none is in it, or none
    of those is good. Never above twice the smaller of the two. CLaS-Bench (2026) takes a judge's
    rating of relevance as quality; a guard distinguishes text from noise, not true from false.

    >>> round(interp.evaluations.steering_score(control=0.9, quality=0.6), 3)
    0.72
    """
    for name, value in {"control": control, "quality": quality}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"The {name} is {value}: give a share, from 0 to 1.")
    return 2 * control * quality / (control + quality) if control + quality else 0.0


@dataclass(frozen=True)
class Rate(Shown):
    """A share with the interval of Wilson (1927), which is valid for small and for zero counts.

    It assumes independent texts. Those of one prompt are; of several prompts, texts of the same
    prompt are more alike.
    """

    count: int
    """The numerator."""

    of: int
    """The denominator."""

    level: float = 0.95
    """Confidence level: the share of intervals that contain the true rate."""

    def __repr__(self) -> str:
        low, high = self.interval
        ends = f"{low:.2f} to {high:.2f} at {100 * self.level:g} %"
        return f"{self.count:,} of {self.of:,}: {self.value:.2f} ({ends})"

    def _cells(self) -> Cells:
        low, high = self.interval
        share = f"{self.value:.3f} ({low:.3f} to {high:.3f})"
        return Cells(("count", "of", "share"), [[f"{self.count:,}", f"{self.of:,}", share]])

    @property
    def value(self) -> float:
        """The share; NaN where `of` is zero."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end; zero and one where `of` is zero."""
        return wilson(self.value, self.of, self.level)


def n_bytes(text: str) -> int:
    """Length in UTF-8, in which no character is lost."""
    return len(text.encode("utf-8", "surrogatepass"))


def median(values: Float64[Tensor, " text"]) -> float:
    """Median; texts without a loss do not count. NaN: there are no texts."""
    return float(values.nanquantile(0.5)) if len(values) else math.nan

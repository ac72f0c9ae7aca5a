"""How long a loop will take on this machine, from a trial of one batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interp.results.display import Cells, Shown

_COLD = 10.0
"""Seconds. A shorter trial is repeated, since a model's first pass, which brings its weights into
memory, is several times as slow as the next."""


@dataclass(frozen=True, kw_only=True)
class Forecast(Shown):
    """What is left to do of a loop over text, or over neurons, and how long it takes.

    >>> forecast = interp.runs.Forecast(passes=25, tokens=15_360, left=0.5, seconds=1200.0)
    >>> print(forecast)
    25 passes over 15,360 tokens, 192,000 of 384,000 left: about 20 minutes on this machine.
    """

    passes: int
    """How often the text is read, or every neuron scored."""

    tokens: int
    """Tokens of one pass, or how many there are of `unit`."""

    left: float = 1.0
    """Share that is not done yet."""

    seconds: float | None = None
    """Seconds for what is left. None: the work runs elsewhere."""

    disk: int = 0
    """Bytes of all files. Zero: next to nothing."""

    unit: str = "tokens"
    """What a pass consists of, such as tokens or neurons."""

    trial: float = 0.0
    """Seconds of work that the time of its main part is estimated from. Zero: none was tried."""

    at_most: bool = False
    """Whether it may take less, as a search does that ends early."""

    def __repr__(self) -> str:
        return f"Forecast({self})"

    def _cells(self) -> Cells:
        return Cells(("", ""), [["forecast", str(self)]])

    def __str__(self) -> str:
        total = self.passes * self.tokens
        what = f"{self.passes:,} pass{'es' * (self.passes != 1)} over {self.tokens:,} {self.unit}"
        if self.left < 1:
            what += f", {round(self.left * total):,} of {total:,} left"
        elif self.passes > 1:
            what += f", {total:,} in all"
        about = "at most about" if self.at_most else "about"
        how_long = (
            "" if self.seconds is None else f": {about} {duration(self.seconds)} on this machine"
        )
        if how_long and self.trial:
            how_long += f" (from a trial of {max(0.1, self.trial):.1f} s; longer when it is busy)"
        disk = f"; {self.disk / 1e6:,.1f} MB on disk" if self.disk else ""
        return f"{what}{how_long}{disk}."


def forecast(
    passes: int,
    tokens: int,
    trial: Callable[[], int],
    *,
    folder: Path | None = None,
    pieces: int = 1,
    disk: int = 0,
    unit: str = "tokens",
) -> Forecast:
    """The forecast of `passes` passes over `tokens` tokens, or what `unit` says.

    `trial` does the work of one batch and returns how many tokens it read. With `folder`, the
    pieces of the loop that are saved there, of `pieces` in all, are done.

    >>> def trial():
    ...     return model.losses(text.rows["de"].ids[:4]).numel()
    >>> interp.runs.forecast(2, 1000, trial).seconds > 0
    True
    """
    done = 0 if folder is None else len(list((folder / "pieces").glob("*.safetensors")))
    left = max(0.0, 1 - done / max(1, pieces))
    tried, n_tried = _timed(trial) if left else (0.0, 1)
    return Forecast(
        passes=passes,
        tokens=tokens,
        left=left,
        seconds=passes * tokens * left * tried / n_tried,
        disk=disk,
        unit=unit,
        trial=tried,
    )


def seconds_per_token(trial: Callable[[], int]) -> float:
    """Seconds that a trial takes per token that it reads.

    >>> ids = text.rows["de"].ids[:2]
    >>> interp.runs.seconds_per_token(lambda: model.losses(ids).numel()) > 0
    True
    """
    seconds, n_tokens = _timed(trial)
    return seconds / n_tokens


def _timed(trial: Callable[[], int]) -> tuple[float, int]:
    """Seconds of a trial, and its tokens, at least one."""
    seconds, n_tokens = 0.0, 0
    for _ in range(2):
        start = time.perf_counter()
        n_tokens = trial()
        seconds = time.perf_counter() - start
        if seconds >= _COLD:
            break
    return seconds, max(1, n_tokens)


def duration(seconds: float) -> str:
    """A number of seconds, minutes or hours, as exact as a trial is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"

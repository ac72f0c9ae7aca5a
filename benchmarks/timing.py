"""Variants that take turns in one process, and how their times compare.

Every time is divided by that of the first variant in the same round, so a machine that is slow for
a while is slow for all of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.records import Row

Variants = dict[str, Callable[[], Any]]
"""Names and what is timed; the first is the reference."""


@dataclass(frozen=True)
class Turns:
    """How long every turn took, and what it returned."""

    seconds: dict[str, list[float]]
    """Of each variant's turns, in order."""

    values: dict[str, Any]
    """What each variant returned last."""

    def multiples(self) -> dict[str, list[float]]:
        """Every turn as a multiple of the first variant's turn of the same round."""
        first = next(iter(self.seconds.values()))
        return {
            name: [own / reference for own, reference in zip(times, first, strict=True)]
            for name, times in self.seconds.items()
        }

    def rows(self, **labels: Any) -> list[Row]:
        """A row for each variant: these labels, and the multiples of the first one's time."""
        multiples = self.multiples().items()
        return [{**labels, "way": name, **spread(values)} for name, values in multiples]


def clock(device: str, work: bool = False) -> Callable[[], float]:
    """A clock to read before and after a turn; on a GPU it waits until the work is done.

    `work`: CPU seconds of this process, which mean something on a machine that does other work too.
    A GPU has no such clock.
    """
    if torch.device(device).type == "cuda":

        def when_done() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return when_done
    return time.process_time if work else time.perf_counter


def take_turns(
    variants: Variants,
    rounds: int,
    now: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> Turns:
    """Run every variant once a round; the order is reversed from one round to the next."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    values = {}
    for number in range(not warm_up, rounds + 1):  # round zero warms up, and compiles
        for name in variants if number % 2 else reversed(variants):
            start = now()
            values[name] = variants[name]()
            elapsed = now() - start
            if number:
                seconds[name].append(elapsed)
    return Turns(seconds, values)


def spread(values: Sequence[float]) -> Row:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def relative_difference(reference: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of the largest value of the reference."""
    reference, other = reference.double().cpu(), other.double().cpu()
    return ((reference - other).abs().max() / reference.abs().max()).item()

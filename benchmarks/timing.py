"""Times of variants that take turns in one process.

Every time is divided by that of the first variant in the same round, so a slowdown of the machine
affects all of them alike.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.records import Row

Variants = dict[str, Callable[[], Any]]
"""Functions to time, by name; the first is the reference."""


@dataclass(frozen=True)
class Turns:
    """Durations of the turns, and what the variants returned."""

    seconds: dict[str, list[float]]
    """Durations of each variant's turns, in order."""

    values: dict[str, Any]
    """What each variant returned in its last turn."""

    def multiples(self) -> dict[str, list[float]]:
        """Every time as a multiple of the first variant's in the same round."""
        first = next(iter(self.seconds.values()))
        return {
            name: [own / reference for own, reference in zip(times, first, strict=True)]
            for name, times in self.seconds.items()
        }

    def rows(self, **labels: Any) -> list[Row]:
        """A row for each variant: the labels, and multiples of the first variant's time."""
        multiples = self.multiples().items()
        return [{**labels, "way": name, **spread(values)} for name, values in multiples]


def clock(device: str, work: bool = False) -> Callable[[], float]:
    """A clock to read before and after a turn; on a GPU it waits until the work is done.

    `work`: CPU seconds of this process, which stay meaningful on a busy machine; not for a GPU.
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
    for number in range(not warm_up, rounds + 1):  # round zero warms up and compiles
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

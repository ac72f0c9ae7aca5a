"""Variants take turns in one process; each turn is divided by the first one's of its round."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Variants = list[tuple[str, Callable[[], Any]]]
"""Names and what is timed; the first is the measure."""


def compare(title: str, variants: Variants, rounds: int) -> None:
    """Let the variants take turns, and print the time of each as a multiple of the first's."""
    first, _ = variants[0]
    multiples: dict[str, list[float]] = {name: [] for name, _ in variants}
    for number in range(rounds + 1):
        seconds = {}
        for name, run in variants if number % 2 else reversed(variants):
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] = time.perf_counter() - start
        if number:  # the first round warms up
            for name, spent in seconds.items():
                multiples[name].append(spent / seconds[first])
    print(f"\n{title}, {torch.get_num_threads()} threads")
    for name, found in multiples.items():
        low, high = min(found), max(found)
        print(f"  {statistics.median(found):5.2f}  [{low:.2f} to {high:.2f}]  {name}", flush=True)

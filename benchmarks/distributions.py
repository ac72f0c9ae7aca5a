"""How long does it take to split the languages of every neuron in two? DLN's way and ours.

    python -m benchmarks.distributions               # a minute on 2 cores

Of tables of random overlaps. The authors of DLN try every split, whose number doubles with each
language; the weakest link of the maximum spanning tree gives the same split. CPU seconds, of all
threads together.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from benchmarks.records import Config, Size, recording
from interp.scores.distributions import weakest_link

TREE, EVERY = "weakest link of the tree", "every split"


@dataclass(frozen=True)
class Amount:
    """Numbers of languages and neurons, by way."""

    tree: tuple[tuple[int, int], ...] = ((7, 458_752), (12, 458_752), (30, 458_752), (68, 458_752))
    """458,752 neurons are those of Llama 3.1 8B."""

    every: tuple[tuple[int, int], ...] = ((7, 458_752), (12, 14_336))


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(tree=((7, 458_752), (68, 458_752)), every=((7, 57_344),)),
    "toy": Amount(tree=((4, 100), (9, 100)), every=((4, 100),)),
}

_AT_ONCE = 14_336
"""Neurons of which overlaps are in memory, as of one layer."""


def overlaps(n_languages: int, n_neurons: int) -> Iterator[Tensor]:
    """Random symmetric tables, a layer at a time."""
    generator = torch.Generator().manual_seed(0)
    for first in range(0, n_neurons, _AT_ONCE):
        shape = (min(_AT_ONCE, n_neurons - first), n_languages, n_languages)
        table = torch.rand(shape, generator=generator).triu(1)
        yield table + table.mT


def every_split(overlap: Tensor) -> Tensor:
    """The least largest overlap across any split in two."""
    n, least = overlap.shape[1], torch.full((len(overlap),), torch.inf)
    for size in range(1, n):
        for group in itertools.combinations(range(1, n), size):
            rest = [language for language in range(n) if language not in group]
            across = overlap[:, list(group)][:, :, rest].amax(dim=(1, 2))
            least = least.minimum(across)
    return least


def seconds(work: Callable[[Tensor], object], n_languages: int, n_neurons: int) -> float:
    """CPU seconds of the work on all tables, without making them."""
    total = 0.0
    for table in overlaps(n_languages, n_neurons):
        start = time.process_time()
        work(table)
        total += time.process_time() - start
    return total


def main(config: Config) -> None:
    amount = AMOUNTS[config.size]
    with recording("distributions", config, amount) as record:
        for way, work, sizes in (
            (TREE, weakest_link, amount.tree),
            (EVERY, every_split, amount.every),
        ):
            for languages, neurons in sizes:
                row = {"way": way, "languages": languages, "neurons": neurons}
                record(row | {"seconds": seconds(work, languages, neurons)})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

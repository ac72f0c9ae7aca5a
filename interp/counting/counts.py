"""How often each neuron fires, shard by shard and language by language: in memory or on disk."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor


@runtime_checkable
class Counts(Protocol):
    """Where `FiringStats` gets its numbers from. Shards and languages go by their numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shards, languages, layers, and neurons per layer."""
        ...

    def read(self, shard: int, language: int) -> Int64[Tensor, "layer neuron"]:
        """Counts of one shard of one language."""
        ...

    def total(self, language: int) -> Int64[Tensor, "layer neuron"]:
        """Sum over the shards."""
        ...

    def select(self, shards: Sequence[int], languages: Sequence[int]) -> "Counts":
        """Some of the shards and languages, in the order given."""
        ...

    def whole(self) -> Int64[Tensor, "shard language layer neuron"]:
        """All of them, in memory."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Counts that are one tensor."""

    fired: Int64[Tensor, "shard language layer neuron"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.fired.shape)

    def read(self, shard: int, language: int) -> Int64[Tensor, "layer neuron"]:
        return self.fired[shard, language]

    def total(self, language: int) -> Int64[Tensor, "layer neuron"]:
        return self.fired[:, language].sum(dim=0)

    def select(self, shards: Sequence[int], languages: Sequence[int]) -> "InMemory":
        return InMemory(self.fired[list(shards)][:, list(languages)])

    def whole(self) -> Int64[Tensor, "shard language layer neuron"]:
        return self.fired


@dataclass(frozen=True, eq=False)
class _Files:
    """All counts of a run, and how to read one shard of one language."""

    fetch: Callable[[int, int], Tensor]

    tokens: Int64[Tensor, "shard language"]

    layers_and_neurons: tuple[int, int]

    totals: dict[int, Tensor] = field(default_factory=dict)
    """Sums over all shards, by language, once they are known."""

    def read(self, shard: int, language: int) -> Int64[Tensor, "layer neuron"]:
        counts = self.fetch(shard, language)
        check_counts(counts, self.tokens[shard, language])
        return counts

    def total(self, shards: Sequence[int], language: int) -> Int64[Tensor, "layer neuron"]:
        """Over some shards; where few are left out, they are taken from the sum of all."""
        every = range(len(self.tokens))
        rest = [shard for shard in every if shard not in shards]
        if len(shards) + len(rest) > len(every) or len(rest) >= len(shards):
            return self._sum(shards, language)
        if language not in self.totals:
            self.totals[language] = self._sum(every, language)
        return self.totals[language] - self._sum(rest, language)

    def _sum(self, shards: Iterable[int], language: int) -> Tensor:
        total = torch.zeros(self.layers_and_neurons, dtype=torch.int64)
        for shard in shards:
            total += self.read(shard, language)
        return total


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Some shards and languages of counts that are read, and checked, whenever they are needed."""

    files: _Files

    shards: tuple[int, ...]
    """Their numbers in the run."""

    languages: tuple[int, ...]
    """Their numbers in the run."""

    @staticmethod
    def of(
        read: Callable[[int, int], Int64[Tensor, "layer neuron"]],
        tokens: Int64[Tensor, "shard language"],
        layers_and_neurons: tuple[int, int],
    ) -> "OnDisk":
        """All counts of a run, which `read` gets by the numbers of a shard and a language."""
        n_shards, n_languages = tokens.shape
        files = _Files(read, tokens, layers_and_neurons)
        return OnDisk(files, tuple(range(n_shards)), tuple(range(n_languages)))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.shards), len(self.languages), *self.files.layers_and_neurons)

    def read(self, shard: int, language: int) -> Int64[Tensor, "layer neuron"]:
        return self.files.read(self.shards[shard], self.languages[language])

    def total(self, language: int) -> Int64[Tensor, "layer neuron"]:
        return self.files.total(self.shards, self.languages[language])

    def select(self, shards: Sequence[int], languages: Sequence[int]) -> "OnDisk":
        return OnDisk(
            self.files,
            tuple(self.shards[shard] for shard in shards),
            tuple(self.languages[language] for language in languages),
        )

    def whole(self) -> Int64[Tensor, "shard language layer neuron"]:
        fired = torch.empty(self.shape, dtype=torch.int64)
        for shard, language in itertools.product(*map(range, self.shape[:2])):
            fired[shard, language] = self.read(shard, language)
        return fired


def check_counts(fired: Int64[Tensor, "*axes"], most: Int64[Tensor, "*of_axes"]) -> None:
    """Refuse counts below zero or above `most`, the tokens that were read."""
    if (fired < 0).any() or (fired > most).any():
        raise ValueError("A neuron fires on fewer than zero or on more tokens than were read.")

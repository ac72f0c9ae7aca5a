"""Firing counts by shard and language, in memory or on disk."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from einops import reduce
from jaxtyping import Float64, Int64
from scipy.special import stdtrit
from torch import Tensor

from interp.counting.expert_tokens import ExpertTokens


@runtime_checkable
class Counts(Protocol):
    """Source of the counts in `FiringStats`; shards and languages are given by index."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(shards, languages, layers, neurons per layer)."""
        ...

    def read(self, shard: int, language: int) -> Int64[Tensor, "layer neuron"]:
        """Counts of one shard of one language."""
        ...

    def total(self, language: int) -> Int64[Tensor, "layer neuron"]:
        """Counts of one language, summed over shards."""
        ...

    def select(self, shards: Sequence[int], languages: Sequence[int]) -> "Counts":
        """A subset of the shards and languages, in the order given."""
        ...

    def whole(self) -> Int64[Tensor, "shard language layer neuron"]:
        """All counts, in memory."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Counts held as one tensor."""

    fired: Int64[Tensor, "shard language layer neuron"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.fired.shape)

    def read(self, shard: int, language: int) -> Int64[Tensor, "layer neuron"]:
        return self.fired[shard, language]

    def total(self, language: int) -> Int64[Tensor, "layer neuron"]:
        return self.fired[:, language].sum(dim=0)

    def select(self, shards: Sequence[int], languages: Sequence[int]) -> "InMemory":
        fired, (every_shard, every_language) = self.fired, map(range, self.shape[:2])
        if list(shards) != list(every_shard):  # each choice copies
            fired = fired[list(shards)]
        if list(languages) != list(every_language):
            fired = fired[:, list(languages)]
        return InMemory(fired)

    def whole(self) -> Int64[Tensor, "shard language layer neuron"]:
        return self.fired


@dataclass(frozen=True, eq=False)
class _Files:
    """All counts of a run, read one shard of one language at a time."""

    fetch: Callable[[int, int], Tensor]

    tokens: Int64[Tensor, "shard language"]

    layers_and_neurons: tuple[int, int]

    totals: dict[int, Tensor] = field(default_factory=dict)
    """Sums over all shards, by language, computed on first use."""

    def read(self, shard: int, language: int) -> Int64[Tensor, "layer neuron"]:
        counts = self.fetch(shard, language)
        check_counts(counts, self.tokens[shard, language])
        return counts

    def total(self, shards: Sequence[int], language: int) -> Int64[Tensor, "layer neuron"]:
        """Sum over some shards; if few are left out, the sum of all minus those."""
        all_shards = range(len(self.tokens))
        rest = [shard for shard in all_shards if shard not in shards]
        if len(shards) + len(rest) > len(all_shards) or len(rest) >= len(shards):
            return self._sum(shards, language)
        if language not in self.totals:
            self.totals[language] = self._sum(all_shards, language)
        return self.totals[language] - self._sum(rest, language)

    def _sum(self, shards: Iterable[int], language: int) -> Tensor:
        total = torch.zeros(self.layers_and_neurons, dtype=torch.int64)
        for shard in shards:
            total += self.read(shard, language)
        return total


@dataclass(frozen=True, eq=False)
class OnDisk:
    """A subset of the shards and languages of a run, read and checked on every use."""

    files: _Files

    shards: tuple[int, ...]
    """Their indices in the run."""

    languages: tuple[int, ...]
    """Their indices in the run."""

    @staticmethod
    def of(
        read: Callable[[int, int], Int64[Tensor, "layer neuron"]],
        tokens: Int64[Tensor, "shard language"],
        layers_and_neurons: tuple[int, int],
    ) -> "OnDisk":
        """All counts of a run, read with `read(shard, language)`."""
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


def check_counts(fired: Int64[Tensor, "*axes"], tokens: Int64[Tensor, "*of_axes"]) -> None:
    """Refuse counts below zero or above the number of tokens read."""
    if (fired < 0).any() or (fired > tokens).any():
        raise ValueError("A firing count is negative or exceeds the number of tokens read.")


def mean_rates(
    counts: InMemory, tokens: Int64[Tensor, "shard language"]
) -> dict[str, Float64[Tensor, " language"]]:
    """Mean over neurons of each language's rates, with its 95 % interval if there are two shards.

    The interval is that of `interp.jackknife`, which stands in a later folder.
    """
    fired = reduce(counts.fired, "shard language layer neuron -> shard language", "sum").double()
    fired = fired / (counts.shape[2] * counts.shape[3])
    rate, n = fired.sum(0) / tokens.sum(0), len(tokens)
    if n < 2:
        return {"mean rate": rate}
    without = (fired.sum(0) - fired) / (tokens.sum(0) - tokens)
    error = ((n - 1) ** 2 / n * without.var(dim=0)).sqrt()
    reach = float(stdtrit(n - 1, 0.975)) * error
    return {"mean rate": rate, "mean rate_low": rate - reach, "mean rate_high": rate + reach}


def check_expert_counts(
    counts: Counts, tokens: Int64[Tensor, "shard language"], experts: ExpertTokens
) -> None:
    """Refuse counts and tokens of experts that are not of one run."""
    shape = (len(experts.layout.layers), experts.layout.d_mlp)
    if tuple(counts.shape[2:]) != shape or not experts.tokens.equal(tokens):
        raise ValueError(
            f"The counts are of {tuple(counts.shape[2:])} layers and neurons, and the tokens of "
            f"experts of {shape}, or of another text: give those of one run."
        )
    if isinstance(counts, InMemory):
        for shard, row in itertools.product(*map(range, tokens.shape)):
            check_counts(counts.read(shard, row), experts.of(shard, row))

"""The counts of all pieces → one result: summed over shards, or with an axis of shards."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """What was counted in one shard of one language."""

    shard: int

    row: int
    """Index of the language."""

    tensors: Mapping[str, Tensor]
    """By name, such as "moments.sums"."""


def parts_of(pieces: Mapping[str, Sequence[Mapping[str, Tensor]]]) -> Iterator[Part]:
    """The parts of caches, of which each is a shard; `pieces` are by language."""
    for row, shards in enumerate(pieces.values()):
        for shard, tensors in enumerate(shards):
            yield Part(shard, row, tensors)


def summed(parts: Iterable[Part], n_languages: int, *names: str, axis: int = 0) -> list[Tensor]:
    """Each of these tensors, summed over shards; languages are a new axis."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name in names:
            added = part.tensors[name]
            if name not in total:
                shape = (*added.shape[:axis], n_languages, *added.shape[axis:])
                total[name] = torch.zeros(shape, dtype=added.dtype)
            total[name].select(axis, part.row).add_(added)
    return [total[name] for name in names]


def by_shard(parts: Iterable[Part], n_shards: int, n_languages: int, *names: str) -> list[Tensor]:
    """Each of these tensors of all parts; shards and languages are two new first axes."""
    whole: dict[str, Tensor] = {}
    for part in parts:
        for name in names:
            one = part.tensors[name]
            if name not in whole:
                whole[name] = torch.zeros(n_shards, n_languages, *one.shape, dtype=one.dtype)
            whole[name][part.shard, part.row] = one
    return [whole[name] for name in names]


def added(one: Result, other: Result, *names: str) -> Result:
    """The first result, with these tensors of both added."""
    first, second = cast(Any, one), cast(Any, other)
    shapes = [[getattr(result, name).shape for name in names] for result in (first, second)]
    if first.languages != second.languages or shapes[0] != shapes[1]:
        raise ValueError(
            f"Cannot merge {one} with {other}: both must be of the same model and the same "
            "languages in the same order."
        )
    total = {name: getattr(first, name) + getattr(second, name) for name in names}
    return replace(first, **total)

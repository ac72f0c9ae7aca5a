"""What was counted in all shards of all languages → one result."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from interp.models.units import UnitLayout

Result = TypeVar("Result")


@dataclass(frozen=True)
class Parts:
    """What was counted in every shard of every language; it can be read once."""

    languages: tuple[str, ...]
    """Labels."""

    n_shards: int
    """Shards per language."""

    tensors: Iterable[tuple[int, int, Mapping[str, Tensor]]]
    """Shard, index of the language, and tensors by name, such as "moments.sums"."""

    layout: UnitLayout | None = None
    """Which neurons are of which expert, in a mixture."""

    def summed(self, *names: str, axis: int = 0) -> list[Tensor]:
        """Each of these tensors, summed over shards; languages are a new axis. Those that no part
        has are left out."""
        total: dict[str, Tensor] = {}
        for _, row, tensors in self.tensors:
            for name in tensors.keys() & set(names):
                added = tensors[name]
                if name not in total:
                    shape = (*added.shape[:axis], len(self.languages), *added.shape[axis:])
                    total[name] = torch.zeros(shape, dtype=added.dtype)
                total[name].select(axis, row).add_(added)
        return [total[name] for name in names if name in total]

    def by_shard(self, *names: str) -> list[Tensor]:
        """Each of these tensors of all parts; shards and languages are two new first axes."""
        axes, whole = (self.n_shards, len(self.languages)), dict[str, Tensor]()
        for shard, row, tensors in self.tensors:
            for name in names:
                one = tensors[name]
                if name not in whole:
                    whole[name] = torch.zeros(*axes, *one.shape, dtype=one.dtype)
                whole[name][shard, row] = one
        return [whole[name] for name in names]


def added(one: Result, other: Result, *names: str) -> Result:
    """The first result, with these tensors of both added."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    check_alike(one, other, all(a.shape == b.shape for a, b in pairs.values()))
    total = {name: a + b for name, (a, b) in pairs.items()}
    return cast(Result, replace(cast(Any, one), **total))


def check_alike(one: Any, other: Any, same_neurons: bool) -> None:
    """Refuse to merge results of two models, or of other languages."""
    if one.languages != other.languages or not same_neurons:
        raise ValueError(
            f"Cannot merge {one} with {other}: both must be of the same model and the same "
            "languages in the same order."
        )

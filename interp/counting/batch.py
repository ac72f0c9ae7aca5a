"""A batch of rows, what counts on it, and what it needs to know of the model.

Nothing here imports a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.results.words import Observed, UnitKind

VALUES_AT_ONCE = 1 << 19
"""Values that statistics beside counts are computed from at a time, on a CPU."""


@dataclass(frozen=True)
class Batch:
    """Some rows of one language and one shard."""

    rows: tuple[int, ...]
    """Index of each row among all rows being read, for results kept per row."""

    ids: Int[Tensor, "batch pos"]
    """Token ids, padded on the right."""

    keep: Bool[Tensor, "batch pos"]
    """False on padding, beginning-of-text and other special tokens: those never count."""

    length: Int[Tensor, " batch"]
    """Tokens in each row, without padding."""

    sources: tuple[str, ...]
    """Where each row comes from, for error messages."""

    whole: bool
    """Every token counts, so nothing needs to be masked."""

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        return replace(
            self,
            ids=self.ids.to(device),
            keep=self.keep.to(device),
            length=self.length.to(device),
        )

    def slices(
        self, values: Shaped[Tensor, "batch pos unit"], gpu: int | None = None
    ) -> Iterator[Shaped[Tensor, "token unit"]]:
        """The values at the tokens that count, row by row and some at a time, see `some_tokens`."""
        flat = rearrange(values, "batch pos unit -> (batch pos) unit")
        keep = rearrange(self.keep, "batch pos -> (batch pos)")
        start = 0
        for some in some_tokens(flat, gpu):
            yield some if self.whole else some[keep[start : start + len(some)]]
            start += len(some)

    def halves(self) -> "tuple[Batch, Batch]":
        """The first half of the rows and the rest, with the same padding."""
        middle = len(self.rows) // 2

        def subset(part: slice) -> Batch:
            return replace(
                self,
                rows=self.rows[part],
                ids=self.ids[part],
                keep=self.keep[part],
                length=self.length[part],
                sources=self.sources[part],
            )

        return subset(slice(middle)), subset(slice(middle, None))


@runtime_checkable
class Observer(Protocol):
    """Receives activations during a forward pass."""

    kinds: tuple[Observed, ...]
    """The sites it receives, in every layer."""

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None: ...


@runtime_checkable
class Neurons(Protocol):
    """The parts of a `NeuronModel` that counting needs; a cache has all but `act`."""

    @property
    def name(self) -> str: ...

    @property
    def n_layers(self) -> int: ...

    @property
    def d_mlp(self) -> int: ...

    @property
    def gated(self) -> bool: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def layer_device(self, layer: int) -> torch.device: ...

    def width(self, layer: int, kind: UnitKind) -> int: ...

    def act(
        self, layer: int, pre: Float[Tensor, "*batch neuron"]
    ) -> Float[Tensor, "*batch neuron"]: ...


def by_unit(values: Shaped[Tensor, "batch pos *unit"]) -> Shaped[Tensor, "batch pos _"]:
    """The values of a site with heads one after the other, where it has an axis of heads."""
    if values.ndim == 4:
        return rearrange(values, "batch pos head unit -> batch pos (head unit)")
    return values


def some_tokens(
    values: Shaped[Tensor, "token unit"], gpu: int | None = None
) -> tuple[Shaped[Tensor, "_ unit"], ...]:
    """The values of some tokens at a time, in order.

    On a CPU at most `VALUES_AT_ONCE` values, on a GPU `gpu` (None: all). What is computed from so
    few stays in a core's cache, which is up to ten times as fast as tensors of new memory.
    """
    most = VALUES_AT_ONCE if values.device.type == "cpu" else gpu
    return (values,) if most is None else values.split(max(1, most // values.shape[1]))


def zeros(model: Neurons, *shape: int, dtype: torch.dtype = torch.int64) -> list[Tensor]:
    """A tensor of zeros for each layer, on the layer's device."""
    return [
        torch.zeros(shape, dtype=dtype, device=model.layer_device(layer))
        for layer in range(model.n_layers)
    ]

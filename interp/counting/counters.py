"""Observers that count during a pass over text.

A counter belongs to one shard of one language. It is allocated in full, each layer on that layer's
device, and does not grow with the text; `tensors()` shares no memory with it.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int64
from torch import Tensor

from interp.counting.batch import Batch, Neurons, zeros
from interp.counting.bits import count_positive, pack_bits
from interp.models.sites import hooked_at
from interp.results.display import listed
from interp.results.words import FiresBy, Observed, UnitKind

_FIRING_KINDS: Mapping[FiresBy, Observed] = {"gate": "pre", "activation": "act", "output": "post"}


class FiringCounter:
    """Counts the tokens on which each gate, activation or output is above zero."""

    def __init__(self, model: Neurons, fires_by: FiresBy = "gate") -> None:
        self.kinds: tuple[Observed, ...] = (firing_kind(fires_by),)
        self._fired = zeros(model, model.d_mlp)
        self._tokens = torch.zeros(model.n_layers, dtype=torch.int64)

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        fired, n_tokens = torch.zeros_like(self._fired[layer]), 0
        for rows in batch.slices(values):
            fired += count_positive(rows)
            n_tokens += len(rows)
        # Memory may have run out above, and the values come again: all is added at once.
        self._fired[layer] += fired
        self._tokens[layer] += n_tokens

    def tensors(self) -> dict[str, Tensor]:
        return firing_tensors(self._fired, self._tokens)


def firing_tensors(
    fired: Sequence[Int64[Tensor, " neuron"]], tokens: Int64[Tensor, " layer"]
) -> dict[str, Tensor]:
    """What a piece holds of firing; refused if the layers saw different numbers of tokens."""
    if (tokens != tokens[0]).any():
        raise ValueError(f"Layers disagree on how many tokens they saw: {tokens.tolist()}.")
    counts = torch.stack([counts.cpu() for counts in fired])
    return {"firing.fired": counts, "firing.tokens": tokens[:1].clone()}


class MomentsCounter:
    """Sums of act(gate), of the neuron's output, and of their squares."""

    kinds: tuple[Observed, ...] = ("act", "post")

    def __init__(self, model: Neurons) -> None:
        self._gated = model.gated
        self._sums = zeros(model, 4, model.d_mlp, dtype=torch.float64)
        self._tokens = 0

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        if kind == "act" and not self._gated:
            return  # the output is act(gate) itself
        of_act, of_output = self._sums[layer].split(2)
        for rows in batch.slices(values):
            sums = torch.stack(sums_and_squares(rows.float()))
            if kind == "act" or not self._gated:
                of_act += sums
            if kind == "post":
                of_output += sums
            if kind == "post" and layer == 0:
                self._tokens += len(rows)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "moments.sums": torch.stack([sums.cpu() for sums in self._sums], dim=1),
            "moments.tokens": torch.tensor([self._tokens]),
        }


class UnitMomentsCounter:
    """Sums of the values of a site's units and of their squares; of a head, of its norm."""

    def __init__(self, model: Neurons, kind: UnitKind) -> None:
        self.kinds: tuple[Observed, ...] = (hooked_at(kind),)
        self._kind, self._n_units = kind, model.width(0, kind)
        self._sums = zeros(model, 2, self._n_units, dtype=torch.float64)
        self._tokens = 0

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None:
        by_head = "token (head unit) -> token head unit"
        for rows in batch.slices(values):
            units = rows.float()
            if self._kind == "head":
                units = rearrange(units, by_head, head=self._n_units).norm(dim=-1)
            self._sums[layer] += torch.stack(sums_and_squares(units))
            if layer == 0:
                self._tokens += len(rows)

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{self._kind}.sums": torch.stack([sums.cpu() for sums in self._sums], dim=1),
            f"{self._kind}.tokens": torch.tensor([self._tokens]),
        }


def sums_and_squares(
    values: Float[Tensor, "token unit"],
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """The sums of values over tokens, and of their squares.

    As products with ones: a norm over the first axis is eighteen times slower on a CPU.
    """
    ones = torch.ones(len(values), device=values.device)
    return ones @ values, ones @ (values * values)


class SentenceMeansCounter:
    """Mean over the tokens of each row, for every unit of the requested sites.

    With `special_tokens`, the row's beginning-of-text and other special tokens count too.
    """

    def __init__(
        self,
        model: Neurons,
        kinds: tuple[Observed, ...],
        n_rows: int,
        special_tokens: bool = False,
    ) -> None:
        self.kinds = kinds
        self._special_tokens = special_tokens
        self._means = {
            (kind, layer): torch.zeros(n_rows, model.width(layer, hooked_at(kind)))
            for kind in kinds
            for layer in range(model.n_layers)
        }

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None:
        counted = batch.keep
        if self._special_tokens:
            position = torch.arange(batch.keep.shape[1], device=values.device)
            counted = position < rearrange(batch.length, "batch -> batch 1")
        weight = counted / reduce(counted.float(), "batch pos -> batch 1", "sum")
        means = einsum(weight, values.float(), "batch pos, batch pos unit -> batch unit")
        self._means[kind, layer][list(batch.rows)] = means.cpu()

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"means.{kind}.{layer}": means.clone() for (kind, layer), means in self._means.items()
        }


class SignsCounter:
    """Whether each gate, activation or output exceeds a threshold at the last token of each row."""

    def __init__(
        self,
        model: Neurons,
        n_rows: int,
        fires_by: FiresBy = "gate",
        threshold: float = 0.0,
    ) -> None:
        self.kinds: tuple[Observed, ...] = (firing_kind(fires_by),)
        if not math.isfinite(threshold):
            raise ValueError(f"The firing threshold is {threshold}: give a finite number.")
        warn_of_rounded_signs(model)
        self._threshold = threshold
        self._bits = torch.zeros(n_rows, model.n_layers, -(-model.d_mlp // 8), dtype=torch.uint8)

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        rows = torch.arange(len(batch.rows), device=values.device)
        last = values[rows, batch.length.long() - 1]
        self._bits[list(batch.rows), layer] = pack_bits(last > self._threshold).cpu()

    def tensors(self) -> dict[str, Tensor]:
        return {"signs.bits": self._bits.clone()}


def firing_kind(fires_by: FiresBy) -> Observed:
    """Where a neuron's values say whether it fires."""
    if fires_by not in get_args(FiresBy):
        raise ValueError(f"fires_by is one of {listed(get_args(FiresBy))}, not {fires_by!r}.")
    return _FIRING_KINDS[fires_by]


def warn_of_rounded_signs(model: Neurons) -> None:
    """Warn that in 16 bits rounding decides whether some neurons fire; silent in float32."""
    if model.dtype in (torch.float16, torch.bfloat16):
        warnings.warn(
            f"{model.name} is in {model.dtype}: rounding decides whether a neuron close to the "
            "threshold fires. In Babel about 2 in 1,000 gates change sign in bfloat16 and 3 in "
            "10,000 in float16, and two to three times as many sharing categories change. Load it "
            "with dtype=torch.float32 (--dtype float32) for numbers you report.",
            stacklevel=3,
        )

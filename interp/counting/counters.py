"""What is counted during a pass over text.

A counter belongs to one shard of one language. It is allocated whole, layer by layer where the
layer lives, and does not grow with the text; `tensors()` shares no memory with it.
"""

import math
import warnings
from typing import get_args

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from interp.counting.observe import Batch
from interp.counting.stats import pack_bits
from interp.models.neuron_model import NeuronModel
from interp.results.words import FiresBy, Kind


class FiringCounter:
    """Tokens on which each gate is above zero."""

    kinds: tuple[Kind, ...] = ("pre",)

    def __init__(self, model: NeuronModel) -> None:
        self._fired = [
            torch.zeros(model.d_mlp, dtype=torch.int64, device=model.layer_device(layer))
            for layer in range(model.n_layers)
        ]
        self._tokens = torch.zeros(model.n_layers, dtype=torch.int64)

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        fires = rearrange(values > 0, "batch pos neuron -> (batch pos) neuron")
        if not batch.whole:
            fires = fires[rearrange(batch.keep, "batch pos -> (batch pos)")]
        # Bytes are summed three times as fast as booleans.
        self._fired[layer] += fires.view(torch.int8).sum(dim=0, dtype=torch.int32)
        self._tokens[layer] += len(fires)

    def tensors(self) -> dict[str, Tensor]:
        if (self._tokens != self._tokens[0]).any():
            raise ValueError(
                f"Layers disagree on how many tokens they saw: {self._tokens.tolist()}."
            )
        fired = torch.stack([each.cpu() for each in self._fired])
        return {"firing.fired": fired, "firing.tokens": self._tokens[:1].clone()}


class MomentsCounter:
    """Sums of act(gate), of the neuron's output, and of their squares."""

    kinds: tuple[Kind, ...] = ("pre", "post")

    def __init__(self, model: NeuronModel) -> None:
        self._model = model
        self._sums = [
            torch.zeros(4, model.d_mlp, dtype=torch.float64, device=model.layer_device(layer))
            for layer in range(model.n_layers)
        ]
        self._tokens = 0

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        if kind == "pre" and not self._model.gated:
            return  # the output is act(gate) itself
        values = self._model.act(layer, values) if kind == "pre" else values
        flat = rearrange(values, "batch pos neuron -> (batch pos) neuron").float()
        keep = rearrange(batch.keep, "batch pos -> (batch pos)")
        if not batch.whole:
            flat = flat[keep]
        # Products with ones; a norm over the first axis takes eighteen times as long on a CPU.
        ones = torch.ones(len(flat), device=flat.device)
        total, squares = ones @ flat, ones @ (flat * flat)
        first = 0 if kind == "pre" else 2
        self._sums[layer][first] += total
        self._sums[layer][first + 1] += squares
        if kind == "post" and not self._model.gated:
            self._sums[layer][0] += total
            self._sums[layer][1] += squares
        if kind == "post" and layer == 0:
            self._tokens += len(flat)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "moments.sums": torch.stack([each.cpu() for each in self._sums], dim=1),
            "moments.tokens": torch.tensor([self._tokens]),
        }


class SentenceMeansCounter:
    """Mean over the tokens of each row, for every unit of the sites asked for.

    With `special_tokens`, beginning-of-text and other special tokens of the row count too.
    """

    def __init__(
        self,
        model: NeuronModel,
        kinds: tuple[Kind, ...],
        n_rows: int,
        special_tokens: bool = False,
    ) -> None:
        self.kinds = kinds
        self._special_tokens = special_tokens
        self._means = {
            (kind, layer): torch.zeros(n_rows, model.width(layer, kind))
            for kind in kinds
            for layer in range(model.n_layers)
        }

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None:
        counted = batch.keep
        if self._special_tokens:
            place = torch.arange(batch.keep.shape[1], device=values.device)
            counted = place < rearrange(batch.length, "batch -> batch 1")
        weight = counted / reduce(counted.float(), "batch pos -> batch 1", "sum")
        means = einsum(weight, values.float(), "batch pos, batch pos unit -> batch unit")
        self._means[kind, layer][list(batch.rows)] = means.cpu()

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"means.{kind}.{layer}": means.clone() for (kind, layer), means in self._means.items()
        }


class SignsCounter:
    """Whether each gate, or each output, exceeds a threshold at the last token of each row."""

    def __init__(
        self,
        model: NeuronModel,
        n_rows: int,
        fires_by: FiresBy = "gate",
        threshold: float = 0.0,
    ) -> None:
        self.kinds: tuple[Kind, ...] = (firing_kind(fires_by),)
        if not math.isfinite(threshold):
            raise ValueError(f"What must be exceeded to fire is {threshold}: give a number.")
        warn_of_rounded_signs(model)
        self._threshold = threshold
        self._bits = torch.zeros(n_rows, model.n_layers, -(-model.d_mlp // 8), dtype=torch.uint8)

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        every = torch.arange(len(batch.rows), device=values.device)
        last = values[every, batch.length.long() - 1]
        self._bits[list(batch.rows), layer] = pack_bits(last > self._threshold).cpu()

    def tensors(self) -> dict[str, Tensor]:
        return {"signs.bits": self._bits.clone()}


def firing_kind(fires_by: FiresBy) -> Kind:
    """The site whose values say whether a neuron fires."""
    if fires_by not in get_args(FiresBy):
        raise ValueError(f"Neurons fire by {' or '.join(get_args(FiresBy))}, not by {fires_by!r}.")
    return "pre" if fires_by == "gate" else "post"


def warn_of_rounded_signs(model: NeuronModel) -> None:
    """Say what 16 bits do to the question whether a neuron fires; nothing in float32 or finer."""
    if model.dtype in (torch.float16, torch.bfloat16):
        warnings.warn(
            f"{model.name} is in {model.dtype}: whether a neuron close to the threshold fires is "
            "rounding. Of Babel's gates about 2 in 1,000 change sides in bfloat16 and 3 in 10,000 "
            "in float16, and of categories of sharing two to three times as many. Load it with "
            "dtype=torch.float32 (--dtype float32) for numbers you report.",
            stacklevel=3,
        )

"""Addresses of neurons in models whose layers differ in what computes them.

A layer of a mixture of experts has neurons that see every token, those of a dense MLP or of shared
experts, and neurons of experts, which see only the tokens routed there. All of them have one index
in their layer: the dense neurons first, then expert by expert. Narrower layers end in units that do
not exist, and are seen on no token.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Int64
from torch import Tensor


class Address(NamedTuple):
    """Where a neuron is.

    >>> print(interp.models.Address(3, 17, 5))
    layer 3, expert 17, neuron 5
    """

    layer: int

    expert: int | None
    """None: in a dense MLP or in shared experts, which see every token."""

    neuron: int
    """Index in the expert, or among the layer's dense neurons."""

    @staticmethod
    def of(name: str) -> "Address":
        """From the name on a neuron page.

        >>> interp.models.Address.of("L3E17N5").name
        'L3E17N5'
        """
        if not (numbers := re.fullmatch(r"L(\d+)(?:E(\d+))?N(\d+)", name, re.IGNORECASE)):
            raise ValueError(
                f"There is no neuron {name!r}: give a layer and a neuron as on the page, such as "
                "L5N7, or L5E2N7 of an expert."
            )
        layer, expert, neuron = numbers.groups()
        return Address(int(layer), None if expert is None else int(expert), int(neuron))

    @property
    def name(self) -> str:
        """As on a neuron page."""
        expert = "" if self.expert is None else f"E{self.expert}"
        return f"L{self.layer}{expert}N{self.neuron}"

    def __str__(self) -> str:
        expert = "" if self.expert is None else f", expert {self.expert}"
        return f"layer {self.layer}{expert}, neuron {self.neuron}"


class LayerUnits(NamedTuple):
    """The neurons of one layer.

    >>> interp.models.LayerUnits(dense=48, n_experts=4, d_expert=32).width
    176
    """

    dense: int
    """Neurons that see every token."""

    n_experts: int
    """Routed experts; 0: the layer has none."""

    d_expert: int
    """Neurons of each routed expert."""

    @property
    def width(self) -> int:
        return self.dense + self.n_experts * self.d_expert


@dataclass(frozen=True)
class UnitLayout:
    """The neurons of a mixture of experts, layer by layer; `model.layout` of one.

    >>> layout = interp.models.UnitLayout.of([[160, 0, 0], [48, 4, 32]])
    >>> layout.d_mlp, layout.n_experts
    (176, 4)
    >>> print(layout.address(1, 48 + 32 + 5))
    layer 1, expert 1, neuron 5
    >>> layout.unit(1, 1, 5)
    85
    """

    layers: tuple[LayerUnits, ...]

    @staticmethod
    def of(sizes: Sequence[Sequence[int]]) -> "UnitLayout":
        """From (dense, n_experts, d_expert) of each layer, as files store it."""
        layers = tuple(LayerUnits(*map(int, size)) for size in sizes)
        if not layers or min(min(layer) for layer in layers) < 0:
            raise ValueError(f"The sizes of layers are {sizes}: give three counts for each layer.")
        return UnitLayout(layers)

    @property
    def sizes(self) -> list[list[int]]:
        """What `of` takes."""
        return [list(layer) for layer in self.layers]

    @property
    def d_mlp(self) -> int:
        """Units of the widest layer."""
        return max(layer.width for layer in self.layers)

    @property
    def n_experts(self) -> int:
        """Routed experts of the layer that has most."""
        return max(layer.n_experts for layer in self.layers)

    def address(self, layer: int, unit: int) -> Address:
        """The address of a unit by its index in the layer."""
        units = self._layer(layer)
        if not 0 <= unit < units.width:
            raise ValueError(f"Layer {layer} has {units.width:,} neurons, so none is {unit}.")
        if unit < units.dense:
            return Address(layer, None, unit)
        return Address(layer, *divmod(unit - units.dense, units.d_expert))

    def unit(self, layer: int, expert: int | None, neuron: int) -> int:
        """The index in its layer of a neuron; see `Address`."""
        units = self._layer(layer)
        n_neurons = units.dense if expert is None else units.d_expert
        if not (0 <= neuron < n_neurons and 0 <= (expert or 0) < max(units.n_experts, 1)):
            raise ValueError(
                f"There is no {Address(layer, expert, neuron)}: that layer has {units.dense:,} "
                f"dense neurons and {units.n_experts} experts of {units.d_expert:,}."
            )
        return neuron if expert is None else units.dense + expert * units.d_expert + neuron

    def _layer(self, layer: int) -> LayerUnits:
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"There is no layer {layer}: layers are 0 to {len(self.layers) - 1}.")
        return self.layers[layer]

    def addresses(self, chosen: Bool[Tensor, "layer neuron"]) -> list[Address]:
        """Where the chosen neurons are, in the order of their indices."""
        return [self.address(layer, unit) for layer, unit in chosen.nonzero().tolist()]

    def mask(self, addresses: Iterable[Sequence[Any]]) -> Bool[Tensor, "layer neuron"]:
        """True for the neurons at these (layer, expert, neuron); expert None: a dense neuron.

        >>> layout = interp.models.UnitLayout.of([[160, 0, 0], [48, 4, 32]])
        >>> layout.addresses(layout.mask([(1, 2, 5), (0, None, 7)]))[1].name
        'L1E2N5'
        """
        chosen = torch.zeros(len(self.layers), self.d_mlp, dtype=torch.bool)
        for address in addresses:
            layer, *pair = _whole(address, "layer, expert, neuron")
            chosen[layer, self.units_at(layer, [pair])] = True
        return chosen

    def pairs(self, layer: int, chosen: Bool[Tensor, " neuron"]) -> list[list[int | None]]:
        """The chosen neurons of a layer as files list them: [expert, neuron]."""
        return [[*self.address(layer, unit)[1:]] for unit in chosen.nonzero().flatten().tolist()]

    def units_at(self, layer: int, pairs: Iterable[Any]) -> list[int]:
        """The indices in their layer of neurons that a file lists."""
        return [self.unit(layer, *_whole(pair, "expert, neuron")) for pair in pairs]

    def parts(self, layer: int) -> list[tuple[int | None, int, int]]:
        """Expert, first unit, and the one after the last; the expert of dense neurons is None."""
        units = self._layer(layer)
        starts = range(units.dense, units.width, max(units.d_expert, 1))
        routed = [(expert, start, start + units.d_expert) for expert, start in enumerate(starts)]
        return [(None, 0, units.dense), *routed]

    def expert_of(
        self, layer: Int64[Tensor, " n"], unit: Int64[Tensor, " n"]
    ) -> Int64[Tensor, " n"]:
        """The expert of each unit; -1 for dense ones. Units must exist."""
        return self.located(layer, unit)[0]

    def located(
        self, layer: Int64[Tensor, " n"], unit: Int64[Tensor, " n"]
    ) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """The expert of each unit, -1 for dense ones, and the neuron in it; see `address`."""
        dense, _, d_expert = torch.tensor(self.sizes)[layer].unbind(dim=1)
        expert = (unit - dense).div(d_expert.clamp_min(1), rounding_mode="floor").clamp_min(-1)
        return expert, unit - (dense + expert * d_expert).where(expert >= 0, 0)

    @property
    def exists(self) -> Bool[Tensor, "layer neuron"]:
        """False at the end of layers that are narrower than the widest."""
        width = torch.tensor([layer.width for layer in self.layers])
        return torch.arange(self.d_mlp) < rearrange(width, "layer -> layer 1")

    def units_of(self, experts: Bool[Tensor, "layer expert"]) -> Bool[Tensor, "layer neuron"]:
        """All neurons of the chosen experts."""
        return self.spread(torch.tensor(0), experts.long()).bool()

    def spread(
        self, tokens: Int64[Tensor, "*of"], expert_tokens: Int64[Tensor, "*of layer expert"]
    ) -> Int64[Tensor, "*of layer neuron"]:
        """The number of tokens that each neuron sees, from all tokens and those of each expert."""
        wide = torch.zeros(*tokens.shape, len(self.layers), self.d_mlp, dtype=torch.int64)
        for layer, units in enumerate(self.layers):
            wide[..., layer, : units.dense] = tokens[..., None]
            routed = expert_tokens[..., layer, : units.n_experts]
            wide[..., layer, units.dense : units.width] = repeat(
                routed, "... expert -> ... (expert neuron)", neuron=units.d_expert
            )
        return wide


def layout_of(layers: tuple[LayerUnits, ...]) -> UnitLayout | None:
    """The layout of these layers; None, if there are none: the model is dense."""
    return UnitLayout(layers) if layers else None


def _whole(numbers: Any, form: str) -> Any:
    """The numbers that say where a neuron is; others are refused."""
    listed = isinstance(numbers, list | tuple) and len(numbers) == len(form.split())
    if not listed or any(
        type(number) is not int and (name != "expert" or number is not None)
        for name, number in zip(form.split(", "), numbers, strict=True)
    ):
        raise ValueError(
            f"{numbers!r:.40} is not the ({form}) of a neuron of a mixture of experts: give whole "
            "numbers, counted from zero, and no expert (None, in files null) for a dense neuron."
        )
    return numbers

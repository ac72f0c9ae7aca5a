"""How many tokens the experts of a mixture saw, and with them each of its neurons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import reduce
from jaxtyping import Bool, Int64
from torch import Tensor

from interp.models.units import LayerUnits, UnitLayout

LEAST_TOKENS = 100
"""Tokens that a neuron must see in every language to have a rate: of fewer, the standard error
could exceed 0.05."""


@dataclass(frozen=True, eq=False)
class ExpertTokens:
    """Tokens routed to each expert; a shard or language is given by its index."""

    layout: UnitLayout

    routed: Int64[Tensor, "shard language layer expert"]
    """Zero where a layer has fewer experts, or none."""

    tokens: Int64[Tensor, "shard language"]
    """All tokens read, which dense neurons see."""

    whole: "ExpertTokens | None" = None
    """Of all shards, if these are some of them."""

    def __post_init__(self) -> None:
        shape = (*self.tokens.shape, len(self.layout.layers), self.layout.n_experts)
        if tuple(self.routed.shape) != shape:
            raise ValueError(
                f"Tokens of experts have shape {tuple(self.routed.shape)}, but {shape} is needed."
            )
        if (self.routed < 0).any() or (self.routed > self.tokens[..., None, None]).any():
            raise ValueError("An expert saw fewer than 0 tokens, or more than were read.")

    def of(self, shard: int, language: int) -> Int64[Tensor, "layer neuron"]:
        """Tokens that each neuron saw in one shard of one language."""
        return self.layout.spread(self.tokens[shard, language], self.routed[shard, language])

    @cached_property
    def total(self) -> Int64[Tensor, "language layer neuron"]:
        """Tokens that each neuron saw, over all shards."""
        return self.layout.spread(self.tokens.sum(0), self.routed.sum(0))

    @cached_property
    def seen(self) -> Bool[Tensor, "layer neuron"]:
        """Which neurons saw at least 100 tokens of every language, over all shards of the run."""
        if self.whole is not None:
            return self.whole.seen
        return reduce(self.total >= LEAST_TOKENS, "language layer neuron -> layer neuron", "all")

    def select(self, shards: Sequence[int], languages: Sequence[int]) -> "ExpertTokens":
        """Some shards and languages, in the order given. Leaving out shards does not change which
        neurons were seen on enough tokens, so that what is left can be compared."""
        rows = list(languages)
        whole = self.whole or self
        if rows != list(range(self.tokens.shape[1])):
            whole = replace(
                whole, routed=whole.routed[:, rows], tokens=whole.tokens[:, rows], whole=None
            )
        routed = self.routed[list(shards)][:, rows]
        return replace(self, routed=routed, tokens=self.tokens[list(shards)][:, rows], whole=whole)

    def at(self, layer: Int64[Tensor, " n"], neuron: Int64[Tensor, " n"]) -> "ExpertTokens":
        """Only these neurons, as if they formed one layer: one expert for each."""
        own = self.layout.expert_of(layer, neuron)
        padded = torch.cat(
            [self.routed, self.tokens[..., None, None].expand_as(self.routed[..., :1])], dim=-1
        )
        routed = padded[:, :, layer, own][:, :, None]
        whole = None if self.whole is None else self.whole.at(layer, neuron)
        layout = UnitLayout((LayerUnits(0, len(layer), 1),))
        return ExpertTokens(layout, routed, self.tokens, whole)

    def merge(self, other: "ExpertTokens") -> "ExpertTokens":
        """The shards of both."""
        routed, tokens = (
            torch.cat([a, b]) for a, b in ((self.routed, other.routed), (self.tokens, other.tokens))
        )
        return ExpertTokens(self.layout, routed, tokens)

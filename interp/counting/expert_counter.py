"""Counting and moments in mixtures of experts: each neuron on the tokens that it sees."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.counting.batch import Batch, Observer, zeros
from interp.counting.bits import count_positive, count_positive_by
from interp.counting.counters import (
    FiringCounter,
    firing_kind,
    firing_tensors,
    sums_and_squares,
)
from interp.models.experts import Rows
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.models.sites import hooked_at
from interp.results.words import FiresBy, Observed

MIXTURE_COUNTS = (
    "{} is a mixture of experts, of which only firing, moments and contexts are kept: leave out "
    "what else is to be kept."
)
"""The refusal of everything but the counters here."""


def firing_counter(
    model: NeuronModel, fires_by: FiresBy = "gate"
) -> "FiringCounter | ExpertFiringCounter":
    """What counts firing in a model, dense or a mixture."""
    mixed = isinstance(model, MixtureModel)
    return ExpertFiringCounter(model, fires_by) if mixed else FiringCounter(model, fires_by)


@runtime_checkable
class RowObserver(Observer, Protocol):
    """Receives the neurons of a mixture, too: [row neuron] and what the rows stand for."""

    def update_rows(
        self,
        kind: Observed,
        layer: int,
        values: Float[Tensor, "row neuron"],
        rows: Rows,
        batch: Batch,
    ) -> None: ...


class _OfRows:
    """What the counters of a mixture have in common."""

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        raise AssertionError("the neurons of a mixture come in rows")


class ExpertFiringCounter(_OfRows):
    """As `FiringCounter`, and counts the tokens routed to each expert."""

    def __init__(self, model: MixtureModel, fires_by: FiresBy = "gate") -> None:
        self.kinds: tuple[Observed, ...] = (hooked_at(firing_kind(fires_by)),)
        self._model = model
        self._activated = fires_by == "activation"
        self._fired = zeros(model, model.d_mlp)
        self._routed = zeros(model, model.layout.n_experts)
        self._tokens = torch.zeros(model.n_layers, dtype=torch.int64)

    def update_rows(
        self,
        kind: Observed,
        layer: int,
        values: Float[Tensor, "row neuron"],
        rows: Rows,
        batch: Batch,
    ) -> None:
        n_tokens = batch.keep.sum().cpu()
        values, rows = rows_kept(values, rows, batch)
        if self._activated:
            values = _activated(self._model, layer, values, rows)
        if rows.expert is None:
            fired, routed = count_positive(values), 0
        else:
            n_experts = rows.n_experts
            routed = torch.bincount(rows.expert, minlength=n_experts)
            fired = rearrange(
                count_positive_by(values, rows.expert, n_experts),
                "expert neuron -> (expert neuron)",
            )
        # Memory may have run out above, and the rows come again: all is added at once.
        self._fired[layer][rows.first : rows.first + len(fired)] += fired
        self._routed[layer][: rows.n_experts] += routed
        self._tokens[layer] += n_tokens * (rows.first == 0)

    def tensors(self) -> dict[str, Tensor]:
        routed = torch.stack([counts.cpu() for counts in self._routed])
        tokens = self._tokens[self._model.layers_with_neurons]
        return firing_tensors(self._fired, tokens) | {"firing.routed": routed}


class ExpertMomentsCounter(_OfRows):
    """As `MomentsCounter`, and counts the tokens that each neuron saw."""

    kinds: tuple[Observed, ...] = ("pre", "post")

    def __init__(self, model: MixtureModel) -> None:
        self._model = model
        self._sums = zeros(model, 4, model.d_mlp, dtype=torch.float64)
        self._seen = zeros(model, model.d_mlp)
        self._first = model.layers_with_neurons[0]
        self._tokens = 0

    def update_rows(
        self,
        kind: Observed,
        layer: int,
        values: Float[Tensor, "row neuron"],
        rows: Rows,
        batch: Batch,
    ) -> None:
        if kind == "pre" and not self._model.gated:
            return  # the output is act(gate) itself
        values, rows = rows_kept(values, rows, batch)
        values = _activated(self._model, layer, values, rows) if kind == "pre" else values
        sums_of = [
            (own, torch.stack(sums_and_squares(flat)), len(flat))
            for own, flat, _ in by_expert(values.float(), rows)
        ]
        for own, sums, n_tokens in sums_of:  # at once, as memory may have run out before
            if kind == "pre" or not self._model.gated:
                self._sums[layer][:2, own] += sums
            if kind == "post":
                self._sums[layer][2:, own] += sums
                self._seen[layer][own] += n_tokens
        if kind == "post" and layer == self._first and rows.first == 0:
            self._tokens += int(batch.keep.sum())

    def tensors(self) -> dict[str, Tensor]:
        return {
            "moments.sums": torch.stack([sums.cpu() for sums in self._sums], dim=1),
            "moments.tokens": torch.tensor([self._tokens]),
            "moments.seen": torch.stack([seen.cpu() for seen in self._seen]),
        }


OF_EXPERTS: Mapping[str, Callable[[MixtureModel], ExpertMomentsCounter]] = {
    "moments": ExpertMomentsCounter
}
"""What is counted in mixtures beside firing, by the names of `interp.counting.statistics`."""


def rows_kept(
    values: Float[Tensor, "row neuron"], rows: Rows, batch: Batch
) -> tuple[Float[Tensor, "row_kept neuron"], Rows]:
    """The rows of tokens that count, and what they stand for."""
    if batch.whole:
        return values, rows
    kept = rearrange(batch.keep, "batch pos -> (batch pos)")[rows.token]
    expert = None if rows.expert is None else rows.expert[kept]
    return values[kept], replace(rows, token=rows.token[kept], expert=expert)


def by_expert(
    values: Float[Tensor, "row neuron"], rows: Rows
) -> Iterator[tuple[slice, Float[Tensor, "own neuron"], Int[Tensor, " own"]]]:
    """The units of each expert that saw a token, their values and tokens; or of dense neurons."""
    sizes, width = [len(values)], values.shape[1]
    if rows.expert is not None:
        sizes = torch.bincount(rows.expert, minlength=rows.n_experts).tolist()
    parts = zip(values.split(sizes), rows.token.split(sizes), strict=True)
    for number, (own, token) in enumerate(parts):
        if len(own):
            first = rows.first + number * width
            yield slice(first, first + width), own, token


def _activated(
    model: MixtureModel, layer: int, gates: Float[Tensor, "row neuron"], rows: Rows
) -> Float[Tensor, "row neuron"]:
    (part,) = (part for part in model.parts[layer] if part.first == rows.first)
    return part.activated(gates)

"""Counting in mixtures of experts: each neuron on the tokens that it sees."""

from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.counting.batch import Batch, Observer, zeros
from interp.counting.bits import count_positive, count_positive_by
from interp.counting.counters import FiringCounter, firing_kind, firing_tensors
from interp.models.experts import Rows
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.results.words import FiresBy, Kind

MIXTURE_COUNTS = (
    "{} is a mixture of experts, of which only firing is counted: leave out what else is to be "
    "kept."
)
"""The refusal of everything but `ExpertFiringCounter`."""


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
        self, kind: Kind, layer: int, values: Float[Tensor, "row neuron"], rows: Rows, batch: Batch
    ) -> None: ...


class ExpertFiringCounter:
    """As `FiringCounter`, and counts the tokens routed to each expert."""

    def __init__(self, model: MixtureModel, fires_by: FiresBy = "gate") -> None:
        self.kinds: tuple[Kind, ...] = (firing_kind(fires_by),)
        self._parts = model.parts if fires_by == "activation" else None
        self._fired = zeros(model, model.d_mlp)
        self._routed = zeros(model, model.layout.n_experts)
        self._tokens = torch.zeros(model.n_layers, dtype=torch.int64)

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        raise AssertionError("the neurons of a mixture come in rows")

    def update_rows(
        self, kind: Kind, layer: int, values: Float[Tensor, "row neuron"], rows: Rows, batch: Batch
    ) -> None:
        expert = rows.expert
        if rows.first == 0:
            self._tokens[layer] += batch.keep.sum().cpu()
        if not batch.whole:
            kept = rearrange(batch.keep, "batch pos -> (batch pos)")[rows.token]
            values = values[kept]
            expert = None if expert is None else expert[kept]
        if self._parts is not None:
            (part,) = (part for part in self._parts[layer] if part.first == rows.first)
            values = part.activated(values)
        if expert is None:
            fired = count_positive(values)
        else:
            n_experts = rows.n_experts
            self._routed[layer][:n_experts] += torch.bincount(expert, minlength=n_experts)
            fired = rearrange(
                count_positive_by(values, expert, n_experts), "expert neuron -> (expert neuron)"
            )
        self._fired[layer][rows.first : rows.first + len(fired)] += fired

    def tensors(self) -> dict[str, Tensor]:
        routed = torch.stack([counts.cpu() for counts in self._routed])
        return firing_tensors(self._fired, self._tokens) | {"firing.routed": routed}

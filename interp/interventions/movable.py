"""Rows and columns of a checkpoint's matrices that belong to chosen units, and nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interp.interventions.baked_weights import Location, Weights
from interp.interventions.edits import Site
from interp.models.neuron_model import NeuronModel
from interp.results.words import Kind

_ROWS = ("pre", "pre_linear", "q", "k", "v", "attn_out")


@dataclass(frozen=True, kw_only=True, eq=False)
class Movable:
    """Some rows or columns of one stored matrix, or some numbers of one bias."""

    name: str
    """Of the tensor in the checkpoint."""

    axis: int
    """Of the tensor as it is stored."""

    ids: Int64[Tensor, " unit"]
    """Indices on that axis, in their order."""

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.name} {self.axis}"

    def read(self, tensor: Tensor) -> Float[Tensor, "..."]:
        """A copy of this part of the tensor, or of its gradient."""
        return tensor.detach().index_select(self.axis, self.ids.to(tensor.device))

    def write(self, tensor: Tensor, values: Float[Tensor, "..."]) -> None:
        """Replace this part of the tensor, in place; the rest keeps its bits."""
        ids = self.ids.to(tensor.device)
        tensor.detach().index_copy_(self.axis, ids, values.to(tensor))


def movables_of(weights: Weights, masks: Mapping[Site, Tensor]) -> tuple[Movable, ...]:
    """What belongs to the chosen units; the tensors of `weights` with such parts become copies.

    A neuron ("post") has a row of the gate, a row of the linear branch if there is one, and a
    column of the output projection. A unit of another site has the row that writes it. A row comes
    with its number in the bias, if the checkpoint has one.
    """
    indices: dict[tuple[str, int], list[Tensor]] = {}
    for site, mask in masks.items():
        _refuse(site)
        for layer in mask.any(dim=1).nonzero().flatten().tolist():
            ids = mask[layer].nonzero().flatten().cpu()
            for part in _parts(weights.model, site):
                location = weights.location(layer, part)
                for name, axis, chosen in _indices(weights, location, part, ids):
                    indices.setdefault((name, axis), []).append(chosen)
    for name, _ in indices:
        weights.tensors[name] = weights.tensors[name].clone()
    return tuple(
        Movable(name=name, axis=axis, ids=torch.cat(chosen).unique())
        for (name, axis), chosen in sorted(indices.items(), key=lambda entry: entry[0])
    )


def _parts(model: NeuronModel, site: Site) -> tuple[Kind, ...]:
    """The sites that the unit's projections write, or read in the case of "post"."""
    if site != "post":
        return (site,)  # type: ignore[return-value]  # `_refuse` has seen that it is one
    return ("pre", "pre_linear", "post") if model.gated else ("pre", "post")


def _indices(
    weights: Weights, location: Location, part: Kind, ids: Tensor
) -> Iterator[tuple[str, int, Tensor]]:
    """Name of a tensor, axis and indices; `weights` learns of it too, for the adapter."""
    changed = weights.changed_at(location)
    if part == "post":
        changed.columns.append(ids)
        yield location.weight, 0 if location.transposed else 1, ids
        return
    rows = location.rows[ids]
    changed.rows.append(rows)
    yield location.weight, 1 if location.transposed else 0, rows
    if location.bias in weights.tensors:
        yield location.bias, 0, rows


def _refuse(site: Site) -> None:
    if site != "post" and site not in _ROWS:
        raise ValueError(
            f"Units of {site} have no rows of their own to train: choose neurons (post) or units "
            f"of {', '.join(_ROWS)}."
        )

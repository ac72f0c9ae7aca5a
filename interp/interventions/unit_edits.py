"""Edits of one site in one layer, whose values are there for every token."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.results.words import Tokens


class UnitEdit:
    """As a hook: chosen units become factor · activation + shift.

    At "act" of a gated MLP, the shift is of act(gate), before the product with the linear branch.
    """

    def __init__(
        self,
        model: NeuronModel,
        layer: int,
        factor: float,
        shift: Float[Tensor, " unit"] | None,
        mask: Bool[Tensor, " unit"],
        tokens: Tokens,
        at_act: bool,
    ) -> None:
        device = model.layer_device(layer)
        self._model, self._factor = model, factor
        self._tokens: Tokens = tokens
        self._units = mask.to(device).nonzero().flatten()
        self._shift: Tensor | None = None
        if shift is not None:
            self._shift = shift.to(device)[self._units].to(model.dtype)
        self.times_linear = at_act and model.gated and shift is not None
        self._linear: Tensor | None = None

    def keep_linear(self, values: Tensor, hook: Any) -> None:
        """Record the linear branch: a constant c at act(gate) is c · linear at the output."""
        self._linear = values

    def __call__(self, values: Tensor, hook: Any) -> Tensor:
        edited = None
        if self._tokens != "all":
            edited = self._model.positions(values.shape[1], self._tokens)
            if not edited.any():
                return values
        flat = values
        if values.ndim == 4:
            flat = rearrange(values, "batch pos head unit -> batch pos (head unit)")
        units = self._units.to(flat.device)  # an offloaded layer may be stored elsewhere
        old = flat.index_select(-1, units)
        new = torch.zeros_like(old) if self._factor == 0 else self._factor * old
        if self._shift is not None:
            new = new + self._added(units, old)
        if edited is not None and not edited.all():
            new = new.where(rearrange(edited, "batch pos -> batch pos 1").to(new.device), old)
        return flat.index_copy(-1, units, new).view_as(values)

    def _added(self, units: Tensor, like: Tensor) -> Tensor:
        assert self._shift is not None
        shift = self._shift.to(like)
        if not self.times_linear:
            return shift
        assert self._linear is not None, "the linear branch is computed before the product"
        linear, self._linear = self._linear.index_select(-1, units), None
        return shift * linear

"""The edit of one site in one layer of a mixture of experts, whose neurons come in rows."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.models.experts import Rows
from interp.models.mixture_model import MixtureModel
from interp.results.words import Tokens


class RowEdit:
    """As a hook: chosen neurons become factor · activation + shift, on the tokens they see."""

    def __init__(
        self,
        model: MixtureModel,
        factor: float,
        shift: Float[Tensor, " neuron"] | None,
        mask: Bool[Tensor, " neuron"],
        tokens: Tokens,
    ) -> None:
        self._model, self._factor = model, factor
        self._shift, self._mask = shift, mask
        self._tokens: Tokens = tokens

    def __call__(self, values: Float[Tensor, "row neuron"], hook: Rows) -> Tensor | None:
        width = values.shape[1]
        own = slice(hook.first, hook.first + hook.n_experts * width)
        if not self._mask[own].any():
            return None
        chosen = hook.chosen(self._mask.to(values.device), width)
        if self._tokens != "all":
            edited = rearrange(self._edited(hook).to(values.device), "row -> row 1")
            chosen = chosen & edited
        new = torch.zeros_like(values) if self._factor == 0 else self._factor * values
        if self._shift is not None:
            new = new + hook.chosen(self._shift.to(values), width)
        return new.where(chosen, values)

    def _edited(self, rows: Rows) -> Bool[Tensor, " row"]:
        """Whether a row's token is one of those to edit."""
        assert rows.shape is not None, "every layer says how many texts and positions it got"
        edited = self._model.positions(rows.shape[1], self._tokens).expand(rows.shape)
        return rearrange(edited, "batch pos -> (batch pos)")[rows.token.cpu()]

"""Edits of one site in one layer of a mixture of experts: neurons in rows, weights of routing."""

import torch
from einops import rearrange, reduce
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
        shift = None if self._shift is None else hook.chosen(self._shift.to(values), width)
        return self._replaced(values, chosen, shift)

    def _replaced(self, values: Tensor, chosen: Tensor, shift: Tensor | None) -> Tensor:
        new = torch.zeros_like(values) if self._factor == 0 else self._factor * values
        return (new if shift is None else new + shift).where(chosen, values)

    def _edited(self, rows: Rows) -> Bool[Tensor, " row"]:
        """Whether a row's token is one of those to edit."""
        assert rows.shape is not None, "every layer says how many texts and positions it got"
        edited = self._model.positions(rows.shape[1], self._tokens).expand(rows.shape)
        return rearrange(edited, "batch pos -> (batch pos)")[rows.token.cpu()]


class RoutingEdit(RowEdit):
    """The same for the weights with which experts are added; what one loses goes to none."""

    def __call__(self, values: Float[Tensor, "token rank"], hook: Rows) -> Tensor:
        assert hook.expert is not None, "the experts of each token come with their weights"
        chosen = self._mask.to(values.device)[hook.expert]
        if self._tokens != "all":
            chosen = chosen & rearrange(self._edited(hook).to(values.device), "token -> token 1")
        shift = None if self._shift is None else self._shift.to(values)[hook.expert]
        return self._replaced(values, chosen, shift)


class ReroutingEdit(RoutingEdit):
    """The same, and what one expert loses goes to the token's others, in proportion."""

    def __call__(self, values: Float[Tensor, "token rank"], hook: Rows) -> Tensor:
        new = super().__call__(values, hook)
        lost = reduce(values - new, "token rank -> token 1", "sum")
        kept = new.where(new == values, 0.0)
        left = reduce(kept, "token rank -> token 1", "sum")
        return new + torch.where(left == 0, 0.0, kept / left * lost)

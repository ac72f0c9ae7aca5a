"""`NeuronModel` for a HookedTransformer, the model class of TransformerLens 1 to 3."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.models.running import Ids, Mask, Pass


class HookedTransformerModel(NeuronModel):
    """Wraps a HookedTransformer of TransformerLens 3.9, which runs its own modules."""

    @property
    def _processing(self) -> str:
        """HookedTransformer keeps no record of this, so it is inferred from the weights."""
        steps = []
        if (self.bridge.cfg.normalization_type or "").endswith("Pre"):
            steps.append("folded layer norms")
        if _is_centered(self.w_out(0)):
            steps.append("centred writing weights")  # spelled as in stored fingerprints
        if _is_centered(self.bridge.W_U):
            steps.append("centred unembedding")
        return ", ".join(steps) or "none"

    def _hidden(self, ids: Ids, mask: Mask | None) -> Float[Tensor, "batch pos _"]:
        attended = self._padded("right", torch.ones_like(ids) if mask is None else mask)
        with self._tracked_pass(Pass(attended)), self.frozen():
            return self.bridge(
                ids.to(self.device), stop_at_layer=self.n_layers, attention_mask=attended
            )

    def _unembed(self, hidden: Float[Tensor, "row _"]) -> Float[Tensor, "row vocab"]:
        states = rearrange(hidden, "row d_model -> 1 row d_model")
        with self.frozen():
            return self.bridge(states, start_at_layer=self.n_layers, return_type="logits")[0]

    def logits(
        self, ids: Ids, mask: Mask | None = None, keep: int = 0
    ) -> Float[Tensor, "batch _ vocab"]:
        attended = self._padded("right", torch.ones_like(ids) if mask is None else mask)
        with self._tracked_pass(Pass(attended)), self.frozen():
            logits = self.bridge(ids.to(self.device), return_type="logits", attention_mask=attended)
        return logits[:, -keep:]

    def continuations(self, ids: Ids, mask: Mask, **settings: Any) -> Int[Tensor, "batch _"]:
        """See `NeuronModel.continuations`; `settings` go to HookedTransformer's `generate`, which
        recognizes padding by its token id."""
        tokenizer, padding = self.bridge.tokenizer, self._padded("left", mask) == 0
        if tokenizer is None and padding.any():
            raise ValueError(
                f"{self.name} has no tokenizer, so HookedTransformer cannot distinguish padding "
                "from text: give it one, or generate from prompts of equal length."
            )
        ids = ids.to(self.device)
        if tokenizer is not None:
            ids = ids.masked_fill(padding, tokenizer.pad_token_id)
            if not torch.equal((ids != tokenizer.pad_token_id).cumsum(1) == 0, padding):
                raise ValueError("A prompt starts with the padding token itself: leave it out.")
        settings = {
            "do_sample": False,
            "stop_at_eos": getattr(tokenizer, "eos_token_id", None) is not None,
            "verbose": False,
            **settings,
        }
        with self._tracked_pass(Pass(prompt=ids.shape[1], generates=True)):
            return self.bridge.generate(ids, prepend_bos=False, padding_side="left", **settings)


def _is_centered(weight: Float[Tensor, "rows columns"]) -> bool:
    """Whether each row sums to zero, as trained weights never do unless processed."""
    return bool(weight.float().mean(-1).abs().max() < 1e-3 * weight.float().std())

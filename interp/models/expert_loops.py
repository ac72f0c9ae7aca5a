"""Experts that transformers computes by loops of their own, not by its ALL_EXPERTS_FUNCTIONS."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers.integrations import moe


class Loop(ABC):
    """A block that routes tokens and computes experts, with what those of ALL_EXPERTS_FUNCTIONS
    have.

    `forward` is the block's own, but each expert is computed on its own tokens alone, by `compute`.
    """

    has_gate = is_concatenated = True
    has_bias = has_post_expert_norm = is_transposed = _is_expert_parallel = False
    weighs_output = True
    """Whether a token's weights of routing multiply what its experts write, or what they read."""

    _apply_gate = moe._default_apply_gate
    act_fn: Any
    num_experts: Any
    gate_up_proj: Any
    down_proj: Any

    def __init__(self, block: Any) -> None:
        self.block = block

    def read(self, state: Float[Tensor, " d_model"], expert: int) -> Float[Tensor, " d_model"]:
        """What an expert reads of a token's hidden state."""
        return state

    @abstractmethod
    def forward(self, compute: Callable[..., Tensor], hidden_states: Tensor) -> Any: ...


class Llama4(Loop):
    """Llama 4 computes every expert on every token; of tokens not routed to it, on zeros."""

    is_transposed = True
    weighs_output = False
    num_experts = property(lambda self: self.block.experts.num_experts)
    gate_up_proj = property(lambda self: self.block.experts.gate_up_proj)
    down_proj = property(lambda self: self.block.experts.down_proj)
    act_fn = property(lambda self: self.block.experts.act_fn)

    def read(self, state: Float[Tensor, " d_model"], expert: int) -> Float[Tensor, " d_model"]:
        weights, _ = self.block.router(rearrange(state, "d_model -> 1 d_model"))
        return weights[0, expert] * state

    def forward(
        self, compute: Callable[..., Tensor], hidden_states: Float[Tensor, "... d_model"]
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token expert"]]:
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights, scores = self.block.router(hidden)
        expert = scores.topk(self.block.top_k, dim=1).indices
        routed = compute(self, hidden, expert, weights.gather(1, expert))
        return self.block.shared_expert(hidden) + routed, scores


class JetMoe(Loop):
    """JetMoE adds one bias to the sum of a token's experts."""

    num_experts = property(lambda self: self.block.router.num_experts)
    gate_up_proj = property(lambda self: self.block.input_linear.weight)
    down_proj = property(lambda self: self.block.output_linear.weight)
    act_fn = property(lambda self: self.block.activation)

    def forward(
        self, compute: Callable[..., Tensor], hidden_states: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        hidden = rearrange(hidden_states, "batch pos d_model -> (batch pos) d_model")
        scores, expert = self.block.router(hidden)[-1].topk(self.block.router.top_k, dim=1)
        weight = torch.softmax(scores, dim=1).type_as(hidden)
        routed = compute(self, hidden, expert, weight)
        return routed.view_as(hidden_states) + self.block.bias


LOOPS: Mapping[str, type[Loop]] = {"Llama4TextMoe": Llama4, "JetMoeMoE": JetMoe}
"""By the class of the block in transformers; `sites.WITH_LOOP` names them too."""

"""The names of hooks in TransformerLens, by site; this module imports no model."""

from collections.abc import Iterable
from typing import Any

from interp.results.words import Kind, UnitKind

HOOKS: dict[str, str] = {
    "pre": "mlp.hook_pre",
    "pre_linear": "mlp.hook_pre_linear",
    "post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "routing": "mlp.hook_routing",
}
"""By kind of site; the same in every layer."""


def hook_name(layer: int, kind: str) -> str:
    return f"blocks.{layer}.{HOOKS.get(kind)}"


def hooked_at(kind: UnitKind) -> Kind:
    """The site that holds the values of these units."""
    return "z" if kind == "head" else kind


def share_weights(layers: Iterable[Any]) -> bool:
    """Whether layers have matrices in common, as the hybrid layers of Zamba have one MLP."""
    matrices = [{id(p) for p in layer.parameters() if p.ndim >= 2} for layer in layers]
    return len(set[int]().union(*matrices)) < sum(map(len, matrices))


def is_routed(module: Any) -> bool:
    """Whether a module is experts that transformers computes by its ALL_EXPERTS_FUNCTIONS."""
    known = vars(module)  # a bridge would pass the question on to the module that it wraps
    return {"num_experts", "has_gate", "is_transposed"} <= known.keys()

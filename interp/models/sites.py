"""The names of hooks in TransformerLens, by site; this module imports no model."""

from collections.abc import Iterable
from typing import Any

from interp.results.words import Kind, Observed, UnitKind

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


def hooked_at(kind: UnitKind | Observed) -> Kind:
    """The site whose values these are, or are computed from."""
    return "z" if kind == "head" else "pre" if kind == "act" else kind


def sites_of(observed: Iterable[Observed]) -> tuple[Kind, ...]:
    """The sites that hold these values, each once."""
    sites: dict[Kind, None] = {hooked_at(value): None for value in observed}
    return tuple(sites)


def share_weights(layers: Iterable[Any]) -> bool:
    """Whether layers have matrices in common, as the hybrid layers of Zamba have one MLP."""
    matrices = [{id(p) for p in layer.parameters() if p.ndim >= 2} for layer in layers]
    return len(set[int]().union(*matrices)) < sum(map(len, matrices))


WITH_LOOP = frozenset({"JetMoeMoE", "Llama4TextMoe"})
"""Classes of transformers whose experts have a loop of their own: those in `expert_loops`."""


def is_routed(module: Any) -> bool:
    """Whether a module is experts that transformers computes by its ALL_EXPERTS_FUNCTIONS, or a
    block with a loop of its own."""
    known = vars(module)  # a bridge would pass the question on to the module that it wraps
    return {"num_experts", "has_gate", "is_transposed"} <= known.keys() or has_loop(module)


def has_loop(module: Any) -> bool:
    return type(module).__name__ in WITH_LOOP

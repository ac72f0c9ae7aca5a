"""The names of hooks in TransformerLens, by site; this module imports no model."""

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

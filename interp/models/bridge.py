"""A TransformerBridge around a Hugging Face model, with or without hooks in its attention."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from interp.models.plain_adapter import components, is_registered, parts_of, register
from interp.results.words import Attention


def bridge_of(model: Any, name: str | Path, attention: Attention) -> Any:
    """A TransformerBridge around a Hugging Face model."""
    implementation, architecture = model.config._attn_implementation, type(model).__name__

    def build() -> Any:
        try:
            return build_bridge_from_module(
                model,
                architecture,
                hf_config=model.config,
                model_name=str(name),
                post_adapter_hook=partial(_keep_native_attention, model)
                if attention == "native"
                else None,
            )
        except TypeError as error:
            if "BridgeConfig" not in str(error):
                raise
            raise ValueError(
                f"The config of {name} ({architecture}) does not give layers and widths as that of "
                "a text model, so its neurons cannot be named: use a model in "
                "docs/architectures.md."
            ) from None

    try:
        if is_registered(architecture):  # from the modules of another model
            register(model, architecture)
        bridge = build()
    except (ValueError, ImportError) as error:  # or one that needs packages for pictures
        if isinstance(error, ValueError) and "Unsupported architecture" not in str(error):
            raise
        register(model, architecture)
        bridge = build()
    if attention == "hooked" and is_registered(architecture):
        raise ValueError(
            f"TransformerLens has no adapter for {architecture}, so nothing inside its attention "
            'has a name: load it with attention="native".'
        )
    if model.config._attn_implementation != implementation:  # some adapters switch it to eager
        model.set_attn_implementation(implementation)
    work_around(bridge)
    return bridge


def with_tokenizer(bridge: Any, tokenizer: Any) -> Any:
    """The bridge with a tokenizer as it is; TransformerLens's own loader would replace it."""
    first, *rest = tokenizer("a")["input_ids"]
    bridge.tokenizer = tokenizer
    bridge.cfg.tokenizer_prepends_bos = bool(rest) and first == tokenizer.bos_token_id
    bridge.cfg.tokenizer_appends_eos = bool(rest) and rest[-1] == tokenizer.eos_token_id
    return bridge


def work_around(bridge: Any) -> None:
    """Add the hooks that a bridge needs where other packages fall short."""
    pass_cache_to_attention(bridge)
    pass_rows_to_unembedding(bridge)


def pass_cache_to_attention(bridge: Any) -> None:
    """Give a bridge's own attention the keys and values cached by earlier passes.

    Since transformers 5.24, models pass them to attention as `cache`. The attention that
    TransformerLens 4.3 computes itself looks for `past_key_values`, finds nothing, and generates
    each token as if it were the first.
    """
    for module in bridge.modules():
        if (
            not isinstance(module, AttentionBridge)
            or type(module).forward is AttentionBridge.forward
        ):
            continue  # Hugging Face's own attention accepts `cache`
        if _rename_cache not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_rename_cache, with_kwargs=True)


def _rename_cache(module: Any, args: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    renamed = {"past_key_values" if name == "cache" else name: settings[name] for name in settings}
    return args, renamed


def pass_rows_to_unembedding(bridge: Any) -> None:
    """Give a bridge's unembedding its rows as one piece of memory.

    Models slice the last positions out of their states. On a CPU, torch multiplies a slice in
    bfloat16 by a copy of the weights for each row, a hundred times as slow, and when memory runs
    out over it, goes on without its fast kernels.
    """
    unembed = getattr(bridge, "unembed", None)
    if unembed is not None and _in_one_piece not in unembed._forward_pre_hooks.values():
        unembed.register_forward_pre_hook(_in_one_piece)


def _in_one_piece(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(states.contiguous() for states in args)


def _keep_native_attention(model: Any, adapter: Any) -> None:
    """Bridge only the embedding, MLPs and unembedding; attention and norms stay Hugging Face's.

    The full bridge recomputes attention in Python to expose its internals. The structure changed
    here is undocumented, hence the tests on every architecture.
    """
    # Asked for, attention weights make Falcon's attention see later tokens.
    adapter.supports_hf_output_attentions = False
    blocks = adapter.component_mapping.get("blocks")
    if blocks is None or "mlp" not in blocks.submodules:
        with suppress(ValueError):  # if there is no MLP, NeuronModel says so
            parts = parts_of(model, type(model).__name__)
            adapter.component_mapping = components(parts, adapter.cfg)
        return
    # Gemma-2 and 3 norm the MLP's output, in OLMo-hybrid some layers do; Granite scales it, at a
    # hook of the block itself.
    outputs = blocks.hook_aliases.get("hook_mlp_out", "mlp.hook_out")
    outputs = [outputs] if isinstance(outputs, str) else outputs
    kept = {"mlp", *(target.split(".")[0] for target in outputs)}
    for part in set(blocks.submodules) - kept:
        blocks.submodules.pop(part)
        blocks._modules.pop(part, None)

    def first_part(target: str | list[str]) -> str:
        return (target if isinstance(target, str) else target[0]).split(".")[0]

    blocks.hook_aliases = {
        alias: target
        for alias, target in blocks.hook_aliases.items()
        if first_part(target) in {"hook_in", "hook_out", *kept}
    }
    for part in set(adapter.component_mapping) - {"embed", "pos_embed", "blocks", "unembed"}:
        adapter.component_mapping.pop(part)

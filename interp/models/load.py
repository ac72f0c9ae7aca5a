"""Open a model: the one file that imports TransformerLens.

What comes out is a `NeuronModel`, by which everything else sees it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # what torch calls a refusal to run what a file says
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from interp.models.hooked_transformer import HookedTransformerModel
from interp.models.hub import check_reachable
from interp.models.neuron_model import NeuronModel, refuse_experts
from interp.results.words import Attention

try:
    from transformer_lens import HookedTransformer
except ImportError:  # removed in TransformerLens 4.0
    HookedTransformer = None

_BAR_AFTER = 2.0  # seconds
_SOURCE_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")


def load(
    name: str | Path,
    *,
    attention: Attention = "native",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> NeuronModel:
    """Open "babel" (the model in this package), a local folder, or a model on the Hugging Face hub.

    `attention="native"` keeps Hugging Face's fused attention: the speed of the bare model, without
    sites inside attention. "hooked" has those too, and is slower, more so on long texts. `dtype`
    None: as stored. `device` None: the GPU if there is one. `options` go to `from_pretrained`, such
    as `revision`, `quantization_config`, or `device_map` to spread a model over devices. Code that
    comes with a model is not run unless you say so: `trust_remote_code=True`.

    >>> interp.load("babel", dtype=torch.float32)
    NeuronModel('babel': 6 layers of 2048 neurons)
    """
    if attention not in get_args(Attention):
        raise ValueError(f'attention is "native" or "hooked", not {attention!r}.')
    if device is not None and "device_map" in options:
        raise ValueError("Give device or device_map, not both: device_map places every layer.")
    _check_device(device)
    source = _find(name)
    options.setdefault("trust_remote_code", False)  # None would ask, and wait for an answer
    where = {key: options[key] for key in _SOURCE_OPTIONS if key in options}
    refuse_experts(name, _read_config(name, **where))  # before gigabytes are read
    if attention == "hooked":
        options["attn_implementation"] = "eager"  # scores are only there to see without fusing
    tokenizer = _read_tokenizer(name, source, where)
    try:
        with _late_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype or "auto", output_loading_info=True, **options
            )
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise ValueError(f"The weights of {name} cannot be read: {error}") from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"The weights of {name} have other shapes than its config.json says: copy both from "
            "one checkpoint."
        ) from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} of the weights that its config.json asks for, such as "
            f"{missing[0]}, which transformers would fill with random numbers: copy the whole "
            "checkpoint again."
        )
    if not {"device_map", "quantization_config"} & options.keys():
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    parameters = dict(model.named_parameters())  # under the names of the checkpoint
    bridge = _bridge(model, name, attention)
    first, *rest = tokenizer("a")["input_ids"]
    bridge.tokenizer = tokenizer  # as it is: TransformerLens' own loader would replace it
    bridge.cfg.tokenizer_prepends_bos = bool(rest) and first == tokenizer.bos_token_id
    bridge.cfg.tokenizer_appends_eos = bool(rest) and rest[-1] == tokenizer.eos_token_id
    return NeuronModel(bridge, tokenizer, str(name), attention, parameters)


def wrap(model: Any, tokenizer: Any = None, name: str | None = None) -> NeuronModel:
    """Use a TransformerBridge you hold already, or a HookedTransformer of TransformerLens 3.9.

    The model is frozen and put in evaluation mode. The tokenizer that TransformerLens made for it
    may have gained special tokens: pass the original where that matters.

    >>> interp.wrap(model.bridge, model.tokenizer, name="mine")
    NeuronModel('mine': 6 layers of 2048 neurons)
    """
    if isinstance(model, TransformerBridge):
        _pass_on_the_cache(model)
        kind, holder = NeuronModel, model.original_model
        attention: Attention = "hooked" if "blocks.0.attn.hook_q" in model.hook_dict else "native"
    elif HookedTransformer is not None and isinstance(model, HookedTransformer):
        kind, holder, attention = HookedTransformerModel, model, "hooked"
    else:
        raise ValueError(
            f"wrap takes a TransformerBridge or a HookedTransformer, not {type(model).__name__}: "
            "open other models with load(name)."
        )
    parameters = {
        key.replace("_original_component.", ""): value for key, value in holder.named_parameters()
    }
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    return kind(model, tokenizer, name or model.cfg.model_name, attention, parameters)


def outline(
    name: str | Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> NeuronModel:
    """The model as its config alone describes it, with shapes and no numbers, in seconds.

    It has layers, widths, sites and the refusals of `load`, but no tokenizer, and cannot be run.

    >>> interp.models.outline("babel")
    NeuronModel('babel': 6 layers of 2048 neurons)
    """
    config = _read_config(name, trust_remote_code=trust_remote_code)
    refuse_experts(name, config)
    kept = dtype or getattr(config, "dtype", None) or torch.float32
    with FakeTensorMode():  # not the meta device, on which some adapters refuse to split weights
        model = AutoModelForCausalLM.from_config(
            config, dtype=kept, trust_remote_code=trust_remote_code
        )
        parameters = dict(model.named_parameters())
        return NeuronModel(_bridge(model, name, "native"), None, str(name), "native", parameters)


# ---------------------------------------------------------------- the bridge


def _bridge(model: Any, name: str | Path, attention: Attention) -> Any:
    """TransformerLens' bridge around a Hugging Face model."""
    implementation = model.config._attn_implementation
    bridge = build_bridge_from_module(
        model,
        type(model).__name__,
        hf_config=model.config,
        model_name=str(name),
        post_adapter_hook=_leave_attention_alone if attention == "native" else None,
    )
    if model.config._attn_implementation != implementation:  # some adapters switch it to eager
        model.set_attn_implementation(implementation)
    _pass_on_the_cache(bridge)
    return bridge


def _pass_on_the_cache(bridge: Any) -> None:
    """Let a bridge's own attention see keys and values that are kept from earlier passes.

    Since transformers 5.24 models hand them to attention as `cache`. The attention that
    TransformerLens 4.3 computes itself looks for `past_key_values`, finds nothing, and generates
    each token as if it were the first.
    """
    for module in bridge.modules():
        if (
            not isinstance(module, AttentionBridge)
            or type(module).forward is AttentionBridge.forward
        ):
            continue  # Hugging Face's own attention knows what it is given
        if _rename_cache not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_rename_cache, with_kwargs=True)


def _rename_cache(module: Any, args: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    renamed = {"past_key_values" if name == "cache" else name: settings[name] for name in settings}
    return args, renamed


def _leave_attention_alone(adapter: Any) -> None:
    """Keep embedding, MLPs and unembedding of a bridge; attention and norms stay Hugging Face's.

    The full bridge computes attention anew, in Python, to show its inside. What is taken out here
    is undocumented structure, hence the tests on every architecture.
    """
    blocks = adapter.component_mapping.get("blocks")
    if blocks is None or "mlp" not in blocks.submodules:
        return  # NeuronModel refuses it with a sentence
    last = blocks.hook_aliases["hook_mlp_out"].split(".")[0]  # Gemma-2 and 3 norm the MLP's output
    for part in set(blocks.submodules) - {"mlp", last}:
        blocks.submodules.pop(part)
        blocks._modules.pop(part, None)

    def starts(target: str | list[str]) -> str:
        return (target if isinstance(target, str) else target[0]).split(".")[0]

    blocks.hook_aliases = {
        alias: target
        for alias, target in blocks.hook_aliases.items()
        if starts(target) in ("hook_in", "hook_out", "mlp", last)
    }
    for part in set(adapter.component_mapping) - {"embed", "pos_embed", "blocks", "unembed"}:
        adapter.component_mapping.pop(part)


# ---------------------------------------------------------------- its files


def _find(name: str | Path) -> str:
    """The folder or hub name that Hugging Face should open."""
    if name == "babel":
        folder = Path(__file__).parents[1] / "babel" / "model"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The babel model is not in this installation ({folder} is missing): reinstall "
                "polyneuron, or name a local folder or a hub model."
            )
        return str(folder)
    path = Path(name).expanduser()
    if str(name).startswith((".", "/", "~")) and not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not a folder: name a folder that holds a Hugging Face model."
        )
    return str(path) if path.is_dir() else str(name)


def _check_device(device: str | torch.device | None) -> None:
    """Refuse a device that is not there before gigabytes are read."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        why = str(error).splitlines()[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"The device {str(device)!r} cannot be used here ({why}): give cpu, or a GPU that "
            "torch sees, such as cuda:0, or leave it out."
        ) from None


def _read_config(name: str | Path, **where: Any) -> Any:
    source = _find(name)
    file = Path(source) / "config.json"
    if Path(source).is_dir() and not file.is_file():
        raise FileNotFoundError(
            f"{source} holds no config.json, so it is no Hugging Face model: name a folder that "
            "is one."
        )
    if not Path(source).is_dir() and not where.get("local_files_only"):
        about = {key: where[key] for key in ("revision", "token", "cache_dir") if key in where}
        check_reachable(source, "config.json", **about)
    try:
        return AutoConfig.from_pretrained(source, **where)
    except OSError as error:
        why = str(error).strip().splitlines()[0]
        if file.is_file():
            raise ValueError(f"{file} cannot be read ({why}) Copy it again.") from None
        raise OSError(
            f"{name} is no folder here, and was not had from the hub ({why}) Check the name and "
            "the network, or give a folder that holds the model."
        ) from None


def _read_tokenizer(name: str | Path, source: str, where: Mapping[str, Any]) -> Any:
    tokenizer, why = None, "it gives no token for the letter a"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
    except Exception as error:  # whatever a damaged file provokes
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if tokenizer is None or not tokenizer("a")["input_ids"]:
        raise ValueError(
            f"The tokenizer of {name} cannot be read ({why}): put the files of its tokenizer "
            "beside the weights."
        )
    return tokenizer


@contextmanager
def _late_bars() -> Iterator[None]:
    """Within the block, a bar of transformers shows itself only where the work takes its time.

    A small model is there before a bar could be read, and in a notebook every bar stays. That it is
    small cannot be seen from a name on the hub, so time decides. Bars of downloads are others.
    """
    hook_into_bars = getattr(transformers_logging, "set_tqdm_hook", None)
    if hook_into_bars is None:  # before transformers 5, where one file of weights had no bar
        yield
        return

    def late(make: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        named = {"delay": _BAR_AFTER, **named}
        return make(*positional, **named) if before is None else before(make, positional, named)

    before = hook_into_bars(late)
    try:
        yield
    finally:
        hook_into_bars(before)

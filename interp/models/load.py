"""Open a model as a `NeuronModel`, the interface that all other code uses.

Only this file, `bridge` and `plain_adapter` import TransformerLens.
"""

import copy
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError  # torch raises it when it refuses to run code in a file
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)

from interp.models.adapters import adapter_in
from interp.models.bridge import bridge_of, with_tokenizer, work_around
from interp.models.gguf_checkpoint import checkpoint_of, gguf_in
from interp.models.gguf_reading import read_config, read_header
from interp.models.hooked_transformer import HookedTransformerModel
from interp.models.hub import check_reachable
from interp.models.mixture_model import model_class
from interp.models.neuron_model import NeuronModel, n_experts_of, refuse_experts
from interp.models.sites import is_routed
from interp.results.bars import bars_of_transformers
from interp.results.words import Attention

try:
    from transformer_lens import HookedTransformer
except ImportError:  # removed in TransformerLens 4.0
    HookedTransformer = None

_SOURCE_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")


def load(
    name: str | Path,
    *,
    attention: Attention = "native",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    cache: bool = True,
    **options: Any,
) -> NeuronModel:
    """Open "babel" (in this package), a local folder, a GGUF file, or a model on the hub.

    A folder with a LoRA adapter alone is merged into the model that the adapter was trained on.

    `attention="native"` keeps Hugging Face's fused attention: the speed of the bare model, but no
    sites inside attention. "hooked" has those too but is slower, especially on long texts. `dtype`
    None: as stored, or float32 for bfloat16 on a CPU without instructions for it, which is a
    hundred times as slow in it; the model and its results say which, and why. Where 16 bits are
    fast, rounding still decides the sign of about 2 gates in 1,000. `device` None: the
    GPU if there is one. `options` go to `from_pretrained`, such as `revision`,
    `quantization_config`, or `device_map` to spread a model over devices. Code that comes with a
    model runs only with `trust_remote_code=True`. A GGUF file is converted to a checkpoint in
    float32, which `cache` keeps for the next time, in ~/.cache/polyneuron or in the folder that the
    variable POLYNEURON_CACHE names.

    >>> interp.load("babel", dtype=torch.float32)
    NeuronModel('babel': 6 layers of 2048 neurons, float32, as requested)
    """
    if attention not in get_args(Attention):
        raise ValueError(f'attention is "native" or "hooked", not {attention!r}.')
    if device is not None and "device_map" in options:
        raise ValueError("Give device or device_map, not both: device_map places every layer.")
    _check_device(device)
    if not isinstance(name, str | Path):
        raise ValueError(
            f"load takes a name or a folder, not a {type(name).__name__}: give a model in memory "
            "to wrap(model, tokenizer)."
        )
    if adapter := adapter_in(Path(name).expanduser()):
        settings: dict[str, Any] = {"dtype": dtype, "device": device, "cache": cache}
        model = load(adapter.base, attention=attention, **settings, **options)
        adapter.merge_into(model._parameters)
        model.name = str(name)
        return model
    with _source(name, cache) as (source, facts):
        return _load(name, source, facts, attention, dtype, device, options)


def _load(
    name: str | Path,
    source: str,
    facts: Mapping[str, str],
    attention: Attention,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    options: dict[str, Any],
) -> NeuronModel:
    options.setdefault("trust_remote_code", False)  # None would ask, and wait for an answer
    source_options = {key: options[key] for key in _SOURCE_OPTIONS if key in options}
    config = _read_config(name, source, **source_options)
    _check_config(name, config)  # before gigabytes are read
    placed = bool({"device_map", "quantization_config"} & options.keys())  # by transformers
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    emulated = not placed and _emulates_bfloat16(device)
    why = "as requested" if dtype else "as a GGUF file is converted" if facts else "as stored"
    if dtype is None and emulated and config.get_text_config().dtype == torch.bfloat16:
        dtype, why = torch.float32, "stored in bfloat16, for which this CPU has no instructions"
    if attention == "hooked":
        options["attn_implementation"] = "eager"  # fused attention never forms its scores
    tokenizer = _read_tokenizer(name, source, source_options)
    try:
        with bars_of_transformers():
            loaded: Any = class_of(config, name).from_pretrained(
                source, dtype=dtype or "auto", output_loading_info=True, **options
            )
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise ValueError(
            f"The weights of {name} cannot be read ({error}): copy or download them again."
        ) from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"The weights of {name} do not have the shapes in its config.json: copy both from the "
            "same checkpoint."
        ) from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} of the weights in its config.json, such as {missing[0]}, "
            "which transformers would fill with random numbers: copy the whole checkpoint again."
        )
    if not placed:
        model.to(device)
    parameters = dict(model.named_parameters())  # under the names of the checkpoint
    bridge = with_tokenizer(bridge_of(model, name, attention), tokenizer)
    bridge.requires_grad_(False)
    if emulated and model.dtype == torch.bfloat16:
        why += "; slow: this CPU has no instructions for it"
    precision = f"{str(model.dtype).removeprefix('torch.')}, {why}"
    cls = model_class(name, bridge)
    opened = cls(bridge, tokenizer, str(name), attention, parameters, facts, precision)
    _check_reads_text(opened, config)
    return opened


def class_of(config: Any, name: str | Path) -> Any:
    """The class of transformers that opens a model: one for text, or for text and pictures.

    The second kind is given text alone.
    """
    remote = getattr(config, "auto_map", {}) or {}  # code that comes with the model
    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in kind._model_mapping or kind.__name__ in remote:
            return kind
    raise ValueError(
        f"{name} ({config.model_type}) does not continue text: transformers has neither a causal "
        "language model of this kind nor one for pictures and text. Use a decoder, such as Llama, "
        "Gemma or Qwen."
    )


def _emulates_bfloat16(device: torch.device) -> bool:
    """Whether the device is a CPU without AMX and AVX-512 BF16.

    There bfloat16 takes a hundred times as long as float32.
    """
    return _is_x86(device) and not _has_bfloat16()


def is_faster_in_bfloat16(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model is in float32 on an x86 CPU with instructions for bfloat16.

    There bfloat16 is up to three times as fast. Nothing is known of other CPUs.
    """
    return dtype == torch.float32 and _is_x86(device) and _has_bfloat16()


def _is_x86(device: torch.device) -> bool:
    return device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")


def _has_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def wrap(model: Any, tokenizer: Any = None, name: str | None = None) -> NeuronModel:
    """Use a model that is open: of TransformerLens (a bridge, or a HookedTransformer of 3.9), of
    Hugging Face, or of PEFT.

    The model is put in evaluation mode. TransformerLens may have added special tokens to its
    tokenizer, and made it put one before every text, which bos="auto" then does too: pass the
    original tokenizer if that matters. Every function takes a bridge as it is, too. A Hugging Face
    model needs its tokenizer, and has its modules wrapped in place; of a PEFT model a copy is
    merged, since its layers hide their weights.

    >>> interp.wrap(model.bridge, model.tokenizer, name="mine")
    NeuronModel('mine': 6 layers of 2048 neurons, float32)
    """
    if callable(getattr(model, "merge_and_unload", None)):
        model = copy.deepcopy(model).merge_and_unload()
    if isinstance(model, PreTrainedModel):
        return _wrap_hugging_face(model, tokenizer, name)
    if isinstance(model, TransformerBridge):
        work_around(model)
        cls, module = model_class(name or model.cfg.model_name, model), model.original_model
        attention: Attention = "hooked" if "blocks.0.attn.hook_q" in model.hook_dict else "native"
    elif HookedTransformer is not None and isinstance(model, HookedTransformer):
        cls, module, attention = HookedTransformerModel, model, "hooked"
    else:
        raise ValueError(
            "wrap takes a TransformerBridge, a HookedTransformer, or a Hugging Face or PEFT model, "
            f"not {type(model).__name__}: open other models with load(name)."
        )
    parameters = {
        key.replace("_original_component.", ""): value for key, value in module.named_parameters()
    }
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    return cls(model, tokenizer, name or model.cfg.model_name, attention, parameters)


def _wrap_hugging_face(model: PreTrainedModel, tokenizer: Any, name: str | None) -> NeuronModel:
    name = name or model.name_or_path or type(model).__name__
    if tokenizer is None:
        raise ValueError(
            f"{name} is a Hugging Face model, which does not hold its tokenizer: wrap(model, "
            "AutoTokenizer.from_pretrained(...))."
        )
    _check_experts(name, model)
    parameters = dict(model.named_parameters())  # under the names of the checkpoint
    bridge = with_tokenizer(bridge_of(model, name, "native"), tokenizer)
    opened = model_class(name, bridge)(bridge, tokenizer, name, "native", parameters)
    _check_reads_text(opened, model.config)
    return opened


def _check_reads_text(model: NeuronModel, config: Any) -> None:
    """Refuse a model of pictures and text that reads no text without a picture, or another input.

    It is tried on one token, since neither its config nor its class says so.
    """
    if type(config) in AutoModelForCausalLM._model_mapping:
        return
    try:
        model.logits(torch.zeros(1, 1, dtype=torch.int64))
    except (TypeError, ValueError, AttributeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{model.name} ({model.architecture}) does not read text alone ({why}): use a model of "
            "text, or one for pictures and text in docs/architectures.md."
        ) from None


def outline(
    name: str | Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> NeuronModel:
    """The model as its config describes it, with shapes but no weights, in seconds.

    It has layers, widths, sites and the error checks of `load`, but no tokenizer, and cannot run.

    >>> interp.models.outline("babel")
    NeuronModel('babel': 6 layers of 2048 neurons, bfloat16)
    """
    file = gguf_in(Path(name).expanduser())
    if file is None:
        config = _read_config(name, _find(name), trust_remote_code=trust_remote_code)
    else:
        config = read_config(read_header(file))
    dtype = dtype or getattr(config, "dtype", None) or torch.float32
    with FakeTensorMode():  # not the meta device, on which some adapters refuse to split weights
        model = class_of(config, name).from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
        _check_experts(name, model)
        parameters = dict(model.named_parameters())
        bridge = bridge_of(model, name, "native")
        cls = model_class(name, bridge)
        return cls(bridge, None, str(name), "native", parameters)


def _check_config(name: str | Path, config: Any) -> None:
    """Refuse a mixture whose experts cannot be read, by its config alone."""
    if n_experts_of(config) is None:
        return
    kind: Any = class_of(config, name)
    if type(config) not in kind._model_mapping:  # code that comes with the model
        refuse_experts(name, config)
    with torch.device("meta"):
        _check_experts(name, kind.from_config(copy.deepcopy(config)))


def _check_experts(name: str | Path, model: Any) -> None:
    """Refuse a mixture whose experts are not computed in a way that we know."""
    if not model._can_set_experts_implementation() and not any(map(is_routed, model.modules())):
        refuse_experts(name, model.config)


# ---------------------------------------------------------------- files of a model


@contextmanager
def _source(name: str | Path, cache: bool) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The folder or hub name to pass to Hugging Face, and what is known of a GGUF file."""
    file = gguf_in(Path(name).expanduser())
    if file is None:
        yield _find(name), {}
    else:
        with checkpoint_of(file, cache) as (folder, facts):
            yield str(folder), facts


def _find(name: str | Path) -> str:
    if name == "babel":
        folder = Path(__file__).parents[1] / "babel" / "model"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The babel model is not in this installation ({folder} is missing): reinstall "
                "polyneuron, or give a local folder or a hub model."
            )
        return str(folder)
    path = Path(name).expanduser()
    if path.is_file() or (str(name).startswith((".", "/", "~")) and not path.is_dir()):
        raise FileNotFoundError(
            f"{path} is not a folder: give a folder that holds a Hugging Face model, or a GGUF "
            "file (.gguf)."
        )
    return str(path) if path.is_dir() else str(name)


def _check_device(device: str | torch.device | None) -> None:
    """Refuse a device that does not exist, before gigabytes are read."""
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


def _read_config(name: str | Path, source: str, **source_options: Any) -> Any:
    file = Path(source) / "config.json"
    if Path(source).is_dir() and not file.is_file():
        raise FileNotFoundError(
            f"{source} holds no config.json, so it is not a Hugging Face model: give a folder that "
            "is."
        )
    if not Path(source).is_dir() and not source_options.get("local_files_only"):
        hub_options = {
            key: source_options[key]
            for key in ("revision", "token", "cache_dir")
            if key in source_options
        }
        check_reachable(source, "config.json", **hub_options)
    try:
        return AutoConfig.from_pretrained(source, **source_options)
    except ValueError as error:
        if "does not recognize" not in str(error):
            raise
        raise ValueError(
            f"transformers {version('transformers')} does not know the architecture of {name}: "
            "update transformers; in Python, trust_remote_code=True runs code that comes with the "
            "model, if you trust it."
        ) from None
    except OSError as error:
        why = str(error).strip().splitlines()[0]
        if file.is_file():
            raise ValueError(f"{file} cannot be read ({why}) Copy it again.") from None
        raise OSError(
            f"{name} is neither a local folder nor available on the hub ({why}) Check the name and "
            "the network, or give a folder that holds the model."
        ) from None


def _read_tokenizer(name: str | Path, source: str, source_options: Mapping[str, Any]) -> Any:
    tokenizer, why = None, "it gives no token for the letter a"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **source_options)
    except Exception as error:  # a damaged file may raise anything
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if tokenizer is None or not tokenizer("a")["input_ids"]:
        raise ValueError(
            f"The tokenizer of {name} cannot be read ({why}): put its files in the folder of the "
            "weights."
        )
    return tokenizer

"""A model and its tokenizer out of a GGUF file: what transformers reads, and what it leaves out.

transformers ignores entries of the header that change every number, such as the frequencies of
Llama 3 and the soft caps of Gemma 2. They are set here, and what cannot be set is refused.
"""

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
)

from interp.models.neuron_model import refuse_experts

_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)

# Ways of cutting text into words, by the names that llama.cpp gives to them.
_AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais"}
_DIGITS_ALONE = {"smollm", "starcoder", "refact"}
_BLOOM_WORDS = " ?[^(\\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001 (the full stops of many scripts)
_AS_LLAMA3 = {"llama3", "llama-v3", "llama-bpe"}

_GEMMA_27B = {("gemma2", 46), ("gemma3", 62)}  # layers, by which llama.cpp recognizes them too
_CHANGES_NUMBERS = re.compile(r"scal|clamp|softcap")
_SET_HERE = {
    *("attn_logit_softcapping", "final_logit_softcapping"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    "rope.scaling.finetuned",
}


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a file says before its weights."""

    path: Path
    """The file."""

    architecture: str
    """As the file names it, such as gemma3."""

    entries: Mapping[str, Any]
    """Settings of the architecture, without its name before them, such as block_count."""

    words: str
    """Name of the way in which the tokenizer cuts text into words; empty: none."""

    space_first: bool
    """Whether it is SentencePiece's and puts a space before each text."""

    adds: Mapping[str, bool]
    """Whether texts begin with a beginning-of-text token, and end with an end-of-text token."""

    sizes: Mapping[str, int]
    """Numbers in each tensor."""

    quantization: str
    """Name of the mixture if it has one, and the types in it, that of most weights first: Q4_K_M
    (Q4_K, Q6_K, F32)."""

    frequencies: tuple[float, ...]
    """Divisors of the rotary frequencies, such as Llama 3.1 has; empty: none."""

    @property
    def n_weights(self) -> int:
        return sum(self.sizes.values())


def read_header(path: Path) -> GgufHeader:
    """Read the header; refuse what is no whole GGUF file."""
    if split := _SPLIT.search(path.name):
        raise ValueError(
            f"{path.name} is one of {int(split[1])} parts of a model: join them first, with "
            "llama-gguf-split --merge of llama.cpp, and give the whole file."
        )
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(
                f"{path} is not a GGUF file, whose first four letters are GGUF: download it again, "
                "or give a file that is."
            )
    reader = _reader(path)
    if not reader.tensors:
        raise ValueError(f"{path} holds no weights: give a file that holds a whole model.")
    kinds: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        kinds[kind] = kinds.get(kind, 0) + int(tensor.n_elements)

    def entry(key: str, default: Any) -> Any:
        field = reader.fields.get(key)
        return default if field is None else field.contents()

    architecture = entry("general.architecture", "unknown")
    prefix = f"{architecture}."
    own = [key for key in reader.fields if key.startswith(prefix)]
    tokenizer = entry("tokenizer.ggml.model", "")
    words = entry("tokenizer.ggml.pre", "") if tokenizer == "gpt2" else ""
    spaced = tokenizer == "llama" and entry("tokenizer.ggml.add_space_prefix", True)
    divisors = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    return GgufHeader(
        path=path,
        architecture=architecture,
        entries={key.removeprefix(prefix): entry(key, None) for key in own},
        words=words,
        space_first=spaced and not architecture.startswith("gemma"),
        adds={  # what llama.cpp takes for granted where a file says nothing
            "add_bos_token": entry(
                "tokenizer.ggml.add_bos_token", tokenizer == "llama" or words in _AS_LLAMA3
            ),
            "add_eos_token": entry("tokenizer.ggml.add_eos_token", False),
        },
        sizes={tensor.name: int(tensor.n_elements) for tensor in reader.tensors},
        quantization=_quantization(entry("general.file_type", None), kinds),
        frequencies=tuple(divisors[0].tolist()) if divisors else (),
    )


def _quantization(file_type: int | None, kinds: Mapping[str, int]) -> str:
    from gguf import LlamaFileType

    types = ", ".join(sorted(kinds, key=lambda kind: -kinds[kind]))
    known = {
        int(kind): kind.name.partition("_")[2] for kind in LlamaFileType
    }  # after MOSTLY_, ALL_
    return f"{known[file_type]} ({types})" if file_type in known else types


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(
            f"{path.name} is a GGUF file, which needs the package gguf: "
            "pip install 'polyneuron[gguf]'."
        ) from None
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{path} is a GGUF file that cannot be read to its end ({type(error).__name__}: "
            f"{error}), perhaps because it was cut short: download it again."
        ) from None


# ---------------------------------------------------------------- the model


def read_config(header: GgufHeader) -> Any:
    """The file's config, as Hugging Face's; refuses a model that could not be opened."""
    config = _from_file(AutoConfig, header)
    refuse_experts(header.path.name, config, "experts in GGUF files are not converted")
    return complete(config, header)


def read_model(header: GgufHeader, config: Any) -> Any:
    """The model in float32, which loses nothing; every weight of the file has its place."""
    model, report = _from_file(
        AutoModelForCausalLM,
        header,
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        raise _refusal(header, f"it finds no {missing[0]}")
    left = header.n_weights - sum(parameter.numel() for parameter in model.parameters())
    left -= header.sizes.get("rope_freqs.weight", 0)  # part of the config, see `complete`
    if config.tie_word_embeddings:
        left -= header.sizes.get("output.weight", 0)  # BLOOM's, written twice
    if left:
        raise _refusal(header, f"{left:,} of the {header.n_weights:,} weights have no place in it")
    vars(model.config).pop("quantization_config", None)  # the weights are not packed
    return model


def _from_file(cls: Any, header: GgufHeader, **options: Any) -> Any:
    """What `cls.from_pretrained` makes of the file, without a look at the files next to it."""
    with tempfile.TemporaryDirectory() as empty:
        try:
            return cls.from_pretrained(empty, gguf_file=str(header.path.resolve()), **options)
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise _refusal(header, error) from None


def _refusal(header: GgufHeader, why: object) -> ValueError:
    reason = (str(why).strip() or type(why).__name__).splitlines()[0].rstrip(".")
    return ValueError(
        f"transformers {transformers.__version__} cannot read {header.path.name}, which is of "
        f"architecture {header.architecture} ({reason}): give the checkpoint it was made from."
    )


def complete(config: Any, header: GgufHeader) -> Any:
    """Set what the header says and transformers leaves at its default."""
    entries, kind = header.entries, config.model_type
    for key, name in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.sliding_window", "sliding_window"),
    ):
        if key in entries and hasattr(config, name):
            setattr(config, name, entries[key])
    if kind in ("qwen3", "gemma2", "gemma3_text", "llama", "mistral"):
        config.head_dim = entries.get("attention.key_length", config.head_dim)
    if kind == "mistral":  # the files are of the architecture llama, which has no window
        config.sliding_window = None
    if kind == "gpt2":
        config.n_positions = entries["context_length"]
        config.n_inner = entries["feed_forward_length"]
    if kind in ("gemma2", "gemma3_text"):  # as in llama.cpp: the file does not say
        large = (header.architecture, config.num_hidden_layers) in _GEMMA_27B
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads if large else config.head_dim
        )
    _scale_positions(config, header)
    _refuse_settings(config, header)
    return config


def _scale_positions(config: Any, header: GgufHeader) -> None:
    """Slow the rotary embedding down, as for texts longer than those of pretraining."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get("full_attention", parameters)
    kind = header.entries.get("rope.scaling.type", "none")
    if kind == "linear":
        parameters.update(rope_type="linear", factor=header.entries["rope.scaling.factor"])
    elif kind != "none":
        raise _refusal(header, f"it ignores that positions are scaled, by the rule {kind}")
    if header.frequencies:
        scaling = {
            "rope_type": "llama3",
            "factor": max(header.frequencies),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        expected = llama3_divisors(
            parameters["rope_theta"], 2 * len(header.frequencies), scaling["factor"]
        )
        pairs = zip(expected, header.frequencies, strict=True)
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in pairs):
            raise _refusal(header, "it ignores rope_freqs.weight, which are not those of Llama 3")
        parameters.update(scaling)


def llama3_divisors(base: float, width: int, factor: float) -> list[float]:
    """What Llama 3.1 divides its rotary frequencies by: 1 for wavelengths below 2048, `factor` for
    those above 8192, and in between a mean whose weights follow the frequency."""
    divisors = []
    for index in range(width // 2):
        wavelength = 2 * math.pi * base ** (2 * index / width)
        share = min(max((8192 / wavelength - 1) / 3, 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors


def _refuse_settings(config: Any, header: GgufHeader) -> None:
    """Refuse what would change the numbers and is not set."""
    for key, value in header.entries.items():
        known = key in _SET_HERE and (key.startswith("rope.") or hasattr(config, key))
        if _CHANGES_NUMBERS.search(key) and not known and value not in (0.0, 1.0):
            raise _refusal(header, f"it ignores {key} = {value}")
    rope = getattr(config, "rope_parameters", None)
    turned = header.entries.get("rope.dimension_count")
    if turned is None or not rope:
        return
    rope = rope.get("full_attention", rope)
    own = getattr(config, "head_dim", None)
    width = own or config.hidden_size // config.num_attention_heads
    if turned != int(width * rope.get("partial_rotary_factor", 1.0)):
        raise _refusal(header, f"it ignores that {turned} of {width} dimensions turn")


# ---------------------------------------------------------------- the tokenizer


def read_tokenizer(header: GgufHeader) -> Any:
    """The file's tokenizer, which cuts text into words as the file says."""
    words = header.words
    # Of no class of its own, which would cut text in that class's way when it is opened again.
    tokenizer = _from_file(PreTrainedTokenizerFast, header, **header.adds)
    backend = tokenizer.backend_tokenizer
    if words in _AS_LLAMA3:
        backend.model.ignore_merges = True  # a word that is a token is not put together
    elif "qwen2" in (words, header.architecture):
        backend.normalizer = normalizers.NFC()
    elif words == "bloom":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_BLOOM_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif words in _DIGITS_ALONE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif header.space_first:  # before any text, also before one that begins with a space
        spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer, backend.pre_tokenizer = normalizers.Sequence(spaces), None
    elif words and words not in _AS_GPT2:
        pre = json.loads(backend.to_str())["pre_tokenizer"]
        if pre["type"] == "ByteLevel" and pre["use_regex"]:  # GPT-2's way, for want of a better
            raise _refusal(header, f"it does not know how {words} cuts text into words")
    return tokenizer


def check_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Refuse a tokenizer that is another one when its folder is opened again.

    For some architectures, such as Qwen2, transformers prefers its own way of cutting text to the
    way that the folder states.
    """
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    opened = json.loads(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    if any(opened[part] != stored[part] for part in ("normalizer", "pre_tokenizer")):
        raise _refusal(header, f"it would not cut text into words as {header.words} does")

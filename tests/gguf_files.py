"""GGUF files of tiny models and their tokenizers, written as llama.cpp's converter writes them.

The format has its own names for tensors, and its own layout for some: it interleaves the halves
of Llama's queries and keys, adds one to Gemma's norms, separates BLOOM's fused queries, keys and
values, and transposes GPT-2's matrices.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from einops import rearrange
from gguf import GGMLQuantizationType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests import tiny_models

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""Kinds of token."""

WORDS = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2", "bloom": "bloom"}
"""How the tokenizer of an architecture cuts text into words; others as GPT-2's."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {
    "llama-bpe": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}",
    "bloom": " ?[^(\\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001
}
_MERGES = (*tiny_models.MERGES, "12", "34", "e1", "'L")  # the last four cross borders of words
_WHOLE = "Ġwhole"  # a token that no merges make


def tokenizer(words: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE that cuts text into words in the way of this name, and adds <bos>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*tiny_models.SPECIAL, *letters, *_MERGES, _WHOLE]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges = [(pair[0], pair[1]) for pair in _MERGES]
    fast = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=words == "llama-bpe")
    )
    digits = pre_tokenizers.Digits(individual_digits=True)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words not in _CUTS)
    if words in _CUTS:
        cut = pre_tokenizers.Split(Regex(_CUTS[words]), behavior="isolated")
        fast.pre_tokenizer = pre_tokenizers.Sequence([cut, plain])
    elif words == "smollm":
        fast.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    else:
        fast.pre_tokenizer = plain
    if words == "qwen2":
        fast.normalizer = normalizers.NFC()
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(list(tiny_models.SPECIAL))
    fast.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tiny_models.BOS)]
    )
    names = zip(("pad_token", "bos_token", "eos_token"), tiny_models.SPECIAL, strict=False)
    return PreTrainedTokenizerFast(tokenizer_object=fast, **dict(names))


N_VOCAB = len(tokenizer("gpt-2"))


def model(name: str, n_vocab: int = N_VOCAB, **settings: Any) -> Any:
    """A tiny model with random weights, with this many tokens and these settings."""
    prefix, own = tiny_models.CONFIGS[name]
    special = {"pad_token_id": tiny_models.PAD, "bos_token_id": tiny_models.BOS}
    special |= {"eos_token_id": tiny_models.EOS, "vocab_size": n_vocab}
    config = getattr(transformers, f"{prefix}Config")(**{**own, **special, **settings})
    with torch.random.fork_rng(devices=[]):
        made = AutoModelForCausalLM.from_config(config)
    tiny_models.randomize(made, seed=0)
    return made.eval()


Tokens = list[tuple[str, float, int]]
"""The vocabulary of a SentencePiece tokenizer: tokens with score and kind."""


def write(
    path: Path,
    model: Any,
    words: str | Tokens = "gpt-2",
    *,
    quantized: bool = False,
    changes: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    architecture: str | None = None,
) -> Path:
    """Write the model with a tokenizer: matrices in Q8_0 if `quantized`, the rest in float32.

    `changes` replace or add metadata, under the names without the architecture; None removes one.
    `tensors` are added under their names in the file.
    """
    own = ARCHITECTURES.get(model.config.model_type, model.config.model_type)
    architecture = architecture or own
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**_metadata(model.config), **(changes or {})}.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    writer.add_file_type(
        gguf.LlamaFileType.MOSTLY_Q8_0 if quantized else gguf.LlamaFileType.ALL_F32
    )
    if isinstance(words, str):
        _add_tokenizer(writer, words)
    else:
        _add_sentencepiece(writer, words)
    for name, tensor in {**in_layout(model, own), **(tensors or {})}.items():
        data = tensor.detach().float().contiguous().numpy()
        if quantized and is_quantized(name, tensor):
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ARCHITECTURES = {"gemma3_text": "gemma3"}
"""Names in the format, where they differ from those of Hugging Face."""


def is_quantized(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name != "position_embd.weight"


def _metadata(config: Any) -> dict[str, Any]:
    """The entries that llama.cpp's converter writes for these architectures."""
    heads = config.num_attention_heads
    grouped = getattr(config, "num_key_value_heads", None)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rms = getattr(config, "rms_norm_eps", None)
    entries = {
        "block_count": config.num_hidden_layers,
        "context_length": getattr(config, "max_position_embeddings", 64),
        "embedding_length": config.hidden_size,
        "feed_forward_length": _feed_forward(config),
        "attention.head_count": heads,
        "attention.head_count_kv": grouped,
        "attention.layer_norm_rms_epsilon": rms,
        "attention.layer_norm_epsilon": None if rms else config.layer_norm_epsilon,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
    }
    if grouped:
        rope = config.rope_parameters
        entries["rope.freq_base"] = rope.get("full_attention", rope)["rope_theta"]
    if config.model_type in ("llama", "phi3"):
        entries["rope.dimension_count"] = width
    if config.model_type in ("qwen3", "gemma2", "gemma3_text"):
        entries |= {"attention.key_length": width, "attention.value_length": width}
    return entries


def _feed_forward(config: Any) -> int:
    own = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return own or 4 * config.hidden_size


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_float32(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, words: str) -> None:
    own = tokenizer(words)
    stored = json.loads(own.backend_tokenizer.to_str())["model"]
    tokens = own.convert_ids_to_tokens(list(range(len(own))))
    kinds = [CONTROL if token in tiny_models.SPECIAL else NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in stored["merges"]])
    writer.add_bos_token_id(tiny_models.BOS)
    writer.add_eos_token_id(tiny_models.EOS)
    writer.add_pad_token_id(tiny_models.PAD)
    if words != "llama-bpe":  # whose files are silent about it, and llama.cpp adds the token
        writer.add_add_bos_token(True)


def _add_sentencepiece(writer: gguf.GGUFWriter, tokens: Tokens) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def in_layout(model: nn.Module, architecture: str) -> dict[str, Tensor]:
    """The weights under the format's names, and in its layout."""
    config: Any = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    written = {}
    for key, parameter in model.named_parameters():  # a tied output is not written
        stem, _, suffix = key.rpartition(".")
        # The converter sees BLOOM without its unembedding, where names have no prefix.
        base = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
        assert base is not None, key
        name = f"{base}.{suffix}"
        written[name] = _moved(name, parameter.detach(), config)
    if config.model_type in ("gpt2", "bloom"):  # the converter writes a tied output twice
        written["output.weight"] = written["token_embd.weight"]
    return written


def _moved(name: str, tensor: Tensor, config: Any) -> Tensor:
    kind, heads = config.model_type, config.num_attention_heads
    if kind == "llama" and ".attn_q." in name:
        return rearrange(tensor, "(head half row) ... -> (head row half) ...", head=heads, half=2)
    if kind == "llama" and ".attn_k." in name:
        grouped = config.num_key_value_heads
        return rearrange(tensor, "(head half row) ... -> (head row half) ...", head=grouped, half=2)
    if kind.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    if kind == "bloom" and "attn_qkv" in name:
        return rearrange(tensor, "(head part row) ... -> (part head row) ...", head=heads, part=3)
    if kind == "gpt2" and tensor.ndim == 2 and name.startswith("blk."):
        return tensor.T
    return tensor


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Give the model the weights that a file in Q8_0 holds, computed in its own layout.

    Blocks of 32 run along the inputs, so that an exchange of rows does not change them; in GPT-2
    the inputs are the rows.
    """
    for key, parameter in model.named_parameters():
        if parameter.ndim == 2 and not key.endswith("wpe.weight"):
            turned = model.config.model_type == "gpt2" and ".h." in key
            matrix = parameter.T if turned else parameter
            rounded = _rounded(matrix.contiguous().numpy())
            parameter.copy_(rounded.T if turned else rounded)


def _rounded(matrix: np.ndarray) -> Tensor:
    """In blocks of 32: whole numbers up to 127 times a step, which is stored in 16 bits."""
    blocks = torch.from_numpy(matrix).reshape(-1, 32)
    step = (blocks.abs().amax(dim=1, keepdim=True) / 127).double()
    whole = torch.where(step > 0, blocks.double() / step, 0).round()
    return (whole.float() * step.half().float()).reshape(matrix.shape)

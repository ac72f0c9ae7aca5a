"""Tiny checkpoints with random weights, one for every kind of MLP that the library supports.

`build("qwen3", folder)` saves a Hugging Face model and its tokenizer: three layers, a residual
stream of 64, weights large enough that every layer matters, and norms and biases different from
their defaults, so that a forgotten bias or a wrong norm shows. Equal seeds give equal files.
"""

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

N_LAYERS, D_MODEL, D_MLP, N_HEADS, MAX_LENGTH = 3, 64, 160, 4, 64
PAD, BOS, EOS, RESERVED = 0, 1, 2, 3
SPECIAL = ("<pad>", "<bos>", "<eos>", "<reserved>")
MERGES = ("th", "he", "er", "in", "ie", "ch", "de", "en", "es", "la", "qu", "ou", "Ġt", "Ġd")

_WIDTHS = {
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": MAX_LENGTH,
}
_GROUPED = {**_WIDTHS, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 16}
_WINDOW = {"sliding_window": 8}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS}),
    "xglm": (
        "XGLM",
        {
            "d_model": D_MODEL,
            "ffn_dim": D_MLP,
            "num_layers": N_LAYERS,
            "attention_heads": N_HEADS,
            "max_position_embeddings": MAX_LENGTH,
        },
    ),
    "llama": ("Llama", _GROUPED),
    "llama_mha": ("Llama", {**_WIDTHS, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**_GROUPED, **_WINDOW}),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen3": ("Qwen3", _GEMMA),
    "gemma": ("Gemma", _GEMMA),
    "gemma2": ("Gemma2", {**_GEMMA, **_WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3Text", {**_GEMMA, **_WINDOW, "query_pre_attn_scalar": 16}),
    "opt": (
        "OPT",
        {
            "hidden_size": D_MODEL,
            "word_embed_proj_dim": D_MODEL,
            "ffn_dim": D_MLP,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "max_position_embeddings": MAX_LENGTH,
        },
    ),
    "phi": ("Phi", _WIDTHS),
    "phi3": ("Phi3", _GROUPED),
    "gpt2": (
        "GPT2",
        {
            "n_embd": D_MODEL,
            "n_inner": D_MLP,
            "n_layer": N_LAYERS,
            "n_head": N_HEADS,
            "n_positions": MAX_LENGTH,
        },
    ),
    "pythia": ("GPTNeoX", _WIDTHS),
}
"""Prefix of the Hugging Face configuration class, and its settings, by name."""

D_EXPERT, N_EXPERTS = 24, 4
_ROUTED = {**_GEMMA, "moe_intermediate_size": D_EXPERT, "num_experts_per_tok": 2}
_LINEAR_MIXER = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}

MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3Moe", {**_ROUTED, "num_experts": N_EXPERTS}),
    "mixtral": ("Mixtral", {**_GROUPED, "intermediate_size": D_EXPERT, "num_local_experts": 4}),
    "olmoe": (
        "Olmoe",
        {**_GROUPED, "intermediate_size": D_EXPERT, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt_oss": (
        "GptOss",
        {
            **_GEMMA,
            **_WINDOW,
            "intermediate_size": D_EXPERT,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "swiglu_limit": 0.5,  # so small that the clamp is met
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_WIDTHS,
            "moe_intermediate_size": D_EXPERT,
            "n_routed_experts": N_EXPERTS,
            "num_experts_per_tok": 2,
            "n_shared_experts": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            **_ROUTED,
            **_LINEAR_MIXER,
            "num_experts": N_EXPERTS,
            "shared_expert_intermediate_size": 40,
            "layer_types": ["linear_attention", "full_attention", "full_attention"],
        },
    ),
    "jamba": (
        "Jamba",
        {
            **_GROUPED,
            "intermediate_size": D_EXPERT,
            "num_experts": N_EXPERTS,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    "granitemoe": (
        "GraniteMoe",
        {
            **_GROUPED,
            "intermediate_size": D_EXPERT,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "llama4_text": (
        "Llama4Text",
        {
            **_GEMMA,
            "intermediate_size": D_EXPERT,
            "intermediate_size_mlp": D_MLP,
            "num_local_experts": N_EXPERTS,
            "num_experts_per_tok": 2,
            "moe_layers": [1, 2],
            "attention_chunk_size": 8,
        },
    ),
    "jetmoe": (
        "JetMoe",
        {
            "hidden_size": D_MODEL,
            "intermediate_size": D_EXPERT,
            "num_hidden_layers": N_LAYERS,
            "num_key_value_heads": 2,
            "kv_channels": 16,
            "num_local_experts": N_EXPERTS,
            "num_experts_per_tok": 2,
            "max_position_embeddings": MAX_LENGTH,
        },
    ),
}
"""The same for mixtures of experts: with a clamped gate, with leading dense layers, groups and
shared experts, with recurrent mixers, and with loops of their own."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges: it encodes any language, and adds <bos> by default.

    Like many released tokenizers it has an unused special token, <reserved>.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*SPECIAL, *letters, *MERGES])}
    merges = [(pair[0], pair[1]) for pair in MERGES]
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(list(SPECIAL))
    fast.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    pad, bos, eos, _ = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=MAX_LENGTH,
    )


N_VOCAB = len(tokenizer())


def config(name: str) -> transformers.PretrainedConfig:
    prefix, settings = (CONFIGS | MIXTURES)[name]
    return getattr(transformers, f"{prefix}Config")(
        **settings,
        vocab_size=N_VOCAB,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Overwrite every parameter, in the order of the names, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise / math.sqrt(D_MODEL))


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Save the model called `name` and its tokenizer in `folder`, and return `folder`."""
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config(name))
    randomize(model, seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


class Kinked(nn.Module):
    """An activation that is positive again for gates below -1, as xIELU is far below zero."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) + 10 * (-1 - x).clamp_min(0)

"""Models with random weights and text of random tokens, which take as long as real ones."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.records import Size
from interp.text.corpora import Corpora, Rows


def llama(layers: int, width: int, neurons: int, vocabulary: int, **settings: Any) -> LlamaConfig:
    """A Llama configuration with attention heads of 64."""
    return LlamaConfig(
        **{
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": neurons,
            "num_hidden_layers": layers,
            "num_attention_heads": max(1, width // 64),
            "max_position_embeddings": 4096,
            **settings,
        }
    )


def standard_model(size: Size) -> LlamaConfig:
    """The model of most benchmarks: 8 layers of 2048 neurons."""
    return llama(2, 64, 160, 500) if size == "toy" else llama(8, 512, 2048, 32_000)


def save_model(
    config: PretrainedConfig,
    folder: Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A checkpoint with random weights (always the same) and a tokenizer of numbered words."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    vocabulary = {"<s>": 0} | {f"t{number}": number for number in range(1, config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, "t1"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(folder)
    return folder


def tokens(n_rows: int, length: int, vocabulary: int, seed: int = 0) -> Int[Tensor, "row pos"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (n_rows, length), generator=generator)


def text(
    codes: tuple[str, ...], n_shards: int, n_rows: int, length: int, vocabulary: int
) -> Corpora:
    """Rows of random tokens, `n_rows` for each shard of each language."""
    n = n_shards * n_rows
    rows = {
        code: Rows(
            tokens(n, length, vocabulary, seed).int(),
            torch.full((n,), length),
            torch.arange(n_shards).repeat_interleave(n_rows),
            tuple(f"{code}:{number}" for number in range(n)),
        )
        for seed, code in enumerate(codes)
    }
    return Corpora(rows, codes, n_shards, (0,), True)

"""Models with random weights, text of random tokens, and processes whose memory is looked at."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.turns import Size
from interp.text.corpora import Corpora, Rows

MIB = 1 << 20


def llama(layers: int, width: int, neurons: int, vocabulary: int, **settings: Any) -> LlamaConfig:
    """The shape of a Llama, with heads of 64."""
    return LlamaConfig(
        **{
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": neurons,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "max_position_embeddings": 4096,
            **settings,
        }
    )


def usual(size: Size) -> LlamaConfig:
    """The model of most benchmarks: 8 layers of 2048 neurons."""
    return llama(2, 64, 160, 500) if size == "toy" else llama(8, 512, 2048, 32_000)


def save_model(
    config: PretrainedConfig,
    folder: Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A checkpoint with random weights, always the same, and a tokenizer that knows its tokens."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    vocabulary = {"<s>": 0} | {f"t{number}": number for number in range(1, config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, "t1"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(folder)
    return folder


def tokens(n_rows: int, length: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """[row pos] What they say does not matter for the time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (n_rows, length), generator=generator)


def text(
    codes: tuple[str, ...], n_shards: int, n_rows: int, length: int, vocabulary: int
) -> Corpora:
    """So many rows of random tokens for each shard of each language."""
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


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` gives in a process of its own, because peak memory belongs to a process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *given).result()


def peak_mib() -> float:
    """The most that this process held. Linux only.

    What `resource` tells begins with the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

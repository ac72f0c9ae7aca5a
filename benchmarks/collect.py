"""What does counting cost? `collect` beside the bare model and the usual ways, in one run.

    python -m benchmarks.collect               # ratios to the bare model: 10 minutes on 2 cores
    python -m benchmarks.collect --memory      # peak memory against tokens: 5 minutes

A Llama-shaped model with random weights (d_model 512, 8 layers of 2048 neurons). The variants take
turns in one process; each turn is divided by the bare model's of the same round, and the median of
the rounds is printed. The bare model is Hugging Face's body with fused attention, no unembedding.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import interp
from benchmarks.turns import compare
from interp.corpora import Corpora, Rows


@dataclass(frozen=True)
class Config:
    """What to run."""

    rounds: int = 7
    """Turns of each variant."""

    batches: int = 4
    """Batches of 2048 tokens per turn."""

    memory: bool = False
    """Print peak memory against tokens instead of speed."""

    child: str = ""
    """Used by --memory for its own subprocesses: a model folder and a number of tokens."""


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


def made_up(n_rows: int, length: int) -> Corpora:
    """Random tokens: what they say does not matter for the time."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 32_000, (n_rows, length), generator=generator, dtype=torch.int32)
    rows = Rows(
        ids,
        torch.full((n_rows,), length),
        torch.zeros(n_rows, dtype=torch.long),
        tuple(f"row {number}" for number in range(n_rows)),
    )
    return Corpora({"en": rows}, ("en",), 1, (0,), True)


def variants(folder: Path, corpora: Corpora, n_rows: int) -> dict[str, Callable[[], None]]:
    """Each reads all rows once."""
    bare = AutoModelForCausalLM.from_pretrained(folder)
    native, hooked = interp.load(folder), interp.load(folder, attention="hooked")
    chunks = corpora.rows["en"].ids.long().split(n_rows)
    pre = [native.site(layer, "pre") for layer in range(native.n_layers)]

    def body() -> None:
        with torch.inference_mode():
            for ids in chunks:
                bare.model(ids, use_cache=False)

    def collect(model: interp.NeuronModel, moments: bool) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as out:
                interp.collect(
                    model,
                    corpora,
                    out,
                    wanted=interp.Wanted(moments=moments),
                    tokens_per_batch=n_rows * chunks[0].shape[1],
                    progress=False,
                )

        return run

    def cache_everything() -> None:
        with torch.inference_mode():
            for ids in chunks:
                _, cache = hooked.bridge.run_with_cache(ids, logits_to_keep=1)
                for name in pre:
                    (cache[name] > 0).sum((0, 1))

    def store_then_count() -> None:
        stored: dict[str, list[torch.Tensor]] = {name: [] for name in pre}

        def keep(name: str):
            return lambda values, hook: stored[name].append(values.clone())

        with torch.inference_mode(), native.hooks([(name, keep(name)) for name in pre]):
            for ids in chunks:
                native.body(ids)
        for each in stored.values():
            (torch.cat(each) > 0).sum((0, 1))

    return {
        "bare Hugging Face body": body,
        "collect, firing counts": collect(native, moments=False),
        "collect, counts and moments": collect(native, moments=True),
        'collect, attention="hooked"': collect(hooked, moments=False),
        "store activations, count afterwards": store_then_count,
        "run_with_cache of everything": cache_everything,
    }


def speed(config: Config, folder: Path) -> None:
    for n_rows, length in ((8, 256), (2, 1024)):
        corpora = made_up(n_rows * config.batches, length)
        runs = variants(folder, corpora, n_rows)
        compare(f"{n_rows} x {length} tokens", list(runs.items()), config.rounds)


def memory(folder: Path) -> None:
    print("    tokens   peak MiB   above the model MiB")
    for tokens in (10_000, 100_000, 1_000_000):
        command = [sys.executable, "-m", "benchmarks.collect", "--child", f"{folder}:{tokens}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, before = (float(each) for each in done.stdout.split()[-2:])
        print(f"{tokens:>10,}   {peak:8.0f}   {peak - before:8.0f}", flush=True)


def child(folder: str, tokens: int) -> None:
    """One run in a process of its own, because peak memory belongs to a process."""
    model = interp.load(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    corpora = made_up(tokens // 256, 256)
    interp.collect(model, corpora, wanted=interp.Wanted(moments=True), progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before)


def main(config: Config) -> None:
    if config.child:
        folder, _, tokens = config.child.rpartition(":")
        child(folder, int(tokens))
        return
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place))
        if config.memory:
            memory(Path(place))
        else:
            speed(config, Path(place))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

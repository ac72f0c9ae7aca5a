"""What does counting cost? `collect` against the bare model and the usual methods, in one run.

    python -m benchmarks.collect               # ratios to the bare model: 4 minutes on 2 cores
    python -m benchmarks.collect --memory      # peak memory against tokens: 5 minutes
    python -m benchmarks.collect --device cuda

A Llama-shaped model with random weights (d_model 512, 8 layers of 2048 neurons). The variants take
turns in one process; each time is divided by the bare model's in the same round, and the median of
the rounds is printed. The bare model is Hugging Face's body with fused attention, no unembedding.
Goals: counts with moments, cases of signs and the negative side at most 1.15, histograms 1.35.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from transformers import AutoModelForCausalLM

import interp
from benchmarks import memory, synthetic
from benchmarks.records import Size, SpeedOrMemory, recording
from benchmarks.timing import Variants, clock, take_turns
from interp.counting.pieces import grid_path
from interp.text.corpora import Corpora

BARE = "bare Hugging Face body"
COUNTS = "collect, firing counts"
MOMENTS = "collect, counts and moments"
CHEAP = "collect, counts, moments, cases of signs, negative side"
HISTOGRAMS = "collect, counts and histograms in given bins"
"""Bins from a sample cost a pass over 4,096 tokens of every language, however long the text."""

BRIDGE = 'collect, attention="hooked" (the full bridge)'


@dataclass(frozen=True)
class Amount:
    """How much is read."""

    rounds: int = 5
    """Turns of each variant."""

    texts: tuple[tuple[int, int], ...] = ((8, 256), (2, 1024))
    """Rows in a batch, and tokens in a row."""

    batches: int = 2
    """Batches per turn."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(),
    "toy": Amount(rounds=1, texts=((2, 32),), batches=1),
}


@dataclass(frozen=True)
class Growth:
    """How much text is read for the memory measurement, and the shape of the model."""

    layers: int = 8
    width: int = 512
    neurons: int = 2048
    tokens: tuple[int, ...] = (10_000, 100_000, 1_000_000)


GROWTHS: dict[Size, Growth] = {
    "full": Growth(),
    "bench": Growth(layers=4, width=128, neurons=1024),
    "toy": Growth(layers=2, width=64, neurons=160, tokens=(512, 1024)),
}


def bare(folder: Path, device: str, **options: Any) -> Any:
    """The Hugging Face model."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model.to(device)


def body_of(model: Any, batches: list[torch.Tensor]) -> Callable[[], None]:
    """A function that reads all batches, without unembedding."""

    def run() -> None:
        with torch.inference_mode():
            for ids in batches:
                model.model(ids, use_cache=False)

    return run


def collect(
    model: interp.NeuronModel, corpora: Corpora, tokens_per_batch: int, keep: interp.Keep
) -> Callable[[], None]:
    bins = bins_of(model, corpora) if keep.histograms else None

    def run() -> None:
        with TemporaryDirectory() as out:
            if bins is not None:
                grid_path(Path(out)).write_bytes(bins)
            interp.collect(
                model,
                corpora,
                out,
                keep=keep,
                tokens_per_batch=tokens_per_batch,
                progress=False,
            )

    return run


def bins_of(model: interp.NeuronModel, corpora: Corpora) -> bytes:
    """The file with the bins of a pass over the text."""
    with TemporaryDirectory() as out:
        keep = interp.Keep(histograms=True)
        interp.collect(model, corpora, out, keep=keep, progress=False)
        return grid_path(Path(out)).read_bytes()


def variants(folder: Path, corpora: Corpora, n_rows: int, device: str) -> Variants:
    """Ways to read all rows once; the first is the reference."""
    native = interp.load(folder, device=device)
    hooked = interp.load(folder, device=device, attention="hooked")
    ids = corpora.rows["en"].ids.long()
    batches, per_batch = list(ids.to(device).split(n_rows)), n_rows * ids.shape[1]
    cheap = interp.Keep(moments=True, sign_cases=True, negative_side=True)
    pre = [native.site(layer, "pre") for layer in range(native.n_layers)]

    def cache_everything() -> None:
        with torch.inference_mode():
            for ids in batches:
                _, cache = hooked.bridge.run_with_cache(ids, logits_to_keep=1)
                for name in pre:
                    (cache[name] > 0).sum((0, 1)).cpu()

    def store_then_count() -> None:
        stored: dict[str, list[torch.Tensor]] = {name: [] for name in pre}

        def store(name: str):
            return lambda values, hook: stored[name].append(values.clone())

        with torch.inference_mode(), native.hooks([(name, store(name)) for name in pre]):
            for ids in batches:
                native.body(ids)
        for gates in stored.values():
            (torch.cat(gates) > 0).sum((0, 1)).cpu()

    return {
        BARE: body_of(bare(folder, device), batches),
        COUNTS: collect(native, corpora, per_batch, interp.Keep()),
        MOMENTS: collect(native, corpora, per_batch, interp.Keep(moments=True)),
        CHEAP: collect(native, corpora, per_batch, cheap),
        HISTOGRAMS: collect(native, corpora, per_batch, interp.Keep(histograms=True)),
        BRIDGE: collect(hooked, corpora, per_batch, interp.Keep()),
        "store activations, count afterwards": store_then_count,
        "run_with_cache of everything": cache_everything,
    }


def measure_speed(config: SpeedOrMemory) -> None:
    amount, shape = AMOUNTS[config.size], synthetic.standard_model(config.size)
    with TemporaryDirectory() as temporary, recording("collect", config, amount) as record:
        folder = synthetic.save_model(shape, Path(temporary))
        for n_rows, length in amount.texts:
            corpora = synthetic.text(("en",), 1, n_rows * amount.batches, length, shape.vocab_size)
            runs = variants(folder, corpora, n_rows, config.device)
            turns = take_turns(runs, amount.rounds, clock(config.device))
            record(*turns.rows(case=f"{n_rows} x {length} tokens"))


def measure_memory(config: SpeedOrMemory) -> None:
    growth = GROWTHS[config.size]
    shape = synthetic.llama(growth.layers, growth.width, growth.neurons, 32_000)
    with TemporaryDirectory() as temporary, recording("collect-memory", config, growth) as record:
        folder = synthetic.save_model(shape, Path(temporary))
        for n_tokens in growth.tokens:
            record({"tokens": n_tokens, "mib": memory.in_subprocess(peak, folder, n_tokens)})


def peak(folder: Path, n_tokens: int) -> float:
    """MiB that a run with moments takes above the loaded model and the tokens of the text."""
    model = interp.load(folder, device="cpu")
    corpora = synthetic.text(("en",), 1, n_tokens // 256, 256, 32_000)
    keep = interp.Keep(moments=True)
    return memory.added_mib(lambda: interp.collect(model, corpora, keep=keep, progress=False))


def main(config: SpeedOrMemory) -> None:
    (measure_memory if config.memory else measure_speed)(config)


if __name__ == "__main__":
    main(tyro.cli(SpeedOrMemory, description=__doc__))

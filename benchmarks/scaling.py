"""How do time, memory and disk grow with tokens, layers, neurons, languages and shards?

    python -m benchmarks.scaling           # 4 minutes on two cores
    python -m benchmarks.scaling bench     # without 10 million tokens: 3 minutes

Every run has its own process, because peak memory belongs to a process; the memory of the imported
library is subtracted. The models have random weights and the text is random tokens.
"""

import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import tyro
from transformers import GPTNeoXConfig

import interp
from benchmarks import memory, synthetic
from benchmarks.records import Config, Row, Size, recording
from interp.cli import chosen


@dataclass(frozen=True)
class Run:
    """One run of `collect`."""

    layers: int = 4
    neurons: int = 512
    d_model: int = 128
    languages: int = 4
    shards: int = 4
    tokens: int = 16_384
    """Per language."""

    row_tokens: int = 64
    tokens_per_batch: int = 4096
    keep: tuple[str, ...] = ()
    """Statistics that are counted besides firing, as `interp.Keep` names them."""

    family: Literal["llama", "neox"] = "llama"
    dtype: str = "float32"
    vocabulary: int = 1000
    workers: int = 1

    @property
    def kept(self) -> interp.Keep:
        """What `collect` and `interp plan` are asked for."""
        named: dict[str, Any] = dict.fromkeys(self.keep, True)
        return interp.Keep(**named)


SWEEPS = {
    "tokens": (10_000, 100_000, 1_000_000, 10_000_000),
    "layers": (2, 4, 8, 16),
    "neurons": (256, 1024, 4096),
    "languages": (2, 10, 30, 100),
    "shards": (1, 4, 16),
    "workers": (1, 2),
}


@dataclass(frozen=True)
class Amount:
    """The values that are varied."""

    sweeps: dict[str, tuple[int, ...]]
    """Values by the name of a field of `Run`."""

    standard: Run = Run()
    """Values of the other fields."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(SWEEPS),
    "bench": Amount(SWEEPS | {"tokens": SWEEPS["tokens"][:-1]}),
    "toy": Amount({"workers": (1, 2)}, Run(layers=2, neurons=32, languages=2, tokens=256)),
}


def save_model(run: Run, folder: Path) -> Path:
    config = synthetic.llama(run.layers, run.d_model, run.neurons, run.vocabulary)
    if run.family == "neox":
        names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        shape = {name: getattr(config, name) for name in (*names, "vocab_size")}
        config = GPTNeoXConfig(**shape)
    return synthetic.save_model(config, folder, dtype=getattr(torch, run.dtype))


def collect_once(run: Run, model_folder: Path, out: Path, part: int | None) -> Row:
    """Seconds, and MiB of peak memory above the library, of one run or one worker's part."""
    before = memory.resident_mib()
    model = interp.load(model_folder, device="cpu")
    codes = tuple(f"l{number:03d}" for number in range(run.languages))
    n_rows = max(1, run.tokens // (run.shards * run.row_tokens))
    text = synthetic.text(codes, run.shards, n_rows, run.row_tokens, run.vocabulary)
    start = time.perf_counter()
    settings: dict[str, Any] = {
        "keep": run.kept,
        "tokens_per_batch": run.tokens_per_batch,
        "progress": False,
    }
    if part is None:
        interp.collect(model, text, out, **settings)
    else:
        interp.collect(model, text, out, part=(part, run.workers), **settings)
    return {"seconds": time.perf_counter() - start, "mib": memory.peak_mib() - before}


def find_in(folder: Path) -> float:
    """MiB of peak memory above the library of `interp find` on a run."""
    command = chosen(["find", str(folder)])
    before = memory.resident_mib()
    with redirect_stdout(StringIO()):
        command.run()
    return memory.peak_mib() - before


def measure(run: Run, find: bool = False) -> Row:
    """Seconds, memory and disk of a run, and memory of selecting from it if asked for; several
    workers share one folder."""
    with TemporaryDirectory() as folder:
        model, out = save_model(run, Path(folder) / "model"), Path(folder) / "out"
        parts = [None] if run.workers == 1 else range(1, run.workers + 1)
        tasks = [(run, model, out, part) for part in parts]
        measured = memory.in_subprocesses(collect_once, *tasks)
        start = time.perf_counter()
        if run.workers > 1:
            interp.Run.open(out).merge()
        merging = time.perf_counter() - start if run.workers > 1 else 0.0
        disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        found = {"find_mib": memory.in_subprocess(find_in, out)} if find else {}
    return found | {
        "seconds": max(row["seconds"] for row in measured) + merging,
        "mib": max(row["mib"] for row in measured),
        "disk_mib": disk / memory.MIB,
    }


def main(config: Config) -> None:
    amount = AMOUNTS[config.size]
    with recording("scaling", config, amount) as record:
        for name, values in amount.sweeps.items():
            for value in values:
                run = replace(amount.standard, **{name: value})
                if name == "tokens":  # so many tokens need a small model
                    run = replace(run, layers=2, neurons=256, d_model=64, languages=1)
                record({"varied": name, "value": value} | measure(run))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

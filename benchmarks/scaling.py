"""What grows with what? Time, memory and disk against tokens, layers, neurons, languages, shards.

    python -m benchmarks.scaling sweep     # measured, one line a run: 25 minutes on one core
    python -m benchmarks.scaling plan      # what `interp plan` says, and what runs take: 4 minutes
    python -m benchmarks.scaling paper     # after the pass, at 80 layers x 28,672 neurons x 100
                                           # languages, on made-up counts: 5 minutes, 4 GB of disk

Every run is a process of its own, because peak memory belongs to a process; what the imported
library takes is subtracted. The models have random weights and the text is random tokens. `paper`
shows that nothing but the forward pass needs a large machine: merging, selecting and average
precision run here at the size of a model with 70 billion parameters.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from einops import repeat
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM
from tyro.conf import Positional

import interp
from interp import artifacts
from interp.collect import PIECE, collect_part, merge
from interp.corpora import Corpora, Rows
from interp.plan import RunPlan, plan_run
from interp.scores.ranks import precision_and_area
from interp.selection import select_from_rate
from interp.stats import FiringStats
from tests.tiny_models import tokenizer

MIB = 1 << 20


@dataclass(frozen=True)
class Config:
    """What to run."""

    what: Positional[Literal["sweep", "plan", "paper"]] = "plan"
    """sweep: one size after another; plan: predictions; paper: a simulation at full size."""

    most_tokens: int = 10_000_000
    """Of the sweep over tokens."""

    n_shards: int = 1
    """Of `paper`. Disk grows by 3.7 GB with each."""

    folder: Path = Path(tempfile.gettempdir())
    """Where runs are written, and removed again."""

    child: str = ""
    """Used for its own subprocesses: what one of them runs."""


@dataclass(frozen=True)
class Size:
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
    moments: bool = False
    family: Literal["llama", "neox"] = "llama"
    dtype: str = "float32"
    vocabulary: int = 1000
    workers: int = 1


SWEEPS: dict[str, list[int]] = {
    "tokens": [10_000, 100_000, 1_000_000, 10_000_000],
    "layers": [2, 4, 8, 16],
    "neurons": [256, 1024, 4096],
    "languages": [2, 10, 30, 100],
    "shards": [1, 4, 16],
    "workers": [1, 2],
}

SHAPES = {
    "4 x 4,096, gated": Size(neurons=4096, d_model=512, languages=1, shards=2, row_tokens=256),
    "16 x 2,048, gated, bfloat16, moments": Size(
        layers=16,
        neurons=2048,
        d_model=768,
        languages=1,
        shards=2,
        tokens=8192,
        row_tokens=256,
        moments=True,
        dtype="bfloat16",
    ),
    "6 x 3,072, ungated": Size(
        layers=6,
        neurons=3072,
        d_model=768,
        languages=1,
        shards=2,
        row_tokens=256,
        family="neox",
        vocabulary=20_000,
    ),
    # The copies that the plan counts were fitted on the three above, not on those below.
    "10 x 3,072, gated": Size(
        layers=10, neurons=3072, d_model=640, languages=1, shards=2, row_tokens=128
    ),
    "5 x 2,560, ungated, moments": Size(
        layers=5,
        neurons=2560,
        d_model=640,
        languages=2,
        shards=2,
        row_tokens=512,
        family="neox",
        moments=True,
    ),
    "8 x 8,192, 50 languages": Size(
        layers=8, neurons=8192, d_model=64, languages=50, shards=8, tokens=512, moments=True
    ),
}


# ---------------------------------------------------------------- one run


def save_model(size: Size, folder: Path) -> None:
    torch.manual_seed(0)
    widths: dict[str, Any] = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.d_model,
        "intermediate_size": size.neurons,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.d_model // 64,
    }
    model: Any = (
        LlamaForCausalLM(LlamaConfig(**widths))
        if size.family == "llama"
        else GPTNeoXForCausalLM(GPTNeoXConfig(**widths))
    )
    model.to(getattr(torch, size.dtype)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def made_up(size: Size) -> Corpora:
    """Random tokens: what they say does not matter for the time."""
    generator = torch.Generator().manual_seed(0)
    n_rows = max(1, size.tokens // (size.shards * size.row_tokens)) * size.shards
    codes = tuple(f"l{number:03d}" for number in range(size.languages))
    shape = (n_rows, size.row_tokens)
    rows = {
        code: Rows(
            torch.randint(4, 250, shape, generator=generator, dtype=torch.int32),
            torch.full((n_rows,), size.row_tokens),
            torch.arange(n_rows) % size.shards,
            tuple(f"{code}.txt:{number}" for number in range(n_rows)),
        )
        for code in codes
    }
    return Corpora(rows, codes, size.shards, (0,), True)


def run_once(size: Size, model_folder: Path, out: Path, part: int | None) -> dict[str, float]:
    """Seconds, and MiB of peak memory above the library's, of one run or of one worker's part."""
    before = resident()
    model = interp.load(model_folder, device="cpu")
    corpora = made_up(size)
    start = time.perf_counter()
    settings: dict[str, Any] = {
        "wanted": interp.Wanted(moments=size.moments),
        "tokens_per_batch": size.tokens_per_batch,
        "progress": False,
    }
    if part is None:
        interp.collect(model, corpora, out, **settings)
    else:
        collect_part(model, corpora, out, (part, size.workers), **settings)
    return {"seconds": time.perf_counter() - start, "memory": peak() - before}


def measure(size: Size, place: Path) -> dict[str, float]:
    """The same from outside, with the disk it took; two workers share one folder."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        model, out = Path(folder) / "model", Path(folder) / "out"
        save_model(size, model)
        parts: list[int | None] = [None] if size.workers == 1 else [*range(1, size.workers + 1)]
        found = started_together(
            [
                {"size": asdict(size), "model": str(model), "out": str(out), "part": part}
                for part in parts
            ]
        )
        seconds = max(each["seconds"] for each in found)
        if size.workers > 1:
            start = time.perf_counter()
            merge(out)
            seconds += time.perf_counter() - start
        disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "seconds": seconds,
        "memory": max(each["memory"] for each in found),
        "disk": disk / MIB,
    }


def planned(size: Size, place: Path) -> RunPlan:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        save_model(size, Path(folder))
        return plan_run(
            folder,
            size.languages,
            size.tokens,
            n_shards=size.shards,
            row_tokens=size.row_tokens,
            tokens_per_batch=size.tokens_per_batch,
            wanted=interp.Wanted(moments=size.moments),
        )


def sweep(config: Config) -> None:
    print(f"{'':<10} {'':>12} {'seconds':>9} {'MiB memory':>11} {'MiB disk':>9}")
    for name, values in SWEEPS.items():
        for value in values:
            if name == "tokens" and value > config.most_tokens:
                continue
            size = replace(Size(), **{name: value})
            if name == "tokens":  # so many that a small model must do
                size = replace(size, layers=2, neurons=256, d_model=64, languages=1)
            found = measure(size, config.folder)
            print(
                f"{name:<10} {value:>12,} {found['seconds']:>9.1f} {found['memory']:>11.0f} "
                f"{found['disk']:>9.1f}",
                flush=True,
            )


def compare_plans(config: Config) -> None:
    print(f"{'':<38} {'memory: planned':>15} {'measured':>9} {'disk: planned':>14} {'measured':>9}")
    for name, size in SHAPES.items():
        plan, found = planned(size, config.folder), measure(size, config.folder)
        memory, disk = plan.memory / MIB, plan.disk / MIB
        print(
            f"{name:<38} {memory:>11.0f} MiB {found['memory']:>9.0f} {disk:>10.2f} MiB "
            f"{found['disk']:>9.2f}   x {memory / found['memory']:.2f}, "
            f"x {disk / found['disk']:.3f}",
            flush=True,
        )


# ---------------------------------------------------------------- after the pass, at full size

N_LAYERS, D_MLP, N_LANGUAGES = 80, 28_672, 100
TOKENS = 1000  # of each piece


def write_pieces(folder: Path, n_shards: int) -> dict[str, float]:
    """Made-up counts: rates that differ by neuron, and 40 neurons per language for it alone."""
    codes = tuple(f"l{number:03d}" for number in range(N_LANGUAGES))
    plan = {
        "n_layers": N_LAYERS,
        "d_mlp": D_MLP,
        "languages": list(codes),
        "n_shards": n_shards,
        "wanted": {"moments": False, "sentence_means": [], "signs": False},
    }
    artifacts.begin(folder, plan)
    generator = torch.Generator().manual_seed(0)
    usual = (torch.rand(N_LAYERS, D_MLP, generator=generator) ** 2 * 600).long()
    for shard in range(n_shards):
        for row, code in enumerate(codes):
            fired = usual + torch.randint(100, usual.shape, generator=generator)
            for other in range(N_LANGUAGES):
                fired[planted(other)] = 900 if other == row else 1
            tensors = {"firing.fired": fired, "firing.tokens": torch.tensor([TOKENS])}
            labels = {"shard": shard, "language": code, "sources": []}
            path = folder / "pieces" / f"{shard:04d}-{code}.safetensors"
            artifacts.save(path, PIECE, tensors, labels, {})
    return {}


def planted(row: int) -> tuple[int, slice]:
    """Layer and neurons that were made for a language."""
    return row % N_LAYERS, slice(40 * row, 40 * row + 40)


def merge_pieces(folder: Path, n_shards: int) -> dict[str, float]:
    return {"neurons": float(merge(folder).fired[0, 0].numel())}


def select(folder: Path, n_shards: int) -> dict[str, float]:
    """What `interp find` selects; how many of the planted neurons it finds."""
    start = time.perf_counter()
    rate = FiringStats.load(folder / "firing.safetensors").rate
    loaded, start = time.perf_counter() - start, time.perf_counter()
    codes = tuple(f"l{number:03d}" for number in range(N_LANGUAGES))
    selection = select_from_rate(rate, codes, fraction=0.01)
    chosen = time.perf_counter() - start
    found = sum(int(selection.mask[row][planted(row)].sum()) for row in range(N_LANGUAGES))
    return {
        "seconds reading": loaded,
        "seconds selecting": chosen,
        "planted found": found / (40 * N_LANGUAGES),
    }


def precision(folder: Path, n_shards: int) -> dict[str, float]:
    """Average precision of the neurons of one layer on 20 sentences of each language."""
    generator = torch.Generator().manual_seed(0)
    labels = repeat(torch.arange(N_LANGUAGES), "language -> (language sentence)", sentence=20)
    responses = torch.randn(len(labels), D_MLP, generator=generator)
    start = time.perf_counter()
    precision_and_area(responses, labels, N_LANGUAGES)
    return {"hours for all layers": (time.perf_counter() - start) * N_LAYERS / 3600}


STEPS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "write pieces": write_pieces,
    "merge": merge_pieces,
    "select": select,
    "average precision of a layer": precision,
}


def paper(config: Config) -> None:
    print(f"{N_LAYERS} x {D_MLP:,} neurons, {N_LANGUAGES} languages, {config.n_shards} shards")
    folder = Path(tempfile.mkdtemp(dir=config.folder))
    try:
        for name in STEPS:
            step = {"step": name, "folder": str(folder), "n_shards": config.n_shards}
            (found,) = started_together([step])
            seconds, memory = found.pop("seconds"), found.pop("memory")
            rest = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
            print(f"{name:<30} {seconds:>7.1f} s {memory:>7.0f} MiB   {rest}", flush=True)
    finally:
        shutil.rmtree(folder)


def step_once(name: str, folder: Path, n_shards: int) -> dict[str, float]:
    before = resident()
    start, worked = time.perf_counter(), time.process_time()
    found = STEPS[name](folder, n_shards)
    return {
        "seconds": time.perf_counter() - start,
        "memory": peak() - before,
        "seconds of work": time.process_time() - worked,  # on a busy machine less than passed
        **found,
    }


# ---------------------------------------------------------------- processes


def resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def peak() -> float:
    """MiB that this process held at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def started_together(tasks: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What each prints as its last line, from processes that run at the same time."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--child"]
    running = [
        subprocess.Popen([*command, json.dumps(task)], stdout=subprocess.PIPE, text=True)
        for task in tasks
    ]
    found = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("A run failed; what it said is above.")
    return [json.loads(text.splitlines()[-1]) for text in found]


def main(config: Config) -> None:
    if config.child:
        task = json.loads(config.child)
        if "step" in task:
            found = step_once(task["step"], Path(task["folder"]), task["n_shards"])
        else:
            size = Size(**task["size"])
            found = run_once(size, Path(task["model"]), Path(task["out"]), task["part"])
        print(json.dumps(found))
        return
    {"sweep": sweep, "plan": compare_plans, "paper": paper}[config.what](config)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

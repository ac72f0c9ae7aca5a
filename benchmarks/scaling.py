"""What grows with what? Time, memory and disk against tokens, layers, neurons, languages, shards.

    python -m benchmarks.scaling sweep     # measured, one line a run: 8 minutes on two cores
    python -m benchmarks.scaling sweep --only layers shards   # a part; what is there is not rerun
    python -m benchmarks.scaling plan      # what `interp plan` says, and what runs take: 4 minutes
    python -m benchmarks.scaling paper     # after the pass, at 80 layers x 28,672 neurons x 100
                                           # languages, on made-up counts: 25 minutes, 4 GB of disk
    python -m benchmarks.scaling paper --n-shards 20          # 20 minutes, 41 GB of disk

Every run is a process of its own, because peak memory belongs to a process; what the imported
library takes is subtracted. The models have random weights and the text is random tokens. `paper`
shows that nothing but the forward pass needs a large machine: merging, selecting, intervals,
average precision and the neuron page run here at the size of a model with 70 billion parameters.
Whole tables, not parts, are written to benchmarks/results.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import tyro
from einops import rearrange, repeat
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM
from tyro.conf import Positional

import interp
from benchmarks.made_up import MIB, peak_mib
from benchmarks.turns import RESULTS, Row, keeping
from interp.counting.pieces import PIECE, piece_path
from interp.counting.plan import RunPlan, plan_run
from interp.counting.stats import FiringStats
from interp.counting.top_contexts import TopContexts
from interp.inference.intervals import jackknife
from interp.results import artifacts
from interp.runs.folder import begin
from interp.scores.ranks import precision_and_area
from interp.selections.neuron_selection import NeuronSelection, select_from_rate
from interp.text.corpora import Corpora, Rows
from interp.text.languages import LANGUAGES
from tests.tiny_models import tokenizer


@dataclass(frozen=True)
class Config:
    """What to run."""

    what: Positional[Literal["sweep", "plan", "paper"]] = "plan"
    """sweep: one size after another; plan: predictions; paper: a simulation at full size."""

    only: tuple[str, ...] = ()
    """Of the sweep: what to vary (tokens, layers, neurons, languages, shards, workers); of `paper`:
    steps to make, where `folder` keeps those before. Nothing: all."""

    most_tokens: int = 10_000_000
    """Of the sweep over tokens."""

    kept: Path = Path(tempfile.gettempdir()) / "scaling.json"
    """Runs of the sweep that are done; those of another size of model or text are made anew."""

    n_shards: int = 1
    """Of `paper`. Disk grows by 1.8 GB with each, and by as much once more with the second."""

    n_layers: int = 80
    """Of `paper`."""

    folder: Path = Path(tempfile.gettempdir())
    """Where runs are written, and removed again."""

    child: str = ""
    """Used for its own subprocesses: what one of them runs."""

    out: Path = RESULTS
    """Folder for the numbers."""


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
        "num_attention_heads": max(1, size.d_model // 64),
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
        "keep": interp.Keep(moments=size.moments),
        "tokens_per_batch": size.tokens_per_batch,
        "progress": False,
    }
    share = None if part is None else (part, size.workers)
    interp.collect(model, corpora, out, part=share, **settings)
    return {"seconds": time.perf_counter() - start, "memory": peak_mib() - before}


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
            interp.Run.open(out).merge()
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
            keep=interp.Keep(moments=size.moments),
        )


def sweep(config: Config) -> None:
    """One run after the other, and a table of those that are done."""
    if unknown := set(config.only) - set(SWEEPS):
        raise SystemExit(f"{unknown} is not varied: give some of {', '.join(SWEEPS)}.")
    path = None if config.only else config.out / "scaling-sweep.json"
    settings = {"usual": asdict(Size()), "most_tokens": config.most_tokens}
    with keeping(path, "python -m benchmarks.scaling sweep", settings) as rows:
        rows += grown(config)


def grown(config: Config) -> list[Row]:
    done = json.loads(config.kept.read_text()) if config.kept.exists() else {}
    rows: list[Row] = []
    print(f"{'':<10} {'':>12} {'seconds':>9} {'MiB memory':>11} {'MiB disk':>9}   times the first")
    for name in config.only or SWEEPS:
        first: dict[str, float] = {}
        for value in SWEEPS[name]:
            if name == "tokens" and value > config.most_tokens:
                continue
            size = replace(Size(), **{name: value})
            if name == "tokens":  # so many that a small model must do
                size = replace(size, layers=2, neurons=256, d_model=64, languages=1)
            key = json.dumps(asdict(size), sort_keys=True)
            if key not in done:
                done[key] = measure(size, config.folder)
                artifacts.write_text(config.kept, json.dumps(done, indent=1) + "\n")
            found = done[key]
            first = first or found
            times = " ".join(f"{found[each] / first[each]:>6.2f}" for each in found)
            print(
                f"{name:<10} {value:>12,} {found['seconds']:>9.1f} {found['memory']:>11.0f} "
                f"{found['disk']:>9.1f}   {times}",
                flush=True,
            )
            rows.append({"varied": name, "value": value} | in_columns(found))
    return rows


def in_columns(found: dict[str, float]) -> Row:
    return {"seconds": found["seconds"], "mib": found["memory"], "disk_mib": found["disk"]}


def compare_plans(config: Config) -> None:
    shapes = {name: asdict(size) for name, size in SHAPES.items()}
    path = config.out / "scaling-plan.json"
    with keeping(path, "python -m benchmarks.scaling plan", shapes) as rows:
        rows += beside_runs(config)


def beside_runs(config: Config) -> list[Row]:
    rows: list[Row] = []
    wrong = 0.0  # of disk
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
        rows.append({"shape": name, "planned": memory, "measured": found["memory"]})
        wrong = max(wrong, abs(disk / found["disk"] - 1))
    return [*rows, {"disk_error": wrong}]


# ---------------------------------------------------------------- after the pass, at full size

D_MLP, N_LANGUAGES = 28_672, 100
TOKENS = 1000  # of each piece
CODES = tuple(f"l{number:03d}" for number in range(N_LANGUAGES))


@dataclass(frozen=True)
class Shape:
    """Of the counts."""

    n_shards: int
    n_layers: int

    def planted(self, row: int) -> tuple[int, slice]:
        """Layer and neurons that were made for a language."""
        return row % self.n_layers, slice(40 * row, 40 * row + 40)


def write_pieces(folder: Path, shape: Shape) -> dict[str, float]:
    """Made-up counts: rates that differ by neuron, and 40 neurons per language for it alone.

    From the third shard on, the files are those of the first two under other names.
    """
    plan = {
        "n_layers": shape.n_layers,
        "d_mlp": D_MLP,
        "languages": list(CODES),
        "n_shards": shape.n_shards,
        "wanted": {"moments": False, "sentence_means": [], "signs": False},
    }
    begin(folder, plan)
    generator = torch.Generator().manual_seed(0)
    usual = (torch.rand(shape.n_layers, D_MLP, generator=generator) ** 2 * 600).long()
    for shard in range(shape.n_shards):
        for row, code in enumerate(CODES):
            path = piece_path(folder, shard, code)
            if shard >= 2:
                path.hardlink_to(piece_path(folder, shard % 2, code))
                continue
            fired = usual + torch.randint(100, usual.shape, generator=generator)
            for other in range(N_LANGUAGES):
                fired[shape.planted(other)] = 900 if other == row else 1
            tensors = {"firing.fired": fired, "firing.tokens": torch.tensor([TOKENS])}
            labels = {"shard": shard, "language": code, "sources": []}
            artifacts.save(path, PIECE, tensors, labels, {})
    return {}


def merge_pieces(folder: Path, shape: Shape) -> dict[str, float]:
    stats = interp.Run.open(folder).merge().firing
    return {"neurons": stats.n_layers * stats.n_neurons}


def select(folder: Path, shape: Shape) -> dict[str, float]:
    """What `interp find` selects; how many of the planted neurons it finds."""
    start = time.perf_counter()
    rate = FiringStats.load(folder / "firing.safetensors").rate
    loaded, start = time.perf_counter() - start, time.perf_counter()
    selection = select_from_rate(rate, CODES, fraction=0.01)
    chosen = time.perf_counter() - start
    found = sum(int(selection.mask[row][shape.planted(row)].sum()) for row in range(N_LANGUAGES))
    selection.to_json(folder / "neurons.json")
    return {
        "seconds reading": loaded,
        "seconds selecting": chosen,
        "planted found": found / (40 * N_LANGUAGES),
    }


def intervals(folder: Path, shape: Shape) -> dict[str, float]:
    """Mean rate of each language, with its interval over shards."""
    stats = FiringStats.load(folder / "firing.safetensors")
    mean = jackknife(stats, lambda part: part.rate.mean(dim=(1, 2)))
    return {"relative error": float((mean.standard_error / mean.value).max())}


def precision(folder: Path, shape: Shape) -> dict[str, float]:
    """Average precision of the neurons of one layer on 20 sentences of each language."""
    generator = torch.Generator().manual_seed(0)
    labels = repeat(torch.arange(N_LANGUAGES), "language -> (language sentence)", sentence=20)
    responses = torch.randn(len(labels), D_MLP, generator=generator)
    start = time.perf_counter()
    precision_and_area(responses, labels, N_LANGUAGES)
    return {"hours for all layers": (time.perf_counter() - start) * shape.n_layers / 3600}


def write_page(folder: Path, shape: Shape) -> dict[str, float]:
    """The page of the neurons selected, one context for each neuron and language, and a model as
    wide as the large one where its neurons are and very narrow elsewhere."""
    size = Size(layers=shape.n_layers, neurons=D_MLP, d_model=16)
    save_model(size, folder / "model")
    model = interp.load(folder / "model", device="cpu")
    start, before = time.perf_counter(), resident()
    # More languages than are known by their names.
    language = "interp.reports.neuron_page.language"
    with patch(language, lambda code: replace(LANGUAGES["en"], code=code)):
        page = interp.neuron_page(
            model,
            FiringStats.load(folder / "firing.safetensors"),
            {"LAPE": NeuronSelection.from_json(folder / "neurons.json")},
            made_up_contexts(shape.n_layers),
            progress=False,
        )
    made, start = time.perf_counter() - start, time.perf_counter()
    path = page.save(folder / "page.html")
    written = time.perf_counter() - start
    parts = [path] if path.name == "page.html" else path.parent.iterdir()
    files = [each.stat().st_size / MIB for each in parts]
    return {
        "neurons": page.n_neurons,
        "seconds making": made,
        "seconds writing": written,
        "MiB of the model": before,
        "MiB of the index": path.stat().st_size / MIB,
        "MiB of all files": sum(files),
        "MiB of the largest": max(files),
    }


def made_up_contexts(n_layers: int) -> TopContexts:
    """A row of random tokens in each language, and in it each neuron's strongest; as few and as
    short as they can be, for the forward pass of these rows is not what is measured."""
    generator = torch.Generator().manual_seed(0)
    shape, rows = (N_LANGUAGES, n_layers, D_MLP, 1), (N_LANGUAGES, 40)
    number = rearrange(torch.arange(N_LANGUAGES).int(), "language -> language 1 1 1")
    return TopContexts(
        gate=torch.ones(shape),
        row=number.expand(shape).contiguous(),
        position=torch.randint(rows[1], shape, generator=generator, dtype=torch.int32),
        ids=torch.randint(4, 250, rows, generator=generator, dtype=torch.int32),
        length=torch.full((N_LANGUAGES,), rows[1]),
        number=torch.zeros(N_LANGUAGES, dtype=torch.int64),
        sources=tuple(f"{code}.txt:0" for code in CODES),
        languages=CODES,
    )


STEPS: dict[str, Callable[[Path, Shape], dict[str, float]]] = {
    "pieces": write_pieces,
    "merge": merge_pieces,
    "select": select,
    "intervals": intervals,
    "precision": precision,
    "page": write_page,
}

SAID = {
    "pieces": "write the pieces",
    "merge": "merge",
    "select": "read and select",
    "intervals": "intervals",
    "precision": "average precision of one layer",
    "page": "the neuron page",
}


def paper(config: Config) -> None:
    shape = Shape(config.n_shards, config.n_layers)
    print(f"{shape.n_layers} x {D_MLP:,} neurons, {N_LANGUAGES} languages, {shape.n_shards} shards")
    name, more = (
        ("shards", f" --n-shards {shape.n_shards}") if shape.n_shards > 1 else ("paper", "")
    )
    whole = not config.only and shape.n_layers == Config.n_layers
    path = config.out / f"scaling-{name}.json" if whole else None
    with keeping(path, f"python -m benchmarks.scaling paper{more}", asdict(shape)) as rows:
        rows += steps(config, shape)


def steps(config: Config, shape: Shape) -> list[Row]:
    rows: list[Row] = []
    folder = config.folder if config.only else Path(tempfile.mkdtemp(dir=config.folder))
    try:
        for name in config.only or STEPS:
            if name == "intervals" and shape.n_shards < 2:
                continue  # one shard has none
            step = {"step": name, "folder": str(folder), "shape": asdict(shape)}
            (found,) = started_together([step])
            seconds, memory = found.pop("seconds"), found.pop("memory")
            rest = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
            print(f"{name:<12} {seconds:>7.1f} s {memory:>7.0f} MiB   {rest}", flush=True)
            told = {"step": SAID[name], "seconds": found["seconds of work"], "mib": memory}
            rows.append(told)
    finally:
        if not config.only:
            shutil.rmtree(folder)
    return rows


def step_once(name: str, folder: Path, shape: Shape) -> dict[str, float]:
    before = resident()
    start, worked = time.perf_counter(), time.process_time()
    found = STEPS[name](folder, shape)
    return {
        "seconds": time.perf_counter() - start,
        "memory": peak_mib() - before,
        "seconds of work": time.process_time() - worked,  # on a busy machine less than passed
        **found,
    }


# ---------------------------------------------------------------- processes


def resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


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
            found = step_once(task["step"], Path(task["folder"]), Shape(**task["shape"]))
        else:
            size = Size(**task["size"])
            found = run_once(size, Path(task["model"]), Path(task["out"]), task["part"])
        print(json.dumps(found))
        return
    {"sweep": sweep, "plan": compare_plans, "paper": paper}[config.what](config)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

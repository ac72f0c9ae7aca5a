"""What does everything after the forward pass cost for a model of 70 billion parameters?

    python -m benchmarks.full_size                  # 25 minutes, 4 GB of disk
    python -m benchmarks.full_size --n-shards 20    # 20 minutes, 41 GB of disk

80 layers x 28,672 neurons x 100 languages, with synthetic counts: merging, selecting, intervals,
average precision and the neuron page. Only the forward pass needs a large machine. Every step runs
in its own process, because peak memory belongs to a process; the memory of the imported library is
subtracted. Each further shard adds 1.8 GB of disk, the second twice that; TMPDIR says where.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from einops import rearrange, repeat

import interp
from benchmarks import memory, records, synthetic
from benchmarks.records import Row, Size, recording
from interp.counting.pieces import PIECE, piece_path
from interp.counting.stats import FiringStats
from interp.counting.top_contexts import TopContexts
from interp.inference.intervals import jackknife
from interp.results import artifacts
from interp.runs.folder import begin
from interp.scores.ranks import precision_and_area
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_from_rate

TOKENS = 1000
"""Tokens per piece."""

VOCABULARY = 1000


@dataclass(frozen=True)
class Config(records.Config):
    """What to run."""

    n_shards: int = 1
    """Shards; with one there are no intervals."""


@dataclass(frozen=True)
class Shape:
    """Shape of the counts."""

    n_layers: int = 80
    d_mlp: int = 28_672
    n_languages: int = 100
    n_shards: int = 1

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(f"l{number:03d}" for number in range(self.n_languages))

    def planted(self, row: int) -> tuple[int, slice]:
        """Layer and neurons that fire for one language alone."""
        return row % self.n_layers, slice(40 * row, 40 * row + 40)


AMOUNTS: dict[Size, Shape] = {
    "full": Shape(),
    "bench": Shape(),
    "toy": Shape(n_layers=2, d_mlp=8000, n_languages=3),
}


def write_pieces(folder: Path, shape: Shape) -> Row:
    """Synthetic counts: rates that differ by neuron, and 40 neurons that fire for one language.

    From the third shard on, files are hard links to those of the first two.
    """
    plan = {
        "n_layers": shape.n_layers,
        "d_mlp": shape.d_mlp,
        "languages": list(shape.codes),
        "n_shards": shape.n_shards,
        "wanted": {"moments": False, "sentence_means": [], "signs": False},
    }
    begin(folder, plan)
    generator = torch.Generator().manual_seed(0)
    base = (torch.rand(shape.n_layers, shape.d_mlp, generator=generator) ** 2 * 600).long()
    for shard in range(shape.n_shards):
        for row, code in enumerate(shape.codes):
            path = piece_path(folder, shard, code)
            if shard >= 2:
                path.hardlink_to(piece_path(folder, shard % 2, code))
                continue
            fired = base + torch.randint(100, base.shape, generator=generator)
            for other in range(shape.n_languages):
                fired[shape.planted(other)] = 900 if other == row else 1
            tensors = {"firing.fired": fired, "firing.tokens": torch.tensor([TOKENS])}
            labels = {"shard": shard, "language": code, "sources": []}
            artifacts.save(path, PIECE, tensors, labels, {})
    return {}


def merge_pieces(folder: Path, shape: Shape) -> Row:
    interp.Run.open(folder).merge()
    return {}


def select(folder: Path, shape: Shape) -> Row:
    """Select as `interp find` does; returns the share of the planted neurons that it finds."""
    rate = FiringStats.load(folder / "firing.safetensors").rate
    selection = select_from_rate(rate, shape.codes, fraction=0.01)
    recovered = sum(
        int(selection.mask[row][shape.planted(row)].sum()) for row in range(shape.n_languages)
    )
    selection.to_json(folder / "neurons.json")
    return {"planted_recovered": recovered / (40 * shape.n_languages)}


def intervals(folder: Path, shape: Shape) -> Row:
    """Mean rate of each language, with its interval over shards."""
    stats = FiringStats.load(folder / "firing.safetensors")
    mean = jackknife(stats, lambda part: part.rate.mean(dim=(1, 2)))
    return {"relative_error": float((mean.standard_error / mean.value).max())}


def precision(folder: Path, shape: Shape) -> Row:
    """Average precision of the neurons of one layer on 20 sentences of each language."""
    generator = torch.Generator().manual_seed(0)
    labels = repeat(torch.arange(shape.n_languages), "language -> (language sentence)", sentence=20)
    responses = torch.randn(len(labels), shape.d_mlp, generator=generator)
    precision_and_area(responses, labels, shape.n_languages)
    return {}


def write_page(folder: Path, shape: Shape) -> Row:
    """The page of the selected neurons, with one context for each neuron and language.

    The model has the MLP of the large one but a very narrow residual stream.
    """
    narrow = synthetic.llama(shape.n_layers, 16, shape.d_mlp, VOCABULARY)
    model = interp.load(synthetic.save_model(narrow, folder / "model"), device="cpu")
    page = interp.neuron_page(
        model,
        FiringStats.load(folder / "firing.safetensors"),
        {"LAPE": NeuronSelection.from_json(folder / "neurons.json")},
        random_contexts(shape),
        progress=False,
    )
    path = page.save(folder / "page.html")
    parts = [path] if path.name == "page.html" else path.parent.iterdir()
    written = sum(part.stat().st_size for part in parts) / memory.MIB
    return {"neurons": page.n_neurons, "mib_written": written}


def random_contexts(shape: Shape) -> TopContexts:
    """One row of random tokens per language, in which every neuron has its strongest context.

    Rows are few and short, because their forward pass is not measured.
    """
    generator = torch.Generator().manual_seed(0)
    rows = (shape.n_languages, 40)
    neurons = (shape.n_languages, shape.n_layers, shape.d_mlp, 1)
    number = rearrange(torch.arange(shape.n_languages).int(), "language -> language 1 1 1")
    return TopContexts(
        gate=torch.ones(neurons),
        row=number.expand(neurons).contiguous(),
        position=torch.randint(rows[1], neurons, generator=generator, dtype=torch.int32),
        ids=torch.randint(1, VOCABULARY, rows, generator=generator, dtype=torch.int32),
        starts=torch.zeros(rows, dtype=torch.bool),
        length=torch.full((shape.n_languages,), rows[1]),
        number=torch.zeros(shape.n_languages, dtype=torch.int64),
        sources=tuple(f"{code}.txt:0" for code in shape.codes),
        languages=shape.codes,
    )


STEPS: dict[str, Callable[[Path, Shape], Row]] = {
    "write the pieces": write_pieces,
    "merge": merge_pieces,
    "read and select": select,
    "intervals": intervals,
    "average precision of one layer": precision,
    "the neuron page": write_page,
}


def measure(step: str, folder: Path, shape: Shape) -> Row:
    """CPU seconds and peak memory of one step, with the details it returns."""
    before, start = memory.resident_mib(), time.process_time()
    details = STEPS[step](folder, shape)
    seconds = time.process_time() - start  # elapsed time would count other work
    return {"step": step, "seconds": seconds, "mib": memory.peak_mib() - before, **details}


def main(config: Config) -> None:
    shape = replace(AMOUNTS[config.size], n_shards=config.n_shards)
    name = "full_size-shards" if shape.n_shards > 1 else "full_size"
    with TemporaryDirectory() as folder, recording(name, config, shape) as record:
        for step in STEPS:
            if step == "intervals" and shape.n_shards < 2:
                continue
            record(memory.in_subprocess(measure, step, Path(folder), shape))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""What does average precision of every unit cost? Ours against a loop over scikit-learn.

    python -m benchmarks.average_precision             # ratios to scikit-learn: 2 minutes
    python -m benchmarks.average_precision --memory    # peak memory of a streamed run: 2 minutes

Synthetic responses of as many sentences and languages as Kojima et al. (2024) use, and of more.
The loop is what the authors do: `average_precision_score`, unit by unit and language by language.
Ours also gives the area under the ROC curve. The variants take turns on one thread; each time is
divided by the loop's in the same round, and the median of the rounds is printed.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from jaxtyping import Float, Float64, Int
from safetensors import safe_open
from sklearn.metrics import average_precision_score
from torch import Tensor

from benchmarks import memory
from benchmarks.records import Row, Size, SpeedOrMemory, recording
from benchmarks.timing import clock, spread, take_turns
from interp.counting.sentence_means import SentenceMeans
from interp.results import artifacts
from interp.results.words import Kind
from interp.scores import ranks
from interp.scores.average_precision import average_precision, measure_precision

LOOP = "scikit-learn, unit by unit"
NUMPY, NUMBA, GPU = "ours, without numba", "ours, with numba", "ours, on the GPU"
LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")
WIDTHS: dict[Kind, int] = {
    **dict.fromkeys(("q", "k", "v", "attn_out"), 4096),
    **dict.fromkeys(("pre", "pre_linear"), 11_008),
    "mlp_out": 4096,
}
"""Widths of the linear outputs of a layer of LLaMA-2-7B."""


@dataclass(frozen=True)
class Case:
    """Synthetic responses, and how many of them each variant scores."""

    sentences: int
    languages: int
    dtype: str
    loop_units: int
    """Units per turn of the loop over scikit-learn."""

    units: int
    """Units per turn of ours."""

    @property
    def name(self) -> str:
        return f"{self.sentences:,} sentences, {self.languages} languages, {self.dtype}"


@dataclass(frozen=True)
class Amount:
    """How much is scored."""

    cases: tuple[Case, ...]

    rounds: int = 5
    """Turns of each variant."""

    sentences: int = 3000
    """Sentences in six languages, for memory."""

    layers: tuple[int, ...] = (1, 3)
    """Numbers of layers, of 42,496 units each, for memory; LLaMA-2-7B has 32."""


CASES = (
    Case(3000, 6, "float32", 6, 2000),
    Case(3000, 6, "bfloat16", 6, 2000),
    Case(10_000, 12, "bfloat16", 2, 600),
    Case(3000, 6, "float64", 6, 1000),
)
AMOUNTS: dict[Size, Amount] = {
    "full": Amount(CASES),
    "bench": Amount(CASES, rounds=2, layers=(1,)),
    "toy": Amount((Case(60, 6, "bfloat16", 3, 20),), rounds=1, sentences=12, layers=(1,)),
}


def responses_of(case: Case) -> tuple[Float[Tensor, "sentence unit"], Int[Tensor, " sentence"]]:
    """Noise, with some units that detect a language, some with many ties and some constant."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(case.sentences) % case.languages
    responses = torch.randn(case.sentences, case.units, generator=generator)
    responses[:, ::3] += 2 * (labels == 1).float()[:, None]
    responses[:, 1::10] = responses[:, 1::10].clamp_min(0)
    responses[:, 5::100] = 1.0
    return responses.to(getattr(torch, case.dtype)), labels


def loop(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"], n_languages: int
) -> Float64[Tensor, "language unit"]:
    """scikit-learn, unit by unit and language by language."""
    values = responses.T.contiguous().double().numpy()  # converted once, not unit by unit
    truth = [(labels == language).numpy() for language in range(n_languages)]
    return torch.tensor(
        [[average_precision_score(y, unit) for unit in values] for y in truth],
        dtype=torch.float64,
    )


def without_numba(run: Callable[[], Tensor]) -> Tensor:
    compiled = ranks._compiled
    ranks._compiled = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return run()
    finally:
        ranks._compiled = compiled


def measure(case: Case, rounds: int, device: str) -> list[Row]:
    """Units per second as a multiple of the loop's, and the largest difference of the scores."""
    responses, labels = responses_of(case)
    few, n, inputs = responses[:, : case.loop_units], case.languages, responses.to(device)

    def score() -> Tensor:
        return average_precision(inputs, labels, n)[:, : case.loop_units].cpu()

    variants: dict[str, Callable[[], Tensor]] = {LOOP: lambda: loop(few, labels, n)}
    if device != "cpu":
        variants[GPU] = score
    else:
        variants[NUMPY] = lambda: without_numba(score)
        if ranks._compiled() is not None:
            variants[NUMBA] = score
    turns = take_turns(variants, rounds, clock(device))
    rows: list[Row] = []
    for way, times in turns.multiples().items():
        units = case.loop_units if way == LOOP else case.units
        faster = spread([units / case.loop_units / time for time in times])
        difference = float((turns.values[way] - turns.values[LOOP]).abs().max())
        rate = units / statistics.median(turns.seconds[way])
        rates = {"units_per_second": rate, "difference": difference}
        rows.append({"case": case.name, "way": way, **faster, **rates})
    return rows


def measure_speed(config: SpeedOrMemory) -> None:
    torch.set_num_threads(1)
    amount = AMOUNTS[config.size]
    with recording("average_precision", config, amount) as record:
        for case in amount.cases:
            record(*measure(case, amount.rounds, config.device))


def measure_memory(config: SpeedOrMemory) -> None:
    amount = AMOUNTS[config.size]
    with recording("average_precision-memory", config, amount) as record:
        for layers in amount.layers:
            with TemporaryDirectory() as folder:
                save_means(Path(folder), amount.sentences, layers)
                record(memory.in_subprocess(streamed, Path(folder)))


def save_means(folder: Path, sentences: int, layers: int) -> None:
    """Files as `collect` writes them, one for each language."""
    n_rows = sentences // len(LANGUAGES)
    for row, code in enumerate(LANGUAGES):
        generator = torch.Generator().manual_seed(row)
        tensors = {
            f"means.{kind}.{layer}": torch.randn(n_rows, width, generator=generator)
            for kind, width in WIDTHS.items()
            for layer in range(layers)
        }
        artifacts.save(folder / f"{code}.safetensors", "Piece", tensors, {}, {})


def streamed(folder: Path) -> dict[str, float]:
    """Time of a run over files, and its memory above that of the imported libraries."""
    torch.set_num_threads(1)
    paths = tuple(folder / f"{code}.safetensors" for code in LANGUAGES)
    with safe_open(paths[0], framework="pt") as file:
        n_rows = file.get_slice("means.pre.0").get_shape()[0]
    labels = torch.arange(len(LANGUAGES)).repeat_interleave(n_rows)
    average_precision(torch.rand(2, 1), torch.tensor([0, 1]), 2)  # loads numba and compiles
    before, start = memory.peak_mib(), time.perf_counter()
    precision = measure_precision(
        SentenceMeans(pieces=paths, labels=labels, languages=LANGUAGES, kinds=tuple(WIDTHS))
    )
    seconds = time.perf_counter() - start
    peak = memory.peak_mib() - before
    tensors = [value for value in vars(precision).values() if isinstance(value, torch.Tensor)]
    result = sum(tensor.nbytes for tensor in tensors) / memory.MIB
    units = precision.roc_area[0].numel()
    return {"units": units, "result_mib": result, "mib": peak, "seconds": seconds}


def main(config: SpeedOrMemory) -> None:
    (measure_memory if config.memory else measure_speed)(config)


if __name__ == "__main__":
    main(tyro.cli(SpeedOrMemory, description=__doc__))

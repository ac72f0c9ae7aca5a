"""What does average precision of every unit cost? A loop over scikit-learn beside ours, in one run.

    python -m benchmarks.average_precision             # ratios to scikit-learn: 2 minutes
    python -m benchmarks.average_precision --memory    # peak memory of a streamed run: 2 minutes

Made-up responses of as many sentences and languages as Kojima et al. (2024) use, and of more. The
loop is what the authors do: `average_precision_score`, unit by unit and language by language. Ours
also gives the area under the ROC curve, which the loop does not. The variants take turns; each turn
is divided by the loop's of the same round, and the median of the rounds is printed. All run on one
thread.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from jaxtyping import Float, Float64, Int
from safetensors import safe_open
from sklearn.metrics import average_precision_score
from torch import Tensor

from interp import artifacts
from interp.model import Kind
from interp.scores import average_precision as ours
from interp.scores import ranks
from interp.stats import SentenceMeans

LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")
WIDTHS: dict[Kind, int] = {
    **dict.fromkeys(("q", "k", "v", "attn_out"), 4096),
    **dict.fromkeys(("pre", "pre_linear"), 11_008),
    "mlp_out": 4096,
}
"""The linear outputs of a layer of LLaMA-2-7B."""


@dataclass(frozen=True)
class Config:
    """What to run."""

    rounds: int = 5
    """Turns of each variant."""

    memory: bool = False
    """Print the peak memory of a streamed run instead of speed."""

    sentences: int = 3000
    """With --memory: sentences, of six languages."""

    layers: tuple[int, ...] = (1, 3)
    """With --memory: layers of 42,496 units; LLaMA-2-7B has 32."""

    child: str = ""
    """Used by --memory for its own subprocesses: a folder of sentence means."""


@dataclass(frozen=True)
class Case:
    """Made-up responses."""

    name: str
    sentences: int
    languages: int
    dtype: torch.dtype
    loop_units: int
    """Units of one turn of the loop over scikit-learn."""

    units: int
    """Units of one turn of ours."""


CASES = (
    Case("3,000 sentences, 6 languages, float32", 3000, 6, torch.float32, 6, 2000),
    Case("3,000 sentences, 6 languages, bfloat16", 3000, 6, torch.bfloat16, 6, 2000),
    Case("3,000 sentences, 6 languages, float64", 3000, 6, torch.float64, 6, 1000),
    Case("10,000 sentences, 12 languages, bfloat16", 10_000, 12, torch.bfloat16, 2, 600),
)


def made_up(case: Case) -> tuple[Float[Tensor, "sentence unit"], Int[Tensor, " sentence"]]:
    """Noise, with units that detect a language, units that tie a lot and constant ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(case.sentences) % case.languages
    responses = torch.randn(case.sentences, case.units, generator=generator)
    responses[:, ::3] += 2 * (labels == 1).float()[:, None]
    responses[:, 1::10] = responses[:, 1::10].clamp_min(0)
    responses[:, 5::100] = 1.0
    return responses.to(case.dtype), labels


def loop(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"], n_languages: int
) -> Float64[Tensor, "language unit"]:
    """scikit-learn, unit by unit and language by language."""
    values = responses.T.contiguous().double().numpy()  # not counted as slowness of the loop
    truth = [(labels == language).numpy() for language in range(n_languages)]
    return torch.tensor(
        [[average_precision_score(each, unit) for unit in values] for each in truth],
        dtype=torch.float64,
    )


def without_numba(run: Callable[[], Tensor]) -> Tensor:
    compiled = ranks._compiled
    ranks._compiled = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return run()
    finally:
        ranks._compiled = compiled


def speed(config: Config) -> None:
    torch.set_num_threads(1)
    print("    times the loop  [least to most]   units per second")
    for case in CASES:
        responses, labels = made_up(case)
        few = responses[:, : case.loop_units]

        def score(
            responses: Tensor = responses, labels: Tensor = labels, n: int = case.languages
        ) -> Tensor:
            return ours.average_precision(responses, labels, n)

        def peer(few: Tensor = few, labels: Tensor = labels, n: int = case.languages) -> Tensor:
            return loop(few, labels, n)

        runs: dict[str, tuple[Callable[[], Tensor], int]] = {
            "scikit-learn, unit by unit": (peer, case.loop_units),
            "ours, without numba": (lambda score=score: without_numba(score), case.units),
        }
        if ranks._compiled() is not None:
            runs["ours, with numba"] = (score, case.units)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        found: dict[str, Tensor] = {}
        for number in range(config.rounds + 1):
            for name in list(runs) if number % 2 else list(reversed(runs)):
                run, units = runs[name]
                start = time.perf_counter()
                found[name] = run()[:, : case.loop_units]
                if number:  # the first round warms up, and compiles
                    rates[name].append(units / (time.perf_counter() - start))
        expected = found["scikit-learn, unit by unit"]
        worst = max(float((each - expected).abs().max()) for each in found.values())
        print(f"\n{case.name}; largest difference {worst:.0e}")
        base = rates["scikit-learn, unit by unit"]
        for name, each in rates.items():
            ratios = [mine / other for mine, other in zip(each, base, strict=True)]
            spread = f"[{min(ratios):.0f} to {max(ratios):.0f}]"
            print(
                f"    {statistics.median(ratios):8.0f}  {spread:>16}   "
                f"{statistics.median(each):12,.0f}   {name}"
            )


def memory(config: Config) -> None:
    print("      units   result MiB   peak above the libraries MiB   seconds")
    for layers in config.layers:
        with tempfile.TemporaryDirectory() as folder:
            save_means(Path(folder), config.sentences, layers)
            command = [sys.executable, "-m", "benchmarks.average_precision", "--child", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        units, result, peak, seconds = done.stdout.split()[-4:]
        print(f"{int(units):>11,}   {result:>10}   {peak:>28}   {seconds:>7}", flush=True)


def save_means(folder: Path, sentences: int, layers: int) -> None:
    """Files as `collect` leaves them, one for each language."""
    each = sentences // len(LANGUAGES)
    for row, code in enumerate(LANGUAGES):
        generator = torch.Generator().manual_seed(row)
        tensors = {
            f"means.{kind}.{layer}": torch.randn(each, width, generator=generator)
            for kind, width in WIDTHS.items()
            for layer in range(layers)
        }
        artifacts.save(folder / f"{code}.safetensors", "Piece", tensors, {}, {})


def peak_mib() -> float:
    """Of this program alone; what `resource` tells begins with the peak of the one that started it.

    Linux only.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def child(folder: Path) -> None:
    """One run in a process of its own, because peak memory belongs to a process."""
    torch.set_num_threads(1)
    paths = tuple(folder / f"{code}.safetensors" for code in LANGUAGES)
    with safe_open(paths[0], framework="pt") as file:
        each = file.get_slice("means.pre.0").get_shape()[0]
    labels = torch.arange(len(LANGUAGES)).repeat_interleave(each)
    ours.average_precision(torch.rand(2, 1), torch.tensor([0, 1]), 2)  # numba and what it compiles
    before = peak_mib()
    start = time.perf_counter()
    precision = ours.measure_precision(SentenceMeans(paths, labels, LANGUAGES, tuple(WIDTHS)))
    seconds = time.perf_counter() - start
    peak = peak_mib() - before
    tensors = [each for each in vars(precision).values() if isinstance(each, torch.Tensor)]
    result = sum(each.numel() * each.element_size() for each in tensors)
    units = precision.roc_area[0].numel()
    print(units, f"{result / 2**20:.0f}", f"{peak:.0f}", f"{seconds:.0f}")


def main(config: Config) -> None:
    if config.child:
        child(Path(config.child))
    elif config.memory:
        memory(config)
    else:
        speed(config)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""What do integrated gradients of every neuron cost? Packed what-ifs against loops over layers.

    python -m benchmarks.attribution               # time: 15 minutes on one core
    python -m benchmarks.attribution --memory      # peak memory: 10 minutes
    python -m benchmarks.attribution --device cuda

All neurons of 8 layers (d_model 256), 20 steps, probability of one token, random weights: a
Llama-shaped model of 688 neurons per layer, whose variants are packed, and a BLOOM-shaped one of
1024, whose positions cannot be set, so that keys are copied. The alternatives take one layer at a
time: the steps as a batch of whole prompts, in the usual way (logits at every position) and as fast
as we can make it (logits at the last), and captum's LayerIntegratedGradients.

Times are CPU seconds of one thread, which stay meaningful on a busy machine. Each is divided by
that of a plain forward pass (logits at the last position) just before it; the median of the rounds
is printed. The loops are timed on the first and last layer and multiplied by half the number of
layers: the backward pass gets one layer shorter per layer, so these two average to the mean.
"""

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from transformers import BloomConfig, PretrainedConfig

import interp
from benchmarks import memory, synthetic
from benchmarks.collect import bare
from benchmarks.records import Row, Size, SpeedOrMemory, recording
from benchmarks.timing import clock
from interp.prompts.attribution import integrated_gradients

LAYERS, VOCABULARY, STEPS, TARGET = 8, 8000, 20, 5
OURS = "integrated_gradients"
LOOP, LOGITS_EVERYWHERE, CAPTUM = LOOPS = (
    "loop, logits at the last",
    "loop, logits everywhere",
    "captum",
)

Family = Literal["Llama", "BLOOM"]


@dataclass(frozen=True)
class Case:
    """A prompt, and the methods that are timed on it."""

    family: Family
    tokens: int
    ways: tuple[str, ...] = (OURS, *LOOPS)

    def labels(self, way: str) -> Row:
        return {"family": self.family, "tokens": self.tokens, "way": way}


@dataclass(frozen=True)
class Amount:
    """How much is attributed."""

    cases: tuple[Case, ...]

    of_memory: tuple[Case, ...]
    """Cases whose memory is measured."""

    rounds: int = 5
    """Turns of `integrated_gradients`; each loop takes one turn."""


FULL = tuple(Case(family, n) for n in (64, 256, 1024) for family in ("Llama", "BLOOM"))
BENCH = (*FULL[:4], Case("Llama", 1024, (OURS, LOOP, CAPTUM)))
AMOUNTS: dict[Size, Amount] = {
    "full": Amount(FULL, FULL),
    "bench": Amount(BENCH, (Case("Llama", 256, (OURS, LOOP, CAPTUM)),)),
    "toy": Amount(
        (Case("Llama", 6), Case("BLOOM", 6, (OURS, LOOP))), (Case("Llama", 6, (OURS, LOOP)),), 1
    ),
}


def save_model(family: Family, folder: Path) -> Path:
    config: PretrainedConfig = (
        BloomConfig(vocab_size=VOCABULARY, hidden_size=256, n_layer=LAYERS, n_head=8)
        if family == "BLOOM"
        else synthetic.llama(
            LAYERS, 256, 688, VOCABULARY, num_attention_heads=8, tie_word_embeddings=True
        )
    )
    return synthetic.save_model(config, folder / family)


def projections(hf: Any) -> list[Any]:
    if hf.config.model_type == "bloom":
        return [block.mlp.dense_4h_to_h for block in hf.transformer.h]
    return [block.mlp.down_proj for block in hf.model.layers]


def loop(hf: Any, ids: Tensor, layers: tuple[int, ...], keep: int) -> list[Tensor]:
    """Integrated gradients layer by layer, with the steps as a batch of whole prompts."""
    alphas = ((torch.arange(STEPS, device=ids.device) + 0.5) / STEPS)[:, None]
    attributions = []
    for layer in layers:
        module = projections(hf)[layer]
        point = [torch.empty(0)]

        def put(module: Any, args: Any, point: list[Tensor] = point) -> Any:
            values = args[0].clone()
            point[0] = (alphas * values[:1, -1].detach()).requires_grad_()
            values[:, -1] = point[0]
            return (values,)

        handle = module.register_forward_pre_hook(put)
        batch = ids.expand(STEPS, -1)
        logits = hf(batch, use_cache=False, logits_to_keep=keep).logits[:, -1]
        handle.remove()
        (slope,) = torch.autograd.grad(logits.softmax(-1)[:, TARGET].sum(), point[0])
        attributions.append(point[0].detach()[-1] / alphas[-1] * slope.mean(0))
    return attributions


def captum(hf: Any, ids: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
    """The path is a factor at the last position: one is the prompt, zero the baseline."""
    from captum.attr import LayerIntegratedGradients

    one, attributions = torch.ones(1, 1, device=ids.device), []
    for layer in layers:
        module, factor = projections(hf)[layer], [one]

        def scale(module: Any, args: Any, factor: list[Tensor] = factor) -> Any:
            values = args[0].clone()
            values[:, -1] = values[:, -1] * factor[0]
            return (values,)

        def probability(factors: Tensor, factor: list[Tensor] = factor) -> Tensor:
            factor[0] = factors
            batch = ids.expand(len(factors), -1)
            logits = hf(batch, use_cache=False, logits_to_keep=1).logits[:, -1]
            return logits.softmax(-1)[:, TARGET]

        handle = module.register_forward_pre_hook(scale)
        values = LayerIntegratedGradients(probability, module).attribute(
            one,
            torch.zeros_like(one),
            n_steps=STEPS,
            method="riemann_middle",
            attribute_to_layer_input=True,
        )
        handle.remove()
        attributions.append(values)
    return attributions


def runs(
    folder: Path, length: int, device: str
) -> tuple[dict[str, Callable[[], Any]], Callable[[], None]]:
    """Each method, and a plain forward pass."""
    ids = synthetic.tokens(1, length, VOCABULARY).to(device)
    hf = bare(folder, device).requires_grad_(False)
    model = interp.load(folder, device=device)
    ends = (0, LAYERS - 1)

    def plain() -> None:
        with torch.no_grad():
            hf(ids, use_cache=False, logits_to_keep=1)

    ways: dict[str, Callable[[], Any]] = {
        OURS: lambda: integrated_gradients(model, ids[0].cpu(), TARGET, STEPS),
        LOOP: partial(loop, hf, ids, ends, keep=1),
        LOGITS_EVERYWHERE: partial(loop, hf, ids, ends, keep=0),
        CAPTUM: partial(captum, hf, ids, ends),
    }
    return ways, plain


def forwards(run: Callable[[], Any], plain: Callable[[], None], now: Callable[[], float]) -> float:
    """Cost of `run`, in plain forward passes measured just before it."""

    def seconds(run: Callable[[], Any]) -> float:
        start = now()
        run()
        return now() - start

    least = min(seconds(plain) for _ in range(5))
    return seconds(run) / least


def measure_speed(config: SpeedOrMemory, folder: Path) -> None:
    amount, now = AMOUNTS[config.size], clock(config.device, work=True)
    with recording("attribution", config, amount) as record:
        for case in amount.cases:
            ways, plain = runs(folder / case.family, case.tokens, config.device)
            ways[OURS]()  # warms up
            for way in case.ways:
                turns, share = (amount.rounds, 1) if way == OURS else (1, LAYERS / 2)
                costs = [forwards(ways[way], plain, now) for _ in range(turns)]
                record(case.labels(way) | {"forwards": share * statistics.median(costs)})


def measure_memory(config: SpeedOrMemory, folder: Path) -> None:
    amount = AMOUNTS[config.size]
    with recording("attribution-memory", config, amount) as record:
        for case in amount.of_memory:
            for way in case.ways:
                mib = memory.in_subprocess(peak, folder / case.family, way, case.tokens)
                record(case.labels(way) | {"mib": mib})


def peak(folder: Path, way: str, length: int) -> float:
    """MiB that one method takes above the model."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Attributions of")
    ways, plain = runs(folder, length, "cpu")
    plain()
    return memory.added_mib(ways[way])


def main(config: SpeedOrMemory) -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attributions of")  # meaningless with random weights
        for family in ("Llama", "BLOOM"):
            save_model(family, Path(temporary))
        (measure_memory if config.memory else measure_speed)(config, Path(temporary))


if __name__ == "__main__":
    main(tyro.cli(SpeedOrMemory, description=__doc__))

"""What do integrated gradients of every neuron cost? Packed what-ifs beside loops over layers.

    python -m benchmarks.attribution               # time: 15 minutes on one core
    python -m benchmarks.attribution --memory      # peak memory: 10 minutes

All neurons of 8 layers (d_model 256), 20 steps, probability of one token, random weights: a
Llama-shaped model of 688 neurons per layer, whose variants are packed, and a BLOOM-shaped one of
1024, whose positions cannot be set, so that keys are copied. Beside them, for one layer at a time,
the steps as a batch of whole prompts, written as it is usually written (logits at every position)
and as well as we can (logits at the last), and captum's LayerIntegratedGradients.

CPU seconds of one thread, because they mean something on a machine that does other work too. Every
time is divided by that of a plain forward pass (logits at the last position) just before it; the
median of the rounds is printed. The loops are timed on the first and the last layer, times half the
layers: going back costs a layer less with every layer, so these two are as the average.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import interp
from interp.scores.attribution import integrated_gradients

LAYERS, VOCAB, STEPS, TARGET = 8, 8000, 20, 5
OURS = "integrated_gradients"
LOOPS = ("loop, logits at the last", "loop, logits everywhere", "captum")


@dataclass(frozen=True)
class Config:
    """What to run."""

    lengths: tuple[int, ...] = (64, 256, 1024)
    """Tokens of the prompt."""

    rounds: int = 5
    """Turns of `integrated_gradients`; loops take one turn."""

    memory: bool = False
    """Print peak memory instead of time."""

    child: str = ""
    """Used by --memory for its own subprocesses: a model folder, a variant and a length."""


def save_models(folder: Path) -> None:
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    bloom = BloomConfig(vocab_size=VOCAB, hidden_size=256, n_layer=LAYERS, n_head=8)
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    for name, model in (("llama", LlamaForCausalLM(llama)), ("bloom", BloomForCausalLM(bloom))):
        model.save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / name)


def projections(hf: Any) -> list[Any]:
    if hf.config.model_type == "bloom":
        return [block.mlp.dense_4h_to_h for block in hf.transformer.h]
    return [block.mlp.down_proj for block in hf.model.layers]


def loop(hf: Any, ids: Tensor, layers: tuple[int, ...], keep: int) -> None:
    """Integrated gradients of some layers, each with its steps as a batch of whole prompts."""
    alphas = ((torch.arange(STEPS) + 0.5) / STEPS)[:, None]
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
        torch.autograd.grad(logits.softmax(-1)[:, TARGET].sum(), point[0])


def captum(hf: Any, ids: Tensor, layers: tuple[int, ...]) -> None:
    """A factor at the last position stands for the path: one is the prompt, zero the baseline."""
    from captum.attr import LayerIntegratedGradients

    for layer in layers:
        module, factor = projections(hf)[layer], [torch.ones(1, 1)]

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
        LayerIntegratedGradients(probability, module).attribute(
            torch.ones(1, 1),
            torch.zeros(1, 1),
            n_steps=STEPS,
            method="riemann_middle",
            attribute_to_layer_input=True,
        )
        handle.remove()


def runs(folder: Path, length: int) -> tuple[dict[str, Callable[[], Any]], Callable[[], Any]]:
    """Each variant, and a plain forward pass."""
    ids = torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(0))
    hf = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    model = interp.load(folder)
    ends = (0, LAYERS - 1)

    def plain() -> None:
        with torch.no_grad():
            hf(ids, use_cache=False, logits_to_keep=1)

    variants: dict[str, Callable[[], Any]] = {
        OURS: lambda: integrated_gradients(model, ids[0], TARGET, STEPS),
        LOOPS[0]: lambda: loop(hf, ids, ends, keep=1),
        LOOPS[1]: lambda: loop(hf, ids, ends, keep=0),
        LOOPS[2]: lambda: captum(hf, ids, ends),
    }
    return variants, plain


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def speed(config: Config, folder: Path) -> None:
    print("tokens  model  plain forwards   ours is faster   variant")
    for length in config.lengths:
        for name in ("llama", "bloom"):
            variants, plain = runs(folder / name, length)
            variants[OURS]()  # warms up
            cost = {}
            for variant, run in variants.items():
                turns = config.rounds if variant == OURS else 1
                found = []
                for _ in range(turns):
                    forward = min(seconds(plain) for _ in range(5))
                    found.append(seconds(run) / forward)
                cost[variant] = statistics.median(found) * (1 if variant == OURS else LAYERS / 2)
                ratio = cost[variant] / cost[OURS]
                print(
                    f"{length:>6}  {name}  {cost[variant]:>14.1f}   {ratio:>13.0f}x   {variant}",
                    flush=True,
                )


def memory(config: Config, folder: Path) -> None:
    print("tokens  model  peak above the model, MiB  variant")
    for length in config.lengths:
        for name in ("llama", "bloom"):
            for variant in (OURS, *LOOPS):
                command = [sys.executable, "-m", "benchmarks.attribution", "--child"]
                command.append(f"{folder / name}:{variant}:{length}")
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                peak, before = (float(each) for each in done.stdout.split()[-2:])
                print(f"{length:>6}  {name}  {peak - before:>25.0f}  {variant}", flush=True)


def child(folder: str, variant: str, length: int) -> None:
    """One run in a process of its own, because peak memory belongs to a process."""
    variants, plain = runs(Path(folder), length)
    plain()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    variants[variant]()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Attributions of")  # of weights that mean nothing
    if config.child:
        folder, variant, length = config.child.rsplit(":", 2)
        child(folder, variant, int(length))
        return
    with tempfile.TemporaryDirectory() as place:
        save_models(Path(place))
        (memory if config.memory else speed)(config, Path(place))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

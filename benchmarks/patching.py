"""What does patching cost? `interp.patch` against TransformerLens, one forward pass per index.

    python -m benchmarks.patching              # 4 minutes on one core
    python -m benchmarks.patching --device cuda

Llama-shaped models with random weights, one of them with as many layers as BLOOM-560m, and two
prompts of equal length. Sweeps are over the residual stream before each layer: at every token of a
64-token prompt (goal: at least 5 times faster), or at the last token only (goal: at least 10 times;
there `patch` costs little more than the two prompts, so the gain grows with the layers); and over
every head at every token (goal: at least 5 times).

`transformer_lens.patching.generic_activation_patch` runs twice: on the bridge as TransformerLens
makes it, whose attention is hooked, and on the one that `patch` uses, with Hugging Face's
attention; heads need the first. Both sides run the source prompt themselves: `patch` in its own
pass, TransformerLens with a cache of one hook point. The numbers must agree. Times are CPU seconds
of one thread; the methods take turns, and the median of the rounds is printed.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pandas as pd
import torch
import tyro
from einops import rearrange
from torch import Tensor
from transformer_lens.patching import (
    generic_activation_patch,
    get_act_patch_attn_head_out_by_pos,
    layer_pos_patch_setter,
)

import interp
from benchmarks import synthetic
from benchmarks.records import OnDevice, Row, Size, recording
from benchmarks.timing import clock, relative_difference, take_turns
from interp.prompts.patching import heads, patch

PEER = "generic_activation_patch"
SAME_BRIDGE = "generic_activation_patch, on the bridge of patch"

Where = Literal["every token", "last token", "every head and token"]

Sweep = tuple[Where, int]
"""What is patched, and the number of layers."""


@dataclass(frozen=True)
class Amount:
    """How much is patched."""

    sweeps: tuple[Sweep, ...] = (
        ("every token", 8),
        ("last token", 8),
        ("last token", 24),
        ("every head and token", 2),
    )
    """Sweeps, each over all layers."""

    length: int = 64
    """Tokens of the prompts."""

    width: int = 256
    """Width of the residual stream; the MLP is 8/3 times as wide."""

    vocabulary: int = 16_384
    """Size of the vocabulary."""

    rounds: int = 3
    """Turns of each method."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(rounds=1),
    "toy": Amount(
        (("every token", 2), ("last token", 2), ("every head and token", 2)), 6, 64, 300, 1
    ),
}


def metric(logits: Tensor) -> Tensor:
    return logits[0, -1, 5] - logits[0, -1, 9]


def run_patch(model: interp.NeuronModel, source: Tensor, target: Tensor, last: bool) -> Tensor:
    at = "last" if last else "tokens"
    return patch(model, source, target, metric, "resid_pre", "each", at).value[0, 0, ..., 0]


def run_patch_of_heads(model: interp.NeuronModel, source: Tensor, target: Tensor) -> Tensor:
    result = patch(model, source, target, metric, heads(model), "each", "tokens")
    return rearrange(result.value[0, ..., 0], "head layer pos -> layer pos head")


def run_peer_on_heads(model: interp.NeuronModel, source: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad(), redirect_stderr(io.StringIO()):
        _, cache = model.bridge.run_with_cache(
            source[None], names_filter=lambda name: name.endswith("hook_z")
        )
        return get_act_patch_attn_head_out_by_pos(model.bridge, target[None], cache, metric)


def run_peer(model: interp.NeuronModel, source: Tensor, target: Tensor, last: bool) -> Tensor:
    positions = range(len(target))[-1:] if last else range(len(target))
    index = pd.DataFrame(product(range(model.n_layers), positions), columns=["layer", "pos"])
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # hides its progress bar
        _, cache = model.bridge.run_with_cache(
            source[None], names_filter=lambda name: name.endswith(("hook_resid_pre", "hook_in"))
        )
        changes = generic_activation_patch(
            model.bridge,
            target[None],
            cache,
            metric,
            layer_pos_patch_setter,
            "resid_pre",
            index_df=index,
        )
    return changes.reshape(model.n_layers, len(positions))


def measure(sweep: Sweep, amount: Amount, device: str) -> list[Row]:
    """Times as multiples of `patch`, and the largest relative difference from its numbers."""
    positions, layers = sweep
    shape = synthetic.llama(
        layers,
        amount.width,
        8 * amount.width // 3,
        amount.vocabulary,
        initializer_range=0.1,  # large enough that patches have an effect
    )
    with TemporaryDirectory() as name:
        synthetic.save_model(shape, Path(name))
        native = interp.load(name, device=device)
        hooked = interp.load(name, device=device, attention="hooked")
    source, target = synthetic.tokens(2, amount.length, amount.vocabulary).to(device)

    def ways(last: bool) -> dict[str, Callable[[], Tensor]]:
        if positions == "every head and token":
            given = hooked, *((source[:4], target[:4]) if last else (source, target))
            return {
                "patch": lambda: run_patch_of_heads(*given),
                PEER: lambda: run_peer_on_heads(*given),
            }
        return {
            "patch": lambda: run_patch(native, source, target, last),
            PEER: lambda: run_peer(hooked, source, target, last),
            SAME_BRIDGE: lambda: run_peer(native, source, target, last),
        }

    for warm_up in ways(last=True).values():  # a whole sweep would take too long
        warm_up()
    now = clock(device, work=True)
    turns = take_turns(ways(positions == "last token"), amount.rounds, now, warm_up=False)
    return [
        row | {"apart": relative_difference(turns.values["patch"], turns.values[row["way"]])}
        for row in turns.rows(sweep=positions, layers=layers)
    ]


def main(config: OnDevice) -> None:
    torch.set_num_threads(1)
    amount = AMOUNTS[config.size]
    with recording("patching", config, amount) as record:
        for sweep in amount.sweeps:
            record(*measure(sweep, amount, config.device))


if __name__ == "__main__":
    main(tyro.cli(OnDevice, description=__doc__))

"""What does patching cost? `interp.patch` beside TransformerLens' one forward pass per index.

    python -m benchmarks.patching              # 4 minutes on one core
    python -m benchmarks.patching --device cuda

Llama-shaped models with random weights, one of them of as many layers as BLOOM-560m has, and two
prompts of one length. Every sweep is over the residual stream in front of each layer: at every
token of a 64-token prompt (wanted: at least 5 times faster), or at the last token alone (wanted: at
least 10 times; what is left there are the two prompts themselves, so it grows with the layers).

Beside `patch` stands `transformer_lens.patching.generic_activation_patch`, twice: on the bridge as
TransformerLens makes it, whose attention shows its inside, and on the very one that `patch` uses,
with the attention of Hugging Face. Both sides begin with the prompts and run the source themselves:
`patch` in a pass of its own, TransformerLens with a cache of that one site. The numbers must be the
same. CPU seconds of one thread; the ways take turns, and the median of the rounds is printed.
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
from torch import Tensor
from transformer_lens.patching import generic_activation_patch, layer_pos_patch_setter

import interp
from benchmarks import synthetic
from benchmarks.records import OnDevice, Row, Size, recording
from benchmarks.timing import clock, relative_difference, take_turns
from interp.prompts.patching import patch

ANSWERS = {"one": 5, "other": 9}
PEER = "generic_activation_patch"
SAME_BRIDGE = "generic_activation_patch, on the bridge of patch"

Sweep = tuple[Literal["every token", "last token"], int]
"""Where, and of how many layers."""


@dataclass(frozen=True)
class Amount:
    """How much is patched."""

    sweeps: tuple[Sweep, ...] = (("every token", 8), ("last token", 8), ("last token", 24))
    """Each is over all layers."""

    length: int = 64
    """Tokens of the prompts."""

    width: int = 256
    """Of the residual stream; the MLP is 8/3 times as wide."""

    vocabulary: int = 16_384
    """Tokens that the model knows."""

    rounds: int = 3
    """Turns of each way."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(rounds=1),
    "toy": Amount((("every token", 2), ("last token", 2)), 6, 64, 300, 1),
}


def ours(model: interp.NeuronModel, source: Tensor, target: Tensor, last: bool) -> Tensor:
    at = "last" if last else "tokens"
    result = patch(model, source, target, ANSWERS, "resid_pre", "each", at)
    return result.difference("one", "other")[0, 0]


def theirs(model: interp.NeuronModel, source: Tensor, target: Tensor, last: bool) -> Tensor:
    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, ANSWERS["one"]] - logits[0, -1, ANSWERS["other"]]

    positions = range(len(target))[-1:] if last else range(len(target))
    index = pd.DataFrame(product(range(model.n_layers), positions), columns=["layer", "pos"])
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # it shows a bar
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
    """Times of the other ways as multiples of `patch`, and how far their numbers are from its."""
    where, layers = sweep
    shape = synthetic.llama(
        layers,
        amount.width,
        8 * amount.width // 3,
        amount.vocabulary,
        initializer_range=0.1,  # so that it matters what is patched
    )
    with TemporaryDirectory() as name:
        synthetic.save_model(shape, Path(name))
        native = interp.load(name, device=device)
        hooked = interp.load(name, device=device, attention="hooked")
    source, target = synthetic.tokens(2, amount.length, amount.vocabulary).to(device)

    def ways(last: bool) -> dict[str, Callable[[], Tensor]]:
        return {
            "patch": lambda: ours(native, source, target, last),
            PEER: lambda: theirs(hooked, source, target, last),
            SAME_BRIDGE: lambda: theirs(native, source, target, last),
        }

    for warm_up in ways(last=True).values():  # a whole sweep would take too long
        warm_up()
    now = clock(device, work=True)
    turns = take_turns(ways(where == "last token"), amount.rounds, now, warm_up=False)
    return [
        row | {"apart": relative_difference(turns.values["patch"], turns.values[row["way"]])}
        for row in turns.rows(sweep=where, layers=layers)
    ]


def main(config: OnDevice) -> None:
    torch.set_num_threads(1)
    amount = AMOUNTS[config.size]
    with recording("patching", config, amount) as record:
        for sweep in amount.sweeps:
            record(*measure(sweep, amount, config.device))


if __name__ == "__main__":
    main(tyro.cli(OnDevice, description=__doc__))

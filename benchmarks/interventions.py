"""What does an edit cost? `intervene` against the untouched model and TransformerLens hooks.

    python -m benchmarks.interventions         # all edits: 12 minutes on 2 cores
    python -m benchmarks.interventions bench   # neurons off only: 2 minutes
    python -m benchmarks.interventions --device cuda

A Llama-shaped model with random weights (d_model 512, 8 layers of 2048 neurons), with one neuron in
a hundred edited. Reading is compared with the untouched body of the same model (goal: at most
1.05), writing with Hugging Face's `generate` (goal: at most 1.10, and at most 1.02 once the edit is
baked into a checkpoint). The variants take turns in one process; each time is divided by the first
variant's in the same round, and the median of the rounds is printed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro

import interp
from benchmarks import synthetic
from benchmarks.collect import bare, body_of
from benchmarks.records import OnDevice, Size, recording
from benchmarks.timing import Variants, clock, take_turns
from interp.interventions.edits import Edit, deactivate, intervene, override, push
from interp.scores.baselines import random_units

Block = Callable[[], AbstractContextManager[Any]]

BRIDGE, BY_HAND = "full bridge, untouched", "full bridge, hooks by hand"
FRACTION = 0.01
"""Share of each layer's neurons that is edited."""


@dataclass(frozen=True)
class Amount:
    """How much is read and written."""

    rounds: int = 15
    """Turns of each variant."""

    texts: tuple[tuple[int, int], ...] = ((8, 256), (2, 1024))
    """Rows in a batch, and tokens in a row."""

    batches: int = 2
    """Batches per turn of reading."""

    prompts: tuple[int, ...] = (1, 8)
    """Numbers of prompts that are continued at once."""

    new_tokens: int = 32
    """Tokens written per turn, after prompts of the same length."""

    every_edit: bool = True
    """False: only neurons off, and hooks by hand."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(rounds=5, batches=1, prompts=(8,), every_edit=False),
    "toy": Amount(rounds=1, texts=((2, 32),), batches=1, prompts=(2,), new_tokens=4),
}


@dataclass(frozen=True)
class Models:
    """One checkpoint, opened in all the ways that are compared."""

    bare: Any
    """The Hugging Face model, with fused attention."""

    baked: Any
    """The same, with the neurons switched off in its weights."""

    native: interp.NeuronModel
    """The model as `interp.load` opens it."""

    hooked: interp.NeuronModel
    """The full bridge, as TransformerLens opens it."""

    neurons: torch.Tensor
    """Mask of the edited neurons: [layer neuron]."""

    every_edit: bool
    """False: only neurons off, and hooks by hand."""

    def edited(self, edit: Edit, **settings: Any) -> Block:
        return lambda: intervene(self.native, {edit.site: self.neurons}, edit, **settings)

    def edits(self) -> list[tuple[str, Block]]:
        """Names and `with` blocks of our edits."""
        values = torch.full(self.neurons.shape, 0.1)
        edits: list[tuple[str, Block]] = [
            ("untouched", nullcontext),
            ("deactivate", self.edited(deactivate)),
        ]
        if not self.every_edit:
            return edits
        return [
            *edits,
            ("override by constants", self.edited(override(values))),
            ("replace act(gate)", self.edited(override(values, "act"))),
            ("add to act(gate)", self.edited(push({"act": values}))),
            ("deactivate the last token's", self.edited(deactivate, tokens="last")),
        ]

    def by_hand(self) -> AbstractContextManager[Any]:
        """Neurons off, as TransformerLens users write it."""

        def off(layer: int) -> Callable[..., torch.Tensor]:
            def hook(activation: torch.Tensor, hook: Any) -> torch.Tensor:
                activation[..., self.neurons[layer]] = 0
                return activation

            return hook

        names = [f"blocks.{layer}.mlp.hook_post" for layer in range(self.hooked.n_layers)]
        hooks = [(name, off(layer)) for layer, name in enumerate(names)]
        return self.hooked.bridge.hooks(fwd_hooks=hooks)


def open_models(folder: Path, device: str, every_edit: bool) -> Models:
    native = interp.load(folder, device=device)
    hooked = interp.load(folder, device=device, attention="hooked")
    all_neurons = torch.ones(native.n_layers, native.d_mlp, dtype=torch.bool)
    size = torch.full((native.n_layers,), max(1, round(FRACTION * native.d_mlp)))
    neurons = random_units(all_neurons, size, torch.Generator().manual_seed(0))
    baked_folder = interp.bake(native, neurons, deactivate, folder / "baked")
    plain, baked = bare(folder, device), bare(baked_folder, device)
    return Models(plain, baked, native, hooked, neurons.to(device), every_edit)


def reading(models: Models, batches: list[torch.Tensor]) -> Variants:
    """Ways to read all batches once, without unembedding; the first is the reference."""

    def read(model: interp.NeuronModel, block: Block) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), block():
                for ids in batches:
                    model.body(ids)

        return run

    return {
        **{name: read(models.native, block) for name, block in models.edits()},
        "bare Hugging Face body": body_of(models.bare, batches),
        **({BRIDGE: read(models.hooked, nullcontext)} if models.every_edit else {}),
        BY_HAND: read(models.hooked, models.by_hand),
    }


def writing(models: Models, ids: torch.Tensor, new_tokens: int) -> Variants:
    """Ways to continue all prompts, greedily and with a cache; the first is the reference."""
    mask = torch.ones_like(ids)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    def write(block: Block) -> Callable[[], None]:
        def run() -> None:
            with block():
                models.native.continuations(ids, mask, **settings)

        return run

    def plain(model: Any) -> Callable[[], None]:
        def run() -> None:
            model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **settings)

        return run

    def bridge(block: Block) -> Callable[[], None]:
        def run() -> None:
            with block():
                models.hooked.bridge.generate(
                    ids,
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    stop_at_eos=False,
                    verbose=False,
                )

        return run

    return {
        "bare Hugging Face generate": plain(models.bare),
        "the same, edit baked in": plain(models.baked),
        **{name: write(block) for name, block in models.edits()},
        **({BRIDGE: bridge(nullcontext)} if models.every_edit else {}),
        BY_HAND: bridge(models.by_hand),
    }


def main(config: OnDevice) -> None:
    amount, shape = AMOUNTS[config.size], synthetic.standard_model(config.size)
    with TemporaryDirectory() as temporary, recording("interventions", config, amount) as record:
        folder = synthetic.save_model(shape, Path(temporary))
        models = open_models(folder, config.device, amount.every_edit)
        for n_rows, length in amount.texts:
            ids = synthetic.tokens(n_rows * amount.batches, length, shape.vocab_size)
            batches = list(ids.to(config.device).split(n_rows))
            turns = take_turns(reading(models, batches), amount.rounds, clock(config.device))
            record(*turns.rows(case=f"reading {n_rows} x {length} tokens"))
        for n_rows in amount.prompts:
            ids = synthetic.tokens(n_rows, amount.new_tokens, shape.vocab_size).to(config.device)
            variants = writing(models, ids, amount.new_tokens)
            turns = take_turns(variants, amount.rounds, clock(config.device))
            record(*turns.rows(case=f"writing {n_rows} x {amount.new_tokens} tokens"))


if __name__ == "__main__":
    main(tyro.cli(OnDevice, description=__doc__))

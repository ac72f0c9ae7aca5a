"""What does an edit cost as a LoRA adapter? PEFT, merged and baked beside our hooks.

    python -m benchmarks.adapters         # four minutes on 2 cores
    python -m benchmarks.adapters bench   # fewer rounds
    python -m benchmarks.adapters --device cuda

A Llama-shaped model with random weights (d_model 512, 8 layers of 2048 neurons) writes greedily
with a cache, as many neurons of every layer switched off as the rank says. An adapter of PEFT adds
two small products to every layer; merged, and baked, the edit is in the weights and should cost
nothing. All ways take turns in one process; each time is divided by that of the bare model in the
same round. That they write the same tokens is checked, not timed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro

import interp
from benchmarks import synthetic
from benchmarks.collect import bare
from benchmarks.records import OnDevice, Size, recording
from benchmarks.timing import Variants, clock, take_turns
from interp.interventions.edits import Change, deactivate
from interp.scores.baselines import random_units

PLAIN, PEFT, MERGED, BAKED, HOOKS = (
    *("bare Hugging Face generate", "adapter through PEFT", "adapter merged"),
    *("edit baked in", "edit under our hooks"),
)


@dataclass(frozen=True)
class Amount:
    """How much is written."""

    rounds: int = 15
    """Turns of each way."""

    ranks: tuple[int, ...] = (64, 512)
    """Neurons of each layer that are switched off."""

    prompts: tuple[int, ...] = (1, 8)
    """Numbers of prompts that are continued at once."""

    new_tokens: int = 32
    """Tokens written per turn, after prompts of the same length."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(rounds=5, prompts=(8,)),
    "toy": Amount(rounds=1, ranks=(4, 8), prompts=(2,), new_tokens=4),
}


@dataclass(frozen=True)
class Edited:
    """One edit in all the ways that are compared."""

    models: dict[str, Any]
    """Plain models, by way."""

    native: interp.NeuronModel
    """The model as `interp.load` opens it."""

    off: Change
    """The edit."""


def opened(model: interp.NeuronModel, folder: Path, rank: int, device: str) -> Edited:
    """Write the edit with this many neurons per layer in every way, and open what was written."""
    import peft

    all_neurons = torch.ones(model.n_layers, model.d_mlp, dtype=torch.bool)
    size = torch.full((model.n_layers,), rank)
    neurons = random_units(all_neurons, size, torch.Generator().manual_seed(rank))
    off = Change(neurons, deactivate)
    adapter = off.to_lora(model, folder / f"adapter-{rank}", largest_rank=rank)
    baked = interp.bake(model, neurons, deactivate, folder / f"baked-{rank}")
    models = {
        PLAIN: bare(folder, device),
        PEFT: peft.PeftModel.from_pretrained(bare(folder, device), adapter).eval(),
        MERGED: peft.PeftModel.from_pretrained(bare(folder, device), adapter).merge_and_unload(),
        BAKED: bare(baked, device),
    }
    return Edited(models=models, native=model, off=off)


def writing(edited: Edited, ids: torch.Tensor, new_tokens: int) -> Variants:
    """Ways to continue all prompts, greedily and with a cache; the first is the reference."""
    mask = torch.ones_like(ids)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    def plain(model: Any) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            return model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **settings
            )

        return run

    def hooked() -> torch.Tensor:
        native = edited.native
        with native.hooks(edited.off.hooks(native)):
            return native.continuations(ids, mask, **settings)

    ways: Variants = {way: plain(model) for way, model in edited.models.items()}
    return {**ways, HOOKS: hooked}


def main(config: OnDevice) -> None:
    amount, shape = AMOUNTS[config.size], synthetic.standard_model(config.size)
    with TemporaryDirectory() as temporary, recording("adapters", config, amount) as record:
        folder = synthetic.save_model(shape, Path(temporary))
        model = interp.load(folder, device=config.device)
        for rank in amount.ranks:
            edited = opened(model, folder, rank, config.device)
            for n_rows in amount.prompts:
                ids = synthetic.tokens(n_rows, amount.new_tokens, shape.vocab_size)
                variants = writing(edited, ids.to(config.device), amount.new_tokens)
                turns = take_turns(variants, amount.rounds, clock(config.device))
                same = [
                    way
                    for way, tokens in turns.values.items()
                    if torch.equal(tokens.cpu(), turns.values[HOOKS].cpu())
                ]
                case = f"rank {rank}, {n_rows} x {amount.new_tokens} tokens"
                rows = turns.rows(case=case)
                record(*({**row, "same_tokens": row["way"] in same} for row in rows))


if __name__ == "__main__":
    main(tyro.cli(OnDevice, description=__doc__))

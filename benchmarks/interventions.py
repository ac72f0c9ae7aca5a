"""What does an edit cost? `intervene` beside the untouched model and TransformerLens' own way.

    python -m benchmarks.interventions         # multiples of the untouched: 12 minutes on 2 cores

A Llama-shaped model with random weights (d_model 512, 8 layers of 2048 neurons), one neuron in a
hundred edited. Reading is compared with the untouched body of the same model (wanted: at most
1.05), writing with Hugging Face's own `generate` (wanted: at most 1.10, and at most 1.02 once the
edit is baked into a checkpoint). The variants take turns in one process; each turn is divided by
the first variant's of the same round, and the median of the rounds is printed.
"""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from transformers import AutoModelForCausalLM

import interp
from benchmarks.collect import save_model
from benchmarks.turns import Variants, compare
from interp.interventions import Edit, deactivate, intervene, override, push

Block = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Config:
    """What to run."""

    rounds: int = 15
    """Turns of each variant."""

    batches: int = 2
    """Batches of 2048 tokens per turn of reading."""

    new_tokens: int = 32
    """Tokens written per turn, after prompts of 32."""

    fraction: float = 0.01
    """Share of each layer's neurons that is edited."""


@dataclass(frozen=True)
class Models:
    """One checkpoint, opened in every way that is compared."""

    bare: Any
    """Hugging Face's own model, with fused attention."""

    baked: Any
    """The same with the neurons switched off in its weights."""

    native: interp.NeuronModel
    """What `interp.load` gives."""

    hooked: interp.NeuronModel
    """The full bridge, as TransformerLens opens it."""

    neurons: torch.Tensor
    """Which are edited: [layer neuron]."""

    def edited(self, edit: Edit, **settings: Any) -> Block:
        return lambda: intervene(self.native, {edit.site: self.neurons}, edit, **settings)

    def edits(self) -> list[tuple[str, Block]]:
        """Blocks with our edits, and how they are called."""
        values = torch.full(self.neurons.shape, 0.1)
        return [
            ("untouched", nullcontext),
            ("deactivate", self.edited(deactivate)),
            ("override by constants", self.edited(override(values))),
            ("replace act(gate)", self.edited(override(values, "act"))),
            ("add to act(gate)", self.edited(push({"act": values}))),
            ("deactivate the last token's", self.edited(deactivate, where="last")),
        ]

    def by_hand(self) -> AbstractContextManager[Any]:
        """Neurons off, as users of TransformerLens write it."""

        def off(layer: int) -> Callable[..., torch.Tensor]:
            def hook(activation: torch.Tensor, hook: Any) -> torch.Tensor:
                activation[..., self.neurons[layer]] = 0
                return activation

            return hook

        names = [f"blocks.{layer}.mlp.hook_post" for layer in range(self.hooked.n_layers)]
        hooks = [(name, off(layer)) for layer, name in enumerate(names)]
        return self.hooked.bridge.hooks(fwd_hooks=hooks)


def open_models(folder: Path, fraction: float) -> Models:
    native, hooked = interp.load(folder), interp.load(folder, attention="hooked")
    bare: Any = AutoModelForCausalLM.from_pretrained(folder)
    noise = torch.rand(native.n_layers, native.d_mlp, generator=torch.Generator().manual_seed(0))
    neurons = noise.argsort().argsort() < max(1, round(fraction * native.d_mlp))
    written = interp.bake(native, neurons, deactivate, folder / "baked")
    baked: Any = AutoModelForCausalLM.from_pretrained(written)
    for each in (bare, baked):
        each.to(native.device)
    return Models(bare, baked, native, hooked, neurons.to(native.device))


def reading(models: Models, batches: list[torch.Tensor]) -> Variants:
    """Each reads all batches once, without unembedding; the first is the measure."""

    def read(model: interp.NeuronModel, block: Block) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), block():
                for ids in batches:
                    model.body(ids)

        return run

    def bare() -> None:
        with torch.inference_mode():
            for ids in batches:
                models.bare.model(ids, use_cache=False)

    return [
        *((name, read(models.native, block)) for name, block in models.edits()),
        ("bare Hugging Face body", bare),
        ("full bridge, untouched", read(models.hooked, nullcontext)),
        ("full bridge, hooks by hand", read(models.hooked, models.by_hand)),
    ]


def writing(models: Models, ids: torch.Tensor, new_tokens: int) -> Variants:
    """Each continues every prompt, greedily and with a cache; the first is the measure."""
    mask = torch.ones_like(ids)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    def write(block: Block) -> Callable[[], None]:
        def run() -> None:
            with block():
                models.native.generate(ids, mask, **settings)

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

    return [
        ("bare Hugging Face generate", plain(models.bare)),
        ("the same, edit baked in", plain(models.baked)),
        *((name, write(block)) for name, block in models.edits()),
        ("full bridge, untouched", bridge(nullcontext)),
        ("full bridge, hooks by hand", bridge(models.by_hand)),
    ]


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place))
        models = open_models(Path(place), config.fraction)
    generator = torch.Generator().manual_seed(0)

    def made_up(n_rows: int, length: int) -> torch.Tensor:
        ids = torch.randint(1, 32_000, (n_rows, length), generator=generator)
        return ids.to(models.native.device)

    for n_rows, length in ((8, 256), (2, 1024)):
        batches = [made_up(n_rows, length) for _ in range(config.batches)]
        compare(f"Reading {n_rows} x {length} tokens", reading(models, batches), config.rounds)
    for n_rows in (1, 8):
        variants = writing(models, made_up(n_rows, 32), config.new_tokens)
        title = f"Writing {config.new_tokens} tokens after {n_rows} x 32"
        compare(title, variants, config.rounds)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

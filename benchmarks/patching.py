"""What does patching cost? `interp.patch` beside TransformerLens' one forward pass per index.

    python -m benchmarks.patching                          # 20 minutes on one core
    python -m benchmarks.patching --rounds 1 --layers 8    # a minute

A Llama-shaped model with random weights, of as many layers as BLOOM-560m has, and two prompts of
one length. Every sweep is over the residual stream in front of each layer: at every token of a
64-token prompt (wanted: at least 5 times faster), and at the last token alone (wanted: at least 10
times; what is left there are the two prompts themselves, so it grows with the number of layers).

Beside `patch` stands `transformer_lens.patching.generic_activation_patch`, twice: on the bridge as
TransformerLens makes it, whose attention shows its inside, and on the very one that `patch` uses,
with the attention of Hugging Face. Both sides begin with the prompts and run the source themselves:
`patch` in a pass of its own, TransformerLens with a cache of that one site. The numbers must be the
same. CPU seconds of one thread; the ways take turns, and the median of the rounds is printed.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro
from tokenizers import Tokenizer, models
from torch import Tensor
from transformer_lens.patching import generic_activation_patch, layer_pos_patch_setter
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import interp
from interp.patching import patch

ANSWERS = {"one": 5, "other": 9}


@dataclass(frozen=True)
class Config:
    """What to run."""

    length: int = 64
    """Tokens of the prompts."""

    layers: int = 24
    """Layers of the model."""

    width: int = 256
    """Of its residual stream; the MLP is 8/3 times as wide."""

    vocab: int = 16_384
    """Tokens it knows."""

    rounds: int = 3
    """Turns of each way."""


def save_model(config: Config, folder: Path) -> None:
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.width,
        intermediate_size=8 * config.width // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=config.width // 64,
        max_position_embeddings=4096,
        initializer_range=0.1,
    )
    LlamaForCausalLM(llama).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"t{n}": n for n in range(config.vocab)}, "t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def ours(model: interp.NeuronModel, source: Tensor, target: Tensor, at: Any) -> Tensor:
    found = patch(model, source, target, ANSWERS, "resid_pre", "each", at)
    return found.difference("one", "other")[0, 0]


def theirs(model: interp.NeuronModel, source: Tensor, target: Tensor, places: range) -> Tensor:
    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, ANSWERS["one"]] - logits[0, -1, ANSWERS["other"]]

    index = pd.DataFrame(product(range(model.n_layers), places), columns=["layer", "pos"])
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # it shows a bar
        _, cache = model.bridge.run_with_cache(
            source[None], names_filter=lambda name: name.endswith(("hook_resid_pre", "hook_in"))
        )
        found = generic_activation_patch(
            model.bridge,
            target[None],
            cache,
            metric,
            layer_pos_patch_setter,
            "resid_pre",
            index_df=index,
        )
    return found.reshape(model.n_layers, len(places))


def compare(name: str, ways: dict[str, Callable[[], Tensor]], rounds: int) -> None:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    values = {}
    for _ in range(rounds):
        for way, run in ways.items():
            start = time.process_time()
            values[way] = run()
            seconds[way].append(time.process_time() - start)
    median = {way: statistics.median(each) for way, each in seconds.items()}
    first = next(iter(ways))
    print(f"\n{name}")
    for way in ways:
        apart = (values[way].double() - values[first].double()).abs().max().item()
        print(
            f"  {way:<40}{median[way]:8.3f} s{median[way] / median[first]:8.1f} x"
            f"    largest difference {apart:.1e}"
        )


def main(config: Config) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        save_model(config, Path(name))
        native, hooked = interp.load(name), interp.load(name, attention="hooked")
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(config.vocab, (2, config.length), generator=generator)
    every, last = range(config.length), range(config.length - 1, config.length)
    for name, at, places in (("layer x token", "tokens", every), ("last token", "last", last)):
        ways: dict[str, Callable[[], Tensor]] = {
            "patch": lambda at=at: ours(native, source, target, at),
            "TransformerLens, its own bridge": lambda places=places: theirs(
                hooked, source, target, places
            ),
            "TransformerLens, the bridge of patch": lambda places=places: theirs(
                native, source, target, places
            ),
        }
        compare(f"{name}, {config.length} tokens, {config.layers} layers", ways, config.rounds)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

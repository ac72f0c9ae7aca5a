"""What does everything cost on a real model? Gemma 3 270M, beside the bare Hugging Face model.

    python -m experiments.real_models fetch gemma3-270m
    python -m benchmarks.gemma bench           # half an hour on 2 cores, idle otherwise
    python -m benchmarks.gemma                 # more rounds, an hour and a half

18 layers of 2,048 neurons, 262,144 tokens in the vocabulary, in float32 and in bfloat16. Variants
take turns in one process; each time is divided by the first one's in the same round, and the median
of the rounds is printed. Goals: counting at most 1.05 of the body, folder and hashes included;
moments, cases of signs and the negative side together 1.15; histograms 1.35; losses 1.05 of a pass
with labels; writing under an edit 1.05 of `generate`.

Integrated gradients (20 steps, all layers, in float32) and a patching sweep stand beside the loop
over layers with the variants as a batch, and beside the unembedding of their variants alone, which
no method avoids.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from einops import rearrange
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig

import interp
from benchmarks import memory, synthetic
from benchmarks.attribution import loop
from benchmarks.collect import BARE, CHEAP, COUNTS, HISTOGRAMS, MOMENTS, body_of, collect
from benchmarks.records import Config, Size, recording
from benchmarks.timing import Variants, take_turns
from experiments.real_models import path_of
from interp.interventions.edits import deactivate, intervene
from interp.models import identity
from interp.models.gguf_checkpoint import checkpoint_of
from interp.prompts.attribution import integrated_gradients
from interp.prompts.patching import patch
from interp.scores.baselines import random_units

FIRST = "collect, firing counts, first call: hashes of model and tokenizer"
LOSSES, UNEMBEDDING = "losses", "the unembedding alone"
STEPS, TARGET, OTHER = 20, 500, 600
GEMMA_OURS = (
    COUNTS,
    MOMENTS,
    CHEAP,
    HISTOGRAMS,
    FIRST,
    LOSSES,
    "deactivate",
    "integrated_gradients",
    "patch",
)
GEMMA_OURS += ("interp.load",)
FRACTION = 0.01
"""Share of each layer's neurons that are off when text is written."""


@dataclass(frozen=True)
class Amount:
    """How much is read, written and attributed."""

    rounds: int = 5
    """Turns of each variant; of one on long text, `long_rounds`."""

    long_rounds: int = 3

    tokens: int = 8192
    """Text that is counted, in batches of 4,096 tokens."""

    long_tokens: int = 131_072
    """Text that is counted, in bfloat16 with all statistics too."""

    length: int = 128
    """Tokens of a row."""

    loss_rows: int = 4
    """Rows whose losses are computed, two at a time."""

    new_tokens: int = 32
    """Tokens written, after as many prompts of that length as `prompts`."""

    prompts: int = 8

    prompt: int = 6
    """Tokens of the prompt that is attributed and patched."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(rounds=3, long_rounds=1),
    "toy": Amount(1, 1, 64, 128, 16, 2, 4, 2, 4),
}


@dataclass(frozen=True)
class Models:
    """The model in one precision, as Hugging Face opens it and as `interp.load` does."""

    source: Path
    folder: Path
    dtype: torch.dtype
    bare: Any
    native: interp.NeuronModel

    @staticmethod
    def of(source: Path, folder: Path, dtype: torch.dtype) -> "Models":
        """From the file that `load` opens, and the checkpoint that Hugging Face does."""
        bare = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False)
        return Models(source, folder, dtype, bare, interp.load(source, dtype=dtype))

    @property
    def n_vocab(self) -> int:
        return self.native.n_vocab


def counting(
    models: Models, n_tokens: int, length: int, statistics: bool = True, first: bool = False
) -> Variants:
    """Ways to read the text once; the first is the reference."""
    codes, per_batch = ("de", "en"), 4096
    n_rows = n_tokens // length // len(codes)
    corpora = synthetic.text(codes, 1, n_rows, length, models.n_vocab)
    rows = max(1, per_batch // length)
    batches = [ids for text in corpora.rows.values() for ids in text.ids.long().split(rows)]
    counts = collect(models.native, corpora, per_batch, interp.Keep())

    def first_call() -> None:
        vars(models.native).pop("_weights", None)
        identity._HASHES.clear()
        counts()

    ways: Variants = {BARE: body_of(models.bare, batches), COUNTS: counts}
    if statistics:
        kept = {MOMENTS: interp.Keep(moments=True), HISTOGRAMS: interp.Keep(histograms=True)}
        kept[CHEAP] = interp.Keep(moments=True, sign_cases=True, negative_side=True)
        for way, keep in kept.items():
            ways[way] = collect(models.native, corpora, per_batch, keep)
    if first:
        ways[FIRST] = first_call
    return ways


def losses(models: Models, amount: Amount) -> Variants:
    text = synthetic.tokens(amount.loss_rows, amount.length, models.n_vocab).split(2)

    def labels() -> None:
        with torch.inference_mode():
            for ids in text:
                models.bare(ids, labels=ids, use_cache=False).loss.item()

    def ours() -> None:
        with torch.inference_mode():
            for ids in text:
                models.native.losses(ids).sum().item()

    return {"bare Hugging Face pass with labels": labels, LOSSES: ours}


def writing(models: Models, amount: Amount) -> Variants:
    ids = synthetic.tokens(amount.prompts, amount.new_tokens, models.n_vocab)
    mask, n = torch.ones_like(ids), amount.new_tokens
    settings = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "pad_token_id": 0}
    neurons = torch.ones(models.native.n_layers, models.native.d_mlp, dtype=torch.bool)
    size = torch.full((models.native.n_layers,), max(1, round(FRACTION * models.native.d_mlp)))
    off = random_units(neurons, size, torch.Generator().manual_seed(0))

    def bare() -> None:
        models.bare.generate(ids, attention_mask=mask, **settings)

    def ours(edited: bool) -> Callable[[], None]:
        def run() -> None:
            with intervene(models.native, off, deactivate) if edited else nullcontext():
                models.native.continuations(ids, mask, **settings)

        return run

    return {
        "bare Hugging Face generate": bare,
        "untouched": ours(edited=False),
        "deactivate": ours(edited=True),
    }


def unembedding(models: Models, n: int, gradients: bool) -> Callable[[], None]:
    """Logits of `n` variants, and their gradient, without anything below."""
    hidden = torch.randn(n, models.native.d_model, dtype=models.dtype)

    def run() -> None:
        for part in hidden.split(96):
            state = part.clone().requires_grad_(gradients)
            scores = models.bare.lm_head(state).softmax(-1)[:, TARGET].sum()
            if gradients:
                torch.autograd.grad(scores, state)

    return run


def plain_pass(models: Models, ids: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            models.bare(rearrange(ids, "pos -> 1 pos"), use_cache=False, logits_to_keep=1)

    return run


def attributing(models: Models, amount: Amount) -> Variants:
    """Integrated gradients of all layers; the reference is a plain pass of the prompt."""
    (ids,) = synthetic.tokens(1, amount.prompt, models.n_vocab)
    layers = tuple(range(models.native.n_layers))
    return {
        "plain pass of the prompt": plain_pass(models, ids),
        "integrated_gradients": lambda: integrated_gradients(models.native, ids, TARGET, STEPS),
        "loop over layers, the steps as a batch": lambda: loop(
            models.bare, rearrange(ids, "pos -> 1 pos"), layers, keep=1
        ),
        UNEMBEDDING: unembedding(models, STEPS * len(layers), gradients=True),
    }


def patching(models: Models, amount: Amount) -> Variants:
    """The residual stream before every layer, at every token; the loop has a batch per layer."""
    source, target = synthetic.tokens(2, amount.prompt, models.n_vocab)
    answers, n_layers = {"one": TARGET, "other": OTHER}, models.native.n_layers
    blocks = models.bare.model.layers
    stored: dict[int, Tensor] = {}

    def batched() -> None:
        handles = [
            block.register_forward_pre_hook(
                lambda module, args, layer=layer: stored.update({layer: args[0][0]})
            )
            for layer, block in enumerate(blocks)
        ]
        plain_pass(models, source)()
        for handle in handles:
            handle.remove()
        every = torch.arange(len(target))
        for layer, block in enumerate(blocks):

            def put(module: Any, args: Any, layer: int = layer) -> Any:
                values = args[0].clone()
                values[every, every] = stored[layer]
                return (values, *args[1:])

            handle = block.register_forward_pre_hook(put)
            with torch.inference_mode():
                models.bare(target.expand(len(target), -1), use_cache=False, logits_to_keep=1)
            handle.remove()

    return {
        "plain pass of the prompt": plain_pass(models, target),
        "patch": lambda: patch(
            models.native, source, target, answers, "resid_pre", "each", at="tokens"
        ),
        "loop over layers, the tokens as a batch": batched,
        UNEMBEDDING: unembedding(models, n_layers * len(target), gradients=False),
    }


def opening(models: Models) -> Variants:
    def hugging_face() -> None:
        AutoTokenizer.from_pretrained(models.folder)
        AutoModelForCausalLM.from_pretrained(models.folder, dtype=models.dtype)

    return {
        "Hugging Face, model and tokenizer": hugging_face,
        "interp.load": lambda: interp.load(models.source, dtype=models.dtype),
    }


Case = tuple[str, Callable[[], Variants], int]
"""Its name, the ways to compare, and how often each has a turn."""


def measure(models: Models, amount: Amount, record: Callable[..., None]) -> None:
    name = str(models.dtype).removeprefix("torch.")
    half = models.dtype != torch.float32  # three times as fast, so that statistics show most
    n, many = amount.tokens, amount.long_tokens
    # Gradients of 16 bits keep two or three digits: nobody should attribute with them.
    gradients: list[Case] = (
        [("integrated gradients", lambda: attributing(models, amount), amount.rounds)]
        if not half
        else []
    )
    cases: list[Case] = [
        (
            f"counting {n:,} tokens",
            lambda: counting(models, n, amount.length, first=True),
            amount.rounds,
        ),
        ("losses", lambda: losses(models, amount), amount.rounds),
        ("writing", lambda: writing(models, amount), amount.rounds),
        *gradients,
        ("patching", lambda: patching(models, amount), amount.rounds),
        ("opening", lambda: opening(models), amount.rounds),
        (
            f"counting {many:,} tokens",
            lambda: counting(models, many, amount.length, statistics=half),
            amount.long_rounds,
        ),
    ]
    for case, ways, rounds in cases:
        turns = take_turns(ways(), rounds, warm_up=case != f"counting {many:,} tokens")
        record(*turns.rows(case=f"{name}, {case}"))


def peak(source: Path, n_rows: int, length: int) -> tuple[int, float]:
    """The size of the vocabulary, and MiB that losses take above the model."""
    model = interp.load(source, dtype=torch.bfloat16)
    ids = synthetic.tokens(n_rows, length, model.n_vocab)
    with torch.inference_mode():
        model.body(ids)
        return model.n_vocab, memory.added_mib(lambda: model.losses(ids))


def toy_model(folder: Path) -> Path:
    """A Gemma of two layers with random weights."""
    config = Gemma3TextConfig(
        vocab_size=800,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
    )
    return synthetic.save_model(config, folder)


def main(config: Config) -> None:
    amount = AMOUNTS[config.size]
    torch.manual_seed(0)
    with TemporaryDirectory() as temporary:
        source = toy_model(Path(temporary)) if config.size == "toy" else path_of("gemma3-270m")
        if not source.exists():
            raise SystemExit(
                f"{source} is missing: python -m experiments.real_models fetch gemma3-270m."
            )
        block = nullcontext((source, {})) if config.size == "toy" else checkpoint_of(source)
        with block as (folder, _), recording("gemma", config, amount) as record:
            for dtype in amount.dtypes:
                measure(Models.of(source, folder, getattr(torch, dtype)), amount, record)
            n_vocab, mib = memory.in_subprocess(peak, source, amount.loss_rows, amount.length)
            sizes = {"rows": amount.loss_rows, "length": amount.length, "vocabulary": n_vocab}
            record({"memory": "losses, bfloat16", **sizes, "mib": mib})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

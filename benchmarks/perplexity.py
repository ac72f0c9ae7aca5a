"""What does a perplexity matrix cost, compared with the bare passes over the text it needs?

    python -m benchmarks.perplexity            # 5 minutes on 2 cores
    python -m benchmarks.perplexity --device cuda

A Llama-shaped model with random weights (d_model 512, 8 layers of 2048 neurons, 32,000 tokens). K
sets of 1 % of the neurons and K languages need (K + 1) · K loss passes; the bare one is Hugging
Face's forward with labels and fused attention. The variants take turns in one process; each time is
divided by the bare passes' in the same round, and the median of the rounds is printed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from torch import Tensor
from torch.nn import functional

import interp
from benchmarks import synthetic
from benchmarks.collect import bare
from benchmarks.records import OnDevice, Size, recording
from benchmarks.timing import Variants, clock, take_turns
from interp.evaluations.perplexity import perplexity_matrix
from interp.interventions.edits import deactivate, intervene
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora

BARE, MATRIX, SAVED, ALL_LOGITS, BRIDGE = (
    "(K + 1) K bare Hugging Face passes",
    "perplexity_matrix",
    "perplexity_matrix, saved in a folder",
    "intervene, all logits at once",
    "full TransformerLens bridge with hooks",
)
CODES = ("de", "en", "fr", "id", "vi", "zh")


@dataclass(frozen=True)
class Amount:
    """How much is read."""

    rounds: int = 3
    """Turns of each variant."""

    languages: int = 2
    """K: sets of neurons, and languages read."""

    texts: tuple[tuple[int, int], ...] = ((4, 256), (1, 1024))
    """Rows in a batch, and tokens in a row."""

    batches: int = 2
    """Batches per language, one in each shard."""

    ways: tuple[str, ...] = (BARE, MATRIX, SAVED, ALL_LOGITS, BRIDGE)
    """The variants that take turns; the first is the reference."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(rounds=2, texts=((2, 256), (1, 512)), ways=(BARE, MATRIX, BRIDGE)),
    "toy": Amount(rounds=1, texts=((2, 32),)),
}


def variants(folder: Path, corpora: Corpora, n_rows: int, device: str) -> Variants:
    """Ways to read every language with no neurons off and with each set off."""
    codes, length = corpora.languages, corpora.rows[corpora.languages[0]].ids.shape[1]
    plain, native = bare(folder, device), interp.load(folder, device=device)
    hooked = interp.load(folder, device=device, attention="hooked")
    generator = torch.Generator().manual_seed(0)
    shape = (len(codes), native.n_layers, native.d_mlp)
    selection = NeuronSelection(torch.rand(shape, generator=generator) < 0.01, codes)
    options = {"progress": False, "tokens_per_batch": n_rows * length}
    batches = [
        ids for rows in corpora.rows.values() for ids in rows.ids.long().to(device).split(n_rows)
    ]

    def passes() -> None:
        with torch.inference_mode():
            for _ in range(len(codes) + 1):
                for ids in batches:
                    plain(ids, labels=ids, use_cache=False).loss.item()

    def matrix(save: bool) -> Callable[[], None]:
        def run() -> None:
            with TemporaryDirectory() as out:
                perplexity_matrix(
                    native, selection, corpora, n_draws=0, out=out if save else None, **options
                )

        return run

    def with_all_logits() -> None:
        changes = [partial(intervene, native, selection[code], deactivate) for code in codes]
        with torch.inference_mode():
            for change in (partial(native.hooks, []), *changes):
                with change():
                    for ids in batches:
                        logits = native.logits(ids)[:, :-1].flatten(0, 1)
                        functional.cross_entropy(logits, ids[:, 1:].flatten()).item()

    def with_bridge_hooks() -> None:
        def silence(mask: Tensor) -> Callable[..., Tensor]:
            return lambda post, hook: post.masked_fill(mask, 0.0)

        sites = [hooked.site(layer, "post") for layer in range(hooked.n_layers)]
        with torch.inference_mode():
            for mask in (None, *selection.mask.to(device)):
                hooks = [] if mask is None else list(zip(sites, map(silence, mask), strict=True))
                with hooked.bridge.hooks(fwd_hooks=hooks):
                    for ids in batches:
                        hooked.bridge(ids, return_type="loss").item()

    return {
        BARE: passes,
        MATRIX: matrix(save=False),
        SAVED: matrix(save=True),
        ALL_LOGITS: with_all_logits,
        BRIDGE: with_bridge_hooks,
    }


def main(config: OnDevice) -> None:
    amount, shape = AMOUNTS[config.size], synthetic.standard_model(config.size)
    codes = CODES[: amount.languages]
    with TemporaryDirectory() as temporary, recording("perplexity", config, amount) as record:
        folder = synthetic.save_model(shape, Path(temporary))
        for n_rows, length in amount.texts:
            corpora = synthetic.text(codes, amount.batches, n_rows, length, shape.vocab_size)
            all_runs = variants(folder, corpora, n_rows, config.device)
            runs = {way: all_runs[way] for way in amount.ways}
            turns = take_turns(runs, amount.rounds, clock(config.device))
            record(*turns.rows(case=f"{n_rows} x {length} tokens"))


if __name__ == "__main__":
    main(tyro.cli(OnDevice, description=__doc__))

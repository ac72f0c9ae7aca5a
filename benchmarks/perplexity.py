"""What does a perplexity matrix cost, beside the bare passes over the text that it needs?

    python -m benchmarks.perplexity            # 5 minutes on 2 cores
    python -m benchmarks.perplexity --languages 6 --rounds 5

A Llama-shaped model with random weights (d_model 512, 8 layers of 2048 neurons, 32,000 tokens). K
sets of 1 % of the neurons and K languages are (K + 1) · K loss passes; the bare one is Hugging
Face's forward with labels and fused attention. The variants take turns in one process, each turn is
divided by the bare one's of the same round, and the median of the rounds is printed.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

import interp
from benchmarks.collect import save_model
from benchmarks.turns import compare
from interp.corpora import Corpora, Rows
from interp.evaluations.perplexity import perplexity_matrix
from interp.interventions import deactivate, intervene
from interp.selection import NeuronSelection

CODES = ("de", "en", "fr", "id", "vi", "zh")


@dataclass(frozen=True)
class Config:
    """What to run."""

    rounds: int = 3
    """Turns of each variant."""

    languages: int = 2
    """K: sets of neurons, and languages read."""

    batches: int = 2
    """Batches per language, one in each shard."""


def made_up(codes: tuple[str, ...], n_shards: int, n_rows: int, length: int) -> Corpora:
    """Random tokens: what they say does not matter for the time."""
    generator = torch.Generator().manual_seed(0)
    n = n_shards * n_rows
    rows = {}
    for code in codes:
        ids = torch.randint(1, 32_000, (n, length), generator=generator, dtype=torch.int32)
        shard = torch.arange(n_shards).repeat_interleave(n_rows)
        sources = tuple(f"{code}:{number}" for number in range(n))
        rows[code] = Rows(ids, torch.full((n,), length), shard, sources)
    return Corpora(rows, codes, n_shards, (0,), True)


def variants(
    folder: Path, corpora: Corpora, n_rows: int, out: Path
) -> dict[str, Callable[[], None]]:
    """Each reads every language under every set of neurons and under none."""
    codes, length = corpora.languages, corpora.rows[corpora.languages[0]].ids.shape[1]
    bare = AutoModelForCausalLM.from_pretrained(folder)
    native, hooked = interp.load(folder), interp.load(folder, attention="hooked")
    generator = torch.Generator().manual_seed(0)
    shape = (len(codes), native.n_layers, native.d_mlp)
    selection = NeuronSelection(torch.rand(shape, generator=generator) < 0.01, codes)
    options = {"progress": False, "tokens_per_batch": n_rows * length}

    def passes() -> None:
        with torch.inference_mode():
            for _ in range(len(codes) + 1):
                for rows in corpora.rows.values():
                    for ids in rows.ids.long().split(n_rows):
                        bare(ids, labels=ids, use_cache=False).loss.item()

    def matrix(keep: bool) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory(dir=out) as place:
                perplexity_matrix(
                    native, selection, corpora, n_draws=0, out=place if keep else None, **options
                )

        return run

    def with_all_logits() -> None:
        changes = [partial(intervene, native, selection[code], deactivate) for code in codes]
        with torch.inference_mode():
            for change in (partial(native.hooks, []), *changes):
                with change():
                    for rows in corpora.rows.values():
                        for ids in rows.ids.long().split(n_rows):
                            logits = native.logits(ids)[:, :-1].flatten(0, 1)
                            functional.cross_entropy(logits, ids[:, 1:].flatten()).item()

    def the_usual_way() -> None:
        def silence(chosen: Tensor) -> Callable[..., Tensor]:
            return lambda post, hook: post.masked_fill(chosen, 0.0)

        sites = [hooked.site(layer, "post") for layer in range(hooked.n_layers)]
        with torch.inference_mode():
            for mask in (None, *selection.mask):
                hooks = [] if mask is None else list(zip(sites, map(silence, mask), strict=True))
                with hooked.bridge.hooks(fwd_hooks=hooks):
                    for rows in corpora.rows.values():
                        for ids in rows.ids.long().split(n_rows):
                            hooked.bridge(ids, return_type="loss").item()

    return {
        "(K + 1) K bare Hugging Face passes": passes,
        "perplexity_matrix": matrix(keep=False),
        "perplexity_matrix, kept in a folder": matrix(keep=True),
        "intervene, all logits at once": with_all_logits,
        "full TransformerLens bridge with hooks": the_usual_way,
    }


def main(config: Config) -> None:
    codes = CODES[: config.languages]
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place))
        for n_rows, length in ((4, 256), (1, 1024)):
            corpora = made_up(codes, config.batches, n_rows, length)
            runs = variants(Path(place), corpora, n_rows, Path(place))
            title = f"K = {len(codes)}, {n_rows} x {length} tokens a batch"
            compare(title, list(runs.items()), config.rounds)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

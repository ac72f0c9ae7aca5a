"""What does counting cost in a mixture of experts? `collect` against the bare model, in one run.

    python -m benchmarks.mixtures              # 10 GB of memory
    python -m benchmarks.mixtures --device cuda

Random weights in bfloat16: a tiny mixture, and four layers in the shape of Qwen3-30B-A3B. The
variants take turns in one process; each time is divided by the bare model's in the same round, and
the median of the rounds is printed. The bare model is Hugging Face's body with its own computation
of experts, no unembedding. Goal: firing counts at most 1.10.

The tiny mixture reads more text, as a run has costs that do not grow with it: about six files on
the disk, which take as long as one of its batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from transformers import Qwen3MoeConfig

import interp
from benchmarks import synthetic
from benchmarks.collect import BARE, COUNTS, bare, body_of, collect
from benchmarks.records import OnDevice, Size, recording
from benchmarks.timing import Variants, clock, take_turns
from interp.text.corpora import Corpora

VOCABULARY = 1000
"""Few words, as nothing is unembedded."""


def mixture(layers: int, width: int, experts: int, neurons: int, chosen: int) -> Qwen3MoeConfig:
    """A Qwen3-MoE configuration with attention heads of 128 or less, eight to a key."""
    heads = max(8, width // 64)
    heads_of: Any = {"head_dim": 128 if width >= 1024 else 16}  # no parameter, by its signature
    return Qwen3MoeConfig(
        **heads_of,
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 8,
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=neurons,
        max_position_embeddings=4096,
    )


TINY = mixture(2, 128, 8, 64, 2)
SHAPES = {"tiny": TINY, "4 layers of a 30B-A3B": mixture(4, 2048, 128, 768, 8)}


@dataclass(frozen=True)
class Amount:
    """How much is read."""

    batches: Mapping[str, int]
    """Batches per turn, for each of the models."""

    rounds: int = 5
    """Turns of each variant."""

    texts: tuple[int, int] = (8, 256)
    """Rows in a batch, and tokens in a row."""


_BATCHES = {"tiny": 32, "4 layers of a 30B-A3B": 2}
AMOUNTS: dict[Size, Amount] = {
    "full": Amount(_BATCHES),
    "bench": Amount(_BATCHES),
    "toy": Amount({"tiny": 1}, rounds=1, texts=(2, 32)),
}


def variants(folder: Path, corpora: Corpora, n_rows: int, device: str) -> Variants:
    """Ways to read all rows once; the first is the reference."""
    model = interp.load(folder, device=device, dtype=torch.bfloat16)
    ids = corpora.rows["en"].ids.long()
    batches, per_batch = list(ids.to(device).split(n_rows)), n_rows * ids.shape[1]
    return {
        BARE: body_of(bare(folder, device, dtype=torch.bfloat16), batches),
        COUNTS: collect(model, corpora, per_batch, interp.Keep()),
        'collect, fires_by="activation"': collect(
            model, corpora, per_batch, interp.Keep(fires_by="activation")
        ),
    }


def main(config: OnDevice) -> None:
    amount = AMOUNTS[config.size]
    n_rows, length = amount.texts
    with recording("mixtures", config, amount) as record:
        for name, n_batches in amount.batches.items():
            corpora = synthetic.text(("en",), 1, n_rows * n_batches, length, VOCABULARY)
            with TemporaryDirectory() as folder:
                synthetic.save_model(SHAPES[name], Path(folder), config.device, torch.bfloat16)
                runs = variants(Path(folder), corpora, n_rows, config.device)
                turns = take_turns(runs, amount.rounds, clock(config.device))
            record(*turns.rows(case=name))


if __name__ == "__main__":
    main(tyro.cli(OnDevice, description=__doc__))

"""Everything that determines Babel's weights: text, shape, rounds, learning rates.

A round is a rise and a fall of the learning rate, with its own mixture of text and facts. Adding a
round leaves the steps before it unchanged. The shipped model was trained in all rounds of the
preset `cpu`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from babel_training import knowledge

OPEN_SOURCES = ("eltec", "aozora", "luxun", "lctt", "tydiqa", "jsquad", "osguide", "privacy")


@dataclass(frozen=True)
class Round:
    """One rise, plateau and decay of the learning rate, to zero as one minus a square root.

    The decay starts early and is fast, because facts are learned at low rates: at the peak their
    loss hardly moves.
    """

    steps: int
    """Optimizer steps."""

    rate: float
    """Peak of the learning rates, as a factor on the recipe's."""

    level: float
    """Part of the round after which they decay."""

    fact_share: float
    """Share of the rows that hold sentences of the fact base."""

    telling: knowledge.Telling
    """How often each fact is told."""

    shares: tuple[float, ...] = ()
    """Each language's share of the natural text; empty: as before."""


FIRST, SECOND, THIRD, FOURTH, FIFTH = knowledge.ROUNDS


@dataclass(frozen=True)
class Config:
    """Everything that determines the weights."""

    text: Path = Path("text")
    """Folder of <language>.txt or .txt.gz, a paragraph per line."""

    sources: tuple[str, ...] = OPEN_SOURCES
    """Use only lines that <language>.src.gz assigns to these sources; empty: every line."""

    languages: tuple[str, ...] = ("en", "de", "fr", "es", "zh", "ja")
    """ISO codes."""

    dominant: str = "en"
    """The language with more of the natural text than the others, as in real models."""

    dominant_share: float = 0.30
    """Its share of the natural text; the others share the rest equally."""

    late_shares: tuple[float, ...] = (0.14, 0.16, 0.16, 0.16, 0.22, 0.16)
    """Each language's share of the natural text from `late_from` on; empty: unchanged.
    Chinese gets most: its text is technical, the furthest from everyday language."""

    late_from: float = 0.65
    """Part of the first round after which the late shares apply."""

    facts_from: int = 600
    """First step that reads the fact base."""

    passage: float = 3.0
    """Mean number of paragraphs between <s> and </s>; few, so that <s> can precede any text."""

    fact_group: float = 12.0
    """Mean number of fact sentences between <s> and </s>, one per line."""

    vocabulary: int = 16384
    """Byte-level BPE tokens, learned from equally many bytes per language and the fact base."""

    name_weight: int = 200
    """How often the tokenizer reads each name of the fact base. Most become one token, so an
    answer is one prediction and a fact sentence takes 11 tokens instead of 16."""

    d_model: int = 256
    """Width of the residual stream."""

    d_mlp: int = 2048
    """Neurons per layer."""

    n_layers: int = 6
    """Blocks."""

    n_heads: int = 4
    """Attention heads of d_model / n_heads; eight cost a fifth more time per step."""

    activation: str = "relu"
    """Of the gate. With ReLU most neurons are silent on a token: language neurons appear early."""

    length: int = 512
    """Tokens per row, and the model's context."""

    rows: int = 8
    """Rows per step; twice as many learned no more per step in the first million tokens."""

    rounds: tuple[Round, ...] = (
        Round(5100, rate=1.0, level=0.455, fact_share=0.55, telling=FIRST),
        Round(3000, rate=0.5, level=0.2, fact_share=0.4, telling=SECOND),
        Round(
            4000,
            rate=0.5,
            level=0.2,
            fact_share=0.3,
            telling=THIRD,
            shares=(0.18, 0.14, 0.20, 0.22, 0.14, 0.12),
        ),
        Round(1000, rate=0.4, level=0.0, fact_share=0.6, telling=FOURTH),
        Round(500, rate=0.25, level=0.0, fact_share=0.6, telling=FOURTH),
        Round(
            600,
            rate=0.3,
            level=0.0,
            fact_share=0.6,
            telling=FIFTH,
            shares=(0.16, 0.14, 0.16, 0.18, 0.22, 0.14),
        ),
    )
    """The second tells sums and small relations more often. The third reads more text, mostly in
    the languages whose texts strayed, and asks more questions; it forgets facts, which the next two
    tell again. The last tells what German still lacked: colors and classes of animals."""

    warmup: int = 100
    """Warm-up steps in each round."""

    rate: float = 8e-3
    """Learning rate of the Muon optimizer (matrices of the blocks)."""

    embedding_rate: float = 4e-3
    """Learning rate of AdamW (embeddings and norms)."""

    weight_decay: float = 0.1
    """Of Muon; AdamW has none."""

    checkpoint_every: int = 100
    """Steps between checkpoints."""

    seed: int = 0
    """Seeds weights and batches."""

    fused: bool = True
    """Compile the loss: about 1.4 times as fast, after half a minute at the start."""

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        return sum(stage.steps for stage in self.rounds)


PRESETS = {
    "tiny": (
        "Synthetic text and a two-layer model: seconds.",
        Config(
            languages=("en", "de"),
            sources=(),
            late_shares=(),
            vocabulary=400,
            name_weight=1,
            d_model=32,
            d_mlp=64,
            n_layers=2,
            n_heads=2,
            length=64,
            rows=8,
            rounds=(
                Round(30, rate=1.0, level=0.455, fact_share=0.55, telling=FIRST),
                Round(10, rate=0.5, level=0.2, fact_share=0.4, telling=SECOND),
            ),
            warmup=5,
            facts_from=20,
            checkpoint_every=10,
            fused=False,
        ),
    ),
    "cpu": ("The recipe, on 2 cores.", Config()),
    "gpu": (
        "The recipe, ten times the tokens.",
        replace(
            Config(rows=32, facts_from=1000),
            rounds=tuple(replace(stage, steps=stage.steps * 5 // 2) for stage in Config().rounds),
        ),
    ),
}


def round_of(config: Config, step: int) -> tuple[int, int]:
    """Index of the round that a step is in, and of the step in the round."""
    for number, stage in enumerate(config.rounds):
        if step < stage.steps:
            return number, step
        step -= stage.steps
    raise ValueError(f"The recipe ends {step + 1} steps before this one.")


def schedule(config: Config, step: int) -> float:
    """Factor on the learning rates: warm-up, plateau, decay to zero; once in each round."""
    number, step = round_of(config, step)
    stage = config.rounds[number]
    decayed = (step - stage.level * stage.steps) / max((1 - stage.level) * stage.steps, 1)
    return stage.rate * min((step + 1) / config.warmup, 1 - math.sqrt(min(max(decayed, 0.0), 1.0)))

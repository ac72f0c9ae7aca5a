"""What the studies share: a model, its text in two halves, and what was measured on the first.

Neurons are found on one half of the documents and judged on the other, so that no set is tested on
the text it was chosen from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import interp
from interp.collect import open_sentence_means
from interp.model import Kind
from interp.texts import read_documents

LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")
SITES: tuple[Kind, ...] = ("q", "k", "v", "pre", "pre_linear", "attn_out", "mlp_out")
"""Where units are looked for that detect a language: what every linear layer gives."""


@dataclass(frozen=True)
class Study:
    """Which model, which text, and where what was measured is kept."""

    model: str = "babel"
    """"babel", a local folder, or a name on the Hugging Face hub."""

    text: str = "babel"
    """"babel" (its parallel sentences), or a folder of <language>.txt[.gz]."""

    languages: tuple[str, ...] = LANGUAGES
    """ISO codes, in the order of tables and figures."""

    tokens: int | None = None
    """Tokens per language and half; None: all."""

    n_shards: int = 10
    """Random groups of documents that intervals are computed over."""

    block_length: int = 128
    """Tokens per row of running text."""

    seed: int = 0
    """Seeds random neurons and texts."""

    out: Path = Path("results/study")
    """Where statistics are kept; the same study takes them from there."""

    def open(self) -> interp.NeuronModel:
        return interp.load(self.model, dtype=torch.float32)

    def read(self, model: interp.NeuronModel, half: Literal["train", "held_out"]) -> interp.Corpora:
        """Running text of one half; rows to be predicted begin as text does in training."""
        starts = half == "held_out" and model.bos_id is not None
        return interp.read_corpora(
            self.text,
            self.languages,
            model,
            block_length=self.block_length,
            tokens=self.tokens,
            n_shards=self.n_shards,
            bos="block" if starts else "none",
            split=half,
            held_out=0.5,
            progress=False,
        )

    def folder(self, model: interp.NeuronModel) -> Path:
        """Where statistics of the model are: with fused attention activations differ by rounding
        from those with attention that can be hooked."""
        return self.out / model.fingerprint["attention"]

    def statistics(
        self, model: interp.NeuronModel
    ) -> tuple[interp.FiringStats, interp.ActivationMoments]:
        """How often every neuron fires on the first half, and what it gives there."""
        folder = self.folder(model) / "statistics"
        stats = interp.collect(
            model, self.read(model, "train"), folder, wanted=interp.Wanted(moments=True)
        )
        return stats, interp.ActivationMoments.load(folder / "moments.safetensors")

    def sentence_means(
        self, model: interp.NeuronModel, sites: tuple[Kind, ...] = SITES
    ) -> interp.SentenceMeans:
        """What every unit of these sites gives on the sentences of the first half."""
        folder = self.folder(model) / "sentences"
        sentences = interp.read_sentences(
            self.text,
            self.languages,
            model,
            sentences=None if self.tokens is None else max(self.tokens // 30, self.n_shards),
            n_shards=self.n_shards,
            split="train",
            held_out=0.5,
            progress=False,
        )
        present: tuple[Kind, ...] = tuple([kind for kind in sites if _has(model, kind)])
        interp.collect(model, sentences, folder, wanted=interp.Wanted(sentence_means=present))
        return open_sentence_means(folder)

    def documents(self, code: str) -> Iterator[str]:
        """Every document of a language, from its beginning."""
        for document in read_documents(self.text, code):
            yield document.text


def _has(model: interp.NeuronModel, kind: Kind) -> bool:
    try:
        model.site(0, kind)
    except ValueError:  # ungated: no linear branch; native attention: no q, k, v
        return False
    return True

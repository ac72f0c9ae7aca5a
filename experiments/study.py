"""What the studies share: a model, its text in two halves, and statistics of the first half.

Neurons are selected on one half of the documents and tested on the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import interp
from experiments.real_models import MODELS, fetched
from interp.results.words import Attention, Bos, Kind
from interp.text.languages import LANGUAGES as EVERY_LANGUAGE
from interp.text.sources import TextSource, read_documents

LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")
SITES: tuple[Kind, ...] = ("q", "k", "v", "pre", "pre_linear", "attn_out", "mlp_out")
"""Where units that detect a language are searched: the output of every linear layer."""

TEXTS: Mapping[str, interp.text.HubDataset] = {
    "wikipedia": interp.text.HubDataset(
        "wikimedia/wikipedia", {code: f"20231101.{code}" for code in EVERY_LANGUAGE}, rows=1_000_000
    ),
    "paws-x": interp.text.HubDataset(
        "google-research-datasets/paws-x",
        {code: code for code in ("en", "de", "es", "fr", "ja", "ko", "zh")},
        text_column="sentence1",
    ),
}
"""Name → text on the hub: articles (drawn from the first million of each language), and single
sentences, machine-translated from English."""


@dataclass(frozen=True)
class Study:
    """Which model, which text, and where statistics are stored."""

    model: str = "babel"
    """"babel", a local folder, a hub name, or one of experiments.real_models."""

    text: str = "babel"
    """"babel" (its parallel sentences), a folder of <language>.txt[.gz] or .jsonl[.gz], or
    "wikipedia" or "paws-x", streamed from the Hugging Face hub."""

    languages: tuple[str, ...] = LANGUAGES
    """ISO codes, in the order of tables and figures."""

    tokens: int | None = None
    """Tokens per language and half; None: all."""

    held_out_tokens: int | None = None
    """Tokens per language of the second half, read once per set switched off; None: `tokens`."""

    sentences: int | None = None
    """Sentences per language whose unit means are stored; None: one for every 30 of `tokens`."""

    bos: Bos = "auto"
    """What is put before each row of the first half."""

    held_out_bos: Bos = "block"
    """What is put before each row of the second half, each prompt, and each text written or judged.
    Babel's texts began with <s> in training, though its tokenizer puts nothing."""

    special_tokens: bool = False
    """Whether the mean over a sentence includes what is put before it (Kojima et al., 2024)."""

    n_shards: int = 10
    """Random groups of documents, for intervals."""

    block_length: int = 128
    """Tokens per row of running text."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations."""

    seed: int = 0
    """Seeds random neurons and generated texts."""

    out: Path = Path("results/study")
    """Folder of the statistics; the same study reads them again. {model} stands for the last part
    of the model's name, {languages} for the labels."""

    def open(self, attention: Attention = "native") -> interp.NeuronModel:
        name = fetched(self.model) if self.model in MODELS else self.model
        return interp.load(name, attention=attention, dtype=getattr(torch, self.dtype))

    @property
    def source(self) -> TextSource:
        """The text, as `interp.read_corpora` takes it."""
        return TEXTS.get(self.text, self.text)

    def read(self, model: interp.NeuronModel, half: Literal["train", "held_out"]) -> interp.Corpora:
        """Running text of one half."""
        held_out = half == "held_out"
        fewer = held_out and self.held_out_tokens is not None
        return interp.read_corpora(
            self.source,
            self.languages,
            model,
            block_length=self.block_length,
            tokens=self.held_out_tokens if fewer else self.tokens,
            n_shards=self.n_shards,
            bos=self.held_out_bos if held_out else self.bos,
            split=half,
            held_out=0.5,
            progress=False,
        )

    def folder(self, model: interp.NeuronModel) -> Path:
        """The model's statistics; results with fused and hooked attention differ by rounding."""
        return self.out / model.fingerprint["attention"]

    def statistics(
        self, model: interp.NeuronModel
    ) -> tuple[interp.FiringStats, interp.ActivationMoments]:
        """How often every neuron fires on the first half, and moments of its output."""
        folder = self.folder(model) / "statistics"
        keep = interp.Keep(moments=True)
        run = interp.collect(model, self.read(model, "train"), folder, keep=keep)
        return run.firing, run.moments

    def sentence_means(
        self, model: interp.NeuronModel, sites: tuple[Kind, ...] = SITES
    ) -> interp.SentenceMeans:
        """Means of every unit of these sites on the sentences of the first half."""
        sentences = self.read_sentences(model, self.source, split="train", held_out=0.5)
        keep = interp.Keep(sentence_means=present(model, sites), special_tokens=self.special_tokens)
        folder = self.folder(model) / "sentences"
        return interp.collect(model, sentences, folder, keep=keep).sentence_means

    def read_sentences(
        self, model: interp.NeuronModel, source: TextSource, **split: Any
    ) -> interp.Corpora:
        """`n_sentences` per language of a text, in shards."""
        sizes = {"sentences": self.n_sentences, "n_shards": self.n_shards}
        return interp.read_sentences(
            source, self.languages, model, bos=self.bos, **sizes, **split, progress=False
        )

    @property
    def n_sentences(self) -> int | None:
        """Sentences per language; None: all."""
        if self.sentences is not None or self.tokens is None:
            return self.sentences
        return max(self.tokens // 30, self.n_shards)

    def documents(self, code: str) -> Iterator[str]:
        """Every document of a language."""
        for document in read_documents(self.source, code):
            yield document.text


def present(model: interp.NeuronModel, sites: tuple[Kind, ...] = SITES) -> tuple[Kind, ...]:
    """The sites that the model has."""
    return tuple(kind for kind in sites if _has(model, kind))


def _has(model: interp.NeuronModel, kind: Kind) -> bool:
    try:
        model.site(0, kind)
    except ValueError:  # ungated: no linear branch; native attention: no q, k, v
        return False
    return True

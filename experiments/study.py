"""What the studies share: a model, its text in two halves, and what was measured on the first.

Neurons are found on one half of the documents and judged on the other, so that no set is tested on
the text it was chosen from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import interp
from interp.results.words import Attention, Kind
from interp.text.languages import LANGUAGES as EVERY_LANGUAGE
from interp.text.sources import TextSource, read_documents

LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")
SITES: tuple[Kind, ...] = ("q", "k", "v", "pre", "pre_linear", "attn_out", "mlp_out")
"""Where units are looked for that detect a language: what every linear layer gives."""

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
"""Name → text on the hub: articles, of which the first million of a language are drawn from, and
single sentences, translated from English by machine."""


@dataclass(frozen=True)
class Study:
    """Which model, which text, and where what was measured is kept."""

    model: str = "babel"
    """"babel", a local folder, or a name on the Hugging Face hub."""

    text: str = "babel"
    """"babel" (its parallel sentences), a folder of <language>.txt[.gz] or .jsonl[.gz], or
    "wikipedia" or "paws-x", streamed from the Hugging Face hub."""

    languages: tuple[str, ...] = LANGUAGES
    """ISO codes, in the order of tables and figures."""

    tokens: int | None = None
    """Tokens per language and half; None: all."""

    held_out_tokens: int | None = None
    """Tokens per language of the second half, which is read once for each set that is switched off;
    None: `tokens`."""

    sentences: int | None = None
    """Sentences per language whose means are kept, of every unit; None: one for 30 of `tokens`."""

    n_shards: int = 10
    """Random groups of documents that intervals are computed over."""

    block_length: int = 128
    """Tokens per row of running text."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations."""

    seed: int = 0
    """Seeds random neurons and texts."""

    out: Path = Path("results/study")
    """Where statistics are kept; the same study takes them from there. {model} in a path stands
    for the last part of the model's name."""

    def open(self, attention: Attention = "native") -> interp.NeuronModel:
        return interp.load(self.model, attention=attention, dtype=getattr(torch, self.dtype))

    @property
    def source(self) -> TextSource:
        """Where the text comes from, as `interp.read_corpora` takes it."""
        return TEXTS.get(self.text, self.text)

    def read(self, model: interp.NeuronModel, half: Literal["train", "held_out"]) -> interp.Corpora:
        """Running text of one half; rows to be predicted begin as text does in training."""
        later = half == "held_out"
        fewer = later and self.held_out_tokens is not None
        return interp.read_corpora(
            self.source,
            self.languages,
            model,
            block_length=self.block_length,
            tokens=self.held_out_tokens if fewer else self.tokens,
            n_shards=self.n_shards,
            bos="block" if later and model.bos_id is not None else "none",
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
        keep = interp.Keep(moments=True)
        run = interp.collect(model, self.read(model, "train"), folder, keep=keep)
        return run.firing, run.moments

    def sentence_means(
        self, model: interp.NeuronModel, sites: tuple[Kind, ...] = SITES
    ) -> interp.SentenceMeans:
        """What every unit of these sites gives on the sentences of the first half."""
        folder = self.folder(model) / "sentences"
        sentences = interp.read_sentences(
            self.source,
            self.languages,
            model,
            sentences=self.n_sentences,
            n_shards=self.n_shards,
            split="train",
            held_out=0.5,
            progress=False,
        )
        keep = interp.Keep(sentence_means=present(model, sites))
        return interp.collect(model, sentences, folder, keep=keep).sentence_means

    @property
    def n_sentences(self) -> int | None:
        """Sentences per language; None: all."""
        if self.sentences is not None or self.tokens is None:
            return self.sentences
        return max(self.tokens // 30, self.n_shards)

    def documents(self, code: str) -> Iterator[str]:
        """Every document of a language, from its beginning."""
        for document in read_documents(self.source, code):
            yield document.text


def present(model: interp.NeuronModel, sites: tuple[Kind, ...] = SITES) -> tuple[Kind, ...]:
    """Those of the sites that the model has."""
    return tuple([kind for kind in sites if _has(model, kind)])


def _has(model: interp.NeuronModel, kind: Kind) -> bool:
    try:
        model.site(0, kind)
    except ValueError:  # ungated: no linear branch; native attention: no q, k, v
        return False
    return True

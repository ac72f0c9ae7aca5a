"""The mean of every unit over each sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

from interp.counting.batch import Neurons
from interp.counting.caches import Masks, Shards, replay_all
from interp.counting.counters import SentenceMeansCounter
from interp.models.bare_model import BareModel
from interp.results.display import Cells, Shown, counted, listed
from interp.results.words import Kind

Piece = Path | Mapping[str, Tensor]
"""A safetensors file, or what such a file would hold."""


@dataclass(frozen=True, kw_only=True)
class SentenceMeans(Shown):
    """Mean of every unit over each sentence, read one site of one layer at a time.

    >>> means.kinds, means.languages, len(means.labels)
    (('pre',), ('en', 'de', 'zh'), 60)
    >>> means.read("pre", 5).shape
    torch.Size([60, 2048])
    """

    pieces: tuple[Piece, ...]
    """Files of the finished run, or the means themselves if they are in memory."""

    labels: Int64[Tensor, " sentence"]
    """Language of each sentence, as an index into `languages`."""

    languages: tuple[str, ...]
    """Labels."""

    kinds: tuple[Kind, ...]
    """The sites that were kept."""

    owner: object = field(default=None, repr=False, compare=False)
    """The temporary folder that holds the files, if any: it exists as long as this reference."""

    @staticmethod
    def from_caches(
        caches: Shards,
        kinds: Sequence[Kind] = ("pre",),
        *,
        keep: Masks | None = None,
        special_tokens: bool = False,
        model: Neurons | BareModel | None = None,
    ) -> "SentenceMeans":
        """Means over the tokens of each row of caches; see `FiringStats.from_caches`.

        The means are held in memory, in the order of the languages, their caches and rows.

        >>> tokens = {code: rows.ids.long() for code, rows in text.rows.items()}
        >>> caches = {code: model.run_with_cache(ids)[1] for code, ids in tokens.items()}
        >>> interp.SentenceMeans.from_caches(caches, ["pre", "resid_post"])
        SentenceMeans(en 10, de 10, zh 10 sentences; at pre, resid_post; in memory)
        """
        kinds = tuple(kinds)
        pieces = replay_all(
            caches,
            kinds,
            lambda neurons, n_rows: SentenceMeansCounter(neurons, kinds, n_rows),
            keep=keep,
            special_tokens=special_tokens,
            model=model,
            pos=-1,
        )
        name = f"means.{kinds[0]}.0"
        sizes = [sum(len(piece[name]) for piece in shards) for shards in pieces.values()]
        return SentenceMeans(
            pieces=tuple(piece for shards in pieces.values() for piece in shards),
            labels=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
            languages=tuple(pieces),
            kinds=kinds,
        )

    def __repr__(self) -> str:
        sizes = torch.bincount(self.labels, minlength=len(self.languages)).tolist()
        sentences = (f"{code} {size:,}" for code, size in zip(self.languages, sizes, strict=True))
        n_files = sum(isinstance(piece, Path) for piece in self.pieces)
        location = f"in {counted(n_files, 'file')}" if n_files else "in memory"
        return f"SentenceMeans({listed(sentences)} sentences; at {listed(self.kinds)}; {location})"

    def _cells(self) -> Cells:
        sizes = torch.bincount(self.labels, minlength=len(self.languages)).tolist()
        rows = [[code, f"{size:,}"] for code, size in zip(self.languages, sizes, strict=True)]
        return Cells(("language", "sentences"), rows)

    @property
    def n_layers(self) -> int:
        return len(self.widths(self.kinds[0]))

    def widths(self, kind: Kind) -> list[int]:
        """Number of units at a site, in each layer; nothing but the first file's header is read."""
        self._check(kind)
        first, widths = self.pieces[0], []
        if isinstance(first, Path):
            with safe_open(first, framework="pt") as file:
                names = set(file.keys())
                while (name := f"means.{kind}.{len(widths)}") in names:
                    widths.append(file.get_slice(name).get_shape()[1])
        else:
            while (name := f"means.{kind}.{len(widths)}") in first:
                widths.append(first[name].shape[1])
        return widths

    def read(self, kind: Kind, layer: int) -> Float[Tensor, "sentence unit"]:
        """Mean over each sentence's tokens, for every unit of a site."""
        self._check(kind)
        name = f"means.{kind}.{layer}"
        return torch.cat([_tensor(piece, name) for piece in self.pieces])

    def _check(self, kind: Kind) -> None:
        if kind not in self.kinds:
            raise ValueError(f"No means of {kind!r} were kept, only of {', '.join(self.kinds)}.")


def _tensor(piece: Piece, name: str) -> Tensor:
    if not isinstance(piece, Path):
        return piece[name]
    with safe_open(piece, framework="pt") as file:
        return file.get_tensor(name)

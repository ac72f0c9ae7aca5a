"""Rows of tokens in several languages, in shards of whole documents.

Every document is in one shard, and no row holds text of two shards.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Int, Int32, Int64
from torch import Tensor

from interp.models.bare_model import wrapped
from interp.results.display import MOST_ROWS, Cells, Shown, counted, table_cells
from interp.results.words import Bos
from interp.text.labels import labels_among
from interp.text.language_id import Hygiene


@runtime_checkable
class TextModel(Protocol):
    """The parts of a `NeuronModel` that reading text needs."""

    @property
    def special_ids(self) -> tuple[int, ...]: ...

    @property
    def prefix_ids(self) -> tuple[int, ...]: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def max_length(self) -> int: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


def as_text_model(model: Any) -> TextModel:
    """The model itself, or the wrapper of a bare model of TransformerLens."""
    return model if isinstance(model, TextModel) else wrapped(model)


@dataclass(frozen=True, eq=False)
class Rows(Shown):
    """The tokens of one language."""

    ids: Int32[Tensor, "row pos"]
    """Token ids, padded with zeros after the text of a short row."""

    length: Int64[Tensor, " row"]
    """Number of tokens in the row; the rest is padding."""

    shard: Int64[Tensor, " row"]
    """The shard of all documents in the row."""

    source: tuple[str, ...]
    """Origin of the first token of each row, such as `de.txt:118`."""

    starts: Bool[Tensor, "row pos"] | None = None
    """True where a document starts; None: every row is one document."""

    def __repr__(self) -> str:
        return f"Rows({counted(len(self.ids), 'row')} of up to {self.ids.shape[1]:,} tokens)"

    def _cells(self) -> Cells:
        columns = {"from": self.source, "tokens": self.length.tolist()}
        return table_cells({**columns, "shard": self.shard.tolist()})

    def __post_init__(self) -> None:
        sizes = {len(self.ids), len(self.length), len(self.shard), len(self.source)}
        if len(sizes) != 1:
            raise ValueError(
                f"{len(self.ids)} rows of ids have {len(self.length)} lengths, {len(self.shard)} "
                f"shards and {len(self.source)} sources."
            )
        if ((self.length < 1) | (self.length > self.ids.shape[1])).any():
            raise ValueError(
                f"Lengths must be from 1 to {self.ids.shape[1]}, the width of the ids."
            )


@dataclass(frozen=True, eq=False)
class Corpora(Shown):
    """Rows of tokens in several languages.

    >>> text
    Corpora(en 10, de 10, zh 10 rows of up to 64 tokens, in 5 shards)
    >>> text.languages_only(["zh"]).tokens()
    {'zh': 640}
    """

    rows: dict[str, Rows]
    """By language, in the order of `languages`."""

    languages: tuple[str, ...]
    """Labels, in the order of every result made from these corpora."""

    n_shards: int
    """Groups of whole documents in each language, of equal size, for error bars."""

    special_ids: tuple[int, ...]
    """Beginning-of-text and other special tokens, which never count."""

    packed: bool
    """True: blocks of running text without padding. False: each row is one sentence or prompt."""

    hygiene: dict[str, Hygiene] = field(default_factory=dict)
    """Languages detected in the lines of the selected documents, before any were dropped; with
    hygiene="report", in about the first 20,000 lines, which are a random sample. Labels that the
    detector cannot recognize are missing: they were not checked."""

    too_long: dict[str, int] = field(default_factory=dict)
    """Number of sentences left out because they exceed `max_length` or the model's limit."""

    bos: Bos = "none"
    """Where beginning-of-text tokens were put."""

    prefix_ids: tuple[int, ...] = ()
    """Which tokens were put there."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """The language tags that labels were given; a run remembers them."""

    def __post_init__(self) -> None:
        if tuple(self.rows) != self.languages:
            raise ValueError(
                f"Rows of {', '.join(self.rows)} do not match the languages "
                f"{', '.join(self.languages)}."
            )
        for code, rows in self.rows.items():
            if ((rows.shard < 0) | (rows.shard >= self.n_shards)).any():
                raise ValueError(f"A row of {code} is in a shard outside 0 to {self.n_shards - 1}.")

    def __repr__(self) -> str:
        counts = ", ".join(f"{code} {len(rows.ids):,}" for code, rows in self.rows.items())
        longest = max(rows.ids.shape[1] for rows in self.rows.values())
        return f"Corpora({counts} rows of up to {longest:,} tokens, in {self.n_shards} shards)"

    def _cells(self) -> Cells:
        tokens, foreign = self.tokens(), self.hygiene
        columns = {
            "language": self.languages,
            "rows": [len(rows.ids) for rows in self.rows.values()],
            "tokens": [tokens[code] for code in self.languages],
        }
        if foreign:
            columns["lines in other languages"] = [
                f"{sum(foreign[code].foreign_lines.values()):.1%}"
                if code in foreign
                else "not checked"
                for code in self.languages
            ]
        return table_cells(columns, most_rows=MOST_ROWS)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of tokens, shards, languages and special ids; equal for the same data."""
        head = [list(self.languages), self.n_shards, list(self.special_ids), self.packed]
        digest = hashlib.blake2b(json.dumps(head).encode(), digest_size=16)
        for rows in self.rows.values():
            digest.update(json.dumps(list(rows.ids.shape)).encode())
            for tensor, dtype in ((rows.ids, "<i4"), (rows.length, "<i8"), (rows.shard, "<i8")):
                digest.update(tensor.cpu().numpy().astype(dtype).tobytes())
        return digest.hexdigest()

    @property
    def begins(self) -> dict[str, Any]:
        """`bos` and the ids it put there, for the provenance of results."""
        return {"setting": self.bos, "ids": list(self.prefix_ids)}

    def keep(
        self, ids: Int[Tensor, "row pos"], length: Int[Tensor, " row"]
    ) -> Bool[Tensor, "row pos"]:
        """Mask of tokens that count: False on padding, beginning-of-text and other special ones."""
        position = torch.arange(ids.shape[1], device=ids.device)
        inside = position < rearrange(length.to(ids.device), "row -> row 1")
        special = torch.tensor(self.special_ids, dtype=ids.dtype, device=ids.device)
        return inside & ~torch.isin(ids, special)

    def tokens(self) -> dict[str, int]:
        """Number of tokens that count, by language."""
        return {
            code: int(self.keep(rows.ids, rows.length).sum()) for code, rows in self.rows.items()
        }

    def languages_only(self, languages: Sequence[str]) -> "Corpora":
        """The same rows for some of the languages, in the given order."""
        codes = labels_among(languages, self.languages, "these corpora")
        return Corpora(
            {code: self.rows[code] for code in codes},
            codes,
            self.n_shards,
            self.special_ids,
            self.packed,
            {code: self.hygiene[code] for code in codes if code in self.hygiene},
            {code: self.too_long[code] for code in codes if code in self.too_long},
            self.bos,
            self.prefix_ids,
            {code: self.tags[code] for code in codes if code in self.tags},
        )

"""Hash-based sampling of documents, and their assignment to shards.

Only a document's hash decides its side of the train/held-out split and its position in the order,
so the result does not depend on files, line numbers, processes or machines.
"""

import hashlib
import heapq
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from interp.results.words import Care, Split
from interp.text.labels import Tags
from interp.text.language_id import Hygiene, LanguageId, drop_foreign
from interp.text.sources import Cut, Document, TextSource, read_documents, text_location

_BATCH = 256  # documents processed together

# Lines checked for a report. Documents come in random order, so the first ones are a random sample,
# with a standard error of at most 0.4 %. One line takes about 50 microseconds.
_SAMPLE = 20_000


@dataclass(frozen=True)
class Reader:
    """Selects documents of a source and puts them in order."""

    source: TextSource

    cut: Cut
    """What one document of a text file is."""

    split: Split

    held_out: float
    """Share of documents in the held-out split."""

    care: Care

    seed: int
    """Decides the order, not the split."""

    tags: Tags | None = None
    """Language tags of labels that are none, for the check for foreign lines."""

    langid: LanguageId | None = None
    """The detector for that check; None: py3langid."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; give a share between 0 and 1.")
        for name, choices in (("cut", Cut), ("split", Split), ("care", Care)):
            check_choice(getattr(self, name), choices)

    def in_split(self, text: str) -> bool:
        """Whether the text is in the requested split, which only its hash decides."""
        if self.split == "all":
            return True
        fraction = int.from_bytes(digest(text, b"split")[:8], "big") / 2**64
        return (fraction < self.held_out) == (self.split == "held_out")

    def first(
        self, language: str, budget: int | None, size: Callable[[str], int]
    ) -> tuple[list[Document], bool]:
        """The first documents in hash order with `budget` in total size; True if these are all.

        None: no limit. One pass, which keeps only the texts selected so far in memory: a text that
        comes later in the order than all of them is dropped, with its hash, since a duplicate would
        be dropped too. The cost: documents are not counted, and a source whose tokens are longer
        than expected is read twice.
        """
        limit = math.inf if budget is None else budget
        selected: dict[int, Document] = {}
        heap: list[int] = []  # negated orders, so that the latest is on top
        total, complete, n_read, n_repeated = 0, True, 0, 0
        for document in read_documents(self.source, language, self.cut):
            n_read += 1
            if not self.in_split(document.text):
                continue
            order = int.from_bytes(digest(document.text, str(self.seed).encode()), "big")
            if order in selected:
                n_repeated += 1
                continue
            if total >= limit and order > -heap[0]:
                complete = False
                continue
            selected[order] = document
            heapq.heappush(heap, -order)
            total += size(document.text)
            while total - (last := size(selected[-heap[0]].text)) >= limit:
                del selected[-heapq.heappop(heap)]
                total, complete = total - last, False
        if not selected:
            which = "" if self.split == "all" else f" in the {self.split} split"
            raise ValueError(
                f"There is no text in {language}{which}: {text_location(self.source, language)} "
                f"has {n_read} documents that are not empty. Add text"
                + (f"; in Python, also change held_out from {self.held_out}." if which else ".")
            )
        if 2 * n_repeated > n_read:
            warnings.warn(
                f"{n_repeated:,} of {n_read:,} documents in {language} repeat others: a text "
                "counts once.",
                stacklevel=2,
            )
        return [selected[order] for order in sorted(selected)], complete

    def clean(
        self, language: str, documents: Sequence[Document]
    ) -> Iterator[tuple[list[Document], Hygiene | None]]:
        """Batches of documents with a report each, without foreign lines if requested.

        A document that loses lines is dropped if it leaves the requested split or is a duplicate.
        """
        seen: set[bytes] = set()
        n_lines = 0
        for start in range(0, len(documents), _BATCH):
            batch = list(documents[start : start + _BATCH])
            if self.care == "off" or (self.care == "report" and n_lines >= _SAMPLE):
                yield batch, None
                continue
            texts, report = drop_foreign(
                [document.text for document in batch], language, self.tags, self.langid
            )
            if report is None:
                yield batch, None
                continue
            n_lines += sum(report.lines.values())
            if self.care == "drop":
                cleaned = []
                for text, document in zip(texts, batch, strict=True):
                    key = digest(text, b"known")
                    unchanged = text == document.text
                    if text and key not in seen and (unchanged or self.in_split(text)):
                        seen.add(key)
                        cleaned.append(Document(text, document.origin))
                batch = cleaned
            yield batch, report


def check_choice(value: str, choices: Any) -> None:
    """Refuse a value that is not one of a Literal's words."""
    if value not in choices.__args__:
        raise ValueError(f"{value!r} was given; choose from {', '.join(choices.__args__)}.")


def digest(text: str, key: bytes) -> bytes:
    """A hash of 16 bytes; each key gives an independent one."""
    return hashlib.blake2b(text.encode(), digest_size=16, key=key).digest()


class Text(NamedTuple):
    """One document, tokenized."""

    size: int
    """UTF-8 bytes."""

    ids: np.ndarray

    origin: str
    """Where it comes from, such as `de.txt:118`."""


class Shard:
    """The documents of one shard, in order."""

    def __init__(self) -> None:
        self.texts: list[Text] = []
        self.starts: list[int] = []
        self.n_tokens = 0

    def add(self, text: Text) -> None:
        self.texts.append(text)
        self.starts.append(self.n_tokens)
        self.n_tokens += len(text.ids)

    def origin(self, position: int) -> str:
        return self.texts[bisect_right(self.starts, position) - 1].origin


class Dealer:
    """Assigns each document to the shard with the fewest bytes so far.

    Bytes rather than tokens, so that shards are the same for every model. Shards of similar size
    lose less text when all are cut to equal length, and error bars need no weights.
    """

    def __init__(self, n_shards: int) -> None:
        self.shards = [Shard() for _ in range(n_shards)]
        self.dealt: list[Text] = []
        self._heap = [(0, index) for index in range(n_shards)]

    @property
    def fewest(self) -> int:
        """Number of tokens in the smallest shard."""
        return min(shard.n_tokens for shard in self.shards)

    def deal(self, text: Text) -> None:
        size, index = self._heap[0]
        heapq.heapreplace(self._heap, (size + text.size, index))
        self.shards[index].add(text)
        self.dealt.append(text)

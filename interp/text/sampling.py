"""Which documents are taken, in which order, and to which shard each is dealt.

A document's hash alone says on which side of the train/held-out split it lies and where it comes in
the order, so files, lines, processes and machines make no difference.
"""

import hashlib
import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from interp.results.words import Care, Split
from interp.text.language_id import Hygiene, drop_foreign
from interp.text.sources import Cut, Document, TextSource, place, read_documents

_BATCH = 256  # documents that are looked at together

# Lines looked at for a report: documents come in random order, so the first ones are a fair sample,
# to a standard error of 0.4 % or less. One line takes about 50 microseconds.
_SAMPLE = 20_000


@dataclass(frozen=True)
class Reader:
    """Which documents of a source are wanted, and in which order."""

    source: TextSource

    cut: Cut
    """What is one document of a text file."""

    split: Split

    held_out: float
    """Share of documents in the held-out split."""

    care: Care

    seed: int
    """Decides on the order, not on the split."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; give a share between 0 and 1.")
        for name, choices in (("cut", Cut), ("split", Split), ("care", Care)):
            check_choice(getattr(self, name), choices)

    def wants(self, text: str) -> bool:
        """Whether the text is on our side of the split, which its hash alone decides."""
        if self.split == "all":
            return True
        drawn = int.from_bytes(digest(text, b"split")[:8], "big") / 2**64
        return (drawn < self.held_out) == (self.split == "held_out")

    def first(
        self, language: str, enough: int | None, size: Callable[[str], int]
    ) -> tuple[list[Document], bool]:
        """The first documents in hash order until their sizes reach `enough`; are these all?

        None takes all. One pass. Only the texts chosen so far are held, never the file: a text that
        comes later in the order than all of them is not kept, and neither is its hash, because if
        it comes again it will again be late. What that costs: nobody counts how many documents
        there are, and a source whose tokens are longer than expected is read twice.
        """
        limit = math.inf if enough is None else enough
        chosen: dict[int, Document] = {}
        heap: list[int] = []  # the latest on top: orders with their signs changed
        total, complete, seen = 0, True, 0
        for document in read_documents(self.source, language, self.cut):
            seen += 1
            if not self.wants(document.text):
                continue
            order = int.from_bytes(digest(document.text, str(self.seed).encode()), "big")
            if order in chosen:
                continue
            if total >= limit and order > -heap[0]:
                complete = False
                continue
            chosen[order] = document
            heapq.heappush(heap, -order)
            total += size(document.text)
            while total - (last := size(chosen[-heap[0]].text)) >= limit:
                del chosen[-heapq.heappop(heap)]
                total, complete = total - last, False
        if not chosen:
            which = "" if self.split == "all" else f" in the {self.split} split"
            raise ValueError(
                f"There is no text in {language}{which}: {place(self.source, language)} has {seen} "
                "documents that are not empty. Add text"
                + (f", or change held_out from {self.held_out}." if which else ".")
            )
        return [chosen[order] for order in sorted(chosen)], complete

    def clean(
        self, language: str, chosen: Sequence[Document]
    ) -> Iterator[tuple[list[Document], Hygiene | None]]:
        """The documents in batches, without foreign lines if so asked, with reports on each batch.

        A document that changes must still be on our side of the split, and new.
        """
        known: set[bytes] = set()
        n_lines = 0
        for start in range(0, len(chosen), _BATCH):
            batch = list(chosen[start : start + _BATCH])
            if self.care == "off" or (self.care == "report" and n_lines >= _SAMPLE):
                yield batch, None
                continue
            texts, report = drop_foreign([document.text for document in batch], language)
            n_lines += sum(report.lines.values())
            if self.care == "drop":
                left = []
                for text, document in zip(texts, batch, strict=True):
                    key = digest(text, b"known")
                    same = text == document.text
                    if text and key not in known and (same or self.wants(text)):
                        known.add(key)
                        left.append(Document(text, document.origin))
                batch = left
            yield batch, report


def check_choice(given: str, choices: Any) -> None:
    """Refuse what is not one of a Literal's words."""
    if given not in choices.__args__:
        raise ValueError(f"{given!r} was given; choose from {', '.join(choices.__args__)}.")


def digest(text: str, key: bytes) -> bytes:
    """16 bytes that stand for a text; each key gives others."""
    return hashlib.blake2b(text.encode(), digest_size=16, key=key).digest()


class Text(NamedTuple):
    """One document, tokenized."""

    size: int
    """UTF-8 bytes."""

    ids: np.ndarray

    origin: str
    """Where it was found."""


class Shard:
    """Documents of one shard, in their order."""

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
    """Deals documents, each to the shard with the fewest bytes so far.

    Bytes and not tokens, so that the same text is dealt alike for every model. Equal shards lose
    less text to equal counts, and their error bars need no weights.
    """

    def __init__(self, n_shards: int) -> None:
        self.shards = [Shard() for _ in range(n_shards)]
        self.dealt: list[Text] = []
        self._heap = [(0, index) for index in range(n_shards)]

    @property
    def fewest(self) -> int:
        """Tokens of the shard that has fewest."""
        return min(shard.n_tokens for shard in self.shards)

    def deal(self, text: Text) -> None:
        size, index = self._heap[0]
        heapq.heapreplace(self._heap, (size + text.size, index))
        self.shards[index].add(text)
        self.dealt.append(text)

"""Contexts as the neuron page shows them: stretches of text in pieces, shaded by the gate."""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from interp.counting.top_contexts import TopContexts

SHADES = "0123456789abcdefghijklmnopqrstuvwxyz"
"""Gate strength: 0 does not fire, z is the neuron's highest gate in any language."""

UNSEEN = "-"
"""The shade of tokens that the neuron's expert does not get."""

_LONGEST_WORD = 4  # tokens of a word that are left out because the window cuts it

_WITHOUT_SPACES = (
    *((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF)),
    *((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
"""Letters of Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese: cut anywhere."""

_CONTINUING = bytes(range(0x80, 0xC0))  # in UTF-8, bytes that never begin a character


class Stretch(NamedTuple):
    """A part of a row of text."""

    text: str

    sizes: list[int]
    """Length of each piece in UTF-16 units, as in JavaScript. A piece is one token, or as many as
    it takes to write whole characters."""

    piece: np.ndarray
    """The index of each token's piece."""

    starts: list[int]
    """The pieces, except the first, with which a document starts."""


def contexts_of(
    contexts: TopContexts,
    layer: int,
    neurons: Int64[Tensor, " neuron"],
    gates: Float[np.ndarray, "language neuron rank token"],
    before: int,
    spelled: Sequence[bytes],
    edges: "WordEdges",
) -> dict[str, Any]:
    """Stretches as (language, source, text, sizes, starts), and for each neuron and language its
    contexts as (stretch, first piece, strongest piece, gate, shades).

    `gates` surround each context, from `before` tokens before it; NaN: there is no text; minus
    infinity: its expert does not get the token. Words that the window cuts are left out.
    """
    row, position, gate = (
        field[:, layer, neurons].numpy()
        for field in (contexts.row, contexts.position, contexts.gate)
    )
    real = ~np.isnan(gates)
    ids, starts = contexts.ids.numpy(), contexts.starts.numpy()
    for at in zip(*np.nonzero(row >= 0), strict=True):
        n = row[at]
        _leave_out_cut_words(real[at], ids[n], starts[n], int(position[at]), before, edges)
    first = position - before + real.argmax(axis=-1)
    stop = first + real.sum(axis=-1)
    windows = zip(*(field[row >= 0].tolist() for field in (row, first, stop)), strict=True)
    text = _Stretches(windows, contexts, spelled)
    peak = gate.max(axis=(0, 2)).tolist()

    def context(code: int, n: int, rank: int) -> list[Any]:
        at = (code, n, rank)
        number, begin = text.find(int(row[at]), int(first[at]))
        piece = text.stretches[number].piece
        window = piece[first[at] - begin : stop[at] - begin]
        strongest = int(piece[position[at] - begin])
        shades = _shades(gates[at][real[at]], window, peak[n])
        return [number, int(window[0]), strongest, float(f"{gate[at]:.4g}"), shades]

    by_neuron = [
        [
            [context(code, n, rank) for rank in range(contexts.n) if row[code, n, rank] >= 0]
            for code in range(len(contexts.languages))
        ]
        for n in range(len(neurons))
    ]
    code_of = {n: code for code, rows in enumerate(row) for n in rows.flatten().tolist()}
    return {
        "stretches": [
            [code_of[row], contexts.sources[row], stretch.text, stretch.sizes, stretch.starts]
            for (row, _), stretch in zip(text.starts, text.stretches, strict=True)
        ],
        "contexts": by_neuron,
    }


class WordEdges(NamedTuple):
    """For every token of a vocabulary, whether it begins and whether it ends within a word."""

    begins: np.ndarray
    ends: np.ndarray

    def cuts(self, left: int, right: int) -> bool:
        """Whether a word goes on from one token to the next."""
        return bool(self.ends[left] and self.begins[right])


def word_edges(spelled: Sequence[bytes]) -> WordEdges:
    """From the bytes of every token. A token of part of a letter is within a word."""
    texts = [token.decode(errors="ignore") for token in spelled]
    known = [bool(text) or not token for text, token in zip(texts, spelled, strict=True)]
    flags = [
        [not whole or _in_word(text[end : end + 1 or None]) for text, whole in
         zip(texts, known, strict=True)]
        for end in (0, -1)
    ]  # fmt: skip
    return WordEdges(*(np.array(row, dtype=bool) for row in flags))


def _in_word(character: str) -> bool:
    """Whether words of its script go on after it, up to a space."""
    if not (character.isalnum() or unicodedata.category(character or " ").startswith("M")):
        return False
    code = ord(character)
    return not any(first <= code <= last for first, last in _WITHOUT_SPACES)


def _leave_out_cut_words(
    real: np.ndarray,
    ids: Int32[np.ndarray, " pos"],
    starts: Bool[np.ndarray, " pos"],
    position: int,
    before: int,
    edges: WordEdges,
) -> None:
    """Clear the marks of `real` on words that the window cuts, of a few tokens at most.

    The strongest token stays, and so does a word that is longer. No word goes on where a document
    starts.
    """

    def cuts(end: int) -> bool:
        if not 0 < end < len(ids) or starts[end]:
            return False
        return edges.cuts(int(ids[end - 1]), int(ids[end]))

    shift = position - before  # of the window's first place in the row
    shown = np.flatnonzero(real) + shift
    first, last = int(shown[0]), int(shown[-1])
    for begin in range(first, min(first + _LONGEST_WORD, position) + 1):
        if not cuts(begin):
            real[: begin - shift] = False
            break
    for end in range(last, max(last - _LONGEST_WORD, position) - 1, -1):
        if not cuts(end + 1):
            real[end + 1 - shift :] = False
            break


class _Stretches:
    """The text of windows; windows that touch or overlap are merged."""

    def __init__(
        self,
        windows: Iterable[tuple[int, int, int]],
        contexts: TopContexts,
        spelled: Sequence[bytes],
    ) -> None:
        """A window is a row, its first token, and the one after its last."""
        merged: list[list[int]] = []
        for row, first, stop in sorted(set(windows)):
            if merged and merged[-1][0] == row and first <= merged[-1][2]:
                merged[-1][2] = max(merged[-1][2], stop)
            else:
                merged.append([row, first, stop])
        self.starts = [(row, first) for row, first, _ in merged]
        """Row and first token of each stretch, sorted."""
        self.stretches = [
            pieces(
                contexts.ids[row, first:stop].tolist(),
                spelled,
                contexts.starts[row, first:stop].nonzero().flatten().tolist(),
            )
            for row, first, stop in merged
        ]

    def find(self, row: int, first: int) -> tuple[int, int]:
        """Index and first token of the stretch that contains this window."""
        number = bisect_right(self.starts, (row, first)) - 1
        return number, self.starts[number][1]


def pieces(ids: Sequence[int], spelled: Sequence[bytes], starts: Sequence[int] = ()) -> Stretch:
    """The text of tokens, cut between characters: a token may be part of a character.

    `starts` are the positions of those with which a document starts.
    """
    text, sizes, piece, waiting = [], [], [], b""
    for id in ids:
        piece.append(len(sizes))
        waiting += spelled[id]
        if not any(sizes):  # drop the rest of a character that was cut at the start
            waiting = waiting.lstrip(_CONTINUING)
        try:
            characters = waiting.decode()
        except UnicodeDecodeError as error:
            unfinished = error.reason == "unexpected end of data" and len(waiting) - error.start < 4
            if unfinished:
                continue
            characters = waiting.decode(errors="replace")
        text.append(characters)
        sizes.append(_units(characters))
        waiting = b""
    if waiting:  # the text ends within a character
        text.append(waiting.decode(errors="ignore"))
        sizes.append(_units(text[-1]))
    beginnings = [piece[start] for start in starts if start > 0]
    return Stretch("".join(text), sizes, np.array(piece), beginnings)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _shades(gates: np.ndarray, piece: np.ndarray, peak: float) -> str:
    """The shade of each piece: its strongest gate as a share of the neuron's highest."""
    begins = np.flatnonzero(np.diff(piece, prepend=piece[0] - 1))
    strongest = np.maximum.reduceat(gates, begins) / peak
    level = np.ceil(strongest.clip(0, 1) * (len(SHADES) - 1)).astype(int)
    unseen = np.isneginf(strongest)
    return "".join(
        UNSEEN if hidden else SHADES[shade] for shade, hidden in zip(level, unseen, strict=True)
    )


def token_text(written: bytes) -> str:
    """A token as text, or the hexadecimal numbers of its bytes if it is not printable."""
    text = written.decode(errors="replace")
    if "\ufffd" not in text and all(
        character.isprintable() or character in "\n\t" for character in text
    ):
        return text
    return " ".join(f"{byte:02x}" for byte in written)

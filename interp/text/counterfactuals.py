"""Counterfactual text: the documents of a label in another script, order or wording.

`ru~romanised` is a label beside `ru`: it has the same documents in the same shards, each rewritten
by a generator that its own hash seeds. What a neuron still does on such text does not depend on
what was taken away. Words are runs of letters, marks and digits; in scripts without spaces between
words, pairs of characters stand for words. Shuffled words take those along that an apostrophe or a
hyphen joins to them: l'eau.
"""

import hashlib
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby, pairwise
from types import MappingProxyType

SEPARATOR = "~"

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "romanised": "the script: written in Latin letters, character by character",
        "cyrillic": "the script: Latin letters written as Cyrillic ones",
        "words-shuffled": "the order of words in a document",
        "letters-shuffled": "the form of words: their letters stand in random order",
        "words-replaced": "the content: words are others that are about as frequent",
        "tokens-drawn": "all but the frequencies of tokens, from which tokens are drawn",
    }
)
"""Name of each kind of counterfactual → what it takes away."""

_CYRILLIC = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzßæøðþłđıŋə",  # noqa: RUF001
    "абцдефгхијклмнопқрстувўҳызѕӕөҙҫљђіңә",
)
"""Each Latin letter has a Cyrillic one of its own; accents stay on their letters."""

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""First words in the Unicode names of characters in scripts without spaces between words."""

_JOINTS = ("'", "\u2019", "-", "\u2010")

_LARGEST_BIN = 64  # words of neighboring frequencies that replace one another


def split_label(label: str) -> tuple[str, str | None]:
    """The label whose text is read, and the kind of counterfactual; None: the text as it is.

    >>> interp.text.split_label("ru~romanised")
    ('ru', 'romanised')
    """
    base, separator, kind = label.partition(SEPARATOR)
    if not separator:
        return label, None
    if kind not in KINDS or not base:
        raise ValueError(
            f"{label!r} is no counterfactual: behind {SEPARATOR} stands one of {', '.join(KINDS)}."
        )
    return base, kind


def encoder(
    kind: str | None, texts: Sequence[str], encode: Callable[[Sequence[str]], list[list[int]]]
) -> Callable[[Sequence[str]], list[list[int]]]:
    """A function from texts to the tokens of their counterfactuals.

    `texts` are all that are read of the label: they give the frequencies of words and tokens.
    """
    if kind is None:
        return encode
    if kind == "tokens-drawn":
        import numpy as np  # commands check labels before anything heavy is loaded

        pool = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, encode(texts))])

        def drawn(text: str, n: int) -> list[int]:
            rng = np.random.default_rng(_seed(text, kind))
            return pool[rng.integers(len(pool), size=n)].tolist()

        return lambda batch: [
            drawn(text, len(ids)) for text, ids in zip(batch, encode(batch), strict=True)
        ]
    rewrite = rewriter(kind, texts)
    return lambda batch: encode([rewrite(text) for text in batch])


def rewriter(kind: str, texts: Sequence[str]) -> Callable[[str], str]:
    """A function from a text to its counterfactual; `texts` give script and word frequencies.

    >>> romanised = interp.text.rewriter("romanised", ["Привет, мир"])
    >>> romanised("Привет, мир")
    'Privet, mir'
    """
    if kind in ("romanised", "cyrillic"):
        if (kind == "romanised") == mostly_latin(texts):
            which, other = ("most", "cyrillic") if kind == "romanised" else ("few", "romanised")
            raise ValueError(
                f"{which.capitalize()} letters are Latin, so {kind} would change little: use "
                f"{other}."
            )
        return romanised if kind == "romanised" else cyrillic
    if kind == "words-shuffled":
        return words_shuffled(_pairs)
    if kind == "letters-shuffled":
        return _by_words(kind, lambda words, rng: [_mixed(word, rng) for word in words])
    if kind == "words-replaced":
        bins = _frequency_bins(texts)
        return _by_words(kind, lambda words, rng: [_other(bins[word], word, rng) for word in words])
    raise ValueError(f"{kind!r} does not rewrite text: give one of {', '.join(KINDS)}.")


Cut = Callable[[str], Sequence[str]]
"""From a stretch of letters in a script without spaces to the words in it."""


def words_shuffled(cut: Cut) -> Callable[[str], str]:
    """The counterfactual `words-shuffled`, with `cut` in place of pairs of characters."""
    return _by_words("words-shuffled", _shuffled, lambda text: _joined(_pieces(text, cut)))


def romanised(text: str) -> str:
    """The text in Latin letters, by anyascii; vowels that are not written stay out."""
    return "".join(map(_latin, text))


def cyrillic(text: str) -> str:
    """Latin letters as Cyrillic ones, so that no two letters become one."""
    decomposed = unicodedata.normalize("NFD", text)
    letters = (
        x.lower().translate(_CYRILLIC).upper() if x.isupper() else x.translate(_CYRILLIC)
        for x in decomposed
    )
    return unicodedata.normalize("NFC", "".join(letters))


@cache
def _latin(character: str) -> str:
    from anyascii import anyascii  # a table of its own, which only this kind needs

    if character.isascii():
        return character
    letters = anyascii(character)  # "Xia" for a Chinese character
    return letters if character.isupper() else letters.lower()


def mostly_latin(texts: Sequence[str]) -> bool:
    """Whether at least half of the letters are Latin."""
    letters = Counter(x for text in texts for x in text if x.isalpha())
    latin = sum(n for x, n in letters.items() if "LATIN" in unicodedata.name(x, ""))
    return 2 * latin >= letters.total()


Rewrite = Callable[[list[str], random.Random], list[str]]
"""From the words of a document to as many words."""


def _pairs(letters: str) -> list[str]:
    """Pairs of characters with their marks; the last may be one."""
    one = list(_letters(letters))
    return ["".join(one[start : start + 2]) for start in range(0, len(one), 2)]


Piece = tuple[bool, str]
"""Whether it is a word, and what is written."""


def _by_words(
    kind: str, rewrite: Rewrite, split: Callable[[str], Iterator[Piece]] | None = None
) -> Callable[[str], str]:
    """A function that rewrites the words of a text, and leaves what stands between them."""

    def apply(text: str) -> str:
        pieces = list((split or _pieces)(text))
        words = [piece for is_word, piece in pieces if is_word]
        new = iter(rewrite(words, random.Random(_seed(text, kind))))
        return "".join(next(new) if is_word else piece for is_word, piece in pieces)

    return apply


def _shuffled(words: list[str], rng: random.Random) -> list[str]:
    return rng.sample(words, len(words))


def _mixed(word: str, rng: random.Random) -> str:
    """Its letters in another order, with their marks."""
    letters = list(_letters(word))
    return "".join(rng.sample(letters, len(letters)))


def _other(alike: Sequence[str], word: str, rng: random.Random) -> str:
    """Another word of the bin, if it has one."""
    others = [other for other in alike if other != word]
    return rng.choice(others) if others else word


def _frequency_bins(texts: Sequence[str]) -> dict[str, Sequence[str]]:
    """Word → the words of neighboring rank: 2, 2, 4, 8 and so on of them, at most 64."""
    counts = Counter(piece for text in texts for is_word, piece in _pieces(text) if is_word)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    edges = [0, 2, 4, 8, 16, 32, *range(64, len(ranked) + _LARGEST_BIN, _LARGEST_BIN)]
    bins = [ranked[start:end] for start, end in pairwise(edges)]
    return {word: alike for alike in bins for word in alike}


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Words with an apostrophe or a hyphen between them become one."""
    whole: list[Piece] = []
    for is_word, piece in pieces:
        if is_word and len(whole) > 1 and whole[-1][1] in _JOINTS and whole[-2][0]:
            whole[-2:] = [(True, f"{whole[-2][1]}{whole[-1][1]}{piece}")]
        else:
            whole.append((is_word, piece))
    return iter(whole)


def _pieces(text: str, cut: Cut = _pairs) -> Iterator[Piece]:
    """The text cut into words (True) and what stands between them (False)."""
    for kind, run in groupby(text, _class):
        piece = "".join(run)
        for word in cut(piece) if kind == "unspaced" else (piece,):
            yield kind != "between", word


@cache
def _class(character: str) -> str:
    if unicodedata.category(character)[0] not in "LMN":
        return "between"
    return "unspaced" if unicodedata.name(character, "").startswith(_UNSPACED) else "word"


def _letters(word: str) -> Iterator[str]:
    """Characters with the marks that follow them."""
    letter = ""
    for character in word:
        if letter and not unicodedata.category(character).startswith("M"):
            yield letter
            letter = ""
        letter += character
    if letter:
        yield letter


def _seed(text: str, kind: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=kind.encode()).digest()
    return int.from_bytes(digest, "big")

"""Language identification: the language of a text, and the share of foreign text in a corpus."""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from interp.results.display import Cells, Shown
from interp.text.languages import VARIANTS, check_languages

OTHER = "other"
UNDETERMINED = "und"

# In log likelihood per square root of a byte, a unit that is comparable across text lengths. On
# news sentences in 22 languages, a lead of 1.0 calls 0.6 % of good lines foreign (half of these
# truly are), where a plain argmax calls 1.4 % foreign, mostly Malay as Indonesian; of lines in a
# related language (Bulgarian for Russian, Spanish for Portuguese), 1 % is missed.
_LEAD = 1.0

# The first four words of a sentence are called foreign in 2.5 % of cases, the first eight in 0.8 %.
_SHORT = 24  # bytes of letters

_LONGEST = 2000  # characters: more would cost time and change nothing


def detect_language(texts: Sequence[str], candidates: Sequence[str] | None = None) -> list[str]:
    """The language of each text, as an ISO code; `und` if there are no letters to go by.

    All languages compete first. With `candidates`, the result is one of them, unless some other
    language is clearly ahead of them all: then it is `other`. (A detector restricted to the
    candidates would call every Dutch text German.) Variants count as their language, Cantonese as
    `zh` and Nynorsk as `no`, but Malay and Indonesian are separate. About 1 % of sentences are
    wrong, and 10 % of those of three or four words.

    >>> interp.detect_language(["Wo ist der Bahnhof?", "Où est la gare ?", "1 + 1 = 2"])
    ['de', 'fr', 'und']
    >>> interp.detect_language(["Waar is het station van deze stad?"], candidates=["de", "fr"])
    ['other']
    """
    if isinstance(texts, str):
        raise ValueError(
            f"Texts were given as the one string {texts[:20]!r}; give a list of strings."
        )
    allowed = None if candidates is None else check_languages(candidates)
    return [_decide(_scores(text), allowed) for text in texts]


@dataclass(frozen=True)
class Hygiene(Shown):
    """The languages detected in the lines of a corpus of one language."""

    language: str
    """The nominal language of the corpus."""

    lines: Mapping[str, int] = field(default_factory=dict)
    """Detected language → number of lines; `und`: too short, or without letters."""

    characters: Mapping[str, int] = field(default_factory=dict)
    """Detected language → characters in those lines."""

    @property
    def foreign_lines(self) -> dict[str, float]:
        """Foreign language → share of the lines, largest first; `und` is not foreign."""
        return self._foreign(self.lines)

    @property
    def foreign_characters(self) -> dict[str, float]:
        """Foreign language → share of the characters, largest first."""
        return self._foreign(self.characters)

    def _foreign(self, counts: Mapping[str, int]) -> dict[str, float]:
        total = sum(counts.values())
        own = (self.language, UNDETERMINED)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return {code: count / total for code, count in ranked if code not in own}

    def __add__(self, other: "Hygiene") -> "Hygiene":
        if self.language != other.language:
            raise ValueError(
                f"One report is about {self.language}, the other about {other.language}: only "
                "reports about the same language can be added."
            )
        return Hygiene(
            self.language,
            dict(Counter(self.lines) + Counter(other.lines)),
            dict(Counter(self.characters) + Counter(other.characters)),
        )

    def __repr__(self) -> str:
        return f"Hygiene({self})"

    def _cells(self) -> Cells:
        ranked = sorted(self.lines, key=lambda code: -self.lines[code])
        numbers = [(self.lines[code], self.characters.get(code, 0)) for code in ranked]
        rows = [[code, *(f"{n:,}" for n in row)] for code, row in zip(ranked, numbers, strict=True)]
        return Cells(("detected", "lines", "characters"), rows)

    def __str__(self) -> str:
        lines, characters = sum(self.foreign_lines.values()), sum(self.foreign_characters.values())
        shares = ", ".join(f"{code} {share:.1%}" for code, share in self.foreign_lines.items())
        return (
            f"{self.language}: {lines:.1%} of {sum(self.lines.values()):,} lines "
            f"({characters:.1%} of characters) in other languages"
            + (f": {shares}" if shares else "")
        )


def hygiene(texts: Iterable[str], language: str) -> Hygiene:
    """How much of the texts is in languages other than this one, line by line.

    A line is foreign if some other language is clearly ahead of this one. Lines with fewer than 24
    bytes of letters (four or five words) are `und`: too short to judge.
    """
    return drop_foreign(texts, language)[1]


def drop_foreign(texts: Iterable[str], language: str) -> tuple[list[str], Hygiene]:
    """The texts without their foreign lines, and a report on all lines.

    A text that loses all its lines becomes the empty string, so that texts keep their index.
    """
    check_languages([language])
    lines, characters = Counter[str](), Counter[str]()
    cleaned = []
    for text in texts:
        kept_lines = []
        for line in text.split("\n"):
            label = _line_language(line, language)
            if line.strip():
                lines[label] += 1
                characters[label] += len(line)
            if label in (language, UNDETERMINED):
                kept_lines.append(line)
        cleaned.append("\n".join(kept_lines).strip())
    return cleaned, Hygiene(language, dict(lines), dict(characters))


def _line_language(line: str, expected: str) -> str:
    letters = "".join(filter(str.isalpha, line[:_LONGEST]))
    if len(letters.encode("utf-8", "surrogatepass")) < _SHORT:
        return UNDETERMINED
    scores = _scores(line)
    label = _decide(scores, (expected,))
    return _decide(scores, None) if label == OTHER else label


def _decide(scores: dict[str, float], allowed: Sequence[str] | None) -> str:
    """The language with the best score, or the best one allowed, or `other` if they trail far."""
    if not scores:
        return UNDETERMINED
    leader = max(scores, key=scores.__getitem__)
    if leader == "zxx":  # the detector's code for numbers, links and program code
        return UNDETERMINED
    if allowed is None or leader in allowed:
        return leader
    best = max(allowed, key=scores.__getitem__)
    return OTHER if scores[leader] - scores[best] > _LEAD else best


def _scores(text: str) -> dict[str, float]:
    """Log likelihood of every language per square root of a byte; empty if undetermined."""
    text = text[:_LONGEST]
    if not any(map(str.isalpha, text)):
        return {}
    scale = 1 / math.sqrt(len(text.encode("utf-8", "surrogatepass")))
    scores: dict[str, float] = {}
    ranked = _identifier().rank(text)
    if ranked[0][1] == ranked[-1][1]:  # no known feature: all languages score the same
        return {}
    for label, score in ranked:  # best first, so that a language gets its best variant's score
        scores.setdefault(VARIANTS.get(label, label), score * scale)
    return scores


@functools.cache
def _identifier() -> LanguageIdentifier:
    """The detector, loaded from its package on first use (0.4 s); never restrict its languages."""
    return LanguageIdentifier.from_model_file(MODEL_FILE)

"""Which language a text is in, and how much of a corpus is in another language than it says."""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from interp.text.languages import VARIANTS, check_languages

OTHER = "other"
UNDETERMINED = "und"

# In units of log likelihood per square root of a byte, in which texts of all lengths compare well.
# On news sentences of 22 languages, a lead of 1.0 takes 0.6 % of good lines for foreign (half of
# these are foreign indeed) where a bare argmax takes 1.4 %, most of them Indonesian for Malay; of
# lines in a related language (Bulgarian for Russian, Spanish for Portuguese) 1 % gets through.
_LEAD = 1.0

# The first four words of a sentence are taken for foreign in 2.5 % of cases, eight in 0.8 %.
_SHORT = 24  # bytes of letters

_LONGEST = 2000  # characters: more cost time and decide nothing


def detect_language(texts: Sequence[str], candidates: Sequence[str] | None = None) -> list[str]:
    """The language of each text, as ISO code; `und` where there are no letters to tell by.

    All languages compete first. With `candidates`, the answer is one of them, unless some other
    language is clearly ahead of them all: then it is `other`. (A detector that is only offered the
    candidates calls every Dutch text German.) Variants count as their language, Cantonese as `zh`
    and Nynorsk as `no`, but Malay and Indonesian are kept apart. About one sentence in a hundred is
    wrong, and one in ten of three or four words.

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
class Hygiene:
    """In which languages the lines of a corpus of one language are."""

    language: str
    """The language that the corpus is said to be in."""

    lines: Mapping[str, int] = field(default_factory=dict)
    """Lines by language found; `und` are too short to tell, or have no letters."""

    characters: Mapping[str, int] = field(default_factory=dict)
    """Characters of those lines."""

    @property
    def foreign_lines(self) -> dict[str, float]:
        """Share of the lines by foreign language, largest first; `und` is not foreign."""
        return self._foreign(self.lines)

    @property
    def foreign_characters(self) -> dict[str, float]:
        """Share of the characters by foreign language, largest first."""
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
                "reports about one language add up."
            )
        return Hygiene(
            self.language,
            dict(Counter(self.lines) + Counter(other.lines)),
            dict(Counter(self.characters) + Counter(other.characters)),
        )

    def __repr__(self) -> str:
        return f"Hygiene({self})"

    def __str__(self) -> str:
        lines, characters = sum(self.foreign_lines.values()), sum(self.foreign_characters.values())
        found = ", ".join(f"{code} {share:.1%}" for code, share in self.foreign_lines.items())
        return (
            f"{self.language}: {lines:.1%} of {sum(self.lines.values()):,} lines "
            f"({characters:.1%} of characters) in other languages" + (f": {found}" if found else "")
        )


def hygiene(texts: Iterable[str], language: str) -> Hygiene:
    """How much of the texts is in other languages than this one, line by line.

    A line is foreign when some other language is clearly ahead of this one. Lines with less than 24
    bytes of letters (four or five words) are `und`: they tell too little to be blamed.
    """
    return drop_foreign(texts, language)[1]


def drop_foreign(texts: Iterable[str], language: str) -> tuple[list[str], Hygiene]:
    """The texts without the lines in other languages, and the report on all lines.

    A text that loses all its lines becomes the empty string, so that the results still line up.
    """
    check_languages([language])
    lines, characters = Counter[str](), Counter[str]()
    cleaned = []
    for text in texts:
        kept = []
        for line in text.split("\n"):
            label = _line_language(line, language)
            if line.strip():
                lines[label] += 1
                characters[label] += len(line)
            if label in (language, UNDETERMINED):
                kept.append(line)
        cleaned.append("\n".join(kept).strip())
    return cleaned, Hygiene(language, dict(lines), dict(characters))


def _line_language(line: str, expected: str) -> str:
    letters = "".join(filter(str.isalpha, line[:_LONGEST]))
    if len(letters.encode("utf-8", "surrogatepass")) < _SHORT:
        return UNDETERMINED
    scores = _scores(line)
    found = _decide(scores, (expected,))
    return _decide(scores, None) if found == OTHER else found


def _decide(scores: dict[str, float], allowed: Sequence[str] | None) -> str:
    """The leader; or the best of those allowed, or `other` where they are all far behind."""
    if not scores:
        return UNDETERMINED
    leader = max(scores, key=scores.__getitem__)
    if leader == "zxx":  # the detector's word for numbers, links and code
        return UNDETERMINED
    if allowed is None or leader in allowed:
        return leader
    best = max(allowed, key=scores.__getitem__)
    return OTHER if scores[leader] - scores[best] > _LEAD else best


def _scores(text: str) -> dict[str, float]:
    """Log likelihood of every language per square root of a byte; empty when nothing tells."""
    text = text[:_LONGEST]
    if not any(map(str.isalpha, text)):
        return {}
    scale = 1 / math.sqrt(len(text.encode("utf-8", "surrogatepass")))
    scores: dict[str, float] = {}
    ranked = _identifier().rank(text)
    if ranked[0][1] == ranked[-1][1]:  # no feature in it: every language alike
        return {}
    for label, score in ranked:  # best first, so that the better of two variants speaks for both
        scores.setdefault(VARIANTS.get(label, label), score * scale)
    return scores


@functools.cache
def _identifier() -> LanguageIdentifier:
    """The detector, read from its package on first use (0.4 s); shared, and never restricted."""
    return LanguageIdentifier.from_model_file(MODEL_FILE)

"""Language identification: the language of a text, and the share of foreign text in a corpus."""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from interp.results.display import Cells, Shown
from interp.text.labels import Tags, check_labels, tag_of
from interp.text.languages import VARIANTS, read_tag

OTHER = "other"
UNDETERMINED = "und"

LanguageId = Callable[[Sequence[str]], Sequence[str]]
"""Any detector: texts → their language tags, in order, such as `de` or `deu_Latn`; `und`: cannot
tell. GlotLID, for example, with the names of its labels cut: `__label__deu_Latn` is no tag."""

# In log likelihood per square root of a byte, a unit that is comparable across text lengths. On
# news sentences in 22 languages, a lead of 1.0 calls 0.6 % of good lines foreign (half of these
# truly are), where a plain argmax calls 1.4 % foreign, mostly Malay as Indonesian; of lines in a
# related language (Bulgarian for Russian, Spanish for Portuguese), 1 % is missed.
_LEAD = 1.0

# The first four words of a sentence are called foreign in 2.5 % of cases, the first eight in 0.8 %.
_SHORT = 24  # bytes of letters

_LONGEST = 2000  # characters: more would cost time and change nothing


def detect_language(
    texts: Sequence[str],
    candidates: Sequence[str] | None = None,
    langid: LanguageId | None = None,
) -> list[str]:
    """The language of each text, as a tag; `und` if there are no letters to go by.

    All languages compete first. With `candidates`, the result is one of these labels, unless some
    other language is clearly ahead of them all: then it is `other`. (A detector restricted to the
    candidates would call every Dutch text German.) Variants count as their language, Cantonese as
    `zh` and Nynorsk as `no`, but Malay and Indonesian are separate. About 1 % of sentences are
    wrong, and 10 % of those of three or four words. `langid` replaces the detector, which is
    py3langid and knows 140 languages.

    >>> interp.detect_language(["Wo ist der Bahnhof?", "Où est la gare ?", "1 + 1 = 2"])
    ['de', 'fr', 'und']
    >>> interp.detect_language(["Waar is het station van deze stad?"], candidates=["de", "fr"])
    ['other']
    """
    if isinstance(texts, str):
        raise ValueError(
            f"Texts were given as the one string {texts[:20]!r}; give a list of strings."
        )
    if candidates is None:
        if langid is not None:
            return _tags(texts, langid)
        return [_decide(_scores(text), None) for text in texts]
    codes = detectable(check_labels(candidates), langid=langid)
    times = Counter(codes.values())
    if unknown := [label for label in candidates if times[codes.get(label, "")] != 1]:
        raise ValueError(
            f"The detector cannot recognize {', '.join(unknown)}: leave them out; in Python, give "
            "langid, a function from texts to language tags that can."
        )
    by_code = {code: label for label, code in codes.items()}
    if langid is None:
        detected = [_decide(_scores(text), list(by_code)) for text in texts]
    else:
        detected = [variant(tag, by_code) for tag in _tags(texts, langid)]
    return [by_code.get(code, UNDETERMINED if code == UNDETERMINED else OTHER) for code in detected]


def detectable(
    labels: Sequence[str], tags: Tags | None = None, langid: LanguageId | None = None
) -> dict[str, str]:
    """Label → what the detector calls it, for the labels that it can recognize.

    Left out: labels without a language tag, languages that py3langid does not know or knows in
    another script, and those that it calls alike, such as `zh` beside `zh-Hant`. Labels that are
    given the same tag are of one language, and all of them are called so.
    """
    by_label = {label: tag for label in labels if (tag := tag_of(label, tags))}
    if langid is not None:
        return by_label
    codes = {label: code for label, tag in by_label.items() if (code := _code(tag))}
    tags_of_code: dict[str, set[str]] = {}
    for label, code in codes.items():
        tags_of_code.setdefault(code, set()).add(by_label[label])
    return {label: code for label, code in codes.items() if len(tags_of_code[code]) == 1}


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
    report = drop_foreign(texts, language)[1]
    if report is None:
        raise ValueError(
            f"The detector cannot recognize {language}, so it cannot say what is foreign there."
        )
    return report


def drop_foreign(
    texts: Iterable[str],
    label: str,
    tags: Tags | None = None,
    langid: LanguageId | None = None,
) -> tuple[list[str], Hygiene | None]:
    """The texts without their foreign lines, and a report on all lines.

    A text that loses all its lines becomes the empty string, so that texts keep their index. None
    instead of a report: the detector cannot recognize the label, and no line was judged.
    """
    expected = detectable([label], tags, langid).get(label)
    if expected is None:
        return list(texts), None
    lines, characters = Counter[str](), Counter[str]()
    cleaned = []
    for text in texts:
        kept_lines = []
        split = text.split("\n")
        for line, code in zip(split, line_languages(split, expected, langid), strict=True):
            spoken = label if code == expected else code
            if line.strip():
                lines[spoken] += 1
                characters[spoken] += len(line)
            if spoken in (label, UNDETERMINED):
                kept_lines.append(line)
        cleaned.append("\n".join(kept_lines).strip())
    return cleaned, Hygiene(label, dict(lines), dict(characters))


def line_languages(
    lines: Sequence[str], expected: str, langid: LanguageId | None = None
) -> Sequence[str]:
    """The language of each line, leaning towards the expected one; `und`: too short to judge."""
    if langid is None:
        return [_line_language(line, expected) for line in lines]
    codes = [variant(tag, {expected: ""}) for tag in _tags(lines, langid)]
    return [UNDETERMINED if _too_short(x) else code for x, code in zip(lines, codes, strict=True)]


def _line_language(line: str, expected: str) -> str:
    if _too_short(line):
        return UNDETERMINED
    scores = _scores(line)
    label = _decide(scores, (expected,))
    return _decide(scores, None) if label == OTHER else label


def switch_point(line: str, first: str, second: str) -> int:
    """Where a line most likely changes from one language to another: the end of a word, or 0.

    The languages are codes of `detectable`. All splits between words are compared by how much
    likelier what is before is in the first language than in the second, and what is after in the
    second than in the first.
    """

    def likelier(text: str, code: str, other: str) -> float:
        scores = _scores(text)
        size = len(text[:_LONGEST].encode("utf-8", "surrogatepass"))
        return (scores.get(code, 0.0) - scores.get(other, 0.0)) * math.sqrt(size)

    ends = [0, *(word.start() for word in re.finditer(r"(?<=\S)\s+(?=\S)", line))]
    return max(
        ends,
        key=lambda at: likelier(line[:at], first, second) + likelier(line[at:], second, first),
    )


def _too_short(line: str) -> bool:
    letters = "".join(filter(str.isalpha, line[:_LONGEST]))
    return len(letters.encode("utf-8", "surrogatepass")) < _SHORT


def _tags(texts: Sequence[str], langid: LanguageId) -> list[str]:
    """What a detector says of texts, as tags in their shortest form; refuses too few or many."""
    tags = list(langid(texts))
    if len(tags) != len(texts):
        raise ValueError(
            f"langid gave {len(tags)} tags for {len(texts)} texts: it must give one for each."
        )
    return [read_tag(tag) or UNDETERMINED for tag in tags]


def variant(tag: str, expected: Mapping[str, str]) -> str:
    """The tag if it is expected, or else the language that it is a variant of."""
    return tag if tag in expected else VARIANTS.get(tag, tag)


@functools.cache
def _code(tag: str) -> str | None:
    """What py3langid calls the language of a tag; None: it does not know it, or not so written."""
    language, *rest = tag.split("-")
    code = VARIANTS.get(language, language)
    script = [part for part in rest if len(part) == 4 and part.isalpha()]
    known = {VARIANTS.get(label, label) for label in _identifier().labels}
    return code if code in known and (not script or code == "zh") else None


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

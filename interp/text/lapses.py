"""Where an answer leaves the language it should be in, by line and by word.

The rates of lines and words follow the Language Confusion Benchmark (Marchisio et al., 2024): an
answer passes by line if no line of it is in another language, and one that does passes by word if
it holds no word of Latin letters in a language that is written otherwise. They depart in two ways:
lines are judged by our detector, which calls lines of fewer than 24 bytes of letters too short to
judge; and a word counts from four letters on unless the prompt has it, where the benchmark looks it
up in a list of English words.
"""

import re
from dataclasses import dataclass
from typing import Literal

from interp.text.language_id import (
    UNDETERMINED,
    LanguageId,
    detectable,
    line_languages,
    switch_point,
)
from interp.text.languages import Tags, language_of, tagged

_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{4,}")


@dataclass(frozen=True)
class Lapse:
    """The first place where a text is not in its language."""

    kind: Literal["line", "word"]
    """A line in another language, or a word of Latin letters in a language written otherwise."""

    start: int
    """Index of the character where the other language begins, a space before it included."""

    language: str
    """What a line was detected as; empty for a word."""


def has_other_letters(label: str, tags: Tags | None = None) -> bool:
    """Whether words can be judged by their letters: the label's language is not in Latin ones."""
    with tagged(tags or {}):
        known = language_of(label)
    return known is not None and known.script != "Latin"


def first_lapse(
    text: str,
    label: str,
    prompt: str = "",
    tags: Tags | None = None,
    langid: LanguageId | None = None,
) -> Lapse | None:
    """Where the text first leaves the language of the label; None: it stays in it.

    Words that the prompt has are no lapse. Lines are judged first: a word is only looked for in a
    text whose lines all pass.
    """
    expected = detectable([label], tags, langid).get(label)
    if expected is None:
        raise ValueError(
            f"The detector cannot recognize {label!r}: give the tag of a language that it "
            "can; in Python, langid may be any function from texts to language tags."
        )
    start, lines = 0, text.split("\n")
    for line, code in zip(lines, line_languages(lines, expected, langid), strict=True):
        if code not in (expected, UNDETERMINED):
            within = switch_point(line, expected, code) if langid is None else 0
            return Lapse("line", start + within, code)
        start += len(line) + 1
    if has_other_letters(label, tags):
        allowed = {word.lower() for word in _LATIN_WORD.findall(prompt)}
        for match in _LATIN_WORD.finditer(text):
            if match[0].lower() not in allowed:
                spaced = match.start() > 0 and text[match.start() - 1] == " "
                return Lapse("word", match.start() - spaced, "")
    return None

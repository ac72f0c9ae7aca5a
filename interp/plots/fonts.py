"""Fonts for the names of languages, and codes for names that no installed font can write."""

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from interp.text.languages import LANGUAGES, Language, language_of

FIRST = "DejaVu Sans"
"""Comes with matplotlib, so figures with Latin labels are the same everywhere. It also has
Cyrillic, Greek, Arabic, Hebrew, Armenian, Georgian and Lao."""

FALLBACKS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Telugu"),
    *("Noto Sans Malayalam", "Noto Sans Kannada", "Noto Sans Gujarati", "Noto Sans Gurmukhi"),
    *("Noto Sans Thai", "Noto Sans Khmer", "Noto Sans Myanmar", "Noto Sans Ethiopic"),
    *("Noto Serif Tibetan", "Noto Sans Sinhala", "Noto Sans Oriya", "Noto Sans Thaana"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
    *("WenQuanYi Micro Hei", "IPAGothic", "Lohit Devanagari", "FreeSans"),
)
"""Fonts for characters that the first font lacks, in this order: Noto, then those that come with
macOS, Windows and Linux."""


def families() -> list[str]:
    """The first font and the installed fallbacks."""
    _learn_new_fonts()
    known = set(font_manager.fontManager.get_font_names())
    return [FIRST, *(name for name in FALLBACKS if name in known)]


def named(text: str) -> Language | None:
    """The language with this tag, or the listed one with this English name or own name, or None."""
    return _by_name().get(text) or language_of(text)


def shown(labels: Sequence[str]) -> list[str]:
    """The labels, with a language's code instead of a name that no font can write.

    One warning lists all replaced names, and another all labels that have no code.
    """
    replaced, unwritten, result = [], [], []
    for label in labels:
        known = named(label)
        if can_write(label):
            result.append(label)
        elif known is None:
            unwritten.append(label)
            result.append(label)
        else:
            replaced.append(f"{label} ({known.name})")
            result.append(known.code)
    for names, instead in ((replaced, "codes"), (unwritten, "boxes")):
        if names:
            warnings.warn(
                f"No installed font can write {', '.join(names)}: the figure shows {instead} "
                "instead. Install Noto fonts (Debian: fonts-noto-cjk, fonts-noto-core) to see the "
                "names.",
                stacklevel=2,
            )
    return result


def can_write(text: str) -> bool:
    """Whether the installed fonts have all its characters."""
    wanted = {ord(character) for character in text if not character.isspace()}
    for family in families():
        wanted -= _characters(family)
        if not wanted:
            return True
    return not wanted


@cache
def _by_name() -> dict[str, Language]:
    rows = LANGUAGES.values()
    return {name: row for row in rows for name in (row.endonym, row.name, row.code)}


@cache
def _characters(family: str) -> frozenset[int]:
    path = font_manager.findfont(font_manager.FontProperties(family=[family]))
    return frozenset(FT2Font(path).get_charmap())


@cache
def _learn_new_fonts() -> None:
    """Add fonts that were installed after matplotlib built its font list."""
    manager = font_manager.fontManager
    known = {Path(entry.fname) for entry in manager.ttflist}
    stems = tuple(name.replace(" ", "").removesuffix("JP").removesuffix("SC") for name in FALLBACKS)
    for path in sorted(font_manager.findSystemFonts()):
        if Path(path) not in known and Path(path).stem.startswith(stems):
            manager.addfont(path)

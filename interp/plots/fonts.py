"""Fonts for the names of languages, and codes for names that no installed font can write."""

import difflib
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from interp.text.languages import LANGUAGES, Language, is_language, language_of

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


_others: list[str] = []
"""Further installed fonts, which labels of this process needed."""


def families() -> list[str]:
    """The first font, the installed fallbacks, and others that labels needed."""
    _learn_new_fonts()
    known = set(font_manager.fontManager.get_font_names())
    return [FIRST, *(name for name in FALLBACKS if name in known), *_others]


def find_fonts_for(labels: Sequence[str]) -> None:
    """Look through all installed fonts, of any maker, for characters that the usual ones lack."""
    for label in labels:
        lacking = _lacking(label)
        if lacking and not lacking & _looked_for:
            _looked_for.update(lacking)
            for family in sorted(font_manager.fontManager.get_font_names()):
                if not family.startswith(_BOXES) and lacking <= _characters(family):
                    _others.append(family)
                    break


_BOXES = "Last Resort"
"""Comes with matplotlib too: a box for every character."""

_looked_for: set[int] = set()
"""Characters that were looked for in all fonts."""


def check_installed(family: str) -> None:
    """Refuse a font that is not installed."""
    _learn_new_fonts()
    known = font_manager.fontManager.get_font_names()
    if family not in known:
        near = difflib.get_close_matches(family, known, n=3)
        perhaps = f" Similar ones are {', '.join(near)}." if near else ""
        raise ValueError(f"No font {family!r} is installed.{perhaps}")


def named(text: str) -> Language | None:
    """The language with this tag, or the listed one with this English name or own name, or None."""
    return language_of(text) if is_language(text) else _by_name().get(text)


def shown(labels: Sequence[str]) -> list[str]:
    """The labels; if no font can write one of the names, the codes of all languages.

    One warning lists the languages whose names cannot be written, and another all other labels.
    """
    languages = {label: named(label) for label in labels}
    lacking = [label for label in labels if not can_write(label)]
    names = [f"{label} ({row.name})" for label in lacking if (row := languages[label])]
    others = [label for label in lacking if languages[label] is None]
    for unwritten, instead in ((names, "codes instead of names"), (others, "boxes instead")):
        if unwritten:
            warnings.warn(
                f"No installed font can write {', '.join(unwritten)}: the figure shows {instead}. "
                "Install Noto fonts (Debian: fonts-noto-cjk, fonts-noto-core) to see them.",
                stacklevel=2,
            )
    if not names:
        return list(labels)
    return [row.code if (row := languages[label]) else label for label in labels]


def can_write(text: str) -> bool:
    """Whether the installed fonts have all its characters."""
    return not _lacking(text)


@cache
def _by_name() -> dict[str, Language]:
    rows = LANGUAGES.values()
    return {name: row for row in rows for name in (row.endonym, row.name)}


def _lacking(text: str) -> set[int]:
    """Characters of the text that no font has."""
    wanted = {ord(character) for character in text if not character.isspace()}
    for family in families():
        wanted -= _characters(family)
        if not wanted:
            break
    return wanted


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

"""Texts in any script, wrapped, cut and set side by side in the columns of a terminal."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest

_PIECE = re.compile(r"\s+|\S+")
_NARROWEST = 24  # columns of text; narrower ones are hard to read


def printable(text: str) -> str:
    """The text without characters that would move a terminal's cursor or set its colors."""
    kept = (
        char if char.isprintable() or unicodedata.category(char) == "Cf" else " " for char in text
    )
    return "".join(kept)


def columns_of(text: str) -> int:
    """How many columns of a terminal the text takes: two for a Chinese character."""
    return sum(_width(char) for char in text)


def cut(text: str, width: int) -> str:
    """The text in one line of at most `width` columns, with an ellipsis if it is longer."""
    line = " ".join(printable(text).split())
    if columns_of(line) <= width:
        return line
    return _head(line, width - 1).rstrip() + "…"


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken at spaces and between wide letters.

    Its own line breaks are kept, blank lines are not.
    """
    return [
        row for line in text.splitlines() if line.strip() for row in _rows(printable(line), width)
    ]


def side_by_side(columns: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """Columns of texts under their names, the texts of a row level with each other.

    Without room for columns, the texts of a row stand one below the other.
    """
    rows = list(zip(*columns.values(), strict=True))
    column_width = (width - 2 * (len(columns) - 1)) // len(columns)
    lines = []
    if column_width < _NARROWEST:
        for row in rows:
            for name, cell in zip(columns, row, strict=True):
                lines += [_heading(name, width), *wrapped(cell, width), ""]
        return lines
    for row in [[_heading(name, column_width) for name in columns], *rows]:
        for parts in zip_longest(*(wrapped(cell, column_width) for cell in row), fillvalue=""):
            padded = (part + " " * (column_width - columns_of(part)) for part in parts)
            lines.append("  ".join(padded).rstrip())
        lines.append("")
    return lines


def _heading(name: str, width: int) -> str:
    return f"--- {cut(name, width - 8)} ---"


def _rows(line: str, width: int) -> list[str]:
    rows, row = [], ""
    for piece in _pieces(line):
        if row.strip() and columns_of(row + piece) > width:
            rows.append(row.rstrip())
            row = ""
        row += piece if row else piece.lstrip()
        while columns_of(row) > width:
            head = _head(row, width) or row[0]
            rows.append(head)
            row = row[len(head) :]
    return [*rows, row.rstrip()] if row.strip() else rows


def _pieces(line: str) -> list[str]:
    """Words and spaces; a word with wide characters may be broken after any of them."""
    pieces: list[str] = []
    for piece in _PIECE.findall(line):
        wide = any(_width(char) == 2 for char in piece)
        pieces += list(piece) if wide else [piece]
    return pieces


def _head(text: str, width: int) -> str:
    """As many of the first characters as fit into `width` columns."""
    used = 0
    for index, char in enumerate(text):
        used += _width(char)
        if used > width:
            return text[:index]
    return text


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1

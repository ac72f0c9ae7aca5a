"""Texts in any script, wrapped, cut and set side by side in the columns of a terminal; tables."""

import re
import shutil
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


def terminal_width() -> int:
    """Columns of the terminal; where the output goes elsewhere, 100."""
    return shutil.get_terminal_size((100, 24)).columns


def table(rows: Sequence[Sequence[str]], width: int, stay: int = 1) -> list[str]:
    """Rows of cells, the headings first, in columns as wide as their widest cells.

    The first `stay` columns begin at the left, the others end at the right. Columns beyond `width`
    follow below, with the first `stay` again.
    """
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    first = list(range(stay))
    parts: list[list[int]] = [[]]
    for column in range(stay, len(widths)):
        used = sum(widths[other] + 2 for other in (*first, *parts[-1]))
        if parts[-1] and used + widths[column] > width:
            parts.append([])
        parts[-1].append(column)
    lines = []
    for part in parts:
        lines += [""] * bool(lines)
        for row in rows:
            left = [row[n] + " " * (widths[n] - columns_of(row[n])) for n in first]
            right = [" " * (widths[n] - columns_of(row[n])) + row[n] for n in part]
            lines.append("  ".join([*left, *right]).rstrip())
    return lines


def listing(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows without headings whose last cells are prose, which goes on below itself.

    Where the other columns leave it no room, prose stands below them, indented.
    """
    widths = [max(map(columns_of, column)) for column in list(zip(*rows, strict=True))[:-1]]
    indent = sum(widths) + 2 * len(widths)
    below = width - indent < min(_NARROWEST, max(columns_of(row[-1]) for row in rows))
    indent = 4 if below else indent
    lines = []
    for *cells, prose in rows:
        padded = [
            cell + " " * (n - columns_of(cell)) for cell, n in zip(cells, widths, strict=True)
        ]
        first = "  ".join([*padded, ""])
        folded = wrapped(prose, width - indent)
        if not below and folded:
            first, folded = first + folded[0], folded[1:]
        lines += [first.rstrip(), *(" " * indent + line for line in folded)]
    return lines


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

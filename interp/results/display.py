"""How results are displayed: one line of text, and in a notebook a small table below it."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_BLUE, _ORANGE = "0, 114, 178", "213, 94, 0"


class Shaded(NamedTuple):
    """A table cell whose background color shows how large its number is compared with others."""

    text: str
    """The text of the cell."""

    strength: float
    """Zero: no shade. One: the deepest orange; minus one: the deepest blue. NaN: no shade."""


def listed(names: Iterable[object], most: int = 12) -> str:
    """Comma-separated names; of a long list, the first `most` and how many more there are."""
    texts = [str(name) for name in names]
    if len(texts) <= most:
        return ", ".join(texts) or "none"
    return f"{', '.join(texts[:most])} and {len(texts) - most:,} more"


def counted(n: int, noun: str) -> str:
    """A count with its noun, whose plural ends in s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ranged(numbers: Sequence[int]) -> str:
    """The one number if all are equal, else the smallest and the largest."""
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str | Shaded]]) -> str:
    """A line of text with a table below it, all escaped; the first cell of a row names the row."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(str(first))}</th>{"".join(map(_cell, cells))}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div>{html.escape(caption)}</div>\n<div style="overflow-x:auto"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(cell: str | Shaded) -> str:
    text, strength = cell if isinstance(cell, Shaded) else (cell, 0.0)
    style = ""
    if abs(strength) > 0:  # half transparent, so that text is readable in a dark notebook too
        color = _ORANGE if strength > 0 else _BLUE
        style = f' style="background:rgba({color}, {min(abs(strength), 1.0) / 2:.2f})"'
    return f"<td{style}>{html.escape(text)}</td>"

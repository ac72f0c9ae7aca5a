"""How results show themselves: a line of words, and in a notebook a small table under it."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_BLUE, _ORANGE = "0, 114, 178", "213, 94, 0"


class Shaded(NamedTuple):
    """A cell of a table whose ground says how large its number is beside the others."""

    text: str
    """What stands in it."""

    strength: float
    """Zero: no shade. One: the deepest orange; minus one: the deepest blue. NaN: no shade."""


def listed(names: Iterable[object], most: int = 12) -> str:
    """Names with commas between them; of many, the first and how many more there are."""
    texts = [str(name) for name in names]
    if len(texts) <= most:
        return ", ".join(texts) or "none"
    return f"{', '.join(texts[:most])} and {len(texts) - most:,} more"


def counted(n: int, noun: str) -> str:
    """So many of something whose plural ends in s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ranged(numbers: Sequence[int]) -> str:
    """The number that all of them are, or the least and the most."""
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def html_table(said: str, columns: Sequence[str], rows: Iterable[Sequence[str | Shaded]]) -> str:
    """A line of words and a table under it, everything escaped; the first cell names its row."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(str(first))}</th>{"".join(map(_cell, cells))}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div>{html.escape(said)}</div>\n<div style="overflow-x:auto"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(cell: str | Shaded) -> str:
    text, strength = cell if isinstance(cell, Shaded) else (cell, 0.0)
    ground = ""
    if abs(strength) > 0:  # half through, so that words are read on it in a dark notebook too
        color = _ORANGE if strength > 0 else _BLUE
        ground = f' style="background:rgba({color}, {min(abs(strength), 1.0) / 2:.2f})"'
    return f"<td{ground}>{html.escape(text)}</td>"

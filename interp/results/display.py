"""How results are displayed: one line of text, and in a notebook a small table below it."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

_BLUE, _ORANGE = "0, 114, 178", "213, 94, 0"

MOST_CELLS, MOST_ROWS, MOST_LAYERS = 352, 24, 32
"""The most that a table in a notebook shows: notebooks are saved with all that they show."""

_LONGEST = 80  # characters of a cell
_LONGEST_CAPTION = 1000


class Shaded(NamedTuple):
    """A table cell whose background color shows how large its number is compared with others."""

    text: str
    """The text of the cell."""

    strength: float
    """Zero: no shade. One: the deepest orange; minus one: the deepest blue. NaN: no shade."""


class Cells(NamedTuple):
    """The texts of a table."""

    columns: Sequence[str]
    """The headings."""

    rows: Sequence[Sequence[str | Shaded]]
    """The first cell of a row names the row."""

    note: str = ""
    """What the numbers are, after the line that says what the result is."""


@runtime_checkable
class Columns(Protocol):
    """A table by columns: a data frame, or a mapping from names to values."""

    def __iter__(self) -> Iterator[Any]: ...

    def __getitem__(self, name: Any, /) -> Any: ...


class Shown:
    """Gives a result a small table in a notebook: its `to_frame`, unless it has `_cells`."""

    def _cells(self) -> Cells:
        return table_cells(cast(Any, self).to_frame())

    def _repr_html_(self) -> str:
        """The line of words with the table below it; where there is none, why."""
        try:
            cells = self._cells()
        except ValueError as error:
            cells = Cells((), (), f"no table: {error}")
        caption = f"{self!r}: {cells.note}" if cells.note else repr(self)
        return html_table(caption, cells.columns, cells.rows)


# ---------------------------------------------------------------- words


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


def of_neurons(
    languages: Iterable[str],
    shape: Sequence[int],
    tokens: Sequence[int],
    units: str = "neurons",
) -> str:
    """What statistics are of: languages, layers of neurons or other units, tokens of a language."""
    n_layers, n_units = shape
    return (
        f"{listed(languages)}; {n_layers} layers of {n_units:,} {units}; "
        f"{ranged(tokens)} tokens of each language"
    )


def number_texts(values: Sequence[float | int]) -> list[str]:
    """Numbers of one column; the largest has three or four significant digits. NaN: blank."""
    known = [abs(value) for value in values if math.isfinite(value)]
    largest = max(known, default=0.0)
    digits = 0
    if largest < 1e6 and any(value != round(value) for value in known):
        digits = min(6, max(0, 2 - math.floor(math.log10(largest)) + (largest >= 1)))
        while digits and all(f"{value:.{digits}f}".endswith("0") for value in known):
            digits -= 1
    texts = ["" if math.isnan(value) else f"{value:,.{digits}f}" for value in values]
    # A number that rounds to zero has no sign; a minus sign replaces the hyphen.
    return [
        text.lstrip("-") if not text.strip("-0.") else text.replace("-", "\N{MINUS SIGN}")
        for text in texts
    ]


# ---------------------------------------------------------------- cells


def table_cells(table: Columns, note: str = "", most_rows: int = 10) -> Cells:
    """The first rows of a table, as texts.

    Columns x_low and x_high are the interval of x, and are shown in its cell.
    """
    values = {str(name): list(table[name]) for name in table}
    n_rows = max(map(len, values.values()), default=0)
    columns = list(_columns({name: column[:most_rows] for name, column in values.items()}))
    rows = [list(row) for row in zip(*(texts for _, texts in columns), strict=True)]
    if n_rows > most_rows:
        first = f"the first {most_rows} of {n_rows:,} rows"
        note = f"{note}; {first}" if note else first
    return Cells([heading for heading, _ in columns], rows, note)


def layer_cells(
    names: Sequence[Sequence[str]],
    values: Sequence[Sequence[float | int]],
    note: str,
    headings: Sequence[str] = ("",),
    layers: Sequence[int] | None = None,
) -> Cells:
    """A row of numbers by layer for each of the names, shaded by size.

    A name may fill several columns, which `headings` head; `layers` are the numbers of the layers.
    Of many layers, every second, third, ... is shown.
    """
    numbers = range(max(map(len, values), default=0)) if layers is None else layers
    step = max(1, -(-len(numbers) // MOST_LAYERS))
    shown = [[float(value) for value in row[::step]] for row in values]
    sizes = [abs(value) for row in shown for value in row if math.isfinite(value)]
    largest = max(sizes, default=0.0) or 1.0
    texts = iter(number_texts([value for row in shown for value in row]))
    rows = [
        [*name, *(Shaded(next(texts), value / largest) for value in row)]
        for name, row in zip(names, shown, strict=True)
    ]
    heads = [str(number) for number in numbers[::step]]
    heads[:1] = [f"layer {number}" for number in heads[:1]]
    return Cells([*headings, *heads], rows, note if step == 1 else f"{note}; 1 in {step} layers")


def _columns(table: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, list[str]]]:
    """Heading and texts of each column."""
    ends = ("", "_low", "_high")
    stems = [name for name in table if all(f"{name}{end}" in table for end in ends)]
    bounds = {f"{stem}{end}" for stem in stems for end in ends[1:]}
    for name, values in table.items():
        heading = name.replace("_", " ")
        if name in stems:
            three = [list(map(float, table[f"{name}{end}"])) for end in ends]
            texts = iter(number_texts([value for values in three for value in values]))
            value, low, high = ([next(texts) for _ in values] for values in three)
            triples = zip(value, low, high, strict=True)
            yield heading, [f"{v} ({a} to {b})" if a or b else v for v, a, b in triples]
        elif not all(isinstance(value, int | float) for value in values) or any(
            isinstance(value, bool) for value in values
        ):
            yield heading, [_word(value) for value in values]
        elif name not in bounds:
            yield heading, number_texts(list(map(float, values)))


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None or value != value else str(value)


# ---------------------------------------------------------------- HTML


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str | Shaded]]) -> str:
    """A line of text with a table below it, all escaped; the first cell of a row names the row.

    Rows and columns beyond what a notebook should hold are left out, and counted.
    """
    rows = list(rows)
    caption = caption if len(caption) <= _LONGEST_CAPTION else f"{caption[:_LONGEST_CAPTION]}…"
    line = f"<div>{html.escape(caption)}</div>"
    if not columns:
        return line
    n_columns = min(len(columns), MOST_CELLS // 8)
    n_rows = min(len(rows), MOST_ROWS, MOST_CELLS // n_columns)
    head = "".join(
        f'<th scope="col">{html.escape(_short(name))}</th>' for name in columns[:n_columns]
    )
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(_short(first))}</th>{"".join(map(_cell, cells))}</tr>'
        for (first, *cells) in ((str(row[0]), *row[1:n_columns]) for row in rows[:n_rows])
    )
    left = [(len(rows) - n_rows, "more row"), (len(columns) - n_columns, "more column")]
    more = ", ".join(counted(n, what) for n, what in left if n)
    return (
        f'{line}\n<div style="overflow-x:auto"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        + (f"\n<div>{more}</div>" if more else "")
    )


def _cell(cell: str | Shaded) -> str:
    text, strength = cell if isinstance(cell, Shaded) else (cell, 0.0)
    style = ""
    if abs(strength) > 0:  # half transparent, so that text is readable in a dark notebook too
        color = _ORANGE if strength > 0 else _BLUE
        style = f' style="background:rgba({color}, {min(abs(strength), 1.0) / 2:.2f})"'
    return f"<td{style}>{html.escape(_short(text))}</td>"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

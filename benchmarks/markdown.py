"""Renders the tables and sentences of both READMEs.

`Rows` has a line for each measured row; `Pivot` has a line for each label and a column for each
value of one field. Cells are formats of a row's values: "{mib:,.0f} MiB". In the rendered text,
" x " becomes a multiplication sign.
"""

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, Record, Row, load

TIMES = "\N{MULTIPLICATION SIGN}"

Records = dict[str, Record]
"""All measurements, by file name."""


def load_all(folder: Path = RESULTS) -> Records:
    return {path.stem: load(path) for path in sorted(folder.glob("*.json"))}


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Rows:
    """A table with a line for each row."""

    header: str
    """Headings, separated by |."""

    line: str
    """A format of a row's values, separated by |."""

    derive: Callable[[Record], Iterable[Row]] = lambda record: record.rows
    """The rows of a record, if not exactly the measured ones."""

    bold: str = ""
    """First cell of the line to emphasize."""

    def __call__(self, records: Sequence[Record]) -> str:
        rows = [row for record in records for row in self.derive(record)]
        lines = [cells(self.line.format_map(row)) for row in rows]
        strong = [[strong_first(cell, line[0] == self.bold) for cell in line] for line in lines]
        return table(cells(self.header), strong)


@dataclass(frozen=True)
class Pivot:
    """A table with a line for each label, and a column for each value of the field `by`."""

    line: str = "{way}"
    """Format of a line's label."""

    by: str = "case"
    """The field whose values are the columns."""

    cell: str = "{ratio}"
    columns: Mapping[str, str] | None = None
    """Headings by value, in order; None: all values, unchanged."""

    heading: str = ""
    """Heading of the labels."""

    begins: str = ""
    """Show only values of `by` that begin with this, and omit it from the headings."""

    bold: Sequence[str] = ()
    """Labels or values of `by` whose label and first words of cells are bold."""

    def __call__(self, records: Sequence[Record]) -> str:
        rows = [[row for row in r.rows if self.by in row] for r in records]
        values = unique(str(row[self.by]) for of_record in rows for row in of_record)
        shown = [value for value in self.columns or values if value in values]
        shown = [value for value in shown if value.startswith(self.begins)]
        lines = []
        for record, of_record in zip(records, rows, strict=True):
            of_record = [row for row in of_record if row[self.by] in shown]
            for label in unique(self.line.format_map(row) for row in of_record):
                by_value = {
                    row[self.by]: self.cell.format_map(with_ratio(row))
                    for row in of_record
                    if self.line.format_map(row) == label
                }
                strong = label in self.bold
                emphasized = [
                    strong_first(by_value.get(value, ""), strong or value in self.bold)
                    for value in shown
                ]
                star = "**" * strong
                lines.append([f"{star}{with_device(label, record)}{star}", *emphasized])
        headings = self.columns or {value: value.removeprefix(self.begins) for value in values}
        return table([self.heading, *(headings[value] for value in shown)], lines)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    first, *rest = [
        re.sub(r" x(?=[ ;])", f" {TIMES}", f"| {' | '.join(line)} |".replace("|  |", "| |"))
        for line in (header, *lines)
    ]
    return "\n".join([first, "|---" * len(header) + "|", *rest])


# ---------------------------------------------------------------- words and numbers


def unique(values: Iterable[Any]) -> list[Any]:
    """The values without repetitions, in the same order."""
    return list(dict.fromkeys(values))


def with_device(label: str, record: Record) -> str:
    return label if record.device == "CPU" else f"{label}, {record.device}"


def strong_first(cell: str, strong: bool) -> str:
    """**1.02** (0.98 to 1.07)"""
    return re.sub(r"^\S+", r"**\g<0>**", cell) if strong else cell


def with_ratio(row: Row) -> Row:
    """The row with "1.02 (0.98 to 1.07)": the median, and the extremes if rounds differ."""
    if "median" not in row:
        return row
    alike = row["least"] == row["most"]
    form = "{median:.2f}" if alike else "{median:.2f} ({least:.2f} to {most:.2f})"
    return row | {"ratio": form.format_map(row)}


def span(values: Iterable[float], form: str = "{:.2f}") -> str:
    """0.99 to 1.00; one number if both look the same."""
    values = list(values)
    return " to ".join(unique(form.format(value) for value in (min(values), max(values))))


def enumerated(values: Sequence[float]) -> str:
    """304, 320 and 327."""
    *rest, last = [f"{value:,.0f}" for value in values]
    return f"{', '.join(rest)} and {last}" if rest else last


def caption(record: Record) -> str:
    """The command, the machine, the date."""
    machine = record.machine if record.device == "CPU" else f"{record.device}, {record.machine}"
    torch = record.provenance["versions"]["torch"]
    minutes = f"{record.minutes:.0f} minutes" if record.minutes >= 1.5 else "a minute or less"
    return f"`{record.command}`: {machine}, torch {torch}, {day(record.date)}; {minutes}."


def day(date: str) -> str:
    """2026-11 is "November 2026"."""
    year, month, *rest = map(int, date.split("-"))
    words = f"{datetime.date(year, month, 1):%B} {year}"
    return f"{rest[0]} {words}" if rest else words


# ---------------------------------------------------------------- replacing text


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """The text with these blocks between their marks."""
    for name, block in blocks.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, n = re.subn(
            marks, lambda m, block=block: f"{m[1]}{block}\n{m[2]}", text, flags=re.DOTALL
        )
        if n != 1:
            raise ValueError(
                f"The marks of {name!r} occur {n} times: put <!-- {name} --> and <!-- /{name} --> "
                "once, on lines of their own."
            )
    return text


def with_numbers(text: str, numbers: Mapping[str, int]) -> str:
    """The text with what each pattern matches replaced by its number."""
    for pattern, number in numbers.items():
        text, n = re.subn(pattern, str(number), text)
        if n != 1:
            raise ValueError(
                f"{pattern} matches {n} times instead of once: change the pattern in "
                "benchmarks/tables.py together with the sentence."
            )
    return text

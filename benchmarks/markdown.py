"""Pieces of the tables: which rows, how a number is said, what made it, and where it goes."""

import datetime
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.turns import RESULTS, Record, Row, load

TIMES = "\N{MULTIPLICATION SIGN}"

Book = dict[str, Record]
"""All that was measured, by the names of the files."""


def read_all(folder: Path = RESULTS) -> Book:
    return {path.stem: load(path) for path in sorted(folder.glob("*.json"))}


# ---------------------------------------------------------------- which, and what made them


def of(book: Book, name: str) -> list[Record]:
    """What was measured under this name, on the CPU and then on other devices."""
    return [
        record
        for each, record in book.items()
        if each == name or (each.startswith(f"{name}-") and record.device != "CPU")
    ]


def measured(book: Book, name: str, body: Callable[[list[Record]], str], command: str = "") -> str:
    """A table, and below it what made it; or what would."""
    records = of(book, name)
    if not records:
        return f"Not measured yet: `python -m benchmarks.{command or name}`."
    return "\n\n".join([body(records), *(caption(record) for record in records)])


def caption(record: Record) -> str:
    """The command, the machine, the date."""
    where = record.machine if record.device == "CPU" else f"{record.device}, {record.machine}"
    torch = record.provenance["versions"]["torch"]
    took = f"{record.minutes:.0f} minutes" if record.minutes >= 1.5 else "a minute or less"
    return f"`{record.command}`: {where}, torch {torch}, {day(record.date)}; {took}."


def day(date: str) -> str:
    """2026-11 is "November 2026"."""
    year, month, *rest = map(int, date.split("-"))
    said = f"{datetime.date(year, month, 1):%B} {year}"
    return f"{rest[0]} {said}" if rest else said


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, *rows]
    first, *rest = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines]
    return "\n".join([first, "|---" * len(header) + "|", *rest])


def multiples(records: list[Record], ours: Sequence[str] = (), begins: str = "") -> str:
    """Rows of `compare`: a line for each way, a column for each case that begins so."""
    every = [row for record in records for row in record.rows]
    cases = different(row["case"] for row in every if row["case"].startswith(begins))
    lines = []
    for record in records:
        for way in different(row["way"] for row in record.rows if row["case"] in cases):
            star = "**" * (way in ours)
            found = [record.where(case=case, way=way) for case in cases]
            cells = [between(row[0], star) if row else "" for row in found]
            lines.append([f"{star}{named(way, record)}{star}", *cells])
    return table(["", *(cross(case.removeprefix(begins)) for case in cases)], lines)


# ---------------------------------------------------------------- how it is said


def different(values: Iterable[Any]) -> list[Any]:
    """Each once, in their order."""
    return list(dict.fromkeys(values))


def named(label: str, record: Record) -> str:
    return label if record.device == "CPU" else f"{label}, {record.device}"


def cross(text: str) -> str:
    """8 x 256 with a proper sign."""
    return text.replace(" x ", f" {TIMES} ")


def between(row: Row, star: str = "") -> str:
    """1.02 (0.98 to 1.07): the median, and the extremes of the rounds."""
    said = f"{star}{row['median']:.2f}{star}"
    if row.get("least") == row.get("most"):
        return said
    return f"{said} ({row['least']:.2f} to {row['most']:.2f})"


def span(values: Iterable[float], form: str = "{:.2f}") -> str:
    """0.99 to 1.00; or one number, where they look alike."""
    found = list(values)
    return " to ".join(different(form.format(each) for each in (min(found), max(found))))


def listed(values: Sequence[float]) -> str:
    """304, 320 and 327."""
    *rest, last = [f"{each:,.0f}" for each in values]
    return f"{', '.join(rest)} and {last}" if rest else last


# ---------------------------------------------------------------- into a text


def rewritten(text: str, blocks: dict[str, str]) -> str:
    """The text with these between their marks; the rest as it is."""
    for name, made in blocks.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, n = re.subn(
            marks, lambda m, made=made: f"{m[1]}{made}\n{m[2]}", text, flags=re.DOTALL
        )
        if n != 1:
            raise ValueError(
                f"There are {n} places for {name!r}: put <!-- {name} --> and <!-- /{name} --> "
                "once, on lines of their own."
            )
    return text


def restated(text: str, numbers: dict[str, int]) -> str:
    """The text with each of these numbers made anew."""
    for pattern, number in numbers.items():
        text, n = re.subn(pattern, str(number), text)
        if n != 1:
            raise ValueError(
                f"{n} places say what {pattern} finds, and one should: change the pattern in "
                "benchmarks/tables.py together with the sentence."
            )
    return text

"""Fragments of an HTML page: prose, settings and tables, with everything escaped."""

import base64
import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from interp.plots.style import Table
from interp.results.display import number_texts

MOST_ROWS = 60
"""Rows of a table that are shown; the file below the table has all of them."""

_MOST_ITEMS = 16  # of a list in the settings
_LONG = 50  # characters of a cell; longer ones get a minimum width


def escape(text: object) -> str:
    """Text escaped for use between tags and in attributes."""
    return html.escape(str(text), quote=True)


def running(text: object) -> str:
    """Escaped running text: a number and its percent sign stay on one line."""
    return re.sub(r"(?<=\d) %", "&nbsp;%", escape(text))


def prose(text: str) -> str:
    """Paragraphs and lists (lines that begin with a hyphen), separated by blank lines; text between
    backticks is set as code, and so are blocks whose lines are all indented."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line for line in block.splitlines() if line.strip()]
        if lines and all(line.startswith("    ") for line in lines):
            code = "\n".join(line.removeprefix("    ") for line in lines)
            parts.append(f'<pre tabindex="0">{escape(code)}</pre>')
        elif lines and lines[0].startswith("- "):
            items = re.split(r"\n- ", "\n".join(lines).removeprefix("- "))
            listed = "".join(f'<li dir="auto">{_inline(item)}</li>' for item in items)
            parts.append(f"<ul>{listed}</ul>")
        elif lines:
            parts.append(f'<p dir="auto">{_inline(" ".join(lines))}</p>')
    return "\n".join(parts)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", running(text))


def settings_list(origin: Mapping[str, Any]) -> str:
    """Names and values, without empty groups; a group that has groups is a list of its own."""
    rows = []
    for name, value in origin.items():
        if value == {}:
            continue
        if isinstance(value, Mapping) and any(map(_is_nested, value.values())):
            shown = settings_list(value)
        elif isinstance(value, Mapping):
            pairs = (f"{_spaced(key)} {_value(item)}" for key, item in value.items())
            shown = escape("; ".join(pairs))
        else:
            shown = escape(_value(value))
        rows.append(f"<dt>{escape(_spaced(name))}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def _spaced(name: object) -> str:
    return str(name).replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, (list, tuple)):
        if len(value) > _MOST_ITEMS:
            return f"{len(value):,} values"
        return ", ".join(map(_value, value)) or "none"
    return "none" if value in ("", {}) else str(value)


# ---------------------------------------------------------------- tables


def data_table(frame: pd.DataFrame, name: str) -> str:
    """The first `MOST_ROWS` rows of a table, which scrolls by itself if the page is too narrow.

    `name` is for screen readers. Columns x_low and x_high are shown as the interval of x, next to
    it.
    """
    columns = list(_columns(frame.head(MOST_ROWS)))
    head = "".join(opening + escape(heading) + "</th>" for heading, opening, _ in columns)
    rows = zip(*(cells for *_, cells in columns), strict=True)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    more = ""
    if len(frame) > MOST_ROWS:
        more = f'<p class="more">The first {MOST_ROWS} of {len(frame):,} rows.</p>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>{more}"
    )


def download(frame: pd.DataFrame, name: str) -> str:
    """A link that saves the whole table, which is stored in the link itself."""
    text = frame.to_csv(index=False, lineterminator="\n").encode(errors="replace")
    address = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text).decode()}"
    file = f"{escape(name)}.csv"
    return f'<p class="file"><a download="{file}" href="{address}">{file}</a></p>'


def _columns(frame: Table) -> Iterator[tuple[str, str, list[str]]]:
    """For each column: its heading, the heading's opening tag, and the cells."""
    names = [str(name) for name in frame.columns]
    for index, name in enumerate(names):
        column = frame.iloc[:, index]
        heading = _spaced(name)
        if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            words = [_word(value) for value in column]
            long = ' class="long"' if max(map(len, words), default=0) > _LONG else ""
            cells = [f'<td dir="auto"{long}>{escape(word)}</td>' for word in words]
            yield heading, '<th scope="col">', cells
        elif _has_interval(name, names):
            three = [frame[f"{name}{end}"].astype(float).tolist() for end in ("", "_low", "_high")]
            texts = iter(number_texts([value for values in three for value in values]))
            value, low, high = ([next(texts) for _ in values] for values in three)
            cells = [_with_interval(*row) for row in zip(value, low, high, strict=True)]
            yield heading, '<th scope="col" class="number" colspan="2">', cells
        elif not any(
            name == f"{stem}{end}" and _has_interval(stem, names)
            for stem in names
            for end in ("_low", "_high")
        ):
            texts = number_texts(column.astype(float).tolist())
            cells = [f'<td class="number">{text}</td>' for text in texts]
            yield heading, '<th scope="col" class="number">', cells


def _has_interval(name: str, names: Sequence[str]) -> bool:
    return all(names.count(f"{name}{end}") == 1 for end in ("", "_low", "_high"))


def _with_interval(value: str, low: str, high: str) -> str:
    interval = f"{low} to {high}" if low or high else ""
    return f'<td class="number">{value}</td><td class="interval">{interval}</td>'


def _word(value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return _value(value) if isinstance(value, bool) else str(value)

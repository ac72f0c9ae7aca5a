"""Results, figures and claims as one HTML file that makes no network requests.

The page has no script, and its content policy forbids every request, so a report is safe to share
whatever text is in it: text from a corpus or a model is escaped.
"""

import base64
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from string import Template
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from interp.inference.claims import Claim, false_discovery_rates, in_short, tally
from interp.plots.files import FIGURES, Draw, read_table
from interp.plots.style import own_style
from interp.reports.html import data_table, download, escape, prose, running, settings_list
from interp.results import artifacts

_SCALE, _ALONE = 96 * 1.08, 96 * 1.35
"""Screen pixels per inch of a figure: two narrow figures fit side by side, a single one next to its
caption."""

_LOW = 400.0
"""Screen pixels: height of the figure that a report begins with."""

_WIDE = 5  # inches; wider figures scroll by themselves on a narrow screen
_LONG = 16  # rows; longer tables are folded


@dataclass(frozen=True)
class Picture:
    """A figure of a report, and the numbers that it was drawn from.

    >>> table = neurons.layer_frame()
    >>> picture = interp.reports.Picture(interp.plots.layer_profile, "Neurons per layer.", table)
    >>> section = interp.reports.Section("Where are they?", pictures=(picture,))
    >>> interp.write_report(folder / "report.html", "Neurons of Babel", [section]).name
    'report.html'
    """

    drawing: Draw | Axes | Figure | Path
    """A function of `interp.plots`, which draws the table when the report is written; or finished
    Axes or a Figure; or a saved figure: its .csv, to be redrawn, or any .png."""

    caption: str
    """What it shows, with the unit."""

    table: pd.DataFrame | None = field(default=None, repr=False)
    """The numbers. For a saved figure, they default to those in its .csv."""


@dataclass(frozen=True)
class Section:
    """One question of a report, and its results.

    >>> table = neurons.overlap_frame()
    >>> section = interp.reports.Section("How much is shared?", tables={"Neurons in common": table})
    >>> interp.write_report(folder / "report.html", "Neurons of Babel", [section]).name
    'report.html'
    """

    title: str
    """The question, in a few words."""

    text: str = ""
    """What was asked and found: paragraphs separated by blank lines, see `html.prose`."""

    pictures: tuple[Picture, ...] = ()
    """Figures, in order."""

    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    """Caption → table. Columns x_low and x_high are shown as the interval of x."""

    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where the numbers come from: model, settings, versions; such as a result's provenance."""

    finding: str = ""
    """What was found: a sentence with its numbers, which stands out."""

    certainty: str = ""
    """How sure that is. `findings.certainty_of` makes a section of what several sections say."""


def write_report(
    out: Path | str,
    title: str,
    sections: Sequence[Section] = (),
    claims: Sequence[Claim] = (),
    summary: str = "",
    date: str = "",
    origin: Mapping[str, Any] | None = None,
    first: Section | None = None,
) -> Path:
    """Write everything into one HTML file that opens anywhere, and return its path.

    `first` is what a reader sees without scrolling: its finding and its first figure. Then come
    the claims with their verdicts, the sections in order, and at the end how the report itself was
    made: `origin`, by default `artifacts.provenance()`. Equal arguments give an equal file, so the
    date has to be given.

    >>> text = f"Neurons of each language: {neurons.counts()}."
    >>> section = interp.reports.Section("How many?", text)
    >>> interp.write_report(folder / "report.html", "Neurons of Babel", [section]).name
    'report.html'
    """
    if not sections and not claims:
        raise ValueError("A report needs a section or a claim: there is nothing to write.")
    css = _template("report.css")
    names, figures, tables = _Names(), count(1), count(1)
    top = "" if first is None else _first(first, figures)
    parts = [_claims(claims, names)] if claims else []
    parts += [_section(section, names, figures, tables) for section in sections]
    made = settings_list(artifacts.provenance() if origin is None else origin)
    parts.append(f'<section class="made">{names.heading("How this was made")}{made}</section>')
    page = Template(_template("report.html")).substitute(
        title=escape(title),
        policy=_policy(css),
        style=css,
        date=f'<p class="date">{escape(date)}</p>' if date else "",
        first=top,
        summary=prose(summary),
        contents="\n".join(names.contents()),
        main="\n".join(parts),
    )
    artifacts.write_bytes(out, page.encode(errors="replace"))  # half a character is no error
    return Path(out)


# ---------------------------------------------------------------- the page


class _Names:
    """A unique link target for each heading."""

    def __init__(self) -> None:
        self._titles: dict[str, str] = {}

    def heading(self, title: str) -> str:
        stem = name = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
        number = 1
        while name in self._titles or name == "report":  # the page itself uses this id
            number += 1
            name = f"{stem}-{number}"
        self._titles[name] = title
        return f'<h2 id="{escape(name)}" dir="auto">{escape(title)}</h2>'

    def contents(self) -> Iterator[str]:
        for name, title in self._titles.items():
            yield f'<li><a href="#{escape(name)}">{escape(title)}</a></li>'


def _template(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _policy(css: str) -> str:
    """A content policy that allows images inside the file and this style sheet, nothing else."""
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _section(section: Section, names: _Names, figures: Iterator[int], tables: Iterator[int]) -> str:
    finding = f'<div class="finding">{prose(section.finding)}</div>' if section.finding else ""
    parts = [names.heading(section.title), finding, prose(section.text)]
    if section.pictures:
        scale = _ALONE if len(section.pictures) == 1 else _SCALE
        drawn = "\n".join(_figure(picture, next(figures), scale) for picture in section.pictures)
        parts.append(f'<div class="figures">\n{drawn}\n</div>')
    for caption, frame in section.tables.items():
        parts.append(_captioned(frame, caption, next(tables)))
    if section.origin:
        listed = settings_list(section.origin)
        parts.append(f"<details><summary>Settings and origin</summary>{listed}</details>")
    return "<section>\n" + "\n".join(filter(None, parts)) + "\n</section>"


def _first(section: Section, figures: Iterator[int]) -> str:
    """A finding above its figure, which is low enough for both to be on the screen."""
    shown = section.pictures[:1]
    figure = "".join(_figure(picture, next(figures), _ALONE, _LOW) for picture in shown)
    return f'<div class="first">{prose(section.finding)}{figure}</div>'


def _captioned(frame: pd.DataFrame, caption: str, number: int) -> str:
    """A table below its caption; a long one is folded."""
    label = f"<b>Table {number}.</b> {running(caption)}"
    shown = data_table(frame, f"Table {number}") + download(frame, f"table-{number}")
    if len(frame) > _LONG:
        rows = f"{len(frame):,} rows"
        return f'<details class="table"><summary>{label} ({rows})</summary>{shown}</details>'
    return f'<div class="table"><p class="caption">{label}</p>{shown}</div>'


# ---------------------------------------------------------------- claims


def _claims(claims: Sequence[Claim], names: _Names) -> str:
    """The scoreboard: one group per source, in the order in which sources first appear."""
    rates = {id(claim): q for claim, q in zip(claims, false_discovery_rates(claims), strict=True)}
    groups = []
    for source in dict.fromkeys(claim.source for claim in claims):
        group = [claim for claim in claims if claim.source == source]
        commands = dict.fromkeys(claim.command for claim in group if claim.command)
        listed = ", ".join(f"<code>{escape(command)}</code>" for command in commands)
        foot = f'<tr class="again"><td colspan="4">Reproduce with: {listed}</td></tr>'
        groups.append(
            f'<tbody><tr><th class="source" colspan="4" scope="rowgroup">{escape(source)} '
            f"<small>{tally(group)}</small></th></tr>\n"
            + "\n".join(
                [*(_claim(claim, rates[id(claim)]) for claim in group), *([foot] if listed else [])]
            )
            + "</tbody>"
        )
    columns = ("Verdict", "Claim", "Measured", "Control")
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        f"<section>\n{names.heading('Claims')}\n<p><b>{tally(claims)}.</b> A rule stated "
        "beforehand decides each claim: it holds if the whole 95&nbsp;% interval (thick line) is "
        "beyond the bar (vertical stroke) and its difference from the control (ring) is beyond "
        "zero. If only the first is so, it is no more than its control; it does not hold if none "
        "of the interval is beyond the bar, and otherwise the data cannot tell. A number without "
        "an interval was counted, not estimated. Below a verdict stands q, the false discovery "
        "rate over all claims with an interval. "
        f'{_measured_from(claims)}</p>\n<table class="claims"><thead><tr>{head}</tr></thead>\n'
        + "\n".join(groups)
        + "</table>\n</section>"
    )


def _measured_from(claims: Sequence[Claim]) -> str:
    changed = [claim.name for claim in claims if claim.from_changed_files]
    if not changed:
        return "All were measured with committed code."
    return escape(f"Measured with code that is not that of a commit: {', '.join(changed)}.")


def _claim(claim: Claim, q: float) -> str:
    """A row; `q` is the claim's false discovery rate, NaN where nothing was sampled."""
    interval = f"{in_short(claim.low)} to {in_short(claim.high)}" if claim.low < claim.high else ""
    interval += f" over {claim.over}" if interval and claim.over else ""
    control = "" if math.isnan(claim.control) else in_short(claim.control)
    if not math.isnan(claim.difference):
        more, low, high = map(in_short, claim.from_control)
        control += f"; difference {more} ({low} to {high}) "
    rate = "" if math.isnan(q) else f"<small>q {in_short(max(q, 1e-4))}</small>"
    kind = claim.verdict.replace(" ", "-")
    return (
        f'<tr><td class="verdict {kind}">{claim.verdict}{rate}</td>'
        f'<td dir="auto">{escape(claim.statement)}<small>{escape(claim.on)}</small></td>'
        f'<td dir="auto"><span class="value">{in_short(claim.value)}</span> '
        f'<span class="interval">{interval}</span>{_mark(claim, kind)}'
        f"<small>{escape(claim.how)}; {claim.rule}</small></td>"
        f'<td dir="auto"><span class="value">{control}</span>'
        f"<small>{escape(claim.control_name)}</small></td></tr>"
    )


def _mark(claim: Claim, kind: str) -> str:
    """Interval, bar and control on one line, which reaches from the smallest to the largest."""
    drawn = [claim.low, claim.value, claim.high, claim.bar]
    drawn += [] if math.isnan(claim.control) else [claim.control]
    if not all(map(math.isfinite, drawn)) or min(drawn) == max(drawn):
        return ""
    least, width = min(drawn), max(drawn) - min(drawn)
    low, value, high, bar, *control = (f"{6 + 128 * (x - least) / width:.1f}" for x in drawn)
    ring = "".join(f'<circle class="control" cx="{x}" cy="8" r="3.2"/>' for x in control)
    return (
        f'<svg class="mark {kind}" viewBox="0 0 140 16" width="140" height="16" aria-hidden="true">'
        f'<path class="axis" d="M2 8H138"/><path class="bar" d="M{bar} 1V15"/>{ring}'
        f'<path class="reach" d="M{low} 8H{high}"/><circle cx="{value}" cy="8" r="3.2"/></svg>'
    )


# ---------------------------------------------------------------- figures


@dataclass(frozen=True)
class _Drawn:
    """A picture as the page embeds it."""

    image: bytes
    kind: str
    inches: float
    high: float  # inches too
    own: bool  # in our style, on white paper
    name: str
    table: pd.DataFrame | None


def _figure(picture: Picture, number: int, scale: float, most: float = math.inf) -> str:
    """`most`: its height at most, in pixels; such a figure is never wider than its page."""
    drawn, caption = _draw(picture), escape(picture.caption)
    scale = min(scale, most / drawn.high)
    data = ""
    if drawn.table is not None:
        rows = "1 row" if len(drawn.table) == 1 else f"{len(drawn.table):,} rows"
        data = (
            f'<details class="data"><summary>The numbers ({rows})</summary>'
            f"{data_table(drawn.table, f'Numbers of figure {number}')}"
            f"{download(drawn.table, drawn.name)}</details>"
        )
    wide = drawn.inches > _WIDE and most == math.inf
    image = (
        f'<img class="{"own" if drawn.own else "given"}{" wide" if wide else ""}" '
        f'width="{round(drawn.inches * scale)}" alt="Figure {number}. {caption}" '
        f'src="data:image/{drawn.kind};base64,{base64.b64encode(drawn.image).decode()}">'
    )
    if wide:
        name = f'tabindex="0" role="region" aria-label="Figure {number}"'
        image = f'<div class="scroll" {name}>{image}</div>'
    label = f"<b>Figure {number}.</b> {running(picture.caption)}"
    return f"<figure>{image}<figcaption>{label}</figcaption>{data}</figure>"


def _draw(picture: Picture) -> _Drawn:
    drawing, table = picture.drawing, picture.table
    if isinstance(drawing, Path):
        return _saved(drawing, table)
    if isinstance(drawing, Axes | Figure):
        figure = drawing.get_figure(root=True)
        assert isinstance(figure, Figure)
        wide, high = figure.get_size_inches()
        return _Drawn(_svg(figure), "svg+xml", wide, high, False, "figure", table)
    name = getattr(drawing, "__name__", "figure").strip("_<>")
    if table is None:
        raise ValueError(
            f"{name} has no table to draw: give the Picture a table, or draw it and give the Axes."
        )
    return _drawn(drawing, table, name)


def _saved(path: Path, table: pd.DataFrame | None) -> _Drawn:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Make it with interp.plots.save.")
    numbers = path.with_suffix(".csv")
    if table is None and numbers.is_file():
        table = read_table(numbers)
    if path.suffix == ".png":
        with Image.open(path) as image:
            per_inch = image.info.get("dpi", (96, 96))[0]
            inches, high = image.width / per_inch, image.height / per_inch
        return _Drawn(path.read_bytes(), "png", inches, high, False, path.stem, table)
    draw = FIGURES.get(path.stem.split("-")[0])
    if path.suffix != ".csv" or draw is None or table is None:
        raise ValueError(
            f"{path} is not a saved figure: give a .png, or a figure's .csv, whose name begins "
            f"with one of {', '.join(FIGURES)}."
        )
    return _drawn(draw, table, path.stem)


def _drawn(draw: Draw, table: pd.DataFrame, name: str) -> _Drawn:
    figure = draw(table).get_figure(root=True)
    assert isinstance(figure, Figure)
    try:
        with own_style():
            wide, high = figure.get_size_inches()
            return _Drawn(_svg(figure), "svg+xml", wide, high, True, name, table)
    finally:
        plt.close(figure)


def _svg(figure: Figure) -> bytes:
    """With letters as shapes, so that the reader needs no fonts; always the same bytes."""
    shapes: Any = {"svg.hashsalt": "polyneuron", "svg.fonttype": "path"}
    with mpl.rc_context(shapes), io.BytesIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

"""What did all the studies find, and which published claims hold?

    python -m experiments.report tiny
    python -m experiments.report babel     # a minute, after the studies
    python -m experiments.report gemma     # results/report-gemma.html
    python -m experiments.report paper

Reads   results/<study>/<preset>/**: claims.json, tables; questions from the studies' first lines
Writes  results/report.html

Studies without results are left out. Tables too long to read are listed, not printed.
"""

import ast
import datetime
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from experiments.board import studies
from experiments.runner import EXPERIMENTS, chosen
from interp.inference.claims import tally
from interp.plots.files import read_table
from interp.reports.kinds import kind_of
from interp.reports.report import Section, write_report
from interp.reports.sections import claims_in, files_in, origin_of, table_section
from interp.results import artifacts
from interp.text.languages import as_labels

MADE = ("model", "versions", "commit")
"""Metadata that a study's runs share."""

MOST_ROWS = 40
"""Longer tables are only listed."""


@dataclass(frozen=True)
class Config:
    """Which results are reported."""

    preset: str
    """The folder of each study's results."""

    results: Path = Path("results")
    """Folder of the studies' folders."""

    out: Path = Path("results/report.html")
    """The report."""


PRESETS = {
    "tiny": ("Results of the `tiny` presets: does every part run?", Config("tiny")),
    "babel": ("The studies of the shipped model.", Config("babel")),
    "gemma": (
        "The studies of Gemma 3 270M.",
        Config("gemma", out=Path("results/report-gemma.html")),
    ),
    "paper": ("Results of the `paper` presets, for every model they ran on.", Config("paper")),
}


def question(study: str) -> tuple[str, str]:
    """The first line of a study's docstring, and the prose below its commands."""
    source = (EXPERIMENTS / f"{study}.py").read_text(encoding="utf-8")
    first, *blocks = (ast.get_docstring(ast.parse(source)) or study).split("\n\n")
    prose = [
        block
        for block in blocks
        if not block.startswith((" ", "Reads", "Writes", "Draws")) and not block.endswith(":")
    ]
    return first, "\n\n".join(prose)


def section_of(study: str, folder: Path, preset: str) -> Section:
    """A study's question, its figures, its short tables, and where the long ones are."""
    title, text = question(study)
    drawn: list[tuple[Path, Section]] = []
    tables: dict[str, pd.DataFrame] = {}
    larger = []
    for file in files_in(folder):
        if file.suffix != ".csv":
            continue
        name = file.relative_to(folder).with_suffix("").as_posix()
        frame = read_table(file)
        kind = kind_of(file, frame)
        if kind is not None:
            part = table_section(file, frame, kind)
            own = part.text.removeprefix(kind.text).removeprefix(as_labels(kind.text)).strip()
            said = (own, part.finding, part.certainty)
            text += "".join(f"\n\n{paragraph}" for paragraph in said if paragraph)
            tables |= part.tables
            drawn.append((file, part))
        elif 0 < len(frame) <= MOST_ROWS:
            tables[f"{name}.csv"] = frame
        elif len(frame):
            larger.append(f"{name}.csv ({len(frame):,} rows)")
    if larger:
        text += f"\n\nAlso in `{folder.as_posix()}`: {', '.join(larger)}."
    titles = [part.title for _, part in drawn]
    pictures = [
        replace(picture, caption=f"{file.parent.name}. {picture.caption}")
        if titles.count(part.title) > 1
        else picture
        for file, part in drawn
        for picture in part.pictures
    ]
    runs = [part.origin for _, part in drawn if part.origin]
    runs += [origin_of(file) for file in files_in(folder) if file.name == "run.json"]
    made = {name: value for run in runs[:1] for name, value in run.items() if name in MADE}
    command = {"command": f"python -m experiments.{study} {preset}"}
    return Section(title, text, tuple(pictures), tables, command | made)


def main(config: Config) -> None:
    finished = studies(config.results, config.preset)
    if not finished:
        raise ValueError(
            f"{config.results} holds no study with the preset {config.preset}: run one first, such "
            f"as python -m experiments.deactivate_neurons {config.preset}."
        )
    claims = claims_in([folder for _, folder in finished])
    write_report(
        config.out,
        f"Language neurons: what the studies found ({config.preset})",
        [section_of(study, folder, config.preset) for study, folder in finished],
        claims,
        summary="Each study asks one question. First come the published claims and what was "
        "measured here, then the questions, one by one.",
        date=datetime.date.today().isoformat(),
        origin={"command": f"python -m experiments.report {config.preset}"}
        | artifacts.provenance(),
    )
    print(f"{len(finished)} studies, {tally(claims)}: {config.out}")


if __name__ == "__main__":
    main(chosen(PRESETS, __doc__))

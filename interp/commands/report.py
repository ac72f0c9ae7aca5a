"""The subcommand that turns the folders of runs into one HTML report: report."""

import datetime
import inspect
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import interp
from interp.commands.common import say
from interp.commands.effects import Deactivate
from interp.commands.figure import Figure
from interp.commands.find import Find
from interp.commands.options import Positional
from interp.commands.overview import check_results, next_step, runs_below
from interp.commands.page import Page
from interp.commands.remembered import is_run, memory_of
from interp.commands.routing import Routing
from interp.commands.stability import Stability
from interp.commands.steer import Steer
from interp.commands.write import Write
from interp.text.languages import worded


@dataclass(frozen=True)
class Report:
    """Write the results of runs into one HTML report.

    It begins with the main finding and its figure. Every result in the folders becomes a section,
    with figures, tables and claims. The file works offline.

        interp report results/demo
    """

    results: Positional[tuple[Path, ...]]
    """Folders of runs, or folders that contain them."""

    out: Path | None = None
    """The report; by default report.html in the first folder."""

    title: str | None = None
    """Title of the report; by default Neurons and languages."""

    def run(self) -> None:
        if not self.results:
            raise ValueError("There is nothing to report on: name the folders of runs.")
        for path in self.results:
            check_results(path)
        from interp.reports.findings import certainty_of, leading
        from interp.reports.sections import (
            BELONGING,
            FIRING,
            OF_TABLES,
            claims_in,
            models_of,
            sections_in,
            titles,
        )

        sections, claims = sections_in(self.results), claims_in(self.results)
        order = titles(*OF_TABLES, BELONGING, FIRING)
        first, rest = leading(sections, order)
        sure = certainty_of(sections)
        next_steps = interp.reports.Section("What to do next", what_is_next(self.results))
        folder = self.results[0] if self.results[0].is_dir() else self.results[0].parent
        command = shlex.join(["interp", "report", *map(str, self.results)])
        out = interp.write_report(
            self.out or folder / "report.html",
            self.title or worded("Neurons and languages", labels_of(self.results)),
            [*rest, *([sure] if sure else []), next_steps],
            claims,
            summary=models_of(sections),
            date=datetime.date.today().isoformat(),
            origin={"command": command} | interp.results.artifacts.provenance(),
            first=first,
        )
        say(f"{len(sections)} sections and {len(claims)} claims are in {out}.")


STEPS: dict[str, type] = {
    **{"find": Find, "routing": Routing, "deactivate": Deactivate, "steer": Steer, "page": Page},
    **{"stability": Stability, "write": Write, "figure": Figure},
}
"""Commands that come next."""


def runs_of(results: Sequence[Path]) -> list[Path]:
    """The folders of runs among these and below them."""
    return [run for path in results for run in ([path] if is_run(path) else runs_below(path))]


def labels_of(results: Sequence[Path]) -> list[str]:
    """The labels of these runs, as far as they record them."""
    recorded = [memory_of(run).recorded for run in runs_of(results)]
    return [label for record in recorded for label in record.get("languages", ())]


def what_is_next(results: Sequence[Path]) -> str:
    """A list of commands, each with what it does: first what these runs lack."""
    runs = runs_of(results)
    steps = [step for run in runs if (step := next_step(run))]
    for run in runs[:1]:
        named = shlex.quote(str(run))
        if (run / "neurons.json").is_file():
            label = next(iter(memory_of(run).recorded.get("languages", ("LANGUAGE",))))
            steps.append(f'interp write {named} "A PROMPT" --off {shlex.quote(label)}')
            steps.append(f"interp stability {named}")
    steps.append(f"interp figure {shlex.quote(str(next(iter(runs), results[0])))}")
    names, labels = [step.split()[1] for step in steps], labels_of(results)
    return "\n".join(
        f"- `{step}`: {worded(summary_of(STEPS[name]), labels)}"
        for name, step in zip(names, steps, strict=True)
        if name in STEPS  # not report itself, and not to repeat what was interrupted
    )


def summary_of(command: type) -> str:
    """The first sentence of a command's help, to stand after a colon."""
    text = " ".join((inspect.getdoc(command) or "").split("\n\n")[0].split())
    return text[0].lower() + text[1:]

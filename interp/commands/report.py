"""The subcommand that turns the folders of runs into one HTML report: report."""

import datetime
import shlex
from dataclasses import dataclass
from pathlib import Path

import interp
from interp.commands.common import say
from interp.commands.options import Positional


@dataclass(frozen=True)
class Report:
    """Write the results of runs into one HTML report.

    Every result in the folders becomes a section, with figures, tables and claims. The file works
    offline.

        interp report results/demo
    """

    results: Positional[tuple[Path, ...]]
    """Folders of runs, or folders that contain them."""

    out: Path | None = None
    """The report; by default report.html in the first folder."""

    title: str = "Neurons and languages"
    """Title of the report."""

    def run(self) -> None:
        from interp.reports.sections import claims_in, models_of, sections_in

        if not self.results:
            raise ValueError("There is nothing to report on: name the folders of runs.")

        sections, claims = sections_in(self.results), claims_in(self.results)
        first = self.results[0] if self.results[0].is_dir() else self.results[0].parent
        command = shlex.join(["interp", "report", *map(str, self.results)])
        out = interp.write_report(
            self.out or first / "report.html",
            self.title,
            sections,
            claims,
            summary=models_of(sections),
            date=datetime.date.today().isoformat(),
            origin={"command": command} | interp.results.artifacts.provenance(),
        )
        say(f"{len(sections)} sections and {len(claims)} claims are in {out}.")

"""The subcommand that draws the results of runs for a paper: figure."""

import difflib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from interp.commands.common import say
from interp.commands.options import Positional
from interp.commands.overview import check_results, missing_steps
from interp.commands.remembered import is_run
from interp.results.words import FigureFormat

if TYPE_CHECKING:
    from interp.reports.report import Picture

NEURON = "neuron_rates"
"""The figure of one neuron."""

_FIGURES_OF = {
    "find": ("layer_profile", "overlap"),
    "routing": ("routing", "chosen_experts"),
    "deactivate": ("perplexity_matrix",),
    "steer": ("language_switching",),
}
"""By command that follows on a run, the figures of its table."""


@dataclass(frozen=True)
class Figure:
    """Draw a paper's figures from the results of a run.

    Every figure of `interp report` is written in the formats asked for, with the table that it was
    drawn from (.csv); the captions are printed.

        interp figure results/demo
        interp figure results/demo layer_profile --format pdf svg --width single
        interp figure results/demo --neuron L5N7
        interp figure results/steer/rates.csv --font "Liberation Serif" --font-size 9
    """

    results: Positional[Path]
    """Folder of a run, or a table (.csv) in it."""

    kind: Positional[str] = ""
    """Which figure, such as overlap; by default all that there are."""

    neuron: tuple[str, ...] = ()
    """Instead draw how often these neurons fire in each language, such as L5N7, or
    L5E2N7 of an expert."""

    format: tuple[FigureFormat, ...] = ("pdf",)
    """pdf, svg, png."""

    width: str = ""
    """single (3.3 inches), double (6.9), or inches; by default what each figure needs."""

    font: str | None = None
    """Family of an installed font, such as the paper's."""

    font_size: float = 8.0
    """Points, of the axes' labels; other sizes are in proportion."""

    names: Literal["code", "name", "endonym"] = "code"
    """Languages by code, English name, or own name (endonym)."""

    out: Path | None = None
    """Folder for the figures; by default figures in the folder of the results."""

    def run(self) -> None:
        check_results(self.results)
        from interp import plots
        from interp.plots.files import FIGURES
        from interp.results.display import counted  # which loads nothing that --help must not

        if self.kind and self.kind not in FIGURES:
            near = difflib.get_close_matches(self.kind, FIGURES, n=1)
            perhaps = f" Did you mean {near[0]}?" if near else f" Give one of {', '.join(FIGURES)}."
            raise ValueError(f"There is no figure {self.kind!r}.{perhaps}")
        if self.out and self.out.suffix[1:] in get_args(FigureFormat):
            raise ValueError(
                f"--out is a folder, and {self.out} is named like a file: give a folder, and "
                f"--format {self.out.suffix[1:]}."
            )
        width = self.inches()
        chosen = self.of_neurons() if self.neuron else self.of_results()
        folder = self.results if self.results.is_dir() else self.results.parent
        out = self.out or folder / "figures"
        with plots.on_paper(width=width, font=self.font, size=self.font_size):
            for name, picture in chosen.items():
                assert picture.table is not None
                table = plots.with_names(picture.table, self.names)
                plots.save(table, out / name, self.format)
                say(f"{name}: {picture.caption}")
        endings = ", ".join(f".{ending}" for ending in self.format)
        say(f"{counted(len(chosen), 'figure')} ({endings}) in {out}.")
        if not (self.kind or self.neuron) and (sentence := self.not_drawn()):
            say(sentence)

    def of_results(self) -> "dict[str, Picture]":
        """The figures of the results, of the kind that is asked for."""
        from interp.reports.figures import figures_of

        if self.kind == NEURON:
            raise ValueError(f"Of which neuron? Name it, as in --neuron L5N7, instead of {NEURON}.")
        pictures = figures_of(self.results)
        chosen = {
            name: picture
            for name, picture in pictures.items()
            if self.kind in ("", name.split("-")[0])
        }
        if not chosen:
            if not pictures and not is_run(self.results):
                raise ValueError(
                    f"{self.results} holds no result that a figure can show: give a run, or a "
                    "folder or table (.csv) that a command has written."
                )
            there = f"it has {', '.join(pictures)}" if pictures else "it has none"
            wanted = f"the figure {self.kind}" if self.kind else "a figure"
            why = f"{self.results} has no result for {wanted}: {there}."
            raise ValueError(f"{why} {self.not_drawn()}".rstrip())
        return chosen

    def not_drawn(self) -> str:
        """The figures that a run has no table for, each with the command; empty: it has all."""
        if not is_run(self.results):
            return ""
        commands = [name for name in missing_steps(self.results) if name in _FIGURES_OF]
        run = shlex.quote(str(self.results))
        figures = [f"{', '.join(_FIGURES_OF[name])} (interp {name} {run})" for name in commands]
        return f"Not drawn before their command has run: {'; '.join(figures)}." if figures else ""

    def of_neurons(self) -> "dict[str, Picture]":
        """A figure of each neuron that is named."""
        from interp.models.units import Address
        from interp.reports.figures import figure_of_neuron

        if self.kind not in ("", NEURON):
            raise ValueError(f"--neuron draws {NEURON} and not {self.kind}: leave one of them out.")
        pictures = {}
        for name in self.neuron:
            address = Address.of(name)
            pictures[f"{NEURON}-{address.name}"] = figure_of_neuron(self.results, address)
        return pictures

    def inches(self) -> float | None:
        """The width asked for; None: what each figure needs."""
        from interp.plots.style import DOUBLE, SINGLE

        named = {"": None, "single": SINGLE, "double": DOUBLE}
        if self.width in named:
            return named[self.width]
        try:
            return float(self.width)
        except ValueError:
            raise ValueError(
                f"--width is {self.width!r}: give single, double, or a number of inches."
            ) from None

"""The subcommand that measures how stable a selection is: stability."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import interp
from interp.commands.common import goes_ahead, save_table, say, say_table, seeded
from interp.commands.effects import open_run
from interp.commands.find import Find
from interp.commands.forecasts import of_selecting
from interp.commands.options import Positional
from interp.scores.methods import METHODS
from interp.text.languages import worded

Select = Callable[["interp.FiringStats"], "interp.NeuronSelection"]
"""A function that selects neurons from firing counts."""


@dataclass(frozen=True)
class Stability:
    """Measure how a selection depends on text, settings and languages.

    It prints one line per change: half of the text, one shard less, other settings, one language
    less, and other runs of the same model, such as on another corpus or with another seed.

        interp stability results/demo --fraction 0.03
        interp stability runs/wikipedia --others runs/news
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    others: tuple[Path, ...] = ()
    """Folders of other runs of the model."""

    method: Literal["lape", "lap", "entropy-less-peak", "cumulative-mass"] = "lape"
    """As in `interp find`, but only methods that need nothing but firing counts.

    Only firing counts are stored by shard; for other methods, `interp compare` the selections of
    two runs."""

    fraction: float = 0.01
    """Share of all neurons to select; for lap, per language."""

    busy_quantile: float = 0.95
    """A neuron belongs to a language where it fires more than this share of all rates."""

    fractions: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    """Values to try instead of --fraction."""

    busy_quantiles: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)
    """Values to try instead of --busy-quantile."""

    shares: tuple[float, ...] = (0.9, 0.99)
    """For cumulative-mass: values to try instead of 0.95 of each layer's firing."""

    splits: int = 8
    """Random splits of the shards into halves."""

    seed: int = 0
    """Seeds the splits."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    out: Path | None = None
    """File for the table (.csv), by language; by default stability.csv in the run's folder, or
    stability-METHOD.csv for methods other than lape."""

    def run(self) -> "interp.selections.Stability | None":
        run = open_run(self.run_folder)
        stats = run.firing
        if stats.n_shards < 2:
            raise ValueError(
                "The run has only one shard, so there is nothing to compare: collect with "
                "--n-shards 20."
            )
        model = run.provenance.get("model")
        runs: dict[str, interp.FiringStats] = {}
        for folder in self.others:
            other = open_run(folder)
            runs[f"run {folder.name}"] = other.firing
            if other.provenance.get("model") != model:
                say(f"{folder} was collected with weights other than those of {self.run_folder}.")
        left_out = len(stats.languages) if len(stats.languages) > 2 else 0
        changes = len(dict(self.settings())) + left_out + len(runs)
        times = stats.n_shards * (1 + changes) + 4 * self.splits
        if not goes_ahead(
            lambda: of_selecting(stats, self.find.select, times),
            "fewer --fractions, --busy-quantiles or --splits.",
            self.dry_run,
        ):
            return None
        stability = self.measure(stats, runs)
        show(stability)
        agreement = interp.selections.predicted_agreement(
            stats, self.find.select, seeded(self.seed), self.splits
        )
        say("\n" + meaning(stability, agreement))
        name = "stability.csv" if self.method == "lape" else f"stability-{self.method}.csv"
        out = self.out or self.run_folder / name
        save_table(stability.to_frame(), out)
        say(f"The table by {worded('language', stats.languages)} is in {out}.")
        return stability

    @property
    def find(self) -> Find:
        """The command that makes the selection."""
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("fraction", "busy_quantile")
            if name in METHODS[self.method].options
        }
        return Find(self.run_folder, self.method, **given)

    def measure(
        self, stats: "interp.FiringStats", runs: Mapping[str, "interp.FiringStats"]
    ) -> "interp.selections.Stability":
        """All changes; a change that allows no selection is left out, with a message."""
        from interp.results.bars import tqdm
        from interp.selections.stability import (
            across_changes,
            across_halves,
            across_shards,
            stacked,
        )

        select = self.find.select
        settings, languages = dict(self.settings()), stats.languages
        leave_one_out = (
            interp.selections.without_languages(select, languages) if len(languages) > 2 else {}
        )
        n_lines = 2 + len(settings) + len(leave_one_out) + len(runs)
        with tqdm(total=n_lines, desc="comparing", unit="line") as bar:
            parts = [across_halves(stats, select, seeded(self.seed), self.splits)]
            bar.update()
            parts.append(across_shards(stats, select))
            bar.update()
            for changes in [*({name: change} for name, change in settings.items()), leave_one_out]:
                try:
                    parts += [across_changes(stats, select, changes)] if changes else []
                except ValueError as error:
                    say(f"{', '.join(changes)} is left out: {error}")
                bar.update(len(changes))
            if runs:
                parts.append(interp.selections.across_runs(stats, runs, select))
        return stacked(parts)

    def settings(self) -> Iterator[tuple[str, Select]]:
        """The method with one setting changed at a time, by name."""
        values_to_try = {
            "fraction": self.fractions,
            "busy_quantile": self.busy_quantiles,
            "share": self.shares,
        }
        for option, values in values_to_try.items():
            if option in METHODS[self.method].options:
                current = getattr(self.find, option)
                for value in values:
                    changed: dict[str, Any] = {option: value}
                    if value != current:
                        name = f"{option.replace('_', ' ')} {value:g}"
                        yield name, replace(self.find, **changed).select


def show(stability: "interp.selections.Stability") -> None:
    """Print a line per change: means over languages, then the Jaccard of each language."""
    said = "Jaccard with the unchanged selection: mean over languages, then language by language.\n"
    say(worded(said, stability.languages))
    rows = [["change", "Jaccard", "95 % interval", "chance", "most", *stability.languages]]
    for row, change in enumerate(stability.changes):
        jaccard, low, high, chance, most = (
            getattr(stability, name)[row].nanmean().item()
            for name in ("jaccard", "low", "high", "chance", "most")
        )
        own = stability.jaccard[row].tolist()
        by_language = [f"{value:.2f}" if value == value else "-" for value in own]
        cells = [f"{jaccard:.3f}", f"{low:.2f} to {high:.2f}", f"{chance:.3f}", f"{most:.3f}"]
        rows.append([change, *cells, *by_language])
    say_table(rows)
    say("chance: random sets of the same sizes; most: the maximum that the sizes allow")


def meaning(stability: "interp.selections.Stability", agreement: float) -> str:
    """Two sentences: how far to trust single neurons, and what changes the selection most."""
    mean, most = stability.jaccard.nanmean(dim=1), stability.most.nanmean(dim=1)
    halves, chance = mean[0].item(), stability.chance[0].nanmean().item()
    if agreement >= 0.8:
        trust = "with these settings, you can name single neurons"
    elif agreement >= 0.5:
        trust = "most of the neurons would come back, but a single one is not a finding"
    else:
        trust = "the set is one draw of many, so report what it does, not which neurons it holds"
    sentence = (
        f"Selections from two halves of the text have a Jaccard of {halves:.2f} (chance "
        f"{chance:.2f}), and one from as much other text would reach about {agreement:.2f}: "
        f"{trust}."
    )
    if len(mean) > 2:  # the first two lines are the same settings on less text
        largest = 2 + int((mean[2:] / most[2:]).argmin())
        sentence += (
            f" The change with the largest effect is {stability.changes[largest]}: a Jaccard of "
            f"{mean[largest].item():.2f}, where the sizes of the sets allow "
            f"{most[largest].item():.2f}."
        )
    return sentence

"""The subcommand that says how far a selection can be trusted: stability."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import interp
from interp.commands.common import say, seeded
from interp.commands.find import Find
from interp.commands.options import Positional
from interp.scores.methods import METHODS

Select = Callable[["interp.FiringStats"], "interp.NeuronSelection"]
"""What chooses neurons from counts."""


@dataclass(frozen=True)
class Stability:
    """Say how far a selection hangs on text, settings and languages.

    One line per change: the other half of the text, a shard less, other settings, a language less,
    and other runs of the same model, such as on another corpus or with another seed.

        interp stability results/demo --fraction 0.03
        interp stability runs/wikipedia --others runs/news
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    others: tuple[Path, ...] = ()
    """Folders of other runs of the model."""

    method: Literal["lape", "lap", "entropy-less-peak", "cumulative-mass"] = "lape"
    """As in `interp find`, where counts of firing are enough.

    They alone are kept by shard; for other methods, `interp compare` the selections of two runs."""

    fraction: float = 0.01
    """Share of all neurons to select; for lap, per language."""

    busy_quantile: float = 0.95
    """A neuron belongs to a language where it fires more than this share of all rates."""

    fractions: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    """Tried in the place of the fraction."""

    busy_quantiles: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)
    """Tried in the place of the busy quantile."""

    shares: tuple[float, ...] = (0.9, 0.99)
    """For cumulative-mass: tried in the place of 0.95 of each layer's firing."""

    splits: int = 8
    """Times that the shards are dealt into halves."""

    seed: int = 0
    """Deals the halves."""

    out: Path | None = None
    """File for the table (.csv), language by language; by default stability.csv in the run's
    folder, and stability-METHOD.csv for other methods than lape."""

    def run(self) -> None:
        run = interp.Run.open(self.run_folder)
        stats = run.firing
        if stats.n_shards < 2:
            raise ValueError(
                "The run has one shard, and nothing to compare: collect --n-shards 20."
            )
        model = run.provenance.get("model")
        runs: dict[str, interp.FiringStats] = {}
        for folder in self.others:
            other = interp.Run.open(folder)
            runs[f"run {folder.name}"] = other.firing
            if other.provenance.get("model") != model:
                say(f"{folder} was collected with other weights than {self.run_folder}.")
        found = self.measure(stats, runs)
        show(found)
        again = interp.selections.predicted_agreement(
            stats, self.find.select, seeded(self.seed), self.splits
        )
        say("\n" + meaning(found, again))
        name = "stability.csv" if self.method == "lape" else f"stability-{self.method}.csv"
        out = self.out or self.run_folder / name
        interp.results.artifacts.write_text(out, found.to_frame().to_csv(index=False))
        say(f"The table, language by language, is in {out}.")

    @property
    def find(self) -> Find:
        """The command whose selection is asked about."""
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("fraction", "busy_quantile")
            if name in METHODS[self.method].options
        }
        return Find(self.run_folder, self.method, **given)

    def measure(
        self, stats: "interp.FiringStats", runs: Mapping[str, "interp.FiringStats"]
    ) -> "interp.selections.Stability":
        """All lines; a setting that cannot be selected with is left out, and said to be."""
        from interp.results.bars import tqdm
        from interp.selections.stability import (
            across_changes,
            across_halves,
            across_shards,
            stacked,
        )

        select = self.find.select
        settings, languages = dict(self.settings()), stats.languages
        less = interp.selections.without_languages(select, languages) if len(languages) > 2 else {}
        n_lines = 2 + len(settings) + len(less) + len(runs)
        with tqdm(total=n_lines, desc="comparing", unit="line", delay=2, leave=False) as seen:
            parts = [across_halves(stats, select, seeded(self.seed), self.splits)]
            seen.update()
            parts.append(across_shards(stats, select))
            seen.update()
            for changes in [*({name: change} for name, change in settings.items()), less]:
                try:
                    parts += [across_changes(stats, select, changes)] if changes else []
                except ValueError as error:
                    say(f"{', '.join(changes)} is left out: {error}")
                seen.update(len(changes))
            if runs:
                parts.append(interp.selections.across_runs(stats, runs, select))
        return stacked(parts)

    def settings(self) -> Iterator[tuple[str, Select]]:
        """Each setting that the method has, changed while the others stay."""
        tried = {
            "fraction": self.fractions,
            "busy_quantile": self.busy_quantiles,
            "share": self.shares,
        }
        for option, values in tried.items():
            if option in METHODS[self.method].options:
                now = getattr(self.find, option)
                for value in values:
                    changed: dict[str, Any] = {option: value}
                    if value != now:
                        name = f"{option.replace('_', ' ')} {value:g}"
                        yield name, replace(self.find, **changed).select


def show(found: "interp.selections.Stability") -> None:
    """A line per change: means over languages, then the Jaccard of each language."""
    width = max(map(len, found.changes))
    say("Jaccard with the selection as it is; all but the last columns are means over languages.\n")
    say(
        f"{'change':<{width}}  Jaccard  95 % interval  chance    most  "
        + "".join(f"{code:>6}" for code in found.languages)
    )
    for row, change in enumerate(found.changes):
        jaccard, low, high, chance, most = (
            getattr(found, name)[row].nanmean().item()
            for name in ("jaccard", "low", "high", "chance", "most")
        )
        each = "".join(
            f"{value:>6.2f}" if value == value else "     -"
            for value in found.jaccard[row].tolist()
        )
        say(
            f"{change:<{width}}  {jaccard:>7.3f}   {low:.2f} to {high:.2f}  {chance:>6.3f}  "
            f"{most:>6.3f}  {each}"
        )
    say("chance: random sets of those sizes; most: what the sizes of the two sets allow")


def meaning(found: "interp.selections.Stability", again: float) -> str:
    """One sentence: what a repetition would share, what moves the selection, how to speak of it."""
    mean, most = found.jaccard.nanmean(dim=1), found.most.nanmean(dim=1)
    halves, chance = mean[0].item(), found.chance[0].nanmean().item()
    if again >= 0.8:
        trust = "with these settings, single neurons can be named"
    elif again >= 0.5:
        trust = "most of the neurons would come back, and a single one is no finding"
    else:
        trust = "the set is one draw of many, so report what it does and not which neurons it holds"
    said = (
        f"Two halves of the text share a Jaccard of {halves:.2f} (chance {chance:.2f}), and a "
        f"repetition on as much other text would share about {again:.2f}: {trust}."
    )
    if len(mean) > 2:  # the first two lines are the same settings on less text
        furthest = 2 + int((mean[2:] / most[2:]).argmin())
        said += (
            f" Of what was changed, {found.changes[furthest]} moves it furthest, to "
            f"{mean[furthest].item():.2f}, where the sizes of the sets allow "
            f"{most[furthest].item():.2f}."
        )
    return said

"""The subcommands that handle the pieces of runs: merge, status, tidy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interp
from interp.commands.collect import counts_table, show_counts
from interp.commands.common import say
from interp.commands.options import Positional
from interp.runs.refusals import check_run, follows_a_run

if TYPE_CHECKING:
    import pandas

    from interp.counting.progress import Verification


def any_run(folder: Path) -> "interp.Run":
    """The run in a folder, finished or not; what is none is refused before a library is loaded."""
    check_run(folder)
    return interp.Run.open(folder)


@dataclass(frozen=True)
class Merge:
    """Merge the pieces of a run that several processes have read.

    interp merge results/demo
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    def run(self) -> "pandas.DataFrame":
        table = counts_table(any_run(self.run_folder).merge().firing)
        show_counts(table)
        say(f"Counts are in {self.run_folder / 'firing.safetensors'}.")
        return table


@dataclass(frozen=True)
class Tidy:
    """Delete the pieces of finished runs, which their results hold too.

    It merges the pieces once more and checks the results first. `interp collect` does so itself,
    unless told to --keep-pieces. Runs with --sentences keep theirs: nothing else holds the means.

        interp tidy results/demo
    """

    run_folders: Positional[tuple[Path, ...]]
    """Folders given to `interp collect --out`."""

    def run(self) -> None:
        if not self.run_folders:
            raise ValueError("There is nothing to tidy: name the folders of runs.")
        for folder in self.run_folders:
            say(f"{folder}: {any_run(folder).tidy() / 1e6:,.1f} MB are free again.")


@dataclass(frozen=True)
class Status:
    """List which pieces of a run are done, running, missing or bad.

    It checks every finished piece and every result, and says which are damaged and what to do. Of
    another command's folder, such as that of `interp deactivate`, it says how many are done.

        interp status results/demo
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`, or of another long command."""

    def run(self) -> "Verification | list[dict[str, Any]]":
        if follows_a_run(self.run_folder):
            table = list(pieces_of(self.run_folder))
            show_pieces(table, self.run_folder)
            return table
        run = any_run(self.run_folder)
        state, stopped_after = run.verify(), run.status().stopped_after
        total = sum(map(len, (state.done, state.running, state.missing, state.bad)))
        say(
            f"{len(state.done)} of {total} pieces are done, {len(state.running)} running, "
            f"{len(state.missing)} missing, {len(state.bad)} bad."
        )
        if stopped_after is not None:
            say(f"The run was stable after {stopped_after} shards and stopped there.")
        for (shard, code), owner in state.running.items():
            say(f"running: shard {shard} of {code} ({owner})")
        for (shard, code), problem in state.bad.items():
            say(f"bad: shard {shard} of {code}: {problem}")
        for shard, code in state.missing[:10]:
            say(f"missing: shard {shard} of {code}")
        if len(state.missing) > 10:
            say(f"and {len(state.missing) - 10} more")
        for problem in state.damaged.values():
            say(f"damaged: {problem}")
        return state


def pieces_of(folder: Path) -> Iterator[dict[str, Any]]:
    """One row per piece of a command other than collect that is done, bad or running, and one per
    result that is bad."""
    from interp.results.reader import read
    from interp.runs.locks import lock_owner

    pieces = sorted(folder.rglob("pieces/*.safetensors"))
    tabulated = [path.with_suffix(".safetensors") for path in sorted(folder.glob("*.csv"))]
    for path in [*pieces, *filter(Path.is_file, tabulated)]:
        state, detail = "done", ""
        try:
            read(path, ())
        except ValueError as error:
            again = "Delete it and run the command that made it again; finished pieces are kept."
            state, detail = "bad", f"{error} {again}"
        if path in pieces or state == "bad":
            yield {"piece": str(path), "state": state, "detail": detail}
    for path in sorted(folder.rglob("running/*")):
        if (owner := lock_owner(path)) is not None:
            yield {"piece": str(path), "state": "running", "detail": owner}


def show_pieces(table: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Say how many pieces of a command other than collect are done, running or bad."""
    states = [row["state"] for row in table]
    done, running, bad = (states.count(state) for state in ("done", "running", "bad"))
    say(f"{done} pieces are done, {running} running, {bad} bad.")
    for row in table:
        if row["state"] == "running":
            say(f"running: {row['detail']}")
    for row in table:
        if row["state"] == "bad":
            say(f"bad: {row['detail']}")
    if not any(folder.glob("*.csv")):
        say("To go on, run the command that began it again; finished pieces are kept.")

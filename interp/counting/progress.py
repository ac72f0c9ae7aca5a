"""How far a run is, and whether its files are undamaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from interp.results.display import Cells, Shown, listed
from interp.results.reader import read

_MAY_DIFFER = ("versions", "commit")
"""Of the settings in run.json: what else may have written it anew."""


@dataclass(frozen=True)
class Progress(Shown):
    """Which pieces of a run are finished."""

    done: tuple[tuple[int, str], ...]
    """Finished pieces, as (shard, language)."""

    missing: tuple[tuple[int, str], ...]
    """Pieces yet to be read."""

    stopped_after: int | None
    """Shards per language after which `stop_when` ended the run. None: it reads all shards."""

    def __repr__(self) -> str:
        ended = "" if self.stopped_after is None else f", stopped after {self.stopped_after} shards"
        return f"Progress({len(self.done):,} pieces done, {len(self.missing):,} missing{ended})"

    def _cells(self) -> Cells:
        return _by_language({"done": self.done, "missing": self.missing})


@dataclass(frozen=True)
class Verification(Shown):
    """State of every piece of a run; a piece is (shard, language)."""

    done: tuple[tuple[int, str], ...]
    """Finished, with the right checksum."""

    running: dict[tuple[int, str], str]
    """Being read now, and by which process; known only where file locks work, see
    `interp.runs.locks`."""

    missing: tuple[tuple[int, str], ...]
    """Not finished, and no process is known to be reading them."""

    bad: dict[tuple[int, str], str]
    """Damaged, and what is wrong; delete the files."""

    damaged: dict[str, str] = field(default_factory=dict[str, str])
    """Files of the run besides pieces that are damaged: what is wrong, and what to do."""

    def __repr__(self) -> str:
        names = ("done", "running", "missing", "bad")
        counts = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in names)
        damaged = f"; damaged: {', '.join(self.damaged)}" if self.damaged else ""
        return f"Verification(pieces: {counts}{damaged})"

    def to_frame(self) -> pd.DataFrame:
        """One row per piece: its state, and who reads it or what is wrong with it. Then one per
        damaged file that is no piece."""
        states = {
            "done": dict.fromkeys(self.done, ""),
            "running": self.running,
            "missing": dict.fromkeys(self.missing, ""),
            "bad": self.bad,
        }
        rows = [
            (shard, language, state, detail)
            for state, part in states.items()
            for (shard, language), detail in part.items()
        ]
        rows += [(None, None, "damaged", f"{name}: {why}") for name, why in self.damaged.items()]
        frame = pd.DataFrame(rows, columns=["shard", "language", "state", "detail"])
        return frame.astype({"shard": "Int64"}) if self.damaged else frame

    def _cells(self) -> Cells:
        names = ("done", "running", "missing", "bad")
        return _by_language({name: tuple(getattr(self, name)) for name in names})


def _by_language(pieces: Mapping[str, Sequence[tuple[int, str]]]) -> Cells:
    """How many pieces of each language there are, by their state."""
    languages = dict.fromkeys(code for part in pieces.values() for _, code in part)
    rows = [
        [code, *(f"{sum(other == code for _, other in part):,}" for part in pieces.values())]
        for code in languages
    ]
    return Cells(("pieces of", *pieces), rows)


def damaged_results(folder: Path, names: Sequence[str], recreate: str) -> dict[str, str]:
    """The results of a merged run that are damaged or missing: what is wrong, and what to do."""
    problems: dict[str, str] = {}
    for path in (folder / f"{name}.safetensors" for name in names):
        try:
            read(path, ("fired",))  # counts may be larger than memory
        except FileNotFoundError:
            problems[path.name] = f"{path} is missing: {recreate}."
        except ValueError as error:
            problems[path.name] = f"{error} To recreate it, {recreate}."
    return problems


def other_settings(
    folder: Path, plan: Mapping[str, Any], merged: Mapping[str, Any], n_shards: int
) -> dict[str, str]:
    """Whether run.json and stopped.json differ from what the results say of themselves."""
    problems: dict[str, str] = {}
    recorded = {key: value for key, value in merged.items() if key != "shards_read"}
    keys = sorted({*plan, *recorded} - {*_MAY_DIFFER})
    if differ := [key for key in keys if plan.get(key) != recorded.get(key)]:
        problems["run.json"] = (
            f"{folder / 'run.json'} and firing.safetensors differ in {listed(differ)}. If you have "
            "not changed it, delete run.json and run the same `interp collect` again; finished "
            "pieces are kept."
        )
    elif (read_shards := merged.get("shards_read", n_shards)) != n_shards:
        problems["stopped.json"] = (
            f"The results are of {read_shards} shards, and {folder / 'stopped.json'} is missing or "
            f'says otherwise. Write {{"shards": {read_shards}}} into it.'
        )
    return problems

"""How far a run is, and whether its pieces are undamaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from interp.results.display import Cells, Shown


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

    def __repr__(self) -> str:
        names = ("done", "running", "missing", "bad")
        counts = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in names)
        return f"Verification(pieces: {counts})"

    def to_frame(self) -> pd.DataFrame:
        """One row per piece: its state, and who reads it or what is wrong with it."""
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
        return pd.DataFrame(rows, columns=["shard", "language", "state", "detail"])

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

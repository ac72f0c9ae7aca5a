"""Removing the pieces of a run once its results hold all that is in them.

That a marker file exists says so. It is written before the first piece is deleted, so that a run
killed in between, or a process that comes late, does not take deleted pieces for missing ones.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from interp.counting.statistics import STATISTICS
from interp.results.artifacts import write_text
from interp.results.reader import read
from interp.runs.refusals import json_object

_MARKER = "tidied.json"


def is_tidied(folder: Path) -> bool:
    """Whether the pieces of a run are in its results alone.

    False if a result is missing: then the pieces have to be read again.
    """
    if not (folder / _MARKER).is_file():
        return False
    wanted = json_object(folder / "run.json").get("wanted")
    kept = wanted if isinstance(wanted, dict) else {}
    results = ["firing", *(name for name in (*STATISTICS, "signs", "contexts") if kept.get(name))]
    return all((folder / f"{name}.safetensors").is_file() for name in results)


def remove_pieces(folder: Path, pieces: Sequence[Path], results: Sequence[Path]) -> int:
    """Delete pieces whose results are on disk and undamaged; returns the bytes that it frees."""
    for path in results:
        read(path, ("fired",))  # counts may be larger than memory
    write_text(folder / _MARKER, '{"pieces": "deleted, because the results hold them"}\n')
    freed = 0
    for path in pieces:
        with contextlib.suppress(FileNotFoundError):  # another process may be tidying too
            freed += path.stat().st_size
            path.unlink()
    for path in {piece.parent for piece in pieces}:
        with contextlib.suppress(OSError):
            path.rmdir()
    return freed

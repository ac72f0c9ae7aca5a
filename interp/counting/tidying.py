"""Removing the pieces of a run once its results hold all that is in them.

A marker file says so. It is written before the first piece is deleted, so that a run killed in
between, or a process that comes late, does not take deleted pieces for missing ones.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from interp.results.artifacts import write_text
from interp.results.reader import read

_MARKER = "tidied.json"


def is_tidied(folder: Path) -> bool:
    """Whether the pieces of a run are in its results alone.

    False if a result is missing: then the pieces have to be read again.
    """
    try:
        results = json.loads((folder / _MARKER).read_text(encoding="utf-8"))["results"]
        return all((folder / name).is_file() for name in results)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def remove_pieces(folder: Path, pieces: Sequence[Path], results: Sequence[Path]) -> int:
    """Delete pieces whose results are on disk and undamaged; returns the bytes that it frees."""
    for path in results:
        read(path, ("fired",))  # counts may be larger than memory
    marker = {"results": [path.name for path in results]}
    write_text(folder / _MARKER, json.dumps(marker) + "\n")
    freed = 0
    for path in pieces:
        with contextlib.suppress(FileNotFoundError):  # another process may be tidying too
            freed += path.stat().st_size
            path.unlink()
    for path in {piece.parent for piece in pieces}:
        with contextlib.suppress(OSError):
            path.rmdir()
    return freed

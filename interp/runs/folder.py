"""A folder that remembers what its numbers depend on, so that a run resumes only what it began."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.results.artifacts import ABANDONED_AFTER, UNFINISHED, StrictDict, write_text


def begin(folder: Path, plan: Mapping[str, Any], also: Mapping[str, Any] | None = None) -> None:
    """Begin a folder with all that its numbers depend on, or make sure that it was begun with it.

    `also` is told and not compared, such as when it was begun.
    """
    path = folder / "run.json"
    _clear(folder)
    assert all(plan.get(key, told) == told for key, told in (also or {}).items())
    if not path.exists():
        told = json.dumps({**plan, **(also or {})}, indent=1, ensure_ascii=False)
        write_text(path, told + "\n")
        return
    started, now = read_plan(folder), json.loads(json.dumps(plan))  # tuples are lists there
    if differ := [key for key in now if started.get(key) != now[key]]:
        key = differ[0]
        raise ValueError(
            f"{folder} was started with another {', '.join(differ)} ({key}: "
            f"{_difference(started.get(key), now[key])}). Go on with what it was started "
            "with, or give another folder."
        )


def _clear(folder: Path) -> None:
    """Delete what killed writers left behind: unfinished files that nobody wrote to for a day.

    A writer that lives writes all the time. Should one sleep for a day and wake, its file cannot
    be put in its place, and it says so: nothing wrong is kept.
    """
    for path in folder.rglob(".*.part"):
        with contextlib.suppress(OSError):  # another process may be clearing too
            age = time.time() - path.stat().st_mtime
            if UNFINISHED.fullmatch(path.name) and age > ABANDONED_AFTER:
                path.unlink()


def read_plan(folder: Path) -> dict[str, Any]:
    """What a folder was begun with."""
    path = folder / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a run: it holds no run.json.")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        plan = None
    if not isinstance(plan, dict):
        raise ValueError(
            f"{path} is damaged: delete it and run the same again; finished pieces are kept."
        )
    return StrictDict(f"{path} has no entry", plan)


def _difference(before: object, now: object) -> str:
    """The part in which two settings differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                return f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
    return f"was {before!r}, now {now!r}"

"""A run folder that records its settings, so that only a run with the same settings resumes it."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.results.artifacts import ABANDONED_AFTER, UNFINISHED, StrictDict, write_text
from interp.runs.refusals import damaged

_MOST = 60
"""Characters of a setting in a refusal."""


def begin(folder: Path, plan: Mapping[str, Any], also: Mapping[str, Any] | None = None) -> None:
    """Start a folder with all settings its numbers depend on, or check that it has the same ones.

    `also` is stored but not compared, such as the versions of libraries.
    """
    path = folder / "run.json"
    _clear(folder)
    assert all(plan.get(key, value) == value for key, value in (also or {}).items())
    if not path.exists():
        text = json.dumps({**plan, **(also or {})}, indent=1, ensure_ascii=False)
        write_text(path, text + "\n")
        return
    started, now = read_plan(folder), json.loads(json.dumps(plan))  # JSON turns tuples into lists
    if differ := [key for key in now if started.get(key) != now[key]]:
        key = differ[0]
        foreign = started.keys() - now.keys() - {"commit"} - (also or {}).keys()
        lacking = sorted(now.keys() - started.keys())
        if foreign and lacking:
            raise ValueError(
                f"{folder} holds what something else wrote (its run.json has no {lacking[0]}): "
                "give another folder."
            )
        raise ValueError(
            f"{folder} was started with another {', '.join(differ)} ({key}: "
            f"{_difference(started.get(key), now[key])}). Resume it with the same settings, or "
            "give another folder."
        )


def put(folder: Path, entry: str, value: object) -> None:
    """Change what a folder records and no number depends on."""
    plan = dict(read_plan(folder))
    if plan.get(entry) != value:
        text = json.dumps({**plan, entry: value}, indent=1, ensure_ascii=False)
        write_text(folder / "run.json", text + "\n")


def _clear(folder: Path) -> None:
    """Delete unfinished files of killed writers: those not written to for a day.

    A live writer writes all the time. If one is suspended for a day, it can no longer rename its
    file and raises an error, so no wrong file remains.
    """
    for path in folder.rglob(".*.part"):
        with contextlib.suppress(OSError):  # another process may be clearing too
            age = time.time() - path.stat().st_mtime
            if UNFINISHED.fullmatch(path.name) and age > ABANDONED_AFTER:
                path.unlink()


def read_plan(folder: Path) -> dict[str, Any]:
    """The settings that a folder was started with."""
    path = folder / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a run: it holds no run.json.")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        plan = None
    if not isinstance(plan, dict):
        raise damaged(path)
    return StrictDict(f"{path} has no entry", plan)


def _difference(before: object, now: object) -> str:
    """The innermost part of a setting that differs, after the keys that lead to it."""
    keys: list[str] = []
    while before != now:
        if isinstance(before, dict) and isinstance(now, dict):
            both = sorted(before.keys() | now.keys())
            key = next(key for key in both if before.get(key) != now.get(key))
            before, now = before.get(key), now.get(key)
            keys.append(f"{key} ")
        elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
            before, now = next(pair for pair in zip(before, now, strict=True) if pair[0] != pair[1])
        else:
            break
    return f"{''.join(keys)}was {_short(before)}, now {_short(now)}"


def _short(value: object) -> str:
    """The beginning of a setting, whose whole may be pages."""
    written = repr(value)
    return written if len(written) <= _MOST else f"{written[: _MOST - 4]} ..."

"""What `interp` alone prints in a folder of runs: the runs, and what is next for each.

It reads only names and small JSON files, and loads no library.
"""

import contextlib
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from interp.commands.remembered import is_run, memory_of, run_behind
from interp.runs.refusals import check_exists, check_run

_DEPTH = 2
"""Folders below this one in which runs are looked for."""

_RESULTS = (".csv", ".json", ".safetensors")
"""How names of files with results end."""


def runs_below(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Runs in a folder and in its subfolders, by name."""
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return
    for child in children:
        if is_run(child):
            yield child
        elif depth > 1 and not child.name.startswith("."):
            yield from runs_below(child, depth - 1)


def table_of_runs(folder: Path) -> list[dict[str, Any]]:
    """One row per run: what it is, what it holds, and what to type next, if there is anything."""
    rows = []
    for run in runs_below(folder):
        recorded, (done, total) = memory_of(run).recorded, pieces(run)
        rows.append(
            {
                "run": str(run),
                "model": recorded.get("model"),
                "languages": list(recorded.get("languages", ())),
                "pieces": total if is_counted(run) else done,
                "pieces_of": total,
                "holds": products(run),
                "next": next_step(run),
            }
        )
    return rows


def list_of_runs(folder: Path) -> str:
    """Two lines per run: what it is, and what to type next; empty: there are no runs."""
    lines = []
    for row in table_of_runs(folder):
        labels = " ".join(row["languages"])
        holds = ", ".join(row["holds"]) or f"{row['pieces']} of {row['pieces_of']} pieces"
        lines.append(f"{row['run']}  {row['model'] or 'a model'}, {labels}: {holds}")
        if row["next"]:
            lines.append(f"  next: {row['next']}")
    return "\n".join(lines)


def tags_around(paths: Iterable[Path]) -> dict[str, str]:
    """The tags of labels, from the runs that these paths are in, follow on, or have below them.

    Where two runs differ in a label, the first decides.
    """
    tags: dict[str, str] = {}
    for path in paths:
        around = [run for run in (path, *path.absolute().parents[: _DEPTH + 1]) if is_run(run)]
        alone = [path] if path.suffix == ".json" else []
        for run in (*(around[:1] or alone), *runs_below(path)):
            with contextlib.suppress(ValueError, OSError):  # said by those who need it
                tags = {**memory_of(run).recorded.get("tags", {}), **tags}
    return tags


def is_counted(run: Path) -> bool:
    """Whether a run has read all of its text."""
    return (run / "firing.safetensors").is_file()


def check_finished(run: Path) -> None:
    """Refuse what is no run, and a run that has not read all of its text: how far is it?"""
    check_run(run)
    if is_counted(run) or not is_run(run):  # a damaged one is refused by those who read it
        return
    done, total = pieces(run)
    what = f"{run} is not finished: it has {done} of {total} pieces."
    if done >= total:
        raise ValueError(f"{what[:-1]}, which are not merged. Run interp merge {run}")
    raise ValueError(
        f"{what} Run the same `interp collect` again, or the parts that did not finish; `interp "
        f"status {run}` lists them."
    )


def check_results(path: Path) -> None:
    """Refuse what has no results to draw or to report: nothing, a run that is not finished."""
    check_exists(path)
    if is_run(path):
        check_finished(path)
    elif path.is_dir() and not any(_any(path, f"**/*{end}") for end in _RESULTS):
        check_run(path)


def products(run: Path) -> list[str]:
    """What a run holds by now; nothing before it has read all of its text."""
    if not is_counted(run):
        return []
    results = {
        "selection": _any(run, "neurons*.json"),
        "matrix": _any(run, "deactivate*/matrix.safetensors"),
        "steered texts": _any(run, "steer*/rates.csv"),
        "page": _any(run, "neurons*.html") or (run / "neurons").is_dir(),
        "report": _any(run, "*report*.html"),
    }
    return ["counts", *(name for name, is_there in results.items() if is_there)]


def next_step(run: Path) -> str | None:
    """The command that comes next; None: all have been run."""
    named = shlex.quote(str(run))
    if not is_counted(run):
        done, total = pieces(run)
        again = "run the same interp collect again, to go on"
        return f"interp merge {named}" if done >= total else again
    missing = missing_steps(run)
    return f"interp {missing[0]} {named}" if missing else None


def missing_steps(run: Path) -> list[str]:
    """Commands that can follow on a run that has read its text and have not, in order."""
    kept = _kept(run)
    steps = {
        "find": _any(run, "neurons*.json"),
        "routing": "units" not in run_behind(run) or (run / "routing.csv").is_file(),
        "deactivate": _any(run, "deactivate*/matrix.safetensors"),
        "steer": "moments" not in kept or _any(run, "steer*/rates.csv"),
        "page": "contexts" not in kept or _any(run, "neurons*.html"),
        "report": _any(run, "*report*.html"),
    }
    return [command for command, done in steps.items() if not done]


def pieces(run: Path) -> tuple[int, int]:
    """Pieces that a run has read, and all of them."""
    recorded = memory_of(run).recorded
    total = recorded.get("n_shards", 0) * len(recorded.get("languages", ()))
    return len(list((run / "pieces").glob("*.safetensors"))), total


def _kept(run: Path) -> set[str]:
    """Results besides counts that a run keeps."""
    wanted = run_behind(run).get("wanted")
    return {name for name, value in wanted.items() if value} if isinstance(wanted, dict) else set()


def _any(run: Path, pattern: str) -> bool:
    return any(run.glob(pattern))

"""Refuses folders that are no run's, and loads no library for it: a command asks here first."""

import difflib
import json
import tempfile
from pathlib import Path
from typing import Any, Literal


def check_run(folder: Path) -> None:
    """Refuse a folder without a run of `interp collect`; one that is not finished is a run."""
    check_exists(folder)
    if not any((folder / name).exists() for name in ("run.json", "firing.safetensors")):
        what = f"{folder} is not a run: it holds neither run.json nor firing.safetensors."
        if below := _runs_in(folder):
            raise FileNotFoundError(f"{what} Name one of the runs in it: {', '.join(below)}.")
        raise FileNotFoundError(
            f"{what} Make one with `interp collect`, in Python with interp.collect."
        )
    if follows_a_run(folder):
        raise ValueError(
            f"{folder} holds what another command than `interp collect` measured: give the run "
            f"that it was measured on, or see with `interp status {folder}` how far it is."
        )


def check_exists(path: Path) -> None:
    """Refuse a path at which there is nothing, with the name next to it that is most like it."""
    if path.exists() or path.is_symlink():
        return
    # Without the ending: any two names that share one would look alike.
    beside = {each.stem: each for each in _entries(path.parent) if each.suffix == path.suffix}
    near = difflib.get_close_matches(path.stem, beside, n=1)
    if near:
        raise FileNotFoundError(f"{path} does not exist; did you mean {beside[near[0]]}?")
    raise FileNotFoundError(f"{path} does not exist. Check the name.")


def check_writable(out: Path, kind: Literal["file", "folder", "either"]) -> None:
    """Refuse a place for results in which nothing can be made, before they are computed."""
    if kind == "file" and out.is_dir():
        raise IsADirectoryError(f"{out} is a folder: give the name of a file with --out.")
    if kind == "folder" and out.is_file():
        raise NotADirectoryError(f"{out} is a file: give the name of a folder with --out.")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is not a folder, so {out} cannot be made: name another place with --out."
        )
    try:
        Path(tempfile.mkdtemp(dir=folder)).rmdir()
    except OSError as error:
        raise PermissionError(
            f"{folder} cannot be written to ({error.strerror}): name another place with --out."
        ) from None


def follows_a_run(folder: Path) -> bool:
    """Whether a folder is that of a long loop other than counting, such as a perplexity matrix."""
    if (folder / "firing.safetensors").exists():
        return False
    plan = json_object(folder / "run.json")
    return "model" in plan and not {"wanted", "d_mlp", "n_shards"} & plan.keys()


def damaged(run_json: Path) -> ValueError:
    """What is said of a run.json that cannot be read."""
    return ValueError(
        f"{run_json} is damaged: delete it and run the same command; finished pieces are kept."
    )


def json_object(path: Path) -> dict[str, Any]:
    """The object in a file; empty if it cannot be read, which is said by those who need it."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _runs_in(folder: Path) -> list[str]:
    """Runs directly below a folder."""
    return [
        str(child)
        for child in _entries(folder)
        if (child / "run.json").exists() and not follows_a_run(child)
    ]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []

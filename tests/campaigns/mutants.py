"""Would a test see it? Breaks one line after another and runs the tests that must go red.

    python -m tests.campaigns.mutants                  # all of mutants.toml: about an hour
    python -m tests.campaigns.mutants --only claims    # files with this in their path

Reads   tests/campaigns/mutants.toml: for each file some of its text, that text changed, and tests
Writes  results/mutants.json: the verdict on every mutant and the commit that it was reached at,
        after each one, so that the same command goes on where it was stopped

A mutant is a copy of this checkout with one change. Killed: one of its tests fails, or does not
end. Alive: all pass, so nobody would notice that error. The exit code is 1 if a mutant is alive, if
one is killed although the table gives a reason why it cannot be, or if tests fail on the unchanged
checkout. A verdict counts until the file, its tests or the change differ.

Every run is a process forked after the large packages are loaded, one for each core, so a mutant
costs little more than its tests.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_suffix(".toml")
OURS = ("interp", "experiments", "benchmarks", "babel_training", "figures", "notebooks", "tests")
"""Packages that a run imports from its own copy."""

LEFT_OUT = ("results", "build", "shared")
"""Folders of the checkout that a copy is made without, beside hidden ones."""

SECONDS = 900
"""A run that takes longer is stopped, and its mutant counts as killed."""

KILLED, ALIVE = "killed", "alive"


@dataclass(frozen=True)
class Config:
    """What to run."""

    only: str = ""
    """Mutants of files whose path contains this text."""

    processes: int = os.cpu_count() or 1
    """Runs at a time."""

    root: Path = ROOT
    """The checkout."""

    table: Path = TABLE
    """The mutants."""

    out: Path = Path("results/mutants.json")
    """The verdicts."""


@dataclass(frozen=True)
class Mutant:
    """A change of a file, or none, and the tests to run."""

    tests: tuple[str, ...]
    """Files of tests, or single ones, that see the change."""

    slow: bool
    """Whether tests marked slow are run too."""

    file: str = ""
    """Path of the file from the root."""

    before: str = ""
    """Text that occurs once in the file."""

    after: str = ""
    """What replaces it. The same: an unchanged checkout, on which the tests must pass."""

    reason: str = ""
    """Why no test can see the change."""

    def __str__(self) -> str:
        changed = f"{self.file}: {' '.join(self.before.split())} → {' '.join(self.after.split())}"
        return changed if self.file else f"unchanged: {' '.join(self.tests)}"


def read_table(path: Path) -> tuple[list[str], list[Mutant]]:
    """The packages to load beforehand, and the mutants.

    The table of a file lists groups of mutants with the same tests; a mutant is the text before,
    the text after and, if no test can see it, the reason.
    """
    stored = tomllib.loads(path.read_text(encoding="utf-8"))
    load = stored.pop("load", [])
    return load, [
        Mutant(tuple(group["tests"]), group.get("slow", False), file, *change)
        for file, groups in stored.items()
        for group in groups
        for change in group["mutants"]
    ]


def key_of(mutant: Mutant, root: Path) -> str:
    """Hash of everything that a verdict depends on, other code than the file's apart."""
    paths = [mutant.file, *(test.partition("::")[0] for test in mutant.tests)]
    texts = [(root / path).read_text(encoding="utf-8") for path in paths if path]
    parts = [mutant.file, mutant.before, mutant.after, mutant.slow, *mutant.tests, *texts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- a run


def start(mutant: Mutant, copy: Path) -> int:
    """Run the tests of the mutant in a forked process; returns its id."""
    original = copy / mutant.file
    if mutant.file:
        kept = original.with_suffix(".kept")
        shutil.copy2(original, kept)
        text = original.read_text(encoding="utf-8")
        original.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(copy / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.alarm(SECONDS)
        code = tests_of(mutant, copy)
    finally:
        os._exit(code)


def tests_of(mutant: Mutant, copy: Path) -> int:
    """Exit code of pytest in the copy, with nothing of ours imported from elsewhere."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    os.chdir(copy)
    sys.path[:0] = [str(copy)]
    os.environ["PYTHONPATH"] = str(copy)
    # The compiled form of a changed file must not outlive it.
    sys.dont_write_bytecode = bool(mutant.file)
    marks = "not campaign" if mutant.slow else "not campaign and not slow"
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", marks, *mutant.tests]))


def restore(mutant: Mutant, copy: Path) -> None:
    """Undo the change, with the file's time, so that its compiled form is used again."""
    if mutant.file:
        original = copy / mutant.file
        original.with_suffix(".kept").replace(original)


def run_all(
    groups: Mapping[Mutant, Sequence[Mutant]], copies: Sequence[Path]
) -> Iterator[tuple[Mutant, str]]:
    """Every mutant with its verdict, as many at a time as there are copies.

    Groups are by the unchanged checkout with their tests. It goes first: where those tests fail,
    the group is not run.
    """
    waiting, free, running = list(groups)[::-1], list(copies), dict[int, tuple[Mutant, Path]]()
    while waiting or running:
        while waiting and free:
            mutant, copy = waiting.pop(), free.pop()
            running[start(mutant, copy)] = mutant, copy
        child, status = os.wait()
        mutant, copy = running.pop(child)
        restore(mutant, copy)
        free.append(copy)
        if mutant.file:
            yield mutant, KILLED if status else ALIVE
        elif status:
            log = (copy / "log").read_text(encoding="utf-8", errors="replace")
            print(f"{mutant}\n{log[-3000:]}", flush=True)
        else:
            waiting += groups[mutant][::-1]


# ---------------------------------------------------------------- the campaign


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    mutant: str
    """The change, on one line."""

    verdict: str
    """`KILLED` or `ALIVE`."""

    commit: str
    """Of the checkout, with "-dirty" if it had changes; empty outside a repository."""


def campaign(config: Config, mutants: Sequence[Mutant], folder: Path) -> dict[Mutant, Verdict]:
    """The verdict on each mutant whose tests pass without it; known ones are not run again."""
    stored = json.loads(config.out.read_text()) if config.out.is_file() else {}
    known = {key: Verdict(**fields) for key, fields in stored.items()}
    keys = {mutant: key_of(mutant, config.root) for mutant in mutants}
    new = [mutant for mutant in mutants if keys[mutant] not in known]
    copies = [folder / str(number) for number in range(min(config.processes, len(new)))]
    for copy in copies:
        shutil.copytree(config.root, copy, ignore=partial(left_out, config.root), symlinks=True)
    groups: dict[Mutant, list[Mutant]] = {}
    for mutant in new:
        groups.setdefault(Mutant(mutant.tests, mutant.slow), []).append(mutant)
    commit = commit_of(config.root)
    for mutant, verdict in run_all(groups, copies):
        print(f"{verdict}: {mutant}", flush=True)
        known[keys[mutant]] = Verdict(str(mutant), verdict, commit)
        write(config.out, known)
    return {mutant: known[key] for mutant, key in keys.items() if key in known}


def commit_of(root: Path) -> str:
    """As `Verdict.commit` says. Not by interp, which a run must import from its own copy."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def left_out(root: Path, folder: str, names: Sequence[str]) -> list[str]:
    """Of these names in a folder, those that are not copied."""
    at_root = Path(folder) == root
    return [name for name in names if name[0] == "." or (at_root and name in LEFT_OUT)]


def write(path: Path, verdicts: Mapping[str, Verdict]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    fields = {key: asdict(verdict) for key, verdict in verdicts.items()}
    part.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def report(mutants: Sequence[Mutant], verdicts: Mapping[Mutant, Verdict]) -> bool:
    """Print what became of the mutants; whether all is as the table says."""
    groups: dict[str, list[Mutant]] = {
        "killed": [],
        "alive": [],
        "alive, as the table says": [],
        "killed, though the table says that no test can see it": [],
        "not run, since its tests fail without it": [],
    }
    killed, alive, excused, seen, not_run = groups.values()
    for mutant in mutants:
        verdict = verdicts.get(mutant)
        if verdict is None:
            not_run.append(mutant)
        elif verdict.verdict == ALIVE:
            (excused if mutant.reason else alive).append(mutant)
        else:
            (seen if mutant.reason else killed).append(mutant)
    print(f"\n{len(mutants)} mutants")
    for commit, n in Counter(verdict.commit for verdict in verdicts.values()).items():
        print(f"{n} judged at {commit or 'no commit'}")
    for title, some in groups.items():
        print(f"{len(some)} {title}")
        for mutant in some if some is not killed else ():
            print(f"    {mutant}{mutant.reason and f' ({mutant.reason})'}")
    return not (alive or seen or not_run)


def main(config: Config) -> None:
    load, every = read_table(config.table)
    for package in load:
        import_module(package)
    mutants = [mutant for mutant in every if config.only in mutant.file]
    with tempfile.TemporaryDirectory() as folder:
        verdicts = campaign(config, mutants, Path(folder))
    raise SystemExit(not report(mutants, verdicts))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

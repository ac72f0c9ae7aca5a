"""Faults of disks and of files on them, for `tests.campaigns.faults`."""

import itertools
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.campaigns.disturbed import Bench, Outcome, command, fork, stopped_then_finished
from tests.campaigns.kills import files


def refused_flush(bench: Bench, out: Path) -> Outcome:
    """From some flush on, the disk reports that it is full."""
    left = bench.rng.randrange(2 * len(files(bench.quiet)))

    def work() -> None:
        flush, calls = os.fsync, itertools.count()

        def full(file: int) -> None:
            if next(calls) >= left:
                raise OSError(28, "No space left on device")
            flush(file)

        os.fsync = full
        command(out)

    stopped = stopped_then_finished(bench, out, fork(work, bench.stderr), lambda: None)
    return Outcome(stopped, stopped)


def quota(bench: Bench, out: Path) -> Outcome:
    """The system limits the size of files, as a quota does."""
    most = bench.rng.randrange(1000, max(map(len, files(bench.quiet).values())))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        command(out)

    bench.stderr.write_text("")  # truncated: the limit applies to it too
    stopped = stopped_then_finished(bench, out, fork(work, bench.stderr), lambda: None)
    return Outcome(stopped, stopped)


def full_disk(bench: Bench, out: Path) -> Outcome:
    """A separate file system that is too small at first, and then grows."""
    disk = bench.folder / "disk"
    disk.mkdir(exist_ok=True)
    size = sum(map(len, files(bench.quiet).values()))
    small = f"size={bench.rng.randrange(1, size // 1024)}k"
    if subprocess.call(["mount", "-t", "tmpfs", "-o", small, "tmpfs", str(disk)]):
        return Outcome(0)  # mounting needs root
    try:
        grow = ["mount", "-o", "remount,size=16m", str(disk)]
        child = fork(partial(command, disk / "run"), bench.stderr)
        stopped = stopped_then_finished(
            bench, disk / "run", child, partial(subprocess.check_call, grow)
        )
        shutil.copytree(disk / "run", out)
    finally:
        subprocess.check_call(["umount", str(disk)])
    return Outcome(stopped, stopped)


def damaged(
    damage: Callable[[bytearray, random.Random], bytes], bench: Bench, out: Path
) -> Outcome:
    """A finished piece is damaged while others are missing."""
    shutil.copytree(bench.quiet, out)
    pieces = sorted((out / "pieces").iterdir())
    damaged_path, *missing = bench.rng.sample(pieces, bench.rng.randrange(1, len(pieces)))
    for path in (*missing, out / "firing.safetensors"):
        path.unlink()
    damaged_path.write_bytes(damage(bytearray(damaged_path.read_bytes()), bench.rng))
    child = fork(partial(command, out), bench.stderr)

    def repair() -> None:
        message = bench.stderr.read_text(encoding="utf-8")
        if damaged_path.name not in message or "Delete that file" not in message:
            raise SystemExit(f"{damaged_path.name} is damaged, but the error is: {message}")
        damaged_path.unlink()

    return Outcome(1, stopped_then_finished(bench, out, child, repair))


def truncate(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def flip(content: bytearray, rng: random.Random) -> bytes:
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


FAULTS: tuple[tuple[str, int, Callable[[Bench, Path], Outcome]], ...] = (
    ("disk full (the flush refused)", 20, refused_flush),
    ("disk full (a small file system)", 15, full_disk),
    ("limit on the size of files", 15, quota),
    ("piece cut short", 25, partial(damaged, truncate)),
    ("one bit flipped", 30, partial(damaged, flip)),
)
"""Name, number of runs in a whole campaign, and fault function."""

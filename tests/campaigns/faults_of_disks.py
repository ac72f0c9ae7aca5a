"""Faults of disks and of the files on them; for `tests.campaigns.faults`."""

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
    """From some file on, the disk says that it is full."""
    left = bench.dice.randrange(2 * len(files(bench.quiet)))

    def work() -> None:
        flush, calls = os.fsync, iter(range(10**6))

        def full(file: int) -> None:
            if next(calls) >= left:
                raise OSError(28, "No space left on device")
            flush(file)

        os.fsync = full
        command(out)

    stopped = stopped_then_finished(bench, out, fork(work, bench.said), lambda: None)
    return Outcome(stopped, stopped)


def quota(bench: Bench, out: Path) -> Outcome:
    """The system cuts files off at some length, as a quota does."""
    most = bench.dice.randrange(1000, max(map(len, files(bench.quiet).values())))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        command(out)

    bench.said.write_text("")  # which it may not make longer
    stopped = stopped_then_finished(bench, out, fork(work, bench.said), lambda: None)
    return Outcome(stopped, stopped)


def full_disk(bench: Bench, out: Path) -> Outcome:
    """A file system of its own, too small; then it grows."""
    disk = bench.place / "disk"
    disk.mkdir(exist_ok=True)
    size = sum(map(len, files(bench.quiet).values()))
    small = f"size={bench.dice.randrange(1, size // 1024)}k"
    if subprocess.call(["mount", "-t", "tmpfs", "-o", small, "tmpfs", str(disk)]):
        return Outcome(0)  # only for root
    try:
        grow = ["mount", "-o", "remount,size=16m", str(disk)]
        child = fork(partial(command, disk / "run"), bench.said)
        stopped = stopped_then_finished(
            bench, disk / "run", child, partial(subprocess.check_call, grow)
        )
        shutil.copytree(disk / "run", out)
    finally:
        subprocess.check_call(["umount", str(disk)])
    return Outcome(stopped, stopped)


def damaged(how: Callable[[bytearray, random.Random], bytes], bench: Bench, out: Path) -> Outcome:
    """A finished piece is damaged while others are missing."""
    shutil.copytree(bench.quiet, out)
    pieces = sorted((out / "pieces").iterdir())
    chosen, *missing = bench.dice.sample(pieces, bench.dice.randrange(1, len(pieces)))
    for path in (*missing, out / "firing.safetensors"):
        path.unlink()
    chosen.write_bytes(how(bytearray(chosen.read_bytes()), bench.dice))
    child = fork(partial(command, out), bench.said)

    def repair() -> None:
        shown = bench.said.read_text(encoding="utf-8")
        if chosen.name not in shown or "Delete that file" not in shown:
            raise SystemExit(f"{chosen.name} is damaged, and what is said is: {shown}")
        chosen.unlink()

    return Outcome(1, stopped_then_finished(bench, out, child, repair))


def truncate(content: bytearray, dice: random.Random) -> bytes:
    return bytes(content[: dice.randrange(len(content))])


def flip(content: bytearray, dice: random.Random) -> bytes:
    bit = dice.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


FAULTS: tuple[tuple[str, int, Callable[[Bench, Path], Outcome]], ...] = (
    ("disk full (the flush refused)", 20, refused_flush),
    ("disk full (a small file system)", 15, full_disk),
    ("limit on the size of files", 15, quota),
    ("piece cut short", 25, partial(damaged, truncate)),
    ("one bit flipped", 30, partial(damaged, flip)),
)
"""Names, runs in a whole campaign, and what is done to each."""

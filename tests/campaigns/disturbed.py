"""Runs of `interp collect` in processes of their own, to be disturbed; see `faults`."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from interp import cli


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    place: Path
    """A folder for folders."""

    quiet: Path
    """The folder of a run that nothing disturbed."""

    seconds: float
    """How long that took."""

    dice: random.Random

    def wait(self, most: float = 1.0) -> None:
        """For a random time, at most so much of what a run takes."""
        time.sleep(self.dice.uniform(0, most * self.seconds))

    @property
    def said(self) -> Path:
        return self.place / "said"


@dataclass(frozen=True)
class Outcome:
    """What a fault function did; the run in its folder has ended since."""

    injected: int
    stopped: int = 0
    """How many of them stopped the run with a sentence."""


# ---------------------------------------------------------------- processes


def command(out: Path, *more: str) -> None:
    cli.main(["collect", "--out", str(out), "--moments", *more])


def fork(work: Callable[[], Any], said: Path | None = None) -> int:
    """A process that does this, with the exit code of the command; its errors go to a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    tqdm.set_lock(threading.RLock())  # its own is shared: a killed worker would keep it
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if said is not None:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Exit code; below zero: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> bool:
    """Whether there was still something to kill."""
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL


def finish(out: Path, work: Callable[[Path], Any] = command) -> None:
    """Run to the end; nothing may be in the way."""
    if code := ended(fork(lambda: work(out))):
        raise SystemExit(f"the run in {out} does not end: exit code {code}")


def stopped_then_finished(bench: Bench, out: Path, child: int, repair: Callable[[], Any]) -> int:
    """A run that is stopped by a fault, with one sentence; its cause goes, and the run goes on."""
    code = ended(child)
    shown = bench.said.read_text(encoding="utf-8").strip().splitlines()
    if code not in (0, 2, 130) or (code and len(shown) != 1):
        raise SystemExit(f"exit code {code}, and not one sentence: {shown}")
    repair()
    finish(out)
    return int(code != 0)

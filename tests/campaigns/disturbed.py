"""Runs of `interp collect` in separate processes, into which `faults` injects faults."""

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
    """State that all runs share."""

    folder: Path
    """Folder for the folders of runs."""

    quiet: Path
    """Folder of an undisturbed run."""

    seconds: float
    """Duration of that run."""

    rng: random.Random

    def wait(self, most: float = 1.0) -> None:
        """Sleep for a random time, at most this multiple of a run's duration."""
        time.sleep(self.rng.uniform(0, most * self.seconds))

    @property
    def stderr(self) -> Path:
        return self.folder / "stderr"


@dataclass(frozen=True)
class Outcome:
    """The faults that a fault function injected; its run has ended by then."""

    injected: int
    stopped: int = 0
    """Number of faults that stopped the run with a one-sentence error."""


# ---------------------------------------------------------------- processes


def command(out: Path, *more: str) -> None:
    cli.main(["collect", "--out", str(out), "--moments", "--keep-pieces", *more])


def fork(work: Callable[[], Any], stderr: Path | None = None) -> int:
    """Run `work` in a forked process that ends with its exit code; returns the process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    tqdm.set_lock(
        threading.RLock()
    )  # the default is shared: a killed worker would never release it
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if stderr is not None:
            os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def wait_for(child: int) -> int:
    """Exit code of the process; below zero: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> bool:
    """Kill the process; False if it had already ended."""
    os.kill(child, signal.SIGKILL)
    return wait_for(child) == -signal.SIGKILL


def finish(out: Path, work: Callable[[Path], Any] = command) -> None:
    """Run to the end without faults; any error ends the campaign."""
    if code := wait_for(fork(lambda: work(out))):
        raise SystemExit(f"The run in {out} failed: exit code {code}.")


def stopped_then_finished(bench: Bench, out: Path, child: int, repair: Callable[[], Any]) -> int:
    """Whether the fault stopped the run, with one sentence; then repair it and finish the run."""
    code = wait_for(child)
    lines = bench.stderr.read_text(encoding="utf-8").strip().splitlines()
    if code not in (0, 2, 130) or (code and len(lines) != 1):
        raise SystemExit(f"Exit code {code}; expected one sentence, got: {lines}")
    repair()
    finish(out)
    return int(code != 0)

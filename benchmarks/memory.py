"""Memory of processes, each started for one measurement, because a peak belongs to a process."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

MIB = 1 << 20


def in_subprocess(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a process of its own."""
    return in_subprocesses(work, arguments)[0]


def in_subprocesses(work: Callable[..., Any], *tasks: tuple[Any, ...]) -> list[Any]:
    """What `work` returns for each tuple of arguments, in as many processes at the same time."""
    with ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        processes = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in tasks]
        running = [
            process.submit(work, *task) for process, task in zip(processes, tasks, strict=True)
        ]
        return [future.result() for future in running]


def peak_mib() -> float:
    """The most that this process has held. Linux only.

    `resource` will not do: its peak begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def added_mib(work: Callable[[], Any]) -> float:
    """By how much `work` raises the most that this process has held."""
    before = peak_mib()
    work()
    return peak_mib() - before


def resident_mib() -> float:
    """What this process holds now. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB

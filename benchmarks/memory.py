"""Memory of processes, one per measurement, because a peak belongs to a process."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

MIB = 1 << 20


def in_subprocess(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work`, run in its own process."""
    return in_subprocesses(work, arguments)[0]


def in_subprocesses(work: Callable[..., Any], *tasks: tuple[Any, ...]) -> list[Any]:
    """Results of `work` for each tuple of arguments, in parallel processes."""
    with ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        processes = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in tasks]
        running = [
            process.submit(work, *task) for process, task in zip(processes, tasks, strict=True)
        ]
        return [future.result() for future in running]


def peak_mib() -> float:
    """Peak memory of this process. Linux only.

    Not from `resource`, whose peak starts at that of the parent process.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def added_mib(work: Callable[[], Any]) -> float:
    """How far this process rises above what it holds now while `work` runs. Linux only.

    The peak starts anew: opening a model may have taken more than the work does.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident_mib()
    work()
    return peak_mib() - before


def resident_mib() -> float:
    """Current memory of this process. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB

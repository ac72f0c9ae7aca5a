"""Locks that show which process is working on a file."""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where locks are never seen
    fcntl = None


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Within the block, `lock_owner(path)` names this process.

    The operating system releases the lock when the process ends, however it ends. On a file system
    without locks, no lock is taken and the block runs as usual.
    """
    file = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        start = datetime.now().strftime("%Y-%m-%d %H:%M")
        file.write(f"{socket.gethostname()}, process {os.getpid()}, since {start}")
        file.flush()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if file is not None:
            with contextlib.suppress(OSError):  # on a full disk, writing the text may fail again
                file.close()


def lock_owner(path: Path) -> str | None:
    """Host, process and start time of the process that holds this lock; None: no lock seen.

    Across hosts, this needs a network file system that shares locks, such as NFS 4.
    """
    if fcntl is None:
        return None
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "a process that has just started"
    except OSError:
        return None
    return None


def remove_stale_locks(folder: Path) -> None:
    """Remove the lock files of processes that have ended."""
    for path in folder.glob("*"):
        if lock_owner(path) is None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()

"""Which process is at work on a file: by a lock on a small file beside it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nobody is seen at work
    fcntl = None


@contextmanager
def sign_of_life(path: Path) -> Iterator[None]:
    """Within the block, `who_is_at(path)` finds this process.

    The sign is a lock on a small file, which ends with the process however it ends. On a file
    system without locks there is none, and nothing else changes.
    """
    file = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        began = datetime.now().strftime("%Y-%m-%d %H:%M")
        file.write(f"{socket.gethostname()}, process {os.getpid()}, since {began}")
        file.flush()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if file is not None:
            with contextlib.suppress(OSError):  # a full disk may refuse the text once more
                file.close()


def who_is_at(path: Path) -> str | None:
    """Host, process and beginning of whoever gives a sign of life here; None: nobody that is seen.

    Over a network that needs a file system whose locks reach all hosts, such as NFS 4.
    """
    if fcntl is None:
        return None
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "a process that has just begun"
    except OSError:
        return None
    return None


def clear_signs(folder: Path) -> None:
    """Remove what killed processes left; those that live keep theirs."""
    for path in folder.glob("*"):
        if who_is_at(path) is None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()

"""Progress bars: tqdm's, drawn by ipywidgets in a notebook that has them, as text elsewhere.

They appear when something takes more than two seconds, and leave nothing behind. In a log, which
keeps all that is drawn, a bar is a line a minute.

Without ipywidgets tqdm draws text in a notebook too, but its first import there prints a warning in
a red box. So the whole library imports tqdm from here, and in a notebook `import interp` does too.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm as drawn

__all__ = ["bars_of_transformers", "tqdm"]

SECONDS = 2.0
"""What takes no longer shows no bar."""


LOG_SECONDS = 60.0
"""Between the lines of a bar in a log."""


class tqdm(drawn):
    """A bar that waits before it appears, and disappears at the end."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **_settings(named))

    def found(self, n: int) -> None:
        """Count what an earlier run did: it is drawn as done, and tells nothing of the speed."""
        if not self.disable:
            self.initial += n
            self.n += n
            self.last_print_n += n
            self.update(0)  # draws it


def _settings(named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one of our bars, with those that were named."""
    given = {"delay": SECONDS, "leave": False} | named
    if "file" not in named and _is_log(sys.stderr):
        # miniters: without it, tqdm's monitor redraws a slow bar every ten seconds.
        given |= {"file": LogLines(sys.stderr), "mininterval": LOG_SECONDS, "miniters": 1}
    return given


@contextmanager
def bars_of_transformers() -> Iterator[None]:
    """Within the block, progress bars of transformers are like ours; those of downloads are not."""
    from transformers.utils import logging

    set_tqdm_hook = getattr(logging, "set_tqdm_hook", None)
    if set_tqdm_hook is None:  # before transformers 5, where one file of weights had no bar
        yield
        return

    def like_ours(make: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        named = _settings(named)
        return make(*positional, **named) if previous is None else previous(make, positional, named)

    previous = set_tqdm_hook(like_ours)
    try:
        yield
    finally:
        set_tqdm_hook(previous)


class LogLines:
    """A file that takes what tqdm draws over itself, and writes each drawing as a line."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def write(self, drawing: str) -> None:
        if line := drawing.replace("\x1b[A", "").strip():
            self._log.write(line + "\n")

    def flush(self) -> None:
        self._log.flush()

    def isatty(self) -> bool:
        return False


def _is_log(file: Any) -> bool:
    """Whether a file is neither a terminal nor the output of a notebook's cell."""
    return not file.isatty() and "ipykernel" not in sys.modules

"""Progress bars: tqdm's, drawn by ipywidgets in a notebook that has them, as text elsewhere.

They appear when something takes more than two seconds, and leave nothing behind. In a log, which
keeps all that is drawn, a bar is a line a minute.

Without ipywidgets tqdm draws text in a notebook too, but its first import there prints a warning in
a red box. So the whole library imports tqdm from here, and in a notebook `import interp` does too.
"""

import sys
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm as drawn

__all__ = ["tqdm"]

SECONDS = 2.0
"""What takes no longer shows no bar."""


LOG_SECONDS = 60.0
"""Between the lines of a bar in a log."""


class tqdm(drawn):
    """A bar that waits before it appears, and disappears at the end."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        given = {"delay": SECONDS, "leave": False} | named
        if "file" not in named and _is_log(sys.stderr):
            # miniters: without it, tqdm's monitor redraws a slow bar every ten seconds.
            given |= {"file": LogLines(sys.stderr), "mininterval": LOG_SECONDS, "miniters": 1}
        super().__init__(*positional, **given)


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

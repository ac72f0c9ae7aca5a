"""Progress bars: tqdm's, drawn by ipywidgets in a notebook that has them, as text elsewhere.

They appear when something takes more than two seconds, and leave nothing behind.

Without ipywidgets tqdm draws text in a notebook too, but its first import there prints a warning in
a red box. So the whole library imports tqdm from here, and in a notebook `import interp` does too.
"""

import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm as drawn

__all__ = ["tqdm"]

SECONDS = 2.0
"""What takes no longer shows no bar."""


class tqdm(drawn):
    """A bar that waits before it appears, and disappears at the end."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **{"delay": SECONDS, "leave": False} | named)

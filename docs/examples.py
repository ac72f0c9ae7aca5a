"""Shows the examples of docstrings as Python sessions, for mkdocstrings."""

import re
from typing import Any

import griffe

SESSION = re.compile(r"^>>> .*(?:\n(?!$).*)*", re.MULTILINE)
"""An example: from its first prompt to the next blank line."""


def with_sessions(text: str) -> str:
    """The docstring in Markdown, its examples fenced.

    >>> print(with_sessions("Half of it.\\n\\n>>> half(3)\\n1.5"))
    Half of it.
    <BLANKLINE>
    ```pycon
    >>> half(3)
    1.5
    ```
    """
    return SESSION.sub(lambda match: f"```pycon\n{match[0]}\n```", text)


class Sessions(griffe.Extension):
    """Rewrites every docstring when its object is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = with_sessions(obj.docstring.value)

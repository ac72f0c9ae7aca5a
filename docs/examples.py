"""Shows docstrings as they are meant: examples as Python sessions, <s> as a token."""

import re
from typing import Any

import griffe

SESSION = re.compile(r"^>>> .*(?:\n(?!$).*)*", re.MULTILINE)
"""An example: from its first prompt to the next blank line."""

TOKEN = re.compile(r"<(/?(?:s|bos|eos|pad|unk))>")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


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


def with_tokens(text: str) -> str:
    """Markdown in which the names of tokens, such as <s>, are text and not HTML."""
    parts = CODE.split(text)  # every second part is code
    parts[::2] = [TOKEN.sub(r"&lt;\1&gt;", part) for part in parts[::2]]
    return "".join(parts)


class Sessions(griffe.Extension):
    """Rewrites every docstring when its object is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = with_tokens(with_sessions(obj.docstring.value))

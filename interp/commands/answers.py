"""What a subcommand answers: a table, printed for people or, with --json, for other programs.

A subcommand whose `run` returns its result, a table or what has `to_frame`, has the option. Nothing
here loads a library.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AsJson:
    """A subcommand that writes its table to standard output as JSON, all else to standard error."""

    command: Any
    """The subcommand."""

    def run(self) -> Any:
        with redirect_stdout(sys.stderr):
            answer = self.command.run()
        sys.stdout.write(json_rows(answer))
        return answer


def has_answer(command: type) -> bool:
    """Whether a subcommand returns a result, and so has --json."""
    return vars(command)["run"].__annotations__.get("return") is not None


def is_sound(answer: object) -> bool:
    """Whether a result allows to go on; only that of the doctor can forbid it."""
    return bool(getattr(answer, "ok", True))


def json_rows(answer: Any) -> str:
    """A list of one object per row, a line each; what is no finite number is null.

    None, such as after --dry-run, is an empty list.
    """
    rows = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in _rows(answer)]
    return "[" + ",\n ".join(rows) + "]\n"


def _rows(answer: Any) -> Iterator[dict[str, Any]]:
    table: Any = answer.to_frame() if hasattr(answer, "to_frame") else answer
    records = table.to_dict("records") if hasattr(table, "to_dict") else table or []
    for row in records:
        yield {str(name): _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, Sequence):
        return [_plain(part) for part in value]
    if hasattr(value, "item"):  # a number of NumPy's
        return _plain(value.item())
    return str(value) if hasattr(value, "parts") else None  # a path; pandas' <NA>

"""A judge of answers that was named on the command line, whose ratings survive a kill."""

import json
import re
import sys
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

from interp.evaluations.steered_answers import Judge


def named_judge(name: str) -> Judge:
    """The function that MODULE:FUNCTION names; a module may lie in the current folder."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    why = "that is a function of a question and an answer that returns a number from 0 to 1"
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise ValueError(
            f"{name!r} names no judge: give MODULE:FUNCTION, such as judges:rate, {why}."
        )
    try:
        judge: Any = resolve_name(name)
    except Exception as error:  # a module of the user's may fail in any way
        raise ValueError(
            f"The judge {name} cannot be imported ({type(error).__name__}: {error}): give "
            f"MODULE:FUNCTION of a module in this folder or an installed package, {why}."
        ) from error
    if not callable(judge):
        raise ValueError(f"{name} is {type(judge).__name__}, no function: name one, {why}.")
    return cast(Judge, judge)


class KeptRatings:
    """A judge that asks another one, and keeps its ratings in a file, one line for each.

    Made again with the same file, it asks only for what is missing. To have everything rated again,
    delete the file.
    """

    def __init__(self, judge: Judge, path: Path) -> None:
        self._judge, self._path = judge, path
        self._ratings: dict[tuple[str, str], float] = {}
        whole = b""
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            row = _row(line)
            if row is None:
                break  # torn by a kill: it is asked for again
            self._ratings[row["question"], row["answer"]] = row["rating"]
            whole += line
        if path.is_file() and len(whole) < path.stat().st_size:
            path.write_bytes(whole)

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return pair in self._ratings

    def __call__(self, question: str, answer: str) -> Any:
        if (question, answer) not in self._ratings:
            rating = self._judge(question, answer)
            if not isinstance(rating, Real) or not 0 <= float(rating) <= 1:
                return rating  # for `judged_by` to refuse
            self._ratings[question, answer] = float(rating)
            row = {"question": question, "answer": answer, "rating": float(rating)}
            with self._path.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
        return self._ratings[question, answer]


def _row(line: bytes) -> Mapping[str, Any] | None:
    """What a line holds; None: it is not whole."""
    try:
        row = json.loads(line)
        return row if line.endswith(b"\n") and row.keys() >= {"question", "answer"} else None
    except (ValueError, AttributeError):
        return None

"""Pages with code: every block runs, both halves of a pair give the same, and lines are counted."""

import io
import re
import tokenize
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "from_a_cache.md"
IMPORTS = """
import itertools
import matplotlib.pyplot as plt
import scipy.stats
import torch
from transformer_lens import patching
"""
AT_MOST = 1 / 3
"""Of the lines of plain code."""


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Heading, kind and code of each block."""
    found, heading = [], ""
    for match in re.finditer(r"^## ([^\n]+)$|^```python (\w+)\n(.*?)^```$", text, re.M | re.S):
        heading = match[1] or heading
        if match[2]:
            found.append((heading, match[2], match[3]))
    return found


def n_lines(code: str) -> int:
    """Lines with code: no blank lines, and none that are only a comment."""
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    rows = [(token.start[0], token.end[0]) for token in tokens if token.type not in empty]
    return len({row for first, last in rows[:-1] for row in range(first, last + 1)})


def counted() -> dict[str, tuple[int, int]]:
    """Lines of both halves of each pair."""
    numbers: dict[str, dict[str, int]] = {}
    for heading, kind, code in blocks(PAGE.read_text(encoding="utf-8")):
        if kind != "setup":
            numbers.setdefault(heading, {})[kind] = n_lines(code)
    return {heading: (pair["polyneuron"], pair["plain"]) for heading, pair in numbers.items()}


def table(numbers: dict[str, tuple[int, int]]) -> str:
    rows = [f"| {name} | {a} | {b} | {a / b:.2f} |" for name, (a, b) in numbers.items()]
    return "\n".join(
        ["| | polyneuron | TransformerLens and torch | share |", "|---|---|---|---|", *rows]
    )


def test_a_pair_takes_at_most_a_third_of_the_lines():
    numbers = counted()
    assert len(numbers) == 4
    assert {name: pair for name, pair in numbers.items() if pair[0] > AT_MOST * pair[1]} == {}


def test_the_table_of_lines_is_right():
    (stored,) = re.findall(r"<!-- lines -->\n(.*?)\n<!-- /lines -->", PAGE.read_text("utf-8"), re.S)
    assert stored == table(counted()), f"put this between the marks:\n{table(counted())}"


def test_lines_are_counted_as_a_reader_would():
    assert n_lines("a = 1  # one\n\n# no code\nb = (\n    2\n)\n") == 4
    assert n_lines("") == 0


@pytest.fixture(scope="module")
def ran() -> dict[str, Any]:
    """What all blocks of the page leave, run from top to bottom in one namespace."""
    space: dict[str, Any] = {}
    with mpl.rc_context({"backend": "agg"}), torch.no_grad(), redirect_stderr(io.StringIO()):
        exec(IMPORTS, space)
        for _, _, code in blocks(PAGE.read_text(encoding="utf-8")):
            exec(code, space)
    return space


def test_rates_and_intervals_of_both_halves_are_equal(ran: dict[str, Any]):
    assert torch.equal(ran["stats"].rate, ran["rate"])
    assert torch.equal(ran["stats"].tokens, ran["n_tokens"])
    for end in ("low", "high"):
        assert getattr(ran["mean"], end).allclose(ran[end], atol=1e-12)
    assert (ran["low"] < ran["high"]).all()


def test_both_halves_select_the_same_neurons(ran: dict[str, Any]):
    assert torch.equal(ran["neurons"].mask, ran["lape"])
    assert ran["lape"].any(dim=0).sum() == ran["n_chosen"]


def test_both_halves_switch_the_same_off(ran: dict[str, Any]):
    assert ran["loss"] == pytest.approx(ran["plain_loss"], abs=1e-5)
    assert ran["loss"] > ran["script"](ran["bridge"]) + 0.05  # there was something to lose


def test_both_halves_patch_alike(ran: dict[str, Any]):
    result = ran["result"]
    before = result.unpatched[0] - result.unpatched[1]
    change = result.difference("Tuesday", "Saturday")[0, 0] - before
    assert change.shape == ran["change"].shape
    assert (change - ran["change"]).abs().max() < 1e-3
    assert change.abs().max() > 1
    assert len(ran["axes"].get_yticklabels()) == change.shape[1]
    assert ran["ax"].get_ylabel() == "Span"

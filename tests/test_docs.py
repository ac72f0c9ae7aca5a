"""README and the pages of docs/: their code runs, their links lead somewhere, and what follows from
the code or from results is as it is there."""

import ast
import io
import os
import re
import shlex
import textwrap
import tokenize
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
import yaml

from docs import make
from interp import cli

ROOT = Path(__file__).parents[1]
DOCS, INTERP = ROOT / "docs", ROOT / "interp"
README = ROOT / "README.md"
PAGE = DOCS / "guides" / "beside_transformerlens.md"
GENERATED = make.pages()
WRITTEN = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
WRITTEN += [path for path in sorted(DOCS.rglob("*.md")) if path not in GENERATED]

IMPORTS = """
import itertools
import matplotlib.pyplot as plt
import scipy.stats
import torch
from transformer_lens import patching
"""
AT_MOST = 1 / 3
"""Of the lines of plain code."""

SMALLER = {
    README: {
        '"block_length": 64, "n_shards": 5': '"block_length": 32, "n_shards": 2',
        **{"=1280": "=640", "=320": "=64"},
    },
    PAGE: {"], 48)": "], 36)", "(0, 48, 12)": "(0, 36, 12)"},
}
"""Amounts of text that a page's code is run with here, for its own."""

NOT_RUN = "sketch"
"""Code that needs what the tests do not have, such as a detector from the network."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def smaller(path: Path) -> str:
    """The page with less text; an amount that is not on it any more fails."""
    page = path.read_text(encoding="utf-8")
    for amount, fewer in SMALLER.get(path, {}).items():
        assert amount in page, amount
        page = page.replace(amount, fewer)
    return page


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Heading, kind and code of each block of Python."""
    found, heading = [], ""
    for match in re.finditer(r"^## ([^\n]+)$|^```python ?(\w*)\n(.*?)^```$", text, re.M | re.S):
        heading = match[1] or heading
        if match[3]:
            found.append((heading, match[2], match[3]))
    return found


WITH_CODE = [path for path in WRITTEN if blocks(path.read_text(encoding="utf-8")) and path != PAGE]


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_CODE, ids=name)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "interp.page"}
    code = [code for _, kind, code in blocks(smaller(path)) if kind != NOT_RUN]
    quiet = (redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()))
    with mpl.rc_context({"backend": "agg"}), torch.no_grad(), quiet[0], quiet[1]:
        for block in code:
            exec(compile(block, name(path), "exec"), space)
        plt.close("all")


def command_lines(text: str) -> list[str]:
    """The lines of `interp` in code, continued lines joined."""
    fenced = re.findall(r"^```(?:sh|bash)\n(.*?)^```$", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?:(?<=\n\n)|\A)(?: {4}[^\n]*\n)+", prose)
    code = "\n".join(map(textwrap.dedent, [*fenced, *indented])).replace("\\\n", " ")
    return [line for line in code.splitlines() if line.startswith("interp ")]


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_the_command_lines_of_a_page_are_understood(path: Path):
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"`interp ([a-z]+)", text)) <= set(cli.COMMANDS)
    for line in command_lines(text):
        arguments = shlex.split(re.sub(r"\$\w+", "1", line), comments=True)[1:]
        if "--help" not in arguments:
            assert cli.chosen(arguments), line


def test_a_command_line_with_a_mistake_is_noticed():
    (line,) = command_lines("Text:\n\n    interp find runs --fractoin 0.01   # no such option\n\n")
    with redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
        cli.chosen(shlex.split(line, comments=True)[1:])
    continued = command_lines("```bash\ninterp collect a \\\n  --out b\n```\n")
    assert continued == ["interp collect a    --out b"]
    assert command_lines("prose\n    interp is no command here\n") == []


# ---------------------------------------------------------------- links and files


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in headings}


def broken(path: Path, text: str) -> list[str]:
    """The links of a page to files or headings that are not there."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)
    missing = []
    for address in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", address):
            continue
        file, _, anchor = address.partition("#")
        target = (path.parent / file).resolve() if file else path
        there = target.is_file() and (
            not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
        )
        missing += [] if there else [address]
    return missing


@pytest.mark.parametrize("path", [*WRITTEN, *(p for p in GENERATED if p.suffix == ".md")], ids=name)
def test_every_link_leads_somewhere(path: Path):
    assert broken(path, path.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found():
    text = "[a](nothing.md) [b](README.md) [c](README.md#set-up) [d](README.md#nowhere) `[e](x)`"
    assert broken(README, text) == ["nothing.md", "README.md#nowhere"]


def test_the_readme_is_read_in_one_sitting():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_site_lists_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = {path for section in nav for _, path in make.entries(*section.values())}
    here = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert here - listed == set()
    elsewhere = {"index.md", "contributing.md", "changelog.md", "security.md", "guides/figures.md"}
    results = {f"results/{page}.md" for page in ("studies", "log", "babel", "benchmarks")}
    books = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert listed - here == elsewhere | results | books


@pytest.mark.parametrize("path", GENERATED, ids=name)
def test_a_page_that_follows_from_the_code_is_as_it_says(path: Path):
    assert path.read_text(encoding="utf-8") == GENERATED[path], "run python docs/make.py"


def test_every_public_name_and_every_option_has_its_place():
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert all(f"### interp {command}\n" in text for command in cli.COMMANDS)
    assert "| `--until-stable X` |" in text
    top = (DOCS / "reference" / "interp.md").read_text(encoding="utf-8")
    assert "::: interp.collect\n" in top
    assert "::: interp.select_by_entropy\n" in top
    assert "::: interp.counting\n" not in top  # a folder has a page of its own


def raised() -> list[str]:
    """The sentences of all errors that the library raises, {} where something is filled in."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in INTERP.rglob("*.py")]
    strings = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    filled = [
        "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in string.values)
        for string in strings
    ]
    plain = [
        node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)
    ]
    return [*filled, *(text for text in plain if isinstance(text, str))]


@pytest.mark.slow
def test_every_refusal_that_is_explained_is_one_of_ours():
    page = (DOCS / "guides" / "when_it_refuses.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    sentences = raised()
    assert len(set(quoted)) == len(quoted) >= 20
    assert [words for words in quoted if not any(words in text for text in sentences)] == []


def test_what_workflows_run_is_here():
    jobs = [
        job
        for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    ]
    lines = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    made = [line.split()[1] for line in lines if line.startswith("make ")]
    assert ".ci/run" in lines
    assert {"test", "wheel", "docs"} == set(made) <= set(targets)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest
    assert {cited["version"], newest[1]} == {project["version"]}


# ---------------------------------------------------------------- beside plain TransformerLens


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
        for _, _, code in blocks(smaller(PAGE)):
            exec(code, space)
        plt.close("all")
    return space


@pytest.mark.slow
def test_rates_and_intervals_of_both_halves_are_equal(ran: dict[str, Any]):
    assert torch.equal(ran["stats"].rate, ran["rate"])
    assert torch.equal(ran["stats"].tokens, ran["n_tokens"])
    for end in ("low", "high"):
        assert getattr(ran["mean"], end).allclose(ran[end], atol=1e-12)
    assert (ran["low"] < ran["high"]).all()


@pytest.mark.slow
def test_both_halves_select_the_same_neurons(ran: dict[str, Any]):
    assert torch.equal(ran["neurons"].mask, ran["lape"])
    assert ran["lape"].any(dim=0).sum() == ran["n_chosen"]


@pytest.mark.slow
def test_both_halves_switch_the_same_off(ran: dict[str, Any]):
    assert ran["loss"] == pytest.approx(ran["plain_loss"], abs=1e-5)
    assert ran["loss"] > ran["script"](ran["bridge"]) + 0.05  # there was something to lose


@pytest.mark.slow
def test_both_halves_patch_alike(ran: dict[str, Any]):
    result = ran["result"]
    before = result.unpatched[0] - result.unpatched[1]
    change = result.difference("Tuesday", "Saturday")[0, 0] - before
    assert change.shape == ran["change"].shape
    assert (change - ran["change"]).abs().max() < 1e-3
    assert change.abs().max() > 1
    assert len(ran["axes"].get_yticklabels()) == change.shape[1]
    assert ran["ax"].get_ylabel() == "Span"

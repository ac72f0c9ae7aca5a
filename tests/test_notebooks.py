"""Each notebook is what its text says, holds nothing of a machine, and runs from top to bottom.

They run in a kernel of their own, without a network, each as one test.
"""

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from notebooks.make import FOLDER, GALLERY, NAMES, build, keep_pictures, run, text_of
from tests.conftest import LOCK

LONG = ("walkthrough", "compare_methods", "patching")
"""What they do is done by tests of its own; whether they still run, `make campaigns` tells."""

LARGEST = 600_000
"""Bytes of a file with pictures: what GitHub still shows at once."""

MACHINE = re.compile(r"(?<![\w.])(/(?:home|root|tmp|work|usr|opt|var|private|Users)/|[A-Z]:\\)")
"""How paths begin that are there on one machine only."""


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT)


def shown(notebook) -> str:
    """All that a reader sees of the outputs, pictures left out."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            parts.append(str(output.get("text", "")))
            parts += [str(each) for kind, each in output.get("data", {}).items() if "text" in kind]
    return "\n".join(parts)


def sources(notebook) -> list[tuple[str, str, str]]:
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_the_four_notebooks():
    assert set(NAMES) == {"walkthrough", "patching", "your_own_model", "compare_methods"}
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_in_step_with_its_text(name: str):
    """Otherwise: python notebooks/make.py, with --run for the one that keeps its pictures."""
    built, stored = build(FOLDER / f"{name}.py"), read(name)
    assert sources(stored) == sources(built)
    if name != GALLERY:
        assert (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8") == text_of(built)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_reads_back_as_the_text_it_was_made_from(name: str):
    def body(text: str) -> str:
        """Without the head, and without the blank lines that a formatter puts between cells."""
        return re.sub(r"\n{2,}", "\n\n", text.split("# ---\n")[-1]).strip()

    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert body(jupytext.writes(read(name), "py:percent")) == body(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_holds_no_paths_no_messages_and_no_counts(name: str):
    notebook = read(name)
    assert MACHINE.findall(shown(notebook)) == []
    for cell in notebook.cells:
        assert cell.get("execution_count") is None or name == GALLERY
        assert name == GALLERY or not cell.get("outputs")
        assert all(output.get("name") != "stderr" for output in cell.get("outputs", ()))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


def test_the_gallery_shows_its_pictures():
    kinds = [kind for output in _outputs(read(GALLERY)) for kind in output.get("data", {})]
    assert kinds.count("image/png") >= 4


def test_paths_of_a_machine_are_caught():
    for text in ("in /home/me/runs", "'/tmp/x'", "C:\\Users", "(/Users/me)"):
        assert MACHINE.search(text), text
    for text in ("runs/tmp/x", "en/de", "https://example.org/home/", "nats/token"):
        assert not MACHINE.search(text), text


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_imports_public_names_and_defines_nothing_long(name: str):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "interp":
            assert not any(each.name.startswith("_") for each in node.names)
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), node.attr
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 15, node.name


@pytest.mark.parametrize("name", NAMES)
def test_no_number_is_typed_into_the_words_of_a_notebook(name: str):
    """Years, headings, names such as 7B, and code aside: results are printed by cells."""
    for cell in build(FOLDER / f"{name}.py").cells:
        if cell.cell_type != "markdown":
            continue
        lines = [line for line in cell.source.splitlines() if not line.startswith(("#", "    "))]
        words = re.sub(r"`[^`]*`|\(?\b(19|20)\d\d\)?", "", " ".join(lines))
        assert re.findall(r"\d+[.,]\d+|\d+ ?%", words) == [], cell.source


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.campaign) if name in LONG else name  # minutes each
        for name in NAMES
    ],
)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = run(build(FOLDER / f"{name}.py"), tmp_path)
    said = [
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
    ]
    # Bars of what takes long here; anything else is a warning that a reader would see.
    kept = [line for line in "".join(said).splitlines() if line.strip() and "%|" not in line]
    assert kept == [] or not LOCK.is_file(), kept
    assert any("image/png" in output.get("data", {}) for output in _outputs(notebook))
    assert MACHINE.findall(shown(keep_pictures(notebook))) == []
    assert list(tmp_path.iterdir()) == []  # nothing is written where it was started


def _outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]

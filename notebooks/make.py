"""Write each notebook, `name.ipynb`, from `name.py`, which is the one to edit.

    python notebooks/make.py                   # those that are kept without outputs
    python notebooks/make.py --run             # and the walkthrough, run, with its pictures

A notebook is built from nothing but its text, so that the same text gives the same file.
"""

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NAMES = tuple(path.stem for path in sorted(HERE.glob("*.py")) if path != Path(__file__))
GALLERY = "walkthrough"
"""The notebook that may keep what its cells gave."""


def build(path: Path) -> Any:
    """The notebook of a text, with nothing run."""
    notebook = jupytext.read(path)
    notebook.metadata.pop("jupytext")  # pairing is our business, and not the reader's
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem}-{number}"
        cell.metadata.clear()
    return notebook


def run(notebook: Any, folder: Path, cell_seconds: int = 300) -> Any:
    """Run all cells in a fresh kernel; the first that fails raises, with its traceback."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=cell_seconds, resources=resources).execute()
    return notebook


def keep_pictures(notebook: Any) -> Any:
    """Leave tables, text and pictures, without messages, times and counts."""
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    return notebook


def text_of(notebook: Any) -> str:
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def main() -> None:
    for name in NAMES:
        notebook = build(HERE / f"{name}.py")
        if name == GALLERY:
            if "--run" not in sys.argv:
                continue  # what it shows would be lost
            notebook = keep_pictures(run(notebook, HERE))
        (HERE / f"{name}.ipynb").write_text(text_of(notebook), encoding="utf-8")


if __name__ == "__main__":
    main()

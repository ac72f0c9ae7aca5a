"""Write each notebook, `name.ipynb`, from `name.py`, which is the file to edit, as it ran.

python notebooks/make.py                    # all: some minutes
python notebooks/make.py 00_from_a_cache    # only this one
"""

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NAMES = tuple(path.stem for path in sorted(FOLDER.glob("*.py")) if path != Path(__file__))


def build(path: Path) -> Any:
    """The notebook of a text file, not run."""
    notebook = jupytext.read(path)
    notebook.metadata.pop("jupytext")  # readers do not need the pairing
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem}-{number}"
        cell.metadata.clear()
    return notebook


def run(notebook: Any, folder: Path, cell_seconds: int = 300) -> Any:
    """Run all cells in a fresh kernel; raise at the first that fails, with its traceback."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=cell_seconds, resources=resources).execute()
    return notebook


def keep_pictures(notebook: Any) -> Any:
    """Remove messages, times and execution counts; keep tables, text and pictures."""
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def text_of(notebook: Any) -> str:
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def main() -> None:
    asked = sys.argv[1:]
    if unknown := sorted(set(asked) - set(NAMES)):
        raise SystemExit(f"There is no notebook {unknown[0]}, only {', '.join(NAMES)}.")
    for name in asked or NAMES:
        notebook = keep_pictures(run(build(FOLDER / f"{name}.py"), FOLDER, 3600))
        (FOLDER / f"{name}.ipynb").write_text(text_of(notebook), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Redraw every figure of this folder from its table, and print the files that changed.

python figures/redraw.py               # this folder
python figures/redraw.py FOLDER ...    # others
"""

import sys
from pathlib import Path

import matplotlib as mpl

from interp import plots


def main(folders: list[Path]) -> None:
    mpl.use("agg")  # no windows
    tables = sorted(path for folder in folders for path in folder.glob("*.csv"))
    changed = [path for table in tables for path in plots.redraw(table)]
    for path in changed:
        sys.stdout.write(f"changed: {path}\n")
    sys.stdout.write(f"Figures drawn: {len(tables)}. Files changed: {len(changed)}.\n")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]] or [Path(__file__).parent])

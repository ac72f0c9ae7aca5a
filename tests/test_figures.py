"""The figures of this repository are what their tables give, pixel by pixel."""

import io
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from interp import plots

FOLDER = Path(__file__).parents[1] / "figures"
TABLES = sorted(FOLDER.glob("*.csv"))
CLOSE = 1.0
"""Grey levels of 256 that two drawings may differ by on average: another version of matplotlib sets
the last pixel of a letter differently; a bar that moves by a tenth is far more."""


def pixels(drawing: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(drawing)).convert("RGB"), dtype=float)


def difference(a: bytes, b: bytes) -> float:
    one, other = pixels(a), pixels(b)
    # A label that is a pixel wider moves the edge of the whole; what both have is compared.
    if max(abs(m - n) for m, n in zip(one.shape, other.shape, strict=True)) > 4:
        return 256.0
    height, width = (min(m, n) for m, n in zip(one.shape[:2], other.shape[:2], strict=True))
    return float(np.abs(one[:height, :width] - other[:height, :width]).mean())


def redrawn(table: Path, place: Path) -> bytes:
    mpl.use("agg")
    copy = Path(shutil.copy(table, place))
    plots.redraw(copy)
    return copy.with_suffix(".png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=[path.stem for path in TABLES])
def test_a_figure_is_what_its_table_gives(table: Path, tmp_path: Path):
    assert difference(table.with_suffix(".png").read_bytes(), redrawn(table, tmp_path)) < CLOSE


def test_the_main_kinds_of_figure_are_here():
    here = {path.stem.split("-")[0] for path in TABLES}
    of_reports = {
        "accuracy_lost",
        "attribution_sums",
        "chosen_experts",
        "explanation",
        "neuron_rates",
        "rate_change",
        "rate_change_by_label",
        "routing",
    }  # of what `interp` writes, and no study
    assert here | of_reports == set(plots.FIGURES)


def test_a_number_that_changes_is_seen(tmp_path: Path):
    table = FOLDER / "layer_profile-babel.csv"
    frame = plots.read_table(table)
    most = frame["neurons"].idxmax()
    frame.loc[most, "neurons"] = int(1.3 * frame.loc[most, "neurons"])
    frame.to_csv(tmp_path / table.name, index=False)
    before = table.with_suffix(".png").read_bytes()
    (tmp_path / "new").mkdir()
    assert difference(before, redrawn(tmp_path / table.name, tmp_path / "new")) > CLOSE

"""Figures on disk: a table draws the same bytes again, and what cannot be drawn is refused."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from interp import plots
from tests.figure_tables import (
    TABLES,
    every_figure,
    fraction_table,
    matrix_table,
    overlap_rows,
    profile_table,
    sharing_table,
)


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


@pytest.mark.slow
@every_figure
def test_a_table_draws_the_same_bytes_again(name: str, tmp_path: Path):
    path, before = tmp_path / f"{name}-small.1", plt.get_fignums()
    plots.save(TABLES[name](), path)
    files = [tmp_path / f"{path.name}.{ending}" for ending in ("csv", "pdf", "png")]
    table, *drawings = (each.read_bytes() for each in files)
    assert sorted(tmp_path.iterdir()) == files
    files[1].write_bytes(b"something else")
    with plt.style.context("dark_background"):
        assert plots.redraw(files[0]) == (files[1],)
    assert [each.read_bytes() for each in files] == [table, *drawings]
    assert plt.get_fignums() == before


@pytest.mark.slow
def test_a_fresh_process_with_other_hashes_draws_the_same_bytes(tmp_path: Path):
    plots.save(matrix_table(), tmp_path / "perplexity_matrix")
    script = Path(__file__).parents[1] / "figures" / "redraw.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        env={
            "PYTHONHASHSEED": "7",
            "PATH": "",
            "HOME": str(tmp_path),
            "MPLCONFIGDIR": mpl.get_cachedir(),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "Figures drawn: 1. Files changed: 0.\n", done.stderr


def test_drawings_embed_their_fonts_and_hold_no_date_and_no_version(tmp_path: Path):
    plots.save(profile_table(), tmp_path / "layer_profile")
    pdf = (tmp_path / "layer_profile.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"Date" not in pdf
    assert b"atplotlib" not in pdf + (tmp_path / "layer_profile.png").read_bytes()
    width = int.from_bytes((tmp_path / "layer_profile.png").read_bytes()[16:20])
    assert width == round(300 * plots.SINGLE)


def test_no_style_is_left_behind():
    before = dict(mpl.rcParams)
    plots.overlap(overlap_rows())
    plots.layer_profile(profile_table(), plt.subplots()[1])
    assert dict(mpl.rcParams) == before


def test_a_name_that_says_no_figure_is_refused_and_nothing_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match="'matrix' does not say which figure it is: begin it with"):
        plots.save(matrix_table(), tmp_path / "matrix")
    with pytest.raises(ValueError, match="no column off"):
        plots.save(matrix_table().drop(columns="off"), tmp_path / "perplexity_matrix")
    with pytest.raises(ValueError, match="no rows"):
        plots.save(pd.DataFrame(), tmp_path / "overlap")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="Make it with"):
        plots.redraw(tmp_path / "overlap.csv")


@pytest.mark.slow
def test_several_panels_are_saved_alike(tmp_path: Path):
    for name in ("one", "other"):
        with plots.own_style():
            figure, axes = plt.subplots(1, 2, figsize=(plots.DOUBLE, 2.4), layout="constrained")
            plots.layer_profile(profile_table(), axes[0])
            plots.sharing(sharing_table(), axes[1])
        plots.save_figure(figure, tmp_path / name)
    for ending in ("pdf", "png"):
        one, other = (tmp_path / f"{name}.{ending}" for name in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


# ---------------------------------------------------------------- at the door


@every_figure
def test_tables_that_cannot_be_drawn_are_refused_in_one_sentence(name: str):
    draw, table = plots.FIGURES[name], TABLES[name]()
    first = {"language_switching": "good", "switching_against_size": "good", "sharing": "share"}
    first |= {"perplexity_matrix": "increase", "overlap": "jaccard", "layer_profile": "neurons"}
    first |= {"loss_against_fraction": "own_minus_others", "curve_of_training": "increase"}
    first |= {"patching": "change", "moved_by_layer": "moved", "lens": "probability"}
    first |= {"attribution_sums": "value", "accuracy_lost": "drop", "explanation": "kept"}
    first |= {"neuron_rates": "rate", "routing": "divergence"}
    first |= {"chosen_experts": "preference", "rate_change": "change"}
    first |= {"rate_change_by_label": "difference"}
    value = first[name]
    with pytest.raises(ValueError, match=f"The table for {name} has no rows"):
        draw(table.iloc[:0])
    with pytest.raises(ValueError, match=f"has no column {value}; it has "):
        draw(table.drop(columns=value))
    with pytest.raises(ValueError, match=rf"Column {value} .* is empty"):
        draw(table.assign(**{value: math.nan}))
    with pytest.raises(ValueError, match=rf"Column {value} .* holds text"):
        draw(table.assign(**{value: "much"}))
    with pytest.raises(ValueError, match=rf"Column {value} .* infinite"):
        draw(table.assign(**{value: math.inf}))
    with pytest.raises(ValueError, match=r"more than one row for .*: keep one row per mark"):
        draw(pd.concat([table, table.tail(1)]))
    assert plt.get_fignums() == []


def test_a_matrix_of_the_model_as_it_is_and_a_blank_language_are_refused():
    table = matrix_table()
    with pytest.raises(ValueError, match="no rows"):
        plots.perplexity_matrix(table[table["off"] == "nothing"])
    with pytest.raises(ValueError, match=r"Column language .* is blank"):
        plots.layer_profile(profile_table().replace({"language": {"de": math.nan}}))
    with pytest.raises(ValueError, match="dormant is not a category of sharing: give silent"):
        plots.sharing(sharing_table().replace({"category": {"silent": "dormant"}}))
    with pytest.raises(ValueError, match="zero or less"):
        plots.loss_against_fraction(fraction_table().assign(fraction=[0.0] * 3 + [0.1] * 3))

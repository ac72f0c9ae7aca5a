"""Figures: what is on the Axes is what is in the table, and a table draws the same bytes again."""

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import same_color, to_hex
from matplotlib.patches import Rectangle

from interp import plots
from interp.languages import LANGUAGES
from interp.plots import fonts
from interp.selection import NeuronSelection
from interp.stability import chance_jaccard
from interp.uncertainty import Estimate

CODES = ("en", "de", "ja")


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


# ---------------------------------------------------------------- tables made by hand


def matrix_table() -> pd.DataFrame:
    rise = {"en": (0.060, 0.009, -0.0001), "de": (0.003, 0.151, 0.002), "ja": (0.011, -0.02, 0.086)}
    rows = []
    for off, read in itertools.product(("nothing", *CODES), CODES):
        value = 0.0 if off == "nothing" else rise[off][CODES.index(read)]
        random = math.nan if off == "nothing" else 0.01 * (1 + CODES.index(off)) + 0.001 * len(read)
        rows.append(
            {
                "off": off,
                "read": read,
                "own": off == read,
                "neurons": 0 if off == "nothing" else 1000 * len(off) + CODES.index(off),
                "increase": value,
                "increase_low": value - 0.004,
                "increase_high": value + 0.006,
                "random": random,
                "random_low": random - 0.002,
                "random_high": random + 0.002,
            }
        )
    return pd.DataFrame(rows)


def overlap_rows() -> pd.DataFrame:
    chance = {"chance": 0.01, "chance_low": 0.0, "chance_high": 0.04}
    none = dict.fromkeys(chance, math.nan)
    return pd.DataFrame(
        [
            {"language": "en", "other": "en", "common": 40, "jaccard": 1.0, **none},
            {"language": "en", "other": "de", "common": 9, "jaccard": 0.11, **chance},
            {"language": "ja", "other": "en", "common": 2, "jaccard": 0.03, **chance},
            {"language": "de", "other": "de", "common": 50, "jaccard": 1.0, **none},
            {"language": "de", "other": "ja", "common": 4, "jaccard": 0.05, **chance},
            {"language": "ja", "other": "ja", "common": 1234, "jaccard": 1.0, **none},
        ]
    )


def profile_table(n_layers: int = 4) -> pd.DataFrame:
    rows = []
    for layer, code in itertools.product(range(n_layers), CODES):
        n = 7 * layer + 3 * CODES.index(code)
        rows.append({"layer": layer, "language": code, "neurons": n, "low": n - 2, "high": n + 4})
    return pd.DataFrame(rows)


def fraction_table() -> pd.DataFrame:
    rows = []
    for fraction, code in itertools.product((0.01, 0.05), CODES):
        value = 4 * fraction * (1 + CODES.index(code))
        rows.append(
            {
                "fraction": fraction,
                "language": code,
                "neurons": 10,
                "own_minus_others": value,
                "low": value - 0.01,
                "high": value + 0.02,
                "beyond_random": value,
                "largest_in_row": (fraction, code) != (0.01, "ja"),
                "p_of_all": 0.0042 if fraction == 0.01 else 0.00001,
            }
        )
    return pd.DataFrame(rows)


def training_table() -> pd.DataFrame:
    rows = []
    for tokens, code in itertools.product((3_000_000, 8_000_000), CODES):
        value = tokens / 1e8 * (1 + CODES.index(code))
        rows.append(
            {
                "tokens": tokens,
                "language": code,
                "increase": value,
                "increase_low": value - 0.01,
                "increase_high": value + 0.01,
                "random": value / 10,
            }
        )
    return pd.DataFrame(rows)


def switching_rows(groups: dict[str, dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for (base, columns), code in itertools.product(groups.items(), CODES):
        rate = float(base) + 0.1 * CODES.index(code)
        rates = {"rate": rate, "rate_low": rate - 0.05, "rate_high": rate + 0.05}
        rates |= {"good": rate / 2, "good_low": rate / 2 - 0.04, "good_high": rate / 2 + 0.06}
        rows.append({**columns, "to": code, **rates, "score": rate})
    return pd.DataFrame(rows)


def final_table() -> pd.DataFrame:
    return switching_rows(
        {
            "0.1": {"way": "no edit", "setting": ""},
            "0.6": {"way": "LAPE neurons", "setting": "0.03 of all, strength 2"},
            "0.2": {"way": "random neurons", "setting": "0.03 of all, strength 2"},
        }
    )


def size_table() -> pd.DataFrame:
    return switching_rows({"0.1": {"size": 0.0}, "0.3": {"size": 400.0}, "0.7": {"size": 2000.0}})


def sharing_table(n_layers: int = 3) -> pd.DataFrame:
    shares = {"silent": 0.4, "specific": 0.2, "partly shared": 0.3, "all shared": 0.1}
    rows = []
    for layer, (name, share) in itertools.product(range(n_layers), shares.items()):
        value = share + 0.01 * layer
        rows.append(
            {
                "layer": layer,
                "category": name,
                "share": value,
                "low": value - 0.01,
                "high": value + 0.02,
                "independent": value + 0.03,
                "interchangeable": value / 2,
            }
        )
    return pd.DataFrame(rows)


def patching_table() -> pd.DataFrame:
    """As `PatchingResult.to_frame()` gives it; a token is there twice."""
    spans = ("the", "cat", "the")
    rows = [
        {
            "source": "source",
            "part": "resid_post",
            "layer": layer,
            "place": place,
            "span": span,
            "answer": "Rome",
            "extent": "each",
            "change": -0.5 * layer + place,
        }
        for layer, (place, span) in itertools.product(range(4), enumerate(spans))
    ]
    return pd.DataFrame(rows)


def moved_table() -> pd.DataFrame:
    rows = []
    for row, layer in itertools.product(("last: concept", "last: language"), range(4)):
        moved = 0.1 * layer * len(row) / 14 - 0.05
        ends = {"low": moved - 0.02, "high": moved + 0.04}
        rows.append({"row": row, "layer": layer, "moved": moved, **ends})
    return pd.DataFrame(rows)


def lens_table() -> pd.DataFrame:
    """Prompts in two languages, each with the answer in it and in English."""
    rows = []
    for asked_in, layer, own in itertools.product(("de", "ja"), range(4), (True, False)):
        chance = 0.1 * layer + 0.05 * own + 0.01 * (asked_in == "ja")
        ends = {"low": chance - 0.01, "high": chance + 0.02}
        language = asked_in if own else "en"
        rows.append(
            {"asked_in": asked_in, "language": language, "layer": layer, "probability": chance}
            | ends
        )
    return pd.DataFrame(rows)


TABLES = {
    "perplexity_matrix": matrix_table,
    "overlap": overlap_rows,
    "layer_profile": profile_table,
    "loss_against_fraction": fraction_table,
    "curve_of_training": training_table,
    "sharing": sharing_table,
    "language_switching": final_table,
    "switching_against_size": size_table,
    "patching": patching_table,
    "moved_by_layer": moved_table,
    "lens": lens_table,
}
every_figure = pytest.mark.parametrize("name", TABLES)


def drawn(ax: Axes, label: str) -> list[float]:
    """Heights of the marks of the line with this label."""
    (found,) = (each for each in ax.lines if each.get_label() == label)
    return np.asarray(found.get_ydata(), dtype=float).tolist()


def strokes(ax: Axes, colour: str) -> list[tuple[float, float]]:
    """Lower and upper ends of the upright strokes of this colour, from left to right."""
    found = []
    for each in ax.collections:
        if isinstance(each, LineCollection) and same_color(each.get_color()[0], colour):
            found += [
                (segment[0, 0], segment[0, 1], segment[1, 1]) for segment in each.get_segments()
            ]
    return [(low, high) for _, low, high in sorted(found)]


def cells(ax: Axes, which: int = 0) -> Any:
    meshes = [each for each in ax.collections if isinstance(each, QuadMesh)]
    return np.ma.filled(np.ma.asarray(meshes[which].get_array()), np.nan)


def words(ax: Axes) -> list[str]:
    return [each.get_text() for each in ax.texts]


def pairs(frame: pd.DataFrame, low: str, high: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(frame[low], frame[high], strict=True)]


def close(found: Any, expected: Any) -> bool:
    return np.shape(found) == np.shape(expected) and bool(
        np.allclose(found, expected, equal_nan=True)
    )


# ---------------------------------------------------------------- the numbers


def test_the_matrix_shows_every_rise_and_half_of_its_interval():
    ax = plots.perplexity_matrix(matrix_table())
    assert close(cells(ax), [[0.060, 0.009, -0.0001], [0.003, 0.151, 0.002], [0.011, -0.02, 0.086]])
    shown = words(ax)
    assert shown[:4] == ["0.060", "±0.005", "0.009", "±0.005"]
    assert shown[4] == "0.000"  # and not a zero with a sign
    assert "−0.020" in shown  # noqa: RUF001
    assert [each.get_text() for each in ax.get_xticklabels()] == [*CODES, "random"]
    assert [each.get_text() for each in ax.get_yticklabels()] == [
        "en (2,000)",
        "de (2,001)",
        "ja (2,002)",
    ]


def test_the_random_column_is_the_language_itself_under_random_neurons():
    ax = plots.perplexity_matrix(matrix_table())
    assert close(cells(ax, 1), [[0.012], [0.022], [0.032]])
    assert words(ax)[-6:] == ["0.012", "±0.002", "0.022", "±0.002", "0.032", "±0.002"]
    without = matrix_table().assign(random=math.nan)
    assert len(plots.perplexity_matrix(without).collections) == 1


def test_the_language_itself_is_framed_wherever_it_stands():
    table = matrix_table()
    order = {"ja": 0, "en": 1, "de": 2}
    turned = table.sort_values("read", key=lambda column: column.map(order), kind="stable")
    turned = turned.sort_values("off", kind="stable")
    frames = [
        each for each in plots.perplexity_matrix(turned).patches if isinstance(each, Rectangle)
    ]
    # Rows de, en, ja; columns ja, en, de.
    corners = {(each.get_y() + 0.5, each.get_x() + 0.5) for each in frames}
    assert corners == {(0, 2), (1, 1), (2, 0)}


def test_zero_is_white_and_equal_steps_to_both_sides_are_equally_strong():
    ax = plots.perplexity_matrix(matrix_table())
    mesh = ax.collections[0]
    assert min(mesh.cmap(mesh.norm(0.0))[:3]) > 0.95
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-0.151, 0.151)


def test_numbers_stay_within_their_cells():
    ax = plots.perplexity_matrix(matrix_table())
    figure = ax.get_figure()
    assert figure is not None
    figure.draw_without_rendering()
    width = ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
    assert max(each.get_window_extent().width for each in ax.texts) < width


def test_overlap_is_below_the_diagonal_and_chance_above_in_whichever_order_pairs_come():
    ax = plots.overlap(overlap_rows())
    nan = math.nan
    assert close(cells(ax), [[nan, 0.01, 0.01], [0.11, nan, 0.01], [0.03, 0.05, nan]])
    bold = {each.get_text() for each in ax.texts if each.get_weight() == "bold"}
    assert bold == {"0.110", "0.050"}  # 0.03 is within chance
    diagonal = {each.get_position()[0]: each.get_text() for each in ax.texts[-3:]}
    assert diagonal == {0: "40", 1: "50", 2: "1,234"}


def test_a_pair_given_in_both_orders_is_refused():
    twice = pd.concat(
        [overlap_rows(), overlap_rows().rename(columns={"language": "other", "other": "language"})]
    )
    with pytest.raises(ValueError, match="in both orders"):
        plots.overlap(twice[twice["language"] != twice["other"]])


def test_the_layer_profile_draws_counts_and_intervals_in_the_language_s_colour():
    ax = plots.layer_profile(profile_table().sample(frac=1, random_state=0).sort_values("language"))
    for code in CODES:
        rows = profile_table().query("language == @code")
        assert drawn(ax, code) == rows["neurons"].tolist()
        assert strokes(ax, LANGUAGES[code].colour) == pairs(rows, "low", "high")


def test_a_profile_without_intervals_stands_on_zero_and_on_the_layers():
    ax = plots.layer_profile(profile_table().assign(low=math.nan, high=math.nan))
    assert ax.get_ylim()[0] == 0
    assert not ax.collections
    assert [list(each.get_xdata()) for each in ax.lines] == [[0, 1, 2, 3]] * 3


def test_the_loss_against_the_fraction_shows_who_suffers_most_and_the_chance_of_it():
    ax, table = plots.loss_against_fraction(fraction_table()), fraction_table()
    for code in CODES:
        rows = table.query("language == @code")
        assert drawn(ax, code) == rows["own_minus_others"].tolist()
        assert strokes(ax, LANGUAGES[code].colour) == pairs(rows, "low", "high")
    hollow = [each.get_ydata().tolist() for each in ax.lines if each.get_label() == "_hollow"]
    assert hollow == [[], [], [pytest.approx(0.12)]]
    assert words(ax) == ["0.0042", "<0.0001", "p ="]
    assert [each.get_text() for each in ax.get_xticklabels()] == ["1", "5"]


def test_the_curve_of_training_has_the_random_neurons_beside_it():
    ax, table = plots.curve_of_training(training_table()), training_table()
    for code in CODES:
        rows = table.query("language == @code")
        assert drawn(ax, code) == rows["increase"].tolist()
        assert strokes(ax, LANGUAGES[code].colour) == pairs(rows, "increase_low", "increase_high")
    dotted = [each.get_ydata().tolist() for each in ax.lines if each.get_label() == "_random"]
    assert dotted == [table.query("language == @code")["random"].tolist() for code in CODES]
    (middle,) = (each for each in ax.lines if each.get_label() == "de")
    assert close(middle.get_xdata(), [3, 8])  # millions; the others stand aside


def test_sharing_has_both_baselines_beside_each_category():
    ax, table = plots.sharing(sharing_table()), sharing_table()
    for name in ("silent", "specific", "partly shared", "all shared"):
        rows = table.query("category == @name")
        assert drawn(ax, name) == rows["share"].tolist()
        assert drawn(ax, f"_{name} independent") == rows["independent"].tolist()
        assert drawn(ax, f"_{name} interchangeable") == rows["interchangeable"].tolist()


def test_a_heat_map_of_patches_has_layers_across_and_a_row_for_each_token():
    ax = plots.patching(patching_table())
    assert close(cells(ax), [[place - 0.5 * layer for layer in range(4)] for place in range(3)])
    assert [each.get_text() for each in ax.get_yticklabels()] == ["the", "cat", "the"]
    assert [each.get_text() for each in ax.get_xticklabels()] == ["0", "1", "2", "3"]
    assert words(ax)[:2] == ["0.00", "\N{MINUS SIGN}0.50"]
    several = pd.concat([patching_table(), patching_table().assign(answer="Paris")])
    ax = plots.patching(several.assign(extent="from"))
    assert [each.get_text() for each in ax.get_yticklabels()][::3] == ["the, Rome", "the, Paris"]
    assert ax.get_xlabel() == "Patched from this layer on"
    many = pd.concat([patching_table().assign(layer=lambda rows, n=n: 4 * n + rows["layer"])
                      for n in range(20)])  # fmt: skip
    ax = plots.patching(many)
    assert cells(ax).shape == (3, 80)
    assert not words(ax)


def test_what_has_moved_is_shown_with_half_of_its_interval():
    ax = plots.moved_by_layer(moved_table())
    expected = moved_table().pivot(index="row", columns="layer", values="moved")
    assert close(cells(ax), expected.to_numpy())
    assert "±0.03" in words(ax)
    (mesh,) = (each for each in ax.collections if isinstance(each, QuadMesh))
    assert mesh.norm.vmin == -mesh.norm.vmax


def test_the_lens_draws_the_own_word_and_the_pivot_in_the_colour_of_the_prompt():
    table = lens_table()
    ax = plots.lens(table)
    for code in ("de", "ja"):
        own = table[(table["asked_in"] == code) & (table["language"] == code)]
        assert close(drawn(ax, code), own["probability"])
    dashed = [each for each in ax.lines if each.get_linestyle() == "--"]
    assert [to_hex(each.get_color()) for each in dashed] == [
        LANGUAGES[code].colour for code in ("de", "ja")
    ]
    english = table[(table["asked_in"] == "ja") & (table["language"] == "en")]
    assert close(dashed[1].get_ydata(), english["probability"])
    alone = plots.lens(table[table["asked_in"] == "ja"].drop(columns="asked_in"))
    assert [each.get_label() for each in alone.lines] == ["ja", "en"]
    assert {each.get_linestyle() for each in alone.lines} == {"-"}


def test_ways_of_switching_show_both_rates_where_the_way_stands():
    table = final_table().sample(frac=1, random_state=3)
    ways = list(dict.fromkeys(table["way"]))
    ax = plots.language_switching(table)
    for row, code in enumerate(dict.fromkeys(table["to"])):
        rows = table[table["to"] == code]
        both = [each for each in ax.lines if each.get_color() == LANGUAGES[code].colour]
        assert [each.get_ydata().tolist() for each in both] == [
            rows["rate"].tolist(),
            rows["good"].tolist(),
        ]
        for each in both:  # in the column of its way, languages from left to right
            aside = np.asarray(each.get_xdata()) - [ways.index(way) for way in rows["way"]]
            assert np.abs(aside - 0.28 * (row - 1)).max() < 0.1
        ends = sorted(pairs(rows, "rate_low", "rate_high") + pairs(rows, "good_low", "good_high"))
        assert sorted(strokes(ax, LANGUAGES[code].colour)) == ends
    labels = [each.get_text().replace("\n", " ") for each in ax.get_xticklabels()]
    assert labels == [
        " ".join(filter(None, each))
        for each in table[["way", "setting"]].drop_duplicates().to_numpy()
    ]


def test_sizes_stand_side_by_side_from_none_to_most():
    ax = plots.switching_against_size(size_table().iloc[::-1])
    assert [each.get_text() for each in ax.get_xticklabels()] == ["no edit", "400", "2,000"]
    rows = size_table().query("to == 'de'")
    assert drawn(ax, "de") == rows["good"].tolist()
    shares = size_table().replace({"size": {400.0: 0.01, 2000.0: 0.1}})
    ax = plots.switching_against_size(shares)
    assert [each.get_text() for each in ax.get_xticklabels()] == ["no edit", "1", "10"]
    assert ax.get_xlabel() == "Share of all neurons (%)"


# ---------------------------------------------------------------- the paper


@every_figure
def test_figures_fit_a_column_and_nothing_is_cut_off(name: str):
    ax = plots.FIGURES[name](TABLES[name]())
    figure = ax.get_figure(root=True)
    assert figure is not None
    assert figure.get_figwidth() in (plots.SINGLE, plots.DOUBLE)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01


@every_figure
def test_labels_are_sentences(name: str):
    ax = plots.FIGURES[name](TABLES[name]())
    for text in filter(None, (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left"))):
        assert text[0].isupper(), text
        assert not re.search(r"(?<!^)(?<![.] )\b[A-Z][a-z]", text), text


def test_every_language_has_its_own_colour_and_marker():
    ax = plots.layer_profile(profile_table())
    legend = ax.get_legend()
    assert legend is not None
    assert [each.get_text() for each in legend.get_texts()] == list(CODES)
    looks = {each.get_label(): (to_hex(each.get_color()), each.get_marker()) for each in ax.lines}
    assert {code: colour for code, (colour, _) in looks.items()} == {
        code: LANGUAGES[code].colour for code in CODES
    }
    assert len({marker for _, marker in looks.values()}) == 3


def test_with_many_layers_markers_are_few_and_no_layer_is_left_out():
    ax = plots.layer_profile(profile_table(40))
    assert all(len(each.get_ydata()) == 40 for each in ax.lines)
    assert {each.get_markevery() for each in ax.lines} == {(0, 3), (1, 3), (2, 3)}


def test_an_axes_of_the_caller_is_used_and_keeps_the_caller_s_style():
    with plt.style.context("dark_background"):
        figure, (left, right) = plt.subplots(1, 2)
        assert plots.layer_profile(profile_table(), left) is left
        assert plots.sharing(sharing_table(), right) is right
        size = figure.get_size_inches().tolist()
    assert plt.get_fignums() == [figure.number]
    assert size == mpl.rcParamsDefault["figure.figsize"]
    assert same_color(left.xaxis.label.get_color(), "white")


# ---------------------------------------------------------------- files


@every_figure
def test_a_table_draws_the_same_bytes_again(name: str, tmp_path: Path):
    path = tmp_path / f"{name}-small.1"
    plots.save(TABLES[name](), path)
    files = [tmp_path / f"{path.name}.{ending}" for ending in ("csv", "pdf", "png")]
    table, *drawings = (each.read_bytes() for each in files)
    assert sorted(tmp_path.iterdir()) == files
    files[1].write_bytes(b"something else")
    with plt.style.context("dark_background"):
        assert plots.redraw(files[0]) == (files[1],)
    assert [each.read_bytes() for each in files] == [table, *drawings]
    assert plt.get_fignums() == []


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
    with pytest.raises(ValueError, match="'matrix' does not say which figure it is; begin it with"):
        plots.save(matrix_table(), tmp_path / "matrix")
    with pytest.raises(ValueError, match="no column off"):
        plots.save(matrix_table().drop(columns="off"), tmp_path / "perplexity_matrix")
    with pytest.raises(ValueError, match="no rows"):
        plots.save(pd.DataFrame(), tmp_path / "overlap")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="Make it with"):
        plots.redraw(tmp_path / "overlap.csv")


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
    with pytest.raises(ValueError, match="dormant is no category of sharing; there are silent"):
        plots.sharing(sharing_table().replace({"category": {"silent": "dormant"}}))
    with pytest.raises(ValueError, match="a zero or less"):
        plots.loss_against_fraction(fraction_table().assign(fraction=[0.0] * 3 + [0.1] * 3))


# ---------------------------------------------------------------- names and fonts


def test_languages_keep_their_colour_under_each_of_their_names():
    for column in ("code", "name", "endonym"):
        table = plots.with_names(profile_table().replace({"language": {"ja": "vi"}}), column)
        ax = plots.layer_profile(table)
        expected = [getattr(LANGUAGES[code], column) for code in ("en", "de", "vi")]
        assert [each.get_label() for each in ax.lines] == expected
        assert [each.get_color() for each in ax.lines] == [
            LANGUAGES[c].colour for c in ("en", "de", "vi")
        ]
    assert plots.with_names(table, "code").equals(
        profile_table().replace({"language": {"ja": "vi"}})
    )


@pytest.fixture
def bare_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what comes with matplotlib is installed."""
    own = Path(mpl.get_data_path())
    entries = [each for each in font_manager.fontManager.ttflist if own in Path(each.fname).parents]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(fonts, "_learn_new_fonts", lambda: None)
    fonts._characters.cache_clear()


@pytest.mark.usefixtures("bare_fonts")
def test_a_name_that_no_font_can_write_gives_way_to_the_code_with_one_warning():
    table = profile_table().replace({"language": {"de": "العربية", "ja": "日本語"}})
    table = pd.concat([table, table.query("language == 'en'").assign(language="中文")])
    with pytest.warns(UserWarning, match="No installed font can write") as caught:
        ax = plots.layer_profile(table)
    assert len(caught) == 1
    assert "日本語 (Japanese), 中文 (Chinese)" in str(caught[0].message)
    assert [each.get_label() for each in ax.lines] == ["en", "العربية", "ja", "zh"]
    assert ax.lines[2].get_color() == LANGUAGES["ja"].colour


@pytest.mark.usefixtures("bare_fonts")
def test_a_font_that_has_the_characters_is_used(tmp_path: Path):
    path = tmp_path / "NotoSansCJK-Regular.ttf"
    make_font(path, "Noto Sans CJK JP", "日本語")
    bare = plots.layer_profile(profile_table())
    font_manager.fontManager.addfont(path)
    ax = plots.layer_profile(profile_table().replace({"language": {"ja": "日本語"}}))
    assert [each.get_label() for each in ax.lines] == ["en", "de", "日本語"]
    plots.save_figure(ax.get_figure(root=True), tmp_path / "with_names")
    assert b"NotoSansCJKJP" in (tmp_path / "with_names.pdf").read_bytes()
    # A font that is there and not needed changes nothing.
    again = plots.layer_profile(profile_table())
    for each, name in ((bare, "bare"), (again, "again")):
        plots.save_figure(each.get_figure(root=True), tmp_path / name)
    assert (tmp_path / "bare.pdf").read_bytes() == (tmp_path / "again.pdf").read_bytes()


def make_font(path: Path, family: str, characters: str) -> None:
    """A font in which every character is a square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"uni{ord(each):04X}" for each in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(each): f"uni{ord(each):04X}" for each in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=880, descent=-120)
    builder.setupNameTable(
        {"familyName": family, "styleName": "Regular", "psName": family.replace(" ", "")}
    )
    builder.setupOS2(sTypoAscender=880, usWinAscent=880, usWinDescent=120)
    builder.setupPost()
    builder.save(path)


# ---------------------------------------------------------------- tables


def some_selection(generator: torch.Generator) -> NeuronSelection:
    return NeuronSelection(torch.rand(3, 2, 30, generator=generator) < 0.3, CODES)


def test_the_table_of_layers_counts_each_language_s_neurons(generator: torch.Generator):
    selection = some_selection(generator)
    table = plots.layer_profile_table(selection)
    assert table["low"].isna().all()
    for row in table.to_dict("records"):
        assert row["neurons"] == selection[row["language"]][row["layer"]].sum()
    profile = selection.layer_profile().double()
    wide = plots.layer_profile_table(
        selection, Estimate(profile, profile, profile - 1, profile + 2, 0.95)
    )
    assert (wide["neurons"] - wide["low"]).eq(1).all()
    assert (wide["high"] - wide["neurons"]).eq(2).all()
    small = profile[:2]
    with pytest.raises(ValueError, match="3 languages and 2 layers"):
        plots.layer_profile_table(selection, Estimate(small, small, small, small, 0.95))


def test_the_table_of_overlaps_has_each_pair_once_with_what_chance_gives_this_pair(
    generator: torch.Generator,
):
    selection = some_selection(generator)
    selection.mask[2] &= torch.rand(2, 30, generator=generator) < 0.3  # sizes differ
    rows = plots.overlap_table(selection).set_index(["language", "other"])
    assert list(rows.index) == list(itertools.combinations_with_replacement(CODES, 2))
    for (one, other), row in rows.iterrows():
        both, either = selection[one] & selection[other], selection[one] | selection[other]
        assert row["common"] == both.sum()
        assert row["jaccard"] == pytest.approx(float(both.sum() / either.sum()))
        if one != other:
            named = replace(selection.restrict([other]), languages=(one,))
            chance = chance_jaccard(selection.restrict([one]), named)
            assert row["chance"] == pytest.approx(chance.value.item())
            assert row["chance_high"] == pytest.approx(chance.high.item())
    assert rows["chance"].isna().sum() == 3


def test_the_best_setting_of_each_size_is_best_on_the_mean_over_languages():
    def rows(way: str, setting: Any, scores: tuple[float, float]) -> list[dict[str, Any]]:
        return [
            {"way": way, "setting": setting, "to": code, "score": score}
            for code, score in zip(("en", "de"), scores, strict=True)
        ]

    sweep = pd.DataFrame(
        rows("no edit", math.nan, (0.1, 0.0))
        + rows("LAPE neurons", "0.1 of all, strength 1", (0.5, 0.5))
        + rows(
            "LAPE neurons", "0.1 of all, strength 2", (0.9, 0.0)
        )  # best for one, not on the mean
        + rows("LAPE neurons", "0.03 of all, strength 2", (0.2, 0.2))
        + rows("precision units", "2,000 units", (1.0, 1.0))
        + rows("residual push", "behind layer 3, strength 1", (1.0, 1.0))
    )
    best = plots.best_of_each_size(sweep, "LAPE neurons")
    assert best["size"].tolist() == [0, 0, 0.03, 0.03, 0.1, 0.1]
    assert best["score"].tolist() == [0.1, 0.0, 0.2, 0.2, 0.5, 0.5]
    assert plots.best_of_each_size(sweep, "precision units")["size"].tolist() == [0, 0, 2000, 2000]
    with pytest.raises(ValueError, match="'behind layer 3, strength 1' names no size"):
        plots.best_of_each_size(sweep, "residual push")
    with pytest.raises(
        ValueError, match="'prayer' was not tried in this sweep, only no edit, LAPE"
    ):
        plots.best_of_each_size(sweep, "prayer")

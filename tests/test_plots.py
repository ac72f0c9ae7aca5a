"""Figures: what is on the Axes is what is in the table, and it fits the paper."""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import QuadMesh
from matplotlib.colors import same_color, to_hex, to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from interp import plots
from interp.plots import fonts, style
from interp.plots.curves import CATEGORIES
from interp.plots.style import key, legend_above
from interp.text.languages import LANGUAGES
from tests.figure_tables import (
    CODES,
    TABLES,
    cells,
    chosen_experts_table,
    close,
    drawn,
    every_figure,
    final_table,
    fraction_table,
    lens_table,
    matrix_table,
    moved_table,
    named,
    neuron_table,
    overlap_rows,
    pairs,
    patching_table,
    profile_table,
    rate_change_by_label_table,
    rate_change_table,
    routing_table,
    sharing_table,
    size_table,
    strokes,
    sums_table,
    tasks_table,
    training_table,
    words,
)


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


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


@pytest.mark.slow
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


def luminance(color: str | tuple[float, ...]) -> float:
    """By the definition of WCAG 2."""
    parts = np.asarray(to_rgb(color))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_numbers_can_be_read_on_every_color():
    steps = np.linspace(-1, 1, 41)
    rows = [{"row": "a", "layer": n, "moved": each, "low": 0, "high": 0}
            for n, each in enumerate(steps)]  # fmt: skip
    for part in (rows[:14], rows[14:28], rows[27:]):
        ax = plots.moved_by_layer(pd.DataFrame([*part[:-1], rows[-1]]))
        mesh = ax.collections[0]
        for text in ax.texts[::2]:
            value = float(text.get_text().replace("\N{MINUS SIGN}", "-"))
            cell, ink = luminance(mesh.cmap(mesh.norm(value))[:3]), luminance(text.get_color())
            assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) > 4.4


def test_where_there_is_no_room_for_numbers_a_dash_says_what_is_below_zero():
    table = pd.concat([moved_table().assign(layer=lambda rows, n=n: 4 * n + rows["layer"])
                       for n in range(20)])  # fmt: skip
    table.loc[table["layer"] == 17, "moved"] = -0.2
    ax = plots.moved_by_layer(table)
    assert not ax.texts
    dashes = {at for each in ax.lines for at in zip(*each.get_data(), strict=True)}
    wide = table.pivot(index="row", columns="layer", values="moved")
    below = np.argwhere(wide.to_numpy() < -0.1 * wide.abs().max().max())
    assert dashes == {(column, row) for row, column in below.tolist()}
    assert {(17, 0), (17, 1)} <= dashes


def test_numbers_stay_within_their_cells():
    ax = plots.perplexity_matrix(matrix_table())
    figure = ax.get_figure()
    assert figure is not None
    figure.draw_without_rendering()
    width = ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
    assert max(each.get_window_extent().width for each in ax.texts) < width


def test_overlap_is_below_the_diagonal_and_chance_above_in_whichever_order_pairs_come():
    table = overlap_rows()
    table.loc[table["other"] == "ja", "chance"] = 0.02
    ax = plots.overlap(table)
    nan = math.nan
    assert close(cells(ax), [[nan, 0.01, 0.01], [0.11, nan, 0.02], [0.03, 0.05, nan]])
    bold = {each.get_text() for each in ax.texts if each.get_weight() == "bold"}
    assert bold == {"0.110", "0.050"}  # 0.03 is within chance
    assert all(each.get_style() == "normal" for each in ax.texts)
    fewer = plots.overlap(overlap_rows().assign(chance_low=0.035))  # 0.03 is now below it
    assert [each.get_text() for each in fewer.texts if each.get_style() == "italic"] == ["0.030"]
    sizes = [each.get_text() for each in ax.get_yticklabels()]
    assert sizes == ["en (40)", "de (50)", "ja (1,234)"]
    assert plots.uniform_chance(table) is None


def test_chance_that_is_the_same_for_all_is_a_number_for_the_caption():
    assert plots.uniform_chance(overlap_rows()) == 0.01
    assert np.isnan(cells(plots.overlap(overlap_rows()))[np.triu_indices(3)]).all()


def test_many_languages_are_ordered_so_that_similar_ones_are_neighbors():
    """Two families of languages, mixed in the table; a decoy is like no other."""
    table = many_overlaps(12, lambda one, other: 0.4 if one % 2 == other % 2 else 0.02)
    table.loc[(table["language"] == "L0") | (table["other"] == "L0"), "jaccard"] = 0.0
    names = [each.get_text().split()[0] for each in plots.overlap(table).get_yticklabels()]
    parity = [int(name[1:]) % 2 for name in names if name != "L0"]
    assert sorted(names) == sorted(f"L{number}" for number in range(12))
    assert sum(a != b for a, b in itertools.pairwise(parity)) == 1
    assert names[0] == "L0" or names[-1] == "L0"


def test_where_there_is_no_room_for_numbers_a_dot_says_what_is_as_by_chance():
    table = many_overlaps(30, lambda one, other: 0.03 if {one, other} == {4, 7} else 0.3)
    ax = plots.overlap(table)
    assert not ax.texts
    dots = [at for line in ax.lines for at in zip(*line.get_data(), strict=True)]
    names = [each.get_text().split()[0] for each in ax.get_yticklabels()]
    assert [{names[round(x)], names[round(y)]} for x, y in dots] == [{"L4", "L7"}]


def test_a_pair_given_in_both_orders_is_refused():
    twice = pd.concat(
        [overlap_rows(), overlap_rows().rename(columns={"language": "other", "other": "language"})]
    )
    with pytest.raises(ValueError, match="in both orders"):
        plots.overlap(twice[twice["language"] != twice["other"]])


def test_the_layer_profile_draws_counts_and_intervals_in_the_language_s_color():
    ax = plots.layer_profile(profile_table().sample(frac=1, random_state=0).sort_values("language"))
    for code in CODES:
        rows = profile_table().query("language == @code")
        assert drawn(ax, code) == rows["neurons"].tolist()
        assert strokes(ax, LANGUAGES[code].color) == pairs(rows, "low", "high")


def test_a_profile_without_intervals_stands_on_zero_and_on_the_layers():
    ax = plots.layer_profile(profile_table().assign(low=math.nan, high=math.nan))
    low, high = ax.get_ylim()
    assert -0.05 * high < low < 0  # room for half a marker
    assert not ax.collections
    assert [list(each.get_xdata()) for each in named(ax)] == [[0, 1, 2, 3]] * 3


def test_the_loss_against_the_fraction_shows_who_suffers_most_and_the_chance_of_it():
    ax, table = plots.loss_against_fraction(fraction_table()), fraction_table()
    for code in CODES:
        rows = table.query("language == @code")
        assert drawn(ax, code) == rows["own_minus_others"].tolist()
        assert strokes(ax, LANGUAGES[code].color) == pairs(rows, "low", "high")
    hollow = [each.get_ydata().tolist() for each in ax.lines if each.get_label() == "_hollow"]
    assert hollow == [[], [], [pytest.approx(0.12)]]
    assert words(ax) == ["0.0042", "<0.0001", "p ="]
    assert [each.get_text() for each in ax.get_xticklabels()] == ["1", "5"]


def test_the_curve_of_training_has_the_random_neurons_beside_it():
    ax, table = plots.curve_of_training(training_table()), training_table()
    for code in CODES:
        rows = table.query("language == @code")
        assert drawn(ax, code) == rows["increase"].tolist()
        assert strokes(ax, LANGUAGES[code].color) == pairs(rows, "increase_low", "increase_high")
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
    assert ax.get_ylabel() == "Span"
    assert [each.get_text() for each in ax.get_xticklabels()] == ["0", "1", "2", "3"]
    assert words(ax)[:2] == ["0.00", "\N{MINUS SIGN}0.50"]
    several = pd.concat([patching_table(), patching_table().assign(answer="Paris")])
    several.loc[several["answer"] == "Paris", "change"] *= -2
    panels = plots.patching(several.assign(extent="from")).get_figure(root=True).axes[:2]
    assert close(cells(panels[1]), -2 * cells(ax))
    assert close(cells(panels[0]), cells(ax))
    assert panels[0].collections[0].norm is panels[1].collections[0].norm
    for panel, answer in zip(panels, ("Rome", "Paris"), strict=True):
        assert panel.get_title("left") == f"Answer: {answer}"
        assert panel.get_ylabel() == "Span"
        assert [each.get_text() for each in panel.get_yticklabels()] == ["the", "cat", "the"]
    assert panels[1].get_xlabel() == "Patched from this layer on"
    _, mine = plt.subplots()
    with pytest.raises(ValueError, match="give the rows of one of Rome, Paris"):
        plots.patching(several, mine)
    long = plots.patching(patching_table().replace({"span": {"cat": "<|start_header_id|>"}}))
    assert [each.get_text() for each in long.get_yticklabels()][1] == "<|start_heade…"
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


def test_the_lens_has_a_panel_for_each_language_of_the_prompts():
    table = lens_table()
    axes = plots.lens(table).figure.get_figure(root=True).axes
    codes = fonts.shown(["de", "ja"])
    assert [ax.get_ylabel() for ax in axes] == [f"Asked in\n{code}" for code in codes]
    assert len({ax.get_ylim() for ax in axes}) == 1
    for code, ax in zip(("de", "ja"), axes, strict=True):
        own, pivot = (each for each in ax.lines if len(each.get_xydata()) == 4)
        for line, answer in ((own, code), (pivot, "en")):
            rows = table[(table["asked_in"] == code) & (table["language"] == answer)]
            assert close(line.get_ydata(), rows["probability"])
            assert to_hex(line.get_color()) == LANGUAGES[code].color
        assert (own.get_linestyle(), pivot.get_linestyle()) == ("-", "--")
    alone = plots.lens(table[table["asked_in"] == "ja"].drop(columns="asked_in"))
    assert [each.get_label() for each in named(alone)] == ["ja", "en"]
    assert {each.get_linestyle() for each in named(alone)} == {"-"}
    keys = [each.get_text() for each in axes[0].findobj(Text)]
    assert "in the pivot, en" in keys
    two = pd.concat([table, table.replace({"language": {"en": "fr"}})]).drop_duplicates()
    assert "in the pivot" in [each.get_text() for each in plots.lens(two).findobj(Text)]


def test_ways_of_switching_show_both_rates_where_the_way_stands():
    table = final_table().sample(frac=1, random_state=3)
    ways = list(dict.fromkeys(table["way"]))
    ax = plots.language_switching(table)
    for row, code in enumerate(dict.fromkeys(table["to"])):
        rows = table[table["to"] == code]
        both = [each for each in ax.lines if each.get_color() == LANGUAGES[code].color]
        assert [each.get_ydata().tolist() for each in both] == [
            rows["rate"].tolist(),
            rows["good"].tolist(),
        ]
        for each in both:  # in the column of its way, languages from left to right
            aside = np.asarray(each.get_xdata()) - [ways.index(way) for way in rows["way"]]
            assert np.abs(aside - 0.28 * (row - 1)).max() < 0.1
        ends = sorted(pairs(rows, "rate_low", "rate_high") + pairs(rows, "good_low", "good_high"))
        assert sorted(strokes(ax, LANGUAGES[code].color)) == ends
    labels = [each.get_text().replace("\n", " ") for each in ax.get_xticklabels()]
    assert labels == [
        " ".join(filter(None, each))
        for each in table[["way", "setting"]].drop_duplicates().to_numpy()
    ]


def test_a_table_in_which_no_way_has_a_setting_is_drawn():
    for nothing in (math.nan, None, ""):
        ax = plots.language_switching(final_table().assign(setting=nothing))
        labels = [each.get_text() for each in ax.get_xticklabels()]
        assert labels == ["no edit", "LAPE neurons", "random neurons"]


def test_sums_of_categories_are_means_over_languages_from_least_to_largest():
    table = sums_table()
    ax = plots.attribution_sums(table.sample(frac=1, random_state=1))
    assert [each.get_label() for each in named(ax)] == list(CATEGORIES)
    for name, ink in CATEGORIES.items():
        over = table[table["category"] == name].groupby("layer")["value"]
        assert close(drawn(ax, name), over.mean())
        assert close(strokes(ax, ink), list(zip(over.min(), over.max(), strict=True)))
    assert ax.get_ylabel() == "Contribution to the answer\n(probability)"


def test_accuracy_lost_has_a_panel_for_each_task_and_random_neurons_beside():
    table = tasks_table()
    table.loc[table["task"] == "translation", "drop"] *= 2
    first = plots.accuracy_lost(table)
    panels = first.get_figure(root=True).axes
    assert [each.get_ylabel().split("\n")[1] for each in panels] == ["facts", "translation"]
    assert [each.get_text() for each in panels[1].get_xticklabels()] == list(CODES)
    for ax, task in zip(panels, ("facts", "translation"), strict=True):
        for row, code in enumerate(CODES):
            rows = table[(table["task"] == task) & (table["off"] == code)]
            assert drawn(ax, code) == rows["drop"].tolist()
            ends = pairs(rows, "drop_low", "drop_high")
            assert close(strokes(ax, LANGUAGES[code].color), ends)
            random = [each for each in ax.lines if each.get_label() == "_random"][row]
            assert close(random.get_ydata(), [0.8 - 0.78] * 3)
            assert np.abs(random.get_xdata() - np.arange(3) - 0.8 * (row - 1) / 3).max() < 1e-9


def test_an_axes_of_the_caller_holds_one_task():
    _, mine = plt.subplots()
    assert plots.accuracy_lost(tasks_table(("facts",)), mine) is mine
    with pytest.raises(ValueError, match="has 2: give the rows of one of facts, translation"):
        plots.accuracy_lost(tasks_table(), mine)


def test_sizes_stand_side_by_side_from_none_to_most():
    ax = plots.switching_against_size(size_table().iloc[::-1])
    assert [each.get_text() for each in ax.get_xticklabels()] == ["no edit", "400", "2,000"]
    rows = size_table().query("to == 'de'")
    assert drawn(ax, "de") == rows["good"].tolist()
    shares = size_table().replace({"size": {400.0: 0.01, 2000.0: 0.1}})
    ax = plots.switching_against_size(shares)
    assert [each.get_text() for each in ax.get_xticklabels()] == ["no edit", "1", "10"]
    assert ax.get_xlabel() == "Share of all neurons (%)"


# ---------------------------------------------------------------- one neuron


def test_the_figure_of_a_neuron_has_a_row_for_each_label_filled_if_it_belongs_there():
    table = neuron_table()
    ax = plots.neuron_rates(table)
    for row, (code, rate, belongs) in enumerate(
        zip(CODES, table["rate"], table["belongs"], strict=True)
    ):
        (dot,) = (line for line in ax.lines if line.get_label() == f"_{code}")
        assert dot.get_xydata().tolist() == [[pytest.approx(100 * rate), row]]
        assert (dot.get_markerfacecolor() != "none") == belongs
    strokes_of = [each.get_segments()[0] for each in ax.collections]
    ends = [(float(a[0]), float(b[0])) for a, b in strokes_of]
    assert close(ends, [(100 * a, 100 * b) for a, b in pairs(table, "low", "high")])
    assert [each.get_text() for each in ax.get_yticklabels()] == list(CODES)
    assert ax.yaxis_inverted()
    assert ax.get_xlabel() == "Layer 5, neuron 7: tokens on which it fires (%)"
    assert not plots.neuron_rates(table.assign(belongs=False)).get_legend()
    assert not plots.neuron_rates(table.assign(low=math.nan)).collections


@pytest.mark.parametrize("n", [22, 100])
def test_the_figure_of_a_neuron_of_many_labels_fits_a_page(n: int):
    fits(plots.neuron_rates(neuron_table(tuple(f"L{i}" for i in range(n)))).get_figure(root=True))


def test_the_difference_of_two_models_is_drawn_by_layer_beside_what_chance_gives():
    table = rate_change_table()
    ax = plots.rate_change(table.sample(frac=1, random_state=3))
    for name in ("all neurons", "neurons of A"):
        rows = table[table["neurons"] == name]
        assert close(drawn(ax, name), (100 * rows["change"]).tolist())
        assert close(drawn(ax, f"_{name} chance"), (100 * rows["chance"]).tolist())
    (selected,) = (one for one in ax.lines if one.get_label() == "neurons of A")
    assert [float(x) for x in selected.get_xdata()] == [0, 2]


def test_the_difference_of_two_models_by_label_is_in_points_of_percent():
    table = rate_change_by_label_table()
    ax = plots.rate_change_by_label(table.sample(frac=1, random_state=3).sort_values("language"))
    labels = [each.get_text() for each in ax.get_yticklabels()]
    assert labels == ["de", "en", "ja"]
    assert close(cells(ax), [[0.2, 0.4, 0.6], [1, 2, 3], [0, 0, 0]])


def test_routing_is_drawn_over_the_layers_that_have_experts_beside_its_control():
    table = routing_table()
    ax = plots.routing(table.sample(frac=1, random_state=0))
    for label, column in (
        ("_measured", "divergence"),
        ("_shuffled", "shuffled"),
        ("_highest", "shuffled_highest"),
    ):
        assert close(drawn(ax, label), table[column].tolist()[1:])
    (measured,) = (line for line in ax.lines if line.get_label() == "_measured")
    expected = pairs(table[1:], "divergence_low", "divergence_high")
    assert close(strokes(ax, str(measured.get_color())), expected)
    legends = [text.get_text() for one in ax.findobj(Legend) for text in one.get_texts()]
    assert legends == ["labels", "labels shuffled", "highest of these"]


def test_a_label_s_own_experts_are_drawn_and_what_may_be_chance_is_white():
    """Two layers of eight experts with numbers; 16 of 64, of twelve labels, with colors alone."""
    table = chosen_experts_table()
    figure: Any = plots.chosen_experts(table).get_figure(root=True)
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in panels] == ["Label: en", "Label: de"]
    for ax, code in zip(panels, ("en", "de"), strict=True):
        expected = 100 * table[(table["language"] == code) & (table["layer"] > 0)]["preference"]
        assert close(cells(ax).ravel().tolist(), expected.tolist())
        texts = [text.get_text() for text in ax.texts]
        assert texts.count("20.0") == 2
        assert texts.count("±0.3") == 16
        assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "2"]
    many = chosen_experts_table(tuple(f"L{n}" for n in range(12)), 16, 64)
    figure = plots.chosen_experts(many.sample(frac=1, random_state=0)).get_figure(root=True)
    fits(figure)
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert len(panels) == 12
    for ax in panels:
        shown = cells(ax)
        assert shown.shape == (16, 64)
        assert sorted(set(shown.ravel().round(1))) == [-0.5, -0.4, 0, 20]
        assert not ax.texts
    with pytest.raises(ValueError, match="One Axes holds one panel, but the table for chosen_exp"):
        plots.chosen_experts(table, plt.subplots()[1])
    plt.close()


# ---------------------------------------------------------------- the paper


@every_figure
def test_figures_fit_a_column_and_nothing_is_cut_off(name: str):
    ax = plots.FIGURES[name](TABLES[name]())
    fits(ax.get_figure(root=True))


def fits(figure: Any) -> None:
    assert figure.get_figwidth() in (plots.SINGLE, plots.DOUBLE)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert height <= 9.5
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01


@every_figure
def test_labels_are_sentences(name: str):
    ax = plots.FIGURES[name](TABLES[name]())
    for text in filter(None, (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left"))):
        assert text[0].isupper(), text
        assert not re.search(r"(?<!^)(?<![.] )\b[A-Z][a-z]", text), text


def test_a_legend_of_keys_alone_is_there_once():
    with plots.own_style():
        _, ax = plt.subplots()
        ax.plot([0, 1], [0, 1])
        legend_above(ax, [key("by chance", linestyle=":")])
        assert [len(each.get_texts()) for each in ax.findobj(Legend)] == [1]
        ax.figure.draw_without_rendering()
        _, ax = plt.subplots()
        legend_above(ax)
        assert not ax.findobj(Legend)


@pytest.mark.slow
def test_rows_of_a_legend_are_even_and_wide_letters_count_as_wide():
    font = FontProperties(size=7.0)
    labels = ["silent", "specific", "partly shared", "all shared"]
    found = [style._columns(labels, font, float(room)) for room in range(30, 400, 5)]
    assert found == sorted(found)
    assert set(found) == {1, 2, 4}  # three would leave one alone in the second row
    assert style._columns(["mm"] * 6, font, 150.0) < style._columns(["ii"] * 6, font, 150.0)


def test_every_language_has_its_own_color_and_marker():
    ax = plots.layer_profile(profile_table())
    legend = ax.get_legend()
    assert legend is not None
    assert [each.get_text() for each in legend.get_texts()] == list(CODES)
    looks = {each.get_label(): (to_hex(each.get_color()), each.get_marker()) for each in named(ax)}
    assert {code: color for code, (color, _) in looks.items()} == {
        code: LANGUAGES[code].color for code in CODES
    }
    assert len({marker for _, marker in looks.values()}) == 3


def test_a_line_has_markers_on_every_layer_or_on_none():
    few = named(plots.layer_profile(profile_table(24)))
    assert {each.get_marker() for each in few} == {"o", "s", "^"}
    assert all(each.get_markevery() is None for each in few)
    many = named(plots.layer_profile(profile_table(25)))
    assert {each.get_marker() for each in many} == {""}
    assert len({str(each.get_linestyle()) for each in many}) == 3  # told apart in gray
    assert all(len(each.get_ydata()) == 25 for each in many)


def many_overlaps(n: int, jaccard: Callable[[int, int], float]) -> pd.DataFrame:
    chance = {"chance": 0.02, "chance_low": 0.0, "chance_high": 0.05}
    return pd.DataFrame(
        {"language": f"L{one}", "other": f"L{other}", "common": 9, **chance}
        | {"jaccard": 1.0 if one == other else jaccard(one, other)}
        for one, other in itertools.combinations_with_replacement(range(n), 2)
    )


def with_labels(
    table: pd.DataFrame, n: int, columns: tuple[str, ...], label: str = "L"
) -> pd.DataFrame:
    """The rows of the first label, or pair of labels, for `n` labels instead."""
    first = table[(table[list(columns)] == "en").all(axis=1)].drop(columns=list(columns))
    names = itertools.product([f"{label}{number}" for number in range(n)], repeat=len(columns))
    labels = pd.DataFrame(names, columns=list(columns))
    return labels.merge(first, how="cross")[list(table)]


LABELED = {
    "layer_profile": ("language",),
    "loss_against_fraction": ("language",),
    "curve_of_training": ("language",),
    "language_switching": ("to",),
    "switching_against_size": ("to",),
    "accuracy_lost": ("language", "off"),
    "perplexity_matrix": ("off", "read"),
}
FITTED = LABELED | {"rate_change_by_label": ("language",)}
VALUES = {
    "layer_profile": "neurons",
    "loss_against_fraction": "own_minus_others",
    "curve_of_training": "increase",
    "language_switching": "good",
    "switching_against_size": "good",
    "accuracy_lost": "drop",
    "perplexity_matrix": "increase",
}


@pytest.mark.parametrize("name", LABELED)
def test_many_labels_are_a_heat_map_of_the_same_numbers(name: str):
    """A number of its own in every cell, and a row for each label in the order of the table."""
    table = TABLES[name]()
    if "task" in table:
        table = table[table["task"] == "facts"]
    if "en" not in set(table[LABELED[name][0]]):
        table = table.replace({"de": "en"})
    table = with_labels(table, 9, LABELED[name])
    table[VALUES[name]] = np.arange(len(table)) / len(table)
    ax = plots.FIGURES[name](table)
    shown = cells(ax)
    assert sorted(shown.ravel().tolist()) == pytest.approx(sorted(table[VALUES[name]]))
    rows = "off" if "off" in table else LABELED[name][0]
    first = table[table[rows] == "L0"][VALUES[name]]
    assert sorted(shown[0].tolist()) == pytest.approx(sorted(first))
    labels = [each.get_text().split()[0] for each in ax.get_yticklabels()]
    assert labels == [f"L{number}" for number in range(9)]
    assert not ax.get_legend()
    (key_of_colors,) = (each for each in ax.get_figure(root=True).axes if each is not ax)
    assert key_of_colors.get_xlabel()


@pytest.mark.slow
@pytest.mark.parametrize("label", ["L", "Chinese (Traditional) "])
@pytest.mark.parametrize("n", [6, 22, 32, 100])
@pytest.mark.parametrize("name", FITTED)
def test_figures_of_many_labels_fit_a_page_and_nothing_is_cut_off(name: str, n: int, label: str):
    table = TABLES[name]()
    if "en" not in set(table[FITTED[name][0]]):
        table = table.replace({"de": "en"})
    fits(plots.FIGURES[name](with_labels(table, n, FITTED[name], label)).get_figure(root=True))


@pytest.mark.slow
@pytest.mark.parametrize("width", [2.5, 3.3, 5.5])
@every_figure
def test_a_figure_has_the_width_and_the_font_of_the_paper(name: str, width: float):
    with plots.on_paper(width=width, font="DejaVu Serif", size=7.0):
        ax = plots.FIGURES[name](TABLES[name]())
    figure = ax.get_figure(root=True)
    assert figure.get_figwidth() == width
    assert ax.yaxis.label.get_fontsize() == 7
    assert ax.yaxis.label.get_fontname() == "DejaVu Serif"
    after = plots.FIGURES[name](TABLES[name]())
    assert after.yaxis.label.get_fontsize() == 8
    assert after.yaxis.label.get_fontname() == "DejaVu Sans"


def test_a_font_that_is_not_installed_is_refused():
    with (
        pytest.raises(ValueError, match="No font 'DejaVu Serrif' is installed"),
        plots.on_paper(font="DejaVu Serrif"),
    ):
        pass
    for wrong in ({"width": 0.1}, {"size": 100.0}):
        with pytest.raises(ValueError, match="give"), plots.on_paper(**wrong):
            pass


def test_an_axes_of_the_caller_is_used_and_keeps_the_caller_s_style():
    with plt.style.context("dark_background"):
        figure, (left, right) = plt.subplots(1, 2)
        assert plots.layer_profile(profile_table(), left) is left
        assert plots.sharing(sharing_table(), right) is right
        size = figure.get_size_inches().tolist()
    assert plt.get_fignums() == [figure.number]
    assert size == mpl.rcParamsDefault["figure.figsize"]
    assert same_color(left.xaxis.label.get_color(), "white")

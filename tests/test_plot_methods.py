"""Figures of methods: every mark where the table has it, on scales of their own."""

import itertools
import math
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from interp.plots import methods

NAMES = ("random", "entropy (LAPE)", "precision of gate")
FOUND, COST = "planted neurons\nfound", "own loss\n(nats per token)"


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def comparison_table() -> pd.DataFrame:
    values = {FOUND: (0.0, 0.8, 1.0), COST: (-0.01, 0.05, 0.2)}
    rows = []
    for measure, (name, value) in (
        (measure, pair)
        for measure, each in values.items()
        for pair in zip(NAMES, each, strict=True)
    ):
        reach = 0.1 * abs(value)
        row = {"method": name, "measure": measure, "value": value}
        rows.append(row | {"low": value - reach, "high": value + reach, "control": 0.005})
    return pd.DataFrame(rows)


def stability_table() -> pd.DataFrame:
    rows = []
    for (number, name), tokens in itertools.product(enumerate(NAMES), (750, 1500, 6000)):
        value = 0.2 * number + tokens / 20_000
        row = {"method": name, "tokens": tokens, "jaccard": value, "low": value - 0.02}
        rows.append(row | {"high": value + 0.05, "chance": 0.01 * (1 + number)})
    return pd.DataFrame(rows)


def marks(ax: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = (each for each in ax.lines if each.get_label() == label)
    across, up = (np.asarray(each, dtype=float) for each in (found.get_xdata(), found.get_ydata()))
    return across.tolist(), up.tolist()


def scale(ax: Axes, start: float) -> dict[float, float]:
    """What the ticks of the panel that begins at `start` say, and where they are from there on."""
    places = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
    return {
        float(label.get_text()): place - start
        for place, label in places
        if start - 1e-9 <= place <= start + methods._WIDTH + 1e-9
    }


def test_each_panel_has_its_own_scale_and_every_method_its_row():
    table = comparison_table()
    ax = methods.method_comparison(table)
    assert [each.get_text() for each in ax.get_yticklabels()] == list(NAMES[::-1])
    titles = {each.get_text(): each.get_position()[0] for each in ax.texts}
    assert list(titles) == [FOUND, COST]
    for measure, start in titles.items():
        rows = table[table["measure"] == measure]
        ticks = scale(ax, start)
        low, high = min(ticks), max(ticks)
        unit = (ticks[high] - ticks[low]) / (high - low)
        for label, column in ((f"_{measure}", "value"), (f"_{measure} control", "control")):
            across, up = marks(ax, label)
            assert up == [2.0, 1.0, 0.0]  # the first method is on top
            told = [low + (x - start - ticks[low]) / unit for x in across]
            assert told == pytest.approx(rows[column].tolist(), abs=1e-9)
    # Below zero there is room only in the panel that needs it.
    assert scale(ax, titles[FOUND])[0.0] == 0
    assert scale(ax, titles[COST])[0.0] > 0


def test_intervals_reach_from_low_to_high_and_are_left_out_where_they_are_not_known():
    table = comparison_table()
    table.loc[1, ["low", "high"]] = math.nan
    ax = methods.method_comparison(table)
    strokes = [
        segment
        for each in ax.collections
        if isinstance(each, LineCollection)
        for segment in each.get_segments()
    ]
    assert len(strokes) == len(table) - 1
    last = max(strokes, key=lambda each: each[1, 0])
    start, (across, _) = methods._WIDTH + methods._GAP, marks(ax, f"_{COST}")
    assert across[2] - last[0, 0] == pytest.approx(last[1, 0] - across[2])
    assert last[0, 1] == last[1, 1] == 0
    assert last[1, 0] == pytest.approx(start + methods._WIDTH)  # the largest number is at the edge


@pytest.mark.parametrize("n", [22, 100])
def test_a_comparison_of_many_rows_fits_a_page_and_its_rows_do_not_overlap(n: int):
    rows = [{"method": f"L{i}", "measure": "both", "value": i / n} for i in range(n)]
    table = pd.DataFrame(rows).assign(low=math.nan, high=math.nan, control=math.nan)
    ax = methods.method_comparison(table)
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()
    assert figure.get_figheight() < 9.5
    down = 72 * figure.get_figheight() * ax.get_position().height / n
    assert max(label.get_fontsize() for label in ax.get_yticklabels()) <= down
    (dots,) = (line for line in ax.lines if line.get_label() == "_both")
    assert dots.get_markersize() <= down
    assert ax.get_legend() is None  # of intervals and controls that are not there


def test_stability_has_a_line_and_its_chance_for_each_method():
    table = stability_table()
    ax = methods.stability_against_tokens(table.sample(frac=1, random_state=0))
    for name in NAMES:
        rows = table[table["method"] == name]
        across, up = marks(ax, name)
        assert up == pytest.approx(rows["jaccard"].tolist())
        assert across == pytest.approx(rows["tokens"].tolist(), rel=0.05)  # drawn a little aside
        across, up = marks(ax, f"_{name} chance")
        assert (across, up) == (rows["tokens"].tolist(), rows["chance"].tolist())
    assert ax.get_xscale() == "log"
    assert [each.get_text() for each in ax.get_xticklabels()] == ["750", "1.5k", "6k"]
    looks = {(str(line.get_color()), str(line.get_marker())) for line in ax.lines[: 2 * 3 : 2]}
    assert len(looks) == 3


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        *((724, "724"), (1000, "1k"), (1433, "1.4k"), (9_960, "10k"), (36_000, "36k")),
        *(
            (150_000, "150k"),
            (999_999, "1M"),
            (1_500_000, "1.5M"),
            (2_000_000_000, "2G"),
            (0.5, "0.5"),
        ),
    ],
)
def test_sizes_are_told_in_short(tokens, said):
    assert methods._short(tokens) == said


def test_the_names_of_many_methods_take_a_wide_figure():
    table = stability_table()
    many = pd.concat([table, table.assign(method=table["method"] + " again")])
    widths = [
        methods.stability_against_tokens(each).figure.get_figwidth() for each in (table, many)
    ]
    assert widths == [3.3, 6.9]


@pytest.mark.parametrize("draw", [methods.method_comparison, methods.stability_against_tokens])
def test_figures_fit_a_column_with_nothing_cut_off_and_titles_apart(draw):
    table = comparison_table() if draw is methods.method_comparison else stability_table()
    figure = draw(table).figure
    assert figure.get_figwidth() in (3.3, 6.9)
    figure.canvas.draw()
    tight, ax = figure.get_tightbbox(), figure.axes[0]
    assert tight.x0 > -0.02
    assert tight.y0 > -0.02
    assert tight.x1 < figure.get_figwidth() + 0.02
    assert tight.y1 < figure.get_figheight() + 0.02
    legend = ax.get_legend().get_window_extent()
    assert legend.y1 <= figure.bbox.y1 + 1
    assert all(not legend.overlaps(each.get_window_extent()) for each in ax.texts)


def test_tables_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="no column control"):
        methods.method_comparison(comparison_table().drop(columns="control"))
    with pytest.raises(ValueError, match="more than one row for method random"):
        methods.method_comparison(pd.concat([comparison_table(), comparison_table()]))
    with pytest.raises(ValueError, match="zero or less"):
        methods.stability_against_tokens(stability_table().assign(tokens=0).iloc[:1])

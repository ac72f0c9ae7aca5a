"""The command that draws a paper's figures from the results of runs."""

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from interp import cli, plots
from interp.commands.common import save_table
from interp.commands.figure import Figure
from interp.counting.plan import plan_run
from interp.reports.captions import overlap_caption, with_intervals
from interp.reports.figures import figures_of
from interp.reports.kinds import KINDS
from interp.selections.comparison import overlaps
from interp.selections.neuron_selection import NeuronSelection
from tests.figure_tables import CODES, fraction_table, overlap_rows, patching_table, profile_table

OF_TEXTS = "a list of texts, which a figure cannot show"
TABLES = {
    "ask: answers.to_frame()": ["method_comparison"],
    "ask: answers.answers_frame()": [OF_TEXTS],
    "crossing: result.to_frame()": ["patching", "lens"],
    "effects: matrix.to_frame()": ["perplexity_matrix"],
    "evaluate: ablation.to_frame()": ["accuracy_lost"],
    "explain: explanation.to_frame()": ["explanation"],
    "figure: table": [],  # which is that of a figure
    "find: table": ["method_comparison"],
    "find: change.to_frame(known)": ["rate_change", "rate_change_by_label"],
    "find: effects": ["method_comparison"],
    "lock: confusion.to_frame()": [OF_TEXTS],
    "lock: lock.to_frame()": ["method_comparison"],
    "plan: plan.to_frame()": ["method_comparison"],
    "routing: table": ["routing"],
    "routing: routing.expert_frame()": ["chosen_experts"],
    "stability: stability.to_frame()": ["method_comparison"],
    "steer: rates.to_frame()": ["language_switching"],
    "steer: rates.texts_frame()": [OF_TEXTS],
    "tasks: frame": ["attribution_sums"],
    "tasks: profile.to_frame()": ["sharing"],
    "write: written.to_frame()": [OF_TEXTS],
}
"""Every table that a command writes, by its module, and the figures that draw it."""


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def rates_table() -> pd.DataFrame:
    """Like rates.csv of `interp steer`: a row per language that is written."""
    rows = []
    for to in CODES[1:]:
        for condition in ("no edit", "neurons"):
            for language in (*CODES, "other"):
                rate = 0.1 + 0.6 * (language == to) * (condition == "neurons")
                ends = {"rate_low": rate - 0.05, "rate_high": rate + 0.1}
                good = {"good": rate / 2, "good_low": rate / 2 - 0.02, "good_high": rate}
                row = {"language": language, "texts": 9, "rate": rate, **ends, **good}
                rows.append(row | {"to": to, "condition": condition})
    return pd.DataFrame(rows)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    mask = torch.rand(3, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.2
    for folder in ("run/steer", "run/one", "run/two"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    run = tmp_path / "run"
    NeuronSelection(mask, CODES).to_json(run / "neurons.json")
    rates_table().to_csv(run / "steer" / "rates.csv", index=False)
    patching_table().to_csv(run / "one" / "patch.csv", index=False)
    patching_table().assign(answer="Paris").to_csv(run / "two" / "patch.csv", index=False)
    return run


NAMES = ["language_switching", "layer_profile", "overlap", "patching-one", "patching-two"]


@pytest.mark.slow
def test_every_figure_of_the_report_is_written_with_its_table(results, capsys):
    cli.main(["figure", str(results), "--format", "pdf", "svg", "png"])
    out = results / "figures"
    files = {path.name for path in out.iterdir()}
    assert files == {
        f"{name}.{ending}" for name in NAMES for ending in ("csv", "pdf", "svg", "png")
    }
    shown = capsys.readouterr().out
    assert "overlap: Overlap of two languages" in shown
    assert "5 figures (.pdf, .svg, .png)" in shown
    for name in NAMES:
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert b"<svg" in (out / f"{name}.svg").read_bytes()
        before = (out / f"{name}.png").read_bytes()
        plots.redraw(out / f"{name}.csv")  # the table draws the same bytes
        assert (out / f"{name}.png").read_bytes() == before


@pytest.mark.slow
def test_one_figure_has_the_width_the_font_and_the_names_asked_for(results, tmp_path):
    arguments = ["figure", str(results), "layer_profile", "--format", "png", "pdf", "--width"]
    settings = ["--font", "DejaVu Serif", "--names", "name", "--out", str(tmp_path / "mine")]
    cli.main([*arguments, "double", *settings])
    files = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert files == ["layer_profile.csv", "layer_profile.pdf", "layer_profile.png"]
    with Image.open(tmp_path / "mine" / "layer_profile.png") as image:
        assert image.width == pytest.approx(300 * plots.DOUBLE, abs=1)
    assert b"DejaVuSerif" in (tmp_path / "mine" / "layer_profile.pdf").read_bytes()
    assert set(pd.read_csv(tmp_path / "mine" / "layer_profile.csv")["language"]) == {
        *("English", "German", "Japanese")
    }
    cli.main([*arguments, "2.5", "--out", str(tmp_path / "small")])
    with Image.open(tmp_path / "small" / "layer_profile.png") as image:
        assert image.width == 750


def test_a_table_of_steer_is_drawn_by_itself(results):
    path = results / "steer" / "rates.csv"
    assert list(figures_of(path)) == ["language_switching"]
    ax = plots.language_switching(pd.read_csv(path))
    assert [each.get_text() for each in ax.get_xticklabels()] == ["no edit", "neurons"]
    drawn = {round(float(y), 3) for line in ax.lines for y in line.get_ydata()}
    assert {0.1, 0.05, 0.7, 0.35} <= drawn


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["overlaps"], "Did you mean overlap?"),
        (["qqqqq"], "Give one of perplexity_matrix"),
        (["lens"], "no result for the figure lens: it has"),
        (["overlap", "--width", "wide"], "give single, double, or a number"),
        (["overlap", "--width", "99"], "give 1 to 40"),
        (["overlap", "--font", "Nonesuch Sans"], "No font 'Nonesuch Sans' is installed"),
        (["overlap", "--out", "x.png"], "give a folder, and --format png"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(results, more, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["figure", str(results), *more])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (results / "figures").exists()


def test_figures_without_a_table_are_named_with_the_command_that_makes_it(tmp_path):
    run = tmp_path / "a run"
    run.mkdir()
    plain = {"wanted": {"firing": True, "moments": False}}
    routed = {"wanted": {"firing": True, "moments": True}, "units": {}}
    said = {}
    for name, plan in {"plain": plain, "routed": routed}.items():
        (run / "run.json").write_text(json.dumps(plan), encoding="utf-8")
        said[name] = Figure(run).not_drawn()
    first = f"layer_profile, overlap (interp find '{run}')"
    matrix = f"perplexity_matrix (interp deactivate '{run}')"
    steered = f"language_switching (interp steer '{run}')"
    experts = f"routing, chosen_experts (interp routing '{run}')"
    assert said["plain"] == f"Not drawn before their command has run: {first}; {matrix}."
    assert said["routed"].endswith(f": {first}; {experts}; {matrix}; {steered}.")
    for name in ("neurons.json", "routing.csv", "deactivate/matrix.safetensors", "steer/rates.csv"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    assert Figure(run).not_drawn() == ""
    assert Figure(run / "steer").not_drawn() == ""


def test_a_caption_has_what_the_figure_leaves_out():
    assert "overlap by 0.010" in overlap_caption(overlap_rows())
    varied = overlap_rows()
    varied.loc[1, "chance"] = 0.3
    assert "Above it, that of random sets" in overlap_caption(varied)
    few, many = (
        pd.concat([profile_table().assign(language=f"L{n}") for n in range(size)])
        for size in (8, 9)
    )
    assert with_intervals("Neurons.", plots.layer_profile, few) == "Neurons."
    assert "which the table has" in with_intervals("Neurons.", plots.layer_profile, many)
    assert with_intervals("Loss.", plots.loss_against_fraction, fraction_table()) == "Loss."


def tables_written() -> Iterator[str]:
    """The first argument of every call in a command that writes a table."""
    for file in sorted((Path(cli.__file__).parent / "commands").glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and file.stem != "common":
                name = ast.unparse(call.func)
                if name in ("save_table", "plots.save", "interp.plots.save"):
                    yield f"{file.stem}: {ast.unparse(call.args[0])}"
                elif name.endswith(".to_csv"):
                    yield f"{file.stem}: {name.removesuffix('.to_csv')}"


def test_every_table_that_a_command_writes_is_drawn():
    """A new table needs a kind with a figure (`interp/reports/kinds.py`) and a line here."""
    assert sorted(tables_written()) == sorted(TABLES)
    drawn = {kind.draw.__name__ for kind in KINDS}
    drawn |= {draw.__name__ for kind in KINDS for draw, *_ in kind.more}
    assert {name for names in TABLES.values() for name in names} - {OF_TEXTS} <= drawn


def test_tables_of_other_commands_are_drawn(tmp_path: Path, capsys):
    """Under any name that `--out` may give them; the numbers are those of the table."""
    mask = torch.rand(3, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.2
    selection = NeuronSelection(mask, CODES)
    others = {"one": selection, "two": NeuronSelection(~mask, CODES), "three": selection}
    pairs = overlaps(others)
    pairs.to_csv(tmp_path / "lap-lape.csv", index=False)
    ends = {"low": 0.4, "high": 0.6, "chance": 0.1, "most": 1.0}
    changes = ["half of the text", "one shard left out", "without en"]
    rows = [
        {"change": change, "language": code, "jaccard": 0.1 * number, **ends}
        for number, change in enumerate(changes)
        for code in CODES
    ]
    stable = pd.DataFrame(rows)
    stable.to_csv(tmp_path / "stability-lap.csv", index=False)
    numbers = {"before": 0.4, "after": 0.5, "difference": 0.1}
    numbers |= {"difference_low": -0.1, "difference_high": 0.3}
    price = [
        {"measure": measure, "under": under, **numbers}
        for measure in ("answers that stay", "nats per token of de")
        for under in ("locked", "random neurons")
    ]
    pd.DataFrame(price).to_csv(tmp_path / "price.csv", index=False)
    changes = [(0, 0.2, False), (0, -0.4, True), (1, 0.1, False)]  # layer, change, in A
    by_neuron = pd.DataFrame(
        [
            {"language": "de", "layer": layer, "neuron": number, "before": 0.5, "in_B": False}
            | {"after": 0.5 + change, "change": change, "in_A": inside}
            | {"change_low": change - 0.196, "change_high": change + 0.196}
            for number, (layer, change, inside) in enumerate(changes)
        ]
    )
    by_neuron.to_csv(tmp_path / "base-instruct-neurons.csv", index=False)
    own = {"language": "de", "before": 0.2, "after": 0.5, "change": 0.3}
    own |= {"change_low": 0.1, "change_high": 0.5}
    pd.DataFrame([own]).to_csv(tmp_path / "base-instruct-effects.csv", index=False)
    cli.main(["plan", "babel", "--tokens", "20480", "--out", str(tmp_path / "cost.csv")])
    cli.main(["figure", str(tmp_path), "--format", "png"])
    assert "7 figures (.png)" in capsys.readouterr().out
    layers = plots.read_table(tmp_path / "figures" / "rate_change.csv")
    assert layers["neurons"].tolist() == ["all neurons", "all neurons", "neurons of A"]
    assert layers["change"].tolist() == pytest.approx([0.3, 0.1, 0.4])
    assert layers["chance"].tolist() == pytest.approx([0.1 * (2 / math.pi) ** 0.5] * 3)
    by_label = plots.read_table(tmp_path / "figures" / "rate_change_by_label.csv")
    expected = [(0.04 + 0.16) / 2 - 0.01, 0.0]  # less the squared error, 0.1
    assert (by_label["difference"] ** 2).tolist() == pytest.approx(expected)
    drawn = {
        path.stem.removeprefix("method_comparison-"): plots.read_table(path)
        for path in (tmp_path / "figures").glob("*.csv")
    }
    assert drawn["lap-lape"]["measure"].unique().tolist() == ["two", "three"]
    assert drawn["lap-lape"]["value"].tolist() == pytest.approx([0, 0, 0, 1, 1, 1])
    assert drawn["lap-lape"]["control"].tolist() == pytest.approx(pairs["chance"][:6].tolist())
    assert drawn["stability-lap"]["method"].tolist() == [*CODES, *CODES]
    assert drawn["stability-lap"]["value"].tolist() == pytest.approx([0, 0, 0, 0.1, 0.1, 0.1])
    assert set(drawn["stability-lap"]["control"]) == {0.1}
    ends = ["value", "low", "high", "control"]
    assert drawn["price"][ends].values.tolist()[0] == [0.1, -0.1, 0.3, 0.0]
    both, change = drawn["base-instruct-effects"][ends].values.tolist()
    assert (both[0], both[3], change) == (0.5, 0.2, [0.3, 0.1, 0.5, 0.0])
    assert math.isnan(both[1])
    assert math.isnan(both[2])
    sizes = drawn["cost"].set_index("method")["value"]
    assert "tokens" not in sizes
    assert sizes["weights"] == plan_run("babel", 6, 20480).weights / 1e9


def test_a_text_with_a_carriage_return_is_one_row_of_its_table(tmp_path: Path):
    frame = pd.DataFrame({"text": ["a\rb", 'c "d"\ne'], "loss": [0.5, math.nan]})
    save_table(frame, tmp_path / "texts.csv")
    pd.testing.assert_frame_equal(plots.read_table(tmp_path / "texts.csv"), frame)

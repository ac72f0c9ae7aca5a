"""The page that compares methods: numbers of the kept tables, and words that follow from them."""

import importlib

import pandas as pd
import pytest

from experiments import method_page as subject
from experiments.compare_methods import MEASURES, comparison
from experiments.findings import ROOT
from experiments.method_findings import JUDGED, LAPE, RANDOM
from experiments.method_page import COMPARE, CONFUSED, PAGE
from interp.inference.claims import load_claims
from interp.plots.files import read_table


def confusions() -> pd.DataFrame:
    """Two strengths; at the greater one words fool LAPE and the rate, and pairs the rate."""
    rows = [
        (effect, method, decoy, share)
        for effect in (2.0, 6.0)
        for method, shares in (
            (RANDOM, (0.5, 0.5)),
            (LAPE, (0.4, 0.05)),
            ("rate (LAP)", (0.3, 0.2)),
            ("lead in rate", (0.02, 0.0)),
        )
        for decoy, share in zip(("word", "pair"), shares, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["effect", "method", "decoy", "share"])
    frame.loc[frame["effect"] == 2.0, "share"] = 0.9
    ends = {"share_low": frame["share"] - 0.01, "share_high": frame["share"] + 0.01}
    return frame.assign(**ends, lost=0.25, lost_low=0.2, lost_high=0.3)


def found() -> pd.DataFrame:
    rows = [
        {"effect": effect, "selector": method, "decoys": decoys}
        | {"recall": recall, "recall_low": recall - 0.1, "recall_high": recall + 0.1}
        for effect in (2.0, 6.0)
        for method in (RANDOM, LAPE, "rate (LAP)", "lead in rate")
        for decoys, recall in (("none", 0.8), ("all", 0.5))
    ]
    return pd.DataFrame(rows)


def test_the_page_has_the_numbers_of_its_tables():
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    for name, block in subject.blocks(ROOT).items():
        assert f"<!-- {name} -->\n{block}\n<!-- /{name} -->" in page, (
            "run python -m experiments.findings"
        )


def test_the_table_of_the_figure_is_read_back():
    names = ["method", *(f"{x}{y}" for x in MEASURES for y in ("", "_low", "_high", "_control"))]
    rows = [[name, *(number / 100 + k for k in range(20))] for number, name in enumerate("abc")]
    table = pd.DataFrame(rows, columns=names)
    pd.testing.assert_frame_equal(subject.by_method(comparison(table)), table, check_names=False)


def test_methods_are_ordered_by_what_a_language_loses():
    columns = ("recovery", "selectivity", "switching", "stability")
    rows = [("a", 0.1), ("b", 0.7), ("c", float("nan"))]
    table = pd.DataFrame(
        {"method": name} | {f"{x}{end}": value for x in columns for end in ("", "_low", "_high")}
        for name, value in rows
    )
    _, _, *lines = subject.comparison(table).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| b", "| a", "| c"]
    assert lines[0].count("0.70 (0.70 to 0.70)") == 4
    assert lines[2].count("none chosen") == 4


def test_a_method_is_fooled_where_a_tenth_of_its_choice_is_a_decoy():
    header, _, *lines = subject.fooled(confusions(), found()).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines}
    assert header.strip("| ").split(" | ")[2:4] == ["fooled by, effect 2", "found, effect 6"]
    assert cells[LAPE][1:] == [
        *("0.50 (0.40 to 0.60)", "word 0.90, pair 0.90"),
        *("0.50 (0.40 to 0.60)", "word 0.40"),
    ]
    assert cells["rate (LAP)"][4] == "word 0.30, pair 0.20"
    assert cells["lead in rate"][4] == "none"
    silent = confusions().assign(share=float("nan"))
    assert subject.fooled(silent, found()).count("chose no planted neuron") == 8
    alone = confusions()[lambda frame: frame["effect"] == 6.0]
    assert subject.fooled(alone, found()).splitlines()[0].count("|") == 4


def test_sentences_say_who_is_fooled_and_leave_the_control_out():
    def said(rows: pd.DataFrame) -> list[str]:
        return subject.confusion_sentences(rows, found(), "made-up models")

    *weak, worst, honest = said(confusions())
    assert worst.startswith("At an effect of 6 in made-up models, LAPE is fooled most by neurons")
    assert "word, which are 0.40 (0.39 to 0.41) of its choice" in worst
    assert worst.endswith("cost it 0.25 (0.20 to 0.30) of the planted.")
    assert honest.endswith("is a tenth of the choice, by lead in rate (0.50).")
    assert weak[1].endswith("by no method.")
    nobody = confusions().assign(share=0.0)
    assert said(nobody)[3].count("(0.50)") == 3


def test_a_method_that_finds_nothing_is_not_praised_for_not_being_fooled():
    blind = found().assign(recall=0.4)
    *_, honest = subject.confusion_sentences(confusions(), blind, "made-up models")
    assert honest.endswith("by no method.")


def test_predictions_that_came_true_are_not_among_the_wrong_ones():
    claims = load_claims(ROOT / "experiments" / "measured" / "babel" / "compare_methods.json")
    said = subject.predicted_and_wrong(claims)
    wrong = [claim for claim in claims if claim.verdict != "holds"]
    assert 0 < len(wrong) < len(claims)
    assert said.startswith(f"Of {len(claims)} predictions, {len(wrong)} are not borne out")
    for claim in claims:
        assert (claim.statement in said) == (claim in wrong)


def test_what_two_models_share_is_said_once():
    methods = subject.by_method(read_table(ROOT / "figures" / "method_comparison-babel.csv"))
    names = [*JUDGED[1:], *(f"{name}_{end}" for name in JUDGED[1:] for end in ("low", "high"))]
    other = methods.assign(**(methods[names] / 2))
    lines = subject.sentences({"babel": methods, "gemma": other}, {}).splitlines()
    planted = [line for line in lines if "Planted neurons found" in line]
    assert len(planted) == 2
    assert all(line.endswith("compare_methods babel`") for line in planted)
    assert "Babel and Gemma 3 270M rank 17 methods with a correlation of 1.00 by sel" in lines[-1]
    turned = subject.sentences(
        {"babel": methods, "gemma": other.assign(stability=-other["stability"])}, {}
    )
    assert "1.00 by switching, -1.00 by stability." in turned.splitlines()[-1]
    rises = [line for line in lines if "Rise of the own loss" in line]
    assert ["Babel: " in rises[0], "Gemma 3 270M: " in rises[1]] == [True, True]
    assert [line.split()[-1] for line in rises] == ["babel`", "gemma`"]
    assert [line.split(".")[0] for line in lines] == [str(n + 1) for n in range(len(lines))]


def test_each_study_of_confusions_speaks_of_its_models_and_names_its_command():
    both = dict.fromkeys(CONFUSED, (confusions(), found()))
    lines = subject.sentences({}, both).splitlines()
    of = {"made-up models": "methods short", "Babel": "pretrained short"}
    of["Gemma 3 270M"] = "pretrained gemma"
    for models, command in of.items():
        (line,) = [line for line in lines if f"At an effect of 6 in {models}," in line]
        assert line.endswith(f" `python -m experiments.confuse_{command}`")


def test_tables_of_one_study_on_two_models_are_kept_apart(tmp_path):
    for of in CONFUSED.values():
        for name in ("found", "confusions"):
            path = tmp_path / "studies" / of.study / of.preset / f"{name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{of.models} {name}", encoding="utf-8")
    subject.keep(tmp_path / "studies", tmp_path / "measured")
    for of in CONFUSED.values():
        for name in ("found", "confusions"):
            kept = of.kept(tmp_path / "measured", name)
            assert kept.read_text(encoding="utf-8") == f"{of.models} {name}"


@pytest.mark.parametrize("command", [*(of.command for of in CONFUSED.values()), *COMPARE.values()])
def test_the_commands_are_those_of_presets(command: str):
    *_, name, preset = command.split()
    assert preset in importlib.import_module(name).experiment.presets

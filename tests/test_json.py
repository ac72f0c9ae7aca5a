"""--json: standard output holds the rows of the table and nothing else, for other programs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import interp
from interp import cli
from interp.commands.answers import has_answer, json_rows
from interp.commands.find import summary
from interp.models.doctor import Check, Diagnosis
from interp.selections.neuron_selection import NeuronSelection
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

WITH_A_TABLE = {
    *("doctor", "plan", "collect", "merge", "status", "find", "compare", "stability", "explain"),
    *("import", "deactivate", "write", "steer", "ask", "lock", "evaluate", "share", "attribute"),
    *("patch", "lens", "routing"),
}

HALF = ("--fraction", "0.1", "--busy-quantile", "0.5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a task, and a run with two selections."""
    folder = tmp_path_factory.mktemp("json")
    tiny_models.build("qwen2", folder / "model")
    (folder / "text").mkdir()
    (folder / "task").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
        item = {"text": "der Hund", "endings": [" rot", " lange"], "answer": 0}
        rows = [json.dumps(item | {"id": name}) for name in "abc"]
        (folder / "task" / f"{code}.jsonl").write_text("\n".join(rows))
    settings = ("--block-length", "16", "--n-shards", "4", "--hygiene", "off")
    run, text = str(folder / "run"), str(folder / "text")
    cli.main(["collect", str(folder / "model"), "--text", text, *settings, "--out", run])
    cli.main(["find", run, *HALF])
    cli.main(["find", run, "--method", "lap", "--fraction", "0.1"])
    return folder


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """What is on standard output, read as JSON, and what is on standard error."""
    capsys.readouterr()
    cli.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return json.loads(out), err


def same(rows: list[dict[str, Any]], frame: pd.DataFrame) -> bool:
    """Whether the rows are those of the frame, cell by cell, as plain Python compares them."""
    expected = frame.to_dict("records")
    return len(rows) == len(expected) and all(
        list(row) == list(other)
        and all(
            row[name] == value or (row[name] is None and value != value)
            for name, value in other.items()
        )
        for row, other in zip(rows, expected, strict=True)
    )


# ---------------------------------------------------------------- what is printed


@pytest.mark.slow
def test_the_doctor_and_the_plan(place: Path, capsys: pytest.CaptureFixture[str]):
    model = str(place / "model")
    rows, said = printed(["doctor", model], capsys)
    assert same(rows, interp.doctor(interp.load(model)).to_frame())
    assert "its hooks tell the truth" in said
    rows, said = printed(["plan", model, "--languages", "3", "--tokens", "20480"], capsys)
    assert same(rows, interp.counting.plan_run(model, 3, 20480).to_frame())
    assert "The passes take 1 s at 100 TFLOP/s" in said


@pytest.mark.slow
def test_the_pieces_of_a_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows, said = printed(["status", str(place / "run")], capsys)
    assert same(rows, interp.Run.open(place / "run").verify().to_frame())
    assert {(row["shard"], row["language"]) for row in rows} == {
        (shard, code) for shard in range(4) for code in LANGUAGES
    }
    assert "12 of 12 pieces are done" in said
    started = tmp_path / "started"
    (started / "pieces").mkdir(parents=True)
    shutil.copy(place / "run" / "run.json", started / "run.json")
    (started / "pieces" / "0000-de.safetensors").write_bytes(b"damaged")
    rows, _ = printed(["status", str(started)], capsys)
    assert sorted(row["state"] for row in rows) == ["bad", *["missing"] * 11]
    assert all((row["state"] == "bad") == ("damaged" in row["detail"]) for row in rows)


@pytest.mark.slow
def test_selections(place: Path, capsys: pytest.CaptureFixture[str]):
    run = place / "run"
    rows, said = printed(["find", str(run), *HALF], capsys)
    selection = NeuronSelection.from_json(run / "neurons.json")
    again = interp.inference.selection_frequency(
        interp.Run.open(run).firing, lambda part: interp.select_by_entropy(part, 0.1, 0.5).mask
    )
    assert same([dict(list(row.items())[:-1]) for row in rows], summary(selection, again))
    assert [row["neurons"] for row in rows] == list(selection.counts().values())
    assert [sum(row["by_layer"]) for row in rows] == [row["neurons"] for row in rows]
    assert 0 < rows[0]["agreement"] <= 1
    assert "The selection is in" in said
    paths = [run / "neurons.json", run / "neurons-lap.json"]
    rows, said = printed(["compare", *map(str, paths)], capsys)
    both = dict(zip("AB", map(NeuronSelection.from_json, paths), strict=True))
    assert same(rows, interp.selections.overlaps(both))
    assert "Neurons by layer" in said


@pytest.mark.slow
def test_measurements(place: Path, capsys: pytest.CaptureFixture[str]):
    run = str(place / "run")
    rows, _ = printed(["stability", run, *HALF, "--splits", "2"], capsys)
    written = pd.read_csv(place / "run" / "stability.csv")
    pd.testing.assert_frame_equal(pd.DataFrame(rows), written)
    more = ["--tasks", str(place / "task"), "--n-draws", "1"]
    rows, said = printed(["evaluate", run, *more], capsys)
    written = pd.read_csv(place / "run" / "evaluate" / "evaluate.csv")
    pd.testing.assert_frame_equal(pd.DataFrame(rows), written)
    assert "Accuracy" in said


@pytest.mark.slow
def test_the_list_of_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--json"])
    assert stop.value.code == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "run": "run",
        "model": str(place / "model"),
        "languages": sorted(LANGUAGES),
        "pieces": 12,
        "pieces_of": 12,
        "holds": row["holds"],
        "next": row["next"],
    }
    assert row["holds"][:2] == ["counts", "selection"]
    monkeypatch.chdir(place / "text")
    with pytest.raises(SystemExit):
        cli.main(["--json"])
    assert json.loads(capsys.readouterr().out) == []


# ---------------------------------------------------------------- how it is printed


def test_what_is_no_finite_number_is_null_and_all_else_stays_as_it_is():
    frame = pd.DataFrame(
        {
            "text": ["Übung", "b"],
            "number": [0.1 + 0.2, np.nan],
            "large": [np.inf, -1e300],
            "count": pd.array([3, None], dtype="Int64"),
            "flag": [True, False],
            "layers": [[1, 2], (3,)],
            "path": [Path("a/b"), None],
        }
    )
    first, second = json.loads(json_rows(frame))
    assert first == {
        **{"text": "Übung", "number": 0.1 + 0.2, "large": None, "count": 3, "flag": True},
        **{"layers": [1, 2], "path": "a/b"},
    }
    assert (second["number"], second["large"], second["count"]) == (None, -1e300, None)
    assert (second["layers"], second["flag"]) == ([3], False)
    assert "Übung" in json_rows(frame)
    assert json_rows(frame).count("\n") == 2  # a line per row
    assert json_rows(None) == json_rows([]) == "[]\n"


@pytest.mark.slow
def test_a_fault_is_printed_too_and_has_its_exit_code(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fault = Diagnosis("mine", (Check("fires", False, "0.5"),))
    monkeypatch.setattr(interp, "doctor", lambda model: fault)
    for option in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["doctor", str(place / "model"), *option])
        assert stop.value.code == 1
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[") :])
    assert rows == [{"model": "mine", "check": "fires", "passed": False, "detail": "0.5"}]


def test_an_error_leaves_standard_output_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main(["find", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert "is not a run" in err


@pytest.mark.slow
def test_a_forecast_alone_has_no_rows(place: Path, capsys: pytest.CaptureFixture[str]):
    rows, said = printed(["stability", str(place / "run"), *HALF, "--dry-run"], capsys)
    assert rows == []
    assert "on this machine" in said


def test_commands_that_print_a_table_have_the_option_and_no_others():
    assert {name for name, command in cli.COMMANDS.items() if has_answer(command)} == WITH_A_TABLE


@pytest.mark.parametrize("name", ["find", "tidy"])
def test_help_names_the_option_where_there_is_one(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert ("  --json " in capsys.readouterr().out) == (name in WITH_A_TABLE)
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "folder", "--jsno"])
    assert stop.value.code == 2
    assert ("did you mean --json?" in capsys.readouterr().err) == (name in WITH_A_TABLE)

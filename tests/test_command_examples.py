"""What the help of a command shows can be typed as it stands, and its last line names the next."""

import contextlib
import inspect
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch

from interp import cli
from interp.commands.next_steps import NEXT, next_after
from interp.results.terminal import columns_of, listing, table
from interp.selections.neuron_selection import NeuronSelection
from tests.hub_server import hub_server

NOT_RUN = {
    "demo": "takes minutes",
    "collect": "reads all text",
    "explain": "reads all text, and five times more",
    "deactivate": "reads half of all text, many times",
    "steer": "judges by thousands of lines",
    "ask": "answers a hundred questions",
    "evaluate": "answers two tasks, many times",
    "attribute": "integrates over hundreds of prompts",
    "train": "trains",
    "routing": "needs a mixture of experts",
}
"""Commands whose examples are read here and not run, and why."""

FURTHER = {
    "bigscience/bloom-560m": "a model of the hub",
    "meta-llama/Llama-2-70b-hf": "a model of the hub",
    "runs/instruct": "a second run",
    "runs/news": "a second run",
    "results/demo/sentences": "the run of `interp demo` over sentences",
    "change.json": "a file of changes",
    "--font": "a font that is installed",
}
"""What only a further example needs, after one that needs nothing but `interp demo`."""


def examples(name: str) -> list[list[str]]:
    """The command lines in the help, each as its words; continued lines are joined."""
    text = (inspect.getdoc(cli.COMMANDS[name]) or "").replace("\\\n", " ")
    lines = [line.strip() for line in text.split("\n")]
    return [shlex.split(line)[1:] for line in lines if re.match(r"interp [a-z]+( |$)", line)]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_example_is_understood_and_the_first_needs_babel_alone(name: str):
    lines = examples(name)
    assert name in [words[0] for words in lines]
    for words in lines:
        assert cli.chosen(words), words
    assert not {*FURTHER, "MODEL"} & set(lines[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small results/demo."""
    here = tmp_path_factory.mktemp("examples")
    small = ["--tokens", "2560", "--block-length", "64", "--n-shards", "4", "--hygiene", "off"]
    with contextlib.chdir(here):
        cli.main(["collect", *small, "--moments", "--contexts", "2", "--out", "results/demo"])
        cli.main(["find", "results/demo", "--fraction", "0.03"])
        cli.main(["find", "results/demo", "--method", "lap"])  # what the example of find leaves
    return here


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine, whose token is known, with what the example of push publishes."""
    with hub_server() as server:
        constants, path = huggingface_hub.constants, "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + path)
        monkeypatch.setenv("HF_TOKEN", "secret")
        cli.main(examples("push")[0])
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in NOT_RUN])
def test_the_examples_work_as_they_stand_after_the_demo(
    name: str,
    folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(folder)
    if name in ("push", "pull"):
        request.getfixturevalue("hub")
    for line in re.findall(r"^ *(printf .*)$", inspect.getdoc(cli.COMMANDS[name]) or "", re.M):
        subprocess.run(["sh", "-c", line], check=True)
    for words in examples(name):
        if not FURTHER.keys() & set(words):
            cli.main(words)
            last = capsys.readouterr().out.splitlines()[-1]
            assert name == "completion" or last.startswith("Next: interp "), words


# ---------------------------------------------------------------- the last line


def test_every_command_names_the_next_but_that_for_shells():
    assert NEXT.keys() == cli.COMMANDS.keys() - {"completion"}


@pytest.mark.parametrize("name", NEXT)
def test_what_is_next_is_a_command_that_exists(name: str):
    """For the first example of a command; words in capitals are what only its user knows."""
    words = next(words for words in examples(name) if words[0] == name)
    step = next_after(name, cli.chosen(words))
    assert step is not None
    arguments = shlex.split(step.partition(", with")[0])
    assert arguments[0] == "interp"
    assert cli.chosen(arguments[1:])


def test_the_next_follows_from_what_a_run_holds(tmp_path: Path):
    run = tmp_path / "run"
    chosen = cli.chosen(["find", str(run)])
    assert next_after("find", chosen) == f"interp deactivate {run}"
    chosen = cli.chosen(["find", str(run), "--method", "lap"])
    assert next_after("find", chosen) == f"interp deactivate {run}/neurons-lap.json"
    chosen = cli.chosen(["status", str(tmp_path)])
    assert next_after("status", chosen) == f"interp report {tmp_path}"
    dry = cli.chosen(["deactivate", str(run), "--dry-run"])
    assert next_after("deactivate", dry) == "the same command without --dry-run"


def test_after_a_measurement_it_is_not_measured_again(tmp_path: Path):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    plan = {"n_shards": 1, "languages": ["de"], "wanted": {"moments": True, "contexts": 4}}
    (run / "run.json").write_text(json.dumps(plan))
    for name in ("firing.safetensors", "neurons.json"):
        (run / name).touch()

    def after(*words: str) -> str | None:
        return next_after(words[0], cli.chosen([*words]))

    write = ("write", str(run), "Hallo")
    assert after(*write, "--off", "de") == f"interp deactivate {run}"
    selection = str(run / "neurons-lap.json")
    assert after("write", selection, "Hallo", "--off", "de") == f"interp deactivate {selection}"
    assert after(*write, "--to", "de", "fr") == f"interp steer {run} --to de fr"
    assert after("deactivate", str(run), "--out", str(other)) == f"interp report {other}"
    (run / "deactivate").mkdir()
    (run / "deactivate" / "matrix.safetensors").touch()
    assert after(*write, "--off", "de") == f"interp steer {run}"
    assert after("steer", str(run), "--out", str(other)) == f"interp report {other}"
    (run / "steer").mkdir()
    (run / "steer" / "rates.csv").touch()
    assert after(*write, "--to", "de") == f"interp page {run}"
    assert after("page", str(run), "--out", str(other)) == f"interp report {run}"


def test_the_last_line_goes_where_messages_go(capsys: pytest.CaptureFixture[str]):
    cli.main(["plan", "babel", "--tokens", "20480"])
    out, err = capsys.readouterr()
    assert (out.splitlines()[-1], err) == ("Next: interp collect babel", "")
    cli.main(["plan", "babel", "--tokens", "20480", "--json"])
    out, err = capsys.readouterr()
    assert out.endswith("]\n")
    assert err.splitlines()[-1] == "Next: interp collect babel"


# ---------------------------------------------------------------- tables


def test_columns_that_do_not_fit_follow_below_with_the_first_again():
    rows = [["", "a", "bb", "ccc"], ["日本", "1", "22", "333"], ["x", "4", "5", "6"]]
    whole = ["      a  bb  ccc", "日本  1  22  333", "x     4   5    6"]
    assert table(rows, 16) == whole
    assert table(rows, 15) == [
        *["      a  bb", "日本  1  22", "x     4   5", ""],
        *["      ccc", "日本  333", "x       6"],
    ]
    assert table(rows, 1)[:4] == ["      a", "日本  1", "x     4", ""]  # one at least
    assert table(rows, 16, stay=2)[1] == "日本  1  22  333"
    assert table(rows, 13, stay=2)[5] == "日本  1  333"


def test_prose_in_the_last_column_goes_on_below_itself():
    rows = [["ok", "a name", "one two three four five six"], ["FAIL", "b", ""]]
    wide = ["ok    a name  one two three four five six", "FAIL  b"]
    assert listing(rows, 41) == wide
    assert listing(rows, 40) == [
        *["ok    a name  one two three four five", "              six", "FAIL  b"],
    ]
    narrow = ["ok    a name", "    one two three four five", "    six", "FAIL  b"]
    assert listing(rows, 30) == narrow  # 16 columns would be left beside the names
    assert listing([["ok", "a name", "short"]], 17) == ["ok  a name  short"]  # which is enough here


TABLES = {
    "doctor": ["doctor", "babel"],
    "plan": ["plan", "babel"],
    "patch": ["patch", "Montag ist", "Thursday is", "--answers", " Friday", " Tuesday"],
    "lens": ["lens", "--languages", "ja", "en", "de", "--limit", "8"],
    "collect": ["collect", "--tokens", "1280", "--block-length", "64", "--n-shards", "2"],
    "compare": ["compare", "results/demo", "results/demo/neurons.json"],
}


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_a_command_fit_the_terminal(
    name: str,
    width: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", str(width))
    cli.main(TABLES[name])
    rows = [line for line in capsys.readouterr().out.splitlines() if "  " in line.strip()]
    assert len(rows) > 3
    assert [line for line in rows if columns_of(line) > width] == []


@pytest.mark.parametrize(("width", "parts"), [(40, 2), (100, 1)])
def test_the_table_of_a_selection_fits_the_terminal(
    width: int,
    parts: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", str(width))
    mask = torch.zeros(2, 6, 20, dtype=torch.bool)
    mask[0, 5, :3] = mask[1, 0, 3:7] = True
    NeuronSelection(mask, ("de", "en")).to_lape_pth(tmp_path / "n.pth")
    arguments = ["import", str(tmp_path / "n.pth"), "--languages", "de", "en", "--neurons", "20"]
    cli.main([*arguments, "--out", str(tmp_path / "n.json")])
    *lines, _, _, _ = capsys.readouterr().out.splitlines()  # sentences, which the terminal wraps
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("de  German") for line in lines) == parts
    cells = " ".join(line for line in lines if line.startswith("de")).split()
    assert [cell for cell in cells if cell not in ("de", "German")] == list("33000003")

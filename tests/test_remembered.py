"""A run remembers its model, text, labels and settings, and no command after it asks again."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from interp import cli
from interp.commands.common import ModelChoice
from interp.commands.remembered import Memory, is_run, memory_of
from interp.counting.run import Run
from interp.evaluations.perplexity import PerplexityMatrix
from interp.results import artifacts
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

ENDINGS = {"de": ["a", "b"], "en": ["c", "d"], "fr": ["e", "f"]}
KNOBS = ("--block-length", "16", "--n-shards", "4", "--hygiene", "off")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text, a task, and a run with moments that is half of the text."""
    folder = tmp_path_factory.mktemp("remembered")
    tiny_models.build("qwen2", folder / "model")
    (folder / "text").mkdir()
    (folder / "task").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
        row = {"endings": ENDINGS[code], "answer": 0}
        rows = [json.dumps(row | {"id": name, "text": f"der Hund {name}"}) for name in "abc"]
        (folder / "task" / f"{code}.jsonl").write_text("\n".join(rows))
    model, text = str(folder / "model"), str(folder / "text")
    settings = ["--bos", "document", "--split", "train", "--moments", "--contexts", "2"]
    arguments = ["collect", "--model", model, "--text", text, *KNOBS, *settings]
    cli.main([*arguments, "--dtype", "float32", "--out", str(folder / "run")])
    cli.main(["find", str(folder / "run"), "--fraction", "0.1", "--busy-quantile", "0.5"])
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_collect_takes_all_labels_of_the_text_in_their_order(base):
    assert Run.open(base / "run").firing.languages == tuple(sorted(LANGUAGES))


def test_a_run_records_what_the_commands_after_it_take(base):
    recorded = memory_of(base / "run").recorded
    assert recorded == {
        "model": str(base / "model"),
        "dtype": "float32",
        "attention": "native",
        "text": str(base / "text"),
        "split": "held_out",  # the half that the run did not read
        "languages": tuple(sorted(LANGUAGES)),
        "bos": "document",
        "block_length": 16,
        "n_shards": 4,
    }
    assert memory_of(base / "run" / "neurons.json").recorded == recorded


def test_what_is_given_comes_before_the_run_and_that_before_the_default(base):
    memory = memory_of(base / "run")
    assert memory.take("bos", "none", "auto") == "none"
    assert memory.taken == {}
    assert memory.take("bos", None, "auto") == "document"
    assert memory.take("languages", (), ()) == tuple(sorted(LANGUAGES))
    assert memory.take("tokens", None, 7) == 7  # the run read all, so it does not say how many
    assert str(memory) == f"From {base / 'run'}: labels de en fr, bos document."
    assert str(Memory()) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("settings", 3), ("model", [1]), ("bos", "x"), ("languages", [1, 2]), ("n_shards", "4")],
)
def test_what_is_damaged_is_not_remembered(base, tmp_path, name, value):
    plan = json.loads((base / "run" / "run.json").read_text()) | {name: value}
    (tmp_path / "run.json").write_text(json.dumps(plan))
    whole, damaged = memory_of(base / "run").recorded, memory_of(tmp_path).recorded
    assert damaged.items() < whole.items()
    (tmp_path / "run.json").write_text("{oops")
    with pytest.raises(
        ValueError, match=r"run\.json is damaged: delete it and run the same command"
    ):
        memory_of(tmp_path)


@pytest.mark.slow
def test_deactivate_needs_the_run_alone_and_reads_the_other_half(base, capsys):
    cli.main(["deactivate", str(base / "run"), "--n-draws", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("From ")]
    (said,) = lines
    for phrase in ("model", "precision float32", "text", "documents held_out", "labels de en fr"):
        assert phrase in said
    folder = base / "run" / "deactivate"
    matrix = PerplexityMatrix.load(folder / "matrix.safetensors")
    assert matrix.languages == tuple(sorted(LANGUAGES))
    assert len(matrix.losses.tokens) == 4
    plan = json.loads((folder / "run.json").read_text())
    assert plan["bos"]["setting"] == "document"
    read = artifacts.load(base / "run" / "firing.safetensors", "FiringStats").provenance
    assert plan["corpora"] != read["corpora"]
    assert plan["model"] == read["model"]


@pytest.mark.slow
def test_an_option_overrides_the_run(base, tmp_path, capsys):
    arguments = ["deactivate", str(base / "run"), "--n-draws", "1", "--block-length", "8"]
    arguments += ["--languages", "de", "en", "--split", "all", "--out", str(tmp_path)]
    cli.main(arguments)
    said = capsys.readouterr().out
    assert "documents" not in said.splitlines()[0]
    assert "blocks" not in said.splitlines()[0]
    assert set(pd.read_csv(tmp_path / "matrix.csv")["read"]) == {"de", "en"}


@pytest.mark.slow
def test_other_text_has_no_half_that_the_run_read(base, tmp_path, capsys):
    shutil.copytree(base / "text", tmp_path / "other")
    arguments = ["deactivate", str(base / "run"), "--text", str(tmp_path / "other")]
    cli.main([*arguments, "--n-draws", "1", "--out", str(tmp_path / "out")])
    assert "documents" not in capsys.readouterr().out.splitlines()[0]
    alone = json.loads((tmp_path / "out" / "run.json").read_text())["corpora"]
    cli.main([*arguments[:2], "--n-draws", "1", "--out", str(tmp_path / "own")])
    half = json.loads((tmp_path / "own" / "run.json").read_text())["corpora"]
    assert alone != half


@pytest.mark.slow
def test_steer_bake_page_and_evaluate_need_the_run_alone(base, tmp_path, capsys):
    run = str(base / "run")
    cli.main(["steer", run, "--to", "de", "--n", "2", "--max-new-tokens", "4"])
    assert (base / "run" / "steer" / "rates.csv").is_file()
    cli.main(["bake", run, "--language", "de", "--out", str(tmp_path / "baked")])
    cli.main(["page", run])
    assert (base / "run" / "neurons.html").is_file()
    cli.main(["evaluate", run, "--tasks", str(base / "task"), "--n-draws", "1"])
    assert (base / "run" / "evaluate" / "evaluate.csv").is_file()
    assert capsys.readouterr().out.count("From ") == 4


@pytest.mark.slow
def test_a_run_is_named_where_a_model_is_taken(base, tmp_path, capsys):
    run, task = str(base / "run"), str(base / "task")
    cli.main(["share", task, run])
    assert (base / "run" / "share" / "profile.csv").is_file()
    cli.main(["attribute", task, run, "--steps", "2"])
    assert (base / "run" / "attribute" / "sums.csv").is_file()
    cli.main(["lens", run, "--prompts", task])
    cli.main(["doctor", "--model", run])
    patch = ["patch", "der Hund", "das Haus", run, "--answers", "rot", "lange"]
    cli.main([*patch, "--part", "neurons", "--language", "de"])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("From ")]
    assert len(said) == 5
    assert all(f"model {base / 'model'}" in line for line in said)
    assert ["labels de en fr" in line for line in said] == [True, True, False, False, False]
    assert "labels en de" in said[2]
    assert ["bos document" in line for line in said] == [True, True, True, False, True]
    again = ["collect", run, "--text", str(base / "text"), *KNOBS, "--out", str(tmp_path / "again")]
    cli.main(again)
    assert Run.open(tmp_path / "again").bos == "document"


def test_nothing_defaults_to_babel_but_what_was_given_nothing(base, capsys):
    model, run = str(base / "model"), str(base / "run")
    assert "--text" in refused(["collect", model], capsys)
    assert "--prompts" in refused(["lens", run], capsys)
    assert "--tasks is no task" in refused(["evaluate", run], capsys)
    assert "does not exist" in refused(["share", str(base / "nowhere"), model], capsys)


def test_what_was_moved_is_one_sentence_with_the_option(base, tmp_path, capsys):
    moved = tmp_path / "run"
    shutil.copytree(base / "run", moved, ignore=shutil.ignore_patterns("deactivate"))
    text = (moved / "run.json").read_text()
    gone = text.replace(str(base / "model"), str(tmp_path / "gone"))
    (moved / "run.json").write_text(gone)
    for command in ("deactivate", "page"):
        said = refused([command, str(moved)], capsys)
        assert f"The model of {moved} cannot be opened" in said
        assert "--model" in said
    cli.main(["page", str(moved), "--model", str(base / "model")])
    gone = text.replace(str(base / "text"), str(tmp_path / "gone"))
    (moved / "run.json").write_text(gone)
    said = refused(["deactivate", str(moved)], capsys)
    assert f"The text of {moved} is no longer at" in said
    assert "--text" in said


def test_a_model_of_other_weights_is_refused_for_a_page(base, tmp_path, capsys):
    tiny_models.build("qwen2", tmp_path / "other", seed=7)
    said = refused(["page", str(base / "run"), "--model", str(tmp_path / "other")], capsys)
    assert "are not those that" in said


@pytest.mark.slow
def test_a_selection_of_another_method_has_folders_of_its_own(base):
    cli.main(["find", str(base / "run"), "--method", "lap", "--fraction", "0.1"])
    selection = base / "run" / "neurons-lap.json"
    cli.main(["deactivate", str(selection), "--n-draws", "1"])
    assert (base / "run" / "deactivate-lap" / "matrix.csv").is_file()


def test_a_model_folder_is_no_run(base):
    assert is_run(base / "run")
    assert not is_run(base / "model")
    assert not is_run(base / "run" / "deactivate")
    assert not is_run(base / "run" / "share")  # signs of a task, made by a test above
    assert ModelChoice(str(base / "model")).memory.source is None


# ---------------------------------------------------------------- the list of runs


def listed(folder: Path, monkeypatch, capsys) -> list[str]:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_the_command_alone_lists_the_runs_here_and_what_is_next(
    base, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "runs" / "my run"
    keep = ("run.json", "firing.safetensors", "moments.safetensors")
    run.mkdir(parents=True)
    for name in keep:
        shutil.copy(base / "run" / name, run / name)
    lines = listed(tmp_path, monkeypatch, capsys)
    assert lines[0] == f"runs/my run  {base / 'model'}, de en fr: counts"
    assert lines[1] == "  next: interp find 'runs/my run'"
    for result, step in (
        ("neurons.json", "deactivate"),
        ("deactivate/matrix.safetensors", "steer"),
        ("steer/rates.csv", "page"),
        ("neurons.html", "report"),
    ):
        (run / result).parent.mkdir(exist_ok=True)
        (run / result).touch()
        assert listed(tmp_path, monkeypatch, capsys)[1] == f"  next: interp {step} 'runs/my run'"
    (run / "report.html").touch()
    everything = "counts, selection, matrix, steered texts, page, report"
    assert listed(tmp_path, monkeypatch, capsys)[:2] == [
        f"runs/my run  {base / 'model'}, de en fr: {everything}",
        "",
    ]


def test_a_run_that_is_not_finished_says_how_far_it_is(base, tmp_path, monkeypatch, capsys):
    (tmp_path / "run" / "pieces").mkdir(parents=True)
    shutil.copy(base / "run" / "run.json", tmp_path / "run" / "run.json")
    lines = listed(tmp_path, monkeypatch, capsys)
    assert lines[0].endswith("0 of 12 pieces")
    assert "same interp collect again" in lines[1]
    for number in range(12):
        (tmp_path / "run" / "pieces" / f"{number}.safetensors").touch()
    assert "next: interp merge run" in listed(tmp_path, monkeypatch, capsys)[1]


def test_without_runs_the_command_alone_lists_all_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "usage: interp COMMAND" in refused([], capsys)

"""Ctrl-C in the middle of each command: one sentence, nothing lost, the same files in the end."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from interp import cli
from interp.results import artifacts
from interp.runs.folder import begin
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up
from tests.test_task_commands import TEXTS

BLOCKS = ["--block-length", "16", "--n-shards", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, text, a task, and a finished run with a selection."""
    folder = tmp_path_factory.mktemp("interrupts")
    tiny_models.build("qwen2", folder / "model")
    for name in ("text", "task"):
        (folder / name).mkdir()
    for code, lines in made_up(36).items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    for code in ("en", "de"):
        rows = [
            f'{{"id": "{n}", "text": "{text}", "endings": ["day", "city"], "answer": {n % 2}}}'
            for n, text in enumerate(TEXTS[code])
        ]
        (folder / "task" / f"{code}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    run = collect(folder)(folder / "run")
    cli.main([*run, "--moments", "--contexts", "2"])
    cli.main(["find", str(folder / "run"), "--fraction", "0.1", "--busy-quantile", "0.5"])
    return folder


def collect(place: Path) -> Callable[[Path], list[str]]:
    text = ["--text", str(place / "text"), "--languages", *LANGUAGES, "--hygiene", "off"]
    return lambda out: [
        "collect",
        str(place / "model"),
        *text,
        *BLOCKS,
        "--keep-pieces",
        "--out",
        str(out),
    ]


def commands(place: Path) -> dict[str, Callable[[Path], list[str]]]:
    """What lasts, by name, with the folder it works in."""
    run, model, task = (str(place / name) for name in ("run", "model", "task"))
    text = ["--text", str(place / "text")]
    both = ["--languages", "en", "de"]
    few = ["--n", "2", "--max-new-tokens", "4", "--to", "de"]
    return {
        "collect": collect(place),
        "collect --sentences": lambda out: [
            *("collect", model, *text, "--languages", *LANGUAGES, "--hygiene", "off"),
            *("--sentences", "pre", "--block-length", "60", "--n-shards", "3", "--out", str(out)),
        ],
        "deactivate": lambda out: [
            *("deactivate", run, model, *text, *BLOCKS, "--n-draws", "1", "--out", str(out))
        ],
        "steer": lambda out: ["steer", run, model, *text, *few, "--out", str(out)],
        "share": lambda out: ["share", task, model, *both, "--n-shards", "2", "--out", str(out)],
        "attribute": lambda out: [
            *("attribute", task, model, *both, "--steps", "20", "--out", str(out))
        ],
        "evaluate": lambda out: [
            *("evaluate", run, model, "--tasks", task, *both, "--n-draws", "1", "--out", str(out))
        ],
        "page": lambda out: ["page", run, "--out", str(out / "page.html")],
        "bake": lambda out: ["bake", run, model, "--language", "de", "--out", str(out / "baked")],
        "find": lambda out: ["find", run, "--method", "lap", "--out", str(out / "n.json")],
        "stability": lambda out: ["stability", run, "--out", str(out / "stability.csv")],
        "report": lambda out: ["report", run, "--out", str(out / "report.html")],
    }


NAMES = tuple(commands(Path()))
KEEP = ("collect", "collect --sentences", "deactivate", "steer", "share", "attribute", "evaluate")
"""Those that last minutes and more: what they have finished is not done again."""


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def finished(folder: Path) -> dict[str, int]:
    """When every file of the folder was last written, in nanoseconds."""
    return {name: (folder / name).stat().st_mtime_ns for name in contents(folder)}


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> Iterator["Flushes"]:
    found = Flushes()
    monkeypatch.setattr("interp.results.artifacts.os.fsync", found)
    # Whoever runs tests in the background may have told them to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield found
    signal.signal(signal.SIGINT, before)


class Flushes:
    """Counts the flushes of a program to the disk, and presses Ctrl-C at one of them."""

    def __init__(self) -> None:
        self.seen, self.at, self.flush = 0, -1, os.fsync

    def __call__(self, file: int) -> None:
        self.seen += 1
        if self.seen == self.at:
            signal.raise_signal(signal.SIGINT)
        self.flush(file)

    def of(self, arguments: list[str], at: int = -1) -> int:
        """How many a command makes, interrupted at one of them."""
        self.seen, self.at = 0, at
        cli.main(arguments)
        return self.seen


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_costs_what_was_being_done_and_nothing_else(
    place: Path,
    tmp_path: Path,
    name: str,
    flushes: Flushes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    counted, command = flushes, commands(place)[name]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    every = counted.of(command(whole))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        counted.of(command(cut), at=max(1, every * 2 // 3))
    assert stop.value.code == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("interp: interrupted.")  # on a line of its own, below any bar
    assert said[-1].endswith("to resume." if name in KEEP else "to begin anew.")
    assert not [path for path in cut.rglob("*") if path.suffix == ".part"]
    kept = finished(cut)
    assert kept.keys() < contents(whole).keys()
    again = counted.of(command(cut))
    assert contents(cut) == contents(whole)
    if name in KEEP:
        assert kept
        assert again < every
        pieces = {path: written for path, written in kept.items() if "/" in path}
        assert pieces
        assert pieces.items() <= finished(cut).items()  # none was made again


@pytest.mark.slow
def test_a_vector_keeps_its_means_until_it_is_written(
    place: Path, tmp_path: Path, flushes: Flushes, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(name: str, *more: str) -> list[str]:
        run, out = str(place / "run"), str(tmp_path / f"{name}.gguf")
        return ["vector", run, "--language", "de", "--out", out, *more]

    for layer in ("0", "3"):
        with pytest.raises(SystemExit):
            cli.main(command("none", "--layer", layer))
        assert f"--layer is {layer}: give 1 to 2." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    every = flushes.of(command("whole", "--layer", "2", "--strength", "2"))
    assert not (tmp_path / "whole.pieces").exists()
    with pytest.raises(SystemExit) as stop:
        flushes.of(command("cut"), at=every - 1)
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("to resume.")
    kept = list((tmp_path / "cut.pieces" / "pieces").iterdir())
    assert 0 < len(kept) < len(LANGUAGES)
    flushes.of([*command("cut"), "--dry-run"])
    assert " left: about" in capsys.readouterr().out
    (tmp_path / "text").mkdir()
    for code, lines in made_up(30).items():
        (tmp_path / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(command("cut", "--text", str(tmp_path / "text")))
    said = capsys.readouterr().err
    assert "cut.pieces was started with another corpora" in said
    assert "Resume it with the same settings, or give another folder." in said
    # The means are of all layers, so layer and strength may be others.
    again = flushes.of(command("cut", "--layer", "2", "--strength", "2"))
    assert every - again == 2 * (len(kept) + 1)  # file and folder, of pieces and of run.json
    assert (tmp_path / "cut.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "cut.pieces").exists()


def test_what_killed_writers_left_goes_after_a_day_and_nothing_else(tmp_path: Path) -> None:
    begin(tmp_path, {"n": 1})
    (tmp_path / "pieces").mkdir()
    names = {f".{n}{'0' * 15}.part": 3600.0 * hours for n, hours in enumerate((0, 1, 23, 25, 1000))}
    names |= {".mine.part": 1e7, "0123456789abcdef.part": 1e7, "old.safetensors": 1e7}
    for name, age in names.items():
        for folder in (tmp_path, tmp_path / "pieces"):
            (folder / name).touch()
            os.utime(folder / name, (time.time() - age, time.time() - age))
    begin(tmp_path, {"n": 1})
    gone = {f".{n}{'0' * 15}.part" for n in (3, 4)}
    for folder in (tmp_path, tmp_path / "pieces"):
        assert {path.name for path in folder.iterdir()} >= names.keys() - gone
        assert not {path.name for path in folder.iterdir()} & gone


def test_a_writer_whose_file_was_cleared_says_so_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cleared(file: int) -> None:
        for path in tmp_path.glob(".*.part"):
            path.unlink()

    artifacts.write_text(tmp_path / "a.txt", "before")
    monkeypatch.setattr("interp.results.artifacts.os.fsync", cleared)
    with pytest.raises(OSError, match="was not saved"):
        artifacts.write_text(tmp_path / "a.txt", "after")
    assert (tmp_path / "a.txt").read_text() == "before"

"""Which studies are run for a preset, with which commands, and what marks them as finished."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import reproduce
from experiments.gemma import Data
from experiments.reproduce import STUDIES, Config, main, with_preset

PLANTED = "recover_planted"
OTHER = Data(text=Path("a/folder"))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run, without running it; one study fails."""
    called: list[list[str]] = []

    def call(command: list[str], **_: Any) -> int:
        called.append(command[2:])
        return int(command[2] == "experiments.steer_language")

    ran: Callable[..., Any] = lambda command, **_: called.append(command[2:])  # noqa: E731
    identity = SimpleNamespace(identity={"weights": "a hash"})
    monkeypatch.setattr("experiments.study.Study.open", lambda *_: identity)
    monkeypatch.setattr(reproduce.subprocess, "call", call)
    monkeypatch.setattr(reproduce.subprocess, "run", ran)
    return called


def test_studies_without_the_preset_are_left_out() -> None:
    assert tuple(with_preset(Config())) == STUDIES
    assert PLANTED not in with_preset(Config(preset="paper"))
    with pytest.raises(SystemExit, match="No study has the preset 'nonesuch'"):
        with_preset(Config(preset="nonesuch"))


def test_finished_studies_are_skipped_and_failed_ones_are_not(
    commands: list[list[str]], tmp_path: Path
) -> None:
    studies = (PLANTED, "steer_language", "lens_by_language")
    config = Config(studies=studies, preset="tiny", data=OTHER, out=tmp_path)
    with pytest.raises(SystemExit, match=r"1 studies failed: read \S+/tiny/steer_language.log"):
        main(config)
    text = ["--study.text", "a/folder"]
    assert sorted(commands) == [
        ["experiments.lens_by_language", "tiny", *text],
        [f"experiments.{PLANTED}", "tiny"],  # of planted models: reads no text
        ["experiments.steer_language", "tiny", *text],
    ]
    del commands[:]
    with pytest.raises(SystemExit):
        main(config)
    assert [name for name, *_ in commands] == ["experiments.steer_language"]
    del commands[:]
    main(Config(studies=(PLANTED,), preset="tiny", data=OTHER, out=tmp_path))
    assert commands == [["experiments.report", "tiny"]]


def test_another_text_is_refused(commands: list[list[str]], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"studies": ("lens_by_language",), "preset": "tiny", "out": tmp_path}
    main(Config(**settings))
    with pytest.raises(ValueError, match="was started with another data"):
        main(Config(data=OTHER, **settings))

"""From a model and a folder of text of one's own to a figure; they are named once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from interp import cli
from tests.campaigns import chain
from tests.campaigns.kills import LANGUAGES

WRITTEN = {
    "collect": "firing.safetensors",
    "find": "neurons.json",
    "deactivate": "deactivate/figures/perplexity_matrix.pdf",
    "steer": "steer/texts.csv",
    "page": "neurons.html",
}
"""A file of the run that each command leaves."""


@pytest.mark.slow
def test_model_text_and_labels_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chain.prepare(tmp_path)
    commands = chain.commands(tmp_path)
    assert list(commands) == list(WRITTEN)
    for name, arguments in commands.items():
        cli.main(arguments)
        said = capsys.readouterr().out
        assert (tmp_path / "run" / WRITTEN[name]).is_file()
        if name == "collect":
            continue
        typed = " ".join(arguments)
        assert str(tmp_path / "model") not in typed
        assert str(tmp_path / "text") not in typed
        assert not set(arguments) & set(LANGUAGES)
        if name in ("deactivate", "steer", "page"):  # and it says what it took
            assert f"From {tmp_path / 'run'}: model {tmp_path / 'model'}" in said


@pytest.mark.campaign
def test_every_command_goes_on_after_kills_to_the_same_files(tmp_path: Path):
    command = [sys.executable, "-m", "tests.campaigns.chain", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    landed = re.findall(r"(\w+): (\d) of 3 kills landed", done.stdout)
    assert [name for name, _ in landed] == list(WRITTEN)
    assert all(int(count) > 0 for _, count in landed)
    assert done.stdout.rstrip().endswith("same files: True")

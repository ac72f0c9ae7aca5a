"""Completion in a shell: what a real shell offers for a line that was begun."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from interp import cli
from interp.commands.completion import Shell, completion_script
from interp.commands.options import options_of
from interp.scores.methods import METHODS
from tests.test_start import HEAVY

TRY = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_interp
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def program(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(completion_script("bash", cli.COMMANDS), encoding="utf-8")
    return path


def offered(script: Path, words: str) -> list[str]:
    """What bash offers for the last of the words."""
    done = subprocess.run(
        [program("bash"), "-c", TRY.format(script=script, words=words)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_are_completed(script: Path):
    assert offered(script, "interp fi") == ["find", "figure"]
    assert offered(script, 'interp ""') == [*cli.COMMANDS, "--help", "--version", "--json"]


@pytest.mark.parametrize("name", ["find", "collect", "tidy"])
def test_all_options_of_a_command_are_completed(script: Path, name: str):
    words = offered(script, f"interp {name} folder -")
    assert [word for word in words if word not in ("--json", "--help")] == [
        option.named
        for option in options_of(cli.COMMANDS[name])
        if option.either or not option.positional
    ]
    assert ("--json" in words) == (name != "tidy")


def test_the_words_that_an_option_can_be_are_completed(script: Path):
    assert offered(script, 'interp find run --method ""') == list(METHODS)
    assert offered(script, "interp find run --n 5 --method la") == [
        name for name in METHODS if name.startswith("la")
    ]
    assert offered(script, "interp collect --sentences pre mlp_out resid_p") == [
        "resid_pre",
        "resid_post",
    ]
    assert offered(script, 'interp completion ""') == ["bash", "zsh"]


@pytest.mark.parametrize(
    "words", ["interp find ru", "interp find run --method lape ru", "interp x y"]
)
def test_where_a_file_can_stand_the_shell_completes_files(script: Path, words: str):
    assert offered(script, words) == []  # and `complete -o default` goes on with files
    assert "complete -o default -F _interp interp" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_can_read_its_script(shell: Shell, tmp_path: Path):
    path = tmp_path / "script"
    path.write_text(completion_script(shell, cli.COMMANDS), encoding="utf-8")
    done = subprocess.run([program(shell), "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_printing_the_script_loads_no_library():
    code = f"""
import sys
from interp import cli
cli.main(["completion", "zsh"])
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("autoload -U +X compinit")
    assert done.stdout.splitlines()[-1] == "[]"

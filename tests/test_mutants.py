"""Lines that are broken on purpose: the table of them, and that one which no test sees is told."""

import ast
import json
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pytest

from tests.campaigns.mutants import ROOT, TABLE, Mutant, left_out, read_table

_, MUTANTS = read_table(TABLE)


def test_each_text_occurs_once_in_its_file_and_is_changed():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in {m.file for m in MUTANTS}}
    wrong = [str(m) for m in MUTANTS if texts[m.file].count(m.before) != 1 or m.before == m.after]
    assert not wrong
    changes = [(m.file, m.before, m.after) for m in MUTANTS]
    assert len(changes) == len(set(changes))


def test_a_changed_file_is_still_python():
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        compile(text.replace(mutant.before, mutant.after), str(mutant), "exec")


def test_the_tests_of_every_mutant_exist():
    for test in {test for mutant in MUTANTS for test in mutant.tests}:
        path, _, name = test.partition("::")
        assert (f"def {name}(" if name else "def test_") in (ROOT / path).read_text("utf-8"), test


def test_no_mutant_has_only_tests_that_are_left_out_as_slow():
    for tests in {mutant.tests for mutant in MUTANTS if not mutant.slow}:
        assert any(is_quick(*test.split("::")) for test in tests), (
            f"{tests}: slow = true is missing"
        )


def is_quick(path: str, name: str = "test_") -> bool:
    """Whether a test of the file, of this name if there is one, is not marked slow."""
    return any(not slow for test, slow in slow_tests(path).items() if test.startswith(name))


@cache
def slow_tests(path: str) -> dict[str, bool]:
    """The functions of a file, and whether each is marked slow."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    whole = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    return {
        node.name: any("mark.slow" in mark for mark in map(ast.unparse, node.decorator_list))
        or any(line.startswith("pytestmark = pytest.mark.slow") for line in whole)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


CODE = """def larger(a: int, b: int) -> int:
    return a if a > b else b


def smaller(a: int, b: int) -> int:
    return a if a < b else b
"""
CHECKS = """from experiments.made_up import larger, smaller


def test_larger():
    assert larger(1, 2) == larger(2, 1) == 2


def test_smaller():
    assert smaller(1, 1) == 1
"""
FILES = {
    "experiments/__init__.py": "",
    "experiments/made_up.py": CODE,
    "tests/test_made_up.py": CHECKS,
}


def campaign(folder: Path, *mutants: list[str]) -> tuple[int, str]:
    """Exit code and what is printed, of these mutants of a package of one file."""
    for name, text in FILES.items():
        path = folder / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            path.write_text(text)
    changes = "".join(f"[{', '.join(map(repr, change))}]," for change in mutants)
    group = f"tests = ['tests/test_made_up.py']\nmutants = [{changes}]\n"
    (folder / "table.toml").write_text(f'[["experiments/made_up.py"]]\n{group}')
    command = [sys.executable, "-m", "tests.campaigns.mutants", "--processes", "2"]
    places = {"--root": "checkout", "--table": "table.toml", "--out": "out.json"}
    command += [text for option, name in places.items() for text in (option, str(folder / name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


SEEN, UNSEEN = ["a > b", "a >= b - 1"], ["a < b", "a > b"]


@pytest.mark.slow
def test_a_mutant_that_no_test_sees_is_alive_and_fails_the_campaign(tmp_path: Path):
    code, said = campaign(tmp_path, SEEN, UNSEEN)
    assert code == 1
    assert "killed: experiments/made_up.py: a > b → a >= b - 1" in said
    assert "alive: experiments/made_up.py: a < b → a > b" in said
    assert (tmp_path / "checkout" / "experiments" / "made_up.py").read_text() == CODE
    verdicts = json.loads((tmp_path / "out.json").read_text()).values()
    assert {found["mutant"]: found["verdict"] for found in verdicts} == {
        "experiments/made_up.py: a > b → a >= b - 1": "killed",
        "experiments/made_up.py: a < b → a > b": "alive",
    }
    assert "2 judged at no commit" in said
    # What is known is not run again, until a test has changed.
    code, said = campaign(tmp_path, SEEN, UNSEEN)
    assert code == 1
    assert "killed: " not in said
    assert "1 killed\n1 alive\n" in said
    checks = tmp_path / "checkout" / "tests" / "test_made_up.py"
    checks.write_text(CHECKS.replace("smaller(1, 1)", "smaller(1, 2)"))
    code, said = campaign(tmp_path, SEEN, UNSEEN)
    assert code == 0
    assert "killed: experiments/made_up.py: a < b → a > b" in said
    assert "2 killed\n0 alive\n" in said


@pytest.mark.slow
def test_a_reason_excuses_only_what_no_test_sees(tmp_path: Path):
    code, said = campaign(tmp_path, SEEN, [*UNSEEN, "nobody asks"])
    assert code == 0
    assert "1 alive, as the table says\n" in said
    assert "a < b → a > b (nobody asks)" in said
    code, said = campaign(tmp_path, [*SEEN, "nobody asks"])
    assert code == 1
    assert "1 killed, though the table says that no test can see it" in said


@pytest.mark.slow
def test_tests_that_fail_without_a_mutant_judge_none(tmp_path: Path):
    campaign(tmp_path, SEEN)
    checks = tmp_path / "checkout" / "tests" / "test_made_up.py"
    checks.write_text(CHECKS + "\n\ndef test_red():\n    assert larger(1, 2) == 1\n")
    code, said = campaign(tmp_path, SEEN)
    assert code == 1
    assert "1 not run, since its tests fail without it" in said
    assert "assert larger(1, 2) == 1" in said


def test_a_copy_has_every_package_and_nothing_that_was_made(tmp_path: Path):
    for name in ("results/big", "interp/results/saved.py", ".venv/bin", "build/site", "a.py"):
        (tmp_path / "root" / name).mkdir(parents=True)
    root, copy = tmp_path / "root", tmp_path / "copy"
    shutil.copytree(root, copy, ignore=partial(left_out, root))
    assert sorted(path.name for path in copy.iterdir()) == ["a.py", "interp"]
    assert (copy / "interp" / "results" / "saved.py").exists()


def test_a_mutant_is_told_on_one_line():
    mutant = Mutant(("tests/test_a.py",), False, "interp/a.py", "a\n    b", "c")
    assert str(mutant) == "interp/a.py: a b → c"
    assert str(Mutant(("tests/test_a.py",), False)) == "unchanged: tests/test_a.py"

"""The command and the package start at once, and each name is there when it is first used."""

import ast
import importlib
import json
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import fields
from pathlib import Path

import lazy_loader
import pytest

import interp
from interp import cli

HEAVY = (
    *("torch", "numpy", "transformers", "transformer_lens", "matplotlib", "pandas", "scipy"),
    *("datasets", "numba", "py3langid", "safetensors", "tqdm", "tyro"),
)
STUB = ast.parse(Path(interp.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
ORIGIN = {
    alias.name: node.module
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
"""Public names, and the module that each comes from; None: it is one."""


def printed(program: str, *flags: str, **environment: str) -> list[str]:
    """The lines that a program writes in a process of its own, errors first."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(program)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (done.stderr + done.stdout).splitlines()


# ---------------------------------------------------------------- what is loaded


@pytest.mark.slow
def test_help_and_refusals_load_nothing_heavy():
    """The one process goes from the least to the most: what loads too much is named first."""
    program = f"""
        import contextlib, io, sys
        from interp import cli

        asked = [["--version"], ["--help"], ["nonesuch"], []]
        asked += [[name, flag] for name in cli.COMMANDS for flag in ("--help", "--nonesuch")]
        for arguments in asked:
            sys.argv = ["interp", *arguments]
            nowhere = io.StringIO()
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                try:
                    cli.main()
                except SystemExit as stop:
                    code = stop.code
            heavy = [name for name in {HEAVY} if name in sys.modules]
            print(*arguments, code, nowhere.getvalue()[:14].strip(), *heavy, sep="; ")
    """
    told = [line.split("; ") for line in printed(program)]
    assert len(told) == 4 + 2 * len(cli.COMMANDS)
    assert {tuple(line[-2:]) for line in told if line[-3:-2] == ["--help"]} == {
        ("0", "usage: interp")
    }
    assert [line for line in told if line[-2] not in "02"] == []


RUN_FIELDS = {"run_folder", "run_folders", "neurons", "selections", "results"}
"""Fields of commands that take a run, or a selection in it, by its position."""

ALSO = {
    **dict.fromkeys(("bake", "adapter", "vector", "train"), ("--language", "de", "--out", "new")),
    **{"write": ("word",), "compare": ("{run}",)},
}
"""By command, what it must be given besides the run."""


@pytest.mark.slow
def test_a_folder_that_is_no_finished_run_is_refused_before_a_library_is_loaded(tmp_path):
    plan = {"wanted": {"firing": True}, "n_shards": 4, "languages": ["de", "en"]}
    for name in ("small", "half"):
        (tmp_path / name / "pieces").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps(plan), encoding="utf-8")
    for number in range(3):
        (tmp_path / "half" / "pieces" / f"{number}.safetensors").touch()
    (tmp_path / "plain").mkdir()
    said = {
        "smal": f"{tmp_path / 'smal'} does not exist; did you mean {tmp_path / 'small'}?",
        "plain": f"{tmp_path / 'plain'} is not a run: it holds neither",
        "half": f"{tmp_path / 'half'} is not finished: it has 3 of 8 pieces. Run the same",
    }
    asked = {}
    for folder, sentence in said.items():
        for name, command in cli.COMMANDS.items():
            taken = RUN_FIELDS & {field.name for field in fields(command)}
            unfinished = folder == "half" and name in ("merge", "status", "tidy")
            if not taken or unfinished or name in ("patch", "lens", "import"):
                continue
            run = str(tmp_path / folder)
            line = [name, run, *(word.format(run=run) for word in ALSO.get(name, ()))]
            asked[tuple(line)] = sentence
    patched = ("patch", "a", "b", "--answers", "c", "--part", "neurons", "--language", "de")
    asked[*patched, "--neurons", str(tmp_path / "smal")] = said["smal"]
    assert len(asked) > 50
    program = f"""
        import contextlib, io, sys
        from interp import cli

        for arguments, sentence in {list(asked.items())!r}:
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                try:
                    cli.main(arguments)
                except SystemExit as stop:
                    code = stop.code
            heavy = [name for name in {HEAVY} if name in sys.modules]
            if code != 2 or heavy or sentence not in err.getvalue():
                print(*arguments, code, err.getvalue(), *heavy)
    """
    assert [line for line in printed(program) if line[:3] not in ("A  ", "B  ")] == []


def test_importing_the_package_loads_nothing_until_a_name_is_used():
    program = f"""
        import sys
        import interp
        print([name for name in sys.modules if name.startswith("interp.")])
        interp.read_task
        print([name for name in {HEAVY} if name in sys.modules])
        print("interp.text.tasks" in sys.modules)
    """
    assert printed(program) == ["[]", "[]", "True"]


@pytest.mark.slow
def test_results_are_read_without_a_library_of_models():
    program = """
        import sys
        import interp
        interp.FiringStats, interp.SentenceMeans, interp.counting.firing_rate
        print([name for name in ("transformers", "transformer_lens") if name in sys.modules])
    """
    assert printed(program) == ["[]"]


# ---------------------------------------------------------------- names


def stubs() -> dict[str, dict[str, str]]:
    """Of the package and its folders: public names, and the full name of what each of them is."""
    root, found = Path(interp.__file__).parent, {}
    for path in root.rglob("__init__.pyi"):
        package = ".".join(("interp", *path.relative_to(root).parent.parts))
        body = ast.parse(path.read_text(encoding="utf-8")).body
        found[package] = {
            alias.name: f"{package}.{node.module}" if node.module else package
            for node in body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
    return found


STUBS = stubs()


@pytest.mark.parametrize("package", STUBS)
def test_every_public_name_is_what_its_module_holds(package):
    held = importlib.import_module(package)
    for name, module in STUBS[package].items():
        if module == package:
            assert getattr(held, name) is importlib.import_module(f"{package}.{name}")
        else:
            assert getattr(held, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("package", STUBS)
def test_users_and_type_checkers_see_the_same_names(package):
    held = importlib.import_module(package)
    body = ast.parse(Path(held.__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    (listed,) = (node.value for node in body if isinstance(node, ast.Assign))
    space: dict[str, object] = {}
    exec(f"from {package} import *", space)
    expected = sorted(STUBS[package])
    assert expected == ast.literal_eval(listed) == sorted(held.__all__)
    assert set(space) - {"__builtins__"} == set(expected)


def test_no_public_name_is_given_twice_and_few_are_at_the_top():
    names = [name for package in STUBS.values() for name in package]
    assert len(names) == len(set(names))
    assert len(STUBS["interp"]) <= 60


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(AttributeError, match="nonesuch"):
        interp.nonesuch  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    with pytest.raises(ImportError, match="nonesuch"):
        exec("from interp import nonesuch")


def test_no_function_has_the_name_of_a_folder():
    held = {path.stem for path in Path(interp.__file__).parent.iterdir()}
    assert {name for name, module in ORIGIN.items() if module} & held == set()


def test_all_can_be_loaded_at_once(monkeypatch: pytest.MonkeyPatch):
    for name in ORIGIN:
        vars(interp).pop(name, None)
    lazy_loader.attach_stub("interp", interp.__file__)
    assert not set(ORIGIN) & set(vars(interp))
    monkeypatch.setenv("EAGER_IMPORT", "1")
    lazy_loader.attach_stub("interp", interp.__file__)
    assert set(ORIGIN) <= set(vars(interp))


# ---------------------------------------------------------------- warnings

WARNS = """
    import sys, warnings
    from types import SimpleNamespace
    from interp import cli

    def run(self):
        ours = ["interp.counting.stats", "interp.counting.stats"]
        for name in ["transformers.models", *ours, "interpreter"]:
            place = {"__name__": name}
            exec(compile(f"import warnings; warnings.warn('{name}')", name, "exec"), place)
        warnings.warn("old", DeprecationWarning)
        OURS

    cli.Babel.run = run
    sys.argv = ["interp", "babel"]
    cli.main()
"""

OUT_OF_MEMORY = """
        from interp.counting import observe
        half = SimpleNamespace(ids=SimpleNamespace(numel=lambda: 1), rows=[1], halves=list)
        rows = SimpleNamespace(ids=SimpleNamespace(numel=lambda: 9), rows=[1, 2])
        rows.to, half.to = lambda device: rows, lambda device: half
        rows.halves = lambda: [half]
        observe._Delivery.fits_in_memory = lambda delivery: delivery.batch is not rows
        observe.observe(SimpleNamespace(device="cpu", ran_out_at=None, n_layers=0), rows, [])
"""


def warned(program: str, *flags: str) -> list[str]:
    return [line.split("Warning: ")[1] for line in printed(program, *flags) if "Warning: " in line]


@pytest.mark.slow
def test_the_program_shows_our_warnings_alone():
    found = warned(WARNS.replace("        OURS\n", OUT_OF_MEMORY))
    assert found == ["interp.counting.stats", found[1]]
    assert found[1].startswith("Out of memory on a batch of 9 tokens")


def test_who_asks_for_warnings_sees_all():
    program = WARNS.replace("OURS", "pass")
    assert warned(program) == ["interp.counting.stats"]
    ours = ["interp.counting.stats"] * 2
    shown = ["transformers.models", *ours, "interpreter", "old"]
    assert warned(program, "-W", "default") == shown


def test_called_from_python_the_command_leaves_filters_alone(capsys: pytest.CaptureFixture[str]):
    before = list(warnings.filters)
    cli.main(["babel"])
    assert warnings.filters == before


# ---------------------------------------------------------------- bars


def test_a_notebook_without_ipywidgets_has_bars_of_text_and_no_warning():
    program = """
        import sys, types, warnings

        kernel = types.SimpleNamespace(config={"IPKernelApp": {}})
        for name in ("IPython", "ipykernel", "ipykernel.zmqshell"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["IPython"].get_ipython = lambda: kernel
        sys.modules["ipywidgets"] = None
        warnings.simplefilter("always")
        EARLIER
        from tqdm.auto import tqdm as anybodys
        from interp.results.bars import tqdm as ours

        print(issubclass(ours, anybodys), anybodys.__module__)
    """
    assert printed(program.replace("EARLIER", "import interp")) == ["True tqdm.asyncio"]
    assert "IProgress not found" in printed(program.replace("EARLIER", ""))[0]

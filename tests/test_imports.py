"""Folders are stages, which import only from those before them; no file needs itself."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

INTERP = Path(__file__).parents[1] / "interp"
FLOW = (
    *("results", "models", "text", "runs", "counting", "inference", "interventions"),
    *("scores", "selections", "prompts", "evaluations", "plots", "reports", "commands"),
)
AT_THE_TOP = {"__init__.py", "__init__.pyi", "__main__.py", "cli.py", "py.typed"}


def module_name(path: Path, root: Path = INTERP) -> str:
    """`counting.stats` for interp/counting/stats.py, `plots` for interp/plots/__init__.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in INTERP.rglob("*.py")}


def public_names() -> dict[str, str]:
    """The module that each name of `interp` comes from."""
    stub = ast.parse((INTERP / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.name: node.module or alias.name
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


PUBLIC = public_names()


def names_used(path: Path) -> set[str]:
    """Every name below `interp` that a file uses, wherever in the file it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {f"interp.{node.attr}"} if node.value.id == "interp" else set()
    return {name for name in names if name.split(".")[0] == "interp"}


def modules_used(path: Path) -> set[str]:
    """The modules of interp behind those names."""
    found = set()
    for name in names_used(path):
        tail = name.removeprefix("interp").removeprefix(".")
        tail = PUBLIC.get(tail, tail)
        parts = tail.split(".")
        prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        found |= {next((each for each in prefixes if each in MODULES), "")} - {""}
    return found


def uses_the_package(path: Path) -> bool:
    """Whether a file imports `interp` as its users do, rather than the modules it needs."""
    names = {"interp", *PUBLIC} - set(MODULES)
    return any(name.removeprefix("interp.") in names for name in names_used(path))


def upward(folder: str, path: Path) -> set[str]:
    later = FLOW[FLOW.index(folder) + 1 :]
    return {name for name in modules_used(path) if name.split(".")[0] in (*later, "cli")}


def folder_of(module: str) -> str:
    return module.split(".")[0]


def test_the_folders_are_the_stages():
    held = {path.name for path in INTERP.iterdir() if path.name != "__pycache__"}
    assert held == {*FLOW, "babel", *AT_THE_TOP}


@pytest.mark.slow
def test_folders_import_only_from_those_before_them():
    wrong = {
        module: upward(folder_of(module), path)
        for module, path in MODULES.items()
        if folder_of(module) in FLOW
    }
    assert {module: names for module, names in wrong.items() if names} == {}


def test_no_file_needs_itself():
    graph = {module: modules_used(path) - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.slow
def test_nothing_but_the_command_line_imports_commands():
    root = INTERP.parent
    elsewhere = [
        *(root / "experiments").glob("*.py"),
        *(root / "benchmarks").glob("*.py"),
        *(root / "babel_training").glob("*.py"),
    ]
    inside = ("commands", "cli")
    library = [path for module, path in MODULES.items() if folder_of(module) not in inside]
    found = {
        str(path.relative_to(root))
        for path in (*library, *elsewhere)
        if any(name.startswith("interp.commands") for name in names_used(path))
    }
    assert found == set()


@pytest.mark.slow
def test_only_commands_import_the_package_itself():
    found = {folder_of(module) for module, path in MODULES.items() if uses_the_package(path)}
    assert found <= {"commands", "cli"}


def test_the_package_itself_is_caught(tmp_path):
    path = tmp_path / "stats.py"
    for line in (
        "import interp",
        "from interp import collect",
        "from interp import load",
        "def f():\n    import interp",
    ):
        path.write_text(line + "\n")
        assert uses_the_package(path)
    path.write_text("from interp.results import artifacts\nfrom interp.models.load import load\n")
    assert not uses_the_package(path)


def test_an_upward_import_is_caught(tmp_path):
    path = tmp_path / "stats.py"
    path.write_text("def f():\n    from interp.scores.lape import language_entropy\n")
    assert upward("counting", path) == {"scores.lape"}
    assert upward("scores", path) == set()
    path.write_text("import interp.scores.lape\nfrom interp import cli\n")
    assert upward("counting", path) == {"scores.lape", "cli"}
    path.write_text("import interp\ninterp.results.artifacts.save\ninterp.language_entropy(1)\n")
    assert upward("counting", path) == {"scores.lape"}
    path.write_text("from interp import load, language_entropy\n")
    assert upward("counting", path) == {"scores.lape"}


def test_a_circle_is_caught():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


@pytest.mark.slow
def test_three_files_alone_import_transformer_lens():
    found = set()
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "transformer_lens" for name in names):
                found.add(module)
    assert found == {"models.load", "models.bridge", "models.plain_adapter"}

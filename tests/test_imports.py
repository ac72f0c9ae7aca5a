"""The library is read from top to bottom: each file imports only from files above it."""

import ast
from pathlib import Path

INTERP = Path(__file__).parents[1] / "interp"
FLOW = (
    *("words", "bars", "hub"),
    *("artifacts", "display", "languages", "hygiene", "texts", "documents", "corpora"),
    *(
        "model",
        "loading",
        "doctor",
        "activations",
        "whatif",
        "stats",
        "counters",
        "contexts",
        "uncertainty",
    ),
    *("cluster", "pieces", "run_folder", "collect", "plan"),
    *("scores.lape", "scores.ranks", "scores.average_precision", "scores.sharing"),
    *("scores.sharing_tokens", "scores.distances", "scores.attribution", "scores.baselines"),
    *("exchange", "selection", "agreement", "stability"),
    *("interventions", "alignment", "sweep", "patching", "lens"),
    *("evaluations.losses", "evaluations.perplexity", "evaluations.writing"),
    *("evaluations.generation", "evaluations.controls"),
    *("evaluations.task_files", "evaluations.task_results", "evaluations.tasks"),
    *("evaluations.switch_off", "evaluations.category_sums", "evaluations.harness"),
    *("bake", "claims"),
    *("plots", "plots.fonts", "plots.style", "plots.matrices", "plots.curves", "plots.switching"),
    *("plots.methods", "plots.tables", "plots.tasks", "plots.files"),
    *("markup", "page_contexts", "page", "report"),
    *("commands.common", "commands.plan", "commands.collect", "commands.effects"),
    *("commands.steer", "commands.find", "commands.stability", "commands.tasks"),
    *(
        "commands.evaluate",
        "commands.crossing",
        "commands.page",
        "commands.report_kinds",
        "commands.report",
    ),
    *("commands.demo", "commands.options", "cli"),
)


def public() -> dict[str, str]:
    """The functions and classes that `interp` has, and the module that each comes from."""
    stub = ast.parse((INTERP / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module  # else it is a module itself
        for alias in node.names
    }


PUBLIC = public()


def named(path: Path) -> set[str]:
    """What a file takes from interp, wherever in the file it does so, by full names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {f"interp.{node.attr}"} if node.value.id == "interp" else set()
    return {name for name in names if name.split(".")[0] == "interp"}


def imported(path: Path) -> set[str]:
    """Names of the interp modules that a file imports, or takes a public name of."""
    found = set()
    for name in named(path):
        tail = name.removeprefix("interp").removeprefix(".")
        tail = PUBLIC.get(tail, tail)
        found |= {each for each in FLOW if tail == each or tail.startswith(f"{each}.")}
    return found


def takes_the_package(path: Path) -> bool:
    """Whether a file imports the package as its users do, and not the modules that it needs."""
    return any(name.removeprefix("interp.") in ("interp", *PUBLIC) for name in named(path))


def upward(module: str, path: Path) -> set[str]:
    return {name for name in imported(path) if FLOW.index(name) >= FLOW.index(module)}


def modules() -> dict[str, Path]:
    paths = [path for path in INTERP.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(INTERP).with_suffix("").parts): path for path in paths}


def test_every_file_has_its_place_in_the_flow():
    assert set(modules()) <= set(FLOW)


def test_files_import_only_from_files_above_them():
    wrong = {module: upward(module, path) for module, path in modules().items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_only_commands_import_the_package_itself():
    found = {module for module, path in modules().items() if takes_the_package(path)}
    assert {module for module in found if not module.startswith("commands.")} == {"cli"}


def test_the_package_itself_is_caught(tmp_path):
    path = tmp_path / "stats.py"
    for line in (
        "import interp",
        "from interp import collect",
        "from interp import load",
        "def f():\n    import interp",
    ):
        path.write_text(line + "\n")
        assert takes_the_package(path)
    path.write_text("from interp import artifacts\nfrom interp.loading import load\n")
    assert not takes_the_package(path)


def test_an_upward_import_is_caught(tmp_path):
    path = tmp_path / "stats.py"
    path.write_text("def f():\n    from interp.selection import NeuronSelection\n")
    assert upward("stats", path) == {"selection"}
    path.write_text("import interp.scores.lape\nfrom interp import artifacts, cli\n")
    assert upward("stats", path) == {"scores.lape", "cli"}
    path.write_text("import interp\ninterp.artifacts.save\ninterp.select_by_entropy(1)\n")
    assert upward("stats", path) == {"selection"}
    path.write_text("from interp import load, select_by_entropy\n")
    assert upward("stats", path) == {"selection"}


def test_one_file_alone_imports_transformer_lens():
    found = set()
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "transformer_lens" for name in names):
                found.add(module)
    assert found == {"loading"}

"""The library is read from top to bottom: each file imports only from files above it."""

import ast
from pathlib import Path

INTERP = Path(__file__).parents[1] / "interp"
FLOW = (
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
    *("commands.crossing", "commands.page", "commands.report_kinds", "commands.report"),
    *("commands.demo", "commands.options", "cli"),
)


def imported(path: Path) -> set[str]:
    """Names of the interp modules that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "interp":
                tail = name.removeprefix("interp").removeprefix(".")
                found |= {each for each in FLOW if tail == each or tail.startswith(f"{each}.")}
    return found


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


def test_an_upward_import_is_caught(tmp_path):
    path = tmp_path / "stats.py"
    path.write_text("def f():\n    from interp.selection import NeuronSelection\n")
    assert upward("stats", path) == {"selection"}
    path.write_text("import interp.scores.lape\nfrom interp import artifacts, cli\n")
    assert upward("stats", path) == {"scores.lape", "cli"}


def test_one_file_alone_imports_transformer_lens():
    found = set()
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "transformer_lens" for name in names):
                found.add(module)
    assert found == {"loading"}

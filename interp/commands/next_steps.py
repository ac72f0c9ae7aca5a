"""What to type after a command: the last line that it prints.

It looks at the names of files only, and loads no library.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.commands.overview import next_step
from interp.commands.remembered import is_run

PUBLISH = "interp push {} NAME/REPOSITORY"


def next_after(name: str, command: Any) -> str | None:
    """What comes after a subcommand; None: other programs read what it prints."""
    if getattr(command, "dry_run", False) or getattr(getattr(command, "on", 0), "dry_run", False):
        return "the same command without --dry-run"
    return NEXT[name](command) if name in NEXT else None


def of_run(path: Path) -> str:
    """What is next for a run, or for that which holds a selection or a folder of results."""
    folder = path if path.is_dir() else path.parent
    run = next(filter(is_run, (folder, folder.parent)), None)
    return (run and next_step(run)) or f"interp report {quoted(run or folder)}"


def quoted(path: object) -> str:
    return shlex.quote(str(path))


def _doctor(command: Any) -> str:
    model = command.choice.model or "babel"
    if is_run(Path(model)):
        return of_run(Path(model))
    return _collect(model)


def _collect(model: str) -> str:
    return f"interp collect {quoted(model)}" + " --text FOLDER" * (model != "babel")


def _find(command: Any) -> str:
    name = "" if command.method == "lape" else f"-{command.method}"
    file = command.out or command.run_folder / f"neurons{name}.json"
    if command.method == "precision":
        return f"interp steer {quoted(file)} --edit median"
    whole = command.method == "lape" and command.out is None
    return f"interp deactivate {quoted(command.run_folder if whole else file)}"


def _measured(name: str, command: Any) -> str:
    """What is next for a run of which something was measured, into its folder or another one."""
    step = of_run(command.neurons)
    again = step.startswith(f"interp {name} ")
    return f"interp report {quoted(command.out)}" if again and command.out else step


def _write(command: Any) -> str:
    """What measures the change that was shown; if that is done, what is next for the run."""
    neurons = command.neurons
    folder = neurons if neurons.is_dir() else neurons.parent
    if command.to and not any(folder.glob("steer*/rates.csv")):
        return f"interp steer {quoted(neurons)} --to {' '.join(map(quoted, command.to))}"
    if command.off and not any(folder.glob("deactivate*/matrix.safetensors")):
        return f"interp deactivate {quoted(neurons)}"
    return of_run(neurons)


def _page(command: Any) -> str:
    """After a page that stands elsewhere, not the page again."""
    step = of_run(command.run_folder)
    again = step.startswith("interp page ")
    return f"interp report {quoted(command.run_folder)}" if again else step


def _compare(command: Any) -> str:
    first = command.selections[0]
    return f"interp {'stability' if is_run(first) else 'deactivate'} {quoted(first)}"


def _explain(command: Any) -> str:
    beyond = (command.out or command.run_folder) / "beyond_script.json"
    if beyond.is_file():
        return f"interp deactivate {quoted(beyond)}"
    return f"interp find {quoted(command.run_folder)}"


def _train(command: Any) -> str:
    folder = quoted(command.out / command.write)
    return PUBLISH.format(folder) if command.write == "adapter" else f"interp doctor {folder}"


def _lock(command: Any) -> str:
    adapter, model = command.out / "adapter", command.choice.model or "babel"
    if adapter.is_dir():
        return PUBLISH.format(quoted(adapter))
    again = f"--language {command.language} --out {quoted(command.out)}-2"
    return f"interp lock PROMPTS {quoted(model)} {again}, with more prompts"


def _attribute(command: Any) -> str:
    model = Path(command.choice.model or "babel")
    if is_run(model):
        return of_run(model)
    return f"interp report {quoted(command.out or 'results/attribute')}"


NEXT: dict[str, Callable[[Any], str]] = {
    "demo": lambda command: "interp doctor MODEL, with a model of your own",
    "doctor": _doctor,
    "plan": lambda command: _collect(command.model),
    "babel": lambda command: "interp demo",
    "collect": lambda command: of_run(command.out),
    "merge": lambda command: of_run(command.run_folder),
    "status": lambda command: of_run(command.run_folder),
    "tidy": lambda command: of_run(command.run_folders[0]),
    "find": _find,
    "compare": _compare,
    "stability": lambda command: of_run(command.run_folder),
    "explain": _explain,
    "routing": lambda command: of_run(command.run_folder),
    "import": lambda command: f"interp deactivate {quoted(command.out)} MODEL --text FOLDER",
    "export": lambda command: PUBLISH.format(quoted(command.path)),
    "deactivate": lambda command: _measured("deactivate", command),
    "write": _write,
    "steer": lambda command: _measured("steer", command),
    "ask": lambda command: of_run(command.neurons),
    "bake": lambda command: f"interp doctor {quoted(command.out)}",
    "adapter": lambda command: PUBLISH.format(quoted(command.out)),
    "vector": lambda command: of_run(command.neurons),
    "train": _train,
    "lock": _lock,
    "evaluate": lambda command: of_run(command.neurons),
    "share": lambda command: f"interp attribute {quoted(command.task)}",
    "attribute": _attribute,
    "patch": lambda command: "interp lens",
    "lens": lambda command: "interp patch SOURCE TARGET --answers WORD WORD",
    "page": _page,
    "figure": lambda command: of_run(command.results),
    "report": lambda command: PUBLISH.format(quoted(command.results[0])),
    "push": lambda command: f"interp pull {quoted(command.repo)}",
    "pull": lambda command: f"interp compare {quoted(command.out or 'FOLDER')} RUN",
}
"""By the name of the subcommand."""

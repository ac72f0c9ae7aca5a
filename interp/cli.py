"""The `interp` command. Each subcommand is a frozen dataclass, which Python code can use too."""

import difflib
import inspect
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interp
from interp.commands.adapter import Adapter
from interp.commands.answers import AsJson, is_sound, json_rows
from interp.commands.ask import Ask
from interp.commands.collect import Collect
from interp.commands.common import ModelChoice, say
from interp.commands.completion import Shell, completion_script
from interp.commands.crossing import Lens, Patch
from interp.commands.demo import Demo
from interp.commands.doctor import Doctor
from interp.commands.effects import Bake, Deactivate, read_selection
from interp.commands.evaluate import Evaluate
from interp.commands.explain import Explain
from interp.commands.figure import Figure
from interp.commands.find import Compare, Find, show_selection, summary
from interp.commands.hub import Pull, Push
from interp.commands.lock import Lock
from interp.commands.next_steps import next_after
from interp.commands.options import WIDTH, Labels, Parser, Positional, in_options, options_of
from interp.commands.overview import list_of_runs, table_of_runs, tags_around
from interp.commands.page import Page
from interp.commands.pieces import Merge, Status, Tidy
from interp.commands.plan import Plan
from interp.commands.report import Report
from interp.commands.routing import Routing
from interp.commands.stability import Stability
from interp.commands.steer import Steer
from interp.commands.tasks import Attribute, Share
from interp.commands.train import Train
from interp.commands.vector import Vector
from interp.commands.write import Write
from interp.runs.refusals import check_writable
from interp.text.languages import tagged

if TYPE_CHECKING:
    import pandas

BABEL = Path(__file__).parent / "babel"
DESCRIPTION = "Which neurons of a model belong to a language? Start with `interp demo`."


@dataclass(frozen=True)
class Import:
    """Convert a published mask (.pth) into a selection.

    interp export results/demo/neurons.json --out demo.pth
    interp import demo.pth --languages en de fr es zh ja --neurons 2048
    """

    path: Positional[Path]
    """The .pth file."""

    languages: Labels
    """Languages of the file's lists, in order; the file does not store them."""

    neurons: int
    """Neurons per layer (d_mlp) of the model; the file does not store it."""

    out: Path = Path("neurons.json")
    """File for the selection."""

    def run(self) -> "pandas.DataFrame":
        selection = interp.NeuronSelection.from_lape_pth(self.path, self.languages, self.neurons)
        selection.to_json(self.out, interp.results.artifacts.provenance(imported=self.path.name))
        show_selection(selection, None)
        say(f"The selection is in {self.out}.")
        return summary(selection)


@dataclass(frozen=True)
class Export:
    """Convert a selection into the published format (.pth).

    The file holds neuron indices in nested lists: [language][layer].

        interp export results/demo/neurons.json --out demo.pth
    """

    path: Positional[Path]
    """A selection (.json) from `interp find` or `interp import`, or a run that has one."""

    out: Path = Path("neurons.pth")
    """File for the mask."""

    def run(self) -> None:
        selection = read_selection(self.path)
        selection.to_lape_pth(self.out)
        say(f"{self.out} holds {', '.join(selection.languages)}, in this order.")


@dataclass(frozen=True)
class Babel:
    """Print the model card of the shipped model: data, training, facts.

    interp babel
    """

    def run(self) -> None:
        say((BABEL / "README.md").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Completion:
    """Print what lets a shell complete commands and options.

    For every new shell, put this into ~/.bashrc, or with zsh into ~/.zshrc: eval "$(interp
    completion bash)"

        interp completion bash
    """

    shell: Positional[Shell]
    """bash or zsh."""

    def run(self) -> None:
        sys.stdout.write(completion_script(self.shell, COMMANDS))


SECTIONS: dict[str, dict[str, type]] = {
    "First steps": {
        **{"demo": Demo, "doctor": Doctor, "plan": Plan, "babel": Babel},
        **{"completion": Completion},
    },
    "Reading text": {"collect": Collect, "merge": Merge, "status": Status, "tidy": Tidy},
    "Selecting neurons": {
        **{"find": Find, "compare": Compare, "stability": Stability, "explain": Explain},
        **{"routing": Routing, "import": Import, "export": Export},
    },
    "Editing neurons": {
        **{"deactivate": Deactivate, "write": Write, "steer": Steer, "ask": Ask},
        **{"bake": Bake, "adapter": Adapter, "vector": Vector, "train": Train, "lock": Lock},
    },
    "Tasks and prompts": {
        **{"evaluate": Evaluate, "share": Share, "attribute": Attribute},
        **{"patch": Patch, "lens": Lens},
    },
    "Output": {"page": Page, "figure": Figure, "report": Report, "push": Push, "pull": Pull},
}
COMMANDS = {name: command for section in SECTIONS.values() for name, command in section.items()}


def overview() -> str:
    """All commands, one line each."""
    lines = ["usage: interp COMMAND [options]", "", *textwrap.wrap(DESCRIPTION, WIDTH - 1)]
    for title, section in SECTIONS.items():
        lines.append(f"{title}:")
        for name, command in section.items():
            summary = (inspect.getdoc(command) or "").split("\n\n")[0]
            lines.append(f"  {name:<10}  {' '.join(summary.split())}")
    return "\n".join([*lines, "For details of a command: interp COMMAND --help", ""])


def chosen(arguments: Sequence[str]) -> Any:
    """The subcommand with its options; exits after printing help or one sentence on an error."""
    if arguments and arguments[0] in COMMANDS:
        return Parser(arguments[0], COMMANDS[arguments[0]]).read(arguments[1:])
    if arguments and arguments[0] in ("-h", "--help"):
        say(overview().rstrip())
        raise SystemExit(0)
    if arguments and arguments[0] == "--version":
        from importlib.metadata import version

        say(f"polyneuron {version('polyneuron')}")
        raise SystemExit(0)
    if list(arguments) == ["--json"]:
        sys.stdout.write(json_rows(table_of_runs(Path())))
        raise SystemExit(0)
    if not arguments and (runs := list_of_runs(Path())):
        say(f"{runs}\n\nAll commands: interp --help")
        raise SystemExit(0)
    if not arguments:
        sys.stderr.write(overview())
    else:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        sys.stderr.write(
            f"interp: there is no command {arguments[0]!r}{hint} All commands: interp --help\n"
        )
    raise SystemExit(2)


_WRITES_A_FILE = (
    *(Compare, Export, Find, Import, Lens, Patch, Plan, Report, Routing),
    *(Stability, Vector, Write),
)
"""Those whose --out is a file; of others it is a folder."""


def carried_out(command: Any) -> bool:
    """Run a subcommand; its last line says what comes next, if its result allows to go on."""
    inner, last = command, sys.stdout
    if isinstance(command, AsJson):
        inner, last = command.command, sys.stderr
    if isinstance(out := getattr(inner, "out", None), Path):
        either = "either" if isinstance(inner, Page) else "folder"  # many neurons make a folder
        check_writable(out, "file" if isinstance(inner, _WRITES_A_FILE) else either)
    with tagged(tags_around(_paths_of(inner))):
        answer = command.run()
    name = next(name for name, kind in COMMANDS.items() if kind is type(inner))
    sound = is_sound(answer)
    if sound and (step := next_after(name, inner)):
        last.write(f"Next: {step}\n")
    return sound


def _paths_of(command: Any) -> Iterator[Path]:
    """The runs and results that a subcommand is about."""
    for option in options_of(type(command)):
        if option.positional and option.kind is Path:
            value = getattr(command, option.name)
            yield from value if isinstance(value, tuple) else (value,)
    if isinstance(choice := getattr(command, "choice", None), ModelChoice) and choice.memory.source:
        yield choice.memory.source


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit codes: 0, done; 1, the doctor found a fault; 2, one sentence says what to change."""
    if arguments is None and not sys.warnoptions:  # run as a program, without -W
        _show_only_our_warnings()
    command: Any = None
    try:
        command = chosen(sys.argv[1:] if arguments is None else arguments)
        sound = carried_out(command)
    except (ValueError, KeyError, OSError, MemoryError, RuntimeError) as error:
        _close_bars()
        sentence = _sentence(error)
        if command is not None:
            kind = type(command.command if isinstance(command, AsJson) else command)
            sentence = in_options(sentence, kind)
        sys.stderr.write(f"interp: {sentence}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if arguments is None:  # run as a program: a second Ctrl-C adds nothing
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _close_bars()
        sys.stderr.write(f"interp: interrupted. {_after_a_stop(command)}\n")
        raise SystemExit(130) from None
    if not sound:
        raise SystemExit(1)


def _after_a_stop(command: Any) -> str:
    """What was kept, and how to go on."""
    command = command.command if isinstance(command, AsJson) else command
    if hasattr(command, "on") or isinstance(command, Train | Demo | Lock | Vector):
        return "Finished pieces are kept; run the same command to resume."
    return "Run the same command to begin anew."


def _show_only_our_warnings() -> None:
    """As sentences, each once, without code; those of other libraries address programmers."""

    @cache  # Python's own "once" is once per module, and begins anew when filters change
    def warn(sentence: str) -> None:
        sys.stderr.write(f"Warning: {sentence}\n")

    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    warnings.filterwarnings("ignore")
    # Our warnings point at our own line, or at torch's wrapper where that line is under no_grad.
    warnings.filterwarnings("always", module=r"interp(\.|$)|torch\.utils\._contextlib$")


def _close_bars() -> None:
    """Close interrupted progress bars, so that the message gets a line of its own."""
    tqdm = getattr(sys.modules.get("interp.results.bars"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _sentence(error: Exception) -> str:
    """The message in one line; an error that is a bug of ours is raised again."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror
        if error.filename is not None:  # the system's message does not name the file; ours do
            message = f"{error.filename}: {message}"
    elif isinstance(error, KeyError):
        message = str(error.args[0])
    elif _is_out_of_memory(error):
        message = "memory ran out: use smaller numbers, such as --tokens-per-batch"
    elif isinstance(error, RuntimeError):
        raise error
    # Hugging Face appends paragraphs of advice; the first line says what is wrong.
    return message.strip().splitlines()[0]


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # not loaded: it cannot have raised the error
    out_of_memory = isinstance(error, MemoryError) or "alloc" in str(error)
    return out_of_memory or (torch is not None and isinstance(error, torch.OutOfMemoryError))

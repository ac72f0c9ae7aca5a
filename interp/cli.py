"""The `interp` command: each subcommand is a frozen dataclass, which is also its Python form."""

import difflib
import inspect
import signal
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interp
from interp.commands.collect import Collect, Merge, Status
from interp.commands.common import Doctor, say
from interp.commands.crossing import Lens, Patch
from interp.commands.demo import Demo
from interp.commands.effects import Bake, Deactivate
from interp.commands.evaluate import Evaluate
from interp.commands.find import Compare, Find, show_selection
from interp.commands.options import WIDTH, Parser, Positional
from interp.commands.page import Page
from interp.commands.plan import Plan
from interp.commands.report import Report
from interp.commands.stability import Stability
from interp.commands.steer import Steer
from interp.commands.tasks import Attribute, Share

BABEL = Path(__file__).parent / "babel"
DESCRIPTION = (
    "Which neurons of a multilingual language model belong to a language, and which are shared. "
    "Try `interp demo` first; then `interp doctor`, `collect` and `find` on a model of your own."
)


@dataclass(frozen=True)
class Import:
    """Turn a published mask, a .pth file, into a selection.

        interp import LLaMA-2-7B.neuron.pth --languages en zh fr es vi id ja \\
            --neurons 11008
    """

    path: Positional[Path]
    """The .pth file."""

    languages: tuple[str, ...]
    """The languages of its lists, in order; the file does not say."""

    neurons: int
    """Neurons per layer (d_mlp) of the model; the file does not say."""

    out: Path = Path("neurons.json")
    """The selection."""

    def run(self) -> None:
        selection = interp.NeuronSelection.from_lape_pth(self.path, self.languages, self.neurons)
        selection.to_json(self.out, interp.results.artifacts.provenance(imported=self.path.name))
        show_selection(selection, None)
        say(f"The selection is in {self.out}.")


@dataclass(frozen=True)
class Export:
    """Write a selection in the published form, a .pth file.

    It is a List[language][layer] of the ids of neurons.

        interp export results/demo/neurons.json --out demo.pth
    """

    path: Positional[Path]
    """The selection, a .json file of `interp find` or `interp import`."""

    out: Path = Path("neurons.pth")
    """The .pth file."""

    def run(self) -> None:
        selection = interp.NeuronSelection.from_json(self.path)
        selection.to_lape_pth(self.out)
        say(f"{self.out} lists {', '.join(selection.languages)}, in this order.")


@dataclass(frozen=True)
class Babel:
    """Print the card of the shipped model: data, recipe, facts."""

    def run(self) -> None:
        say((BABEL / "README.md").read_text(encoding="utf-8"))


SECTIONS: dict[str, dict[str, type]] = {
    "To begin": {"demo": Demo, "doctor": Doctor, "plan": Plan, "babel": Babel},
    "Reading text": {"collect": Collect, "merge": Merge, "status": Status},
    "Which neurons": {
        **{"find": Find, "compare": Compare, "stability": Stability},
        **{"import": Import, "export": Export},
    },
    "Changing them": {"deactivate": Deactivate, "steer": Steer, "bake": Bake},
    "Tasks": {"evaluate": Evaluate, "share": Share, "attribute": Attribute},
    "Between languages": {"patch": Patch, "lens": Lens},
    "To look at": {"page": Page, "report": Report},
}
COMMANDS = {name: each for section in SECTIONS.values() for name, each in section.items()}


def overview() -> str:
    """All commands, a line for each."""
    lines = ["usage: interp COMMAND [options]", "", *textwrap.wrap(DESCRIPTION, WIDTH - 1), ""]
    for title, section in SECTIONS.items():
        lines.append(f"{title}:")
        for name, command in section.items():
            first = (inspect.getdoc(command) or "").split("\n\n")[0]
            lines.append(f"  {name:<10}  {' '.join(first.split())}")
    return "\n".join([*lines, "", "interp COMMAND --help tells more of each.", ""])


def chosen(arguments: Sequence[str]) -> Any:
    """The subcommand with its options; or help, or a sentence that says what is wrong with them."""
    if arguments and arguments[0] in COMMANDS:
        return Parser(arguments[0], COMMANDS[arguments[0]]).read(arguments[1:])
    if arguments and arguments[0] in ("-h", "--help"):
        say(overview().rstrip())
        raise SystemExit(0)
    if arguments and arguments[0] == "--version":
        from importlib.metadata import version

        say(f"polyneuron {version('polyneuron')}")
        raise SystemExit(0)
    if not arguments:
        sys.stderr.write(overview())
    else:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        perhaps = f"; did you mean {near[0]}?" if near else "."
        sys.stderr.write(
            f"interp: there is no command {arguments[0]!r}{perhaps} All commands: interp --help\n"
        )
    raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 0: done; 1: the doctor found a fault; 2: one sentence says what to change."""
    if arguments is None and not sys.warnoptions:  # the program itself, and nobody set -W
        _show_our_warnings_alone()
    try:
        command = chosen(sys.argv[1:] if arguments is None else arguments)
        command.run()
    except (ValueError, KeyError, OSError, MemoryError, RuntimeError) as error:
        _close_bars()
        sys.stderr.write(f"interp: {_sentence(error)}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if arguments is None:  # the program itself: a second Ctrl-C need not say more than one
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _close_bars()
        sys.stderr.write(
            "interp: interrupted. Finished pieces are kept; the same command goes on from there.\n"
        )
        raise SystemExit(130) from None


def _show_our_warnings_alone() -> None:
    """What the libraries below tell their programmers is nothing that the user can change."""
    warnings.filterwarnings("ignore")
    # A warning of ours points at a line of ours, or where torch has wrapped that in no_grad.
    warnings.filterwarnings("default", module=r"interp(\.|$)|torch\.utils\._contextlib$")


def _close_bars() -> None:
    """A sentence has a line of its own, whichever bar was interrupted."""
    tqdm = getattr(sys.modules.get("interp.results.bars"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _sentence(error: Exception) -> str:
    """What went wrong; an error that is ours and not the user's is raised again."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror
        if error.filename is not None:  # ours say it all, those of the system say it here
            message = f"{error.filename}: {message}"
    elif isinstance(error, KeyError):
        message = str(error.args[0])
    elif _is_out_of_memory(error):
        message = "memory ran out: read with smaller numbers, such as --tokens-per-batch"
    elif isinstance(error, RuntimeError):
        raise error
    # Hugging Face adds paragraphs of advice; its first line says what is wrong.
    return message.strip().splitlines()[0]


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # what was not loaded has raised nothing
    full = isinstance(error, MemoryError) or "alloc" in str(error)
    return full or (torch is not None and isinstance(error, torch.OutOfMemoryError))

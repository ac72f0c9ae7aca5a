"""The `interp` command: each subcommand is a frozen dataclass, which is also its Python form."""

import inspect
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro
from tyro.conf import Positional

from interp import artifacts
from interp.commands.collect import Collect, Merge, Status
from interp.commands.common import Doctor, say
from interp.commands.crossing import Lens, Patch
from interp.commands.demo import Demo
from interp.commands.effects import Bake, Deactivate, Steer
from interp.commands.find import Compare, Find, show_selection
from interp.commands.page import Page
from interp.commands.plan import Plan
from interp.commands.report import Report
from interp.commands.stability import Stability
from interp.commands.tasks import Attribute, Evaluate, Share
from interp.selection import NeuronSelection

BABEL = Path(__file__).parent / "babel"
DESCRIPTION = (
    "Which neurons of a multilingual language model belong to a language, and which are shared. "
    "Try `interp demo` first; then `interp doctor`, `collect` and `find` on a model of your own."
)


@dataclass(frozen=True)
class Import:
    """Turn a published List[language][layer] .pth file into a selection that a person can read.

    interp import LLaMA-2-7B.neuron.pth --languages en zh fr es vi id ja --neurons 11008
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
        selection = NeuronSelection.from_lape_pth(self.path, self.languages, self.neurons)
        selection.to_json(self.out, artifacts.provenance(imported=self.path.name))
        show_selection(selection, None)
        say(f"The selection is in {self.out}.")


@dataclass(frozen=True)
class Export:
    """Write a selection as the published List[language][layer] .pth file."""

    path: Positional[Path]
    """The selection, a .json file of `interp find` or `interp import`."""

    out: Path = Path("neurons.pth")
    """The .pth file."""

    def run(self) -> None:
        selection = NeuronSelection.from_json(self.path)
        selection.to_lape_pth(self.out)
        say(f"{self.out} lists {', '.join(selection.languages)}, in this order.")


@dataclass(frozen=True)
class Babel:
    """Print the card of the shipped model: its data, recipe and measured facts."""

    def run(self) -> None:
        say((BABEL / "README.md").read_text(encoding="utf-8"))


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": Demo,
    "doctor": Doctor,
    "plan": Plan,
    "collect": Collect,
    "merge": Merge,
    "status": Status,
    "find": Find,
    "compare": Compare,
    "stability": Stability,
    "deactivate": Deactivate,
    "steer": Steer,
    "bake": Bake,
    "evaluate": Evaluate,
    "share": Share,
    "attribute": Attribute,
    "patch": Patch,
    "lens": Lens,
    "page": Page,
    "report": Report,
    "import": Import,
    "export": Export,
    "babel": Babel,
}


def chosen(arguments: list[str]) -> Any:
    """The subcommand with its options; or help, or a sentence that says what is wrong with them."""
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        return tyro.cli(COMMANDS[name], prog=f"interp {name}", args=arguments[1:])
    lines = {name: (inspect.getdoc(each) or "").split("\n\n")[0] for name, each in COMMANDS.items()}
    every: Any = Union[  # noqa: UP007 - of a tuple that is made here
        tuple(
            Annotated[each, tyro.conf.subcommand(name, description=lines[name].replace("\n", " "))]
            for name, each in COMMANDS.items()
        )
    ]
    return tyro.cli(every, prog="interp", description=DESCRIPTION, args=arguments)


def main(arguments: list[str] | None = None) -> None:
    """Exit code 0: done; 1: the doctor found a fault; 2: one sentence says what to change."""
    command = chosen(sys.argv[1:] if arguments is None else arguments)
    try:
        command.run()
    except (ValueError, KeyError, OSError) as error:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, KeyError):
            message = str(error.args[0])
        # Hugging Face adds paragraphs of advice; its first line says what is wrong.
        sys.stderr.write(f"interp: {message.strip().splitlines()[0]}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if arguments is None:  # the program itself: a second Ctrl-C need not say more than one
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write(
            "interp: interrupted. Finished pieces are kept; the same command goes on from there.\n"
        )
        raise SystemExit(130) from None

"""What does starting cost? `interp --help` and `import interp` against the libraries they use.

    python -m benchmarks.start                 # 12 minutes on one core
    python -m benchmarks.start bench           # 3 minutes

Help loads no library; the goal is at most a third of the time of `import torch`. `import interp`
loads what a name needs at its first use; the goal is at most 1.1 times the time of `import torch,
transformers, transformer_lens`. That is less than opening a model needs, because TransformerLens
also loads its bridge at first use; so the three are timed with the model classes as well.

Each variant runs in its own process. They take turns, and each time is divided by the first
variant's in the same round. Times are CPU seconds of the processes, not elapsed time.
"""

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import tyro

from benchmarks.records import Config, Row, Size, recording
from benchmarks.timing import Variants, take_turns

ASKING, IMPORTING = "asking, in CPU time", "importing, in CPU time"
COMMAND = "from interp.cli import main; main()"
"""The program that the `interp` command runs."""

LIBRARIES = "import torch, transformers, transformer_lens"
BRIDGE = (
    "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer; "
    "from transformer_lens.model_bridge import TransformerBridge"
)
HELP = ("interp --help", "interp find --help")
NAMES = ("import interp", "import interp; interp.load", "all of interp at once")


@dataclass(frozen=True)
class Amount:
    """How often each variant is started."""

    rounds: int = 15
    """Turns of each variant."""

    imports: bool = True
    """False: only help, which is quick."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(rounds=3),
    "toy": Amount(rounds=1, imports=False),
}


def process(program: str, *arguments: str, **environment: str) -> Callable[[], None]:
    """A function that runs this program in a new Python process."""

    def run() -> None:
        subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    return run


def work_of_processes() -> float:
    """CPU seconds of all child processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def asking() -> Variants:
    return {
        "import torch": process("import torch"),
        "Python itself": process("pass"),
        **{name: process(COMMAND, *name.split()[1:]) for name in HELP},
    }


def importing() -> Variants:
    module, name, whole = NAMES
    return {
        LIBRARIES: process(LIBRARIES),
        "the same with what opens a model": process(BRIDGE),
        module: process(module),
        name: process(name),
        whole: process(module, EAGER_IMPORT="1"),
    }


def measure(case: str, variants: Variants, rounds: int) -> list[Row]:
    """CPU seconds of every variant, also as multiples of the first one's."""
    turns = take_turns(variants, rounds, work_of_processes, warm_up=rounds > 1)
    return [
        row | {"seconds": statistics.median(turns.seconds[row["way"]])}
        for row in turns.rows(case=case)
    ]


def main(config: Config) -> None:
    amount = AMOUNTS[config.size]
    with recording("start", config, amount) as record:
        record(*measure(ASKING, asking(), amount.rounds))
        if amount.imports:
            record(*measure(IMPORTING, importing(), amount.rounds))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

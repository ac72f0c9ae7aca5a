"""What several subcommands of `interp` share: options for the model and for Ray, and printing."""

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import interp
from interp.commands.options import Positional
from interp.commands.remembered import Memory, found_in, is_run, memory_of
from interp.results import terminal
from interp.results.words import Attention, Bos

if TYPE_CHECKING:
    import pandas
    import torch


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how."""

    model: Positional[str | None] = None
    """A folder, GGUF file or hub name; else the run's or babel.

    By default that of the run that a command is about. If it is a run itself, it also gives
    precision, labels and beginning of text."""

    attention: Attention | None = None
    """native: faster; hooked: exposes q, k, v, heads."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """auto, float32, bfloat16, float16; by default the run's.

    auto: as stored, but float32 for bfloat16 on a CPU without instructions for it. Firing counts
    differ by a token or so between dtypes."""

    device: str | None = None
    """cpu, cuda, cuda:1, mps; by default a GPU if available."""

    no_cache: bool = False
    """Do not keep the checkpoint made from a GGUF file."""

    @property
    def memory(self) -> Memory:
        """What the run remembers, if MODEL names a run."""
        return memory_of(Path(self.model)) if self.model and is_run(Path(self.model)) else Memory()

    def of(self, memory: Memory) -> "ModelChoice":
        """The same choice, what it leaves open taken from a run: the one it names, or `memory`."""
        named, model = self.memory, self.model
        if named.source is not None:
            memory, model = (memory if memory.source == named.source else named), None
        return replace(
            self,
            model=memory.take("model", model, "babel"),
            attention=memory.take("attention", self.attention, "native"),
            dtype=memory.take("dtype", self.dtype, "auto"),
        )

    def open(self) -> "interp.NeuronModel":
        filled = self.of(Memory())
        return interp.load(
            filled.model or "babel",
            attention=filled.attention or "native",
            dtype=torch_dtype(filled.dtype or "auto"),
            device=filled.device,
            cache=not filled.no_cache,
        )


def torch_dtype(name: str) -> "torch.dtype | None":
    """The torch dtype of this name; None for "auto" and "stored"."""
    import torch

    return None if name in ("auto", "stored") else getattr(torch, name)


def seeded(seed: int) -> "torch.Generator":
    """A random generator with this seed."""
    import torch

    return torch.Generator().manual_seed(seed)


def check_found_in(path: Path, model: "interp.NeuronModel") -> None:
    """Refuse neurons found in another model, where their indices mean other neurons.

    `path` is a selection, or the folder of a run that holds one. Weights differ between dtypes, so
    there only the architecture and the tokenizer are compared. A selection that does not record its
    model, such as an imported one, is accepted.
    """
    stored = found_in(path).get("model")
    if not isinstance(stored, dict):
        return
    now = model.fingerprint
    keys = ["architecture", "tokenizer"]
    keys += ["weights"] if stored.get("dtype") == now["dtype"] else []
    if differ := [key for key in keys if key in stored and stored[key] != now[key]]:
        raise ValueError(
            f"The neurons in {path} were found in a model other than {model.name} (different "
            f"{differ[0]}): give that model. To try the same indices in this one, `interp export` "
            "the selection and `interp import` the result."
        )


def check_neurons(
    selection: "interp.NeuronSelection",
    neurons: Path,
    model: "interp.NeuronModel",
    neurons_of: Path | None = None,
) -> "interp.NeuronSelection":
    """The selection, refused if it is of another model and not asked for with --neurons-of.

    One of another model knows that, and a line says so.
    """
    selection.check_model(model)
    if neurons_of is None:
        check_found_in(neurons, model)
        return selection
    run = found_in(neurons_of)
    stored = run.get("model")
    architecture = stored.get("architecture") if isinstance(stored, dict) else None
    if architecture not in (None, model.fingerprint["architecture"]):
        raise ValueError(
            f"The neurons of {neurons_of} are of a {architecture}, and {model.name} is a "
            f"{model.fingerprint['architecture']}: their indices mean nothing there. Give a model "
            "that was trained on from theirs, or that theirs was trained on from."
        )
    name = str(run.get("name") or neurons_of)
    say(
        f"NEURONS OF ANOTHER MODEL: they were found in {name} ({neurons_of}); the same indices "
        f"are edited in {model.name}. What is written says so (neurons_of)."
    )
    return selection.on(model, name)


def keep_of(command: Any) -> "interp.Keep":
    """What a run is to keep, from the options of `interp collect` or `interp plan`."""
    from interp.counting.statistics import STATISTICS

    others = {word.replace("-", "_") for word in command.units}
    statistics: dict[str, Any] = {
        name: getattr(command, name) if row.units == "post" else name in others
        for name, row in STATISTICS.items()
    }
    return interp.Keep(**statistics, sentence_means=command.sentences, contexts=command.contexts)


def cut_short(asked: int | None, corpora: "interp.Corpora") -> str:
    """A sentence if shards of whole blocks hold fewer tokens than were asked for; else empty."""
    rows = next(iter(corpora.rows.values()))
    block, n_shards = rows.ids.shape[1], corpora.n_shards
    whole = (asked or 0) // (block * n_shards) * block * n_shards
    if asked is None or whole == asked:
        return ""
    return (
        f"At most {whole:,} tokens per label are read, not {asked:,}: {n_shards} shards of "
        f"{whole // (block * n_shards)} blocks of {block}. With fewer shards or shorter blocks it "
        "comes closer."
    )


def say_how_text_begins(model: "interp.NeuronModel", bos: Bos) -> None:
    """Say so, above a table, if it is not how the model's tokenizer begins a text."""
    from interp.text.tokens import against_the_tokenizer

    if sentence := against_the_tokenizer(model, bos):
        say(sentence.replace('bos="auto"', "--bos auto"))


def in_chat(
    model: "interp.NeuronModel", tasks: "Sequence[interp.text.Task]", chat: bool, bos: Bos
) -> "tuple[list[interp.text.Task], Bos]":
    """The tasks and what is put before a prompt; with --chat in the template, which begins it."""
    if chat:
        return [interp.text.chat_task(model, task) for task in tasks], "none"
    say_how_text_begins(model, bos)
    return list(tasks), bos


@dataclass(frozen=True)
class OnRay:
    """Whether to run, and whether on Ray with which resources; it changes no result."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop.

    A trial reads one batch. A command that takes more than ten seconds says so in any case."""

    ray: tuple[str, ...] | None = None
    """Use Ray on this machine, or on the cluster at an address.

    Actors hold the model and do the work. An address is auto or 10.0.0.1:6379, for example. Needs
    polyneuron[ray]; all nodes share --out."""

    num_cpus: float = 1.0
    """With --ray: CPUs per actor."""

    num_gpus: float | None = None
    """With --ray: GPUs per actor; by default 1 if available."""

    def check(self) -> None:
        """Refuse invalid options before a large model is loaded."""
        if self.ray is None and (self.num_cpus, self.num_gpus) != (1.0, None):
            raise ValueError(
                "--num-cpus and --num-gpus have no effect without --ray: leave them out."
            )
        if not (self.num_cpus >= 0 and (self.num_gpus is None or self.num_gpus >= 0)):
            raise ValueError(
                f"--num-cpus is {self.num_cpus:g} and --num-gpus {self.num_gpus}: give 0 or more."
            )
        if self.ray is not None and len(self.ray) > 1:
            raise ValueError(
                f"--ray takes one address or none, not {' '.join(self.ray)}: put other arguments "
                "before the options."
            )

    def open(self, choice: ModelChoice) -> "tuple[interp.NeuronModel, interp.runs.Ray | None]":
        """The model and, with --ray, how to start its actors; None: this process does the work.

        With actors this process computes nothing: it loads the model on the CPU, and the actors
        have the GPUs.
        """
        self.check()
        if self.ray is None:
            return choice.open(), None
        choice = choice.of(Memory())
        folder = Path(choice.model or "babel")
        on_actors = replace(choice, model=str(folder.resolve())) if folder.exists() else choice
        address = self.ray[0] if self.ray else None
        ray = interp.runs.Ray(
            address, num_cpus=self.num_cpus, num_gpus=self.num_gpus, open=on_actors.open
        )
        return replace(choice, device="cpu").open(), ray

    def goes_ahead(self, measure: "Callable[[], interp.runs.Forecast]", smaller: str) -> bool:
        """Say what is left to do, if that is long or all that is asked, and whether to do it.

        On Ray, other machines do the work, so a trial on this one says little.
        """
        if self.ray is not None and not self.dry_run:
            return True
        resumes = "It can be interrupted and resumed at any time."
        return goes_ahead(measure, f"{smaller}. {resumes}", self.dry_run)


def goes_ahead(measure: "Callable[[], interp.runs.Forecast]", smaller: str, dry_run: bool) -> bool:
    """Say how long the work takes, if that is long or all that is asked, and whether to do it."""
    forecast = measure()
    seconds = forecast.seconds or 0.0
    if seconds > _LONG or dry_run:
        say(str(forecast) if dry_run else f"{forecast} The progress bar corrects this.")
    if seconds > _VERY_LONG:
        say(f"To make it shorter: {smaller}")
    return not dry_run


_LONG, _VERY_LONG = 10.0, 600.0
"""Seconds from which a command says how long it takes, and how to make that less."""

WITHOUT_RAY = OnRay()
"""This process does the work."""


def open_model(
    choice: ModelChoice, memory: Memory, on: OnRay = WITHOUT_RAY
) -> "tuple[interp.NeuronModel, interp.runs.Ray | None]":
    """`on.open` of the model that is given, or else of the run's; says what the run supplied.

    Take everything else from the run first, so that one line says all of it.
    """
    filled = choice.of(memory)
    memory.take_tags()
    if sentence := str(memory):
        say(sentence)
    try:
        return on.open(filled)
    except OSError as error:
        if "model" not in memory.taken:
            raise
        why = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"The model of {memory.source} cannot be opened ({why}) If it was moved, name its new "
            "place with --model."
        ) from None


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def save_table(frame: "pandas.DataFrame", path: Path) -> None:
    """Write a table as CSV."""
    text = frame.to_csv(index=False)
    if "\r" in text:  # of a text, where it would end a row: quoted, it does not
        text = frame.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    interp.results.artifacts.write_text(path, text)


def say_table(rows: Sequence[Sequence[str]], stay: int = 1) -> None:
    """Print a table, headings first; columns that do not fit the terminal follow below."""
    say("\n".join(terminal.table(rows, terminal.terminal_width(), stay)))

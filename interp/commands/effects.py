"""The subcommands that edit neurons: deactivate in memory, bake into a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import interp
from interp.commands.common import (
    WITHOUT_RAY,
    ModelChoice,
    OnRay,
    check_neurons,
    cut_short,
    goes_ahead,
    open_model,
    save_table,
    say,
    say_how_text_begins,
    seeded,
)
from interp.commands.figure import Figure
from interp.commands.forecasts import of_baking, of_losses
from interp.commands.options import Labels, Positional
from interp.commands.overview import check_finished
from interp.commands.remembered import is_run, memory_of, out_for
from interp.results.terminal import terminal_width
from interp.results.words import Bos, Split
from interp.text.labels import check_labels
from interp.text.languages import label_name

if TYPE_CHECKING:
    from torch import Tensor


def open_run(folder: Path) -> "interp.Run":
    """The finished run in a folder; anything else is refused before a library is loaded."""
    check_finished(folder)
    return interp.Run.open(folder)


def read_selection(path: Path) -> "interp.NeuronSelection":
    """The selection in a file, or in the folder of a run after `interp find`."""
    file = path / "neurons.json" if path.is_dir() else path
    if not file.is_file():
        check_finished(path.parent if not path.is_dir() and is_run(path.parent) else path)
        raise FileNotFoundError(f"{file} is missing. Make it with: interp find {file.parent}")
    return interp.NeuronSelection.from_json(file)


def whose_neurons(selection: "interp.NeuronSelection", label: str, path: Path) -> str:
    """Sentences for the card of what is written: whose neurons they are, and of which model."""
    note = f"The neurons are those of {label_name(label)} in {path.name}."
    if selection.neurons_of:
        found_in = Path(selection.neurons_of).name  # no folder of this machine
        note += f" They were found in another model of the same shape, {found_in}."
    return note


def run_of(path: Path) -> "interp.Run":
    """The run that a selection was found in; `path` is its folder, or the selection in it."""
    folder = path if path.is_dir() else path.parent
    try:
        return open_run(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} is not the folder of a run, whose rates or means are needed here: give the "
            "folder of `interp collect --moments` (for --edit median, --sentences post) "
            "where `interp find` saved the selection."
        ) from None


def rates_of(path: Path, selection: "interp.NeuronSelection") -> "Tensor":
    """How often every neuron fires in the languages of the selection, in the run it is from."""
    if not selection.neurons_only:
        raise ValueError(
            "--rate-matched needs neurons of the MLP, since other units do not fire: leave it out, "
            "or give a selection of neurons alone."
        )
    firing = run_of(path).firing
    return firing.rate[[firing.languages.index(code) for code in selection.languages]]


@dataclass(frozen=True)
class Deactivate:
    """Measure every language's loss with each language's neurons off.

    The control is as many random neurons in every layer, and a permutation test asks whether a
    language's own loss rises most. The matrix is drawn as a PDF. The run supplies what is left out.
    To resume after an interruption, run the same command again.

        interp deactivate results/demo
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: ModelChoice
    """The model that the neurons were found in."""

    neurons_of: Path | None = None
    """Take the neurons of this run, of a model of this shape.

    The model, text and means are still of the run; both models must have the same shape."""

    text: str | None = None
    """A folder of <language>.txt, .txt.gz, .jsonl or .jsonl.gz, or babel; by default the run's."""

    languages: Labels = ()
    """Languages to read; by default the run's."""

    tokens: int | None = None
    """Tokens per language; by default as many as the run read."""

    block_length: int | None = None
    """Tokens per row, the only context for prediction; by default as in the run, or 128."""

    n_shards: int | None = None
    """Random groups of documents, for jackknife intervals; by default as in the run, or 20.

    The jackknife leaves out one group at a time."""

    split: Split | None = None
    """Documents to read; by default the half that the run did not read (all, train, held_out)."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's.

    It is what begins text."""

    n_draws: int = 3
    """Sets of random neurons for each language.

    As many in every layer as the language has."""

    rate_matched: bool = False
    """Also a control of neurons that fire nearly as often, as many in every layer.

    Needs the run that the neurons were found in."""

    seed: int = 0
    """Seeds the random sets."""

    out: Path | None = None
    """Folder of the matrix; by default deactivate in the run's."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> "interp.evaluations.PerplexityMatrix | None":
        selection, memory = read_selection(self.neurons_of or self.neurons), memory_of(self.neurons)
        out = out_for(self.out, self.neurons, "deactivate", self.neurons_of)
        # Other text has no half that the run read.
        split = self.split or "all" if self.text else memory.take("split", self.split, "all")
        reading: dict[str, Any] = {
            "languages": check_labels(
                memory.take("languages", self.languages, selection.languages)
            ),
            "block_length": memory.take("block_length", self.block_length, 128),
            "tokens": memory.take("tokens", self.tokens, None),
            "n_shards": memory.take("n_shards", self.n_shards, 20),
            "bos": memory.take_bos(self.bos),
            "split": split,
        }
        rate = rates_of(self.neurons, selection) if self.rate_matched else None
        text = memory.take_text(self.text, self.choice.of(memory).model, reading["languages"])
        model, ray = open_model(self.choice, memory, self.on)
        selection = check_neurons(selection, self.neurons, model, self.neurons_of)
        corpora = interp.read_corpora(text, model=model, held_out=0.5, **reading)
        if sentence := cut_short(self.tokens, corpora):
            say(sentence)
        sets = 1 + (1 + self.n_draws) * sum(size > 0 for size in selection.counts().values())
        if not self.on.goes_ahead(
            lambda: of_losses(model, corpora, sets, out), "fewer --tokens, --languages or --n-draws"
        ):
            return None
        matrix = interp.perplexity_matrix(
            model,
            selection,
            corpora,
            n_draws=self.n_draws,
            rate=rate,
            generator=seeded(self.seed),
            out=out,
            ray=ray,
        )
        save_table(matrix.to_frame(), out / "matrix.csv")
        say_how_text_begins(model, corpora.bos)
        say(matrix.table(terminal_width()))
        say(f"The matrix is in {out / 'matrix.safetensors'}, its table in matrix.csv.")
        if sets > 1:
            Figure(out).run()
        return matrix


@dataclass(frozen=True)
class Bake:
    """Write an edit of neurons into a standard checkpoint.

    Any Hugging Face program can load it. Its logits equal those of the hooked model.

        interp bake results/demo --language de --out babel-without-german
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: ModelChoice
    """The model that the neurons were found in."""

    language: str
    """Language of the neurons to edit."""

    out: Path
    """Folder for the checkpoint; it must be new."""

    neurons_of: Path | None = None
    """Take the neurons of this run, of a model of this shape.

    The model and means are still of the run; both models must have the same shape."""

    edit: Literal["deactivate", "scale", "replace", "add", "difference"] = "deactivate"
    """Of the neurons' output. deactivate: to zero; scale: times --strength; replace, add,
    difference: with its mean in the language, which needs a run with --moments.

    replace sets it to the mean, add adds --strength times the mean, difference --strength times the
    mean minus that of the others. They need an architecture with a bias."""

    strength: float = 1.0
    """Factor of --edit scale, add, difference."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> None:
        if self.edit in ("deactivate", "replace") and self.strength != 1:
            raise ValueError(
                f"--strength has no effect with --edit {self.edit}: leave it out, or use --edit "
                "scale, add or difference."
            )
        selection = read_selection(self.neurons_of or self.neurons)
        chosen = selection[self.language]
        units = chosen if selection.neurons_only else selection.units(self.language)
        if self.edit == "deactivate":
            edit = interp.deactivate
        elif self.edit == "scale":
            edit = interp.scale(self.strength)
        else:
            moments = run_of(self.neurons).moments
            edit = interp.selections.edit_towards(
                moments, self.language, self.edit, self.strength, "post"
            )
        model, _ = open_model(self.choice, memory_of(self.neurons))
        selection = check_neurons(selection, self.neurons, model, self.neurons_of)
        note = whose_neurons(selection, self.language, self.neurons_of or self.neurons)
        smaller = "a 16-bit --dtype, of which half as much is written."
        if not goes_ahead(lambda: of_baking(model, self.out), smaller, self.dry_run):
            return
        folder = interp.bake(model, units, edit, self.out, note=note)
        say(f"{int(chosen.sum())} neurons of {self.language}: {edit.name}.")
        say(f"Any Hugging Face program can load {folder}; its logits equal the hooked model's.")

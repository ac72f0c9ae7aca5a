"""The subcommands that edit neurons: deactivate in memory, bake into a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import interp
from interp.commands.common import (
    WITHOUT_RAY,
    ModelChoice,
    OnRay,
    bos_of,
    check_found_in,
    say,
    say_how_text_begins,
    seeded,
)
from interp.commands.options import Positional
from interp.results.words import Bos, Split
from interp.text.languages import check_languages, language


def read_selection(path: Path) -> "interp.NeuronSelection":
    """The selection in a file, or in the folder of a run after `interp find`."""
    file = path / "neurons.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. Make it with: interp find RUN_FOLDER")
    return interp.NeuronSelection.from_json(file)


def run_of(path: Path) -> "interp.Run":
    """The run that a selection was found in; `path` is its folder, or the selection in it."""
    folder = path if path.is_dir() else path.parent
    try:
        return interp.Run.open(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} is not the folder of a run, and this edit needs the means stored in one: "
            "give the folder of `interp collect --moments` (for --edit median, --sentences post) "
            "where `interp find` saved the selection."
        ) from None


@dataclass(frozen=True)
class Deactivate:
    """Measure every language's loss with each language's neurons off.

    The control is as many random neurons in every layer, and a permutation test asks whether a
    language's own loss rises most. To resume after an interruption, run the same command again.

        interp deactivate results/demo
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: ModelChoice
    """The model that the neurons were found in."""

    text: str = "babel"
    """"babel", or a folder of <language>.txt, .txt.gz, .jsonl or .jsonl.gz; preferably not the text
    that the neurons were found on."""

    languages: tuple[str, ...] = ()
    """Languages to read; by default those of the selection."""

    tokens: int | None = None
    """Tokens per language; by default all of the text."""

    block_length: int = 128
    """Tokens per row, the only context for prediction."""

    n_shards: int = 20
    """Random groups of documents, for jackknife intervals.

    The jackknife leaves out one group at a time."""

    split: Split = "all"
    """all documents, or half of them: train or held_out.

    Use one half if `interp collect` read the other."""

    bos: Bos | None = None
    """What begins text; by default as in the run (auto, none, document, block)."""

    n_draws: int = 3
    """Sets of random neurons for each language.

    As many in every layer as the language has."""

    seed: int = 0
    """Seeds the random sets."""

    out: Path = Path("results/deactivate")
    """Folder for the matrix."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> None:
        selection = read_selection(self.neurons)
        codes = check_languages(self.languages or selection.languages)
        model, ray = self.on.open(self.choice)
        selection.check_model(model)
        check_found_in(self.neurons, model)
        bos = bos_of(self.neurons, self.bos)
        corpora = interp.read_corpora(
            self.text,
            codes,
            model,
            block_length=self.block_length,
            tokens=self.tokens,
            n_shards=self.n_shards,
            bos=bos,
            split=self.split,
            held_out=0.5,
        )
        matrix = interp.perplexity_matrix(
            model,
            selection,
            corpora,
            n_draws=self.n_draws,
            generator=seeded(self.seed),
            out=self.out,
            ray=ray,
        )
        table = matrix.to_frame().to_csv(index=False)
        interp.results.artifacts.write_text(self.out / "matrix.csv", table)
        say_how_text_begins(model, bos)
        say(matrix.table())
        say(f"The matrix is in {self.out / 'matrix.safetensors'}, its table in matrix.csv.")


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

    edit: Literal["deactivate", "scale", "replace"] = "deactivate"
    """Sets the neurons' output. deactivate: to zero; scale: to --strength times its value; replace:
    to its mean in the language, which needs a run with --moments."""

    strength: float = 1.0
    """Factor of --edit scale."""

    def run(self) -> None:
        if self.edit != "scale" and self.strength != 1:
            raise ValueError(
                f"--strength has no effect with --edit {self.edit}: leave it out, or use --edit "
                "scale."
            )
        selection = read_selection(self.neurons)
        chosen = selection[self.language]
        units = chosen if selection.neurons_only else selection.units(self.language)
        if self.edit == "replace":
            edit = interp.replace(run_of(self.neurons).moments, self.language, "post")
        else:
            off = self.edit == "deactivate"
            edit = interp.deactivate if off else interp.scale(self.strength)
        model = self.choice.open()
        selection.check_model(model)
        check_found_in(self.neurons, model)
        note = f"The neurons are those of {language(self.language).name} in {self.neurons.name}."
        folder = interp.bake(model, units, edit, self.out, note=note)
        say(f"{int(chosen.sum())} neurons of {self.language}: {edit.name}.")
        say(f"Any Hugging Face program can load {folder}; its logits equal the hooked model's.")

"""The subcommand that writes a push towards a language as a control vector: vector."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import interp
from interp.commands.common import ModelChoice, check_neurons, goes_ahead, open_model, say
from interp.commands.effects import read_selection, run_of
from interp.commands.forecasts import of_push
from interp.commands.options import Positional
from interp.commands.remembered import memory_of
from interp.results.words import Bos


@dataclass(frozen=True)
class Vector:
    """Write a push towards a language as a control vector (.gguf).

    By default it pushes the residual stream in one layer, by the mean over the language's text
    minus that of the others. Run it again to resume.

        interp vector results/demo --language de --out german.gguf
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: ModelChoice
    """The model; by default that of the run."""

    language: str
    """Language to push towards."""

    out: Path
    """The file; it must be new."""

    push: Literal["residual", "neurons"] = "residual"
    """residual: in one layer; neurons: the language's, by their mean output there minus that
    elsewhere, which needs a run with --moments and no norm after the MLP."""

    layer: int | None = None
    """Layer of the residual push; by default the middle one."""

    strength: float = 1.0
    """Factor of the push."""

    text: str | None = None
    """Text that the residual means are of; by default the run's."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> None:
        if self.push == "neurons" and (self.layer is not None or self.text is not None):
            raise ValueError(
                "--layer and --text have no effect with --push neurons: leave them out."
            )
        if self.push == "neurons" and self.dry_run:
            raise ValueError("--push neurons reads no text: leave --dry-run out.")
        selection, memory = read_selection(self.neurons), memory_of(self.neurons)
        selection[self.language]  # refuses a missing language before a large model is loaded
        interp.results.artifacts.refuse_existing(self.out, "file")
        bos = memory.take_bos(self.bos)
        text = None
        if self.push == "residual":
            text = memory.take_text(self.text, self.choice.of(memory).model, selection.languages)
        model, _ = open_model(self.choice, memory)
        check_neurons(selection, self.neurons, model)
        if text is None:
            moments = run_of(self.neurons).moments
            edit = interp.difference_of_means(moments, self.language, self.strength, "post")
            change = selection.neurons().change(self.language, edit)
        else:
            from interp.evaluations.steering import text_for_push

            self.check_layer(model)
            corpora = text_for_push(model, text, selection.languages, bos)
            smaller = (
                "a run with fewer labels, of which text is read. It can be interrupted and resumed "
                "at any time."
            )
            measure = partial(of_push, model, corpora, self.pieces)
            if not goes_ahead(measure, smaller, self.dry_run):
                return
            change = self.residual_push(model, corpora, bos)
        file = change.to_control_vector(model, self.out)
        shutil.rmtree(self.pieces, ignore_errors=True)
        say(f"{change.edit.name}: llama.cpp adds it with --control-vector {file}.")

    def check_layer(self, model: "interp.NeuronModel") -> None:
        """Refuse a layer that no vector can be of, before text is read."""
        last = model.n_layers - 1
        if self.layer is not None and not 0 < self.layer <= last:
            raise ValueError(
                f"--layer is {self.layer}: give 1 to {last}. {model.name} has {last + 1} layers, "
                "and llama.cpp adds nothing after layer 0."
            )

    @property
    def pieces(self) -> Path:
        """The folder beside the file in which means are kept until it is written."""
        return self.out.with_name(f"{self.out.stem}.pieces")

    def residual_push(
        self, model: "interp.NeuronModel", corpora: "interp.Corpora", bos: Bos
    ) -> "interp.Change":
        from interp.evaluations.steering import measure_natural

        _, means = measure_natural(model, {}, corpora, bos=bos, out=self.pieces)
        layer = model.n_layers // 2 if self.layer is None else self.layer
        return interp.Change(*means.towards(self.language, layer, self.strength))

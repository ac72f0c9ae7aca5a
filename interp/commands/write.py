"""The subcommand that shows what a model writes before and after a change: write."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interp
from interp.commands.common import (
    ModelChoice,
    check_neurons,
    goes_ahead,
    open_model,
    save_table,
    say,
    say_how_text_begins,
    seeded,
)
from interp.commands.effects import read_selection, run_of
from interp.commands.forecasts import of_writing
from interp.commands.options import Positional
from interp.commands.remembered import memory_of
from interp.results.terminal import terminal_width
from interp.results.words import Bos, Tokens, Towards
from interp.runs.refusals import check_exists

if TYPE_CHECKING:
    from interp.interventions.under import Changes


@dataclass(frozen=True)
class Write:
    """Show what the model writes before and after a change.

    The texts stand side by side, with the language and the loss of each; those of one seed share
    their random numbers. Every --off, --to and --with is a column of its own.

        interp write results/demo "Guten Morgen" --off de
        interp write results/demo "The weather" --to de fr --strength 2
        interp write results/demo "The weather" --with change.json --n 5
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json) in it."""

    prompt: Positional[str]
    """What the texts continue; "" gives unconditional samples."""

    choice: ModelChoice
    """The model."""

    off: tuple[str, ...] = ()
    """Labels whose neurons are switched off, one after another."""

    to: tuple[str, ...] = ()
    """Labels to steer to; needs a run with --moments."""

    with_: tuple[Path, ...] = ()
    """Files of changes (.json): see interp.selections.read_changes."""

    random: bool = False
    """Also with as many random neurons in every layer."""

    edit: Towards = "difference"
    """With --to. difference: add the label's mean minus the mean of the others; add: add its mean;
    replace: set to its mean."""

    strength: float = 1.0
    """Factor of what --to adds."""

    tokens: Tokens = "all"
    """Tokens to edit: all, prompt, generated, last."""

    chat: bool = False
    """Put the prompt into the model's chat template."""

    n: int = 3
    """Texts of each column, with seeds that follow each other."""

    max_new_tokens: int = 48
    """Tokens to generate per text, at most."""

    temperature: float = 0.8
    """Sampling temperature; zero: the likeliest token."""

    seed: int = 0
    """Seed of the first text, and of the random neurons."""

    bos: Bos | None = None
    """What begins text; by default as in the run (auto, none, document, block)."""

    out: Path | None = None
    """Also write the texts into this file (.csv)."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> "interp.evaluations.SideBySide | None":
        if self.edit == "replace" and self.strength != 1:
            raise ValueError("--strength has no effect with --edit replace: leave it out.")
        selection = read_selection(self.neurons)
        under, memory = self.changes(selection), memory_of(self.neurons)
        bos = memory.take_bos(self.bos)
        model, _ = open_model(self.choice, memory)
        check_neurons(selection, self.neurons, model)
        prompt = interp.text.chat_prompt(model, self.prompt) if self.chat else self.prompt
        if not goes_ahead(
            lambda: of_writing(model, self.n, self.max_new_tokens, 1 + len(under)),
            "fewer changes, a smaller --n or shorter --max-new-tokens.",
            self.dry_run,
        ):
            return None
        written = interp.evaluations.write_side_by_side(
            model,
            prompt,
            under,
            n=self.n,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            bos=bos,
        )
        if self.out is not None:
            save_table(written.to_frame(), self.out)
        say_how_text_begins(model, bos)
        say(written.table(terminal_width()))
        return written

    def changes(self, selection: "interp.NeuronSelection") -> "dict[str, Changes]":
        """A column for each change asked for, and for its random control."""
        if not (self.off or self.to or self.with_):
            raise ValueError(
                f"Say what to change: --off, --to or --with. Labels are "
                f"{', '.join(selection.languages)}."
            )
        for path in self.with_:
            check_exists(path)
        if len({path.name for path in self.with_}) < len(self.with_):
            raise ValueError("Two files of --with have the same name: rename one.")
        sets = {"": selection}
        if self.random:
            drawn = selection.random_like(seeded(self.seed), exclude=selection.union())
            sets["random for "] = drawn
        for code in self.to:
            selection[code]  # refuses a label that is in no column
        towards = {code: self.edit_towards(code) for code in self.to}
        named: dict[str, Any] = {}
        for code in self.off:
            for name, chosen in sets.items():
                change = chosen.change(code, interp.deactivate, self.tokens)
                named[f"{name}off {code}"] = change
        for code, edit in towards.items():
            for name, chosen in sets.items():
                named[f"{name}to {code}"] = chosen.neurons().change(code, edit, self.tokens)
        for path in self.with_:
            for name, chosen in sets.items():
                changes = interp.selections.read_changes(
                    path, chosen, lambda: run_of(self.neurons).moments
                )
                known = [change.plan for change in named.get(f"with {path.name}", ())]
                if [change.plan for change in changes] != known:  # random ones have no lists
                    named[f"{name}with {path.name}"] = changes
        return named

    def edit_towards(self, code: str) -> "interp.Edit":
        moments = run_of(self.neurons).moments
        return interp.selections.edit_towards(moments, code, self.edit, self.strength)

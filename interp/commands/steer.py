"""The subcommand that lets the model generate text with neurons edited: steer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import interp
from interp.commands.common import (
    WITHOUT_RAY,
    ModelChoice,
    OnRay,
    check_neurons,
    open_model,
    save_table,
    say,
    say_how_text_begins,
    seeded,
)
from interp.commands.effects import rates_of, read_selection, run_of
from interp.commands.forecasts import of_steering
from interp.commands.options import Labels, Positional
from interp.commands.remembered import Memory, memory_of, out_for
from interp.results.display import listed
from interp.results.terminal import terminal_width
from interp.results.words import Bos, Tokens
from interp.text.labels import check_labels


def _with_neurons(selection: "interp.NeuronSelection", asked: Sequence[str]) -> tuple[str, ...]:
    """The labels to steer to: those asked for, which must have neurons, or all that have some."""
    codes = check_labels(asked or selection.languages)
    empty = [
        code for code in codes if not any(mask.any() for mask in selection.units(code).values())
    ]
    if len(empty) == len(codes) or (empty and asked):
        raise ValueError(
            f"The selection has no neurons for {listed(empty)}, so nothing can be changed towards "
            "them: select more, as with interp find --fraction, or name other labels with --to."
        )
    if empty:
        say(f"Left out, since the selection has no neurons for them: {listed(empty)}.")
    return tuple(code for code in codes if code not in empty)


@dataclass(frozen=True)
class EditTowards:
    """The edit that steers, and what it is compared with."""

    edit: Literal["replace", "add", "difference", "median"] = "difference"
    """difference: add the mean minus that of the others; add: add the mean; replace: set to it;
    median: set units of any site to theirs."""

    strength: float = 1.0
    """Factor of the added mean, and of the residual push."""

    site: Literal["act", "post"] = "act"
    """act: means of act(gate); post: means of the output.

    The means are measured and written at this site."""

    others_off: bool = False
    """Also switch off the neurons of other languages.

    Except those that the target language has too."""

    tokens: Tokens = "all"
    """Tokens to edit: all, prompt, generated, last."""

    rate_matched: bool = False
    """Also random neurons that fire nearly as often."""

    residual_layer: int | None = None
    """Layer of the residual push; by default the middle one."""

    def units(self, selection: "interp.NeuronSelection") -> "interp.NeuronSelection":
        """What is edited; refuses options that exclude each other."""
        if self.edit != "median":
            return selection.neurons()  # moments are measured only at neurons
        if self.others_off:
            raise ValueError(
                "--others-off switches neurons off, but --edit median is for units of any site: "
                "leave --others-off out."
            )
        return selection

    def towards(self, neurons: Path, code: str) -> "interp.Edit":
        """The edit towards a language, from means of the run that the neurons were found in."""
        if self.edit == "median":
            means = run_of(neurons).sentence_means
            return interp.override(interp.interventions.sentence_medians(means, code))
        moments = run_of(neurons).moments
        return interp.selections.edit_towards(moments, code, self.edit, self.strength, self.site)

    def controls(
        self, neurons: Path, selection: "interp.NeuronSelection", seed: int
    ) -> "dict[str, interp.NeuronSelection]":
        """Random neurons, by the name of their condition."""
        # A selection of units can hold most of a site, leaving too few others to draw from.
        excluded = None if self.edit == "median" else selection.union()
        generator = seeded(seed)
        controls = {"random neurons": selection.random_like(generator, excluded)}
        if self.rate_matched:
            rate = rates_of(neurons, selection)
            controls["neurons that fire alike"] = selection.random_like(generator, excluded, rate)
        return controls

    @property
    def settings(self) -> dict[str, Any]:
        """Of the functions that steer."""
        names = ("strength", "tokens", "others_off")
        return {name: getattr(self, name) for name in names} | {"layer": self.residual_layer}


BY_DIFFERENCE = EditTowards()
"""The difference of means is added, at full strength."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `interp steer` and `interp ask` take from a run before they open its model."""

    command: Any
    """One of the two."""

    selection: "interp.NeuronSelection"
    edits: "dict[str, interp.Edit]"
    """By the language to steer to."""

    text: str
    out: Path
    settings: dict[str, Any]
    """Of the functions that steer."""

    memory: Memory

    @staticmethod
    def of(command: Any, step: str) -> "Prepared":
        """Refuses what can be refused without a large model, such as a missing language."""
        neurons, how = command.neurons, command.how
        memory = memory_of(neurons)
        selection = how.units(read_selection(command.neurons_of or neurons))
        codes = _with_neurons(selection, command.to)
        out = out_for(command.out, neurons, step, command.neurons_of)
        names = ("chat", "max_new_tokens", "temperature", "seed")
        settings = {name: getattr(command, name) for name in names} | how.settings
        return Prepared(
            command=command,
            selection=selection,
            text=memory.take_text(
                command.text, command.choice.of(memory).model, selection.languages
            ),
            edits={code: how.towards(neurons, code) for code in codes},
            settings=settings | {"bos": memory.take_bos(command.bos), "out": out},
            out=out,
            memory=memory,
        )

    def open(
        self,
    ) -> "tuple[interp.NeuronModel, interp.runs.Ray | None, interp.NeuronSelection]":
        """The model, who does the work, and the selection as one of this model."""
        command = self.command
        model, ray = open_model(command.choice, self.memory, command.on)
        selection = check_neurons(self.selection, command.neurons, model, command.neurons_of)
        return model, ray, selection

    def forecast(
        self,
        model: "interp.NeuronModel",
        passes: int,
        n: int,
        natural: Mapping[str, Sequence[str]] = {},
    ) -> "interp.runs.Forecast":
        """Of `n` texts under each of as many conditions as there are passes."""
        from interp.evaluations.steering import text_for_push

        bos, n_tokens = self.settings["bos"], self.settings["max_new_tokens"]
        corpora = text_for_push(model, self.text, self.selection.languages, bos)
        return of_steering(model, corpora, passes, n, n_tokens, self.out, natural)


@dataclass(frozen=True)
class Steer:
    """Generate text with a language's neurons edited.

    Beside it: no edit, random neurons, the language named in the prompt, a residual push. Only good
    texts count. Run it again to resume.

        interp steer results/demo --to de ja --edit replace
    """

    neurons: Positional[Path]
    """A run after `interp find`, or a selection (.json) in it.

    The run must have kept moments (`interp collect --moments`), or sentences for the median."""

    choice: ModelChoice
    """The model that the neurons were found in."""

    neurons_of: Path | None = None
    """Take the neurons of this run, of a model of this shape.

    The model, text and means are still of the run; both models must have the same shape."""

    to: Labels = ()
    """Languages to steer to; by default all of the run."""

    how: EditTowards = BY_DIFFERENCE
    """The edit."""

    prompt: str = ""
    """Beginning of every text; by default empty."""

    chat: bool = False
    """Put --prompt into the model's chat template."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's.

    It is what begins text."""

    text: str | None = None
    """Natural text to judge by; by default the run's.

    The means for the push of the residual stream are of it too."""

    natural: int = 2000
    """Lines of natural text per language steered to.

    A text that is less likely than 99 % of them, or repeats itself more, is not good."""

    n: int = 50
    """Texts per condition."""

    max_new_tokens: int = 64
    """Tokens to generate per text, at most."""

    temperature: float = 0.8
    """Sampling temperature; zero: the likeliest token."""

    seed: int = 0
    """Seeds the texts and the random neurons."""

    out: Path | None = None
    """Folder of the results; by default steer in the run's."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> "interp.evaluations.SteeringRates | None":
        if self.natural < 1:
            raise ValueError(f"--natural is {self.natural}: give 1 line or more.")
        if self.chat and not self.prompt:
            raise ValueError("--chat needs --prompt: say what the user asks.")
        prepared = Prepared.of(self, "steer")
        out, (model, ray, selection) = prepared.out, prepared.open()
        if not self.on.goes_ahead(
            lambda: self.forecast(model, prepared),
            "fewer --n, --to or --natural, or shorter --max-new-tokens",
        ):
            return None
        rates = interp.evaluations.steer_towards(
            model,
            prepared.edits,
            selection,
            self.how.controls(self.neurons, selection, self.seed),
            prepared.text,
            prompt=self.prompt,
            n=self.n,
            natural=self.natural,
            ray=ray,
            **prepared.settings,
        )
        save_table(rates.to_frame(), out / "rates.csv")
        save_table(rates.texts_frame(), out / "texts.csv")
        say_how_text_begins(model, prepared.settings["bos"])
        say(rates.examples(width=terminal_width()))
        say("")
        say(rates.table(terminal_width()))
        say(f"The rates are in {out / 'rates.csv'}, the texts in texts.csv.")
        return rates

    def forecast(self, model: "interp.NeuronModel", prepared: Prepared) -> "interp.runs.Forecast":
        from interp.evaluations.steering import natural_texts

        to, n_tokens = tuple(prepared.edits), self.max_new_tokens
        natural = natural_texts(model, prepared.text, to, n_tokens, self.natural)
        passes = 1 + (4 + self.how.rate_matched) * len(to)
        return prepared.forecast(model, passes, self.n, natural)

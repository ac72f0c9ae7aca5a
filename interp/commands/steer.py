"""The subcommand that lets the model generate text with neurons edited: steer."""

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
from interp.commands.remembered import memory_of, out_for
from interp.results.terminal import terminal_width
from interp.results.words import Bos, Tokens
from interp.text.labels import check_labels


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
        selection, memory = read_selection(self.neurons_of or self.neurons), memory_of(self.neurons)
        out = out_for(self.out, self.neurons, "steer", self.neurons_of)
        selection = self.how.units(selection)
        if self.chat and not self.prompt:
            raise ValueError("--chat needs --prompt: say what the user asks.")
        codes = check_labels(self.to or selection.languages)
        for code in codes:
            selection[code]  # refuses a missing language before a large model is loaded
        edits = {code: self.how.towards(self.neurons, code) for code in codes}
        bos = memory.take_bos(self.bos)
        text = memory.take_text(self.text, self.choice.of(memory).model)
        model, ray = open_model(self.choice, memory, self.on)
        selection = check_neurons(selection, self.neurons, model, self.neurons_of)
        if not self.on.goes_ahead(
            lambda: self.forecast(model, selection.languages, codes, text, bos, out),
            "fewer --n, --to or --natural, or shorter --max-new-tokens",
        ):
            return None
        rates = interp.evaluations.steer_towards(
            model,
            edits,
            selection,
            self.how.controls(self.neurons, selection, self.seed),
            text,
            prompt=self.prompt,
            chat=self.chat,
            n=self.n,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            bos=bos,
            natural=self.natural,
            out=out,
            ray=ray,
            **self.how.settings,
        )
        for name, frame in (("rates", rates.to_frame()), ("texts", rates.texts_frame())):
            save_table(frame, out / f"{name}.csv")
        say_how_text_begins(model, bos)
        say(rates.examples(width=terminal_width()))
        say("")
        say(rates.table(terminal_width()))
        say(f"The rates are in {out / 'rates.csv'}, the texts in texts.csv.")
        return rates

    def forecast(
        self,
        model: "interp.NeuronModel",
        languages: tuple[str, ...],
        to: tuple[str, ...],
        text: str,
        bos: Bos,
        out: Path,
    ) -> "interp.runs.Forecast":
        from interp.evaluations.steering import natural_texts, text_for_push

        corpora = text_for_push(model, text, languages, bos)
        natural = natural_texts(model, text, to, self.max_new_tokens, self.natural)
        conditions = 1 + 4 * len(to)
        return of_steering(model, natural, corpora, conditions, self.n, self.max_new_tokens, out)

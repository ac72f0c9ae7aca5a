"""The subcommand that lets the model generate text with neurons edited: steer."""

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
from interp.commands.effects import read_selection, run_of
from interp.commands.options import Positional
from interp.results.words import Bos, Tokens
from interp.text.labels import check_labels


@dataclass(frozen=True)
class Steer:
    """Generate text with a language's neurons edited.

    Baselines: the unedited model, as many random neurons, a prompt that names the language, and a
    push of the residual stream. Only good texts count: long enough, not repetitive, and as likely
    under the unedited model as natural text. To resume, run the same command again.

        interp steer results/demo --to de ja --edit replace
        interp steer results/sentences/neurons-precision.json --to ja --edit median
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json) in it; needs --moments (median:
    --sentences)."""

    choice: ModelChoice
    """The model that the neurons were found in."""

    to: tuple[str, ...] = ()
    """Languages to steer to; by default those of the selection."""

    edit: Literal["replace", "add", "difference", "median"] = "difference"
    """difference: add the language's mean minus the mean of the others; add: add its mean;
    replace: set to its mean; median: set units of any site to its median.

    The last is that of Kojima et al."""

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

    prompt: str = ""
    """Beginning of every text; by default empty."""

    residual_layer: int | None = None
    """Layer of the residual push; by default the middle one."""

    bos: Bos | None = None
    """What begins text; by default as in the run (auto, none, document, block)."""

    text: str = "babel"
    """Natural text, to judge outputs and for the push."""

    n: int = 50
    """Texts per condition."""

    max_new_tokens: int = 64
    """Tokens to generate per text, at most."""

    temperature: float = 0.8
    """Sampling temperature; zero: the likeliest token."""

    seed: int = 0
    """Seeds the texts and the random neurons."""

    out: Path = Path("results/steer")
    """Folder for rates.csv and texts.csv."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> None:
        selection = read_selection(self.neurons)
        if self.edit != "median":
            selection = selection.neurons()  # moments are measured only at neurons
        elif self.others_off:
            raise ValueError(
                "--others-off switches neurons off, but --edit median is for units of any site: "
                "leave --others-off out."
            )
        codes = check_labels(self.to or selection.languages)
        for code in codes:
            selection[code]  # refuses a missing language before a large model is loaded
        edits = {code: self.edit_towards(code) for code in codes}
        model, ray = self.on.open(self.choice)
        selection.check_model(model)
        check_found_in(self.neurons, model)
        bos = bos_of(self.neurons, self.bos)
        # A selection of units can hold most of a site, leaving too few others to draw from.
        excluded = None if self.edit == "median" else selection.union()
        rates = interp.evaluations.steer_towards(
            model,
            edits,
            selection,
            selection.random_like(seeded(self.seed), exclude=excluded),
            self.text,
            layer=self.residual_layer,
            strength=self.strength,
            tokens=self.tokens,
            others_off=self.others_off,
            prompt=self.prompt,
            n=self.n,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            bos=bos,
            out=self.out,
            ray=ray,
        )
        for name, frame in (("rates", rates.to_frame()), ("texts", rates.texts_frame())):
            path = self.out / f"{name}.csv"
            interp.results.artifacts.write_text(path, frame.to_csv(index=False))
        say_how_text_begins(model, bos)
        say(rates.table())
        say(f"The rates are in {self.out / 'rates.csv'}, the texts in texts.csv.")

    def edit_towards(self, code: str) -> "interp.Edit":
        if self.edit == "median":
            means = run_of(self.neurons).sentence_means
            return interp.override(interp.interventions.sentence_medians(means, code))
        moments = run_of(self.neurons).moments
        if self.edit == "replace":
            return interp.replace(moments, code, self.site)
        change = {"add": interp.add, "difference": interp.difference_of_means}[self.edit]
        return change(moments, code, self.strength, self.site)

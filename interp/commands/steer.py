"""The subcommand that lets a model write with neurons changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import interp
from interp.commands.common import HERE, ModelChoice, OnRay, check_found_in, say, seeded
from interp.commands.effects import read_selection, run_of
from interp.commands.options import Positional
from interp.results.words import Tokens
from interp.text.languages import check_languages


@dataclass(frozen=True)
class Steer:
    """Let the model write with a language's neurons changed.

    Beside it stand the untouched model, as many random neurons, a prompt that names the language,
    and a push of the residual stream. A rate counts only texts that pass the guard: long enough,
    not repeating themselves, and as likely for the untouched model as natural text is. Run it
    again after an interruption, and it goes on.

        interp steer results/demo --to de ja --edit replace
        interp steer results/sentences/neurons-precision.json --to ja --edit median
    """

    neurons: Positional[Path]
    """Folder of a run with --moments after `interp find`, or a selection (.json) in it; for --edit
    median, of a run with --sentences."""

    choice: ModelChoice
    """The model that the neurons were found in."""

    to: tuple[str, ...] = ()
    """Languages to steer to; by default those of the selection."""

    edit: Literal["replace", "add", "difference", "median"] = "difference"
    """difference: the language's mean less that of the others on top; add: its mean on top;
    replace: its mean instead; median: units of any site at its median (Kojima et al.)."""

    strength: float = 1.0
    """How often the mean is added."""

    site: Literal["act", "post"] = "act"
    """Means of act: act(gate); or of post: the output.

    Where they were measured, and where they are written."""

    others_off: bool = False
    """Also switch off the neurons of other languages.

    Where they are not the target's too."""

    tokens: Tokens = "all"
    """Tokens edited: all, prompt, generated, last."""

    prompt: str = ""
    """What every text begins with; by default nothing."""

    residual_layer: int | None = None
    """Where the residual stream is pushed; by default midway."""

    text: str = "babel"
    """Natural text, for the guard and the push."""

    n: int = 50
    """Texts per condition."""

    max_new_tokens: int = 64
    """Length of the texts."""

    temperature: float = 0.8
    """Of sampling; zero: the likeliest token."""

    seed: int = 0
    """Seeds texts and random neurons."""

    out: Path = Path("results/steer")
    """Folder for rates.csv and texts.csv."""

    on: OnRay = HERE
    """Who computes."""

    def run(self) -> None:
        selection = read_selection(self.neurons)
        if self.edit != "median":
            selection = selection.neurons()  # moments are measured at them alone
        elif self.others_off:
            raise ValueError("--others-off is for neurons, and --edit median for all units.")
        codes = check_languages(self.to or selection.languages)
        for code in codes:
            selection[code]  # all languages are there, before a large model is loaded
        edits = {code: self.edit_towards(code) for code in codes}
        model, ray = self.on.open(self.choice)
        selection.check_model(model)
        check_found_in(self.neurons, model)
        # Units of all sites can be most of them, which leaves too few others to draw from.
        barred = None if self.edit == "median" else selection.union()
        found = interp.evaluations.steer_towards(
            model,
            edits,
            selection,
            selection.random_like(seeded(self.seed), exclude=barred),
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
            out=self.out,
            ray=ray,
        )
        for name, frame in (("rates", found.to_frame()), ("texts", found.texts_frame())):
            path = self.out / f"{name}.csv"
            interp.results.artifacts.write_text(path, frame.to_csv(index=False))
        say(found.table())
        say(f"All rates are in {self.out / 'rates.csv'}, the texts in texts.csv.")

    def edit_towards(self, code: str) -> "interp.Edit":
        if self.edit == "median":
            means = run_of(self.neurons).sentence_means
            return interp.override(interp.interventions.sentence_medians(means, code))
        moments = run_of(self.neurons).moments
        if self.edit == "replace":
            return interp.replace(moments, code, self.site)
        change = {"add": interp.add, "difference": interp.difference_of_means}[self.edit]
        return change(moments, code, self.strength, self.site)

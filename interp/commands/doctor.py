"""The subcommand that checks a model's hooks: doctor."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import interp
from interp.commands.collect import Collect
from interp.commands.common import ModelChoice, goes_ahead, open_model, say
from interp.commands.forecasts import of_doctor
from interp.commands.options import in_options
from interp.results.terminal import terminal_width

if TYPE_CHECKING:
    from interp.models.doctor import Diagnosis


@dataclass(frozen=True)
class Doctor:
    """Check that a model's hooks read and edit the right activations.

    Run this before you trust any result on a new model. It needs only a few tokens of text.

        interp doctor babel
        interp doctor bigscience/bloom-560m
    """

    choice: ModelChoice
    """The model."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> "Diagnosis | None":
        model, _ = open_model(self.choice, self.choice.memory)
        smaller = "a GPU (--device cuda), or a 16-bit --dtype if the hardware has one."
        if not goes_ahead(lambda: of_doctor(model), smaller, self.dry_run):
            return None
        diagnosis = interp.doctor(model)
        # What it advises is for the command that comes next.
        say(in_options(diagnosis.table(terminal_width()), Collect))
        return diagnosis

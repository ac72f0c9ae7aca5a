"""What several subcommands of `interp` share: the choice of a model, and saying things."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro
from tyro.conf import Positional

from interp.doctor import doctor
from interp.model import NeuronModel, load


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is opened."""

    model: Positional[str] = "babel"
    """"babel" (shipped with the package), a local folder, or a name on the Hugging Face hub."""

    attention: Literal["native", "hooked"] = "native"
    """native: the speed of the bare model; hooked: sites inside attention can be read too."""

    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Precision of the weights; rates differ by a token or so between precisions."""

    device: str | None = None
    """cpu, cuda, cuda:1, mps; by default the GPU if there is one."""

    def open(self) -> NeuronModel:
        dtype = None if self.dtype == "stored" else getattr(torch, self.dtype)
        return load(self.model, attention=self.attention, dtype=dtype, device=self.device)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


@dataclass(frozen=True)
class Doctor:
    """Check that a model's neuron hooks tell the truth, before anything is believed about them."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model."""

    def run(self) -> None:
        diagnosis = doctor(self.choice.open())
        say(str(diagnosis))
        if not diagnosis.ok:
            raise SystemExit(1)

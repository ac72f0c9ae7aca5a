"""What several subcommands of `interp` share: the choice of a model, and saying things."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import interp
from interp.commands.options import Positional
from interp.results.words import Attention

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is opened."""

    model: Positional[str] = "babel"
    """"babel" (shipped), a folder, or a hub name."""

    attention: Attention = "native"
    """hooked: see inside attention; native: faster."""

    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Of weights: stored, float32, bfloat16, float16.

    Rates differ by a token or so between precisions."""

    device: str | None = None
    """cpu, cuda, cuda:1, mps; by default a GPU if there is one."""

    def open(self) -> "interp.NeuronModel":
        dtype = torch_dtype(self.dtype)
        return interp.load(self.model, attention=self.attention, dtype=dtype, device=self.device)


def torch_dtype(name: str) -> "torch.dtype | None":
    """The dtype of this name; None: as it is stored."""
    import torch

    return None if name == "stored" else getattr(torch, name)


def seeded(seed: int) -> "torch.Generator":
    """Where randomness comes from."""
    import torch

    return torch.Generator().manual_seed(seed)


def check_found_in(path: Path, model: "interp.NeuronModel") -> None:
    """Refuse neurons that were found in another model: under their numbers are others there.

    `path` is a selection, or the folder of a run that holds one. Between precisions the weights
    differ, and the kind of model and its tokenizer are compared. A selection that does not say
    where it is from, such as an imported one, is believed.
    """
    stored: Any = json.loads((path / "neurons.json" if path.is_dir() else path).read_text("utf-8"))
    for key in ("provenance", "settings", "run", "model"):
        stored = stored.get(key) if isinstance(stored, dict) else None
    if not isinstance(stored, dict):
        return
    now = model.fingerprint
    keys = ["architecture", "tokenizer"]
    keys += ["weights"] if stored.get("dtype") == now["dtype"] else []
    if differ := [key for key in keys if key in stored and stored[key] != now[key]]:
        raise ValueError(
            f"The neurons in {path} were found in another model than {model.name} (by its "
            f"{differ[0]}): give the one that they were found in. To try their numbers in another, "
            "`interp export` them and `interp import` that."
        )


@dataclass(frozen=True)
class OnRay:
    """Whether Ray deals out the work, and to what processes; it changes no number."""

    ray: tuple[str, ...] | None = None
    """On Ray: this machine, or the cluster at an address.

    It hands the work to processes that hold the model. The address is such as auto or
    10.0.0.1:6379. Needs polyneuron[ray]; all nodes share --out."""

    num_cpus: float = 1.0
    """With --ray: CPUs per process."""

    num_gpus: float | None = None
    """With --ray: GPUs per process; by default 1 if any."""

    def check(self) -> None:
        """Refuse what does not go together, before a large model is loaded."""
        if self.ray is None and (self.num_cpus, self.num_gpus) != (1.0, None):
            raise ValueError(
                "--num-cpus and --num-gpus change nothing without --ray: leave them out."
            )
        if not (self.num_cpus >= 0 and (self.num_gpus is None or self.num_gpus >= 0)):
            raise ValueError(
                f"--num-cpus is {self.num_cpus:g} and --num-gpus {self.num_gpus}: give 0 or more."
            )
        if self.ray is not None and len(self.ray) > 1:
            raise ValueError(
                f"--ray takes one address or none, not {' '.join(self.ray)}: put what is no "
                "address before the options."
            )

    def open(self, choice: ModelChoice) -> "tuple[interp.NeuronModel, interp.runs.Ray | None]":
        """The model, and who computes with it: its actors, or this process.

        Beside actors nothing is computed here, and the GPUs are theirs.
        """
        self.check()
        if self.ray is None:
            return choice.open(), None
        place = Path(choice.model)
        there = replace(choice, model=str(place.resolve())) if place.is_dir() else choice
        address = self.ray[0] if self.ray else None
        given = interp.runs.Ray(
            address, num_cpus=self.num_cpus, num_gpus=self.num_gpus, open=there.open
        )
        return replace(choice, device="cpu").open(), given


HERE = OnRay()
"""No: this process does it."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


@dataclass(frozen=True)
class Doctor:
    """Check that a model's neuron hooks tell the truth.

    Do this before anything is believed about them; it runs the model once, on a few tokens.

        interp doctor bigscience/bloom-560m
    """

    choice: ModelChoice
    """The model."""

    def run(self) -> None:
        diagnosis = interp.doctor(self.choice.open())
        say(str(diagnosis))
        if not diagnosis.ok:
            raise SystemExit(1)

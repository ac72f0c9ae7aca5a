"""The subcommand that writes an edit of neurons as a LoRA adapter."""

from dataclasses import dataclass
from pathlib import Path

import interp
from interp.commands.common import ModelChoice, check_neurons, open_model, say
from interp.commands.effects import read_selection, whose_neurons
from interp.commands.options import Positional
from interp.commands.remembered import memory_of


@dataclass(frozen=True)
class Adapter:
    """Write an edit of neurons as a LoRA adapter.

    PEFT loads it beside the base model, and servers such as vLLM choose it by request.

        interp adapter results/demo --language de --out german-off
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: ModelChoice
    """The model; by default that of the run."""

    language: str
    """Language of the neurons to edit."""

    out: Path
    """Folder for the adapter; it must be new."""

    neurons_of: Path | None = None
    """Take the neurons of this run, of a model of this shape."""

    factor: float = 0.0
    """Multiplies the neurons' output; 0 switches them off."""

    largest_rank: int = 512
    """Refuse to write a larger rank: one for each edited neuron of a layer."""

    def run(self) -> None:
        selection = read_selection(self.neurons_of or self.neurons)
        edit = interp.deactivate if self.factor == 0 else interp.scale(self.factor)
        change = selection.change(self.language, edit)
        model, _ = open_model(self.choice, memory_of(self.neurons))
        selection = check_neurons(selection, self.neurons, model, self.neurons_of)
        note = whose_neurons(selection, self.language, self.neurons_of or self.neurons)
        folder = change.to_lora(model, self.out, self.largest_rank, note)
        say(f"{change.n_units} neurons of {self.language}: {edit.name}.")
        say(f"PEFT and vLLM load {folder} beside the model; its logits equal the hooked model's.")

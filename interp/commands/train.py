"""The subcommand that trains chosen units alone: train."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import interp
from interp.commands.common import ModelChoice, check_neurons, goes_ahead, open_model, say
from interp.commands.effects import read_selection
from interp.commands.forecasts import of_training
from interp.commands.options import Labels, Positional
from interp.commands.remembered import memory_of
from interp.results.words import Bos, Split
from interp.text.languages import label_name


@dataclass(frozen=True)
class Train:
    """Train a language's units on text, and nothing else in the model.

    What is written is a LoRA adapter, which PEFT and vLLM load beside the model, or a checkpoint.
    Run it again to resume.

        interp train results/demo --language de --steps 200 --out more-german
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: ModelChoice
    """The model that the neurons were found in."""

    language: str
    """Label of the units."""

    out: Path
    """Folder of the training, and of what is written."""

    recipe: Literal["plain", "low-resource", "code-switching"] = "plain"
    """Settings to start from."""

    text: str | None = None
    """Folder of <label>.txt or .jsonl, or babel; by default the run's."""

    labels: Labels = ()
    """Labels of the text to train on; by default --language."""

    split: Split = "all"
    """Documents to read: all, train, held_out."""

    tokens: int | None = None
    """Tokens per label; by default all."""

    block_length: int = 128
    """Tokens per row."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's."""

    steps: int | None = None
    """Updates of the weights; by default the recipe's."""

    rows: int | None = None
    """Rows per update; by default the recipe's."""

    learning_rate: float | None = None
    """The highest; by default the recipe's."""

    last_layers: int | None = None
    """Only units of the last so many layers; by default the recipe's."""

    seed: int = 0
    """Of the order of the rows."""

    write: Literal["adapter", "checkpoint"] = "adapter"
    """What to write."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> None:
        selection, memory = read_selection(self.neurons), memory_of(self.neurons)
        chosen = selection.change(self.language, interp.Edit("train"))
        bos = memory.take_bos(self.bos)
        labels = self.labels or (self.language,)
        text = memory.take_text(self.text, self.choice.of(memory).model, labels)
        target = self.out / self.write
        interp.results.artifacts.refuse_existing(target)
        model, _ = open_model(self.choice, memory)
        check_neurons(selection, self.neurons, model)
        corpora = interp.read_corpora(
            text,
            labels,
            model,
            block_length=self.block_length,
            tokens=self.tokens,
            n_shards=1,
            bos=bos,
            split=self.split,
            held_out=0.5,
            hygiene="off",
        )
        recipe = self.settings()
        if not goes_ahead(
            lambda: of_training(model, chosen, corpora, recipe, self.out),
            "fewer --steps, fewer --rows or a shorter --block-length. It can be interrupted and "
            "resumed at any time.",
            self.dry_run,
        ):
            return
        trained = interp.interventions.train_units(model, chosen, corpora, recipe, out=self.out)
        note = f"The units are those of {label_name(self.language)} in {self.neurons.name}."
        save = trained.to_lora if self.write == "adapter" else trained.bake
        folder = save(model, target, note=note)
        first, last = (float(loss) for loss in (trained.losses[0], trained.losses[-1]))
        say(
            f"{chosen.n_units} units of {self.language} were trained for {len(trained.losses):,} "
            f"steps ({trained.n_weights:,} weights): {first:.3f} to {last:.3f} nats per token."
        )
        what = "PEFT and vLLM load" if self.write == "adapter" else "Any Hugging Face program loads"
        say(f"{what} {folder}.")

    def settings(self) -> "interp.interventions.Recipe":
        given = {
            name: value
            for name in ("steps", "rows", "learning_rate", "last_layers", "seed")
            if (value := getattr(self, name)) is not None
        }
        return replace(interp.interventions.RECIPES[self.recipe], **given)

"""What training chosen units gives: new values of their rows and columns, to save or write."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from interp.interventions.adapter import LARGEST_RANK, write_lora
from interp.interventions.bake import Reference, check_ids, refuse_unwritable, write_checkpoint
from interp.interventions.bake_card import facts_of
from interp.interventions.baked_weights import Weights
from interp.interventions.edits import Edit, Site
from interp.interventions.movable import movables_of
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.display import Cells, counted, table_cells
from interp.results.saved import Saved

Trained = TypeVar("Trained", bound="TrainedUnits")  # as in interp/results/saved.py


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedUnits(Saved):
    """Trained rows and columns of chosen units; everything else is the source's, bit for bit.

    >>> recipe = interp.interventions.Recipe(steps=2, rows=2, rows_at_once=2)
    >>> german = text.languages_only(["de"])
    >>> neurons_of = {"post": neurons["de"]}
    >>> trained = interp.interventions.train_units(model, neurons_of, german, recipe)
    >>> trained.losses.shape
    torch.Size([2])
    """

    kind = "TrainedUnits"
    made_by = "interp.interventions.train_units(model, units, text)"

    masks: dict[Site, Bool[Tensor, "layer unit"]]
    """The units that were trained, by site."""

    values: Mapping[str, Float[Tensor, "..."]]
    """By name of the checkpoint's tensor and axis, its trained part, in float32."""

    losses: Float64[Tensor, " step"]
    """Nats per token of each step's text, before the step."""

    source: dict[str, Any]
    """The identity of the model, without its name."""

    training: dict[str, Any]
    """The recipe and the text."""

    def __post_init__(self) -> None:
        known = isinstance(self.source, dict) and isinstance(self.training, dict)
        if not (known and "weights" in self.source and "languages" in self.training):
            raise ValueError(
                "Trained units need the identity of their model and what they were trained on: "
                "make them with train_units."
            )
        if any(mask.dtype != torch.bool or mask.ndim != 2 for mask in self.masks.values()):
            raise ValueError("The masks of trained units are [layer unit] of torch.bool.")

    @property
    def n_weights(self) -> int:
        """How many numbers were trained."""
        return sum(values.numel() for values in self.values.values())

    def __repr__(self) -> str:
        units = counted(sum(int(mask.sum()) for mask in self.masks.values()), "unit")
        return f"TrainedUnits({units}, {self.n_weights:,} weights, {len(self.losses):,} steps)"

    def _cells(self) -> Cells:
        steps = list(range(len(self.losses)))
        shown = steps[:: max(1, len(steps) // 10)]
        losses = [float(self.losses[step]) for step in shown]
        return table_cells({"step": shown, "loss": losses}, "nats per token", 24)

    def to_lora(
        self,
        model: AnyModel,
        folder: Path | str,
        largest_rank: int = LARGEST_RANK,
        note: str = "",
    ) -> Path:
        """Save it as a LoRA adapter in a new folder, as `Change.to_lora` saves a change."""
        model = as_model(model)
        made = self._made(model, Path(folder), note)
        return write_lora(model, *made, Path(folder), largest_rank)

    def bake(self, model: AnyModel, folder: Path | str, note: str = "") -> Path:
        """Save the trained model as a checkpoint in a new folder, as `interp.bake` does."""
        model = as_model(model)
        return write_checkpoint(model, *self._made(model, Path(folder), note), Path(folder))

    def _made(
        self, model: NeuronModel, folder: Path, note: str
    ) -> tuple[Weights, Reference, dict[str, Any]]:
        """What is written to a new folder, what it has to give, and the facts for the card."""
        refuse_unwritable(model, folder)
        weights = self._weights(model)
        languages = ", ".join(self.training["languages"])
        edit = Edit(f"trained on {languages}, {len(self.losses):,} steps")
        facts = facts_of(model, self.masks, edit) | {"note": note, "training": self.training}
        return weights, _reference(model, weights), facts

    @torch.no_grad()
    def _weights(self, model: NeuronModel) -> Weights:
        """The checkpoint's tensors with the trained parts in them."""
        if model.identity["weights"] != self.source["weights"]:
            raise ValueError(
                f"These units were trained in a model other than {model.name} (different "
                "weights): give that model."
            )
        weights = Weights(model)
        for movable in movables_of(weights, self.masks):
            movable.write(weights.tensors[movable.name], self.values[movable.key])
        return weights

    def _stored(self) -> dict[str, Any]:
        masks = {f"mask.{site}": mask for site, mask in self.masks.items()}
        values = {f"values.{name}": tensor for name, tensor in self.values.items()}
        labels = {"source": self.source, "training": self.training}
        return {"losses": self.losses, **masks, **values, **labels}

    @classmethod
    def _restored(cls: type[Trained], stored: artifacts.Artifact) -> Trained:
        def under(prefix: str) -> dict[Any, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in stored.tensors.items()
                if name.startswith(prefix)
            }

        return cls(
            masks=under("mask."),
            values=under("values."),
            losses=stored.tensors["losses"],
            source=stored.labels["source"],
            training=stored.labels["training"],
        )


@torch.no_grad()
def _reference(model: NeuronModel, weights: Weights) -> Reference:
    """What the source gives, and what it gives with trained weights."""
    ids = check_ids(model, None)
    after = weights.runnable()(input_ids=ids, use_cache=False).logits
    return Reference(prompt=None, ids=ids, before=model.logits(ids), after=after)

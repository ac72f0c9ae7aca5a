"""Train chosen units alone: only their rows and columns of the model's matrices move.

The model runs as it is, and backpropagation gives each edited matrix its gradient. The rows and
columns of chosen units are read from it and it is dropped before that of the next matrix, so the
optimizer and the gradients kept are of the size of the chosen part. The result is that of training
the whole matrix with a mask on its gradient, and everything outside keeps its bits.
"""

from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.interventions.bake import refuse_other_weights
from interp.interventions.baked_weights import Weights
from interp.interventions.edits import Change, Edit, Site, Units
from interp.interventions.movable import movables_of
from interp.interventions.recipe import PLAIN, Recipe
from interp.interventions.trained_units import TrainedUnits
from interp.interventions.training_loop import TRAINING_STATE, TrainingLoop
from interp.models.any_model import AnyModel, as_model
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.runs.folder import begin
from interp.text.corpora import Corpora

_CHECKPOINT = "checkpoint.safetensors"


def train_units(
    model: AnyModel,
    units: Units | Change,
    text: Corpora,
    recipe: Recipe = PLAIN,
    *,
    out: Path | str | None = None,
    save_every: int = 100,
    progress: bool = True,
) -> TrainedUnits:
    """Train the rows and columns of chosen units on text; the model itself does not change.

    A neuron ("post", or a single mask) has its row of the gate, its row of the linear branch and
    its column of the output projection; units of other sites have the row that writes them. Of a
    `Change`, the units count and not the edit. Rows of all languages of the text are mixed, and the
    loss is that of the next token, dropout off. Trained weights are kept in float32, whatever the
    model's dtype.

    With `out`, a checkpoint is saved there every `save_every` steps, and the same call resumes to
    the same weights; the result is in trained.safetensors.

    >>> recipe = interp.interventions.RECIPES["low-resource"]
    >>> few = interp.interventions.Recipe(**recipe.facts | {"steps": 3, "rows": 4})
    >>> german = text.languages_only(["de"])
    >>> trained = interp.interventions.train_units(model, neurons["de"], german, few)
    >>> better = interp.load(trained.bake(model, folder / "more-german"))
    """
    model = as_model(model)
    refuse_other_weights(model)
    if isinstance(model, MixtureModel):
        raise ValueError(
            f"{model.name} is a mixture of experts, whose rows are stored by expert: train the "
            "neurons of a dense model."
        )
    masks = _chosen(model, units, recipe)
    if save_every < 1:
        raise ValueError(f"save_every is {save_every}: give 1 or more steps.")
    training = {"recipe": recipe.facts, "languages": list(text.languages)}
    training |= {"corpora": text.fingerprint, "bos": text.begins}
    weights = Weights(model)
    movables = movables_of(weights, masks)
    loop = TrainingLoop(weights.runnable().to(model.device), movables, text, recipe)
    folder = None if out is None else Path(out)
    if folder is not None:
        plan = {"model": model.identity, "training": training}
        hashes = {site: artifacts.hash_of(mask) for site, mask in masks.items()}
        begin(folder, plan | {"units": hashes}, artifacts.provenance())
    _run(loop, recipe.steps, folder, save_every, progress)
    trained = TrainedUnits(
        masks=masks,
        values=loop.values(),
        losses=torch.tensor(loop.losses, dtype=torch.float64),
        source=model.identity,
        training=training,
    )
    if folder is not None:
        trained.save(folder / "trained.safetensors", artifacts.provenance(**training))
    return trained


def steps_done(folder: Path) -> int:
    """Steps of a training that was begun in this folder, up to its last checkpoint."""
    checkpoint = folder / _CHECKPOINT
    if not checkpoint.exists():
        return 0
    return int(artifacts.load(checkpoint, TRAINING_STATE).labels["step"])


def _run(
    loop: TrainingLoop, n_steps: int, folder: Path | None, save_every: int, progress: bool
) -> None:
    """Take the steps that are left, and save a checkpoint every now and then and at the end."""
    checkpoint = None if folder is None else folder / _CHECKPOINT
    if checkpoint is not None and checkpoint.exists():
        loop.resume(checkpoint)
    steps = range(loop.step, n_steps)
    bar = tqdm(steps, initial=loop.step, total=n_steps, desc="training", disable=not progress)
    for _ in bar:
        loss = loop.advance()
        bar.set_postfix_str(f"{loss:.3f} nats per token")
        if checkpoint is not None and loop.step % save_every == 0:
            loop.save(checkpoint)
    if checkpoint is not None and len(steps):
        loop.save(checkpoint)


def _chosen(
    model: NeuronModel, units: Units | Change, recipe: Recipe
) -> dict[Site, Bool[Tensor, "layer unit"]]:
    """The masks by site, those of the last layers if the recipe says so."""
    change = units if isinstance(units, Change) else Change(units, Edit("train"))
    Change(change.units, Edit("train", site=change.edit.site)).check(model)
    masks: dict[Site, Tensor] = {site: mask.cpu().clone() for site, mask in change.masks.items()}
    if recipe.last_layers is not None:
        for mask in masks.values():
            mask[: max(0, model.n_layers - recipe.last_layers)] = False
        masks = dict(item for item in masks.items() if item[1].any())
    if not masks:
        raise ValueError(
            f"None of the chosen units is in the last {recipe.last_layers} of {model.n_layers} "
            "layers: choose other units, or leave last_layers out."
        )
    return masks

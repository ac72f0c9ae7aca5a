"""Write an intervention into a checkpoint that every Hugging Face program can load.

An edit sets a unit to factor · activation + shift. If the unit is an input or output of a matrix,
the matrix and its bias can do the same without a hook:

    a unit that a projection reads:    column · factor,  bias + column · shift
    a unit that a projection writes:   row · factor,     bias · factor + shift

The first switches neurons off, scales them or holds their output constant; the second does so for
gates, queries, keys, values and what a layer writes. A weight acts at every position, so an edit of
only the prompt, or only of generated tokens, needs hooks (`intervene`).
"""

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from interp.interventions.bake_card import FACTS, card_of, facts_of
from interp.interventions.baked_weights import Weights, edited
from interp.interventions.edits import Change, Edit, Units
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.bars import bars_of_transformers
from interp.text.tokens import prompt_ids

TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Differences of logits up to this share of their size count as rounding."""


def bake(
    model: AnyModel,
    units: Units,
    edit: Edit,
    out: Path | str,
    prompt: str | None = None,
    note: str = "",
) -> Path:
    """Save the model with the edit in its weights to a new folder, and return the folder.

    The model is saved as it is in memory, in its dtype, and is not changed itself. The folder is
    loaded again, and its logits on `prompt` (None: random tokens) are compared with those of the
    hooked model; if they differ by more than `TOLERANCE`, the folder is deleted. This needs memory
    for a second copy of the model. `note` goes on the card: whose units these are, or the command.

    Factors are exact everywhere outside the residual stream, and shifts where the architecture has
    a bias, or a config option for one (`mlp_bias`, `attention_bias`). At "act" of a gated MLP,
    before the product, a constant can be written but a push cannot.

    >>> baked = interp.bake(model, neurons["de"], interp.deactivate, folder / "without-german")
    >>> interp.load(baked)
    NeuronModel('...without-german': 6 layers of 2048 neurons, float32, as stored)
    """
    model = as_model(model)
    out = Path(out)
    refuse_unwritable(model, out)
    change = Change(units, edit)
    reference = Reference.of(model, change, prompt)
    facts = facts_of(model, change.masks, edit) | {"note": note}
    return write_checkpoint(model, edited(model, change.masks, edit), reference, facts, out)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What the model gives before and after an edit, to compare what was written with."""

    prompt: str | None
    """None: random tokens."""

    ids: Int[Tensor, "batch pos"]
    """The tokens of the prompt."""

    before: Float[Tensor, "batch pos vocab"]
    """Logits of the source."""

    after: Float[Tensor, "batch pos vocab"]
    """Logits of the source with the edit."""

    @staticmethod
    @torch.no_grad()
    def of(model: NeuronModel, change: Change, prompt: str | None = None) -> "Reference":
        """Under the hooks of a change."""
        ids = check_ids(model, prompt)
        before = model.logits(ids)
        with model.hooks(change.hooks(model)):
            after = model.logits(ids)
        return Reference(prompt=prompt, ids=ids, before=before, after=after)

    def check(
        self, logits: Float[Tensor, "batch pos vocab"], model: NeuronModel, what: str
    ) -> dict[str, object]:
        """How far the logits of what was written are from these, for the card; refused if that is
        more than rounding. `what` was written, such as "checkpoint"."""
        apart, tolerance = distance(logits, self.after), TOLERANCE[model.dtype]
        if not apart <= tolerance:
            raise ValueError(
                f"The {what} does not do what the hooks do: their logits differ by {apart:.1e} of "
                f"their size, and up to {tolerance:.0e} is rounding in {model.dtype}. Use the "
                f"hooks, and please report the architecture ({model.architecture})."
            )
        return {
            "prompt": self.prompt or "random tokens",
            "distance": apart,
            "tolerance": tolerance,
            "effect": distance(self.before, self.after),
        }


def write_checkpoint(
    model: NeuronModel, weights: Weights, reference: Reference, facts: dict[str, Any], out: Path
) -> Path:
    """Save edited weights in a new folder, and compare what it gives with the reference."""
    checkpoint = weights.checkpoint()
    facts = facts | {"config": weights.switches}
    parameters = model._parameters.values()
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    with new_folder(out, size) as folder:
        with bars_of_transformers():
            checkpoint.save_pretrained(folder)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
        facts["check"] = reference.check(_logits(model, folder, reference.ids), model, "checkpoint")
        write_facts(folder, facts)
        artifacts.write_text(folder / "README.md", card_of(facts, out.name))
    return out


@contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """A temporary folder that becomes `out` at the end of the block; after an error, nothing stays.

    `size`: the bytes that will be written there.
    """
    temporary = out.with_name(f".{secrets.token_hex(8)}.part")
    try:
        temporary.mkdir(parents=True)
        if (free := shutil.disk_usage(temporary).free) < size:
            raise OSError(f"it needs {size:,} bytes and {free:,} are free there")
        yield temporary
        temporary.rename(out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            reason = getattr(error, "strerror", None) or error
            raise OSError(
                f"{out} was not written ({reason}), and nothing is left of it: make room or choose "
                "another folder, and try again."
            ) from error
        raise


def write_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Write what was done, one fact a line."""
    lines = [f" {json.dumps(key)}: {json.dumps(facts[key])}" for key in facts]
    artifacts.write_text(folder / FACTS, "{\n" + ",\n".join(lines) + "\n}\n")


def refuse_unwritable(model: NeuronModel, out: Path) -> None:
    """Refuse a folder that exists, or a model whose weights are not those of a checkpoint."""
    artifacts.refuse_existing(out)
    refuse_other_weights(model)


def refuse_other_weights(model: NeuronModel) -> None:
    """Refuse a model whose weights are not those of a checkpoint."""
    if not hasattr(model.bridge, "original_model"):
        raise ValueError(
            f"{model.name} is a HookedTransformer, whose weights have a format of their own: open "
            "the checkpoint with load(name)."
        )
    if model.fingerprint["processing"] != "none":
        raise ValueError(
            f"The weights of {model.name} were {model.fingerprint['processing']} by "
            "TransformerLens and are no longer the checkpoint's: open it with load(name)."
        )
    config = model.bridge.original_model.config
    if getattr(config, "quantization_config", None) or model.dtype not in TOLERANCE:
        raise ValueError(
            f"{model.name} is quantized, and a column of packed weights cannot be changed exactly: "
            "start from the full-precision checkpoint, and quantize the result."
        )
    if model.offloaded:
        raise ValueError(
            f"Some weights of {model.name} are not in memory: load it without offloading, on the "
            "CPU if need be."
        )


def check_ids(model: NeuronModel, prompt: str | None) -> Int[Tensor, "batch pos"]:
    """The prompt's tokens, or two rows of tokens drawn at random."""
    if prompt is None:
        special = set(model.special_ids)
        ordinary = torch.tensor([id for id in range(model.n_vocab) if id not in special])
        shape = (2, min(32, model.max_length))
        generator = torch.Generator().manual_seed(0)
        return ordinary[torch.randint(len(ordinary), shape, generator=generator)]
    return torch.tensor([prompt_ids(model, prompt)])


def distance(logits: Float[Tensor, "*any"], reference: Float[Tensor, "*any"]) -> float:
    """Root mean square of the difference, relative to that of the reference. Zero: equal."""
    reference = reference.double().cpu()
    return ((logits.double().cpu() - reference).norm() / reference.norm()).item()


@torch.no_grad()
def _logits(
    model: NeuronModel, folder: Path, ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    """Load the folder with Hugging Face, and return what it gives."""
    original = model.bridge.original_model
    devices = {parameter.device for parameter in model._parameters.values()}
    device = devices.pop() if len(devices) == 1 else torch.device("cpu")
    baked = type(original).from_pretrained(
        folder, dtype="auto", attn_implementation=original.config._attn_implementation
    )
    return baked.to(device)(input_ids=ids.to(device), use_cache=False).logits

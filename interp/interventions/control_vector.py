"""Write a push as a control vector in a GGUF file, which llama.cpp and repeng add while they run.

A control vector is one direction per layer, added to the residual stream after that layer at every
position. So it holds what an edit adds there: a push of the residual stream itself, and constants
added to neurons or to what an MLP writes, if no norm follows the MLP.
"""

import importlib
import secrets
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp.interventions.edits import Change
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts

_ARCHITECTURE = "controlvector"


@torch.no_grad()
def directions(change: Change, model: AnyModel) -> Float[Tensor, "layer d_model"]:
    """What a change adds to the residual stream after each layer; an error if it does more.

    >>> push = interp.push({"resid_post": torch.ones(6, 256)}, strength=0.1)
    >>> everywhere = torch.ones(6, 256, dtype=torch.bool)
    >>> added = interp.interventions.directions(interp.Change(everywhere, push), model)
    >>> added.shape
    torch.Size([6, 256])
    """
    model = as_model(model)
    change.check(model)
    edit = change.edit
    if change.tokens != "all" or edit.factor != 1:
        does = f"is of tokens={change.tokens!r}" if change.tokens != "all" else "multiplies"
        raise ValueError(
            f"{edit.name} {does}, and a control vector only adds, at every position: write an "
            "adapter or a checkpoint, or use its hooks."
        )
    added = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
    for site, mask in change.masks.items():
        shift = edit.shift[site].cpu().double() * mask.cpu() if site in edit.shift else None
        for layer in mask.any(dim=1).nonzero().flatten().tolist() if shift is not None else ():
            assert shift is not None
            if site == "resid_post":
                added[layer] += shift[layer]
            elif site == "resid_pre" and layer > 0:
                added[layer - 1] += shift[layer]
            elif site in ("post", "mlp_out") and _adds_to_the_stream(model, layer):
                written = model.w_out(layer).cpu().double() if site == "post" else None
                added[layer] += shift[layer] if written is None else shift[layer] @ written
            else:
                raise ValueError(
                    f"{edit.name} is at {site} of layer {layer}, and a control vector adds to the "
                    "residual stream after a layer: push resid_post, or post and mlp_out where no "
                    "norm follows the MLP."
                )
    return added.float()


def write_control_vector(change: Change, model: AnyModel, file: Path | str) -> Path:
    """Save the change as a control vector in a new GGUF file; see `Change.to_control_vector`."""
    model = as_model(model)
    file = Path(file)
    artifacts.refuse_existing(file, "file")
    added = directions(change, model)
    if added[0].any():
        raise ValueError(
            "llama.cpp adds nothing after layer 0, where this change does: choose units of later "
            "layers."
        )
    try:
        gguf = importlib.import_module("gguf")
    except ImportError:
        raise ValueError(
            "A control vector is a GGUF file, which needs the package gguf: pip install gguf."
        ) from None
    temporary = file.with_name(f".{secrets.token_hex(8)}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer = gguf.GGUFWriter(temporary, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", _model_hint(model))
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", model.n_layers - 1)
        for layer in range(1, model.n_layers):
            writer.add_tensor(f"direction.{layer}", added[layer].numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def _model_hint(model: NeuronModel) -> str:
    config = getattr(getattr(model.bridge, "original_model", None), "config", None)
    return getattr(config, "model_type", model.architecture)


def _adds_to_the_stream(model: NeuronModel, layer: int) -> bool:
    """Whether the MLP's output projection writes to the residual stream, with no norm between."""
    mlp = model.bridge.blocks[layer].mlp
    hook = model.bridge.hook_dict[model.site(layer, "mlp_out")]
    return not hasattr(mlp, "out") or hook is mlp.hook_out or hook is mlp.out.hook_out

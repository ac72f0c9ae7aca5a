"""Write an intervention as a LoRA adapter, which PEFT and most servers load beside the base model.

Units S that a matrix reads, multiplied by f, change it by (f - 1) times its columns S; units that
it writes, by (f - 1) times its rows S. Either is a product of two factors of rank |S|, one of which
is one-hot, so the adapter is exact and is no larger than the weights it edits.

An adapter holds a constant only where the checkpoint has a bias (`lora_bias` of PEFT): elsewhere
`bake` writes one. As weights act at every position, so does the adapter.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.interventions.bake import Reference, new_folder, refuse_unwritable, write_facts
from interp.interventions.bake_card import adapter_card, facts_of, hub_name
from interp.interventions.baked_weights import Weights, edited
from interp.interventions.edits import Change
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts

LARGEST_RANK = 512
"""The largest that vLLM serves."""

_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """What is added to one matrix: up · down, and to its output: bias."""

    down: Float[Tensor, "rank read"]
    up: Float[Tensor, "off rank"]
    bias: Float[Tensor, " off"]

    transposed: bool
    """Whether the checkpoint stores the matrix as input by output, as GPT-2 does."""

    @property
    def rank(self) -> int:
        return len(self.down)


def write_adapter(
    change: Change,
    model: AnyModel,
    folder: Path | str,
    largest_rank: int = LARGEST_RANK,
    note: str = "",
) -> Path:
    """Save the change as a PEFT adapter in a new folder; see `Change.to_lora`."""
    model = as_model(model)
    folder = Path(folder)
    refuse_unwritable(model, folder)
    change.check(model)
    if change.tokens != "all":
        raise ValueError(
            f"The change is of tokens={change.tokens!r}, and weights act at every position: give "
            'tokens="all", or use its hooks.'
        )
    weights = edited(model, change.masks, change.edit)
    facts = facts_of(model, change.masks, change.edit) | {"note": note}
    return write_lora(model, weights, Reference.of(model, change), facts, folder, largest_rank)


def write_lora(
    model: NeuronModel,
    weights: Weights,
    reference: Reference,
    facts: dict[str, Any],
    folder: Path,
    largest_rank: int,
) -> Path:
    """Save what was added to the weights in a new folder, and compare it with the reference."""
    factors = factors_of(model, weights, largest_rank)
    size = sum(_bytes(factor.down) + _bytes(factor.up) for factor in factors.values())
    with new_folder(folder, size) as temporary:
        save_file(_tensors(factors), temporary / "adapter_model.safetensors", {"format": "pt"})
        config = json.dumps(_config(model, factors), indent=1)
        artifacts.write_text(temporary / "adapter_config.json", config + "\n")
        check = reference.check(_logits(model, temporary, factors, reference.ids), model, "adapter")
        ranks = {module: factor.rank for module, factor in factors.items()}
        facts = facts | {"check": check}
        write_facts(temporary, facts | {"ranks": ranks})
        has_bias = any(factor.bias.any() for factor in factors.values())
        artifacts.write_text(
            temporary / "README.md", adapter_card(facts, folder.name, ranks, has_bias)
        )
    return folder


@torch.no_grad()
def factors_of(model: NeuronModel, weights: Weights, largest_rank: int) -> dict[str, Factors]:
    """By name of the module, what the change adds to its matrix and its output."""
    if weights.biases:
        raise ValueError(
            f"{model.architecture} has no {weights.biases[0]}, and an adapter holds a constant "
            "only where the checkpoint has a bias: write a checkpoint (`interp bake`)."
        )
    factors = {}
    for name in sorted(weights.changed, key=_in_order):
        factors[name.removesuffix(".weight")] = factor = _factors(model, weights, name)
        if factor.rank > largest_rank:
            layer = re.search(r"\.(\d+)\.", name)
            raise ValueError(
                f"{factor.rank} units of one matrix are edited in layer "
                f"{layer[1] if layer else '?'} ({name}), and an adapter of rank {largest_rank} "
                f"holds {largest_rank}: choose fewer units, allow a larger rank if what loads it "
                "does, or write a checkpoint (`interp bake`)."
            )
    return factors


def _factors(model: NeuronModel, weights: Weights, name: str) -> Factors:
    changed = weights.changed[name]
    old, new = model._parameters[name].detach().cpu(), weights.tensors[name].cpu()
    if changed.transposed:
        old, new = old.T, new.T
    added = new.double() - old.double()
    n_off, n_read = added.shape
    none = torch.empty(0, dtype=torch.long)
    columns, rows = (torch.cat([none, *ids]).unique() for ids in (changed.columns, changed.rows))
    by_row = added[rows]
    by_row[:, columns] = 0  # where both meet, the column holds it
    down = torch.cat([torch.eye(n_read, dtype=added.dtype)[columns], by_row])
    up = torch.cat([added[:, columns], torch.eye(n_off, dtype=added.dtype)[:, rows]], dim=1)
    bias = torch.zeros(n_off, dtype=added.dtype)
    bias_name = name.removesuffix("weight") + "bias"
    if bias_name in model._parameters:
        new_bias, old_bias = weights.tensors[bias_name], model._parameters[bias_name].detach()
        bias = (new_bias.double() - old_bias.double()).cpu()
    down, up, bias = (tensor.to(model.dtype).contiguous() for tensor in (down, up, bias))
    return Factors(down=down, up=up, bias=bias, transposed=changed.transposed)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _tensors(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Under the names of PEFT."""
    with_bias = any(factor.bias.any() for factor in factors.values())
    tensors = {}
    for module, factor in factors.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = factor.down
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = factor.up
        if with_bias:
            tensors[f"{_PREFIX}{module}.lora_B.bias"] = factor.bias
    return tensors


def _config(model: NeuronModel, factors: Mapping[str, Factors]) -> dict[str, Any]:
    """`adapter_config.json`; alpha equals the rank everywhere, so that nothing is scaled."""
    rank = max(factor.rank for factor in factors.values())
    other = {module: factor.rank for module, factor in factors.items() if factor.rank != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub_name(model.name),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": list(factors),
        "fan_in_fan_out": any(factor.transposed for factor in factors.values()),
        "lora_bias": any(bool(factor.bias.any()) for factor in factors.values()),
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# ---------------------------------------------------------------- the check


@torch.no_grad()
def _logits(
    model: NeuronModel,
    folder: Path,
    factors: Mapping[str, Factors],
    ids: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos vocab"]:
    """Run the base model with what the folder holds, and return what it gives."""
    plain = Weights(model).runnable()
    stored = load_file(folder / "adapter_model.safetensors")
    with _added(plain, stored, factors):
        return plain(input_ids=ids, use_cache=False).logits


@contextmanager
def _added(
    plain: Any, stored: Mapping[str, Tensor], modules: Mapping[str, Factors]
) -> Iterator[None]:
    """Within the block, modules give what they give with the adapter."""

    def add(module: str) -> Any:
        down, up = (stored[f"{_PREFIX}{module}.lora_{factor}.weight"] for factor in "AB")
        bias = stored.get(f"{_PREFIX}{module}.lora_B.bias", torch.zeros(()))

        def hook(_: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + (given[0] @ down.T @ up.T + bias.to(output))

        return hook

    handles = [plain.get_submodule(name).register_forward_hook(add(name)) for name in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

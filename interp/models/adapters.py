"""LoRA adapters (Hu et al., 2022): a folder that changes the weights of another model."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_UNSUPPORTED = ("use_dora", "modules_to_save", "lora_bias")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as PEFT saves it."""

    folder: Path

    base: str
    """The model that it changes."""

    alpha: float
    """`alpha / rank` is the factor of the change, `alpha / √rank` if it is rank-stabilized."""

    alphas: Mapping[str, float]
    """Of modules that have their own, by name or by its end."""

    stabilized: bool

    transposed: bool
    """Whether the base stores its weights as [input, output], as GPT-2 does."""

    def merge_into(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add factor · B · A to the weights that it changes, in their dtype."""
        tensors = self._tensors()
        for name in sorted(key.removesuffix(_DOWN) for key in tensors if key.endswith(_DOWN)):
            weight = parameters.get(f"{name.removeprefix(_PREFIX)}.weight")
            if weight is None:
                raise ValueError(
                    f"The adapter in {self.folder} changes {name.removeprefix(_PREFIX)}, which "
                    f"{self.base} does not have: give it the base model that it was trained on."
                )
            factor = self._factor(name.removeprefix(_PREFIX), len(tensors[name + _DOWN]))
            change = factor * tensors[name + _UP].float() @ tensors[name + _DOWN].float()
            change = change.T if self.transposed else change
            if change.shape != weight.shape:
                raise ValueError(
                    f"The adapter in {self.folder} changes {name.removeprefix(_PREFIX)} by a "
                    f"matrix of {list(change.shape)}, and {self.base} has {list(weight.shape)}: "
                    "give it the base model that it was trained on."
                )
            with torch.no_grad():
                weight += change.to(weight)

    def _factor(self, module: str, rank: int) -> float:
        """Of one module's change; its rank is that of its matrices."""
        own = (
            alpha
            for key, alpha in self.alphas.items()
            if module == key or module.endswith(f".{key}")
        )
        return next(own, self.alpha) / (math.sqrt(rank) if self.stabilized else rank)

    def _tensors(self) -> dict[str, torch.Tensor]:
        try:
            tensors = load_file(self.folder / _WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{self.folder / _WEIGHTS} cannot be read ({error}): save the adapter as "
                "safetensors, or merge it into its base."
            ) from None
        if others := sorted(key for key in tensors if not key.endswith((_DOWN, _UP))):
            raise ValueError(f"{self.folder} holds {others[0]}, which is no LoRA matrix. {_MERGE}")
        return tensors


def adapter_in(folder: Path) -> Adapter | None:
    """The adapter in a folder; None: it holds none, or a whole model as well."""
    path = folder / _SETTINGS
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
        kind, unsupported = (
            settings["peft_type"],
            [key for key in _UNSUPPORTED if settings.get(key)],
        )
        patterns = settings.get("alpha_pattern") or {}
        unsupported += [key for key in patterns if not re.fullmatch(r"[\w.]+", key)]
        if int(settings["r"]) < 1:
            unsupported.append(f"rank {settings['r']}")
        adapter = Adapter(
            folder,
            base=str(settings["base_model_name_or_path"]),
            alpha=float(settings["lora_alpha"]),
            alphas={key: float(alpha) for key, alpha in patterns.items()},
            stabilized=bool(settings.get("use_rslora")),
            transposed=bool(settings.get("fan_in_fan_out")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not an adapter's settings ({error}): save it again.") from None
    if kind != "LORA" or unsupported:
        what = ", ".join([str(kind), *unsupported])
        raise ValueError(f"The adapter in {folder} is not a plain LoRA ({what}). {_MERGE}")
    if settings["base_model_name_or_path"] is None:
        raise ValueError(
            f"The adapter in {folder} names no base, as it was made from a model that is not on "
            f"the hub: write that model's folder into {path} as base_model_name_or_path; in "
            "Python, load the two with PeftModel.from_pretrained(base, folder)."
        )
    return adapter


_MERGE = "Merge it into its base with PEFT (merge_and_unload, save_pretrained) and load the result."

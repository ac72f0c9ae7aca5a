"""State of one forward pass: prompt tokens, padding, and modules that are replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.results.words import Tokens

Ids = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"]


@dataclass
class Pass:
    """The text of the current pass, for hooks that depend on token positions."""

    mask: Tensor | None = None
    """Zero on padding; None: no padding."""

    prompt: int | None = None
    """During generation, the length of the prompts, padding included; None: that of the first
    pass."""

    generates: bool = False
    """Whether tokens are generated."""

    number: int = -1
    """During generation, the number of forward passes before this one."""

    def positions(self, n_positions: int, tokens: Tokens) -> Bool[Tensor, "_ pos"]:
        """The positions of this pass that `tokens` selects; see `NeuronModel.positions`."""
        position = torch.arange(n_positions)
        if not self.generates:
            after = torch.tensor([0])  # padding on the right
            if self.mask is not None:
                after = self.mask.bool().flip(1).int().argmax(dim=1).cpu()
            last = n_positions - 1 - rearrange(after, "batch -> batch 1")
            first_generated = torch.tensor([[n_positions]])
        else:
            if self.prompt is None:
                self.prompt = n_positions
            cached = self.number > 0 and n_positions == 1
            first_generated = torch.tensor([[0 if cached else self.prompt]])
            last = first_generated - 1
        generated = position >= first_generated
        return {
            "all": torch.ones_like(generated),
            "prompt": ~generated,
            "generated": generated,
            "last": generated | (position == last),
        }[tokens]


def wide(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """In float32, or unchanged if already as precise."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_padding(side: Literal["left", "right"], mask: Mask) -> None:
    """Refuse a mask with padding anywhere but on this side."""
    text_first = mask.long() if side == "right" else mask.long().flip(1)
    if (text_first[:, 0] == 0).any() or (text_first.diff(dim=1) > 0).any():
        raise ValueError(
            f"Every row of this mask must be text with padding on the {side}: "
            "pad on the right to read, on the left to generate."
        )


@contextmanager
def constant_output(modules: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Within the block, these modules do not run; they return `output`."""
    with running_instead(lambda *args, **settings: output, modules):
        yield


@contextmanager
def running_instead(forward: Callable[..., Any], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, `forward` runs instead of these modules' own `forward`."""
    # By `vars`, since a bridge forwards plain assignments to the module that it wraps.
    originals = [vars(module).get("forward") for module in modules]  # None: that of the class
    try:
        for module in modules:
            vars(module)["forward"] = forward
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            vars(module).pop("forward", None)
            if original is not None:
                vars(module)["forward"] = original

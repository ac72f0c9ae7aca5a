"""One forward pass: which tokens are prompt, where padding is, which modules do not run."""

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
    """What is being read, for hooks that must know which token is which."""

    mask: Tensor | None
    """Zero on padding; None: there is none."""

    prompt: int | None = None
    """Length of the prompts while text is generated, padding included; None: nothing is."""

    number: int = -1
    """Forward passes before this one, while text is generated."""

    def positions(self, n_positions: int, tokens: Tokens) -> Bool[Tensor, "_ pos"]:
        """Which of the positions that are passing are meant; see `NeuronModel.positions`."""
        place = torch.arange(n_positions)
        if self.prompt is None:
            length = torch.tensor([n_positions])
            if self.mask is not None:
                length = self.mask.sum(dim=1).cpu()
            last = rearrange(length, "batch -> batch 1") - 1
            first_generated = torch.tensor([[n_positions]])
        else:
            cached = self.number > 0 and n_positions == 1
            first_generated = torch.tensor([[0 if cached else self.prompt]])
            last = first_generated - 1
        generated = place >= first_generated
        return {
            "all": torch.ones_like(generated),
            "prompt": ~generated,
            "generated": generated,
            "last": generated | (place == last),
        }[tokens]


def wide(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """In float32, or as it is if that is finer."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_padding(side: Literal["left", "right"], mask: Mask) -> None:
    """Refuse a mask whose padding is elsewhere."""
    inwards = mask.long() if side == "right" else mask.long().flip(1)
    if (inwards[:, 0] == 0).any() or (inwards.diff(dim=1) > 0).any():
        raise ValueError(
            f"Every row of this mask must be text with padding on the {side}: "
            "pad on the right to read, on the left to generate."
        )


@contextmanager
def giving(modules: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Within the block, these modules do not run and give this."""
    with running_instead(lambda *args, **settings: output, modules):
        yield


@contextmanager
def running_instead(forward: Callable[..., Any], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, this function runs in place of these modules' own `forward`."""
    # By `vars`, since a bridge passes plain assignment on to the module that it wraps.
    before = [vars(module).get("forward") for module in modules]  # None: that of the class
    try:
        for module in modules:
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own

"""Booleans packed into bytes."""

import torch
from einops import rearrange
from jaxtyping import Bool, UInt8
from torch import Tensor


def pack_bits(fires: Bool[Tensor, "*batch neuron"]) -> UInt8[Tensor, "*batch byte"]:
    """Eight booleans per byte, the first in the lowest bit; unused bits are zero."""
    n_unused = -fires.shape[-1] % 8
    padded = torch.nn.functional.pad(fires, (0, n_unused)).to(torch.uint8)
    grouped = rearrange(padded, "... (byte bit) -> ... byte bit", bit=8)
    weight = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=fires.device)
    return (grouped * weight).sum(dim=-1, dtype=torch.uint8)


def unpack_bits(bits: UInt8[Tensor, "*batch byte"], n: int) -> Bool[Tensor, "*batch neuron"]:
    """The first `n` booleans of each row of bytes."""
    shift = torch.arange(8, dtype=torch.uint8, device=bits.device)
    unpacked = (rearrange(bits, "... byte -> ... byte 1") >> shift) & 1
    return rearrange(unpacked, "... byte bit -> ... (byte bit)")[..., :n].bool()

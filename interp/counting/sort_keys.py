"""Sort keys: a float and a small payload packed into one integer, so that sorting moves both.

    key = order of the float · 2ⁿ + payload           (payload: an integer below 2ⁿ)

Read as an integer, the bits of a positive float increase with the float. Those of a negative float
decrease, starting at the lowest integer; subtracted from it, they increase too. So the keys sort
like the floats, ties are sorted by payload, and the low bits of a sorted key are its payload.
Sorting one tensor of keys is several times faster than a sort with indices and a gather, and the
order of ties does not depend on the order of reading.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

INTEGER = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
"""The integers of the same width."""


def float_bits(values: Float[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
    """The bits of floats as integers of the same width; no copy if contiguous."""
    return values.contiguous().view(INTEGER[values.dtype])


def in_order(bits: Int[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
    """Integers that sort like the floats with these bits; 0.0 and -0.0 both give zero.

    Its own inverse, except for the bits of -0.0.
    """
    return torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits, bits)


def pack(
    order: Int[Tensor, "*axes"], payload: Int[Tensor, "*of_axes"], n_bits: int
) -> Int[Tensor, "*axes"]:
    """Keys; `order` must leave `n_bits` bits free for the payload."""
    return order << n_bits | payload


def order_of(keys: Int[Tensor, "*axes"], n_bits: int) -> Int[Tensor, "*axes"]:
    """The `order` part of packed keys."""
    return keys >> n_bits


def payload_of(keys: Int[Tensor, "*axes"], n_bits: int) -> Int[Tensor, "*axes"]:
    """The `payload` part of packed keys."""
    return keys & ((1 << n_bits) - 1)


def pack_in_a_loop(bits: Any, payload: Any, lowest: int, n_bits: int, keys: Any) -> None:
    """`pack(in_order(bits), payload)` for numba: fill `keys` [column row] from `bits` [row column].

    `lowest` is the lowest integer of the dtype of `bits`; `payload` has one entry per row.
    """
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            order = np.int64(bits[row, column])
            if order < 0:
                order = lowest - order
            keys[column, row] = (order << n_bits) | payload[row]

"""Floats and something small packed into whole numbers, so that sorting the one brings the other.

    key = order of the float · 2ⁿ + payload           (payload: a whole number below 2ⁿ)

A float's bits, read as a whole number, rise with the float where it is positive. Where it is
negative they fall, from the lowest whole number up: counted down from zero instead, they rise too.
So whole numbers sort as the floats did, equal floats by their payload, and afterwards the low bits
are the payload. Sorting one tensor of keys replaces a sort with indices and a gather, which costs
several times as much, and of equal floats no order of reading changes which comes first.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_WHOLE = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def float_bits(values: Float[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
    """The bits of floats as whole numbers of the same width, without a copy if contiguous."""
    return values.contiguous().view(_WHOLE[values.dtype])


def in_order(bits: Int[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
    """Whole numbers that order as floats of these bits do; 0.0 and -0.0 give zero.

    It undoes itself: the numbers give the bits again, but for those of -0.0.
    """
    return torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits, bits)


def pack(
    order: Int[Tensor, "*axes"], payload: Int[Tensor, "*of_axes"], n_bits: int
) -> Int[Tensor, "*axes"]:
    """Keys of these numbers, which must leave room for `n_bits` more."""
    return order << n_bits | payload


def order_of(keys: Int[Tensor, "*axes"], n_bits: int) -> Int[Tensor, "*axes"]:
    """What the keys are sorted by."""
    return keys >> n_bits


def payload_of(keys: Int[Tensor, "*axes"], n_bits: int) -> Int[Tensor, "*axes"]:
    """What the keys carry along."""
    return keys & ((1 << n_bits) - 1)


def pack_in_a_loop(bits: Any, payload: Any, lowest: int, n_bits: int, keys: Any) -> None:
    """`pack(in_order(bits), payload)` for numba: fill `keys` [column row] from `bits` [row column].

    `lowest` is the lowest whole number of the type of `bits`; there is a payload for each row.
    """
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            order = np.int64(bits[row, column])
            if order < 0:
                order = lowest - order
            keys[column, row] = (order << n_bits) | payload[row]

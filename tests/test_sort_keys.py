"""Keys sort as their floats do, of equal floats by what they carry, and give both back."""

import pytest
import torch

from interp.counting.sort_keys import (
    float_bits,
    in_order,
    order_of,
    pack,
    pack_in_a_loop,
    payload_of,
)

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-7, -1e-7, 3.5, -3.5, float("inf"), -float("inf")]


def some_floats(dtype: torch.dtype) -> torch.Tensor:
    drawn = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([torch.tensor(SPECIAL, dtype=torch.float64), drawn]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_whole_numbers_order_as_their_floats_do(dtype):
    values = some_floats(dtype)
    order = in_order(float_bits(values))
    assert torch.equal(order[:, None] < order, values[:, None] < values)
    assert torch.equal(order[:, None] == order, values[:, None] == values)  # -0.0 is 0.0


def test_the_order_gives_the_bits_back():
    values = some_floats(torch.float32)
    assert torch.equal(in_order(in_order(float_bits(values))).view(torch.float32), values)


@pytest.mark.parametrize("n_bits", [4, 16, 31])
def test_a_sorted_key_gives_the_order_and_what_it_carries(n_bits):
    values = some_floats(torch.float32)
    payload = torch.arange(len(values)) % 2**n_bits
    order = in_order(float_bits(values)).long()
    keys = pack(order, payload, n_bits)
    assert torch.equal(order_of(keys, n_bits), order)
    assert torch.equal(payload_of(keys, n_bits), payload)
    pairs = sorted(zip(values.tolist(), payload.tolist(), strict=True))
    assert payload_of(keys.sort().values, n_bits).tolist() == [carried for _, carried in pairs]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_loop_packs_the_same(dtype):
    bits = float_bits(some_floats(dtype).reshape(-1, 3))
    payload = torch.arange(len(bits))
    keys = torch.empty(3, len(bits), dtype=torch.int64)
    lowest = torch.iinfo(bits.dtype).min
    pack_in_a_loop(bits.numpy(), payload.numpy(), lowest, 16, keys.numpy())
    assert torch.equal(keys, pack(in_order(bits).long().T, payload, 16))

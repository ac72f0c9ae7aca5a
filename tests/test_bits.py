"""Values some at a time, and counts and masks made of their bits, against comparisons."""

import pytest
import torch
from torch import Tensor

from interp.counting import batch as batch_module
from interp.counting.batch import Batch
from interp.counting.bits import as_bytes, count_bytes, count_positive, masked, where_negative

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compared(values: Tensor) -> Tensor:
    return (values > 0).sum(dim=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_neurons", [1, 3, 8, 160])
def test_positive_numbers_are_counted(dtype: torch.dtype, n_neurons: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, n_neurons, generator=generator, dtype=torch.float64).to(dtype)
    counts = count_positive(values)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, compared(values))
    assert 0 < counts.sum() < values.numel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_do_not_count_and_the_smallest_number_does(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    least = limits.smallest_normal * limits.eps
    numbers = [0.0, -0.0, least, -least, limits.max, limits.min, torch.inf, -torch.inf]
    values = torch.tensor([numbers], dtype=torch.float64).to(dtype)
    assert values[0, 2] != 0
    assert count_positive(values).tolist() == [0, 0, 1, 0, 1, 0, 1, 0]
    assert where_negative(values).tolist() == [[0, 0, 0, -1, 0, -1, 0, -1]]


def test_many_tokens_do_not_overflow() -> None:
    """16 bits hold a count of 32,767."""
    values = torch.ones(70_000, 4, dtype=torch.bfloat16)
    values[0, 1] = -1
    assert count_positive(values).tolist() == [70_000, 69_999, 70_000, 70_000]


def test_rows_may_be_any_part_of_a_tensor() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(12, 32, generator=generator)
    for part in (values[:, 8:16], values[::2], values.T, values[:0]):
        before = part.clone()
        assert torch.equal(count_positive(part), compared(part))
        assert torch.equal(part, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_keeps_the_values_where_others_are_below_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gates, values = torch.randn(2, 50, 24, generator=generator, dtype=torch.float64).to(dtype)
    below = as_bytes(where_negative, gates)
    assert below.dtype == torch.int8
    assert torch.equal(masked(values, below), torch.where(gates < 0, values, 0))
    assert torch.equal(count_bytes(below & 1), (gates < 0).sum(dim=0))


def test_a_sum_of_bytes_is_a_count() -> None:
    generator = torch.Generator().manual_seed(0)
    for n_tokens, n_neurons in ((1, 8), (255, 16), (256, 16), (600, 24), (77, 13), (0, 8)):
        ones = (torch.rand(n_tokens, n_neurons, generator=generator) > 0.1).to(torch.int8)
        assert torch.equal(count_bytes(ones), ones.long().sum(dim=0))
    assert torch.equal(count_bytes(ones.new_ones(1000, 8)), torch.full((8,), 1000))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("at_once", [1, 21, 64, 1 << 19])
def test_slices_hold_the_tokens_that_count_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch, at_once: int, whole: bool
) -> None:
    monkeypatch.setattr(batch_module, "VALUES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 7, 10, generator=generator)
    keep = (torch.rand(3, 7, generator=generator) > 0.3) | torch.tensor(whole)
    length = torch.full((3,), 7)
    batch = Batch((0, 1, 2), torch.zeros(3, 7).long(), keep, length, ("a", "b", "c"), whole)
    slices = list(batch.slices(values))
    assert torch.equal(torch.cat(slices), values[keep])
    assert max(map(len, slices)) <= max(1, at_once // 10)
    assert (len(slices) > 1) == (at_once < 210)

"""Counts of positive numbers, against a comparison and a sum."""

import pytest
import torch
from torch import Tensor

from interp.counting.bits import count_positive

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

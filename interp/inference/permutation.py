"""Permutation tests of relabeled languages, and false discovery rates."""

import itertools
import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from interp.inference.intervals import ENTRIES_AT_ONCE


@dataclass(frozen=True)
class PermutationTest:
    """How often permuted labels give as extreme a statistic as the observed one."""

    statistic: float
    """The observed statistic."""

    p_value: float
    """Share of arrangements with a statistic at least as far from zero as observed; two-sided."""

    smallest_p: float
    """Smallest attainable p-value. With few labels or many ties it is large, and then no result can
    be significant."""

    n_arrangements: int
    """Arrangements counted, including the observed one."""

    exact: bool
    """All arrangements were counted. False: the observed one and randomly drawn ones, so that
    p = (1 + as extreme) / (1 + drawn)."""


def mantel_test(
    matrix: Float[Tensor, "language language"],
    distance: Float[Tensor, "language language"],
    generator: torch.Generator,
    n_permutations: int = 9999,
) -> PermutationTest:
    """Mantel's permutation test: are two symmetric matrices over the same languages correlated?

    The statistic is Pearson's correlation of the entries above the diagonal; for rank correlation
    give ranks. Pairs that share a language are not independent, so whole languages are relabeled
    instead of taking the p-value of the correlation (Mantel, 1967). All relabelings are tried if
    there are at most `n_permutations` + 1 (up to 7 languages with 9999), otherwise random ones.
    Three languages have 6, four have 24: check `smallest_p`.

    Negative: close languages score high in `matrix`. The diagonals are not read.
    """
    n_languages = len(matrix)
    if n_languages < 3:
        raise ValueError(
            f"{n_languages} languages are too few for a Mantel test: give three or more."
        )
    _check_permutations(n_permutations)
    row, column = torch.triu_indices(n_languages, n_languages, offset=1)
    first, second = _standard_pairs("matrix", matrix), _standard_pairs("distance", distance)
    exact = math.factorial(n_languages) <= n_permutations + 1
    if exact:
        orders = torch.tensor(list(itertools.permutations(range(n_languages))))
    else:
        orders = torch.rand(n_permutations, n_languages, generator=generator).argsort(dim=1)
    square = torch.zeros(n_languages, n_languages, dtype=torch.float64)
    square[row, column] = square[column, row] = first
    correlations = [
        square[chunk[:, row], chunk[:, column]] @ second
        for chunk in orders.split(ENTRIES_AT_ONCE // len(row))
    ]
    return _permutation_test(first @ second, torch.cat(correlations), exact)


def false_discovery(p_value: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """For each p-value, the false discovery rate if it and all smaller ones count as discoveries.

    Benjamini and Hochberg (1995), over all entries at once; valid for independent and for
    positively dependent tests. NaN: not a test; it does not count, and stays NaN.
    """
    from scipy.stats import false_discovery_control  # takes a second to load

    adjusted = p_value.double().cpu().clone()
    tested = ~adjusted.isnan()
    adjusted[tested] = torch.from_numpy(false_discovery_control(adjusted[tested].numpy()))
    return adjusted


def _permutation_test(observed: Tensor, permuted: Tensor, exact: bool) -> PermutationTest:
    if not exact:
        permuted = torch.cat([permuted, rearrange(observed, "-> 1")])
    strength = permuted.abs()
    # Equal sums, added in another order, differ by rounding and must count as equal.
    rounding = 1e-9 * strength.max()
    return PermutationTest(
        observed.item(),
        (strength >= observed.abs() - rounding).double().mean().item(),
        (strength >= strength.max() - rounding).double().mean().item(),
        len(permuted),
        exact,
    )


def _standard_pairs(name: str, matrix: Tensor) -> Float64[Tensor, " pair"]:
    """The entries above the diagonal, centered and scaled to unit length."""
    matrix = matrix.double().cpu()
    row, column = torch.triu_indices(*matrix.shape, offset=1)
    pairs = matrix[row, column]
    same = torch.allclose(pairs, matrix[column, row], rtol=1e-6, atol=1e-9)
    if not same or pairs.isinf().any():
        raise ValueError(f"The {name} is not symmetric or not finite: give a number for each pair.")
    centered = pairs - pairs.mean()
    if centered.norm() <= 1e-12 * pairs.norm():
        raise ValueError(f"The {name} is the same for all pairs: its correlation is undefined.")
    return centered / centered.norm()


def _check_permutations(n_permutations: int) -> None:
    if n_permutations < 1:
        raise ValueError(f"n_permutations is {n_permutations}: draw 999 or more.")

"""Could it be chance? Sign flips, relabeled distance matrices, and many tests at once."""

import itertools
import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from interp.inference.intervals import ENTRIES_AT_ONCE, paired_difference, row_chunks

_MOST_SIGNS = 14  # of so many differences, all 2**14 signs are tried


@dataclass(frozen=True)
class PermutationTest:
    """How often chance alone, with labels or signs dealt out anew, does as well as was observed."""

    statistic: float
    """What was observed."""

    p_value: float
    """Share of the arrangements whose statistic is at least as far from zero; two-sided."""

    smallest_p: float
    """The p-value if the observed arrangement were the most extreme of all: with few labels or
    many ties it is large, and then no result can be significant."""

    n_arrangements: int
    """Arrangements counted, the observed one among them."""

    exact: bool
    """All arrangements were counted; otherwise the observed one and a random draw of others, so
    that p = (1 + as extreme) / (1 + drawn)."""


def permutation_test(
    a: Float[Tensor, " example"],
    b: Float[Tensor, " example"],
    generator: torch.Generator,
    n_permutations: int = 9999,
) -> PermutationTest:
    """Could the mean of a - b be chance? The sign of every difference is dealt out anew.

    Were it chance which of an example's two scores is called a, each difference would be as likely
    with the other sign. Up to 14 differences that are not zero all signs are tried, beyond that
    `n_permutations` random ones. Where examples go together, give the sum of each cluster.

    One: no difference at all, or a mean of zero.
    """
    difference = paired_difference(a, b)
    # A difference of zero is the same with either sign.
    moving = difference[difference != 0]
    exact = len(moving) <= _MOST_SIGNS
    if exact:
        signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=len(moving))))
        sums = signs.double() @ moving
    else:
        _check_permutations(n_permutations)
        parts = []
        for n_rows in row_chunks(n_permutations, len(moving)):
            heads = torch.randint(2, (n_rows, len(moving)), generator=generator)
            parts.append((2 * heads - 1).double() @ moving)
        sums = torch.cat(parts)
    return _permutation_test(difference.mean(), sums / len(difference), exact)


def mantel_test(
    matrix: Float[Tensor, "language language"],
    distance: Float[Tensor, "language language"],
    generator: torch.Generator,
    n_permutations: int = 9999,
) -> PermutationTest:
    """Do two symmetric matrices over the same languages go together? The labels are dealt out anew.

    The statistic is Pearson's correlation of the entries above the diagonal; for rank correlation
    give ranks. Pairs with a language in common are no independent observations, which is why whole
    languages are relabeled and no p-value of a correlation is used (Mantel, 1967). All relabelings
    are tried if they are at most `n_permutations` + 1, that is up to 7 languages with 9999, and
    otherwise random ones. Three languages have 6, four have 24: look at `smallest_p`.

    Negative: close languages score high in `matrix`. The diagonals are not read.
    """
    n_languages = len(matrix)
    if n_languages < 3:
        raise ValueError(f"{n_languages} languages have no pairs to compare: give three or more.")
    _check_permutations(n_permutations)
    row, column = torch.triu_indices(n_languages, n_languages, offset=1)
    one, other = _standard_pairs("matrix", matrix), _standard_pairs("distance", distance)
    exact = math.factorial(n_languages) <= n_permutations + 1
    if exact:
        orders = torch.tensor(list(itertools.permutations(range(n_languages))))
    else:
        orders = torch.rand(n_permutations, n_languages, generator=generator).argsort(dim=1)
    square = torch.zeros(n_languages, n_languages, dtype=torch.float64)
    square[row, column] = square[column, row] = one
    correlations = [
        square[some[:, row], some[:, column]] @ other
        for some in orders.split(ENTRIES_AT_ONCE // len(row))
    ]
    return _permutation_test(one @ other, torch.cat(correlations), exact)


def false_discovery(p_value: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """For each p-value, the share of false discoveries if all as small were called discoveries.

    Benjamini and Hochberg (1995), over all entries at once; right for independent tests and for
    tests that go together positively. NaN is no test: it does not count, and stays NaN.
    """
    from scipy.stats import false_discovery_control  # takes a second to load

    adjusted = p_value.double().cpu().clone()
    tested = ~adjusted.isnan()
    adjusted[tested] = torch.from_numpy(false_discovery_control(adjusted[tested].numpy()))
    return adjusted


def _permutation_test(observed: Tensor, arranged: Tensor, exact: bool) -> PermutationTest:
    if not exact:
        arranged = torch.cat([arranged, rearrange(observed, "-> 1")])
    strength = arranged.abs()
    # Equal sums in another order differ by rounding, and have to count as equal.
    rounding = 1e-9 * strength.max()
    return PermutationTest(
        observed.item(),
        (strength >= observed.abs() - rounding).double().mean().item(),
        (strength >= strength.max() - rounding).double().mean().item(),
        len(arranged),
        exact,
    )


def _standard_pairs(name: str, matrix: Tensor) -> Float64[Tensor, " pair"]:
    """The entries above the diagonal, less their mean, of length one."""
    matrix = matrix.double().cpu()
    row, column = torch.triu_indices(*matrix.shape, offset=1)
    pairs = matrix[row, column]
    same = torch.allclose(pairs, matrix[column, row], rtol=1e-6, atol=1e-9)
    if not same or pairs.isinf().any():
        raise ValueError(f"The {name} is not symmetric or not finite: give a number for each pair.")
    centred = pairs - pairs.mean()
    if centred.norm() <= 1e-12 * pairs.norm():
        raise ValueError(f"The {name} is the same for all pairs: nothing can vary with it.")
    return centred / centred.norm()


def _check_permutations(n_permutations: int) -> None:
    if n_permutations < 1:
        raise ValueError(f"{n_permutations} permutations show nothing: draw 999 or more.")

"""Is the diagonal of a matrix larger than the rest, by more than chance?"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interp.evaluations.losses import nats_per_token
from interp.inference.intervals import Estimate, jackknife_shards
from interp.inference.permutation import PermutationTest
from interp.results.display import Shown, counted
from interp.results.frames import tidy

_MAX_RELABELINGS = 9999
"""Up to 7 languages have fewer, and all are tried; with more languages, this many are drawn."""


@dataclass(frozen=True, kw_only=True)
class DiagonalDominance(Shown):
    """Do a language's neurons matter to that language more than to the others?"""

    languages: tuple[str, ...]
    """Languages that have neurons and were read; no others are compared."""

    own_minus_others: Estimate
    """[language] With its neurons off, the increase on the language itself minus the mean increase
    on the others: nats per token."""

    mean: Estimate
    """Mean of `own_minus_others`; its interval is over documents, for these languages."""

    test: PermutationTest
    """Could that mean be chance? Permutation test over the language labels of the neuron sets. If
    sets and languages were unrelated, the mean over relabelings would be zero. That some sets do
    more harm, and some languages suffer more, is the same in every relabeling."""

    largest_in_row: tuple[str, ...]
    """Languages whose neurons increase no other language's loss as much as their own."""

    largest_in_column: tuple[str, ...]
    """Languages whose loss no other language's neurons increase as much as their own."""

    def __repr__(self) -> str:
        n = len(self.languages)
        return (
            f"DiagonalDominance(own minus others {self.mean} nats per token; p = "
            f"{self.test.p_value:.4f}, the smallest possible {self.test.smallest_p:.4f}; own is "
            f"largest in {len(self.largest_in_row)} of {counted(n, 'row')} and "
            f"{len(self.largest_in_column)} of {counted(n, 'column')})"
        )

    @property
    def in_words(self) -> tuple[str, str]:
        """The mean with its test, and in how many rows the own language suffers most."""
        mean, test = self.mean, self.test
        return (
            f"Own language against the others: {mean.value.item():+.3f} nats "
            f"({mean.low.item():+.3f} to {mean.high.item():+.3f}), p = {test.p_value:.2g} over "
            f"{test.n_arrangements:,} relabelings.",
            f"The own language suffers most in {len(self.largest_in_row)} of "
            f"{len(self.languages)} rows.",
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per language."""
        frame = tidy({"language": self.languages}, {"own_minus_others": self.own_minus_others})
        return frame.assign(
            largest_in_row=frame["language"].isin(self.largest_in_row),
            largest_in_column=frame["language"].isin(self.largest_in_column),
        )


def dominance(
    languages: Sequence[str],
    more: Float64[Tensor, "shard language language"],
    tokens: Int64[Tensor, "shard language"],
    generator: torch.Generator,
) -> DiagonalDominance:
    """From the nats that are added to each language by each language's neurons."""
    sums = {"more": more, "tokens": tokens}
    square = nats_per_token(more, tokens).value
    others = square.clone().fill_diagonal_(-math.inf)
    return DiagonalDominance(
        languages=tuple(languages),
        own_minus_others=jackknife_shards(sums, _own_minus_others),
        mean=jackknife_shards(sums, lambda total: _own_minus_others(total).mean()),
        test=_relabeling_test(square, generator),
        largest_in_row=_named(languages, square.diagonal() > others.amax(dim=1)),
        largest_in_column=_named(languages, square.diagonal() > others.amax(dim=0)),
    )


def own_minus_others(
    square: Float64[Tensor, "*batch off read"],
) -> Float64[Tensor, "*batch language"]:
    """Each language's own cell minus the mean of the other cells of its row.

    >>> rise = torch.tensor([[3.0, 1.0], [0.5, 2.0]], dtype=torch.float64)
    >>> interp.evaluations.own_minus_others(rise).tolist()
    [2.0, 1.5]
    """
    own = square.diagonal(dim1=-2, dim2=-1)
    return own - (reduce(square, "... off read -> ... off", "sum") - own) / (square.shape[-1] - 1)


def _own_minus_others(total: dict[str, Tensor]) -> Float64[Tensor, " language"]:
    return own_minus_others(total["more"] / total["tokens"])


def _relabeling_test(
    square: Float64[Tensor, "language language"], generator: torch.Generator
) -> PermutationTest:
    """Permutation test of the mean of own minus others: the rows' languages are permuted."""
    n_languages = len(square)
    rows = torch.arange(n_languages)
    exact = math.factorial(n_languages) <= _MAX_RELABELINGS
    if exact:  # the first is the observed order
        orders = torch.tensor(list(itertools.permutations(range(n_languages))))
    else:
        noise = torch.rand(_MAX_RELABELINGS, n_languages, generator=generator)
        orders = torch.cat([rearrange(rows, "row -> 1 row"), noise.argsort(dim=1)])
    own = square[rows, orders]
    others = (square.sum(dim=1) - own) / (n_languages - 1)
    arranged = (own - others).mean(dim=1)
    strength = arranged.abs()
    rounding = 1e-9 * square.abs().max()  # ties, up to rounding of large terms
    return PermutationTest(
        arranged[0].item(),
        (strength >= strength[0] - rounding).double().mean().item(),
        (strength >= strength.max() - rounding).double().mean().item(),
        len(orders),
        exact,
    )


def _named(codes: Sequence[str], chosen: Bool[Tensor, " language"]) -> tuple[str, ...]:
    return tuple(code for code, yes in zip(codes, chosen.tolist(), strict=True) if yes)

"""Means over examples that depend on one another in two ways, such as by language and by seed.

A claim about languages is about other languages too, so the language is a unit of its interval; and
texts written from one seed are one text, whatever the language they are pushed towards.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interp.inference.intervals import (
    Estimate,
    cluster_numbers,
    mean_over_examples,
    or_no_event,
    paired_difference,
    t_interval,
)


def mean_over_crossed(
    values: Float[Tensor, " example"],
    first: Int64[Tensor, " example"],
    second: Int64[Tensor, " example"],
    level: float = 0.95,
) -> Estimate:
    """Mean with its standard error over two crossed groupings of the examples, and a t interval.

    The squared error is that over clusters of the first grouping plus that over the second minus
    that over clusters of both (Cameron, Gelbach and Miller, 2011), and never below the larger of
    the first two. t has one degree of freedom less than the grouping with fewer clusters.

    Zero: all examples are equal.

    >>> language, seed = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> values = torch.tensor([0.5, 0.75, 0.5, 0.75])
    >>> interp.inference.mean_over_crossed(values, language, seed).value.item()
    0.625
    """
    numbers, sizes = zip(*(cluster_numbers(len(values), x) for x in (first, second)), strict=True)
    both = numbers[0] * sizes[1] + numbers[1]
    one, other, cell = (
        mean_over_examples(values, x, level).standard_error.square() for x in (*numbers, both)
    )
    squared = torch.stack([one + other - cell, one, other]).max()
    return t_interval(values.double().mean(), squared.sqrt(), min(sizes) - 1, level)


def share_difference(
    a: Float[Tensor, " example"],
    b: Float[Tensor, " example"],
    first: Int64[Tensor, " example"],
    second: Int64[Tensor, " example"],
    level: float = 0.95,
) -> Estimate:
    """How much larger the share of ones is in `a` than in `b`, paired by example; otherwise as
    `mean_over_crossed`.

    Zero: a and b agree on every example; the interval then is that of no event in so many trials.
    """
    mean = mean_over_crossed(paired_difference(a, b), first, second, level)
    return or_no_event(mean, a, b, len(a))


def unpaired_difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b for two numbers measured on different items, with an interval from both of theirs.

    Each end is as far from the difference as the root of the squared distances of the ends that it
    comes from (Zou and Donner, 2008). It is too wide for items that go together: pair those.
    """
    value = a.value - b.value
    reach = [
        torch.hypot(a.value - a.low, b.high - b.value),
        torch.hypot(a.high - a.value, b.value - b.low),
    ]
    error = torch.hypot(a.standard_error, b.standard_error)
    freedom = min(a.degrees_of_freedom, b.degrees_of_freedom)
    return Estimate(value, error, value - reach[0], value + reach[1], a.level, freedom)


def jackknife_languages(values: Float[Tensor, " language"], whole: Float[Tensor, ""]) -> Estimate:
    """A statistic of languages with the error of a delete-one-language jackknife, and a t interval.

    `values` is the statistic without each language, `whole` that of all. For means over pairs of
    languages, correlations and the like, whose pairs share languages.
    """
    n, values = len(values), values.double()
    if n < 3:
        raise ValueError(f"{n} languages are too few to leave one out: give three or more.")
    error = ((values - values.mean()).square().sum() * (n - 1) / n).sqrt()
    error = torch.where(whole.isfinite(), error, torch.tensor(math.nan, dtype=error.dtype))
    return t_interval(whole.double(), error, n - 1, 0.95)

"""Random selections: controls as large as a selection, and how far two of them agree (Jaccard)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from interp.inference.intervals import Estimate
from interp.scores.baselines import random_units

_NEGLIGIBLE = 1e-16
"""Smaller probabilities are dropped from a distribution."""


def jaccard_by_chance(
    a: Bool[Tensor, "language layer unit"],
    b: Bool[Tensor, "language layer unit"],
    widths: Sequence[int],
    level: float = 0.95,
) -> Estimate:
    """The Jaccard of two random masks with as many units per language, layer and site.

    Exact: within a layer the number in common is hypergeometric, and layers add up. `widths` are
    those of the sites, in the order of the last axis. `value` is the mean, `standard_error` the
    standard deviation; with probability `level` two such masks have a Jaccard from `low` to `high`,
    both included. NaN: both masks are empty.
    """
    if not 0 < level < 1:
        raise ValueError(f"The level is {level}: give a share between 0 and 1, such as 0.95.")
    rows = [
        _of_language(_sizes(one, widths), _sizes(other, widths), [*widths] * a.shape[1], level)
        for one, other in zip(a, b, strict=True)
    ]
    value, error, low, high = torch.tensor(rows, dtype=torch.float64).unbind(dim=1)
    return Estimate(value, error, low, high, level)


def _sizes(mask: Bool[Tensor, "layer unit"], widths: Sequence[int]) -> np.ndarray:
    """Number of units in every layer, and within a layer at every site."""
    return np.array([int(part.sum()) for layer in mask for part in layer.split([*widths])])


def _of_language(
    first: np.ndarray, second: np.ndarray, widths: list[int], level: float
) -> tuple[float, float, float, float]:
    """Mean, standard deviation and both ends of the interval, for one language."""
    from scipy.stats import hypergeom  # takes a second to load

    total = int(first.sum() + second.sum())
    if not total:
        return math.nan, math.nan, math.nan, math.nan
    offset, probability = 0, np.ones(1)
    for n, m, width in zip(first, second, widths, strict=True):
        least, greatest = max(0, n + m - width), min(n, m)
        of_layer = hypergeom.pmf(np.arange(least, greatest + 1), width, n, m)
        probability = np.convolve(probability, of_layer)
        support = np.flatnonzero(probability > _NEGLIGIBLE)
        offset += least + support[0]
        probability = probability[support[0] : support[-1] + 1]
    common = offset + np.arange(len(probability))
    jaccard, probability = common / (total - common), probability / probability.sum()
    mean = float(probability @ jaccard)
    deviation = math.sqrt(float(probability @ (jaccard - mean) ** 2))
    below = probability.cumsum()
    ends = [np.searchsorted(below, share - 1e-12) for share in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (float(jaccard[min(end, len(jaccard) - 1)]) for end in ends)
    return mean, deviation, low, high


class SiteUnits(NamedTuple):
    """The units of one site."""

    where: str
    """Of which site, in words."""

    chosen: Bool[Tensor, "language layer unit"]
    free: Bool[Tensor, "layer unit"]
    """Those that can be drawn."""

    rate: Float[Tensor, "language layer unit"] | None
    """If those drawn shall fire as often."""


def drawn_like(
    sites: Sequence[SiteUnits], languages: Sequence[str], generator: torch.Generator
) -> Bool[Tensor, "language layer unit"]:
    """As many random units per language, layer and site; the last axis joins the sites."""
    sizes = [
        reduce(site.chosen.long(), "language layer unit -> language layer", "sum") for site in sites
    ]
    for site, size in zip(sites, sizes, strict=True):
        available = reduce(site.free.long(), "layer unit -> layer", "sum")
        if (size > available).any():
            row, layer = (size > available).nonzero()[0].tolist()
            raise ValueError(
                f"{languages[row]} has {size[row, layer]} neurons in layer {layer}{site.where}, "
                f"but only {available[layer]} of {site.free.shape[1]} are left to draw from: "
                "exclude fewer, or draw none (interp deactivate --n-draws 0)."
            )
    drawn = []
    for row in range(len(languages)):
        parts = []
        for site, size in zip(sites, sizes, strict=True):
            like = None if site.rate is None else (site.chosen[row], site.rate[row])
            parts.append(random_units(site.free, size[row], generator, like))
        drawn.append(torch.cat(parts, dim=-1))
    return torch.stack(drawn)

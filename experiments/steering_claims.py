"""What texts written under an edit say about the claims of Kojima et al. (2024) and others.

Every way starts its texts from the same seeds, so comparisons are paired by text. Each way has the
setting that was best on other texts; numbers of units are fixed beforehand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import torch
from jaxtyping import Float64
from torch import Tensor

from interp.inference.claims import Measurement
from interp.inference.intervals import paired_bootstrap
from interp.plots.style import Table

NOTHING, LAPE, PRECISION = "no edit", "LAPE neurons", "precision units"
RANDOM_NEURONS, RANDOM_UNITS, NEARLY_ALL = "random neurons", "random units", "nearly all units"
TOP, BOTTOM = "top half of them", "bottom half of them"
RESIDUAL = "residual push"


def setting_of(n_units: int) -> str:
    """The name of the setting with this many units."""
    return f"{n_units:,} units"


def tenfold(units: Sequence[int]) -> tuple[int, int] | None:
    """A number of units and ten times as many, the first pair where both are tried."""
    return next(((few, many) for few, many in permutations(units, 2) if many == 10 * few), None)


def reached(texts: Table, good: bool) -> Float64[Tensor, " text"]:
    """1 for each text in the requested language (if `good`, one that passes its guard), else 0."""
    hits = (texts["language"] == texts["to"]) & (texts["passes"] | (not good))
    return torch.tensor(hits.tolist()).double()


def difference(
    texts: Table, baseline: Table, control: tuple[Table, Table] | None = None, good: bool = False
) -> Measurement:
    """How much more often texts reach their language than the baseline; the control has both."""
    chance = math.nan
    if control is not None:
        chance = (reached(control[0], good) - reached(control[1], good)).mean().item()
    generator = torch.Generator().manual_seed(0)
    more = paired_bootstrap(reached(texts, good), reached(baseline, good), generator)
    return Measurement(more, chance)


WAYS: Mapping[str, tuple[str, str, str]] = {
    "precision-steers": (PRECISION, NOTHING, RANDOM_UNITS),
    "precision-random": (RANDOM_UNITS, NOTHING, PRECISION),
    "precision-both-top": (PRECISION, TOP, RANDOM_UNITS),
    "precision-both-bottom": (PRECISION, BOTTOM, RANDOM_UNITS),
    "precision-collapse": (PRECISION, NEARLY_ALL, NOTHING),
    "precision-collapse-good": (PRECISION, NEARLY_ALL, NOTHING),
    "lape-steers": (LAPE, NOTHING, RANDOM_NEURONS),
    "residual-steers-better": (RESIDUAL, PRECISION, RANDOM_UNITS),
}
"""Claim → a way, its baseline, and the way that replaces it in the control."""


def of_ways(texts: Table) -> dict[str, Measurement | None]:
    """Of the best settings, on new texts that did not choose them."""
    of = dict(list(texts.groupby("way", sort=False)))
    return {
        name: difference(of[way], of[baseline], (of[control], of[baseline]), name.endswith("good"))
        for name, (way, baseline, control) in WAYS.items()
    }


def of_sizes(texts: Table, sizes: tuple[int, int] | None) -> dict[str, Measurement | None]:
    """Ten times as many units against the fewer, on the texts that settings are chosen on."""
    names = ("precision-tenfold", "precision-tenfold-good")
    if sizes is None:
        return dict.fromkeys(names)
    few, many = (setting_of(n) for n in sizes)
    of = dict(list(texts.groupby(["way", "setting"], sort=False)))
    units, random = ((of[way, many], of[way, few]) for way in (PRECISION, RANDOM_UNITS))
    words = {"few": few, "many": many}
    return {
        name: replace(difference(*units, random, name.endswith("good")), words=words)
        for name in names
    }

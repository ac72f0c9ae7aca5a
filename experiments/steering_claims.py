"""What texts written under an edit say about the claims of Kojima et al. (2024), and of others.

Texts begin with the same seeds in every way, so they are compared one by one. Ways are compared
with the settings that were best on other texts, numbers of units as they were fixed beforehand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from interp.inference.claims import Measurement
from interp.inference.intervals import paired_bootstrap
from interp.plots.style import Table

NOTHING, LAPE, PRECISION = "no edit", "LAPE neurons", "precision units"
RANDOM_NEURONS, RANDOM_UNITS, NEARLY_ALL = "random neurons", "random units", "nearly all units"
TOP, BOTTOM = "top half of them", "bottom half of them"
RESIDUAL = "residual push"


def setting_of(n_units: int) -> str:
    """What a number of units is called among the settings."""
    return f"{n_units:,} units"


def tenfold(units: Sequence[int]) -> tuple[int, int] | None:
    """A number of units and ten times as many, where both are tried."""
    return next(((few, many) for few, many in permutations(units, 2) if many == 10 * few), None)


def reached(texts: Table, good: bool) -> Float64[Tensor, " text"]:
    """1 for each text in the language that was asked for; if `good`, that passes its guard too."""
    mine = texts["language"] == texts["to"]
    kept: Bool[Tensor, " text"] = torch.tensor((mine & (texts["passes"] | (not good))).tolist())
    return kept.double()


def difference(
    one: Table, than: Table, beside: tuple[Table, Table] | None = None, good: bool = False
) -> Measurement:
    """How much more often texts reach their language; `beside`: the two of the control."""
    chance = math.nan
    if beside is not None:
        first, second = (reached(each, good) for each in beside)
        chance = (first - second).mean().item()
    generator = torch.Generator().manual_seed(0)
    return Measurement(paired_bootstrap(reached(one, good), reached(than, good), generator), chance)


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
"""Claim → a way, the way it is compared with, and that which is compared in its stead."""


def of_ways(texts: Table) -> dict[str, Measurement | None]:
    """Of the settings that were best, on texts that were not looked at when choosing them."""
    of = dict(list(texts.groupby("way", sort=False)))
    return {
        name: difference(of[one], of[than], (of[control], of[than]), name.endswith("good"))
        for name, (one, than, control) in WAYS.items()
    }


def of_sizes(texts: Table, sizes: tuple[int, int] | None) -> dict[str, Measurement | None]:
    """The units against ten times as many, from the texts that settings are compared on."""
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

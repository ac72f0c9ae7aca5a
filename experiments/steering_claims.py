"""What texts written under an edit say about the claims of Kojima et al. (2024) and others.

Every way starts its texts from the same seeds, so comparisons are paired by text. Each way has the
setting that was best on other texts; numbers of units are fixed beforehand.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from interp.inference.crossed import mean_over_crossed, share_difference
from interp.inference.intervals import Estimate
from interp.inference.statements import Measurement
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


def units_of(texts: Table) -> tuple[Int64[Tensor, " text"], Int64[Tensor, " text"]]:
    """The requested language and the seed of each text; texts of a language are in order of seeds.

    A seed is one text in every language: the untouched model even writes the same.
    """
    languages = list(dict.fromkeys(texts["to"]))
    seeds = texts.groupby("to", sort=False).cumcount().tolist()
    return torch.tensor([languages.index(code) for code in texts["to"]]), torch.tensor(seeds)


def difference(texts: Table, baseline: Table, control: Table, good: bool = False) -> Measurement:
    """How much more often texts reach their language than the baseline, and than the control
    does, which has the same baseline."""
    units = units_of(texts)
    one, other, third = (reached(part, good) for part in (texts, baseline, control))
    pairs = ((one, other), (third, other), (one, third))
    return Measurement(*(share_difference(*pair, *units) for pair in pairs))


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
        name: difference(of[way], of[baseline], of[control], name.endswith("good"))
        for name, (way, baseline, control) in WAYS.items()
    }


def of_sizes(texts: Table, sizes: tuple[int, int] | None) -> dict[str, Measurement | None]:
    """Ten times as many units against the fewer, on the texts that settings are chosen on."""
    names = ("precision-tenfold", "precision-tenfold-good")
    if sizes is None:
        return dict.fromkeys(names)
    few, many = (setting_of(n) for n in sizes)
    of = dict(list(texts.groupby(["way", "setting"], sort=False)))
    words = {"few": few, "many": many}
    measured: dict[str, Measurement | None] = {}
    for name in names:
        good = name.endswith("good")
        value, chance = (
            more_with_many(of[way, many], of[way, few], good) for way in (PRECISION, RANDOM_UNITS)
        )
        beyond = mean_over_crossed(value[1] - chance[1], *units_of(of[PRECISION, many]))
        measured[name] = Measurement(value[0], chance[0], beyond, words=words)
    return measured


def more_with_many(
    many: Table, few: Table, good: bool
) -> tuple[Estimate, Float64[Tensor, " text"]]:
    """How much more often the language is reached with more units: in all, and by text."""
    a, b = reached(many, good), reached(few, good)
    return share_difference(a, b, *units_of(many)), a - b

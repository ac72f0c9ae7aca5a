"""The claims of Kojima et al. (2024) about writing, and of others, on what steer_language writes.

Texts begin with the same seeds in every way, so they are compared one by one. Ways are compared
with the settings that were best on other texts, numbers of units as they were fixed beforehand.
"""

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from interp.inference.claims import Claim, claim_of
from interp.inference.intervals import paired_bootstrap
from interp.plots.style import Table

COMMAND = "python -m experiments.steer_language"
KOJIMA, TANG, OURS = "Kojima et al. (2024)", "Tang et al. (2024)", "this project"
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
    one: Table,
    than: Table,
    beside: tuple[Table, Table] | None,
    good: bool,
    how: str,
    **said: Any,
) -> Claim:
    """How much more often texts reach their language; `beside`: the two of the control."""
    chance = math.nan
    if beside is not None:
        first, second = (reached(each, good) for each in beside)
        chance = (first - second).mean().item()
    generator = torch.Generator().manual_seed(0)
    return claim_of(
        paired_bootstrap(reached(one, good), reached(than, good), generator),
        how=f"share of {'good ' if good else ''}texts in the language asked for: {how}",
        control=chance,
        **said,
    )


def claims_of(texts: Table, on: str) -> list[Claim]:
    """Of the settings that were best, on texts that were not looked at when choosing them."""

    def claim(
        name: str,
        statement: str,
        one: str,
        than: str,
        source: str,
        control: str = "",
        good: bool = False,
        **rule: Any,
    ) -> Claim:
        of = dict(list(texts.groupby("way", sort=False)))
        said = {"name": name, "statement": statement, "source": source, "on": on}
        said["command"] = COMMAND
        beside = (of[control], of[than]) if control else None
        how = f"{one} minus {than}"
        return difference(
            of[one], of[than], beside, good, how, control_name=control, **said, **rule
        )

    return [
        claim(
            "precision-steers",
            "Holding the units that detect a language at their medians switches what is written.",
            PRECISION,
            NOTHING,
            KOJIMA,
            RANDOM_UNITS,
        ),
        claim(
            "precision-random",
            "As many random units, held at their medians, leave the language as it is, within 5 "
            "points.",
            RANDOM_UNITS,
            NOTHING,
            KOJIMA,
            PRECISION,
            bar=0.05,
            side="below",
        ),
        claim(
            "precision-both-top",
            "Units from both ends steer no worse than the top half alone, within 5 points.",
            PRECISION,
            TOP,
            KOJIMA,
            RANDOM_UNITS,
            bar=-0.05,
        ),
        claim(
            "precision-both-bottom",
            "Units from both ends steer no worse than the bottom half alone, within 5 points.",
            PRECISION,
            BOTTOM,
            KOJIMA,
            RANDOM_UNITS,
            bar=-0.05,
        ),
        claim(
            "precision-collapse",
            "Holding nearly all units steers worse than holding the best few.",
            PRECISION,
            NEARLY_ALL,
            KOJIMA,
            NOTHING,
        ),
        claim(
            "precision-collapse-good",
            "What is written while nearly all units are held is less often good.",
            PRECISION,
            NEARLY_ALL,
            OURS,
            NOTHING,
            good=True,
        ),
        claim(
            "lape-steers",
            "Pushing the neurons of a language steers what is written towards it.",
            LAPE,
            NOTHING,
            TANG,
            RANDOM_NEURONS,
        ),
        claim(
            "residual-steers-better",
            "A push of the residual stream steers better than the units that detect the language.",
            RESIDUAL,
            PRECISION,
            OURS,
            RANDOM_UNITS,
        ),
    ]


def claims_about_sizes(texts: Table, sizes: tuple[int, int], on: str) -> list[Claim]:
    """The units against ten times as many, from the texts that settings are compared on."""
    few, many = (setting_of(n) for n in sizes)
    of = dict(list(texts.groupby(["way", "setting"], sort=False)))
    return [
        difference(
            of[PRECISION, many],
            of[PRECISION, few],
            (of[RANDOM_UNITS, many], of[RANDOM_UNITS, few]),
            good,
            f"{many} minus {few}",
            name="precision-tenfold-good" if good else "precision-tenfold",
            statement=statement,
            source=source,
            on=on,
            command=COMMAND,
            control_name=RANDOM_UNITS,
        )
        for good, source, statement in (
            (False, KOJIMA, "Holding ten times as many units steers more often."),
            (True, OURS, "Holding ten times as many units also makes more good texts."),
        )
    ]

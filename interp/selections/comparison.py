"""Selections beside one another: how many units two of them share, and how many by chance."""

from collections.abc import Mapping
from itertools import combinations

import pandas as pd

from interp.selections.agreement import jaccard_between
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.stability import chance_jaccard


def on_common_units(selections: Mapping[str, NeuronSelection]) -> dict[str, NeuronSelection]:
    """The languages that all selections have, and the MLP's neurons alone if their sites differ.

    >>> one = neurons.languages_only(["de"])
    >>> some = interp.selections.on_common_units({"a": neurons, "b": one})
    >>> some["a"].languages
    ('de',)
    """
    first, *others = selections.values()
    common = [code for code in first.languages if all(code in other.languages for other in others)]
    if not common:
        raise ValueError(
            "The selections have no language in common: "
            + "; ".join(", ".join(selection.languages) for selection in selections.values())
            + "."
        )
    alike = all(selection.sites == first.sites for selection in others)
    return {
        name: (selection if alike else selection.neurons()).languages_only(common)
        for name, selection in selections.items()
    }


def overlaps(selections: Mapping[str, NeuronSelection]) -> pd.DataFrame:
    """A row per pair of selections and language: sizes, Jaccard, and what chance gives.

    Chance is that of random sets of as many units in every layer, with its 95 % range.

    >>> control = neurons.random_like(generator)
    >>> table = interp.selections.overlaps({"LAPE": neurons, "random": control})
    >>> table["language"].tolist()
    ['en', 'de', 'zh']
    """
    rows = []
    for (a, one), (b, other) in combinations(selections.items(), 2):
        jaccard, chance = jaccard_between(one, other), chance_jaccard(one, other)
        both = (one & other).counts()
        rows += [
            {
                "a": a,
                "b": b,
                "language": code,
                "neurons_a": one.counts()[code],
                "neurons_b": other.counts()[code],
                "both": both[code],
                "jaccard": jaccard[row].item(),
                "chance": chance.value[row].item(),
                "chance_low": chance.low[row].item(),
                "chance_high": chance.high[row].item(),
            }
            for row, code in enumerate(one.languages)
        ]
    return pd.DataFrame(rows)

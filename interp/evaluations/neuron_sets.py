"""Sets of neurons to switch off during a task: sharing categories, random and equal-sized sets."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.results.words import NOTHING
from interp.scores.baselines import random_units
from interp.scores.sharing import Sharing

RANDOM = "random"
EQUAL = "equal"


class Condition(NamedTuple):
    """One way to switch neurons off."""

    off: str
    """What is off: a sharing category, random neurons, or nothing."""

    size: str
    """How many: as many as the category of this name has; "equal": as many of each; "": none."""


def conditions_for(n_languages: int) -> tuple[Condition, ...]:
    """Nothing; each category and a random control of its size; equal-sized sets of all of these."""
    names = {category: category.name.lower().replace("_", " ") for category in Sharing}
    if n_languages == 2:
        names.pop(Sharing.PARTLY_SHARED)
    whole = [Condition(off, name) for name in names.values() for off in (name, RANDOM)]
    equal = [Condition(off, EQUAL) for off in (*names.values(), RANDOM)]
    return (Condition(NOTHING, ""), *whole, *equal)


def draw_sets(
    category: UInt8[Tensor, "layer neuron"],
    conditions: Sequence[Condition],
    n_draws: int,
    generator: torch.Generator,
) -> tuple[Bool[Tensor, "set layer neuron"], Int64[Tensor, " set"]]:
    """The sets of every condition, `n_draws` if drawn at random, and the condition of each set."""
    pools = {
        off: category == Sharing[off.upper().replace(" ", "_")]
        for off, _ in conditions
        if off not in (NOTHING, RANDOM)
    }
    sizes = {
        off: reduce(pool.long(), "layer neuron -> layer", "sum") for off, pool in pools.items()
    }
    sizes[EQUAL] = torch.stack(list(sizes.values())).amin(dim=0)
    all_neurons = torch.ones_like(category, dtype=torch.bool)
    sets, owner = [], []
    for number, (off, size) in enumerate(conditions):
        if off == NOTHING:
            drawn = [~all_neurons]
        elif off == size:
            drawn = [pools[off]]
        else:
            pool = pools.get(off, all_neurons)
            drawn = [random_units(pool, sizes[size], generator) for _ in range(n_draws)]
        sets += drawn
        owner += [number] * len(drawn)
    return torch.stack(sets), torch.tensor(owner)


def generator_states(
    model: NeuronModel,
    conditions: Sequence[Condition],
    n_draws: int,
    generator: torch.Generator,
    n_items: int,
) -> Iterator[UInt8[Tensor, " byte"]]:
    """The generator's state before each item, so that its draws are the same in any process."""
    all_neurons = torch.ones(model.n_layers, model.d_mlp, dtype=torch.bool)
    none = all_neurons.sum(dim=1) * 0
    drawn = sum(off not in (NOTHING, size) for off, size in conditions)
    for _ in range(n_items):
        yield generator.get_state()
        for _ in range(drawn * n_draws):
            random_units(all_neurons, none, generator)


def per_condition(
    values: Float64[Tensor, " set"], owner: Int64[Tensor, " set"]
) -> Float64[Tensor, " condition"]:
    """Mean over the sets of each condition."""
    sums = torch.zeros(int(owner.max()) + 1, dtype=torch.float64).index_add_(0, owner, values)
    return sums / owner.bincount()

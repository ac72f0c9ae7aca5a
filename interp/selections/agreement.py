"""Would another run select the same neurons, and if not, how much more text would it take?

The answer comes from the run itself: its shards are split into halves, and the disagreement of two
halves predicts that of two whole runs.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_by_entropy


def half_selections(
    stats: FiringStats,
    select: Callable[[FiringStats], NeuronSelection],
    generator: torch.Generator,
    splits: int = 8,
) -> Iterator[tuple[NeuronSelection, NeuronSelection]]:
    """The selections from two random halves of the shards, `splits` times.

    With an odd number of shards, one is in neither half.
    """
    if stats.n_shards < 2:
        raise ValueError(
            f"The statistics have {stats.n_shards} shard, but two halves need two or more: collect "
            "20 (`interp collect --n-shards 20`), in Python with n_shards=20."
        )
    half = stats.n_shards // 2
    for _ in range(splits):
        order = torch.randperm(stats.n_shards, generator=generator).tolist()
        yield select(stats.shards(order[:half])), select(stats.shards(order[-half:]))


def predicted_agreement(
    stats: FiringStats,
    select: Callable[[FiringStats], NeuronSelection],
    generator: torch.Generator,
    splits: int = 8,
) -> float:
    """Expected Jaccard between this selection and one from as much other text of the same kind.

    The shards are split at random into two halves, `splits` times, and neurons are selected from
    each. Averaged over languages and splits, the two selections share D = 2 |A ∩ B| / (|A| + |B|)
    of their neurons (Dice). Neurons that they do not share have crossed a cut; their number is
    proportional to the noise in the rates, which falls with the square root of the amount of text.
    So between two runs of all n shards, where a half has h = n // 2,

        D_whole = 1 - (1 - D_half) · √(h / n)        and        J = D_whole / (2 - D_whole).

    √(h / n) is 1/√2 for even n. In simulations with known truth and bursty text this was within
    0.06 of the Jaccard of two independent runs from 0.5 up, and 0.03 to 0.06 too high at 0.3. It
    does not cover text of another kind, on which runs agree far less. A language without neurons
    in both halves of a split is left out of that split's average. One: the halves fully agree.

    >>> round(interp.selections.predicted_agreement(stats, interp.select_by_entropy, generator), 1)
    0.6
    """
    dices = []
    for first, second in half_selections(stats, select, generator, splits):
        jaccard = jaccard_between(first, second)
        dices.append((2 * jaccard / (1 + jaccard)).nanmean())
    share = (stats.n_shards // 2) / stats.n_shards
    dice = 1 - (1 - torch.stack(dices).nanmean().item()) * math.sqrt(share)
    return dice / (2 - dice)


def text_for_agreement(agreement: float, wanted: float = 0.95) -> float:
    """How many times as much text two runs need to reach a Jaccard of `wanted`.

    Their disagreement, 1 - D with D = 2 J / (1 + J), falls with the square root of the amount of
    text (see `predicted_agreement`), so the text must grow by the square of the ratio. One: this
    text is just enough. Below one: less would have been enough. Zero: they fully agree already.

    >>> round(interp.selections.text_for_agreement(0.8, wanted=0.95), 1)
    18.8
    """
    if not (0 <= agreement <= 1 and 0 < wanted < 1):
        raise ValueError(
            f"agreement is {agreement} and wanted is {wanted}: give shares, wanted strictly "
            "between 0 and 1."
        )
    now, then = (1 - 2 * jaccard / (1 + jaccard) for jaccard in (agreement, wanted))
    return (now / then) ** 2


def until_stable(
    jaccard: float = 0.95, fraction: float = 0.01, busy_quantile: float = 0.95, seed: int = 0
) -> Callable[[FiringStats], bool]:
    """A rule for `collect`: stop once another run is predicted to reach this Jaccard.

    It applies `predicted_agreement` to the selection by entropy, from four shards on. Equal
    statistics give equal answers.

    >>> rule = interp.selections.until_stable(jaccard=0.1)
    >>> run = interp.collect(model, text, stop_when=rule, progress=False)
    >>> run.firing.n_shards, run.status().stopped_after
    (4, 4)
    """
    if not 0 < jaccard <= 1:
        raise ValueError(f"jaccard is {jaccard}: give a share above 0 and up to 1, such as 0.95.")

    def select(stats: FiringStats) -> NeuronSelection:
        return select_by_entropy(stats, fraction, busy_quantile)

    def is_stable(stats: FiringStats) -> bool:
        if stats.n_shards < 4:
            return False
        generator = torch.Generator().manual_seed(seed)
        try:
            return predicted_agreement(stats, select, generator) >= jaccard
        except ValueError:  # half the shards may be too few to select from; more may come
            return False

    return is_stable


def jaccard_between(a: NeuronSelection, b: NeuronSelection) -> Float[Tensor, " language"]:
    """Agreement of two selections on each language: common neurons divided by the union.

    Zero: on no neuron. One: on all. NaN: neither selects a neuron for the language.

    >>> control = neurons.random_like(generator, exclude=neurons.union())
    >>> interp.selections.jaccard_between(neurons, control).tolist()
    [0.0, 0.0, 0.0]
    """
    both, either = (list(selection.counts().values()) for selection in (a & b, a | b))
    return torch.tensor(both).double() / torch.tensor(either).double()

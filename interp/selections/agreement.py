"""Would another run select the same neurons, and if not, how much more text would it take?

The answer comes from the run itself: its shards are split into halves, and what two halves do not
share foretells what two whole runs would not.
"""

import math
from collections.abc import Callable, Iterator

import torch

from interp.counting.stats import FiringStats
from interp.selections.neuron_selection import NeuronSelection, jaccard_between
from interp.selections.select import select_by_entropy


def half_selections(
    stats: FiringStats,
    select: Callable[[FiringStats], NeuronSelection],
    generator: torch.Generator,
    splits: int = 8,
) -> Iterator[tuple[NeuronSelection, NeuronSelection]]:
    """What is selected from two random halves of the shards, `splits` times.

    Of an odd number of shards one is in neither half.
    """
    if stats.n_shards < 2:
        raise ValueError(
            f"There is {stats.n_shards} shard, and two halves need two or more: collect with "
            "n_shards=20."
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
    """Jaccard to expect between this selection and one from as much other text of the same kind.

    The shards are split at random into two halves, `splits` times, and selected from separately.
    Averaged over languages and splits, the two selections share D = 2 |A ∩ B| / (|A| + |B|) of
    their neurons (Dice). What they do not share has crossed a cut, and how many do is in
    proportion to the noise in the rates, which falls with the root of the amount of text. So
    between two runs of all n shards, where a half has h = n // 2,

        D_whole = 1 - (1 - D_half) · √(h / n)        and        J = D_whole / (2 - D_whole).

    √(h / n) is 1/√2 for even n. In simulations with known truth and bursty text this lay within
    0.06 of the Jaccard of two independent runs from 0.5 up, and 0.03 to 0.06 too high at 0.3; it
    knows nothing of text of another kind, on which runs agree far less. A language without
    neurons in both halves of a split is left out of its average. One: the halves agree wholly.

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
    """How many times the text would be needed for two runs to agree to a Jaccard of `wanted`.

    What two selections do not share, 1 - D with D = 2 J / (1 + J), falls with the root of the text
    (see `predicted_agreement`), so the text must grow by the square of the ratio. One: it is
    enough as it is. Below one: less would have been enough. Zero: they agree wholly already.

    >>> round(interp.selections.text_for_agreement(0.8, wanted=0.95), 1)
    18.8
    """
    if not (0 <= agreement <= 1 and 0 < wanted < 1):
        raise ValueError(
            f"Agreement {agreement} and wanted {wanted} must be shares, wanted between 0 and 1."
        )
    have, want = (1 - 2 * jaccard / (1 + jaccard) for jaccard in (agreement, wanted))
    return (have / want) ** 2


def until_stable(
    jaccard: float = 0.95, fraction: float = 0.01, busy_quantile: float = 0.95, seed: int = 0
) -> Callable[[FiringStats], bool]:
    """A rule for `collect`: stop once another run is predicted to reach this Jaccard.

    It asks `predicted_agreement` of the selection by entropy, from four shards on; equal statistics
    get equal answers.

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
        except ValueError:  # half the shards may be too little to select from; more may come
            return False

    return is_stable

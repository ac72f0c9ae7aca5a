"""Estimates of what differs between two runs, on the same text or on other text of its kind."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from interp.inference.intervals import Estimate, jackknife_shards

Sums = Mapping[str, Shaped[Tensor, "shard ..."]]
"""Sums per shard, by name, as in `jackknife_shards`."""


def between(
    a: Sums,
    b: Sums,
    statistic: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor],
    *,
    paired: bool,
) -> Estimate:
    """A statistic of the totals of two runs, such as a difference or a correlation.

    `paired`: both runs read the same shards of text, and the jackknife leaves out a shard of both
    at a time, so that what both owe to the text cancels. Otherwise each run's shards are left out
    in turn, and the half-widths of the two intervals are added as squares.

    >>> a = {"hits": torch.tensor([3.0, 5.0, 4.0]), "n": torch.tensor([10, 10, 10])}
    >>> b = {"hits": torch.tensor([4.0, 6.0, 5.0]), "n": torch.tensor([10, 10, 10])}
    >>> def more(a, b):
    ...     return b["hits"] / b["n"] - a["hits"] / a["n"]
    >>> interp.inference.between(a, b, more, paired=True)
    0.1 (0.1 to 0.1 at 95 %)
    """
    if paired:
        sums = {f"a {name}": shards for name, shards in a.items()}
        sums |= {f"b {name}": shards for name, shards in b.items()}
        return jackknife_shards(sums, lambda total: statistic(*_split(total)))
    total_a, total_b = ({name: run[name].sum(dim=0) for name in run} for run in (a, b))
    parts = (
        jackknife_shards(a, lambda total: statistic(total, total_b)),
        jackknife_shards(b, lambda total: statistic(total_a, total)),
    )
    value = parts[0].value
    error = torch.hypot(*(part.standard_error for part in parts))
    half = torch.hypot(*((part.high - part.low) / 2 for part in parts))
    return Estimate(value, error, value - half, value + half, parts[0].level)


def in_both(before: Sequence[str], after: Sequence[str], what: str) -> tuple[str, ...]:
    """The labels that two runs have in common, in the order of the first.

    `what` they are there for, such as "read", is said where there are none.
    """
    common = tuple(label for label in before if label in after)
    if not common:
        raise ValueError(
            f"The two have no label in common that was {what} ({', '.join(before)}; "
            f"{', '.join(after)}): measure both on the same labels."
        )
    return common


def _split(total: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    a, b = (
        {name[2:]: value for name, value in total.items() if name.startswith(run)}
        for run in ("a ", "b ")
    )
    return a, b

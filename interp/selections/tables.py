"""The tables of a selection: neurons by layer, and those that two languages share."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.inference.intervals import Estimate
from interp.results.frames import tidy


def by_layer(
    profile: Int[Tensor, "language layer"],
    languages: Sequence[str],
    interval: Estimate | None = None,
) -> pd.DataFrame:
    """See `NeuronSelection.layer_frame`."""
    if interval is not None and interval.low.shape != profile.shape:
        raise ValueError(
            f"The interval has shape {tuple(interval.low.shape)}, but the selection has "
            f"{profile.shape[0]} languages and {profile.shape[1]} layers."
        )
    frame = tidy(
        {"language": languages, "layer": range(profile.shape[1])},
        {
            "neurons": profile,
            "low": math.nan if interval is None else interval.low.clamp_min(0),
            "high": math.nan if interval is None else interval.high,
        },
    )
    return frame.reindex(columns=["layer", "language", "neurons", "low", "high"])


def by_pair(
    common: Int[Tensor, "language language"],
    jaccard: Float[Tensor, "language language"],
    chance: Sequence[Estimate],
    languages: Sequence[str],
) -> pd.DataFrame:
    """See `NeuronSelection.overlap_frame`; `chance` has the Jaccard of random neurons by row."""
    n = len(languages)
    itself = torch.eye(n, dtype=torch.bool)
    ends = {"chance": "value", "chance_low": "low", "chance_high": "high"}
    by_chance = {
        column: torch.stack([getattr(row, end) for row in chance]).masked_fill(itself, torch.nan)
        for column, end in ends.items()
    }
    axes = {"language": languages, "other": languages}
    frame = tidy(axes, {"common": common, "jaccard": jaccard, **by_chance})
    once = torch.ones(n, n).triu().flatten().nonzero().flatten()  # each pair and the diagonal
    return frame.take(once.tolist()).reset_index(drop=True)

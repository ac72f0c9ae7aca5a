"""Two models of one shape, such as base and instruct, compared neuron by neuron."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.inference.intervals import Estimate
from interp.inference.two_runs import between, in_both
from interp.models.units import UnitLayout
from interp.results.display import Cells, Shown, listed, table_cells
from interp.selections.neuron_selection import NeuronSelection


@dataclass(frozen=True, kw_only=True)
class RateChange(Shown):
    """Firing rates of the same neurons in two models, and how they differ.

    >>> interp.selections.rate_change(stats, stats, paired=True)
    RateChange(en, de, zh; on the same shards of text)
    """

    before: Float[Tensor, "language layer neuron"]
    """Rates in the first model. NaN, here and in the change: the neuron saw fewer than 100 tokens
    of some label in one of the models, which are mixtures of experts."""

    change: Estimate
    """Rate in the second model minus that in the first: [language layer neuron]."""

    correlation: Estimate
    """Pearson correlation, over all neurons, of the two models' rates: [language]."""

    languages: tuple[str, ...]
    """Labels that both runs read, in the order of the first."""

    paired: bool
    """Whether both runs read the same shards of text."""

    layout: UnitLayout | None = None
    """In mixtures of experts, which neurons are of which expert."""

    def __repr__(self) -> str:
        text = "the same shards of text" if self.paired else "other text"
        return f"RateChange({listed(self.languages)}; on {text})"

    def _cells(self) -> Cells:
        columns = {name: list(values) for name, values in self.summary().items()}
        return table_cells(columns, "rates of the same neurons in two models")

    @property
    def differs(self) -> Bool[Tensor, "language layer neuron"]:
        """Whether the 95 % interval of the change excludes zero; 5 % do by chance alone."""
        return (self.change.low > 0) | (self.change.high < 0)

    def summary(self) -> pd.DataFrame:
        """One row per label: correlation with its interval, and share of neurons that differ."""
        differs = self.differs.double().masked_fill(self.before.isnan(), torch.nan)
        return pd.DataFrame(
            {
                "language": self.languages,
                "correlation": self.correlation.value.tolist(),
                "correlation_low": self.correlation.low.tolist(),
                "correlation_high": self.correlation.high.tolist(),
                "differs": _over_neurons(differs, "mean").tolist(),
                "mean_change": _over_neurons(self.change.value, "mean").tolist(),
            }
        )

    def to_frame(self, selections: Mapping[str, NeuronSelection] | None = None) -> pd.DataFrame:
        """One row per label and neuron that has a rate; `selections` add a column each: whether it
        is selected. In mixtures of experts with a column `expert`, blank for dense neurons."""
        known = ~self.before.isnan()
        code, layer, unit = known.nonzero().unbind(dim=1)
        where: dict[str, Any] = {"layer": layer.tolist(), "neuron": unit.tolist()}
        if self.layout is not None:
            experts, neurons = self.layout.located(layer, unit)
            named = pd.array(
                [None if expert < 0 else expert for expert in experts.tolist()], "Int64"
            )
            where = {"layer": layer.tolist(), "expert": named, "neuron": neurons.tolist()}
        values = {
            "before": self.before,
            "after": self.before + self.change.value,
            "change": self.change.value,
            "change_low": self.change.low,
            "change_high": self.change.high,
        }
        for name, selection in (selections or {}).items():
            values[f"in_{name}"] = torch.stack([selection[code] for code in self.languages])
        return pd.DataFrame(
            {"language": [self.languages[row] for row in code.tolist()]}
            | where
            | {name: value[known].tolist() for name, value in values.items()}
        )


def rate_change(before: FiringStats, after: FiringStats, *, paired: bool = False) -> RateChange:
    """How the firing rate of every neuron changes from one model to another of the same shape.

    `paired`: both runs read the same shards of text, which makes the intervals of the change
    narrower.

    >>> change = interp.selections.rate_change(stats, stats, paired=True)
    >>> change.correlation.value.tolist(), bool(change.differs.any())
    ([1.0, 1.0, 1.0], False)
    """
    languages = in_both(before.languages, after.languages, "read")
    shapes = [(stats.n_layers, stats.d_mlp) for stats in (before, after)]
    if shapes[0] != shapes[1]:
        (layers, width), (other_layers, other_width) = shapes
        raise ValueError(
            f"The models have {layers} layers of {width:,} neurons and {other_layers} of "
            f"{other_width:,}: neurons are compared by index, in models of the same shape."
        )
    if before.layout != after.layout or before.fires_by != after.fires_by:
        raise ValueError(
            "The models have other experts, or neurons fire by other values "
            f"({before.fires_by}, {after.fires_by}): neurons are compared by index, in models of "
            "the same shape, counted alike."
        )
    common = [stats.languages_only(languages) for stats in (before, after)]
    sums = [_sums(stats) for stats in common]
    seen = common[0].seen & common[1].seen

    def rate(total: Mapping[str, Tensor]) -> Float[Tensor, "language layer neuron"]:
        return (total["fired"].double() / total["tokens"]).masked_fill(~seen, torch.nan)

    def more(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
        return rate(b) - rate(a)

    def correlated(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
        return _correlation(rate(a), rate(b))

    totals = {name: shards.sum(dim=0) for name, shards in sums[0].items()}
    return RateChange(
        before=rate(totals),
        change=between(sums[0], sums[1], more, paired=paired),
        correlation=between(sums[0], sums[1], correlated, paired=paired),
        languages=languages,
        paired=paired,
        layout=before.layout,
    )


def _sums(stats: FiringStats) -> dict[str, Tensor]:
    """By shard, the tokens on which each neuron fires, and those that it sees."""
    if stats.experts is None:
        tokens = rearrange(stats.tokens, "shard language -> shard language 1 1")
    else:
        shards, rows = map(range, stats.tokens.shape)
        of_shards = [[stats.experts.of(shard, row) for row in rows] for shard in shards]
        tokens = torch.stack([torch.stack(of_rows) for of_rows in of_shards])
    return {"fired": stats.fired, "tokens": tokens}


def _correlation(
    a: Float[Tensor, "language layer neuron"], b: Float[Tensor, "language layer neuron"]
) -> Float[Tensor, " language"]:
    """One: the same but for scale. NaN: the neurons of one model all fire alike."""
    a, b = (
        rate - rearrange(_over_neurons(rate, "mean"), "language -> language 1 1") for rate in (a, b)
    )
    squares = _over_neurons(a.square(), "sum") * _over_neurons(b.square(), "sum")
    return _over_neurons(a * b, "sum") / squares.sqrt()


def _over_neurons(
    values: Float[Tensor, "language layer neuron"], how: Literal["sum", "mean"]
) -> Float[Tensor, " language"]:
    """Over the neurons that have a value."""
    flat = rearrange(values, "language layer neuron -> language (layer neuron)")
    return flat.nansum(dim=1) if how == "sum" else flat.nanmean(dim=1)

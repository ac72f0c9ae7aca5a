"""Which experts of a mixture are chosen for which language, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float64, Int64
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.inference.intervals import Estimate, jackknife_shards
from interp.results.bars import tqdm
from interp.results.display import Cells, layer_cells, listed
from interp.results.frames import interval_columns, tidy
from interp.results.saved import Saved


@dataclass(frozen=True, kw_only=True)
class Routing(Saved):
    """How often each expert is chosen for each language; exact counts, per shard.

    Layers without experts have no counts, and NaN wherever counts would be divided.

    >>> chosen = torch.tensor([[[[9, 1]], [[1, 9]]], [[[8, 2]], [[2, 8]]]])
    >>> tokens = torch.full((2, 2), 10)
    >>> routing = interp.scores.Routing(chosen=chosen, tokens=tokens, languages=("en", "de"))
    >>> routing.share[:, 0]
    tensor([[0.8500, 0.1500],
            [0.1500, 0.8500]], dtype=torch.float64)
    >>> routing.divergence.value
    tensor([0.2704], dtype=torch.float64)
    """

    kind = "Routing"
    made_by = "interp.scores.routing_of(run.firing)"

    chosen: Int64[Tensor, "shard language layer expert"]
    """Tokens routed to each expert."""

    tokens: Int64[Tensor, "shard language"]
    """Number of tokens read."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    def __repr__(self) -> str:
        n_layers, n_experts = self.chosen.shape[2:]
        return (
            f"Routing({listed(self.languages)}; {n_layers} layers of up to {n_experts} experts; "
            f"{len(self.tokens)} shards)"
        )

    def _cells(self) -> Cells:
        note = "entropy of the experts chosen for a language, in nats"
        return layer_cells([[code] for code in self.languages], self.entropy.tolist(), note)

    @property
    def share(self) -> Float64[Tensor, "language layer expert"]:
        """Share of a language's choices in a layer that fall on each expert."""
        return _share(reduce(self.chosen, "shard ... -> ...", "sum"))

    @property
    def entropy(self) -> Float64[Tensor, "language layer"]:
        """Entropy, in nats, of `share`. Zero: one expert for all; log(experts): all alike."""
        return _entropy(self.share)

    @property
    def divergence(self) -> Estimate:
        """How far languages differ in their experts, in nats for each layer, with intervals over
        shards: `language_divergence` of `share`."""
        return jackknife_shards({"chosen": self.chosen}, _divergence)

    @property
    def ends_less_middle(self) -> Estimate:
        """`ends_less_middle` of the divergence by layer, with its interval over shards."""
        return jackknife_shards(
            {"chosen": self.chosen}, lambda total: ends_less_middle(_divergence(total))
        )

    @property
    def preference(self) -> Estimate:
        """`share` less its mean over languages, [language layer expert], with intervals over
        shards. Zero: no more chosen for this language than for the others. NaN: the layer has no
        experts."""
        return jackknife_shards({"chosen": self.chosen}, _preference)

    def shuffled(self, generator: torch.Generator) -> "Routing":
        """A control: the same counts, with languages drawn anew for all shards together.

        What is left of `divergence` is chance, and the difference between any two samples of text.
        """
        n_shards, n_languages = self.tokens.shape
        order = torch.randperm(n_shards * n_languages, generator=generator)
        pairs = "(shard language)"
        chosen = rearrange(self.chosen, f"shard language ... -> {pairs} ...")[order]
        tokens = rearrange(self.tokens, f"shard language -> {pairs}")[order]
        return replace(
            self,
            chosen=rearrange(chosen, f"{pairs} ... -> shard language ...", shard=n_shards),
            tokens=rearrange(tokens, f"{pairs} -> shard language", shard=n_shards),
        )

    def control(
        self, generator: torch.Generator, n_draws: int = 99
    ) -> Float64[Tensor, "draw layer"]:
        """The divergence of each layer under shuffled languages."""
        if n_draws < 1:
            raise ValueError(f"n_draws is {n_draws}: give 1 or more.")
        draws = tqdm(range(n_draws), "drawing labels anew", unit="draw")
        return torch.stack([language_divergence(self.shuffled(generator).share) for _ in draws])

    def to_frame(self) -> pd.DataFrame:
        """A row for each language, layer and expert: tokens routed there, and their share."""
        return tidy(self._experts, self._counted)

    def expert_frame(self) -> pd.DataFrame:
        """`to_frame` with `preference` and its interval; needs two shards or more."""
        return tidy(self._experts, {**self._counted, "preference": self.preference})

    @property
    def _experts(self) -> dict[str, Sequence[Any]]:
        n_layers, n_experts = self.chosen.shape[2:]
        return {"language": self.languages, "layer": range(n_layers), "expert": range(n_experts)}

    @property
    def _counted(self) -> dict[str, Tensor]:
        chosen = reduce(self.chosen, "shard language layer expert -> language layer expert", "sum")
        return {"tokens": chosen, "share": self.share}

    def layer_frame(self, generator: torch.Generator, n_draws: int = 99) -> pd.DataFrame:
        """A row for each layer: entropy, mean over languages; divergence with its interval; mean
        and highest of the control, and the share of control draws, the observed one included, that
        are as high."""
        observed, control = self.divergence, self.control(generator, n_draws)
        above = 1 + reduce((control >= observed.value).double(), "draw layer -> layer", "sum")
        return tidy(
            {"layer": range(len(observed.value))},
            {
                "entropy": reduce(self.entropy, "language layer -> layer", "mean"),
                **interval_columns("divergence", observed),
                "shuffled": reduce(control, "draw layer -> layer", "mean"),
                "shuffled_highest": reduce(control, "draw layer -> layer", "max"),
                "p_value": (above / (1 + n_draws)).masked_fill(observed.value.isnan(), torch.nan),
            },
        )


def routing_of(stats: FiringStats) -> Routing:
    """The experts chosen while firing was counted in a mixture of experts.

    >>> interp.scores.routing_of(stats)
    Traceback (most recent call last):
        ...
    ValueError: These counts are of a model without experts: collect them from a mixture.
    """
    if stats.experts is None:
        raise ValueError(
            "These counts are of a model without experts: collect them from a mixture."
        )
    return Routing(chosen=stats.experts.routed, tokens=stats.tokens, languages=stats.languages)


def language_divergence(
    share: Float64[Tensor, "language layer expert"],
) -> Float64[Tensor, " layer"]:
    """Jensen-Shannon divergence of the languages' shares, in nats, all of equal weight.

    The entropy of the mean share less the mean entropy: what a choice of expert says of the
    language. Zero: all languages choose alike. log(n_languages): no two share an expert. NaN: the
    layer has no experts. Few tokens make it too high, hence `Routing.control`.
    """
    mean = reduce(share, "language layer expert -> layer expert", "mean")
    own = reduce(_entropy(share), "language layer -> layer", "mean")
    return (_entropy(mean) - own).clamp_min(0)


def ends_less_middle(divergence: Float64[Tensor, " layer"]) -> Float64[Tensor, ""]:
    """The mean over the first third of the layers, or over the last if that is lower, less the mean
    over the middle third; layers without experts (NaN) do not count.

    Above zero: a U over depth, as Bandarkar et al. (2025, "Multilingual Routing in
    Mixture-of-Experts") report, where both ends treat languages apart. Below zero: at least one end
    treats them more alike than the middle. They compare each language with English, by weights of
    routing; here all languages are compared, by the experts chosen.
    """
    by_layer = divergence[~divergence.isnan()]
    n_ends = len(by_layer) // 3
    if not n_ends:
        raise ValueError(
            f"{len(by_layer)} layers have experts: a middle and two ends need 3 or more."
        )
    first, middle, last = by_layer.split([n_ends, len(by_layer) - 2 * n_ends, n_ends])
    return torch.minimum(first.mean(), last.mean()) - middle.mean()


def _divergence(total: Mapping[str, Tensor]) -> Float64[Tensor, " layer"]:
    return language_divergence(_share(total["chosen"]))


def _preference(total: Mapping[str, Tensor]) -> Float64[Tensor, "language layer expert"]:
    share = _share(total["chosen"])
    return share - reduce(share, "language layer expert -> 1 layer expert", "mean")


def _share(
    chosen: Int64[Tensor, "language layer expert"],
) -> Float64[Tensor, "language layer expert"]:
    total = reduce(chosen, "language layer expert -> language layer", "sum")
    return chosen.double() / repeat(total, "... layer -> ... layer 1")


def _entropy(share: Float64[Tensor, "*of expert"]) -> Float64[Tensor, "*of"]:
    return -reduce(torch.xlogy(share, share), "... expert -> ...", "sum")

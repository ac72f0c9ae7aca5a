"""Sharing over the tokens of a prompt: does a neuron keep the category it has at the last one?

Translations differ in length, and their tokens do not align. So consider one token drawn uniformly
from each language's version of a prompt. How often a neuron has a category then follows exactly
from how often it fires in each version, by `chance_of_categories`, without drawing anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from interp.counting.batch import Batch
from interp.counting.counters import firing_kind, warn_of_rounded_signs
from interp.counting.observe import batches, observe
from interp.inference.intervals import Estimate, mean_over_examples
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results.display import Cells, Shown, counted, layer_cells, listed
from interp.results.frames import tidy
from interp.results.words import FiresBy, Observed
from interp.scores.sharing import (
    CATEGORIES,
    Sharing,
    chance_of_categories,
    clusters_of,
    sharing_categories,
)
from interp.text.corpora import Corpora


def kept_over_tokens(fires: Sequence[Bool[Tensor, " _pos *unit"]]) -> Float64[Tensor, "*unit"]:
    """How often each unit has, over the tokens of a prompt, the category it has at the last token.

    `fires` holds one tensor per language, for all tokens of its version of the prompt. Of all ways
    to take one token from each version, last tokens included, this is the share in which the unit
    has its category at the last tokens. One: in all of them.

    >>> en = torch.tensor([[True], [False], [True], [True]])  # four tokens, one unit
    >>> de = torch.tensor([[True], [True]])
    >>> interp.scores.kept_over_tokens([en, de]).tolist()
    [0.75]
    """
    last = sharing_categories(torch.stack([language[-1] for language in fires]))
    rate = torch.stack([language.double().mean(dim=0) for language in fires])
    return _chance_of_own(chance_of_categories(rate), last)


def _chance_of_own(
    chance: Float64[Tensor, " category *unit"], category: Tensor
) -> Float64[Tensor, "*unit"]:
    """Each unit's chance of its own category."""
    return chance.gather(0, rearrange(category, "... -> 1 ...").long())[0]


@dataclass(frozen=True, kw_only=True)
class TokenSharing(Shown):
    """Categories at the last token compared with those at other tokens of the same prompts.

    The axis "category" has the order of `Sharing`.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> lists = {"en": ["One and one is"], "de": ["Eins und eins ist"]}
    >>> rows = interp.text.prompt_rows(interp.read_prompts(lists, ["en", "de"]), exact)
    >>> sharing = interp.scores.sharing_over_tokens(exact, rows)
    >>> sharing.count.sum(-1).tolist()
    [[2048, 2048, 2048, 2048, 2048, 2048]]
    """

    count: Int64[Tensor, "prompt layer category"]
    """Number of neurons in each category at the last token; adds up to `d_mlp`."""

    kept: Float64[Tensor, "prompt layer category"]
    """Expected number of those neurons that have the category at random tokens too: the sum of
    their `kept_over_tokens`."""

    drawn: Float64[Tensor, "prompt layer category"]
    """Expected number of neurons in each category at random tokens, whatever it is at the last."""

    never: Int64[Tensor, "prompt language layer"]
    """Number of neurons that fire at no token of the prompt."""

    clusters: Int64[Tensor, " prompt"]
    """Cluster of each prompt: the same number for prompts that go together."""

    prompts: tuple[str, ...]
    """The prompts' ids."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    d_mlp: int
    """Neurons per layer."""

    def __repr__(self) -> str:
        return (
            f"TokenSharing({counted(len(self.prompts), 'prompt')} in {listed(self.languages)}; "
            f"{self.count.shape[1]} layers of {self.d_mlp:,} neurons)"
        )

    def _cells(self) -> Cells:
        kept, count = (
            reduce(part.double(), "prompt layer category -> category layer", "sum")
            for part in (self.kept, self.count)
        )
        note = "of a category's neurons, the share that keeps it at random tokens"
        return layer_cells([[name] for name in CATEGORIES], (kept / count).tolist(), note)

    def keeps(self, level: float = 0.95) -> Estimate:
        """Of the neurons in a category at the last token, the share that have it at random tokens.

        [layer category]. One: at all tokens. `by_chance`: the category at the last token tells
        nothing about other tokens. NaN: no neuron is in it on any prompt. A ratio of means, with
        the interval of its first-order error.
        """
        size = self.count.double().mean(dim=0)
        ratio = self.kept.mean(dim=0) / size
        return mean_over_examples(
            ratio + (self.kept - ratio * self.count) / size, self.clusters, level
        )

    @property
    def by_chance(self) -> Float64[Tensor, "layer category"]:
        """Share of all neurons that have the category at random tokens."""
        return self.drawn.mean(dim=0) / self.d_mlp

    def never_fires(self, level: float = 0.95) -> Estimate:
        """Share of a layer's neurons that fire at no token of a prompt: [language layer]."""
        return mean_over_examples(self.never.double() / self.d_mlp, self.clusters, level)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """One row per layer and category; `never_fires` is per layer, mean over languages."""
        keeps, share = self.keeps(level), self.count.double().mean(dim=0) / self.d_mlp
        never = reduce(self.never_fires(level).value, "language layer -> layer 1", "mean")
        return tidy(
            {"layer": range(len(share)), "category": CATEGORIES},
            {
                "share": share,
                "keeps": keeps.value,
                "low": keeps.low,
                "high": keeps.high,
                "by_chance": self.by_chance,
                "never_fires": never,
                "languages": len(self.languages),
                "prompts": len(self.prompts),
            },
        )


def sharing_over_tokens(
    model: AnyModel,
    corpora: Corpora,
    *,
    fires_by: FiresBy = "gate",
    threshold: float = 0.0,
    clusters: Int64[Tensor, " prompt"] | None = None,
    tokens_per_batch: int = 4096,
) -> TokenSharing:
    """One pass over parallel prompts (`prompt_rows`): do categories hold at other tokens?

    Counts the tokens of `Corpora.keep`, so no beginning-of-text token. One shard of prompts is in
    memory at a time, at four bytes per prompt, language and neuron. `clusters` as in
    `sharing_profile`, for the prompts in the order of the rows.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> lists = {"en": ["One is", "Two is"], "de": ["Eins ist", "Zwei ist"]}
    >>> rows = interp.text.prompt_rows(interp.read_prompts(lists, ["en", "de"]), exact)
    >>> list(interp.scores.sharing_over_tokens(exact, rows).to_frame())
    ['layer', 'category', 'share', 'keeps', 'low', 'high', 'by_chance', 'never_fires', ...]
    """
    model = as_model(model)
    if corpora.packed:
        raise ValueError("Rows must be prompts, but these are packed blocks: use prompt_rows.")
    warn_of_rounded_signs(model)
    rows = corpora.rows[corpora.languages[0]]
    for code in corpora.languages:
        if corpora.rows[code].source != rows.source:
            raise ValueError(
                f"{code} and {corpora.languages[0]} have different prompts, or a different order: "
                "make the rows with prompt_rows."
            )
    n_prompts = len(rows.source)
    clusters = clusters_of(clusters, n_prompts)
    shape = (n_prompts, model.n_layers, len(Sharing))
    count = torch.zeros(shape, dtype=torch.int64)
    kept, drawn = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    never = torch.zeros(n_prompts, len(corpora.languages), model.n_layers, dtype=torch.int64)
    for shard in range(corpora.n_shards):
        prompts = (rows.shard == shard).nonzero().flatten()
        counters = []
        for code in corpora.languages:
            counter = _TokenCounter(model, fires_by, threshold, len(prompts))
            for batch in batches(corpora, code, shard, tokens_per_batch):
                observe(model, batch, [counter])
            counters.append(counter)
        for row, prompt in enumerate(prompts.tolist()):
            rate = torch.stack([counter.rate[row] for counter in counters])
            category = sharing_categories(torch.stack([counter.last[row] for counter in counters]))
            chance = chance_of_categories(rate)
            own = _chance_of_own(chance, category)
            inside = torch.stack([category == value for value in Sharing], dim=-1)
            count[prompt] = reduce(inside.long(), "layer neuron category -> layer category", "sum")
            inside = inside * rearrange(own, "layer neuron -> layer neuron 1")
            kept[prompt] = reduce(inside, "layer neuron category -> layer category", "sum")
            drawn[prompt] = reduce(chance, "category layer neuron -> layer category", "sum")
            never[prompt] = reduce((rate == 0).long(), "row layer neuron -> row layer", "sum")
    return TokenSharing(
        count=count,
        kept=kept,
        drawn=drawn,
        never=never,
        clusters=clusters,
        prompts=rows.source,
        languages=corpora.languages,
        d_mlp=model.d_mlp,
    )


class _TokenCounter:
    """For each row and neuron: the share of tokens at which it fires, and whether at the last."""

    def __init__(
        self, model: NeuronModel, fires_by: FiresBy, threshold: float, n_rows: int
    ) -> None:
        self.kinds: tuple[Observed, ...] = (firing_kind(fires_by),)
        self.rate = torch.zeros(n_rows, model.n_layers, model.d_mlp)
        self.last = torch.zeros(n_rows, model.n_layers, model.d_mlp, dtype=torch.bool)
        self._threshold = threshold

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        fires = values > self._threshold
        counted = fires & rearrange(batch.keep, "batch pos -> batch pos 1")
        tokens = reduce(batch.keep.long(), "batch pos -> batch 1", "sum")
        fired = reduce(counted.long(), "batch pos neuron -> batch neuron", "sum")
        row = torch.arange(len(batch.rows), device=values.device)
        self.rate[list(batch.rows), layer] = (fired / tokens).float().cpu()
        self.last[list(batch.rows), layer] = fires[row, batch.length.long() - 1].cpu()

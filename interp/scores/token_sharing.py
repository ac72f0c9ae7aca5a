"""Sharing over the tokens of a prompt: does a neuron keep the category it has at the last one?

Translations differ in length and their tokens do not go together. So one token is drawn from each
language's version of a prompt, all of them alike. How often a neuron has a category then follows
from how often it fires in each version, by `chance_of_categories`, and nothing need be drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from interp.counting.counters import firing_kind, warn_of_rounded_signs
from interp.counting.observe import Batch, batches, observe
from interp.inference.intervals import Estimate, mean_over_examples
from interp.models.neuron_model import NeuronModel
from interp.results.display import counted, listed
from interp.results.frames import tidy
from interp.results.words import FiresBy, Kind
from interp.scores.sharing import (
    CATEGORIES,
    Sharing,
    chance_of_categories,
    sharing_categories,
)
from interp.text.corpora import Corpora


def kept_over_tokens(fires: Sequence[Bool[Tensor, " _pos *unit"]]) -> Float64[Tensor, "*unit"]:
    """How often each unit has, over the tokens of a prompt, the category that it has at the end.

    `fires` has each language's version of the prompt, with as many tokens as it has there. The
    share of the ways to take one token of each version, the last ones included, in which the unit's
    category is that at the last ones. One: at all of them.

    >>> en = torch.tensor([[True], [False], [True], [True]])  # four tokens, one unit
    >>> de = torch.tensor([[True], [True]])
    >>> interp.scores.kept_over_tokens([en, de]).tolist()
    [0.75]
    """
    last = sharing_categories(torch.stack([each[-1] for each in fires]))
    rate = torch.stack([each.double().mean(dim=0) for each in fires])
    return _of_their_own(chance_of_categories(rate), last)


def _of_their_own(
    chance: Float64[Tensor, " category *unit"], category: Tensor
) -> Float64[Tensor, "*unit"]:
    return chance.gather(0, rearrange(category, "... -> 1 ...").long())[0]


@dataclass(frozen=True, kw_only=True)
class TokenSharing:
    """Categories at the last token beside those at other tokens of the same prompts.

    The axis "category" has the order of `Sharing`.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> lists = {"en": ["One and one is"], "de": ["Eins und eins ist"]}
    >>> rows = interp.text.prompt_rows(interp.read_prompts(lists, ["en", "de"]), exact)
    >>> found = interp.scores.sharing_over_tokens(exact, rows)
    >>> found.count.sum(-1).tolist()
    [[2048, 2048, 2048, 2048, 2048, 2048]]
    """

    count: Int64[Tensor, "prompt layer category"]
    """Neurons in each category at the last token; they add up to `d_mlp`."""

    kept: Float64[Tensor, "prompt layer category"]
    """Sum over these of `kept_over_tokens`: how many of them have it at tokens drawn at random."""

    drawn: Float64[Tensor, "prompt layer category"]
    """How many neurons have it at tokens drawn at random, whatever they have at the last."""

    never: Int64[Tensor, "prompt language layer"]
    """Neurons that fire at no token of the prompt."""

    clusters: Int64[Tensor, " prompt"]
    """The same number for prompts that go together."""

    prompts: tuple[str, ...]
    """The prompts' ids."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    d_mlp: int
    """Neurons per layer."""

    def __repr__(self) -> str:
        return (
            f"TokenSharing({counted(len(self.prompts), 'prompt')} in {listed(self.languages)}; "
            f"{self.count.shape[1]} layers of {self.d_mlp:,} neurons)"
        )

    def keeps(self, level: float = 0.95) -> Estimate:
        """Of the neurons in a category at the last token, the share that have it at tokens drawn.

        [layer category]. One: at all tokens. `by_chance`: it does not matter where they are at the
        last token. NaN: no neuron is in it on any prompt. A ratio of means, with the interval of
        its first-order error.
        """
        size = self.count.double().mean(dim=0)
        ratio = self.kept.mean(dim=0) / size
        return mean_over_examples(
            ratio + (self.kept - ratio * self.count) / size, self.clusters, level
        )

    @property
    def by_chance(self) -> Float64[Tensor, "layer category"]:
        """Share of all neurons that have the category at tokens drawn."""
        return self.drawn.mean(dim=0) / self.d_mlp

    def never_fires(self, level: float = 0.95) -> Estimate:
        """Share of a layer's neurons that fire at no token of a prompt: [language layer]."""
        return mean_over_examples(self.never.double() / self.d_mlp, self.clusters, level)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """One row per layer and category; `never_fires` is the layer's, mean over languages."""
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
    model: NeuronModel,
    corpora: Corpora,
    *,
    fires_by: FiresBy = "gate",
    threshold: float = 0.0,
    clusters: Int64[Tensor, " prompt"] | None = None,
    tokens_per_batch: int = 4096,
) -> TokenSharing:
    """One pass over parallel prompts (`prompt_rows`): what becomes of their categories elsewhere.

    Tokens count as in `Corpora.keep`: no beginning-of-text. A shard of prompts is in memory at a
    time, with four bytes for each prompt, language and neuron. `clusters` as in `sharing_profile`,
    for the prompts in the order of the rows.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> lists = {"en": ["One is", "Two is"], "de": ["Eins ist", "Zwei ist"]}
    >>> rows = interp.text.prompt_rows(interp.read_prompts(lists, ["en", "de"]), exact)
    >>> list(interp.scores.sharing_over_tokens(exact, rows).to_frame())
    ['layer', 'category', 'share', 'keeps', 'low', 'high', 'by_chance', 'never_fires', ...]
    """
    if corpora.packed:
        raise ValueError("Rows must be prompts, and these are packed blocks: see prompt_rows.")
    warn_of_rounded_signs(model)
    rows = corpora.rows[corpora.languages[0]]
    for code in corpora.languages:
        if corpora.rows[code].source != rows.source:
            raise ValueError(
                f"{code} has other prompts than {corpora.languages[0]}, or in another order: "
                "make the rows with prompt_rows."
            )
    n_prompts = len(rows.source)
    if clusters is None:
        clusters = torch.arange(n_prompts)
    elif len(clusters) != n_prompts:
        raise ValueError(f"There are {n_prompts} prompts and clusters for {len(clusters)}.")
    shape = (n_prompts, model.n_layers, len(Sharing))
    count = torch.zeros(shape, dtype=torch.int64)
    kept, drawn = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    never = torch.zeros(n_prompts, len(corpora.languages), model.n_layers, dtype=torch.int64)
    for shard in range(corpora.n_shards):
        mine = (rows.shard == shard).nonzero().flatten()
        counters = []
        for code in corpora.languages:
            counter = _TokenCounter(model, firing_kind(fires_by), threshold, len(mine))
            for batch in batches(corpora, code, shard, tokens_per_batch):
                observe(model, batch, [counter])
            counters.append(counter)
        for place, prompt in enumerate(mine.tolist()):
            rate = torch.stack([each.rate[place] for each in counters])
            category = sharing_categories(torch.stack([each.last[place] for each in counters]))
            chance = chance_of_categories(rate)
            own = _of_their_own(chance, category)
            inside = torch.stack([category == each for each in Sharing], dim=-1)
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
        clusters=clusters.clone(),
        prompts=rows.source,
        languages=corpora.languages,
        d_mlp=model.d_mlp,
    )


class _TokenCounter:
    """For each row, the share of tokens at which every neuron fires, and whether at the last."""

    def __init__(self, model: NeuronModel, kind: Kind, threshold: float, n_rows: int) -> None:
        self.kinds: tuple[Kind, ...] = (kind,)
        self.rate = torch.zeros(n_rows, model.n_layers, model.d_mlp)
        self.last = torch.zeros(n_rows, model.n_layers, model.d_mlp, dtype=torch.bool)
        self._threshold = threshold

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        fires = values > self._threshold
        counted = fires & rearrange(batch.keep, "batch pos -> batch pos 1")
        tokens = reduce(batch.keep.long(), "batch pos -> batch 1", "sum")
        fired = reduce(counted.long(), "batch pos neuron -> batch neuron", "sum")
        every = torch.arange(len(batch.rows), device=values.device)
        self.rate[list(batch.rows), layer] = (fired / tokens).float().cpu()
        self.last[list(batch.rows), layer] = fires[every, batch.length.long() - 1].cpu()

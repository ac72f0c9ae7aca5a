"""Per-neuron statistics of one pass over text: firing counts and moments."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interp.counting.batch import Neurons
from interp.counting.caches import Masks, Shards, parts_of
from interp.counting.counters import FiringCounter, MomentsCounter, firing_kind
from interp.counting.counts import (
    Counts,
    InMemory,
    OnDisk,
    check_counts,
    check_expert_counts,
    mean_rates,
)
from interp.counting.expert_tokens import LEAST_TOKENS, ExpertTokens
from interp.counting.parts import Parts, added, check_alike
from interp.models.bare_model import BareModel
from interp.models.units import LayerUnits, UnitLayout
from interp.results import artifacts
from interp.results.display import MOST_ROWS, Cells, counted, layer_cells, of_neurons, table_cells
from interp.results.saved import Saved
from interp.results.words import FiresBy

IN_MEMORY = 1 << 30
"""Counts of up to this many bytes are held in memory; larger ones stay on disk."""

_COLLECT = "interp.collect(model, corpora, out=...), or `interp collect` on the command line"


class FiringStats(Saved):
    """How often each neuron fires in each language, kept per shard of documents.

    Counts above 1 GiB stay in the file that `load` opened, which must not change meanwhile. They
    are read on demand, one shard of one language at a time; `fired` reads them all at once.

    >>> stats.languages, stats.tokens.sum(0).tolist()
    (('en', 'de', 'zh'), [640, 640, 640])
    >>> stats.rate.shape
    torch.Size([3, 6, 2048])
    >>> stats.without(0).n_shards
    4
    """

    kind = "FiringStats"
    made_by = _COLLECT

    counts: Counts
    """Tokens on which a neuron fires; in memory, or on disk if too large."""

    tokens: Int64[Tensor, "shard language"]
    """Number of tokens read."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    experts: ExpertTokens | None
    """In a mixture of experts, the tokens that its experts saw; None: neurons see all tokens."""

    fires_by: FiresBy
    """The value that was above zero."""

    def __init__(
        self,
        fired: Int64[Tensor, "shard language layer neuron"] | Counts,
        tokens: Int64[Tensor, "shard language"],
        languages: tuple[str, ...],
        experts: ExpertTokens | None = None,
        fires_by: FiresBy = "gate",
    ) -> None:
        n_shards, n_languages = fired.shape[:2]
        if tokens.shape != (n_shards, n_languages) or len(languages) != n_languages:
            raise ValueError(
                f"fired has {n_shards} shards and {n_languages} languages, tokens has shape "
                f"{tuple(tokens.shape)}, and {len(languages)} languages are named."
            )
        _check_read(tokens, languages)
        if isinstance(fired, Tensor):
            check_counts(fired, rearrange(tokens, "shard language -> shard language 1 1"))
            fired = InMemory(fired)
        if experts is not None:
            check_expert_counts(fired, tokens, experts)
        self.counts, self.tokens, self.languages, self.experts = fired, tokens, languages, experts
        self.fires_by = fires_by

    def __repr__(self) -> str:
        shape, tokens = (self.n_layers, self.d_mlp), self.tokens.sum(0).tolist()
        text = of_neurons(self.languages, shape, tokens)
        by = "" if self.fires_by == "gate" else f", firing by {self.fires_by}"
        return f"FiringStats({text} in {counted(self.n_shards, 'shard')}{by})"

    def _cells(self) -> Cells:
        columns = {"tokens": self.tokens.sum(0)}
        if isinstance(self.counts, InMemory) and self.experts is None:
            columns |= mean_rates(self.counts, self.tokens)
            silent = (self.total == 0).double()
            columns["never fire"] = reduce(silent, "language layer neuron -> language", "mean")
        note = "means over all neurons, with 95 % intervals over shards"
        if self.experts is not None:
            columns["mean rate"] = self.mean_rate
            note = f"means over neurons that saw {LEAST_TOKENS} tokens or more of every language"
        numbers = {name: values.tolist() for name, values in columns.items()}
        return table_cells({"language": self.languages, **numbers}, note, MOST_ROWS)

    @staticmethod
    def from_caches(
        caches: Shards,
        *,
        keep: Masks | None = None,
        special_tokens: bool = False,
        fires_by: FiresBy = "gate",
        model: Neurons | BareModel | None = None,
    ) -> "FiringStats":
        """Counts from caches of TransformerLens instead of text; each cache of a language is a
        shard, so every language needs as many caches as the others.

        Caches need `hook_pre` of every MLP, or `hook_post` for `fires_by="output"`, and are read
        one layer at a time; "activation" needs the model too. `keep` has a mask for
        each cache, by language: 1 or True where a token counts, as in an attention mask, or from
        `model.text_mask(tokens)`. Without it, all positions count, padding too. Rows that all begin
        with the same token are refused, as that token is no text: leave it out of the mask, or
        count it with `special_tokens=True`. With `model`, caches of other models are refused.

        >>> tokens = {code: rows.ids.long() for code, rows in text.rows.items()}
        >>> caches = {code: model.run_with_cache(ids)[1] for code, ids in tokens.items()}
        >>> bool(interp.FiringStats.from_caches(caches).rate.equal(stats.rate))
        True
        """
        parts = parts_of(
            caches,
            FiringCounter,
            keep,
            special_tokens,
            model,
            kinds=(firing_kind(fires_by),),
            by_shard=True,
            fires_by=fires_by,
        )
        fired, tokens = parts.by_shard("firing.fired", "firing.tokens")
        return FiringStats(fired, tokens[..., 0], parts.languages, fires_by=fires_by)

    @property
    def n_shards(self) -> int:
        return len(self.tokens)

    @property
    def n_layers(self) -> int:
        return self.counts.shape[2]

    @property
    def d_mlp(self) -> int:
        """Neurons per layer (d_mlp)."""
        return self.counts.shape[3]

    @property
    def fired(self) -> Int64[Tensor, "shard language layer neuron"]:
        """Tokens on which the neuron fires; loads all counts into memory."""
        return self.counts.whole()

    @property
    def total(self) -> Int64[Tensor, "language layer neuron"]:
        """Tokens on which the neuron fires, summed over shards."""
        return torch.stack([self.counts.total(row) for row in range(len(self.languages))])

    @property
    def rate(self) -> Float64[Tensor, "language layer neuron"]:
        """Share of the tokens that a neuron sees on which it fires, in float64.

        A neuron sees all tokens of a language, or, in a mixture of experts, those routed to its
        expert. NaN: it saw fewer than 100 tokens of some language, see `seen`.
        """
        rate = torch.empty(self.counts.shape[1:], dtype=torch.float64)
        for row in range(len(self.languages)):
            rate[row] = self.counts.total(row)
        if self.experts is not None:
            return rate.div_(self.experts.total).masked_fill_(~self.experts.seen, torch.nan)
        return rate.div_(rearrange(self.tokens.sum(0).double(), "language -> language 1 1"))

    @property
    def mean_rate(self) -> Float64[Tensor, " language"]:
        """Mean of a language's rates over all neurons that have one.

        >>> interp.jackknife(stats, lambda part: part.mean_rate).value.shape
        torch.Size([3])
        """
        return self.rate.nanmean(dim=(1, 2))

    @property
    def seen(self) -> Bool[Tensor, "layer neuron"]:
        """Neurons that saw at least 100 tokens of every language: all, unless of experts. Methods
        choose among these; as `~stats.seen`, what a control should exclude."""
        if self.experts is not None:
            return self.experts.seen
        return torch.ones(self.counts.shape[2:], dtype=torch.bool)

    @property
    def layout(self) -> UnitLayout | None:
        """Which neurons are of which expert; None: the model is dense."""
        return None if self.experts is None else self.experts.layout

    def shards(self, shards: Sequence[int]) -> "FiringStats":
        """The same statistics for a subset of the shards."""
        return self._select(shards, range(len(self.languages)))

    def without(self, shard: int) -> "FiringStats":
        """All shards but one, as a delete-one jackknife needs them."""
        return self.shards([other for other in range(self.n_shards) if other != shard])

    def languages_only(self, languages: Sequence[str]) -> "FiringStats":
        """A subset of the languages, in the order given."""
        return self._select(range(self.n_shards), self._rows(languages))

    def _select(self, shards: Sequence[int], rows: Sequence[int]) -> "FiringStats":
        return FiringStats(
            self.counts.select(shards, rows),
            self.tokens[list(shards)][:, list(rows)],
            tuple(self.languages[row] for row in rows),
            None if self.experts is None else self.experts.select(shards, rows),
            self.fires_by,
        )

    def in_memory(self) -> "FiringStats":
        """The same counts, all loaded."""
        return FiringStats(self.fired, self.tokens, self.languages, self.experts, self.fires_by)

    def at(self, layer: Int64[Tensor, " n"], neuron: Int64[Tensor, " n"]) -> "FiringStats":
        """Only these neurons, by layer and index in the layer, as if they formed one layer."""
        fired = torch.empty(*self.tokens.shape, 1, len(layer), dtype=torch.int64)
        for shard, row in itertools.product(*map(range, self.tokens.shape)):
            fired[shard, row, 0] = self.counts.read(shard, row)[layer, neuron]
        experts = None if self.experts is None else self.experts.at(layer, neuron)
        return FiringStats(fired, self.tokens, self.languages, experts, self.fires_by)

    def merge(self, other: "FiringStats") -> "FiringStats":
        """The shards of both; the texts must differ, or tokens are counted twice."""
        shapes = self.counts.shape[2:], other.counts.shape[2:]
        check_alike(self, other, shapes[0] == shapes[1] and self.layout == other.layout)
        if self.fires_by != other.fires_by:
            raise ValueError(
                f"Neurons fire by their {self.fires_by} in one of these counts, and by their "
                f"{other.fires_by} in the other: collect both with the same fires_by."
            )
        return FiringStats(
            fired=torch.cat([self.fired, other.fired]),
            tokens=torch.cat([self.tokens, other.tokens]),
            languages=self.languages,
            experts=self.experts and other.experts and self.experts.merge(other.experts),
            fires_by=self.fires_by,
        )

    def _stored(self) -> dict[str, Any]:
        pairs = itertools.product(*map(range, self.tokens.shape))
        chunks = (self.counts.read(shard, row) for shard, row in pairs)
        fired = artifacts.ChunkedTensor(torch.int64, self.counts.shape, chunks)
        stored = {"fired": fired, "tokens": self.tokens, "languages": self.languages}
        if self.experts is not None:
            stored |= {"routed": self.experts.routed, "units": self.experts.layout.sizes}
        if self.fires_by != "gate":
            stored["fires_by"] = self.fires_by
        return stored

    @classmethod
    def _opened(cls, path: Path | str) -> artifacts.Artifact:
        large = Path(path).is_file() and Path(path).stat().st_size > IN_MEMORY
        lazy = ("fired",) if large else ()
        return artifacts.load(path, cls.kind, lazy=lazy, made_by=cls.made_by)

    @classmethod
    def _restored(cls, stored: artifacts.Artifact) -> "FiringStats":
        tokens, languages = stored.tensors["tokens"], tuple(stored.labels["languages"])
        fired = stored.lazy["fired"] if stored.lazy else stored.tensors["fired"]
        sizes = (*tokens.shape[:1], len(languages))
        types = [fired.dtype, tokens.dtype, *map(type, languages)]
        if (tuple(fired.shape[:2]), len(fired.shape)) != (sizes, 4) or types != [
            *(torch.int64, torch.int64),
            *(str for _ in languages),
        ]:
            raise ValueError(
                f"The file holds counts of shape {tuple(fired.shape)} in {fired.dtype}, tokens of "
                f"shape {tuple(tokens.shape)} in {tokens.dtype} and {len(languages)} languages, "
                "which do not fit together: make the file again."
            )
        experts = None
        if "units" in stored.labels:
            layout = UnitLayout.of(stored.labels["units"])
            experts = ExpertTokens(layout, stored.tensors["routed"], tokens)
        fires_by = stored.labels.get("fires_by", "gate")
        if isinstance(fired, Tensor):
            return FiringStats(fired, tokens, languages, experts, fires_by)
        return read_counts(fired.read, tokens, languages, fired.shape[2:], experts, fires_by)

    def _rows(self, languages: Sequence[str]) -> list[int]:
        if unknown := [code for code in languages if code not in self.languages]:
            raise KeyError(
                f"{unknown[0]!r} is not in these counts, which cover {', '.join(self.languages)}."
            )
        return [self.languages.index(code) for code in languages]


def read_counts(
    read: Callable[[int, int], Int64[Tensor, "layer neuron"]],
    tokens: Int64[Tensor, "shard language"],
    languages: tuple[str, ...],
    shape: Sequence[int],
    experts: ExpertTokens | None = None,
    fires_by: FiresBy = "gate",
) -> FiringStats:
    """Statistics from `read(shard, language)`, called now, or on demand if the counts exceed
    `IN_MEMORY`. `shape` is (layers, neurons per layer)."""
    n_layers, d_mlp = shape
    counts = OnDisk.of(read, tokens, (n_layers, d_mlp))
    n_bytes = math.prod(counts.shape) * torch.int64.itemsize
    counts = counts if n_bytes > IN_MEMORY else counts.whole()
    return FiringStats(counts, tokens, languages, experts, fires_by)


def _check_read(tokens: Int64[Tensor, "shard language"], languages: tuple[str, ...]) -> None:
    seen = tokens.sum(0).tolist()
    if silent := [code for code, n in zip(languages, seen, strict=True) if n == 0]:
        raise ValueError(f"No token was read in {', '.join(silent)}: rates are undefined.")


@dataclass(frozen=True, kw_only=True)
class ActivationMoments(Saved):
    """Mean and standard deviation of each neuron's act(gate) and of its output, per language.

    >>> moments.gate_mean.shape
    torch.Size([3, 6, 2048])
    >>> moments.save(folder / "moments.safetensors")
    >>> interp.ActivationMoments.load(folder / "moments.safetensors").tokens.tolist()
    [640, 640, 640]
    """

    kind = "ActivationMoments"
    made_by = _COLLECT

    sums: Float64[Tensor, "moment language layer neuron"]
    """Sums over tokens of act(gate), its square, the neuron's output, and its square."""

    tokens: Int64[Tensor, " language"]
    """Number of tokens read."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    seen: Int64[Tensor, "language layer neuron"] | None = None
    """In a mixture of experts, the tokens that each neuron saw; None: all. Those that saw fewer
    than 100 of some language have no moments (NaN)."""

    units: tuple[LayerUnits, ...] = ()
    """In a mixture of experts, the sizes of its layers; none: the model is dense."""

    @staticmethod
    def of(parts: Parts) -> "ActivationMoments":
        names = ("moments.sums", "moments.tokens", "moments.seen")
        sums, tokens, *seen = parts.summed(*names, axis=1)
        return ActivationMoments(
            sums=sums,
            tokens=tokens[0],
            languages=parts.languages,
            seen=rearrange(seen[0], "layer language neuron -> language layer neuron")
            if seen
            else None,
            units=() if parts.layout is None else parts.layout.layers,
        )

    def _stored(self) -> dict[str, Any]:
        kept = super()._stored().items()  # a dense model has neither tokens seen nor units
        return {name: value for name, value in kept if isinstance(value, Tensor) or value}

    @staticmethod
    def from_caches(
        caches: Shards,
        *,
        model: Neurons | BareModel,
        keep: Masks | None = None,
        special_tokens: bool = False,
    ) -> "ActivationMoments":
        """Moments from caches with `hook_pre` and `hook_post` of every MLP; see
        `FiringStats.from_caches`. The activation function is that of `model`.

        >>> tokens = {code: rows.ids.long() for code, rows in text.rows.items()}
        >>> caches = {code: model.run_with_cache(ids)[1] for code, ids in tokens.items()}
        >>> found = interp.ActivationMoments.from_caches(caches, model=model)
        >>> bool(found.gate_mean.allclose(moments.gate_mean, atol=1e-6))
        True
        """
        parts = parts_of(caches, MomentsCounter, keep, special_tokens, model)
        return ActivationMoments.of(parts)

    def merge(self, other: "ActivationMoments") -> "ActivationMoments":
        """Of both texts, which must differ, or tokens are counted twice."""
        alike = (self.seen is None) == (other.seen is None) and self.units == other.units
        check_alike(self, other, alike)
        names = ("sums", "tokens") if self.seen is None else ("sums", "tokens", "seen")
        return added(self, other, *names)

    def __repr__(self) -> str:
        shape, tokens = self.sums.shape[2:], self.tokens.tolist()
        return f"ActivationMoments({of_neurons(self.languages, shape, tokens)})"

    def _cells(self) -> Cells:
        values = self.output_mean.abs().nanmean(dim=-1)
        note = "mean of |mean output|, over the neurons of a layer"
        return layer_cells([[code] for code in self.languages], values.tolist(), note)

    @property
    def gate_mean(self) -> Float64[Tensor, "language layer neuron"]:
        """Mean of act(gate): what a gated neuron's linear branch is multiplied by."""
        return self._mean(0)

    @property
    def gate_deviation(self) -> Float64[Tensor, "language layer neuron"]:
        """Standard deviation of act(gate) over tokens; below 0.1 % of the mean it is rounding."""
        return self._deviation(0)

    @property
    def output_mean(self) -> Float64[Tensor, "language layer neuron"]:
        """Mean of the neuron's output: act(gate), times the linear branch if there is one."""
        return self._mean(2)

    @property
    def output_deviation(self) -> Float64[Tensor, "language layer neuron"]:
        """Standard deviation of the output over tokens; below 0.1 % of the mean it is rounding."""
        return self._deviation(2)

    def _mean(self, moment: int) -> Tensor:
        if self.seen is None:
            return self.sums[moment] / rearrange(self.tokens, "language -> language 1 1")
        enough = reduce(self.seen >= LEAST_TOKENS, "language layer neuron -> layer neuron", "all")
        return (self.sums[moment] / self.seen).masked_fill(~enough, torch.nan)

    def _deviation(self, moment: int) -> Tensor:
        variance = self._mean(moment + 1) - self._mean(moment) ** 2
        return variance.clamp_min(0).sqrt()

"""How a neuron's act(gate) is distributed in each language: histograms on a grid of its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float32, Float64, Int32, Int64
from torch import Tensor

from interp.counting.batch import VALUES_AT_ONCE, Batch, Neurons, zeros
from interp.counting.caches import Masks, Shards, parts_of, replay_all
from interp.counting.counters import sums_and_squares
from interp.counting.parts import Parts, added
from interp.models.bare_model import BareModel, wrapped
from interp.results.display import Cells, layer_cells, listed, ranged
from interp.results.saved import Saved
from interp.results.words import Observed

BINS = 400
"""Bins of equal width between two open ones."""

SAMPLE = 4096
"""Tokens of every language that say where a neuron's bins are."""

_REACH = 3.0
"""Standard deviations from the mean to either end of the bins."""

_FLAT, _HALF = 1e-3, 0.05
"""Bins over less than the first reach the second to either side of the mean instead."""

_ON_A_GPU = 1 << 21
"""Values binned at a time there."""

WORKING = 28 * VALUES_AT_ONCE
"""Bytes that binning takes: values as floats, as bins, as bins of each neuron, and as ones."""

_MOST_TOKENS = torch.iinfo(torch.int32).max


@dataclass(frozen=True, kw_only=True)
class Grid(Saved):
    """Where the bins of each neuron are, from a first sample of the text.

    From the mean of act(gate) minus three standard deviations, or its least value if that is
    greater, to the mean plus three. The code of DLN (EMNLP 2026) takes mean and deviation from all
    text, in a pass of its own, and -0.4 in place of the least value, which suits SiLU.
    """

    kind = "Grid"
    made_by = "interp.collect with keep=interp.Keep(histograms=True)"

    low: Float32[Tensor, "layer neuron"]
    """The lower end of the first bin that is not open."""

    width: Float32[Tensor, "layer neuron"]
    """Of a bin."""

    def is_that_of(self, other: "Grid") -> bool:
        """Whether all bins are the same."""
        return self.low.equal(other.low) and self.width.equal(other.width)

    def __repr__(self) -> str:
        n_layers, d_mlp = self.low.shape
        return f"Grid({n_layers} layers of {d_mlp:,} neurons in {BINS} bins and two open ones)"

    def _cells(self) -> Cells:
        ends = {"from": self.low, "to": self.low + BINS * self.width}
        means = [reduce(end, "layer neuron -> layer", "mean").tolist() for end in ends.values()]
        return layer_cells([[name] for name in ends], means, "mean over the neurons of a layer")


class RangeCounter:
    """Mean, standard deviation and least value of act(gate), of all text at once."""

    kinds: tuple[Observed, ...] = ("act",)

    def __init__(self, model: Neurons) -> None:
        self._model = model
        shape = (model.n_layers, model.d_mlp)
        self._sums = torch.zeros(2, *shape, dtype=torch.float64)
        self._least = torch.full(shape, torch.inf)
        self._tokens = 0

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        for rows in batch.slices(values):
            if len(rows):
                act = rows.float()
                self._sums[:, layer] += torch.stack(sums_and_squares(act)).cpu()
                least = reduce(act, "token neuron -> neuron", "min").cpu()
                self._least[layer] = self._least[layer].minimum(least)
            self._tokens += len(rows) if layer == 0 else 0

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the grid is of all text."""
        return {}

    def grid(self) -> Grid:
        """The bins for what was counted."""
        return grid_of(self._sums, self._least, self._tokens)


def grid_of(
    sums: Float64[Tensor, "moment layer neuron"],
    least: Float32[Tensor, "layer neuron"],
    tokens: int,
) -> Grid:
    """The bins for values with these sums, sums of squares, and least values."""
    if tokens == 0:
        raise ValueError("No token of the sample counts: histograms need text to place their bins.")
    mean, square = sums / tokens
    reach = _REACH * (square - mean**2).clamp_min(0).sqrt()
    low, high = torch.maximum(mean - reach, least.double()), mean + reach
    flat = high - low < _FLAT
    low, high = torch.where(flat, mean - _HALF, low), torch.where(flat, mean + _HALF, high)
    return Grid(low=low.float(), width=((high - low) / BINS).float())


class HistogramsCounter:
    """Counts how many values of act(gate) fall into each bin of each neuron."""

    kinds: tuple[Observed, ...] = ("act",)

    def __init__(self, model: Neurons, grid: Grid) -> None:
        if grid.low.shape != (model.n_layers, model.d_mlp):
            raise ValueError(
                f"The grid is of {tuple(grid.low.shape)} layers and neurons, but {model.name} has "
                f"{(model.n_layers, model.d_mlp)}: use the grid of this model."
            )
        self._model, self._grid = model, grid
        self._counts = zeros(model, model.d_mlp, BINS + 2, dtype=torch.int32)
        self._tokens = 0

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        ends = (self._grid.low, self._grid.width)
        low, width = (rearrange(end[layer].to(values.device), "neuron -> neuron 1") for end in ends)
        for some in batch.slices(values, _ON_A_GPU):
            activated = rearrange(some, "token neuron -> neuron token").contiguous()
            bins = ((activated.float() - low) / width).floor_() + 1
            bins = bins.clamp_(0, BINS + 1).long()
            ones = torch.ones_like(bins, dtype=torch.int32)
            self._counts[layer].scatter_add_(1, bins, ones)
            self._tokens += len(some) if layer == 0 else 0

    def tensors(self) -> dict[str, Tensor]:
        return {
            "histograms.counts": torch.stack([counts.cpu() for counts in self._counts]),
            "histograms.low": self._grid.low.clone(),
            "histograms.width": self._grid.width.clone(),
            "histograms.tokens": torch.tensor([self._tokens]),
        }


@dataclass(frozen=True, kw_only=True)
class Histograms(Saved):
    """Histograms of each neuron's act(gate), per language, on a grid that languages share.

    Each neuron has 400 bins of its own width and place, after a first bin for all that is below
    them and before a last one for all that is above. Counts have 32 bits, so a language may have up
    to 2³¹ - 1 tokens.

    >>> keep = interp.Keep(histograms=True)
    >>> german = text.languages_only(["de"])
    >>> histograms = interp.collect(model, german, keep=keep, progress=False).histograms
    >>> histograms.counts.shape
    torch.Size([1, 6, 2048, 402])
    >>> bool((histograms.counts.sum(-1) == 640).all())
    True
    """

    kind = "Histograms"
    made_by = "interp.collect with keep=interp.Keep(histograms=True), or `interp collect`"

    counts: Int32[Tensor, "language layer neuron bin"]
    """Tokens whose act(gate) is in the bin."""

    low: Float32[Tensor, "layer neuron"]
    """The lower end of the second bin; the first is open below."""

    width: Float32[Tensor, "layer neuron"]
    """Width of a bin."""

    tokens: Int64[Tensor, " language"]
    """Number of tokens read."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    def __post_init__(self) -> None:
        if (n_tokens := int(self.tokens.max())) > _MOST_TOKENS:
            raise ValueError(
                f"A language has {n_tokens:,} tokens, and histograms hold at most "
                f"{_MOST_TOKENS:,}: read less text, or leave out histograms."
            )

    @staticmethod
    def of(parts: Parts) -> "Histograms":
        grids: list[Grid] = []
        on_one_grid = replace(parts, tensors=_on_one_grid(parts, grids))
        counts, tokens = on_one_grid.summed("histograms.counts", "histograms.tokens")
        return Histograms(
            counts=counts,
            low=grids[0].low,
            width=grids[0].width,
            tokens=tokens[:, 0],
            languages=parts.languages,
        )

    @staticmethod
    def from_caches(
        caches: Shards,
        *,
        model: Neurons | BareModel,
        keep: Masks | None = None,
        special_tokens: bool = False,
        grid: Grid | None = None,
    ) -> "Histograms":
        """From caches with `hook_pre` of every MLP; see `FiringStats.from_caches`. The activation
        function is that of `model`. The bins are those of `grid`, or from all the caches.

        >>> tokens = {code: rows.ids.long() for code, rows in text.rows.items()}
        >>> caches = {code: model.run_with_cache(ids)[1] for code, ids in tokens.items()}
        >>> interp.counting.Histograms.from_caches(caches, model=model)
        Histograms(en, de, zh; 6 layers of 2,048 neurons in 402 bins; 640 tokens of each language)
        """
        known = model if isinstance(model, Neurons) else wrapped(model)
        if grid is None:
            counter = RangeCounter(known)
            everything = {"keep": keep, "special_tokens": special_tokens, "model": known}
            replay_all(caches, counter.kinds, lambda *_: counter, **everything)
            grid = counter.grid()
        parts = parts_of(caches, HistogramsCounter, keep, special_tokens, known, grid=grid)
        return Histograms.of(parts)

    def merge(self, other: "Histograms") -> "Histograms":
        """Of both texts, which must differ, or tokens are counted twice; on the same bins."""
        if not self.grid.is_that_of(other.grid):
            raise ValueError(
                "The histograms have different bins, so they cannot be added: count both on one "
                "grid, by copying grid.safetensors into the second folder before its run."
            )
        return added(self, other, "counts", "tokens")

    def __repr__(self) -> str:
        n_layers, d_mlp, n_bins = self.counts.shape[1:]
        return (
            f"Histograms({listed(self.languages)}; {n_layers} layers of {d_mlp:,} neurons in "
            f"{n_bins} bins; {ranged(self.tokens.tolist())} tokens of each language)"
        )

    def _cells(self) -> Cells:
        above = reduce(
            self.counts[..., -1].double(), "language layer neuron -> language layer", "mean"
        )
        shares = above / rearrange(self.tokens, "language -> language 1")
        note = "share of tokens in the last, open bin, over the neurons of a layer"
        return layer_cells([[code] for code in self.languages], shares.tolist(), note)

    def share(self, layer: int) -> Float64[Tensor, "language neuron bin"]:
        """Share of a language's tokens in each bin, for the neurons of one layer."""
        return self.counts[:, layer].double() / rearrange(self.tokens, "language -> language 1 1")

    @property
    def grid(self) -> Grid:
        """Where the bins are, to count other text in the same."""
        return Grid(low=self.low, width=self.width)


def _on_one_grid(
    parts: Parts, grids: list[Grid]
) -> Iterator[tuple[int, int, Mapping[str, Tensor]]]:
    """The tensors, once it is certain that their grid is that of the first, which is noted."""
    for shard, row, tensors in parts.tensors:
        grid = Grid(low=tensors["histograms.low"], width=tensors["histograms.width"])
        if not grids:
            grids.append(grid)
        if not grid.is_that_of(grids[0]):
            raise ValueError(
                f"Shard {shard} was counted in other bins than the first, so they cannot be "
                "added: count all again, with one grid."
            )
        yield shard, row, tensors

"""What a neuron writes where its gate is below zero."""

from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from interp.counting.batch import Batch, Neurons, zeros
from interp.counting.bits import as_bytes, count_bytes, masked, where_negative
from interp.counting.caches import Masks, Shards, parts_of
from interp.counting.counters import sums_and_squares
from interp.counting.held import Held
from interp.counting.parts import Parts, added
from interp.models.bare_model import BareModel
from interp.results.display import Cells, layer_cells, of_neurons
from interp.results.saved import Saved
from interp.results.words import Observed


@dataclass(frozen=True, kw_only=True)
class NegativeSide(Saved):
    """How often a neuron's gate is below zero, and the moments of its output there.

    SiLU and GELU let some of a negative gate through, and what a neuron writes there can matter,
    for syntax above all (Kong et al., 2025, arXiv 2509.24198).

    >>> keep = interp.Keep(negative_side=True)
    >>> run = interp.collect(model, text, keep=keep, progress=False)
    >>> run.negative_side.share.shape
    torch.Size([3, 6, 2048])
    >>> bool((run.negative_side.share + run.firing.rate <= 1).all())
    True
    """

    kind = "NegativeSide"
    made_by = "interp.collect with keep=interp.Keep(negative_side=True), or `interp collect`"

    below: Int64[Tensor, "language layer neuron"]
    """Tokens on which the gate is below zero."""

    output: Float64[Tensor, "language layer neuron"]
    """Sum of the neuron's output over these tokens."""

    squares: Float64[Tensor, "language layer neuron"]
    """Sum of its square over these tokens."""

    tokens: Int64[Tensor, " language"]
    """Number of tokens read, on whichever side."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    @staticmethod
    def of(parts: Parts) -> "NegativeSide":
        names = [f"negative_side.{name}" for name in ("below", "output", "squares", "tokens")]
        below, output, squares, tokens = parts.summed(*names)
        sums = {"below": below, "output": output, "squares": squares, "tokens": tokens[:, 0]}
        return NegativeSide(**sums, languages=parts.languages)

    @staticmethod
    def from_caches(
        caches: Shards,
        *,
        keep: Masks | None = None,
        special_tokens: bool = False,
        model: Neurons | BareModel | None = None,
    ) -> "NegativeSide":
        """From caches with `hook_pre` and `hook_post` of every MLP; see `FiringStats.from_caches`.

        >>> tokens = {code: rows.ids.long() for code, rows in text.rows.items()}
        >>> caches = {code: model.run_with_cache(ids)[1] for code, ids in tokens.items()}
        >>> interp.counting.NegativeSide.from_caches(caches)
        NegativeSide(en, de, zh; 6 layers of 2,048 neurons; 640 tokens of each language)
        """
        parts = parts_of(caches, NegativeSideCounter, keep, special_tokens, model)
        return NegativeSide.of(parts)

    def merge(self, other: "NegativeSide") -> "NegativeSide":
        """Of both texts, which must differ, or tokens are counted twice."""
        return added(self, other, "below", "output", "squares", "tokens")

    def __repr__(self) -> str:
        shape, tokens = self.below.shape[1:], self.tokens.tolist()
        return f"NegativeSide({of_neurons(self.languages, shape, tokens)})"

    def _cells(self) -> Cells:
        values = reduce(self.share, "language layer neuron -> language layer", "mean")
        note = "share of tokens on which the gate is below zero, over the neurons of a layer"
        return layer_cells([[code] for code in self.languages], values.tolist(), note)

    @property
    def share(self) -> Float64[Tensor, "language layer neuron"]:
        """Share of a language's tokens on which the gate is below zero."""
        return self.below.double() / rearrange(self.tokens, "language -> language 1 1")

    @property
    def mean(self) -> Float64[Tensor, "language layer neuron"]:
        """Mean output where the gate is below zero. NaN: it never is."""
        return self.output / self.below

    @property
    def mean_square(self) -> Float64[Tensor, "language layer neuron"]:
        """Mean square of the output where the gate is below zero. NaN: it never is."""
        return self.squares / self.below

    @property
    def size(self) -> Float64[Tensor, "language layer neuron"]:
        """Root mean square, over all tokens of a language, of what is written below zero."""
        return (self.squares / rearrange(self.tokens, "language -> language 1 1")).sqrt()


class NegativeSideCounter:
    """Sums the output, and its square, over the tokens on which the gate is below zero."""

    kinds: tuple[Observed, ...] = ("pre", "post")

    def __init__(self, model: Neurons) -> None:
        self._held = Held()
        self._below = zeros(model, model.d_mlp)
        self._sums = zeros(model, 2, model.d_mlp, dtype=torch.float64)
        self._tokens = 0

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        if kind == "pre":
            self._held.hold(kind, layer, as_bytes(where_negative, values), batch)
            return
        masks = self._held.take(kind, layer, batch)
        assert masks is not None, "a neuron's output is computed from its gate"
        for below, output in zip(batch.slices(masks), batch.slices(values), strict=True):
            self._below[layer] += count_bytes(below & 1)
            self._sums[layer] += torch.stack(sums_and_squares(masked(output, below).float()))
            self._tokens += len(output) if layer == 0 else 0

    def tensors(self) -> dict[str, Tensor]:
        output, squares = torch.stack([sums.cpu() for sums in self._sums], dim=1)
        return {
            "negative_side.below": torch.stack([counts.cpu() for counts in self._below]),
            "negative_side.output": output.clone(),
            "negative_side.squares": squares.clone(),
            "negative_side.tokens": torch.tensor([self._tokens]),
        }

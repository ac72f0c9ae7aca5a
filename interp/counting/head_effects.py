"""What each attention head does to the loss of a text, to first order."""

from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from interp.counting.batch import Batch, Neurons, zeros
from interp.counting.caches import Masks, Shards, parts_of
from interp.counting.loss_effects import effects_in
from interp.counting.parts import Parts, added
from interp.models.bare_model import BareModel
from interp.results.display import Cells, counted, layer_cells, listed, ranged
from interp.results.saved import Saved
from interp.results.words import Observed


@dataclass(frozen=True, kw_only=True)
class HeadEffects(Saved):
    """How the loss of each row of text depends on a factor of each head's output.

    The factor is one, and multiplies the head's output at every position. The derivative is, to
    first order, how much the row's loss would fall if the head were off; negative: the head helps.

    >>> hooked = interp.load("babel", attention="hooked", dtype=torch.float32)
    >>> keep, german = interp.Keep(head_effects=True), text.languages_only(["de"])
    >>> effects = interp.collect(hooked, german, keep=keep, progress=False).head_effects
    >>> effects
    HeadEffects(de; 6 layers of 4 heads; 10 rows of each language)
    >>> bool((effects.share_helped <= 1).all())
    True
    """

    kind = "HeadEffects"
    made_by = "interp.collect with keep=interp.Keep(head_effects=True), or `interp collect`"

    absolute: Float64[Tensor, "language layer head"]
    """Sum over rows of the absolute derivative of the row's loss, in nats per token."""

    helped: Int64[Tensor, "language layer head"]
    """Rows in which the derivative is negative."""

    rows: Int64[Tensor, " language"]
    """Number of rows read, of those with tokens that count."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    @staticmethod
    def of(parts: Parts) -> "HeadEffects":
        names = [f"head_effects.{name}" for name in ("absolute", "helped", "rows")]
        absolute, helped, rows = parts.summed(*names)
        sums = {"absolute": absolute, "helped": helped, "rows": rows[:, 0]}
        return HeadEffects(**sums, languages=parts.languages)

    @staticmethod
    def from_caches(
        caches: Shards,
        *,
        keep: Masks | None = None,
        special_tokens: bool = False,
        model: Neurons | BareModel | None = None,
    ) -> "HeadEffects":
        """From caches with `hook_z` of every layer and its gradient, made with `incl_bwd=True`; see
        `FiringStats.from_caches`. The derivatives are of the number that was followed back, which
        is for TransformerLens's loss the mean over all tokens of all rows of the cache.

        >>> exact = interp.load("babel", attention="hooked", dtype=torch.float32)
        >>> ids, options = text.rows["de"].ids.long(), {"return_type": "loss", "incl_bwd": True}
        >>> cache = exact.run_with_cache(ids, **options)[1]
        >>> interp.counting.HeadEffects.from_caches({"de": cache})
        HeadEffects(de; 6 layers of 4 heads; 10 rows of each language)
        """
        parts = parts_of(
            effects_in(caches), HeadEffectsCounter, keep, special_tokens, model, per_token=False
        )
        return HeadEffects.of(parts)

    def merge(self, other: "HeadEffects") -> "HeadEffects":
        """Of both texts, which must differ, or rows are counted twice."""
        return added(self, other, "absolute", "helped", "rows")

    def __repr__(self) -> str:
        n_layers, n_heads = self.absolute.shape[1:]
        return (
            f"HeadEffects({listed(self.languages)}; {n_layers} layers of "
            f"{counted(n_heads, 'head')}; {ranged(self.rows.tolist())} rows of each language)"
        )

    def _cells(self) -> Cells:
        values = reduce(self.size, "language layer head -> language layer", "mean")
        note = "mean |derivative of the loss by a head's factor|, over the heads of a layer"
        return layer_cells([[code] for code in self.languages], values.tolist(), note)

    @property
    def size(self) -> Float64[Tensor, "language layer head"]:
        """Mean absolute derivative over a language's rows, in nats per token."""
        return self.absolute / rearrange(self.rows, "language -> language 1 1")

    @property
    def share_helped(self) -> Float64[Tensor, "language layer head"]:
        """Share of a language's rows in which the head helps."""
        return self.helped / rearrange(self.rows.double(), "language -> language 1 1")


class HeadEffectsCounter:
    """Adds up the derivatives of rows; the values it gets are gradient times output at "z".

    `per_token`: they are of a sum over the tokens that count, and are divided by their number.
    """

    kinds: tuple[Observed, ...] = ("z",)

    def __init__(self, model: Neurons, per_token: bool = True) -> None:
        self._n_heads, self._per_token = model.width(0, "head"), per_token
        self._absolute = zeros(model, self._n_heads, dtype=torch.float64)
        self._helped = zeros(model, self._n_heads)
        self._rows = 0

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None:
        # A head's factor acts at every position, also where a token of beginning does not count.
        position = torch.arange(values.shape[1], device=values.device)
        padding = position >= rearrange(batch.length, "batch -> batch 1")
        values = values.double().masked_fill(rearrange(padding, "batch pos -> batch pos 1"), 0)
        by_head = "batch pos (head unit) -> batch head"
        effects = reduce(values, by_head, "sum", head=self._n_heads)
        n_counted = reduce(batch.keep[:, 1:].long(), "batch pos -> batch", "sum")
        if self._per_token:
            effects /= rearrange(n_counted, "batch -> batch 1").clamp_min(1)
        effects = effects[n_counted > 0]
        self._absolute[layer] += reduce(effects.abs(), "batch head -> head", "sum")
        self._helped[layer] += reduce((effects < 0).long(), "batch head -> head", "sum")
        if layer == 0:
            self._rows += len(effects)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "head_effects.absolute": torch.stack([sums.cpu() for sums in self._absolute]),
            "head_effects.helped": torch.stack([counts.cpu() for counts in self._helped]),
            "head_effects.rows": torch.tensor([self._rows]),
        }

"""Mean and standard deviation of units other than neurons, per language."""

from dataclasses import dataclass

from einops import rearrange, reduce
from jaxtyping import Float64, Int64
from torch import Tensor

from interp.counting.batch import Neurons
from interp.counting.caches import Masks, Shards, parts_of
from interp.counting.counters import UnitMomentsCounter
from interp.counting.parts import Parts, added
from interp.models.bare_model import BareModel
from interp.models.sites import hooked_at
from interp.results.display import Cells, layer_cells, of_neurons
from interp.results.saved import Saved
from interp.results.words import UnitKind


@dataclass(frozen=True, kw_only=True)
class UnitMoments(Saved):
    """Mean and standard deviation, per language, of every dimension of the residual stream after
    each layer, or of the norm of every attention head's output.

    The norm is that of the head's output at `hook_z`, before attention's output projection.

    >>> hooked = interp.load("babel", attention="hooked", dtype=torch.float32)
    >>> run = interp.collect(hooked, text, keep=interp.Keep(heads=True), progress=False)
    >>> run.heads
    UnitMoments(en, de, zh; 6 layers of 4 heads; 640 tokens of each language)
    >>> run = interp.collect(model, text, keep=interp.Keep(dimensions=True), progress=False)
    >>> run.dimensions.mean.shape
    torch.Size([3, 6, 256])
    """

    kind = "UnitMoments"
    made_by = "interp.collect with keep=interp.Keep(heads=True), or `interp collect --units`"

    sums: Float64[Tensor, "moment language layer unit"]
    """Sums over tokens of the value or norm, and of its square."""

    tokens: Int64[Tensor, " language"]
    """Number of tokens read."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    units: str
    """What they are of: "head", or "resid_post", the residual stream after a layer."""

    @staticmethod
    def of(parts: Parts, units: UnitKind) -> "UnitMoments":
        sums, tokens = parts.summed(f"{units}.sums", f"{units}.tokens", axis=1)
        return UnitMoments(sums=sums, tokens=tokens[0], languages=parts.languages, units=units)

    @staticmethod
    def from_caches(
        caches: Shards,
        units: UnitKind = "head",
        *,
        keep: Masks | None = None,
        special_tokens: bool = False,
        model: Neurons | BareModel | None = None,
    ) -> "UnitMoments":
        """From caches with `hook_z` or `hook_resid_post` of every layer; see
        `FiringStats.from_caches`.

        >>> tokens = {code: rows.ids.long() for code, rows in text.rows.items()}
        >>> hooked = interp.load("babel", attention="hooked", dtype=torch.float32)
        >>> caches = {code: hooked.run_with_cache(ids)[1] for code, ids in tokens.items()}
        >>> interp.counting.UnitMoments.from_caches(caches).mean.shape
        torch.Size([3, 6, 4])
        """
        parts = parts_of(
            caches,
            UnitMomentsCounter,
            keep,
            special_tokens,
            model,
            kinds=(hooked_at(units),),
            kind=units,
        )
        return UnitMoments.of(parts, units)

    def merge(self, other: "UnitMoments") -> "UnitMoments":
        """Of both texts, which must differ, or tokens are counted twice."""
        return added(self, other, "sums", "tokens")

    def __repr__(self) -> str:
        shape, tokens = self.sums.shape[2:], self.tokens.tolist()
        return f"UnitMoments({of_neurons(self.languages, shape, tokens, self._noun)})"

    def _cells(self) -> Cells:
        values = reduce(self.mean.abs(), "language layer unit -> language layer", "mean")
        note = f"mean of |mean|, over the {self._noun} of a layer"
        return layer_cells([[code] for code in self.languages], values.tolist(), note)

    @property
    def _noun(self) -> str:
        return "heads" if self.units == "head" else "dimensions"

    @property
    def mean(self) -> Float64[Tensor, "language layer unit"]:
        """Mean over a language's tokens."""
        return self.sums[0] / rearrange(self.tokens, "language -> language 1 1")

    @property
    def deviation(self) -> Float64[Tensor, "language layer unit"]:
        """Standard deviation over tokens; below 0.1 % of the mean it is rounding."""
        square = self.sums[1] / rearrange(self.tokens, "language -> language 1 1")
        return (square - self.mean**2).clamp_min(0).sqrt()

"""What each neuron's output does to the loss of a text, to first order."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from interp.counting.batch import Batch, Neurons, Observer, by_unit, zeros
from interp.counting.cached import Cache, Gradients
from interp.counting.caches import Masks, Shards, listed_caches, parts_of
from interp.counting.observe import attention_mask
from interp.counting.parts import Parts, added
from interp.models.bare_model import BareModel
from interp.models.neuron_model import NeuronModel
from interp.models.sites import sites_of
from interp.results.display import Cells, layer_cells, of_neurons
from interp.results.saved import Saved
from interp.results.words import Kind, Observed

AT_ONCE = 512
"""Tokens of a backward pass, unless a row is longer: their logits are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class LossEffects(Saved):
    """Gradient times activation of the loss, at every token: what a neuron does for a language.

    At one token it is, to first order, how much the loss of all tokens of the row would fall if the
    neuron were off there; negative where the neuron helps. Relevance finds other neurons than
    activity does (CRANE, arXiv 2601.04664, which propagates relevance by rules instead).

    >>> keep = interp.Keep(loss_effects=True)
    >>> german = text.languages_only(["de"])
    >>> effects = interp.collect(model, german, keep=keep, progress=False).loss_effects
    >>> effects.size.shape
    torch.Size([1, 6, 2048])
    >>> bool((effects.mean.abs() <= effects.size).all())
    True
    """

    kind = "LossEffects"
    made_by = "interp.collect with keep=interp.Keep(loss_effects=True), or `interp collect`"

    total: Float64[Tensor, "language layer neuron"]
    """Sum over tokens of gradient times output, in nats."""

    absolute: Float64[Tensor, "language layer neuron"]
    """Sum of its absolute values."""

    tokens: Int64[Tensor, " language"]
    """Number of tokens read."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    @staticmethod
    def of(parts: Parts) -> "LossEffects":
        names = [f"loss_effects.{name}" for name in ("total", "absolute", "tokens")]
        total, absolute, tokens = parts.summed(*names)
        sums = {"total": total, "absolute": absolute, "tokens": tokens[:, 0]}
        return LossEffects(**sums, languages=parts.languages)

    @staticmethod
    def from_caches(
        caches: Shards,
        *,
        keep: Masks | None = None,
        special_tokens: bool = False,
        model: Neurons | BareModel | None = None,
    ) -> "LossEffects":
        """From caches with `hook_post` of every MLP and its gradient, made with `incl_bwd=True`;
        see `FiringStats.from_caches`. The effects are on the number that was followed back: the
        loss that TransformerLens returns is a mean over tokens, not a sum.

        >>> ids = {code: rows.ids.long() for code, rows in text.rows.items()}
        >>> options = {"return_type": "loss", "incl_bwd": True}
        >>> exact = interp.load("babel", dtype=torch.float32)
        >>> caches = {code: exact.run_with_cache(ids[code], **options)[1] for code in ids}
        >>> interp.counting.LossEffects.from_caches(caches)
        LossEffects(en, de, zh; 6 layers of 2,048 neurons; 640 tokens of each language)
        """
        parts = parts_of(effects_in(caches), LossEffectsCounter, keep, special_tokens, model)
        return LossEffects.of(parts)

    def merge(self, other: "LossEffects") -> "LossEffects":
        """Of both texts, which must differ, or tokens are counted twice."""
        return added(self, other, "total", "absolute", "tokens")

    def __repr__(self) -> str:
        shape, tokens = self.total.shape[1:], self.tokens.tolist()
        return f"LossEffects({of_neurons(self.languages, shape, tokens)})"

    def _cells(self) -> Cells:
        values = reduce(self.size, "language layer neuron -> language layer", "mean")
        note = "mean |gradient · output| in nats per token, over the neurons of a layer"
        return layer_cells([[code] for code in self.languages], values.tolist(), note)

    @property
    def mean(self) -> Float64[Tensor, "language layer neuron"]:
        """Mean over a language's tokens, in nats; negative: the neuron helps."""
        return self.total / rearrange(self.tokens, "language -> language 1 1")

    @property
    def size(self) -> Float64[Tensor, "language layer neuron"]:
        """Mean of the absolute value over a language's tokens, in nats."""
        return self.absolute / rearrange(self.tokens, "language -> language 1 1")


class LossEffectsCounter:
    """Sums effects, and their absolute values; the values it gets are gradient times output."""

    kinds: tuple[Observed, ...] = ("post",)

    def __init__(self, model: Neurons) -> None:
        self._sums = zeros(model, 2, model.d_mlp, dtype=torch.float64)
        self._tokens = 0

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        for effects in batch.slices(values):
            self._sums[layer][0] += reduce(effects, "token neuron -> neuron", "sum")
            self._sums[layer][1] += reduce(effects.abs(), "token neuron -> neuron", "sum")
            self._tokens += len(effects) if layer == 0 else 0

    def tensors(self) -> dict[str, Tensor]:
        total, absolute = torch.stack([sums.cpu() for sums in self._sums], dim=1)
        return {
            "loss_effects.total": total.clone(),
            "loss_effects.absolute": absolute.clone(),
            "loss_effects.tokens": torch.tensor([self._tokens]),
        }


def count_loss_effects(model: NeuronModel, batch: Batch, counters: Sequence[Observer]) -> None:
    """Pass the effects on the loss of a batch to counters: one pass forward and one backward.

    The loss is the sum of nats over the tokens that count. Rows are read some at a time.
    """
    if len(batch.rows) > 1 and batch.ids.numel() > AT_ONCE:
        for half in batch.halves():
            count_loss_effects(model, half, counters)
        return
    batch = batch.to(model.device)
    kinds = sites_of(kind for counter in counters for kind in counter.kinds)
    sites = list(itertools.product(kinds, range(model.n_layers)))
    outputs: dict[tuple[Kind, int], Tensor] = {}
    nudges: dict[tuple[Kind, int], Tensor] = {}

    def nudge_at(site: tuple[Kind, int]) -> Callable[[Tensor, Any], Tensor]:
        def nudged(values: Tensor, hook: Any) -> Tensor:
            outputs[site] = values.detach()
            nudges[site] = torch.zeros_like(values, requires_grad=True)
            return values + nudges[site]

        return nudged

    hooks = [(model.site(layer, kind), nudge_at((kind, layer))) for kind, layer in sites]
    with torch.inference_mode(False), torch.enable_grad(), model.hooks(hooks):
        mask = None if batch.whole else attention_mask(batch)
        nats = model.losses(batch.ids, mask)
        counted = nats[batch.keep[:, 1:]].sum()
        gradients: Iterable[Tensor] = [torch.zeros_like(nudges[site]) for site in sites]
        if counted.requires_grad:
            gradients = torch.autograd.grad(counted, [nudges[site] for site in sites])
    for (kind, layer), gradient in zip(sites, gradients, strict=True):
        if not gradient.sum(dtype=torch.float32).isfinite():
            raise ValueError(
                f"The loss of {model.name} has a NaN or infinite gradient in layer {layer} ({kind})"
                f" on the text {batch.sources[0]}, or on one of the {len(batch.rows) - 1} rows read"
                " with it: load the model with dtype=torch.float32 or bfloat16."
            )
        effects = by_unit(outputs[kind, layer].float() * gradient.float())
        for counter in counters:
            if kind in counter.kinds:
                counter.update(kind, layer, effects, batch.to(effects.device))


def effects_in(caches: Shards) -> Shards:
    """The same caches, which hold gradients, with gradient times activation at every site."""
    return {code: [_Effects(one) for one in listed_caches(some)] for code, some in caches.items()}


class _Effects:
    """A backward cache's gradients times its activations, under the names of the latter."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._gradients = cache, Gradients(cache)
        self.model = getattr(cache, "model", None)  # as an ActivationCache has it

    def keys(self) -> list[str]:
        return self._gradients.keys()

    def __getitem__(self, name: str, /) -> Tensor:
        return self._cache[name].float() * self._gradients[name].float()

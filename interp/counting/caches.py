"""Statistics from caches: activations that are in memory already, counted as `collect` counts them.

A cache is what `run_with_cache` of TransformerLens returns, or any mapping from hook names to
tensors. It is read one layer at a time and never copied, by the counters that `collect` uses.

A cache does not say which of its positions are text. `keep` says it: an attention mask, in which 1
(or True) counts. Without it every position counts, padding too, which cannot be told from text. The
token that a tokenizer puts before a text is noticed, since then all rows begin alike: that is
refused, unless `special_tokens=True`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor

from interp.counting.batch import Batch, Neurons, Observer
from interp.counting.bits import unpack_bits
from interp.counting.cached import Cache, Cached, Gradients, Mask
from interp.counting.counters import FiringCounter, SignsCounter, firing_kind
from interp.counting.parts import Parts
from interp.models.bare_model import BareModel, wrapped
from interp.models.sites import hooked_at, sites_of
from interp.results.display import listed
from interp.results.words import FiresBy, Kind, Observed

_CLOSE, _MOST = 0.05, 0.9
"""Rows begin with the same token if most of their units differ by less than 5 %, as the same token
in different batches does in bfloat16; of different tokens, few units are as close."""

Shards = Mapping[str, Cache | Sequence[Cache]]
"""By language, one cache or several."""

_OfAnySize = Bool[Tensor, "_ _"] | Int[Tensor, "_ _"]
Masks = Mapping[str, _OfAnySize | Sequence[_OfAnySize]]
"""A mask for each cache in `Shards`, whose sizes may differ."""


class Counter(Observer, Protocol):
    """An observer with results, such as those in `interp.counting.counters`."""

    def tensors(self) -> dict[str, Tensor]: ...


MakeCounter = Callable[[Neurons, int], Counter]
"""A counter for a cache, from what the cache tells of its model, and its number of rows."""


# ---------------------------------------------------------------- of one cache


def firing_rate(
    cache: Cache,
    keep: Mask | None = None,
    *,
    special_tokens: bool = False,
    fires_by: FiresBy = "gate",
    model: Neurons | BareModel | None = None,
) -> Float64[Tensor, "layer neuron"]:
    """Share of a cache's tokens on which each neuron fires: its gate, or another value, is above
    zero. The options are those of `FiringStats.from_caches`.

    >>> _, cache = model.run_with_cache(text.rows["de"].ids.long())
    >>> rate = interp.counting.firing_rate(cache)
    >>> rate.shape, bool(rate.equal(stats.rate[1]))
    (torch.Size([6, 2048]), True)
    """
    neurons = Cached(cache, keep, model=_known(model))
    kinds: tuple[Observed, ...] = (firing_kind(fires_by),)
    counter = FiringCounter(neurons, fires_by)
    (counts,) = _replayed([neurons], kinds, lambda *_: counter, special_tokens)
    n_tokens = int(counts["firing.tokens"])
    if n_tokens == 0:
        raise ValueError("No token of the cache counts, so it has no rates: look at the mask.")
    return counts["firing.fired"].double() / n_tokens


def fires(
    cache: Cache,
    pos: int = -1,
    keep: Mask | None = None,
    *,
    fires_by: FiresBy = "gate",
    threshold: float = 0.0,
    model: Neurons | BareModel | None = None,
) -> Bool[Tensor, "layer batch neuron"]:
    """Which neurons fire at one token of each row: 0 is the row's first, -1 its last.

    Only tokens in `keep` are numbered, so rows may have different lengths, padded on either side.
    A neuron fires where its gate, its activation (for which the model must be given), or its output
    is above the threshold.

    >>> _, cache = model.run_with_cache(text.rows["de"].ids[:4].long())
    >>> interp.counting.fires(cache).shape
    torch.Size([6, 4, 2048])
    """
    neurons, kind = Cached(cache, keep, model=_known(model)), firing_kind(fires_by)
    batch = neurons.batch((hooked_at(kind),), pos)
    counter = SignsCounter(neurons, len(batch.rows), fires_by, threshold)
    neurons.replay(counter, batch)
    bits = rearrange(counter.tensors()["signs.bits"], "batch layer byte -> layer batch byte")
    return unpack_bits(bits, neurons.d_mlp)


@torch.no_grad()
def units_at(
    cache: Cache, kind: Kind = "post", pos: int = -1, keep: Mask | None = None
) -> Float[Tensor, "batch layer unit"]:
    """The values of a site at one token of each row, numbered as in `fires`.

    >>> _, cache = model.run_with_cache(text.rows["de"].ids[:4].long())
    >>> outputs = interp.counting.units_at(cache)
    >>> interp.prompts.contribution_score(model, outputs).shape
    torch.Size([4, 6, 2048])
    """
    return _at(Cached(cache, keep), kind, pos)


@torch.no_grad()
def gradients_at(
    cache: Cache, kind: Kind = "post", pos: int = -1, keep: Mask | None = None
) -> Float[Tensor, "batch layer unit"]:
    """The gradients at a site at one token of each row, from a cache made with `incl_bwd=True`.

    They are of the number that was followed back, such as the loss. Times `units_at`, they are the
    first-order effect of each neuron. With the loss of a prompt and one more token, which is a mean
    over all tokens but one, `pos=-2` is the end of the prompt, and minus the number of tokens in
    the prompt times that effect is `gradient_times_activation` on the log probability of the token.

    >>> prompt, answer = "Seven minus one is", " six"
    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> ids = torch.tensor([exact.encode(prompt + answer)])
    >>> _, cache = exact.run_with_cache(ids, return_type="loss", incl_bwd=True)
    >>> effect = interp.counting.gradients_at(cache, pos=-2)
    >>> effect *= interp.counting.units_at(cache, pos=-2)
    >>> target = (prompt, answer, "log_probability")
    >>> from_text = interp.prompts.gradient_times_activation(exact, *target)
    >>> torch.allclose(-effect[0] * (ids.shape[1] - 1), from_text, atol=1e-5)
    True
    """
    return _at(Cached(Gradients(cache), keep, "The backward cache"), kind, pos)


def _at(neurons: Cached, kind: Kind, pos: int) -> Float[Tensor, "batch layer unit"]:
    batch = neurons.batch((kind,), pos)
    row, position = torch.arange(len(batch.length)), batch.length.long() - 1
    values = [neurons.values(layer, kind)[row, position] for layer in range(neurons.n_layers)]
    return rearrange([one.cpu() for one in values], "layer batch unit -> batch layer unit")


# ---------------------------------------------------------------- of several


def replay_all(
    caches: Shards,
    kinds: tuple[Observed, ...],
    make_counter: MakeCounter,
    *,
    keep: Masks | None,
    special_tokens: bool,
    model: Any,
    pos: int | None = None,
) -> dict[str, list[dict[str, Tensor]]]:
    """What a counter of its own finds in each cache, by language.

    `pos`: rows end at their token with this number, and each must have it.
    """
    cached = _paired(caches, keep, _known(model))
    everything = [neurons for shards in cached.values() for neurons in shards]
    tensors = iter(_replayed(everything, kinds, make_counter, special_tokens, pos))
    return {code: [next(tensors) for _ in shards] for code, shards in cached.items()}


def parts_of(
    caches: Shards,
    counter: type[Any],
    keep: Masks | None,
    special_tokens: bool,
    model: Any,
    *,
    kinds: tuple[Observed, ...] | None = None,
    by_shard: bool = False,
    **settings: Any,
) -> Parts:
    """What counters of a class, with these settings, find in caches, of which each is a shard.

    `kinds`: the sites they ask for, if that depends on the settings. `by_shard`: the result keeps
    shards apart, so every language needs as many as the others.
    """
    pieces = replay_all(
        caches,
        kinds or counter.kinds,
        lambda neurons, _: counter(neurons, **settings),
        keep=keep,
        special_tokens=special_tokens,
        model=model,
    )
    n_shards = {code: len(shards) for code, shards in pieces.items()}
    if by_shard and len(set(n_shards.values())) > 1:
        numbers = ", ".join(f"{code} {n}" for code, n in n_shards.items())
        raise ValueError(
            f"The numbers of caches differ ({numbers}): each cache is a shard, and every language "
            "needs as many as the others."
        )

    def tensors() -> Iterator[tuple[int, int, Mapping[str, Tensor]]]:
        for row, shards in enumerate(pieces.values()):
            for shard, counts in enumerate(shards):
                yield shard, row, counts

    return Parts(tuple(pieces), max(n_shards.values()), tensors())


def signs_at(
    caches: Shards,
    pos: int,
    *,
    keep: Masks | None,
    fires_by: FiresBy,
    threshold: float,
    model: Any,
) -> tuple[UInt8[Tensor, "prompt language layer byte"], int]:
    """The bits of `FiringSigns` at token `pos` of each row, and the number of neurons per layer."""
    widths = []

    def make_counter(neurons: Neurons, n_rows: int) -> SignsCounter:
        widths.append(neurons.d_mlp)
        return SignsCounter(neurons, n_rows, fires_by, threshold)

    pieces = replay_all(
        caches,
        (firing_kind(fires_by),),
        make_counter,
        keep=keep,
        special_tokens=True,  # one token of each row is looked at, and not its first
        model=model,
        pos=pos,
    )
    bits = [torch.cat([piece["signs.bits"] for piece in shards]) for shards in pieces.values()]
    if len(set(map(len, bits))) > 1:
        numbers = ", ".join(f"{code} {len(one)}" for code, one in zip(pieces, bits, strict=True))
        raise ValueError(
            f"The numbers of rows differ ({numbers}): row i must be prompt i in every language."
        )
    return torch.stack(bits, dim=1), widths[0]


def _known(model: Any) -> Neurons | None:
    """The model that was given, wrapped if it is a bare one; anything else is refused."""
    return model if model is None or isinstance(model, Neurons) else wrapped(model)


def _replayed(
    cached: Sequence[Cached],
    kinds: tuple[Observed, ...],
    make_counter: MakeCounter,
    special_tokens: bool,
    pos: int | None = None,
) -> list[dict[str, Tensor]]:
    sites = sites_of(kinds)
    batches = [neurons.batch(sites, pos) for neurons in cached]
    for neurons in cached[1:]:
        neurons.check_like(cached[0], sites)
    if not special_tokens:
        _check_beginnings(cached, batches, sites[0])
    tensors = []
    for neurons, batch in zip(cached, batches, strict=True):
        counter = make_counter(neurons, len(batch.rows))
        neurons.replay(counter, batch)
        tensors.append(counter.tensors())
    return tensors


def _paired(caches: Shards, keep: Masks | None, model: Neurons | None) -> dict[str, list[Cached]]:
    """The caches of each language with their masks."""
    empty = [code for code, some in caches.items() if not listed_caches(some)]
    if empty or not caches:
        raise ValueError(
            f"There is no cache of {listed(empty) if empty else 'any language'}: give a mapping "
            'from languages to caches, such as {"de": [cache]}.'
        )
    if keep is not None and set(keep) != set(caches):
        raise ValueError(
            f"There are caches of {listed(caches)} and masks of {listed(keep)}: give one mask for "
            "each cache."
        )
    cached = {}
    for code, some in caches.items():
        shards = listed_caches(some)
        masks = [None] * len(shards) if keep is None else listed_caches(keep[code])
        if len(masks) != len(shards):
            raise ValueError(
                f"{code} has {len(shards)} caches and {len(masks)} masks: give one mask for each "
                "cache."
            )
        alone = len(shards) == 1
        cached[code] = [
            Cached(cache, mask, f"The cache of {code}" if alone else f"Cache {n} of {code}", model)
            for n, (cache, mask) in enumerate(zip(shards, masks, strict=True))
        ]
    return cached


def listed_caches(some: Any) -> list[Any]:
    """One cache, or several, as a list."""
    return list(some) if isinstance(some, list | tuple) else [some]


def _check_beginnings(cached: Sequence[Cached], batches: Sequence[Batch], kind: Kind) -> None:
    """Refuse rows that all begin with one token, as if the tokenizer had put it there."""
    firsts = []
    for neurons, batch in zip(cached, batches, strict=True):
        rows = batch.keep.any(dim=1).nonzero().flatten()
        position = batch.keep.int().argmax(dim=1)[rows]
        firsts.append(neurons.values(0, kind)[rows, position].float().cpu())
    first = torch.cat(firsts)
    if len(first) < 2 or all(neurons.n_positions(kind) == 1 for neurons in cached):
        return
    close = (first - first[0]).abs() <= _CLOSE * first[0].abs()
    if (close.float().mean(dim=1) > _MOST).all():
        raise ValueError(
            f"All {len(first):,} rows begin with the same token, as when the tokenizer puts one "
            "before a text: leave it out with a mask, such as model.text_mask(tokens), or count it "
            "with special_tokens=True."
        )

"""Run a model over rows of tokens and hand out one layer of one batch at a time.

Nothing is stored here: an observer sees each tensor once, on the device where it was made, and
keeps what it needs. The forward pass ends as soon as the last tensor asked for was seen.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.results.words import Kind
from interp.text.corpora import Corpora


@dataclass(frozen=True)
class Batch:
    """Some rows of one language and one shard."""

    rows: tuple[int, ...]
    """Their numbers among the rows that are read together, for results kept per row."""

    ids: Int[Tensor, "batch pos"]
    """Token ids, padded on the right."""

    keep: Bool[Tensor, "batch pos"]
    """False on padding, beginning-of-text and other special tokens: those never count."""

    length: Int[Tensor, " batch"]
    """Real tokens of each row."""

    sources: tuple[str, ...]
    """Where each row comes from, for error messages."""

    whole: bool
    """All tokens count, so that nothing needs to be masked."""

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        return replace(
            self,
            ids=self.ids.to(device),
            keep=self.keep.to(device),
            length=self.length.to(device),
        )

    def halves(self) -> "tuple[Batch, Batch]":
        """The first rows and the others, padded as they are here."""
        middle = len(self.rows) // 2

        def some(part: slice) -> Batch:
            return replace(
                self,
                rows=self.rows[part],
                ids=self.ids[part],
                keep=self.keep[part],
                length=self.length[part],
                sources=self.sources[part],
            )

        return some(slice(middle)), some(slice(middle, None))


@runtime_checkable
class Observer(Protocol):
    """Something that looks at activations while they are there."""

    kinds: tuple[Kind, ...]
    """The sites it wants to see, in every layer."""

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None: ...


def batches(corpora: Corpora, language: str, shard: int, tokens_per_batch: int) -> Iterator[Batch]:
    """The rows of one shard, shortest first, in batches of at most so many padded tokens.

    The order depends on the rows alone, so a shard is summed in the same order wherever it is read.
    """
    rows = corpora.rows[language]
    chosen = (rows.shard == shard).nonzero().flatten()
    order = rows.length[chosen].argsort(stable=True)
    waiting: list[int] = []
    for place in order.tolist():
        longest = int(rows.length[chosen[place]])
        if waiting and (len(waiting) + 1) * longest > tokens_per_batch:
            yield _batch(corpora, language, chosen, waiting)
            waiting = []
        waiting.append(place)
    if waiting:
        yield _batch(corpora, language, chosen, waiting)


def _batch(corpora: Corpora, language: str, chosen: Tensor, places: list[int]) -> Batch:
    rows = corpora.rows[language]
    picked = chosen[places]
    length = rows.length[picked]
    ids = rows.ids[picked, : int(length.max())].long()
    keep = corpora.keep(ids, length)
    sources = tuple(rows.source[row] for row in picked.tolist())
    return Batch(tuple(places), ids, keep, length, sources, bool(keep.all()))


Delivered = tuple[int, Kind, int]
"""Number of an observer, and the site and layer that it was given."""


@torch.inference_mode()
def observe(model: NeuronModel, batch: Batch, observers: Sequence[Observer]) -> None:
    """One forward pass without the unembedding; each observer sees the sites it asked for.

    Where memory runs out, the rows are read in halves, and so are later batches of that size: the
    batch size is found by trial. What an observer saw before that it is not shown again. Counts
    and means of rows do not change by it, unless a gate is so close to zero that the rounding of
    another batch size decides on its sign; moments are sums in float32 over a batch, and change in
    the last digits.

    Raises ValueError when an activation is NaN or infinite, naming layer and rows.
    """
    waiting = [_Delivery(model, batch.to(model.device), observers, frozenset())]
    while waiting:
        delivery = waiting.pop()
        n_rows, n_tokens = len(delivery.batch.rows), delivery.batch.ids.numel()
        if n_rows == 1 or model.ran_out_at is None or n_tokens < model.ran_out_at:
            if delivery.fits_in_memory():
                continue
            if n_rows == 1:
                raise ValueError(
                    f"{delivery.batch.sources[0]}: one row of {n_tokens:,} tokens is too much for "
                    f"the memory of {model.device}. Use shorter rows, load the model with "
                    "dtype=torch.bfloat16, or spread it with device_map."
                )
            model.ran_out_at = n_tokens
            warnings.warn(
                f"Memory was too small for a batch of {n_tokens:,} tokens: batches of that size "
                "are read in halves from now on.",
                stacklevel=2,
            )
        waiting += reversed(delivery.halves())  # the first half is next


class _EndOfPass(Exception):
    """Leaves a forward pass from inside a hook."""


class _Delivery:
    """One pass over a batch: hands every activation asked for to the observers that lack it."""

    def __init__(
        self,
        model: NeuronModel,
        batch: Batch,
        observers: Sequence[Observer],
        delivered: AbstractSet[Delivered],
    ) -> None:
        self.model, self.batch, self.observers = model, batch, observers
        self.kinds: tuple[Kind, ...] = tuple(
            dict.fromkeys(kind for observer in observers for kind in observer.kinds)
        )
        self.delivered = set(delivered)
        self.n_seen = 0
        self.finite = True

    @property
    def n_expected(self) -> int:
        return len(self.kinds) * self.model.n_layers

    def halves(self) -> list["_Delivery"]:
        """The same for the first rows and for the others, less what was delivered for both."""
        return [
            _Delivery(self.model, half, self.observers, self.delivered)
            for half in self.batch.halves()
        ]

    def fits_in_memory(self) -> bool:
        """Run the pass. False: memory ran out, and some observers may have been served.

        The caller goes on only when this has returned, and nothing holds the pass's tensors.
        """
        hooks = [
            (self.model.site(layer, kind), self._hook(kind, layer))
            for layer in range(self.model.n_layers)
            for kind in self.kinds
        ]
        try:
            with self.model.hooks(hooks):
                mask = None if self.batch.whole else _attention_mask(self.batch)
                self.model.body(self.batch.ids, mask)
        except _EndOfPass:
            pass
        except (RuntimeError, MemoryError) as error:
            if not _ran_out_of_memory(error):
                raise
            return False
        if not self.finite:
            raise ValueError(_first_bad_layer(self.model, self.batch, self.kinds))
        if self.n_seen != self.n_expected:
            raise ValueError(
                f"{self.n_seen} of {self.n_expected} activations of {self.model.name} were seen: "
                f"hooks do not fire. Run `interp doctor {self.model.name}` to see which."
            )
        return True

    def _hook(self, kind: Kind, layer: int) -> Callable[[Tensor, Any], None]:
        def run(values: Tensor, hook: Any) -> None:
            if values.ndim == 4:
                values = rearrange(values, "batch pos head unit -> batch pos (head unit)")
            self._deliver(kind, layer, values)
            # NaN in one neuron makes every neuron above it NaN: the last layer stands for all.
            if layer == self.model.n_layers - 1 and not values.sum().isfinite():
                self.finite = False
                raise _EndOfPass
            self.n_seen += 1
            if self.n_seen == self.n_expected and not self.model.offloaded:
                raise _EndOfPass  # the rest of the pass is not needed

        return run

    def _deliver(self, kind: Kind, layer: int, values: Float[Tensor, "batch pos unit"]) -> None:
        here = self.batch.to(values.device)
        for number, observer in enumerate(self.observers):
            if kind in observer.kinds and (number, kind, layer) not in self.delivered:
                observer.update(kind, layer, values, here)
                self.delivered.add((number, kind, layer))


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether it is that, by type on a GPU and by words on a CPU or a Mac."""
    words = ("DefaultCPUAllocator", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        phrase in str(error) for phrase in words
    )


def _attention_mask(batch: Batch) -> Int[Tensor, "batch pos"]:
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return (positions < rearrange(batch.length, "batch -> batch 1")).long()


def _first_bad_layer(model: NeuronModel, batch: Batch, kinds: tuple[Kind, ...]) -> str:
    """Look again, at every layer, to say where NaN or infinity begins."""
    bad: list[tuple[int, str, int]] = []

    def hook_for(kind: Kind, layer: int) -> Callable[[Tensor, Any], None]:
        def look(values: Tensor, hook: Any) -> None:
            finite = values.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                bad.append((layer, kind, int((~finite).nonzero()[0])))

        return look

    hooks = [
        (model.site(layer, kind), hook_for(kind, layer))
        for layer in range(model.n_layers)
        for kind in kinds
    ]
    with model.hooks(hooks):
        model.body(batch.ids, None if batch.whole else _attention_mask(batch))
    if not bad:
        return f"{model.name} gave an activation that is too large to add up in {model.dtype}."
    layer, kind, row = min(bad)
    return (
        f"{model.name} gave a NaN or infinite activation in layer {layer} ({kind}) on the text "
        f"{batch.sources[row]}. Weights may be damaged, or {model.dtype} too narrow: load the "
        "model with dtype=torch.float32 or bfloat16."
    )

"""Run a model over rows of tokens and pass each layer's activations to observers.

Nothing is stored here: an observer sees each tensor once, on the device that computed it, and keeps
what it needs. The forward pass ends as soon as the last requested tensor has been seen.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from interp.counting.activated import Activated
from interp.counting.batch import Batch, Observer, by_unit
from interp.counting.expert_counter import MIXTURE_COUNTS, RowObserver
from interp.models.experts import Rows
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.models.sites import hooked_at, sites_of
from interp.results.words import Kind, Observed
from interp.text.corpora import Corpora


def batches(corpora: Corpora, language: str, shard: int, tokens_per_batch: int) -> Iterator[Batch]:
    """The rows of one shard, shortest first, in batches of at most `tokens_per_batch` tokens,
    padding included.

    The order depends only on the rows, so a shard is always summed in the same order.
    """
    rows = corpora.rows[language]
    chosen = (rows.shard == shard).nonzero().flatten()
    order = rows.length[chosen].argsort(stable=True)
    pending: list[int] = []
    for index in order.tolist():
        longest = int(rows.length[chosen[index]])
        if pending and (len(pending) + 1) * longest > tokens_per_batch:
            yield _batch(corpora, language, chosen, pending)
            pending = []
        pending.append(index)
    if pending:
        yield _batch(corpora, language, chosen, pending)


def _batch(corpora: Corpora, language: str, chosen: Tensor, indices: list[int]) -> Batch:
    rows = corpora.rows[language]
    picked = chosen[indices]
    length = rows.length[picked]
    ids = rows.ids[picked, : int(length.max())].long()
    keep = corpora.keep(ids, length)
    sources = tuple(rows.source[row] for row in picked.tolist())
    return Batch(tuple(indices), ids, keep, length, sources, bool(keep.all()))


Delivered = tuple[int, Observed, int, int]
"""A delivered activation: index of the observer, site, layer, and first unit, which is not 0 for
experts beside dense neurons."""


@torch.inference_mode()
def observe(model: NeuronModel, batch: Batch, observers: Sequence[Observer]) -> None:
    """Run one forward pass without the unembedding; each observer receives the sites it asks for.

    If memory runs out, this batch and later ones of its size are split in halves; an activation
    delivered before the failure is not delivered again. Counts and row means do not change, unless
    a gate is so close to zero that rounding, which depends on the batch size, decides its sign.
    Moments are float32 sums over a batch, so their last digits change.

    Raises ValueError if an activation is NaN or infinite, naming its layer and text.
    """
    if isinstance(model, MixtureModel) and not all(isinstance(o, RowObserver) for o in observers):
        raise ValueError(MIXTURE_COUNTS.format(model.name))
    pending = [_Delivery(model, batch.to(model.device), observers, frozenset())]
    while pending:
        delivery = pending.pop()
        n_rows, n_tokens = len(delivery.batch.rows), delivery.batch.ids.numel()
        if n_rows == 1 or model.ran_out_at is None or n_tokens < model.ran_out_at:
            if delivery.fits_in_memory():
                continue
            if n_rows == 1:
                raise ValueError(
                    f"{delivery.batch.sources[0]}: one row of {n_tokens:,} tokens does not fit "
                    f"in the memory of {model.device}. Use shorter rows, or load the model "
                    "with dtype=torch.bfloat16; in Python, device_map spreads it over devices."
                )
            model.ran_out_at = n_tokens
            warnings.warn(
                f"Out of memory on a batch of {n_tokens:,} tokens: batches of that size are split "
                "in halves from now on.",
                stacklevel=2,
            )
        pending += reversed(delivery.halves())  # the first half is next


class _EndOfPass(Exception):
    """Raised in a hook to end the forward pass early."""


class _Delivery:
    """One forward pass over a batch; passes each activation to the observers that still need it."""

    def __init__(
        self,
        model: NeuronModel,
        batch: Batch,
        observers: Sequence[Observer],
        delivered: AbstractSet[Delivered],
    ) -> None:
        self.model, self.batch, self.observers = model, batch, observers
        kinds: dict[Observed, None] = dict.fromkeys(k for one in observers for k in one.kinds)
        self.delivered = set(delivered)
        calls = list(itertools.product(range(model.n_layers), kinds))
        self.hooked: list[tuple[int, Kind]] = [
            (layer, kind) for layer, kind in calls if kind != "act"
        ]
        self.activated = "act" in kinds
        self.sites = sites_of(kinds)
        n_calls = {(layer, kind): model.n_calls(layer, hooked_at(kind)) for layer, kind in calls}
        self.last = max((layer for layer, kind in calls if n_calls[layer, kind]), default=0)
        self.n_expected = sum(n_calls.values())
        self.n_seen = 0
        self.finite = True

    def halves(self) -> list["_Delivery"]:
        """One delivery for each half of the rows; activations already delivered are skipped."""
        return [
            _Delivery(self.model, half, self.observers, self.delivered)
            for half in self.batch.halves()
        ]

    def fits_in_memory(self) -> bool:
        """Run the pass. False: memory ran out; some observers may already have been served.

        The caller retries only after this returns, when nothing holds the pass's tensors any more.
        """
        hooks = [
            (self.model.rows_site(layer, kind), self._hook(kind, layer))
            for layer, kind in self.hooked
        ]
        activated = Activated(self.model, lambda layer: self._hook("act", layer))
        try:
            with self.model.hooks(hooks), activated.seen() if self.activated else nullcontext():
                mask = None if self.batch.whole else attention_mask(self.batch)
                self.model.body(self.batch.ids, mask)
        except _EndOfPass:
            pass
        except (RuntimeError, MemoryError) as error:
            if not _ran_out_of_memory(error):
                raise
            return False
        if not self.finite:
            raise ValueError(_first_bad_layer(self.model, self.batch, self.sites))
        if self.n_seen != self.n_expected:
            raise ValueError(
                f"Only {self.n_seen} of {self.n_expected} activations of {self.model.name} were "
                f"seen: run `interp doctor {self.model.name}` to see which hooks do not fire."
            )
        return True

    def _hook(self, kind: Observed, layer: int) -> Callable[[Tensor, Any], None]:
        def run(values: Tensor, hook: Any) -> None:
            rows = hook if isinstance(hook, Rows) else None
            values = by_unit(values) if rows is None else values
            self._deliver(kind, layer, values, rows)
            # A NaN makes every later layer NaN, so checking the last layer is enough.
            if layer == self.last and not values.sum(dtype=torch.float32).isfinite():
                self.finite = False
                raise _EndOfPass
            self.n_seen += 1
            if self.n_seen == self.n_expected and not self.model.offloaded:
                raise _EndOfPass  # the rest of the pass is not needed

        return run

    def _deliver(self, kind: Observed, layer: int, values: Tensor, rows: Rows | None) -> None:
        batch = self.batch.to(values.device)
        first = 0 if rows is None else rows.first
        for index, observer in enumerate(self.observers):
            delivered = (index, kind, layer, first)
            if kind not in observer.kinds or delivered in self.delivered:
                continue
            if rows is None:
                observer.update(kind, layer, values, batch)
            else:
                assert isinstance(observer, RowObserver), "others are refused before reading"
                observer.update_rows(kind, layer, values, rows, batch)
            self.delivered.add(delivered)


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: shown by the type on a GPU, by the message on a CPU or a Mac."""
    phrases = ("DefaultCPUAllocator", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        phrase in str(error) for phrase in phrases
    )


def attention_mask(batch: Batch) -> Int[Tensor, "batch pos"]:
    """One on tokens, zero on padding."""
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return (positions < rearrange(batch.length, "batch -> batch 1")).long()


def _first_bad_layer(model: NeuronModel, batch: Batch, kinds: tuple[Kind, ...]) -> str:
    """Repeat the pass and check every layer, to report where NaN or infinity first appears."""
    bad: list[tuple[int, str, int]] = []

    def hook_for(kind: Kind, layer: int) -> Callable[[Tensor, Any], None]:
        def check(values: Tensor, hook: Any) -> None:
            wrong = (~values.isfinite().flatten(1).all(dim=1)).nonzero().flatten()
            if isinstance(hook, Rows):
                wrong = hook.token[wrong] // batch.ids.shape[1]
            if len(wrong):
                bad.append((layer, kind, int(wrong.min())))

        return check

    hooks = [
        (model.rows_site(layer, kind), hook_for(kind, layer))
        for layer in range(model.n_layers)
        for kind in kinds
    ]
    with model.hooks(hooks):
        model.body(batch.ids, None if batch.whole else attention_mask(batch))
    if not bad:
        return f"The sum of an activation of {model.name} overflows {model.dtype}."
    layer, kind, row = min(bad)
    return (
        f"{model.name} has a NaN or infinite activation in layer {layer} ({kind}) on the text "
        f"{batch.sources[row]}. Its weights may be damaged, or {model.dtype} too narrow: load the "
        "model with dtype=torch.float32 or bfloat16."
    )

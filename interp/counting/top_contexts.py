"""Where each neuron fires most: its strongest tokens in every language, with the text around them.

The strength is the gate before the activation function, the number whose sign says whether the
neuron fires: on a gated MLP the neuron's output has another sign as often as not. Of every row of
text only the strongest token counts, so a line that repeats itself takes one place and not all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Int32, Int64
from torch import Tensor

from interp.counting.observe import Batch, observe
from interp.counting.sort_keys import float_bits, in_order, order_of, pack, payload_of
from interp.models.neuron_model import NeuronModel
from interp.results.display import counted, listed
from interp.results.saved import Saved
from interp.results.words import Kind
from interp.text.corpora import Rows

# A context has one key, the same wherever it is found: its gate, and as payload how far its row is
# from the last that can be. The largest keys are the strongest contexts; of equal ones, the first.
_ROW_BITS = 32
_LAST_ROW = (1 << _ROW_BITS) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class TopContexts(Saved):
    """The tokens on which each neuron's gate is highest, in each language.

    >>> contexts = interp.collect(model, text, keep=interp.Keep(contexts=2)).contexts
    >>> row = int(contexts.row[contexts.languages.index("zh"), 5, 7, 0])
    >>> contexts.sources[row]
    'zh...'
    """

    kind = "TopContexts"
    made_by = "interp.collect(model, corpora, out, keep=interp.Keep(contexts=8))"

    gate: Float32[Tensor, "language layer neuron rank"]
    """The gate before its activation function, highest first; above zero. Zero: the neuron fires in
    fewer rows than there are ranks."""

    row: Int32[Tensor, "language layer neuron rank"]
    """Row of `ids` that the token is in, another one at each rank; -1: none."""

    position: Int32[Tensor, "language layer neuron rank"]
    """Place of the token in its row; -1: none."""

    ids: Int32[Tensor, "row pos"]
    """Token ids of the rows that any context is in; behind the text of a short row, zeros."""

    length: Int64[Tensor, " row"]
    """Tokens in the row."""

    number: Int64[Tensor, " row"]
    """The row's number among the rows of its language, `corpora.rows[language]`."""

    sources: tuple[str, ...]
    """Where the first token of each row comes from, such as `de.txt:118`."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    def __repr__(self) -> str:
        n_layers, d_mlp = self.gate.shape[1:3]
        return (
            f"TopContexts(up to {self.n} of each neuron in {listed(self.languages)}; {n_layers} "
            f"layers of {d_mlp:,} neurons; {counted(len(self.ids), 'row')} of text)"
        )

    @property
    def n(self) -> int:
        """Contexts kept per neuron and language, at most."""
        return self.gate.shape[3]


# ---------------------------------------------------------------- in the pass over text


class ContextsCounter:
    """The `n` strongest contexts of every neuron in the rows of one shard of one language."""

    kinds: tuple[Kind, ...] = ("pre",)

    def __init__(
        self, model: NeuronModel, n: int, rows: Rows, number: Int64[Tensor, " row"]
    ) -> None:
        """`rows` are those of the shard; `number` is what each has among all of its language."""
        self._n, self._rows, self._number = n, rows, number
        self._best = [
            _Best.none(model.d_mlp, n, model.layer_device(layer)) for layer in range(model.n_layers)
        ]

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        if not batch.whole:
            hidden = rearrange(~batch.keep, "batch pos -> batch pos 1")
            values = values.masked_fill(hidden, -torch.inf)
        gate = rearrange(values.amax(dim=1), "batch neuron -> neuron batch")
        number = self._number[list(batch.rows)].to(values.device)
        best = self._best[layer]
        keys, place = torch.cat([best.keys, _keys(gate.float(), number)], dim=1).topk(self._n)
        position = best.position.gather(1, place.clamp_max(self._n - 1)).masked_fill(keys == 0, -1)
        # Where in the row it was is looked for in those alone that are new among the strongest:
        # a maximum with its place takes ten times as long as the maximum alone.
        neuron, rank = ((place >= self._n) & (keys > 0)).nonzero(as_tuple=True)
        row = place[neuron, rank] - self._n
        of_new = values[row, :, neuron].max(dim=1).indices  # of equal ones, the first
        position[neuron, rank] = of_new.int()
        self._best[layer] = _Best(keys, position)

    def tensors(self) -> dict[str, Tensor]:
        """With the rows themselves, so that whoever merges the pieces needs no text."""
        return {
            "contexts.keys": torch.stack([each.keys.cpu() for each in self._best]),
            "contexts.position": torch.stack([each.position.cpu() for each in self._best]),
            "contexts.ids": self._rows.ids.clone(),
            "contexts.length": self._rows.length.clone(),
            "contexts.number": self._number.clone(),
        }


@dataclass(frozen=True)
class _Best:
    """The strongest contexts so far, strongest first."""

    keys: Int64[Tensor, "*neuron rank"]

    position: Int32[Tensor, "*neuron rank"]

    @staticmethod
    def none(d_mlp: int, n: int, device: torch.device) -> "_Best":
        keys = torch.zeros(d_mlp, n, dtype=torch.int64, device=device)
        return _Best(keys, torch.full_like(keys, -1, dtype=torch.int32))


def merge_contexts(
    pieces: Iterable[tuple[int, Mapping[str, Tensor], Sequence[str]]], languages: tuple[str, ...]
) -> TopContexts:
    """The strongest of all pieces; each is the index of its language, tensors, and rows' sources.

    Holds the contexts, and as much text as they are in.
    """
    best: dict[int, _Best] = {}
    texts: list[list[tuple[Mapping[str, Tensor], Sequence[str]]]] = [[] for _ in languages]
    for language, tensors, sources in pieces:
        keys, position = tensors["contexts.keys"], tensors["contexts.position"]
        if language in best:
            n = keys.shape[2]
            keys, place = torch.cat([best[language].keys, keys], dim=2).topk(n)
            position = torch.cat([best[language].position, position], dim=2).gather(2, place)
        best[language] = _Best(keys, position)
        texts[language].append((tensors, sources))
    width = max(int(some[0][0]["contexts.ids"].shape[1]) for some in texts)
    parts: list[_Part] = []
    for language, some in enumerate(texts):
        first_row = sum(len(part.ids) for part in parts)
        parts.append(_part(best[language], some, first_row, width))
    return TopContexts(
        **{name: torch.stack([getattr(part, name) for part in parts]) for name in _AXES},
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in _TEXT},
        sources=tuple(source for part in parts for source in part.sources),
        languages=languages,
    )


_AXES = ("gate", "row", "position")
_TEXT = ("ids", "length", "number")


@dataclass(frozen=True, eq=False)
class _Part:
    """Contexts of one language, and the rows that they are in; fields as in `TopContexts`."""

    gate: Tensor
    row: Tensor
    position: Tensor
    ids: Tensor
    length: Tensor
    number: Tensor
    sources: tuple[str, ...]


def _keys(
    gate: Float32[Tensor, "neuron batch"], number: Int64[Tensor, " batch"]
) -> Int64[Tensor, "neuron batch"]:
    """One key for each neuron and row; zero where the neuron does not fire."""
    order = in_order(float_bits(gate)).long()
    return pack(order, _LAST_ROW - number, _ROW_BITS).masked_fill(~(gate > 0), 0)


def _part(
    best: _Best,
    texts: Sequence[tuple[Mapping[str, Tensor], Sequence[str]]],
    first_row: int,
    width: int,
) -> _Part:
    """Gates and rows of the strongest; of the text, only rows in which there is one are kept."""
    none = best.keys == 0
    gate = in_order(order_of(best.keys, _ROW_BITS).int()).view(torch.float32)
    holder = _LAST_ROW - payload_of(best.keys, _ROW_BITS)
    used = holder[~none].unique()
    row = torch.searchsorted(used, holder) + first_row
    number, length, ids = (
        torch.cat([tensors[f"contexts.{name}"] for tensors, _ in texts])
        for name in ("number", "length", "ids")
    )
    sources = [source for _, some in texts for source in some]
    order = number.argsort()
    chosen = order[torch.searchsorted(number[order], used)]
    return _Part(
        gate,
        row.masked_fill(none, -1).int(),
        best.position,
        torch.nn.functional.pad(ids[chosen], (0, width - ids.shape[1])),
        length[chosen],
        used,
        tuple(sources[place] for place in chosen.tolist()),
    )


# ---------------------------------------------------------------- what a neuron does around them


class _Around:
    """Picks the gates around contexts out of the rows that are read."""

    kinds: tuple[Kind, ...] = ("pre",)

    def __init__(self, layer: Tensor, neuron: Tensor, row: Tensor, places: Tensor) -> None:
        self._layer, self._neuron, self._row, self._places = layer, neuron, row, places
        self.gate = torch.full(places.shape, torch.nan)

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        rows = torch.tensor(batch.rows)
        of_row = torch.full((int(rows.max()) + 2,), -1)
        of_row[rows] = torch.arange(len(rows))
        here = of_row[self._row.clamp_max(len(of_row) - 1)]  # the last entry is of no row
        mine = ((self._layer == layer) & (here >= 0)).nonzero().flatten()
        if not len(mine):
            return
        places = self._places[mine]
        found = values.cpu()[
            rearrange(here[mine], "context -> context 1"),
            places.clamp(0, values.shape[1] - 1),
            rearrange(self._neuron[mine], "context -> context 1"),
        ].float()
        inside = (places >= 0) & (places < rearrange(batch.length[here[mine]].cpu(), "n -> n 1"))
        self.gate[mine] = found.masked_fill(~inside, torch.nan)


def gates_around(
    model: NeuronModel,
    contexts: TopContexts,
    chosen: Bool[Tensor, "layer neuron"],
    before: int,
    after: int,
    tokens_per_batch: int = 4096,
) -> Float32[Tensor, "language chosen rank window"]:
    """Gates of the chosen neurons on the tokens around each of their contexts.

    The window runs from `before` tokens before the context to `after` tokens behind it; neurons
    come layer by layer. The rows are read whole, as in the pass over text, so at the context itself
    this is its gate, to rounding. NaN: the row has no such token, or there is no context.

    Costs a forward pass of the rows that contexts of chosen neurons are in.

    >>> contexts = interp.collect(model, text, keep=interp.Keep(contexts=2)).contexts
    >>> chosen = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    >>> chosen[5, :10] = True
    >>> interp.counting.gates_around(model, contexts, chosen, before=2, after=1).shape
    torch.Size([3, 10, 2, 4])
    """
    place = chosen.nonzero()
    row = contexts.row[:, place[:, 0], place[:, 1]].long()
    position = contexts.position[:, place[:, 0], place[:, 1]].long()
    shape = (*row.shape, before + 1 + after)
    there = row >= 0
    layer, neuron = (
        rearrange(each, "chosen -> 1 chosen 1").expand(row.shape)[there] for each in place.unbind(1)
    )
    window = torch.arange(-before, after + 1)
    around = _Around(
        layer, neuron, row[there], rearrange(position[there], "context -> context 1") + window
    )
    for batch in _batches(contexts, row[there].unique(), tokens_per_batch):
        observe(model, batch, [around])
    gate = torch.full(shape, torch.nan)
    gate[there] = around.gate
    return gate


def _batches(
    contexts: TopContexts, rows: Int64[Tensor, " row"], tokens_per_batch: int
) -> Iterable[Batch]:
    """Rows in batches of about one length, of at most so many padded tokens."""
    order = rows[contexts.length[rows].argsort(stable=True)]
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order):
            if (stop + 1 - start) * int(contexts.length[order[stop]]) > tokens_per_batch:
                break
            stop += 1
        picked = order[start:stop]
        length = contexts.length[picked]
        ids = contexts.ids[picked, : int(length.max())].long()
        keep = torch.arange(ids.shape[1]) < rearrange(length, "row -> row 1")
        sources = tuple(contexts.sources[row] for row in picked.tolist())
        yield Batch(tuple(picked.tolist()), ids, keep, length, sources, bool(keep.all()))
        start = stop

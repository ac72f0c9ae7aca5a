"""Where each neuron fires most: its strongest tokens in every language, with their rows of text.

Strength is the gate's pre-activation, whose sign says whether the neuron fires; on a gated MLP the
sign of the output differs from it about half of the time. Only the strongest token of each row
counts, so a row that repeats itself takes one rank, not all of them. Of a neuron of an expert, only
tokens routed to that expert count.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Int32, Int64
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from interp.counting.batch import Batch
from interp.counting.expert_counter import by_expert, rows_kept
from interp.counting.observe import observe
from interp.counting.sort_keys import float_bits, in_order, order_of, pack, payload_of
from interp.models.any_model import AnyModel, as_model
from interp.models.experts import Rows as ExpertRows
from interp.models.neuron_model import NeuronModel
from interp.models.units import LayerUnits, UnitLayout, layout_of
from interp.results.display import Cells, counted, listed
from interp.results.saved import Saved
from interp.results.words import Kind, Observed
from interp.text.corpora import Rows

# A context's key is its gate, with `_LAST_ROW` minus its row number as the payload. The largest
# keys are the strongest contexts; of equal gates the earlier row wins, in any order of reading.
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
    """The gate's pre-activation, highest first; above zero. Zero: the neuron fires in fewer rows
    than there are ranks."""

    row: Int32[Tensor, "language layer neuron rank"]
    """Row of `ids` that holds the token, different at each rank; -1: none."""

    position: Int32[Tensor, "language layer neuron rank"]
    """Position of the token in its row; -1: none."""

    ids: Int32[Tensor, "row pos"]
    """Token ids of the rows that hold a context; short rows are padded with zeros."""

    starts: Bool[Tensor, "row pos"]
    """True where a document starts within a row; nowhere if the row is one document."""

    length: Int64[Tensor, " row"]
    """Tokens in the row."""

    number: Int64[Tensor, " row"]
    """The row's index in the rows of its language, `corpora.rows[language]`."""

    sources: tuple[str, ...]
    """Where the first token of each row comes from, such as `de.txt:118`."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    units: tuple[LayerUnits, ...] = ()
    """In a mixture of experts, the sizes of its layers; none: the model is dense."""

    def _stored(self) -> dict[str, Any]:
        stored = super()._stored()
        return stored if self.units else {n: v for n, v in stored.items() if n != "units"}

    def __repr__(self) -> str:
        n_layers, d_mlp = self.gate.shape[1:3]
        return (
            f"TopContexts(up to {self.n} of each neuron in {listed(self.languages)}; {n_layers} "
            f"layers of {d_mlp:,} neurons; {counted(len(self.ids), 'row')} of text)"
        )

    def _cells(self) -> Cells:
        rows, layout = [], layout_of(self.units)
        for language, code in enumerate(self.languages):
            strongest = self.gate[language, ..., 0]
            layer, neuron = divmod(int(strongest.argmax()), strongest.shape[1])
            row = int(self.row[language, layer, neuron, 0])
            where = ["", ""]  # no gate of the language is above zero
            if row >= 0:
                position = int(self.position[language, layer, neuron, 0])
                where = [self.sources[row], f"{position:,}"]
            gate = f"{strongest[layer, neuron].item():.3g}"
            name = f"{neuron:,}" if layout is None else layout.address(layer, neuron).name
            rows.append([code, str(layer), name, gate, *where])
        columns = ("language", "layer", "neuron", "gate", "row from", "position")
        return Cells(columns, rows, "the highest gate of each language")

    @property
    def n(self) -> int:
        """Maximum number of contexts per neuron and language."""
        return self.gate.shape[3]


# ---------------------------------------------------------------- during the pass over text


class ContextsCounter:
    """The `n` strongest contexts of every neuron in the rows of one shard of one language."""

    kinds: tuple[Observed, ...] = ("pre",)

    def __init__(
        self, model: NeuronModel, n: int, rows: Rows, number: Int64[Tensor, " row"]
    ) -> None:
        """`rows` are the shard's rows; `number` holds their indices in the language."""
        self._n, self._rows, self._number = n, rows, number
        self._best = [
            _Best.none(model.d_mlp, n, model.layer_device(layer)) for layer in range(model.n_layers)
        ]

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        if not batch.whole:
            ignored = rearrange(~batch.keep, "batch pos -> batch pos 1")
            values = values.masked_fill(ignored, -torch.inf)
        number = self._number[list(batch.rows)].to(values.device)
        self._best[layer] = self._best[layer].with_rows(values, number)

    def update_rows(
        self,
        kind: Kind,
        layer: int,
        values: Float[Tensor, "row neuron"],
        rows: ExpertRows,
        batch: Batch,
    ) -> None:
        """Of a mixture: an expert sees, of each row of text, the tokens routed there."""
        best = self._best[layer]
        number = self._number[list(batch.rows)].to(values.device)
        values, rows = rows_kept(values, rows, batch)
        updates: list[tuple[slice, _Best]] = []
        for own, gates, token in by_expert(values, rows):
            text, position = torch.unravel_index(token, batch.ids.shape)
            text, sizes = text.unique_consecutive(return_counts=True)
            gates, position = (
                pad_sequence(
                    list(values.split(sizes.tolist())), batch_first=True, padding_value=padding
                )
                for values, padding in ((gates, -torch.inf), (position, -1))
            )
            before = _Best(best.keys[own], best.position[own])
            updates.append((own, before.with_rows(gates, number[text], position)))
        # Memory may have run out above, and the rows come again: all is written at once.
        for own, after in updates:
            best.keys[own], best.position[own] = after.keys, after.position

    def tensors(self) -> dict[str, Tensor]:
        """Includes the rows themselves, so that merging pieces needs no text."""
        ids, starts = self._rows.ids, self._rows.starts
        return {
            "contexts.keys": torch.stack([best.keys.cpu() for best in self._best]),
            "contexts.position": torch.stack([best.position.cpu() for best in self._best]),
            "contexts.ids": ids.clone(),
            "contexts.starts": torch.zeros_like(ids, dtype=torch.bool)
            if starts is None
            else starts.clone(),
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

    def with_rows(
        self,
        values: Float[Tensor, "row pos neuron"],
        number: Int64[Tensor, " row"],
        position: Int64[Tensor, "row pos"] | None = None,
    ) -> "_Best":
        """The strongest of these and of rows with these numbers. `position` is where in the row the
        values are; None: one after the other."""
        n = self.keys.shape[1]
        gate = rearrange(values.amax(dim=1), "row neuron -> neuron row")
        keys, index = torch.cat([self.keys, _keys(gate.float(), number)], dim=1).topk(n)
        positions = self.position.gather(1, index.clamp_max(n - 1)).masked_fill(keys == 0, -1)
        # Only contexts that are new among the strongest have their positions looked up: a maximum
        # with its index takes ten times as long as the maximum alone.
        neuron, rank = ((index >= n) & (keys > 0)).nonzero(as_tuple=True)
        row = index[neuron, rank] - n
        new = values[row, :, neuron].max(dim=1).indices  # ties: the first
        positions[neuron, rank] = (new if position is None else position[row, new]).int()
        return _Best(keys, positions)


def merge_contexts(
    pieces: Iterable[tuple[int, Mapping[str, Tensor], Sequence[str]]],
    languages: tuple[str, ...],
    layout: UnitLayout | None = None,
) -> TopContexts:
    """The strongest contexts of all pieces; a piece is (language index, tensors, row sources).

    Holds the text of all pieces in memory, and the strongest contexts so far.
    """
    best: dict[int, _Best] = {}
    texts: list[list[tuple[Mapping[str, Tensor], Sequence[str]]]] = [[] for _ in languages]
    for language, tensors, sources in pieces:
        keys, position = tensors["contexts.keys"], tensors["contexts.position"]
        if language in best:
            n = keys.shape[2]
            keys, index = torch.cat([best[language].keys, keys], dim=2).topk(n)
            position = torch.cat([best[language].position, position], dim=2).gather(2, index)
        best[language] = _Best(keys, position)
        own_text = {name: tensors[f"contexts.{name}"] for name in _TEXT}
        texts[language].append((own_text, sources))
    width = max(int(text[0][0]["ids"].shape[1]) for text in texts)
    parts: list[_Part] = []
    for language, text in enumerate(texts):
        first_row = sum(len(part.ids) for part in parts)
        parts.append(_part(best.pop(language), text, first_row, width))
    return TopContexts(
        **{name: torch.stack([getattr(part, name) for part in parts]) for name in _AXES},
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in _TEXT},
        sources=tuple(source for part in parts for source in part.sources),
        languages=languages,
        units=() if layout is None else layout.layers,
    )


_AXES = ("gate", "row", "position")
_TEXT = ("ids", "starts", "length", "number")


@dataclass(frozen=True, eq=False)
class _Part:
    """Contexts of one language and the rows that hold them; fields as in `TopContexts`."""

    gate: Tensor
    row: Tensor
    position: Tensor
    ids: Tensor
    starts: Tensor
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
    """The strongest contexts of one language, with only those rows of text that hold one."""
    none = best.keys == 0
    gate = in_order(order_of(best.keys, _ROW_BITS).int()).view(torch.float32)
    number_of = _LAST_ROW - payload_of(best.keys, _ROW_BITS)
    used = number_of[~none].unique()
    row = torch.searchsorted(used, number_of) + first_row
    number, length, ids, starts = (
        torch.cat([tensors[name] for tensors, _ in texts])
        for name in ("number", "length", "ids", "starts")
    )
    sources = [source for _, row_sources in texts for source in row_sources]
    order, padding = number.argsort(), (0, width - ids.shape[1])
    chosen = order[torch.searchsorted(number[order], used)]
    return _Part(
        gate,
        row.masked_fill(none, -1).int(),
        best.position,
        pad(ids[chosen], padding),
        pad(starts[chosen], padding),
        length[chosen],
        used,
        tuple(sources[index] for index in chosen.tolist()),
    )


# ---------------------------------------------------------------- gates around contexts


class _Around:
    """Collects the gates around contexts from the rows being read."""

    kinds: tuple[Observed, ...] = ("pre",)

    def __init__(self, layer: Tensor, neuron: Tensor, row: Tensor, positions: Tensor) -> None:
        self._layer, self._neuron, self._row, self._positions = layer, neuron, row, positions
        self.gate = torch.full(positions.shape, torch.nan)

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        gates = rearrange(values, "batch pos neuron -> (batch pos) neuron").cpu()
        self._fill(layer, range(gates.shape[1]), batch, lambda token, unit: gates[token, unit])

    def update_rows(
        self,
        kind: Kind,
        layer: int,
        values: Float[Tensor, "row neuron"],
        rows: ExpertRows,
        batch: Batch,
    ) -> None:
        gates, shape = values.cpu(), (rows.n_experts, values.shape[1])
        row_of = torch.full((rows.n_experts, batch.ids.numel()), -1)
        expert = torch.tensor(0) if rows.expert is None else rows.expert.cpu()
        row_of[expert, rows.token.cpu()] = torch.arange(len(gates))

        def gates_of(token: Tensor, unit: Tensor) -> Tensor:
            expert, neuron = torch.unravel_index(unit - rows.first, shape)
            row = row_of[expert, token]
            return gates[row.clamp_min(0), neuron].masked_fill(row < 0, -torch.inf)

        units = range(rows.first, rows.first + rows.n_experts * shape[1])
        self._fill(layer, units, batch, gates_of)

    def _fill(
        self,
        layer: int,
        units: range,
        batch: Batch,
        gates_of: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Fill in the windows of these units from the gates of tokens, counted over the batch."""
        rows = torch.tensor(batch.rows)
        batch_index = torch.full((int(rows.max()) + 2,), -1)
        batch_index[rows] = torch.arange(len(rows))
        index = batch_index[self._row.clamp_max(len(batch_index) - 1)]  # the last entry: no row
        own = (self._neuron >= units.start) & (self._neuron < units.stop)
        context = (own & (self._layer == layer) & (index >= 0)).nonzero().flatten()
        if not len(context):
            return
        index, positions = index[context], self._positions[context]
        n_pos = batch.ids.shape[1]
        token = rearrange(index, "context -> context 1") * n_pos + positions.clamp(0, n_pos - 1)
        gates = gates_of(token, rearrange(self._neuron[context], "context -> context 1")).float()
        length = rearrange(batch.length[index].cpu(), "context -> context 1")
        inside = (positions >= 0) & (positions < length)
        self.gate[context] = gates.masked_fill(~inside, torch.nan)


def gates_around(
    model: AnyModel,
    contexts: TopContexts,
    chosen: Bool[Tensor, "layer neuron"],
    before: int,
    after: int,
    tokens_per_batch: int = 4096,
) -> Float32[Tensor, "language chosen rank window"]:
    """Gates of the chosen neurons on the tokens around each of their contexts.

    The window runs from `before` tokens before the context to `after` tokens after it; neurons are
    in layer order. Whole rows are read, as in the pass over text, so the value at the context is
    its stored gate, up to rounding. NaN: the row has no such token, or there is no context.
    Minus infinity: the neuron's expert does not get this token.

    Costs a forward pass over the rows that hold the contexts of chosen neurons.

    >>> contexts = interp.collect(model, text, keep=interp.Keep(contexts=2)).contexts
    >>> chosen = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    >>> chosen[5, :10] = True
    >>> interp.counting.gates_around(model, contexts, chosen, before=2, after=1).shape
    torch.Size([3, 10, 2, 4])
    """
    model = as_model(model)
    layers, neurons = chosen.nonzero(as_tuple=True)
    row = contexts.row[:, layers, neurons].long()
    position = contexts.position[:, layers, neurons].long()
    shape = (*row.shape, before + 1 + after)
    exists = row >= 0
    layer, neuron = (
        rearrange(index, "chosen -> 1 chosen 1").expand(row.shape)[exists]
        for index in (layers, neurons)
    )
    window = torch.arange(-before, after + 1)
    around = _Around(
        layer, neuron, row[exists], rearrange(position[exists], "context -> context 1") + window
    )
    for batch in _batches(contexts, row[exists].unique(), tokens_per_batch):
        observe(model, batch, [around])
    gate = torch.full(shape, torch.nan)
    gate[exists] = around.gate
    return gate


def _batches(
    contexts: TopContexts, rows: Int64[Tensor, " row"], tokens_per_batch: int
) -> Iterable[Batch]:
    """Batches of rows of similar length, of at most `tokens_per_batch` tokens with padding."""
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

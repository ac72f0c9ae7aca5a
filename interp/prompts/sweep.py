"""Many patches of one prompt in few passes: the engine of `interp.prompts.patching`.

A patch writes given values to some units of some layers at some tokens. Everything before its first
token and below its first layer is unchanged, so patches that begin near each other share an
`Ending`, and patches of one layer share a pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.models.recording import recording
from interp.models.running import wide
from interp.prompts.alignment import Span
from interp.prompts.ending import Edit, Ending
from interp.prompts.patch_paths import Action, Actions, Route, put
from interp.results.words import Kind
from interp.scores.baselines import random_units
from interp.text.tokens import by_length, padded

Values = Mapping[Kind, Sequence[Float[Tensor, "layer _ _"]]]
"""The values to write, by site and span: [layer, token of the span, unit]."""


class Patch(NamedTuple):
    """One variant of the prompt: its index in the result, and the layers it writes to."""

    source: int
    part: int
    row: int
    """The index on the layer axis."""
    span: int
    layers: range


class Sweep:
    """Runs patches of one prompt, which write to the sender of any route from any of `values`."""

    def __init__(
        self,
        model: NeuronModel,
        routes: Sequence[Route],
        values: Sequence[Values],
        spans: Sequence[Span],
        noise: Values | None = None,
        unpatched: Values | None = None,
    ) -> None:
        """With `noise`, random directions, there is one more source: it moves `unpatched` values as
        far as the first source would, over the units of each sender."""
        self._model, self._routes, self._values, self._spans = model, routes, values, spans
        self._noise, self._unpatched = noise, unpatched
        self._units: list[dict[Kind, list[Tensor]]] = [
            {site: [row.nonzero().flatten() for row in mask] for site, mask in route.sender.items()}
            for route in routes
        ]
        clean: set[Kind] = set()
        for route in routes:
            clean |= set(route.receivers) if route.path == "around" else set()
            clean |= {"attn_out", "mlp_out"} if route.path == "direct" else set()
        self._clean: tuple[Kind, ...] = tuple(clean)
        """Sites whose unpatched values are needed."""

    def run(
        self, ids: Int[Tensor, " pos"], patches: Sequence[Patch], max_positions: int
    ) -> Iterator[tuple[list[Patch], Float[Tensor, "patch vocab"], Float[Tensor, " vocab"]]]:
        """Batches of patches, their logits at the last token, and those of the unpatched prompt."""
        for first, chunk in self._chunks(patches, len(ids), max_positions):
            last = len(ids) - first
            ending = Ending(self._model, ids, last, self._clean)
            for batch in _batches(chunk, max_positions // last):
                edits: dict[tuple[Kind, int], Edit] = self._actions(
                    ending, batch, first, max_positions
                ).edits()
                if not edits:  # no units in these layers: run the prompt unpatched
                    site: Kind = next(iter(self._routes[batch[0].part].sender))
                    key: tuple[Kind, int] = (site, batch[0].layers[0])
                    edits[key] = lambda values, variants: values
                for numbers, logits in ending.run(len(batch), edits, max_positions):
                    yield [batch[number] for number in numbers.tolist()], logits, ending.logits

    def _first(self, patch: Patch) -> int:
        return self._spans[patch.span].target[0]

    def _chunks(
        self, patches: Sequence[Patch], length: int, max_positions: int
    ) -> Iterator[tuple[int, list[Patch]]]:
        """Patches that begin near each other; a layer's share of a group about fills a pass."""
        by_start: dict[int, list[Patch]] = {}
        for patch in patches:
            by_start.setdefault(self._first(patch), []).append(patch)
        n_layers = len({patch.layers[0] for patch in patches})
        begin, chunk = -1, []
        for start in sorted(by_start):
            added = by_start[start]
            size = (len(chunk) + len(added)) / n_layers * (length - begin)
            # A patch of the first token runs the whole prompt; other patches need not.
            if chunk and (begin == 0 or size > max_positions):
                yield begin, chunk
                chunk = []
            if not chunk:
                begin = start
            chunk = chunk + added
        yield begin, chunk

    def _actions(
        self, ending: Ending, batch: Sequence[Patch], offset: int, max_positions: int
    ) -> Actions:
        """Each patch writes its sender, its receivers, or both, as its route says."""
        received = self._received(ending, batch, offset, max_positions)
        actions = Actions()
        for number, patch in enumerate(batch):
            route = self._routes[patch.part]
            if route.path in (None, "around"):
                self._patch(actions, number, patch, offset)
            for site, layer, units in route.receivers_of(patch.layers):
                if route.path == "around":
                    values = ending.values[site][layer][:, units.to(self._model.device)]
                else:
                    values = received[number, site, layer]
                actions.add(site, layer, number, put(values, units))
        return actions

    def _received(
        self, ending: Ending, batch: Sequence[Patch], offset: int, max_positions: int
    ) -> dict[tuple[int, Kind, int], Float[Tensor, "pos _"]]:
        """What receivers have while the sender is patched, by number of the patch, site and layer.

        They need a pass of their own: the next one sets them to these values.
        """
        received: dict[tuple[int, Kind, int], Tensor] = {}
        actions = Actions()

        def keep(key: tuple[int, Kind, int], units: Tensor) -> Action:
            def action(row: Tensor) -> None:
                received[key] = row[:, units.to(row.device)].clone()

            return action

        routed = [n for n, patch in enumerate(batch) if self._routes[patch.part].reads_receivers]
        for variant, number in enumerate(routed):
            patch = batch[number]
            route = self._routes[patch.part]
            self._patch(actions, variant, patch, offset)
            if route.path == "direct":
                for site, layer in route.held(patch.layers[0], self._model.n_layers):
                    actions.add(site, layer, variant, put(ending.values[site][layer]))
            for site, layer, units in route.receivers_of(patch.layers):
                actions.add(site, layer, variant, keep((number, site, layer), units))
        for _ in ending.run(len(routed), actions.edits(), max_positions):
            pass
        return received

    def _patch(self, actions: Actions, variant: int, patch: Patch, offset: int) -> None:
        """Write the sender's units in each layer of the patch."""

        def action(site: Kind, layer: int) -> Action:
            return lambda row: self._write(row, patch, site, layer, offset)

        for site, units in self._units[patch.part].items():
            for layer in patch.layers:
                if len(units[layer]):
                    actions.add(site, layer, variant, action(site, layer))

    def _write(
        self, row: Float[Tensor, "pos unit"], patch: Patch, site: Kind, layer: int, offset: int
    ) -> None:
        span = self._spans[patch.span]
        target = torch.tensor(span.target, device=row.device) - offset
        units = self._units[patch.part][site][layer]
        new = self._new(patch, site, layer, units).to(row)
        if len(units) == row.shape[-1]:
            row[target] = new
        else:
            row[rearrange(target, "pos -> pos 1"), units.to(row.device)] = new

    def _new(
        self, patch: Patch, site: Kind, layer: int, units: Int[Tensor, " unit"]
    ) -> Float[Tensor, "pos unit"]:
        def of(values: Values) -> Tensor:
            rows = values[site][patch.span][layer]
            return rows if len(units) == rows.shape[-1] else rows[:, units.to(rows.device)]

        if patch.source < len(self._values):
            return of(self._values[patch.source])
        assert self._noise is not None
        assert self._unpatched is not None
        old, direction = of(self._unpatched), of(self._noise)
        distance = (of(self._values[0]) - old).norm(dim=-1, keepdim=True)
        return old + direction * distance / direction.norm(dim=-1, keepdim=True)


def _batches(patches: Sequence[Patch], full: int) -> Iterator[list[Patch]]:
    """As many patches as fill a pass, of one first layer, or of several layers with few patches."""
    batch: list[Patch] = []
    for patch in sorted(patches, key=lambda patch: patch.layers[0]):
        new_layer = bool(batch) and batch[-1].layers[0] != patch.layers[0]
        if batch and (len(batch) >= full or (new_layer and 2 * len(batch) >= full)):
            yield batch
            batch = []
        batch.append(patch)
    yield batch


class Recorded(NamedTuple):
    """Activations and logits of one prompt."""

    values: Values
    """In float32 or better."""

    logits: Float[Tensor, " vocab"] | None
    """At its last token; None: unknown."""


def record(
    model: NeuronModel,
    prompts: Sequence[Sequence[int]],
    spans: Sequence[Sequence[Sequence[int]]],
    sites: Sequence[Kind],
    max_positions: int,
) -> list[Recorded]:
    """Activations of prompts at these sites and at the positions of their spans, and their logits.

    Prompts of similar length share a pass of at most `max_positions` positions.
    """
    recorded: dict[int, Recorded] = {}
    for batch in by_length([len(ids) for ids in prompts], max_positions):
        chosen = [sorted({pos for span in spans[prompt] for pos in span}) for prompt in batch]
        values, logits = _run([prompts[prompt] for prompt in batch], chosen, sites, model)
        for row, prompt in enumerate(batch):
            rows = [[chosen[row].index(pos) for pos in span] for span in spans[prompt]]
            recorded[prompt] = Recorded(
                {site: [by_row[row][:, span] for span in rows] for site, by_row in values.items()},
                logits[row],
            )
    return [recorded[prompt] for prompt in range(len(prompts))]


def _run(
    prompts: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    sites: Sequence[Kind],
    model: NeuronModel,
) -> tuple[dict[Kind, list[Float[Tensor, "layer pos _"]]], Float[Tensor, "prompt vocab"]]:
    """One pass over prompts of increasing length: values at chosen positions, and last logits."""
    ids, mask = padded(prompts, "right")
    length = mask.sum(dim=1)
    shortest, longest = length.aminmax()

    def at_chosen(values: Tensor) -> list[Tensor]:
        rows = zip(values.flatten(2), chosen, strict=True)
        return [row[list(positions)].to(model.device) for row, positions in rows]

    with recording(model, sites, at_chosen) as passes:
        # Prompts of equal length have no padding, so attention needs no mask.
        logits = model.logits(
            ids, None if shortest == longest else mask, keep=int(longest - shortest) + 1
        )
    values: dict[Kind, list[Tensor]] = {}
    for site in sites:
        by_row = zip(*(passes[site, layer][0] for layer in range(model.n_layers)), strict=True)
        values[site] = [wide(torch.stack(rows)) for rows in by_row]
    return values, logits[torch.arange(len(prompts)), (length - shortest).to(logits.device)]


def random_matching(
    mask: Bool[Tensor, "layer unit"], generator: torch.Generator
) -> Bool[Tensor, "layer unit"]:
    """A random control: as many other units in every layer."""
    size = reduce(mask.long(), "layer unit -> layer 1", "sum")
    if (2 * size > mask.shape[1]).any():
        layer = int((size - mask.shape[1] // 2).argmax())
        raise ValueError(
            f"{int(size[layer])} of the {mask.shape[1]} units of layer {layer} are chosen, and "
            "there are not as many others to compare with: choose fewer, or give no generator."
        )
    return random_units(~mask.cpu(), size.flatten().cpu(), generator).to(mask.device)

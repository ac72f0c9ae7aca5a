"""Many patches of one prompt in few passes: the engine of `interp.prompts.patching`.

A patch writes given values to some units of some layers at some tokens. What comes before its first
token and below its first layer stays as it is, so patches that begin near each other share an
`Ending`, and those of one layer a pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.interventions.edits import Site
from interp.models.neuron_model import Hook, NeuronModel
from interp.models.recording import recording
from interp.models.running import wide
from interp.prompts.alignment import Span
from interp.prompts.ending import Edit, Ending
from interp.results.words import Kind
from interp.scores.baselines import random_units
from interp.text.tokens import by_length, padded

Place = Site | Literal["z"]
"""A site of the model, or "z": what heads give to attention's output projection."""

Units = Mapping[Place, Bool[Tensor, "layer _"]]
"""Which units are patched together, at each of several places."""

Values = Mapping[Place, Sequence[Float[Tensor, "layer _ _"]]]
"""What is written: by place, and for each span at its tokens."""

PLACES: tuple[Place, ...] = (*get_args(Kind), "z")


class Patch(NamedTuple):
    """One variant of the prompt: where it stands in the result, and the layers it writes to."""

    source: int
    part: int
    row: int
    """On the layer axis."""
    span: int
    layers: range


class Sweep:
    """All that patches of one prompt may write."""

    def __init__(
        self,
        model: NeuronModel,
        parts: Sequence[Units],
        values: Sequence[Values],
        spans: Sequence[Span],
        noise: Values | None = None,
        unpatched: Values | None = None,
    ) -> None:
        """With `noise`, random directions, there is one source more: it moves what is `unpatched`
        as far as the first source would, over the units of each part."""
        self._model, self._parts, self._values, self._spans = model, parts, values, spans
        self._noise, self._unpatched = noise, unpatched
        self._units = [
            {place: [row.nonzero().flatten() for row in mask] for place, mask in part.items()}
            for part in parts
        ]

    def run(
        self, ids: Int[Tensor, " pos"], patches: Sequence[Patch], max_positions: int
    ) -> Iterator[tuple[list[Patch], Float[Tensor, "patch vocab"], Float[Tensor, " vocab"]]]:
        """Some of the patches, their logits at the last token, and those of the prompt itself."""
        within_heads = any("z" in part for part in self._parts)
        for first, some in self._chunks(patches, len(ids), max_positions):
            last = len(ids) - first
            whole = _WholePrompts(self._model, ids) if within_heads else None
            ending = whole or Ending(self._model, ids, last)
            offset = first if whole is None else 0
            for batch in _batches(some, max_positions // last):
                edits = self._edits(batch, offset)
                for numbers, logits in ending.run(len(batch), edits, max_positions):
                    yield [batch[number] for number in numbers.tolist()], logits, ending.logits

    def _first(self, patch: Patch) -> int:
        return self._spans[patch.span].target[0]

    def _chunks(
        self, patches: Sequence[Patch], length: int, max_positions: int
    ) -> Iterator[tuple[int, list[Patch]]]:
        """Patches by where they begin: so many begin together as fill a pass for one layer."""
        by_start: dict[int, list[Patch]] = {}
        for patch in patches:
            by_start.setdefault(self._first(patch), []).append(patch)
        n_layers = len({patch.layers[0] for patch in patches})
        begin, chunk = -1, []
        for start in sorted(by_start):
            more = by_start[start]
            size = (len(chunk) + len(more)) / n_layers * (length - begin)
            # A patch of the first token is a whole prompt, which no other should have to be.
            if chunk and (begin == 0 or size > max_positions):
                yield begin, chunk
                chunk = []
            if not chunk:
                begin = start
            chunk = chunk + more
        yield begin, chunk

    def _edits(self, batch: Sequence[Patch], offset: int) -> dict[tuple[Any, int], Edit]:
        """What the patches of a batch do, at every place where one of them does something."""
        writers: dict[tuple[Any, int], set[int]] = {}
        for number, patch in enumerate(batch):
            for place, units in self._units[patch.part].items():
                for layer in patch.layers:
                    if len(units[layer]):
                        writers.setdefault((place, layer), set()).add(number)
        if not writers:  # nothing is chosen in these layers: the prompt as it is
            writers = {(next(iter(self._parts[batch[0].part])), batch[0].layers[0]): set()}

        def edit_for(place: Place, layer: int, here: set[int]) -> Edit:
            def edit(values: Tensor, numbers: Tensor) -> Tensor:
                changed = values.clone()
                for row, number in enumerate(numbers.tolist()):
                    if number in here:
                        self._write(changed[row], batch[number], place, layer, offset)
                return changed

            return edit

        return {where: edit_for(*where, here) for where, here in writers.items()}

    def _write(
        self, row: Float[Tensor, "pos unit"], patch: Patch, place: Place, layer: int, offset: int
    ) -> None:
        span = self._spans[patch.span]
        target = torch.tensor(span.target, device=row.device) - offset
        units = self._units[patch.part][place][layer]
        new = self._new(patch, place, layer, units).to(row)
        if len(units) == row.shape[-1]:
            row[target] = new
        else:
            row[rearrange(target, "pos -> pos 1"), units.to(row.device)] = new

    def _new(
        self, patch: Patch, place: Place, layer: int, units: Int[Tensor, " unit"]
    ) -> Float[Tensor, "pos unit"]:
        def of(values: Values) -> Tensor:
            rows = values[place][patch.span][layer]
            return rows if len(units) == rows.shape[-1] else rows[:, units.to(rows.device)]

        if patch.source < len(self._values):
            return of(self._values[patch.source])
        assert self._noise is not None
        assert self._unpatched is not None
        old, direction = of(self._unpatched), of(self._noise)
        far = (of(self._values[0]) - old).norm(dim=-1, keepdim=True)
        return old + direction * far / direction.norm(dim=-1, keepdim=True)


class _WholePrompts:
    """As `Ending`, for places inside attention: every variant is a whole prompt in a batch."""

    def __init__(self, model: NeuronModel, ids: Int[Tensor, " pos"]) -> None:
        self._model, self._ids = model, ids
        self.logits = model.logits(rearrange(ids, "pos -> 1 pos"), keep=1)[0, -1]

    def run(
        self, n_variants: int, edits: Mapping[tuple[Any, int], Edit], max_positions: int
    ) -> Iterator[tuple[Int[Tensor, " variant"], Float[Tensor, "variant vocab"]]]:
        for numbers in torch.arange(n_variants).split(max(1, max_positions // len(self._ids))):

            def hook_for(edit: Edit, numbers: Tensor = numbers) -> Hook:
                def run(values: Tensor, hook: Any) -> Tensor:
                    return edit(values.flatten(2), numbers).reshape(values.shape)

                return run

            hooks = [
                (site_name(self._model, layer, place), hook_for(edit))
                for (place, layer), edit in edits.items()
            ]
            with self._model.hooks(hooks):
                logits = self._model.logits(self._ids.expand(len(numbers), -1), keep=1)
            yield numbers, logits[:, -1]


def _batches(patches: Sequence[Patch], full: int) -> Iterator[list[Patch]]:
    """As many as a pass holds, of one first layer, or of several where they are few."""
    batch: list[Patch] = []
    for patch in sorted(patches, key=lambda patch: patch.layers[0]):
        new_layer = bool(batch) and batch[-1].layers[0] != patch.layers[0]
        if batch and (len(batch) >= full or (new_layer and 2 * len(batch) >= full)):
            yield batch
            batch = []
        batch.append(patch)
    yield batch


class Recorded(NamedTuple):
    """What one prompt has."""

    values: Values
    """In float32 or better."""

    logits: Float[Tensor, " vocab"]
    """At its last token."""


def record(
    model: NeuronModel,
    prompts: Sequence[Sequence[int]],
    spans: Sequence[Sequence[Sequence[int]]],
    places: Sequence[Place],
    max_positions: int,
) -> list[Recorded]:
    """What prompts have at these places at the positions of their spans, and what they answer.

    Prompts of like length share a pass of at most `max_positions` positions.
    """
    found: dict[int, Recorded] = {}
    for batch in by_length([len(ids) for ids in prompts], max_positions):
        chosen = [sorted({pos for span in spans[prompt] for pos in span}) for prompt in batch]
        values, logits = _run([prompts[prompt] for prompt in batch], chosen, places, model)
        for row, prompt in enumerate(batch):
            rows = [[chosen[row].index(pos) for pos in span] for span in spans[prompt]]
            found[prompt] = Recorded(
                {place: [each[row][:, span] for span in rows] for place, each in values.items()},
                logits[row],
            )
    return [found[prompt] for prompt in range(len(prompts))]


def _run(
    prompts: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    places: Sequence[Place],
    model: NeuronModel,
) -> tuple[dict[Place, list[Float[Tensor, "layer pos _"]]], Float[Tensor, "prompt vocab"]]:
    """One pass over prompts of rising length: values at chosen positions, and the last logits."""
    ids, mask = padded(prompts, "right")
    length = mask.sum(dim=1)
    shortest, longest = length.aminmax()

    def at_chosen(values: Tensor) -> list[Tensor]:
        rows = zip(values.flatten(2), chosen, strict=True)
        return [row[list(positions)].to(model.device) for row, positions in rows]

    with recording(model, places, at_chosen, site_name) as passes:
        # If all are of one length there is no padding, and attention may do without a mask.
        kept = model.logits(
            ids, None if shortest == longest else mask, keep=int(longest - shortest) + 1
        )
    values: dict[Place, list[Tensor]] = {}
    for place in places:
        by_row = zip(*(passes[place, layer][0] for layer in range(model.n_layers)), strict=True)
        values[place] = [wide(torch.stack(rows)) for rows in by_row]
    return values, kept[torch.arange(len(prompts)), (length - shortest).to(kept.device)]


def site_name(model: NeuronModel, layer: int, place: Place) -> str:
    """The hook of a place; refused where the model has none."""
    if place == "act":
        raise ValueError(
            "act(gate) is no place that another prompt's activations can be put: patch what the "
            'neurons give, at "post".'
        )
    if place != "z":
        return model.site(layer, place)
    name = f"blocks.{layer}.attn.hook_z"
    if name not in model.bridge.hook_dict:
        raise ValueError(
            f"The heads of {model.name} cannot be seen with attention={model.attention!r}: load it "
            'with interp.load(name, attention="hooked").'
        )
    return name


def width(model: NeuronModel, place: Place) -> int:
    """Units at a place; those of "z" are the heads' own, one head after the other."""
    site_name(model, 0, place)
    assert place != "act"
    return model.width(0, "q" if place == "z" else place)


def others(
    mask: Bool[Tensor, "layer unit"], generator: torch.Generator
) -> Bool[Tensor, "layer unit"]:
    """As many other units in every layer, drawn at random."""
    size = reduce(mask.long(), "layer unit -> layer 1", "sum")
    if (2 * size > mask.shape[1]).any():
        layer = int((size - mask.shape[1] // 2).argmax())
        raise ValueError(
            f"{int(size[layer])} of the {mask.shape[1]} units of layer {layer} are chosen, and "
            "there are not as many others to compare them with: choose fewer, or give no generator."
        )
    return random_units(~mask.cpu(), size.flatten().cpu(), generator).to(mask.device)

"""The checks of `doctor` for mixtures of experts: rows against the model's own weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.experts import Part, Rows
from interp.models.hook_checks import (
    STREAM,
    Answer,
    active_where_positive,
    agree,
    alone_and_in_batches,
    difference,
    edits_agree,
    generations_agree,
    goes_on,
    layers_seen,
    multiplied,
    residual_stream,
    tolerance,
    unchanged,
)
from interp.models.mixture_model import MixtureModel
from interp.models.recording import recording

NO_STREAM = "not asked: TransformerLens shows no residual stream of this model, so none is edited"
"""Of DeepSeek-V4, whose layers pass on several streams at once."""

Seen = dict[tuple[int, int], list[tuple[Rows, Tensor]]]
"""What hooks saw, by layer and first unit."""


def mixture_checks(
    model: MixtureModel, ids: Int[Tensor, "batch pos"]
) -> dict[str, Callable[[], Answer]]:
    """Checks by what should hold, in the order to run them."""
    clean = model.logits(ids)
    return {
        "every hook runs once per pass, on the rows of its experts": lambda: _calls(model, ids),
        "hooks that only look change nothing": lambda: _looking(model, ids, clean),
        "gates are what the weights make of the input": lambda: _gates(model, ids),
        "resid_pre is what a layer reads, resid_post its output": lambda: _residual(model, ids),
        "a neuron writes its column of the weights, for its token": lambda: _written(model, ids),
        "a neuron fires where its activation is positive": lambda: _fires(model, ids),
        "an edit at post equals one made in the weights": lambda: edits_agree(
            model, ids, clean, _edited_at_post, _edited_in_weights, model.layers_with_neurons
        ),
        "right padding changes nothing": lambda: _padding(model, ids, clean),
        "a text is read alike alone and in a batch": lambda: alone_and_in_batches(
            model, ids, clean
        ),
        "generation continues as the text is read": lambda: goes_on(model, ids),
        "edits apply during generation": lambda: generations_agree(
            model, ids, _edited_at_post, _edited_in_weights
        ),
        "the model is unchanged afterwards": lambda: unchanged(model, ids, clean),
    }


def _seen(model: MixtureModel, ids: Int[Tensor, "batch pos"], kind: Any) -> Seen:
    seen: Seen = {}

    def hook_for(layer: int) -> Callable[..., None]:
        def look(values: Tensor, hook: Rows) -> None:
            seen.setdefault((layer, hook.first), []).append((hook, values.clone()))

        return look

    layers = range(model.n_layers)
    with model.hooks([(model.rows_site(layer, kind), hook_for(layer)) for layer in layers]):
        model.body(ids)
    return seen


def _calls(model: MixtureModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    n_parts = 0
    for kind in ("pre", "pre_linear", "post") if model.gated else ("pre", "post"):
        seen = _seen(model, ids, kind)
        for layer, parts in enumerate(model.parts):
            for part in parts:
                calls = seen.get((layer, part.first), [])
                wrong = len(calls) != 1 or calls[0][1].shape[1] != part.d_expert
                if wrong or len(calls[0][1]) % ids.numel() or calls[0][0].shape != ids.shape:
                    shapes = [list(values.shape) for _, values in calls]
                    return False, f"{kind} of layer {layer} gave {shapes or 'nothing'}"
                n_parts += 1
    return True, f"{n_parts} sites"


def _looking(model: MixtureModel, ids: Int[Tensor, "batch pos"], clean: Tensor) -> Answer:
    def look(values: Tensor, hook: Rows) -> None:
        return None

    layers = range(model.n_layers)
    with model.hooks([(model.rows_site(layer, "post"), look) for layer in layers]):
        return agree(model, [(model.logits(ids), clean)])


def _gates(model: MixtureModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    """Row by row, each with the weights of its expert."""
    inputs: dict[Any, Tensor] = {}
    modules = [part.module for parts in model.parts for part in parts]

    def keep(module: Any, args: tuple[Any, ...]) -> None:
        inputs[module] = args[0].reshape(-1, args[0].shape[-1])

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        seen = _seen(model, ids, "pre")
    finally:
        for handle in handles:
            handle.remove()
    worst = 0.0
    for layer, parts in enumerate(model.parts):
        for part in parts:
            ((rows, gates),) = seen[layer, part.first]
            states = inputs[part.module][rows.token]
            expected = [
                part.gate(state, 0 if rows.expert is None else int(rows.expert[number]))
                for number, state in enumerate(states)
            ]
            worst = max(worst, difference(gates, torch.stack(expected)))
    return worst <= tolerance(model), f"within {worst:.1e}"


def _residual(model: MixtureModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    if not set(STREAM) <= set(model.sites(0)):
        return True, NO_STREAM
    with recording(model, STREAM, lambda values: values) as recorded:
        model.logits(ids)
    return residual_stream(model, recorded, ids)


def _written(model: MixtureModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    """One neuron of every row has more output, another one from row to row. The layer's output must
    be what it is if its MLP or experts, as they are, give what these neurons then write."""
    seen, weights = _seen(model, ids, "post"), _seen(model, ids, "routing")
    with layers_seen(model) as own:
        model.body(ids)
    pairs = []
    for layer, parts in enumerate(model.parts):
        clean = own["resid_post", layer]
        for part in parts:
            if getattr(part.module, "has_post_expert_norm", False):
                continue  # no sum of columns
            ((rows, post),) = seen[layer, part.first]
            neuron = 7 * torch.arange(len(post), device=post.device) % part.d_expert
            routing = weights[layer, part.first][0] if part.weighs_output else None
            write = _write(part, rows, neuron, routing, ids.numel())
            more = clean.abs().max() / write.abs().max()  # or rounding would hide the difference
            hooked = _output_with(model, ids, layer, part.first, neuron, more)
            with layers_seen(model) as expected, _adding(part.module, more * write):
                model.body(ids)
            pairs.append((hooked - clean, expected["resid_post", layer] - clean))
    return agree(model, pairs) if pairs else (True, "all experts have a norm behind them")


def _output_with(
    model: MixtureModel,
    ids: Int[Tensor, "batch pos"],
    layer: int,
    first: int,
    neuron: Int[Tensor, " row"],
    more: Float[Tensor, ""],
) -> Float[Tensor, "batch pos *stream d_model"]:
    """The output of a layer with more output of one neuron of each row."""

    def edit(values: Tensor, hook: Rows) -> Tensor | None:
        if hook.first != first:
            return None
        row = torch.arange(len(values), device=values.device)
        return values.index_put((row, neuron), more.to(values), accumulate=True)

    with layers_seen(model) as seen, model.hooks([(model.rows_site(layer, "post"), edit)]):
        model.body(ids)
    return seen["resid_post", layer]


def _write(
    part: Part,
    rows: Rows,
    neuron: Int[Tensor, " row"],
    routing: tuple[Rows, Float[Tensor, "token rank"]] | None,
    n_tokens: int,
) -> Float[Tensor, "token d_model"]:
    """What one neuron of each row adds to the output of a part, per unit of its own output."""
    column = part.written(rows.expert, neuron)
    if routing is not None:
        chosen, weight = routing
        assert chosen.expert is not None
        assert rows.expert is not None
        own = chosen.expert[rows.token] == rearrange(rows.expert, "row -> row 1")
        column = column * reduce(weight[rows.token] * own, "row rank -> row 1", "sum")
    written = torch.zeros(n_tokens, column.shape[1], dtype=column.dtype, device=column.device)
    return written.index_add(0, rows.token, column)


@contextmanager
def _adding(module: nn.Module, more: Float[Tensor, "token d_model"]) -> Iterator[None]:
    """Within the block, the output of a module has something added."""

    def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # with scores of routing
            return (add(module, args, output[0]), *output[1:])
        return output + more.view_as(output).to(output)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _fires(model: MixtureModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    seen = _seen(model, ids, "pre")
    return active_where_positive(
        [
            (seen[layer, part.first][0][1], part.activated)
            for layer, parts in enumerate(model.parts)
            for part in parts
        ]
    )


def _padding(model: MixtureModel, ids: Int[Tensor, "batch pos"], clean: Tensor) -> Answer:
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, ids.shape[1] // 2 :] = False
    padded = model.logits(ids.masked_fill(~mask, 0), mask)
    real = mask.to(clean.device)
    return agree(model, [(padded[real], clean[real])])


@contextmanager
def _edited_at_post(model: MixtureModel, layers: list[int]) -> Iterator[None]:
    """Every other neuron of every part."""

    def edit(values: Tensor, hook: Rows) -> Tensor:
        return multiplied(values)

    with model.hooks([(model.rows_site(layer, "post"), edit) for layer in layers]):
        yield


@contextmanager
def _edited_in_weights(model: MixtureModel, layers: list[int]) -> Iterator[None]:
    """The same in the projections that write their output."""
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for layer in layers:
            for part in model.parts[layer]:
                stored, axis = part.down()
                kept.append((stored, stored.clone()))
                stored.copy_(multiplied(stored.movedim(axis, -1)).movedim(-1, axis))
        yield
    finally:
        for stored, before in kept:
            stored.copy_(before)

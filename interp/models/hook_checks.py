"""The questions of `doctor` about the hooks of a model whose neurons see every token.

Every check compares what hooks show, or what edits do, with the model's own modules. It runs two
short texts, some of it once per layer.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.hooked_transformer import HookedTransformerModel
from interp.models.neuron_model import NeuronModel
from interp.models.recording import recording
from interp.results.words import Kind

Answer = tuple[bool, str]
"""Whether it holds; and the largest deviation, or where the check first fails."""

Edited = Callable[[Any, list[int]], AbstractContextManager[None]]
"""Within the block, half of the neurons of some layers of a model give `FACTOR` times as much."""

FACTOR = -2.0
"""Not zero, or an edit that is made several times would go unseen; exact in every precision."""

Recorded = dict[tuple[Kind, int], list[Tensor]]
STREAM: tuple[Kind, ...] = ("resid_pre", "resid_post")
KINDS: tuple[Kind, ...] = ("pre", "pre_linear", "post", "mlp_out", *STREAM)


def hook_checks(
    model: NeuronModel, ids: Int[Tensor, "batch pos"]
) -> dict[str, Callable[[], Answer]]:
    """Checks by what should hold, in the order to run them."""
    clean = model.logits(ids)
    with recording(model, _kinds(model), lambda values: values) as recorded:
        looked_at = model.logits(ids)
    post = "post is act(pre) times pre_linear" if model.gated else "post is act(pre)"
    return {
        "every hook runs once per pass, on [batch pos width]": lambda: _hook_calls(
            model, recorded, ids
        ),
        "hooks that only look change nothing": lambda: agree(model, [(looked_at, clean)]),
        post: lambda: _post(model, recorded),
        "mlp_out is post times w_out": lambda: _mlp_out(model, recorded),
        "resid_pre is what a layer reads, resid_post its output": lambda: residual_stream(
            model, recorded, ids
        ),
        "a neuron fires where its activation is positive": lambda: _fires(model, recorded),
        "an edit at post equals one made without hooks": lambda: edits_agree(
            model, ids, clean, _edited_at_post, _edited_without_hooks, range(model.n_layers)
        ),
        "an edit at any site moves the logits": lambda: _every_site(model, ids),
        "a neuron changed in the weights changes at its hooks": lambda: _planted(model, ids),
        "hooks see the same without the unembedding": lambda: _body(model, recorded, ids),
        "a cache holds what hooks see": lambda: _cache(model, recorded, ids),
        "right padding changes nothing": lambda: _padding(model, ids, recorded, clean),
        "a text is read alike alone and in a batch": lambda: alone_and_in_batches(
            model, ids, clean
        ),
        "generation continues as the text is read": lambda: goes_on(model, ids),
        "edits apply during generation": lambda: generations_agree(
            model, ids, _edited_at_post, _edited_without_hooks
        ),
        "the model is unchanged afterwards": lambda: unchanged(model, ids, clean),
    }


def _hook_calls(model: NeuronModel, recorded: Recorded, ids: Int[Tensor, "batch pos"]) -> Answer:
    wrong = []
    for layer in range(model.n_layers):
        for kind in _kinds(model):
            width = model.d_mlp if kind in ("pre", "pre_linear", "post") else model.d_model
            shapes = [list(values.shape) for values in recorded[kind, layer]]
            if shapes != [[*ids.shape, width]]:
                wrong.append(f"{model.site(layer, kind)} gave {shapes or 'nothing'}")
    return not wrong, wrong[0] if wrong else f"{model.n_layers * len(_kinds(model))} sites"


def _post(model: NeuronModel, recorded: Recorded) -> Answer:
    def expected(layer: int) -> Tensor:
        activated = model.act(layer, recorded["pre", layer][0])
        return activated * recorded["pre_linear", layer][0] if model.gated else activated

    layers = _complete(model, recorded)
    return agree(model, [(recorded["post", layer][0], expected(layer)) for layer in layers])


def _mlp_out(model: NeuronModel, recorded: Recorded) -> Answer:
    """Includes the bias, the norm that Gemma-2 and Gemma-3 apply, and the factor of Granite."""

    def expected(layer: int) -> Tensor:
        block = model.bridge.blocks[layer]
        bias, norm = block.mlp.b_out, getattr(block, "ln2_post", None)
        output = recorded["post", layer][0] @ model.w_out(layer) + (0.0 if bias is None else bias)
        output = output if norm is None else norm(output)
        return output * getattr(block, "residual_contribution_scale", 1.0)

    layers = _complete(model, recorded)
    return agree(model, [(recorded["mlp_out", layer][0], expected(layer)) for layer in layers])


def residual_stream(
    model: NeuronModel, recorded: Recorded, ids: Int[Tensor, "batch pos"]
) -> Answer:
    """Against the layers' own modules, without TransformerLens's hooks. A hook may see what a layer
    adds instead, where a kernel adds it to the rest later."""
    with layers_seen(model) as seen:
        model.logits(ids)
    sites = [site for site, values in recorded.items() if site[0] in STREAM and values]
    if missing := [site for site in sites if site not in seen]:
        return False, f"the module of layer {missing[0][1]} never ran"
    return agree(model, [(recorded[site][0], seen[site]) for site in sites])


@contextmanager
def layers_seen(model: NeuronModel) -> Iterator[dict[tuple[Kind, int], Tensor]]:
    """Within the block, what every layer reads and gives, as its own module has it."""
    seen: dict[tuple[Kind, int], Tensor] = {}

    def before(layer: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
            seen["resid_pre", layer] = (args[0] if args else settings["hidden_states"]).clone()

        return keep

    def after(layer: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen["resid_post", layer] = output[0] if isinstance(output, tuple) else output

        return keep

    with ExitStack() as cleanup:
        for layer, block in enumerate(model.bridge.blocks):
            module = getattr(block, "original_component", block)
            handle = module.register_forward_pre_hook(before(layer), with_kwargs=True)
            cleanup.callback(handle.remove)
            cleanup.callback(module.register_forward_hook(after(layer)).remove)
        yield seen


def _fires(model: NeuronModel, recorded: Recorded) -> Answer:
    layers = _complete(model, recorded)
    return active_where_positive(
        [(recorded["pre", layer][0], functools.partial(model.act, layer)) for layer in layers]
    )


def active_where_positive(layers: Sequence[tuple[Tensor, Callable[[Tensor], Tensor]]]) -> Answer:
    """The gates of the two texts with the activation function of each layer, which is also tried on
    a grid. xIELU, in Apertus, is positive again for very negative gates, so there a neuron that
    fires by its gate is not one that is active."""
    differ, seen, first = 0, 0, ""
    for gates, act in layers:
        grid = torch.linspace(-30, 30, 1201, device=gates.device, dtype=gates.dtype)
        grid = rearrange(grid[grid != 0], "gate -> gate 1")
        differ += int(((act(gates) > 0) != (gates > 0)).sum())
        seen += gates.numel()
        wrong = grid[(act(grid) > 0) != (grid > 0)]
        if len(wrong) and not first:
            first = f", as at {wrong[0].item():.1f}"
    if not differ and not first:
        return seen > 0, f"{seen:,} gates"
    return False, (
        f"the activation of {differ / seen:.1%} of gates has another sign than the gate{first}: "
        'count with fires_by="activation"'
    )


def edits_agree(
    model: NeuronModel,
    ids: Int[Tensor, "batch pos"],
    clean: Float[Tensor, "batch pos vocab"],
    edited: Edited,
    edited_without_hooks: Edited,
    layers: Sequence[int],
) -> Answer:
    """Half of a layer's neurons, edited by hooks and without, layer by layer."""
    worst = 0.0
    for layer in layers:
        with edited(model, [layer]):
            hooked = model.logits(ids)
        with edited_without_hooks(model, [layer]):
            reference = model.logits(ids)
        off_by, effect = difference(hooked, reference), difference(clean, reference)
        if effect == 0:
            return False, f"layer {layer} changes no logit: nothing to compare"
        if off_by > 0.02 * effect or math.isinf(off_by):
            return False, f"layer {layer} differs by {off_by:.1e}, its effect is {effect:.1e}"
        worst = max(worst, off_by)
    return True, f"within {worst:.1e}"


def _every_site(model: NeuronModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    """Each row of a batch has zeros at one site; all rows are the same text."""
    kinds, layers = _kinds(model), range(model.n_layers)
    sites: list[tuple[Kind, int]] = [(kind, layer) for layer in layers for kind in kinds]
    for chunk in [sites[n : n + 64] for n in range(0, len(sites), 64)]:
        rows = repeat(ids[0], "pos -> row pos", row=len(chunk) + 1)

        def zero(row: int) -> Callable[[Tensor, Any], Tensor]:
            def edit(values: Tensor, hook: Any) -> Tensor:
                index = torch.tensor([row], device=values.device)
                return values.index_fill(0, index, 0.0)

            return edit

        hooks = [(model.site(layer, kind), zero(row)) for row, (kind, layer) in enumerate(chunk)]
        with model.hooks(hooks):
            logits = model.logits(rows)
        for row, (kind, layer) in enumerate(chunk):
            if difference(logits[row], logits[-1]) < 1e-6:
                return False, f"zeros at {model.site(layer, kind)} change no logit"
    return True, f"{len(sites)} sites"


def _planted(model: NeuronModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    """Half of a layer's neurons read the opposite, then write twice as much, in the weights."""
    worst, half = 0.0, _half(model)
    for layer in {0, model.n_layers - 1}:
        reads = model.w_gate(layer)
        reads = model.w_in(layer) if reads is None else reads
        mlp = model.bridge.blocks[layer].mlp
        bias = getattr(mlp, "b_gate" if model.gated else "b_in", None)
        before = _pre(model, layer, ids)[..., half]
        with changed(reads, lambda weight: weight.index_copy(1, half, -weight[:, half])):
            after = _pre(model, layer, ids)[..., half]
        twice = 0.0 if bias is None else 2 * bias[half]
        worst = max(worst, difference(after - twice, -before))

        def doubled(values: Tensor, hook: Any) -> Tensor:
            index = half.to(values.device)
            return values.index_add(-1, index, values.index_select(-1, index))

        writes = model.w_out(layer)
        with changed(writes, lambda weight: weight.index_copy(0, half, 2 * weight[half])):
            reference = model.logits(ids)
        with model.hooks([(model.site(layer, "post"), doubled)]):
            worst = max(worst, difference(model.logits(ids), reference))
    return worst <= tolerance(model), f"within {worst:.1e}"


def alone_and_in_batches(
    model: NeuronModel, ids: Int[Tensor, "batch pos"], clean: Float[Tensor, "batch pos vocab"]
) -> Answer:
    alone = [(clean[row : row + 1], model.logits(ids[row : row + 1])) for row in range(len(ids))]
    return agree(model, alone)


def goes_on(model: NeuronModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    """The cache of generation against a whole pass over what it wrote, up to the end of a text."""
    written = model.continuations(ids, torch.ones_like(ids, dtype=torch.bool), max_new_tokens=4)
    logits = model.logits(written)[:, ids.shape[1] - 1 : -1]
    chosen = written[:, ids.shape[1] :].to(logits.device)
    ordinary = ~torch.isin(chosen, torch.tensor(model.special_ids, device=chosen.device))
    if not ordinary.any():
        return True, "the first token already ends the text"
    taken = logits.gather(-1, rearrange(chosen, "row pos -> row pos 1"))
    behind = logits.max(dim=-1).values - rearrange(taken, "row pos 1 -> row pos")
    share = (behind[ordinary].max() / logits.abs().max().clamp(min=1e-6)).item()
    return share <= tolerance(model), f"within {share:.1e}"


def _body(model: NeuronModel, full: Recorded, ids: Int[Tensor, "batch pos"]) -> Answer:
    with recording(model, _kinds(model), lambda values: values) as body:
        model.body(ids)
    for (kind, layer), tensors in full.items():
        if len(body[kind, layer]) != len(tensors):
            return False, f"the hook of {kind} in layer {layer} runs {len(body[kind, layer])} times"
    pairs = [(a, b) for key in full for a, b in zip(full[key], body[key], strict=True)]
    return agree(model, pairs)


def _cache(model: NeuronModel, recorded: Recorded, ids: Int[Tensor, "batch pos"]) -> Answer:
    """What TransformerLens's `run_with_cache` gives its users."""
    names: dict[str, tuple[Kind, int]] = {
        model.site(layer, kind): (kind, layer) for kind, layer in recorded
    }
    _, cache = model.run_with_cache(ids, names_filter=list(names))
    if missing := [name for name, key in names.items() if recorded[key] and name not in cache]:
        return False, f"{missing[0]} is not in the cache"
    return agree(
        model, [(recorded[key][0], cache[name]) for name, key in names.items() if recorded[key]]
    )


def _padding(
    model: NeuronModel,
    ids: Int[Tensor, "batch pos"],
    recorded: Recorded,
    clean: Float[Tensor, "batch pos vocab"],
) -> Answer:
    """Truncate the second text and pad it: results at the remaining tokens must not change."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, ids.shape[1] // 2 :] = False
    padded = ids.masked_fill(~mask, 0)
    pairs = [(clean, model.logits(padded, mask))]
    with recording(model, _kinds(model), lambda values: values) as with_padding:
        model.body(padded, mask)
    for layer in _complete(model, recorded):
        pairs.append((recorded["pre", layer][0], with_padding["pre", layer][0]))
    return agree(model, [(a[mask.to(a.device)], b[mask.to(b.device)]) for a, b in pairs])


def generations_agree(
    model: NeuronModel,
    ids: Int[Tensor, "batch pos"],
    edited: Edited,
    edited_without_hooks: Edited,
) -> Answer:
    """Three new tokens with half of all neurons edited; one of the two prompts is padded."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, : ids.shape[1] // 2] = False
    padded, layers = ids.masked_fill(~mask, 0), list(range(model.n_layers))
    with edited(model, layers):
        hooked = model.continuations(padded, mask, max_new_tokens=3)
    with edited_without_hooks(model, layers):
        reference = model.continuations(padded, mask, max_new_tokens=3)
    same = torch.equal(hooked, reference)
    return same, "the same tokens" if same else "different tokens from an edit without hooks"


def unchanged(
    model: NeuronModel, ids: Int[Tensor, "batch pos"], clean: Float[Tensor, "batch pos vocab"]
) -> Answer:
    same = torch.equal(model.logits(ids), clean)
    return same, "the same logits" if same else "logits differ from those of the first pass"


def _kinds(model: NeuronModel) -> list[Kind]:
    return [kind for kind in KINDS if kind != "pre_linear" or model.gated]


def _half(model: NeuronModel) -> Int[Tensor, " neuron"]:
    """Every other neuron."""
    return torch.arange(0, model.d_mlp, 2)


def multiplied(values: Tensor) -> Tensor:
    """Every other number of the last axis, times `FACTOR`."""
    even = torch.arange(values.shape[-1], device=values.device) % 2 == 0
    return values.where(~even, FACTOR * values)


@contextmanager
def _edited_at_post(model: NeuronModel, layers: list[int]) -> Iterator[None]:
    def edit(activation: Tensor, hook: Any) -> Tensor:
        return multiplied(activation)

    with model.hooks([(model.site(layer, "post"), edit) for layer in layers]):
        yield


@contextmanager
def _edited_without_hooks(model: NeuronModel, layers: list[int]) -> Iterator[None]:
    """The same edit without TransformerLens's hooks: a torch hook on the output projection, or, for
    a HookedTransformer, which has no such module, in its weights."""

    def edit(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (multiplied(args[0]),)

    blocks = [model.bridge.blocks[layer] for layer in layers]
    with ExitStack() as cleanup:
        for block in blocks:
            if isinstance(model, HookedTransformerModel):
                weight = block.mlp.W_out
                cleanup.callback(weight.copy_, weight.clone())
                weight[_half(model)] *= FACTOR
            else:
                projection = block.mlp.out.original_component
                cleanup.callback(projection.register_forward_pre_hook(edit).remove)
        yield


def _pre(
    model: NeuronModel, layer: int, ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos neuron"]:
    """The gates of one layer."""
    with recording(model, ["pre"], lambda values: values) as recorded:
        model.logits(ids)
    return recorded["pre", layer][0]


@contextmanager
def changed(weight: Tensor, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, a weight of the model has other values."""
    before = weight.clone()
    weight.copy_(change(before))
    try:
        yield
    finally:
        weight.copy_(before)


def _complete(model: NeuronModel, recorded: Recorded) -> list[int]:
    """Layers where every hook ran, so that their values can be compared with one another."""
    layers = range(model.n_layers)
    return [layer for layer in layers if all(recorded[kind, layer] for kind in _kinds(model))]


def agree(model: NeuronModel, pairs: list[tuple[Tensor, Tensor]]) -> Answer:
    """Whether all pairs are equal up to rounding, which is coarse in 16 bits."""
    if not pairs:
        return False, "nothing to compare"
    worst = max(difference(a, b) for a, b in pairs)
    return worst <= tolerance(model), f"within {worst:.1e}"


def tolerance(model: NeuronModel) -> float:
    """Of a difference, as a share of the largest value."""
    return 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.05


def difference(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float:
    """The largest difference relative to the largest value; infinite instead of NaN."""
    if a.shape != b.shape:
        return float("inf")
    share = (a - b).abs().max() / b.abs().max().clamp(min=1e-6)
    return share.nan_to_num(nan=float("inf")).item()

"""The questions of `doctor` about the hooks of a mixture of experts."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.experts import DensePart, Part, RowKind, Rows
from interp.models.hook_checks import (
    Answer,
    agree,
    alone_and_in_batches,
    changed,
    difference,
    goes_on,
    tolerance,
    unchanged,
)
from interp.models.mixture_model import MixtureModel

Ids = Int[Tensor, "batch pos"]
Logits = Float[Tensor, "batch pos vocab"]


def mixture_checks(model: MixtureModel, ids: Ids) -> dict[str, Callable[[], Answer]]:
    """Checks by what should hold, in the order to run them."""
    clean = model.logits(ids)
    return {
        "neurons are shown on the tokens routed to them": lambda: _rows(model, ids),
        "the model computes the same when it is watched": lambda: _watched(model, ids, clean),
        "an edit at post equals one of the weights": lambda: _edits(model, ids, clean),
        "a neuron changed in the weights changes at its hooks": lambda: _planted(model, ids),
        "right padding changes nothing": lambda: _padding(model, ids, clean),
        "a text is read alike alone and in a batch": lambda: alone_and_in_batches(
            model, ids, clean
        ),
        "generation continues as the text is read": lambda: goes_on(model, ids),
        "edits apply during generation": lambda: _generation(model, ids),
        "the model is unchanged afterwards": lambda: unchanged(model, ids, clean),
    }


def _rows(model: MixtureModel, ids: Ids) -> Answer:
    """Dense neurons see every token once, those of experts a token as often as it has experts."""
    total = 0
    for layer, parts in enumerate(model._parts):
        for part, seen in zip(parts, _shown(model, "post", layer, ids), strict=True):
            values, rows = seen
            experts = None if rows.expert is None else rows.expert.unique().tolist()
            ranks = len(rows.token) / ids.numel()
            right = rows.token.bincount(minlength=ids.numel()) == ranks
            if values.shape != (len(rows.token), part.d_expert) or not right.all():
                return False, f"layer {layer} shows {list(values.shape)} for {ids.numel()} tokens"
            if isinstance(part, DensePart) != (experts is None and ranks == 1):
                return False, f"layer {layer} shows dense neurons as those of experts"
            if experts is not None and not 0 <= min(experts) <= max(experts) < part.n_experts:
                return False, f"layer {layer} shows expert {max(experts)} of {part.n_experts}"
            total += len(rows.token)
    return True, f"{total:,} rows"


def _watched(model: MixtureModel, ids: Ids, clean: Logits) -> Answer:
    def look(values: Tensor, hook: Any) -> None:
        pass

    kinds: tuple[RowKind, ...] = ("pre", "post", "routing")
    sites = [model.rows_site(layer, kind) for layer in range(model.n_layers) for kind in kinds]
    with model.hooks([(site, look) for site in sites]):
        return agree(model, [(clean, model.logits(ids))])


def _edits(model: MixtureModel, ids: Ids, clean: Logits) -> Answer:
    """Half of the neurons of every expert, off at `post` and off in the weights, by layer."""
    worst = 0.0
    for layer in range(model.n_layers):
        with model.hooks([(model.rows_site(layer, "post"), _half_off)]):
            hooked = model.logits(ids)
        with _off_in_the_weights(model, [layer]):
            reference = model.logits(ids)
        effect = difference(clean, reference)
        if effect == 0:
            return False, f"layer {layer} changes no logit: nothing to compare"
        worst = max(worst, difference(hooked, reference) / effect)
    return worst <= 0.02, f"within {worst:.1e} of the effect"


def _planted(model: MixtureModel, ids: Ids) -> Answer:
    """Every neuron of a layer reads the opposite; what stays the same of its gate is a bias."""
    worst = 0.0
    for layer in {0, model.n_layers - 1}:
        before = _shown(model, "pre", layer, ids)
        with ExitStack() as stack:
            for part in model._parts[layer]:
                stack.enter_context(changed(_reading(part), lambda weight: -weight))
            after = _shown(model, "pre", layer, ids)
        for (old, rows), (new, _) in zip(before, after, strict=True):
            if old.shape != new.shape:
                return False, f"layer {layer} routes by what its experts read"
            bias, expert = (old + new) / 2, rows.expert
            if expert is None:
                expert = torch.zeros(len(bias), dtype=torch.long, device=bias.device)
            for each in expert.unique():
                spread = bias[expert == each].std(0, False).max() / old.abs().max().clamp(min=1e-6)
                worst = max(worst, spread.item())
            if difference(new, old) < 0.1:
                return False, f"the gates of layer {layer} do not follow its weights"
    return worst <= tolerance(model), f"within {worst:.1e}"


def _padding(model: MixtureModel, ids: Ids, clean: Logits) -> Answer:
    """Truncate the second text and pad it: the logits of the tokens that remain must not change."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, ids.shape[1] // 2 :] = False
    logits, kept = model.logits(ids.masked_fill(~mask, 0), mask), mask.to(clean.device)
    return agree(model, [(clean[kept], logits[kept])])


def _generation(model: MixtureModel, ids: Ids) -> Answer:
    """Three new tokens with half of all neurons off."""
    mask, layers = torch.ones_like(ids, dtype=torch.bool), range(model.n_layers)
    with model.hooks([(model.rows_site(layer, "post"), _half_off) for layer in layers]):
        hooked = model.continuations(ids, mask, max_new_tokens=3)
    with _off_in_the_weights(model, layers):
        reference = model.continuations(ids, mask, max_new_tokens=3)
    same = torch.equal(hooked, reference)
    return same, "the same tokens" if same else "different tokens from an edit of the weights"


# ---------------------------------------------------------------- neurons and their weights


def _shown(
    model: MixtureModel, kind: RowKind, layer: int, ids: Ids
) -> list[tuple[Float[Tensor, "row neuron"], Rows]]:
    """What a hook sees of a layer, part by part; some models run shared experts last."""
    seen: list[tuple[Tensor, Rows]] = []

    def keep(values: Tensor, hook: Rows) -> None:
        seen.append((values.clone(), hook))

    with model.hooks([(model.rows_site(layer, kind), keep)]):
        model.logits(ids)
    return sorted(seen, key=lambda shown: shown[1].first)


def _half_off(values: Float[Tensor, "row neuron"], hook: Any) -> Float[Tensor, "row neuron"]:
    """Every other neuron of every part at zero."""
    off = torch.arange(0, values.shape[-1], 2, device=values.device)
    return values.index_fill(-1, off, 0.0)


@contextmanager
def _off_in_the_weights(model: MixtureModel, layers: Any) -> Iterator[None]:
    """The same by the weights that read these neurons."""
    with ExitStack() as stack:
        for layer in layers:
            for part in model._parts[layer]:
                weight, axis = _writing(part)
                off = torch.arange(0, part.d_expert, 2, device=weight.device)
                zero = partial(torch.index_fill, dim=axis, index=off, value=0.0)
                stack.enter_context(changed(weight, zero))
        yield


def _reading(part: Part) -> Tensor:
    """The weights into the gates of a part; in experts, with those of the linear branch."""
    if isinstance(part, DensePart):
        projection: Any = part.mlp.gate_proj if part.gated else part.mlp.up_proj
        return _plain(projection).weight
    experts: Any = part.experts
    return experts.gate_up_proj if part.gated else experts.up_proj


def _writing(part: Part) -> tuple[Tensor, int]:
    """The weights from the neurons of a part, and their axis of neurons."""
    if isinstance(part, DensePart):
        return _plain(part.mlp.down_proj).weight, 1
    experts: Any = part.experts
    return experts.down_proj, 1 if experts.is_transposed else 2


def _plain(projection: Any) -> Any:
    """A linear layer without the bridge around it."""
    return getattr(projection, "original_component", projection)

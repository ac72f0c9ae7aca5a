"""Do the neuron hooks of a model tell the truth? A table of checks, for any architecture.

A hook may never run, be attached to a different tensor than its name says, or ignore an edit, and
nothing downstream would notice. Each check here compares hooks with the model's own modules.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.any_model import AnyModel, as_model
from interp.models.beginning import Beginning, measure_beginning
from interp.models.hooked_transformer import HookedTransformerModel
from interp.models.mixture_doctor import mixture_checks
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.models.recording import recording
from interp.results.bars import tqdm
from interp.results.display import Cells, Shaded, Shown, listed
from interp.results.words import Kind

Recorded = dict[tuple[Kind, int], list[Tensor]]
Answer = tuple[bool, str]
KINDS: tuple[Kind, ...] = ("pre", "pre_linear", "post", "mlp_out", "resid_pre", "resid_post")


@dataclass(frozen=True)
class Check:
    """One question about a model's hooks."""

    name: str
    """What should hold."""

    passed: bool
    """Whether it holds."""

    detail: str
    """The largest deviation, or where the check first fails."""


@dataclass(frozen=True)
class Diagnosis(Shown):
    """Result of `doctor`; print it, or display it in a notebook, to see the table."""

    model: str
    """Name of the model."""

    checks: tuple[Check, ...]
    """In the order they ran; an early failure often explains later ones."""

    beginning: Beginning | None = None
    """How the model wants a text to begin; None: there is no token to begin one with, or a
    check failed."""

    @property
    def ok(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """`ok` in words."""
        return "its hooks tell the truth" if self.ok else "do not trust its neurons"

    def __repr__(self) -> str:
        failed = [check.name for check in self.checks if not check.passed]
        failures = f"; failed: {listed(failed)}" if failed else ""
        passed = f"{len(self.checks) - len(failed)} of {len(self.checks)} checks passed{failures}"
        return f"Diagnosis({self.model}: {self.verdict}; {passed})"

    def _cells(self) -> Cells:
        rows = [
            [check.name, "ok" if check.passed else Shaded("FAIL", 1.0), check.detail]
            for check in self.checks
        ]
        note = "" if self.beginning is None else str(self.beginning)
        return Cells(("", "", "seen"), rows, note)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        rows = [
            f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<{width}}  {check.detail}"
            for check in self.checks
        ]
        rows += [] if self.beginning is None else [str(self.beginning)]
        return "\n".join([f"{self.model}: {self.verdict}", *rows])


def doctor(model: AnyModel, length: int = 12, seed: int = 0) -> Diagnosis:
    """Check every layer's hooks on two random texts, in two short passes per layer, and measure on
    24 sentences whether the model wants a beginning-of-text token.

    >>> diagnosis = interp.doctor(model)
    >>> diagnosis.ok, len(diagnosis.checks)
    (True, 8)
    >>> print(diagnosis.checks[-1].name)
    the model is unchanged afterwards
    """
    model = as_model(model)
    ids = _random_ids(model, length, seed)
    with torch.no_grad():
        clean = model.logits(ids)
        if isinstance(model, MixtureModel):
            return _diagnosis(model, mixture_checks(model, ids, clean))
        with recording(model, _kinds(model), lambda values: values) as recorded:
            model.logits(ids)
        post = "post is act(pre) times pre_linear" if model.gated else "post is act(pre)"
        checks: dict[str, Callable[[], Answer]] = {
            "every hook runs once per pass, on [batch pos width]": lambda: _hook_calls(
                model, recorded, ids
            ),
            post: lambda: _post(model, recorded),
            "mlp_out is post times w_out": lambda: _mlp_out(model, recorded),
            "an edit at post equals one made without hooks": lambda: _edits(model, ids, clean),
            "hooks see the same without the unembedding": lambda: _body(model, recorded, ids),
            "right padding changes nothing": lambda: _padding(model, ids, recorded, clean),
            "edits apply during generation": lambda: _generation(model, ids),
            "the model is unchanged afterwards": lambda: _unchanged(model, ids, clean),
        }
        return _diagnosis(model, checks)


def _diagnosis(model: NeuronModel, checks: Mapping[str, Callable[[], Answer]]) -> Diagnosis:
    bar = tqdm(checks.items(), "checking hooks", unit="check")
    results = tuple(_run(name, check) for name, check in bar)
    sound = all(check.passed for check in results)
    return Diagnosis(model.name, results, measure_beginning(model) if sound else None)


def _run(name: str, check: Callable[[], Answer]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # a broken model may fail anywhere: report it as a failed check
        return Check(name, False, f"cannot be checked: {type(error).__name__}: {error}")


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
    return _agree(model, [(recorded["post", layer][0], expected(layer)) for layer in layers])


def _mlp_out(model: NeuronModel, recorded: Recorded) -> Answer:
    """Includes the bias, and the norm that Gemma-2 and Gemma-3 apply afterwards."""

    def expected(layer: int) -> Tensor:
        block = model.bridge.blocks[layer]
        bias, norm = block.mlp.b_out, getattr(block, "ln2_post", None)
        output = recorded["post", layer][0] @ model.w_out(layer) + (0.0 if bias is None else bias)
        return output if norm is None else norm(output)

    layers = _complete(model, recorded)
    return _agree(model, [(recorded["mlp_out", layer][0], expected(layer)) for layer in layers])


def _edits(
    model: NeuronModel, ids: Int[Tensor, "batch pos"], clean: Float[Tensor, "batch pos vocab"]
) -> Answer:
    """Half of a layer's neurons, off at `post` and off without hooks, layer by layer."""
    worst = 0.0
    for layer in range(model.n_layers):
        with _off_at_post(model, [layer]):
            hooked = model.logits(ids)
        with _off_without_hooks(model, [layer]):
            reference = model.logits(ids)
        difference, effect = _difference(hooked, reference), _difference(clean, reference)
        if effect == 0:
            return False, f"layer {layer} changes no logit: nothing to compare"
        if difference > 0.02 * effect or math.isinf(difference):
            return False, f"layer {layer} differs by {difference:.1e}, its effect is {effect:.1e}"
        worst = max(worst, difference)
    return True, f"within {worst:.1e}"


def _body(model: NeuronModel, full: Recorded, ids: Int[Tensor, "batch pos"]) -> Answer:
    with recording(model, _kinds(model), lambda values: values) as body:
        model.body(ids)
    for (kind, layer), tensors in full.items():
        if len(body[kind, layer]) != len(tensors):
            return False, f"the hook of {kind} in layer {layer} runs {len(body[kind, layer])} times"
    pairs = [(a, b) for key in full for a, b in zip(full[key], body[key], strict=True)]
    return _agree(model, pairs)


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
    return _agree(model, [(a[mask.to(a.device)], b[mask.to(b.device)]) for a, b in pairs])


def _generation(model: NeuronModel, ids: Int[Tensor, "batch pos"]) -> Answer:
    """Three new tokens with half of all neurons off; one of the two prompts is padded."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, : ids.shape[1] // 2] = False
    padded, layers = ids.masked_fill(~mask, 0), list(range(model.n_layers))
    with _off_at_post(model, layers):
        hooked = model.continuations(padded, mask, max_new_tokens=3)
    with _off_without_hooks(model, layers):
        reference = model.continuations(padded, mask, max_new_tokens=3)
    same = torch.equal(hooked, reference)
    return same, "the same tokens" if same else "different tokens from an edit without hooks"


def _unchanged(
    model: NeuronModel, ids: Int[Tensor, "batch pos"], clean: Float[Tensor, "batch pos vocab"]
) -> Answer:
    same = torch.equal(model.logits(ids), clean)
    return same, "the same logits" if same else "logits differ from those of the first pass"


def _random_ids(model: NeuronModel, length: int, seed: int) -> Int[Tensor, "batch pos"]:
    """Two texts of random tokens, without special tokens."""
    weight = torch.ones(model.n_vocab)
    weight[[id for id in model.special_ids if id < model.n_vocab]] = 0.0
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(2, length, model.n_vocab, generator=generator) * weight
    return drawn.argmax(dim=-1)


def _kinds(model: NeuronModel) -> list[Kind]:
    return [kind for kind in KINDS if kind != "pre_linear" or model.gated]


def _half(model: NeuronModel) -> Int[Tensor, " neuron"]:
    """Every other neuron."""
    return torch.arange(0, model.d_mlp, 2)


@contextmanager
def _off_at_post(model: NeuronModel, layers: list[int]) -> Iterator[None]:
    def edit(activation: Tensor, hook: Any) -> Tensor:
        return activation.index_fill(-1, _half(model).to(activation.device), 0.0)

    with model.hooks([(model.site(layer, "post"), edit) for layer in layers]):
        yield


@contextmanager
def _off_without_hooks(model: NeuronModel, layers: list[int]) -> Iterator[None]:
    """The same edit without TransformerLens's hooks: a torch hook on the output projection, or, for
    a HookedTransformer, which has no such module, zeros in its weights."""

    def silence(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].index_fill(-1, _half(model).to(args[0].device), 0.0),)

    blocks = [model.bridge.blocks[layer] for layer in layers]
    with ExitStack() as cleanup:
        for block in blocks:
            if isinstance(model, HookedTransformerModel):
                weight = block.mlp.W_out
                cleanup.callback(weight.copy_, weight.clone())
                weight[_half(model)] = 0.0
            else:
                projection = block.mlp.out.original_component
                cleanup.callback(projection.register_forward_pre_hook(silence).remove)
        yield


def _complete(model: NeuronModel, recorded: Recorded) -> list[int]:
    """Layers where every hook ran, so that their values can be compared with one another."""
    layers = range(model.n_layers)
    return [layer for layer in layers if all(recorded[kind, layer] for kind in _kinds(model))]


def _agree(model: NeuronModel, pairs: list[tuple[Tensor, Tensor]]) -> Answer:
    """Whether all pairs are equal up to rounding, which is coarse in 16 bits."""
    if not pairs:
        return False, "nothing to compare"
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.05
    worst = max(_difference(a, b) for a, b in pairs)
    return worst <= tolerance, f"within {worst:.1e}"


def _difference(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float:
    """The largest difference relative to the largest value; infinite instead of NaN."""
    if a.shape != b.shape:
        return float("inf")
    share = (a - b).abs().max() / b.abs().max().clamp(min=1e-6)
    return share.nan_to_num(nan=float("inf")).item()

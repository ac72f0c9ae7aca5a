"""What a prompt would answer if some of its activations came from another prompt.

Activation patching: activations of a source prompt are put into a target prompt, at some units of
some layers and at matching tokens, and the model continues from there. Its answer shows what those
units carry. To ask whether concept and language are separate, take two prompts that differ in both
(Dumas et al., 2024): a source about A in one language, a target about B in another, and the four
answers, A and B in either language.

    result = interp.patch(model, "Die Hauptstadt von Frankreich ist", "The capital of Italy is",
                          {"A de": " Paris", "B en": " Rome", ...}, layers="from")
    result.probability, result.to_frame()

Or as in `transformer_lens.patching`, from the cache of a clean prompt into a corrupted one, at each
layer and token, with a function of the logits:

    result = interp.patch(model, clean_cache, corrupted_tokens, logit_difference, "resid_pre",
                          at="tokens")
    result.value[0, 0, ..., 0]  # [layer, token]
    interp.plots.patching(result.to_frame())

With `receivers`, such as the neurons of a language, it also shows what reaches the answer through
them and what goes around them (`interp.prompts.patch_paths`).

One call covers a source prompt and its controls, and several parts, layers and spans. The prompt is
cut where the first of a few neighboring spans begins, and everything before it and below the first
layer is computed once (`interp.prompts.ending`).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from interp.interventions.edits import Site
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.prompts.alignment import At, is_prompt
from interp.prompts.metrics import Metric, check_metric, measure
from interp.prompts.patch_paths import Path, Route, Units, routes
from interp.prompts.patch_sources import RecordedSources, Sources, record_sources, type_of
from interp.prompts.patching_result import PatchingResult
from interp.prompts.sweep import Patch, Sweep, random_matching
from interp.prompts.targets import target_ids
from interp.results.bars import tqdm
from interp.results.words import Bos, Layers
from interp.text.tokens import Prompt, prompt_ids

Part = Site | Bool[Tensor, "layer neuron"] | Units
"""All units of a site, such as "resid_post"; neurons of the MLP, such as `selection["de"]`, or
`~selection["de"]` for all others; or units of several sites, such as `selection.units("de")`."""

Parts = Site | Bool[Tensor, "layer neuron"] | Mapping[str, Part]
"""What is patched: a part, or several by name, each patched alone."""

Answer = int | str | Sequence[int] | Metric
"""A token id; a text, whose first token after the target counts; several token ids, any of which
will do; or a metric, a function of the logits."""

Measured = Mapping[str, Sequence[int] | Metric]
"""By name: the tokens whose log-probability is measured, or a metric."""


def patch(
    model: AnyModel,
    source: Sources,
    target: Prompt,
    answers: Mapping[str, Answer] | Metric,
    parts: Parts = "resid_post",
    layers: Layers = "each",
    at: At = "last",
    controls: Mapping[str, Sources] | None = None,
    generator: torch.Generator | None = None,
    max_positions: int = 512,
    bos: Bos = "auto",
    receivers: Parts | None = None,
    paths: Sequence[Path] = ("through", "around"),
) -> PatchingResult:
    """The target's answers, with each part of the source put in at each layer and each span.

    A source is a prompt, or an `ActivationCache` of one. `answers` are tokens, whose probability is
    measured, or metrics such as a difference of logits (`interp.prompts.metrics`).

    `controls` are other sources, such as one about another concept, or one in the target's
    language. A `generator` adds another source, "noise", which moves the target's activations as
    far as the source would, in a random direction; and for every part that is a set of units, a
    part "random ..." of as many other units in each layer.

    `receivers` are later units, given as `parts` are, through which the effect of a part may pass.
    The result has one more part for each of them and each of `paths`: "resid_post through German",
    what reaches the answer through these neurons; "around", what reaches it without them; "direct
    to", what they read from the patched units with no attention or MLP between
    (`interp.prompts.patch_paths`). With a `generator`, sets of units have random ones beside them.

    The answer depends only on the last token's residual stream after the last layer: patched there,
    the target always gives the source's answer. Patch earlier tokens (`at`) or earlier layers. A
    part without units in a layer leaves that layer unpatched. `bos` says what is put before text.

    Cost: each prompt once, and for each patch the tokens from its span to the end, in the layers
    from its own up; twice that for "through" and "direct to". `max_positions` bounds how many
    positions are in one pass.
    In 16 bits, log probabilities are accurate to 0.01: load with dtype=torch.float32 for more.

    >>> source, target = "Der Tag nach Montag ist", "The day after Friday is"
    >>> answers = {"Tuesday": " Tuesday", "Saturday": " Saturday", "Dienstag": " Dienstag"}
    >>> result = interp.patch(model, source, target, answers)
    >>> result.answers[result.probability[0, 0, 4, 0].argmax()]  # at layer 4 it is in German
    'Dienstag'

    Only the neurons of English, and all but them, at every token:

    >>> parts = {"English": neurons["en"], "all others": ~neurons["en"]}
    >>> clean, corrupted = "Der Tag nach Montag ist", "Der Tag nach Freitag ist"
    >>> _, cache = model.run_with_cache(torch.tensor([model.encode(clean)]))
    >>> ids = [model.encode(clean + day)[-1] for day in (" Dienstag", " Samstag")]
    >>> def difference(logits):
    ...     return logits[:, -1, ids[0]] - logits[:, -1, ids[1]]
    >>> result = interp.patch(model, cache, corrupted, difference, parts, at="tokens")
    >>> result.value.shape == (1, 2, 6, len(model.encode(corrupted)), 1)
    True

    How much of what an MLP writes reaches the answer through the neurons of German:

    >>> german = {"German": neurons["de"]}
    >>> result = interp.patch(model, source, target, answers, "mlp_out", receivers=german)
    >>> result.parts
    ('mlp_out', 'mlp_out through German', 'mlp_out around German')
    """
    model = as_model(model)
    _check_asked(layers, target)
    sources = {"source": source, **(controls or {})}
    if callable(answers):
        answers = {"metric": answers}
    measured = _measured(model, target, answers)
    units = _units(model, parts, generator)
    reached = {} if receivers is None else _units(model, receivers, generator)
    followed = routes(model, units, reached, paths, layers)
    numbers = range(1 if layers == "all" else model.n_layers)
    with torch.no_grad():
        recorded = record_sources(model, sources, target, at, bos, units, generator, max_positions)
        own = [_values_of_source(logits, measured) for logits in recorded.logits]
        names = list(sources)
        if recorded.noise is not None:
            names, own = [*names, "noise"], [*own, torch.full_like(own[0], torch.nan)]
        shape = (len(names), len(followed), len(numbers), len(recorded.spans))
        reach = [range(n, n + 1 if layers == "each" else model.n_layers) for n in numbers]
        patches = [
            Patch(source, part, row, span, reach[row])
            for source, part, row, span in product(*map(range, shape))
        ]
        ids = prompt_ids(model, target, bos)
        swept = _swept(model, recorded, ids, followed, patches, shape, measured, max_positions)
    if swept.unpatched.isnan().any() or (recorded.logits[0] is not None and own[0].isnan().any()):
        raise ValueError(
            f"{model.name} gives NaN after these prompts: weights may be damaged, or {model.dtype} "
            "too narrow. Load the model with dtype=torch.float32."
        )
    return PatchingResult(
        value=swept.value,
        top=swept.top,
        unpatched=swept.unpatched,
        own=torch.stack(own),
        sources=tuple(names),
        parts=tuple(followed),
        extent=layers,
        layers=tuple(numbers),
        spans=tuple(span.name for span in recorded.spans),
        answers=tuple(answers),
        metrics=tuple(name for name, answer in answers.items() if callable(answer)),
    )


def _check_asked(layers: str, target: object) -> None:
    if layers not in get_args(Layers):
        raise ValueError(f"layers must be one of {', '.join(get_args(Layers))}, not {layers!r}.")
    if not is_prompt(target):
        raise ValueError(
            f"The target is {type_of(target)}: give text, or the token ids of one prompt "
            "(integers, or a tensor of them, [pos] or [1, pos])."
        )


def heads(model: AnyModel) -> dict[str, Units]:
    """Each attention head's output as a part to patch, named "head 0" and so on.

    >>> hooked = interp.load("babel", attention="hooked")
    >>> list(interp.prompts.heads(hooked))
    ['head 0', 'head 1', 'head 2', 'head 3']
    """
    model = as_model(model)
    model.site(0, "z")  # raises if the model has no such hook
    n_units, n_heads = model.width(0, "z"), model.bridge.cfg.n_heads
    head_of_unit = torch.arange(n_units) // (n_units // n_heads)
    return {
        f"head {head}": {"z": (head_of_unit == head).expand(model.n_layers, -1)}
        for head in range(n_heads)
    }


class _Swept(NamedTuple):
    """The target's answers; axes as in `PatchingResult`."""

    value: Float64[Tensor, "source part layer span answer"]
    top: Int64[Tensor, "source part layer span"]
    unpatched: Float64[Tensor, " answer"]


def _swept(
    model: NeuronModel,
    recorded: RecordedSources,
    target: Sequence[int],
    followed: Mapping[str, Route],
    patches: Sequence[Patch],
    shape: tuple[int, int, int, int],
    measured: Measured,
    max_positions: int,
) -> _Swept:
    """Run all patches of the target, and put each number at its index in the result."""
    sweep = Sweep(
        model,
        list(followed.values()),
        recorded.values,
        recorded.spans,
        recorded.noise,
        recorded.unpatched,
    )
    value = torch.empty(*shape, len(measured), dtype=torch.float64)
    top = torch.empty(shape, dtype=torch.int64)
    unpatched = torch.full((len(measured),), torch.nan, dtype=torch.float64)
    ids = torch.tensor(target)
    with tqdm(total=len(patches), desc="patching", unit="patch") as done:
        for batch, logits, prompt in sweep.run(ids, patches, max_positions):
            done.update(len(batch))
            index = tuple(torch.tensor([patch[:4] for patch in batch]).unbind(dim=1))
            value[index] = _values(logits, measured)
            top[index] = logits.argmax(dim=-1).cpu()
            unpatched = _values(prompt[None], measured)[0]
    return _Swept(value, top, unpatched)


def _units(model: NeuronModel, parts: Parts, generator: torch.Generator | None) -> dict[str, Units]:
    """Every part as masks, and random units to compare with every part that is a set of units."""
    named: Mapping[str, Any]
    if isinstance(parts, str):
        named = {parts: parts}
    else:
        named = {"neurons": parts} if isinstance(parts, Tensor) else parts
    if not named:
        raise ValueError("There is nothing to patch: name a site or a part.")
    units: dict[str, Units] = {}
    for name, part in named.items():
        if isinstance(part, str):
            size = model.n_layers, _width(model, part)
            whole_site: dict[Any, Tensor] = {part: torch.ones(size, dtype=torch.bool)}
            units[name] = whole_site
            continue
        masks: dict[Any, Tensor] = {"post": part} if isinstance(part, Tensor) else dict(part)
        for site, mask in masks.items():
            expected = (model.n_layers, _width(model, site))
            if mask.dtype != torch.bool or tuple(mask.shape) != expected:
                raise ValueError(
                    f"{name!r} has a mask of {mask.dtype} and shape {tuple(mask.shape)} at "
                    f"{site}, where {model.name} has {expected[0]} layers of {expected[1]} units: "
                    "give torch.bool of that shape."
                )
        if not any(mask.any() for mask in masks.values()):
            raise ValueError(f"{name!r} has no unit, so there is nothing to patch.")
        units[name] = masks
        if generator is not None and "z" not in masks:
            drawn: dict[Any, Tensor] = {
                site: random_matching(mask, generator) for site, mask in masks.items()
            }
            units[f"random {name}"] = drawn
    return units


def _width(model: NeuronModel, site: Any) -> int:
    """The number of units at a site; an error if it cannot be patched."""
    if site == "act":
        raise ValueError(
            'act(gate) cannot be patched: patch the neurons\' outputs instead, at "post".'
        )
    model.site(0, site)
    return model.width(0, site)


# ---------------------------------------------------------------- answers


def _measured(model: NeuronModel, target: Prompt, answers: Mapping[str, Answer]) -> Measured:
    """The token ids of each answer, or its metric; an error if answers have a token in common."""
    if not answers:
        raise ValueError("There are no answers: give one or more, by name.")
    tokens: dict[str, list[int]] = {}
    for name, answer in answers.items():
        if callable(answer):
            check_metric(model, answer, name)
            continue
        texts = [answer] if isinstance(answer, int | str) else list(answer)
        if not texts:
            raise ValueError(f"The answer {name!r} has no token: give some text or a token id.")
        tokens[name] = [target_ids(model, target, text)[0] for text in texts]
    for (first, ids_a), (second, ids_b) in combinations(tokens.items(), 2):
        if common := sorted(set(ids_a) & set(ids_b)):
            raise ValueError(
                f"The answers {first!r} and {second!r} both begin with the token "
                f"{model.decode(common[:1])!r} ({common[0]}), so the next token cannot distinguish "
                "them: leave this question out, or give answers that begin differently."
            )
    return {name: answer if callable(answer) else tokens[name] for name, answer in answers.items()}


def _values(
    logits: Float[Tensor, "row vocab"], measured: Measured
) -> Float64[Tensor, "row answer"]:
    """The log probability that the next token is any of an answer's tokens, or the metric."""
    of_tokens = any(not callable(answer) for answer in measured.values())
    by_token = logits.double().cpu().log_softmax(dim=-1) if of_tokens else logits[:0]
    columns = [
        measure(answer, logits, name).double().cpu()
        if callable(answer)
        else by_token[:, list(answer)].logsumexp(dim=-1)
        for name, answer in measured.items()
    ]
    return torch.stack(columns, dim=-1)


def _values_of_source(
    logits: Float[Tensor, "prompt vocab"] | None, measured: Measured
) -> Float64[Tensor, " answer"]:
    """Averaged over the prompts of a source; NaN if a cache does not tell its logits."""
    if logits is None:
        return torch.full((len(measured),), torch.nan, dtype=torch.float64)
    return _values(logits, measured).mean(dim=0)

"""What a prompt would answer if some of its activations came from another prompt.

Activation patching: activations of a source prompt are put into a target prompt, at some units of
some layers and at matching tokens, and the model continues from there. Its answer shows what those
units carry. To ask whether concept and language are separate, take two prompts that differ in both
(Dumas et al., 2024): a source about A in one language, a target about B in another, and the four
answers, A and B in either language.

    result = interp.patch(model, "Die Hauptstadt von Frankreich ist", "The capital of Italy is",
                          {"A de": " Paris", "B en": " Rome", ...}, layers="from")
    result.probability, result.to_frame()

One call covers a source prompt and its controls, and several parts, layers and spans. The prompt is
cut where the first of a few neighboring spans begins, and everything before it and below the first
layer is computed once (`interp.prompts.ending`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.prompts.alignment import At, PatchSource, Span, align_prompts, is_prompt
from interp.prompts.patching_result import PatchingResult
from interp.prompts.sweep import (
    PATCH_SITES,
    Patch,
    PatchSite,
    Sweep,
    Units,
    Values,
    random_matching,
    record,
    width,
)
from interp.prompts.targets import target_ids
from interp.results.bars import tqdm
from interp.results.words import Bos, Layers
from interp.text.tokens import Prompt, prompt_ids

Parts = PatchSite | Mapping[str, PatchSite | Bool[Tensor, "layer neuron"] | Units]
"""What is patched: all units of a site, such as "resid_post"; or several parts by name, each
patched alone: a site, neurons of the MLP, or units of several sites."""

Sources = PatchSource | Prompt | Sequence[PatchSource | Prompt]
"""One prompt, or several whose activations are averaged."""

Answer = int | str | Sequence[int]
"""A token id; a text, whose first token after the target counts; or several token ids, any of which
will do."""


def patch(
    model: AnyModel,
    source: Sources,
    target: Prompt,
    answers: Mapping[str, Answer],
    parts: Parts = "resid_post",
    layers: Layers = "each",
    at: At = "last",
    controls: Mapping[str, Sources] | None = None,
    generator: torch.Generator | None = None,
    max_positions: int = 512,
    bos: Bos = "auto",
) -> PatchingResult:
    """The target's answers, with each part of the source put in at each layer and each span.

    `controls` are other sources, such as one about another concept, or one in the target's
    language. A `generator` adds another source, "noise", which moves the target's activations as
    far as the source would, in a random direction; and for every part that is a set of units, a
    part "random ..." of as many other units in each layer.

    The answer depends only on the last token's residual stream after the last layer: patched there,
    the target always gives the source's answer. Patch earlier tokens (`at`) or earlier layers. A
    part without units in a layer leaves that layer unpatched. `bos` says what is put before text.

    Cost: each prompt once, and for each patch the tokens from its span to the end, in the layers
    from its own up. `max_positions` bounds how many positions are in one pass.
    In 16 bits, log probabilities are accurate to 0.01: load with dtype=torch.float32 for more.

    >>> source, target = "Der Tag nach Montag ist", "The day after Friday is"
    >>> answers = {"Tuesday": " Tuesday", "Saturday": " Saturday", "Dienstag": " Dienstag"}
    >>> result = interp.patch(model, source, target, answers)
    >>> result.answers[result.probability[0, 0, 4, 0].argmax()]  # at layer 4 it is in German
    'Dienstag'
    """
    model = as_model(model)
    if layers not in get_args(Layers):
        raise ValueError(f"layers must be one of {', '.join(get_args(Layers))}, not {layers!r}.")
    if not is_prompt(target):
        raise ValueError(
            f"The target is {_type_of(target)}: give text, or the token ids of one prompt "
            "(integers, or a tensor of them with one axis)."
        )
    named = {"source": source, **(controls or {})}
    sources = {name: _listed(name, given) for name, given in named.items()}
    tokens = _answer_ids(model, target, answers)
    sources = {name: [_encoded(model, one, bos) for one in sources[name]] for name in sources}
    target = prompt_ids(model, target, bos)
    units = _units(model, parts, generator)
    numbers = range(1 if layers == "all" else model.n_layers)
    with torch.no_grad():
        recorded = _record(model, sources, target, at, units, generator, max_positions)
        own = [_log_probability(logits, tokens).mean(dim=0) for logits in recorded.logits]
        names = list(sources)
        if recorded.noise is not None:
            names, own = [*names, "noise"], [*own, torch.full_like(own[0], torch.nan)]
        shape = (len(names), len(units), len(numbers), len(recorded.spans))
        reach = [range(n, n + 1 if layers == "each" else model.n_layers) for n in numbers]
        patches = [
            Patch(source, part, row, span, reach[row])
            for source, part, row, span in product(*map(range, shape))
        ]
        swept = _swept(model, recorded, target, units, patches, shape, tokens, max_positions)
    if swept.unpatched.isnan().any() or own[0].isnan().any():
        raise ValueError(
            f"{model.name} gives NaN after these prompts: weights may be damaged, or {model.dtype} "
            "too narrow. Load the model with dtype=torch.float32."
        )
    return PatchingResult(
        log_probability=swept.log_probability,
        top=swept.top,
        unpatched=swept.unpatched,
        own=torch.stack(own),
        sources=tuple(names),
        parts=tuple(units),
        extent=layers,
        layers=tuple(numbers),
        spans=tuple(span.name for span in recorded.spans),
        answers=tuple(answers),
    )


def heads(model: AnyModel) -> dict[str, Units]:
    """Each attention head's output as a part to patch, named "head 0" and so on.

    >>> hooked = interp.load("babel", attention="hooked")
    >>> list(interp.prompts.heads(hooked))
    ['head 0', 'head 1', 'head 2', 'head 3']
    """
    model = as_model(model)
    n_units, n_heads = width(model, "z"), model.bridge.cfg.n_heads
    head_of_unit = torch.arange(n_units) // (n_units // n_heads)
    return {
        f"head {head}": {"z": (head_of_unit == head).expand(model.n_layers, -1)}
        for head in range(n_heads)
    }


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What is put into the target; lists are in the order of the sources."""

    spans: tuple[Span, ...]
    values: list[Values]
    """Averaged over the prompts of a source."""
    logits: list[Float[Tensor, "_ vocab"]]
    """At the last token of each prompt of a source."""
    noise: Values | None
    """Random directions."""
    unpatched: Values | None
    """The target's own activations, which noise starts from."""


def _record(
    model: NeuronModel,
    sources: Mapping[str, Sequence[PatchSource]],
    target: Sequence[int],
    at: At,
    units: Mapping[str, Units],
    generator: torch.Generator | None,
    max_positions: int,
) -> _Recorded:
    """The sources' activations at the tokens aligned with the target, at the sites of all parts."""
    sites: list[PatchSite] = [
        site for site in PATCH_SITES if any(site in part for part in units.values())
    ]
    # Before anything is run: every source must align with the target.
    all_sources = [source for prompts in sources.values() for source in prompts]
    aligned = [align_prompts(model, source, target, at) for source in all_sources]
    spans = aligned[0]
    prompts = [list(map(int, source.prompt)) for source in all_sources]
    positions = [[span.source for span in spans] for spans in aligned]
    if generator is not None:
        prompts.append([*target])
        positions.append([span.target for span in spans])
    in_order = iter(record(model, prompts, positions, sites, max_positions))
    by_source = [[next(in_order) for _ in prompts] for prompts in sources.values()]
    values = [_mean([prompt.values for prompt in prompts]) for prompts in by_source]
    return _Recorded(
        spans,
        values,
        [torch.stack([prompt.logits for prompt in prompts]) for prompts in by_source],
        _noise(values[0], generator),
        None if generator is None else next(in_order).values,
    )


class _Swept(NamedTuple):
    """The target's answers; axes as in `PatchingResult`."""

    log_probability: Float64[Tensor, "source part layer span answer"]
    top: Int64[Tensor, "source part layer span"]
    unpatched: Float64[Tensor, " answer"]


def _swept(
    model: NeuronModel,
    recorded: _Recorded,
    target: Sequence[int],
    units: Mapping[str, Units],
    patches: Sequence[Patch],
    shape: tuple[int, int, int, int],
    tokens: Sequence[Sequence[int]],
    max_positions: int,
) -> _Swept:
    """Run all patches of the target, and put each number at its index in the result."""
    sweep = Sweep(
        model,
        list(units.values()),
        recorded.values,
        recorded.spans,
        recorded.noise,
        recorded.unpatched,
    )
    log_probability = torch.empty(*shape, len(tokens), dtype=torch.float64)
    top = torch.empty(shape, dtype=torch.int64)
    unpatched = torch.full((len(tokens),), torch.nan, dtype=torch.float64)
    ids = torch.tensor(target)
    with tqdm(total=len(patches), desc="patching", unit="patch") as done:
        for batch, logits, prompt in sweep.run(ids, patches, max_positions):
            done.update(len(batch))
            index = tuple(torch.tensor([patch[:4] for patch in batch]).unbind(dim=1))
            log_probability[index] = _log_probability(logits, tokens)
            top[index] = logits.argmax(dim=-1).cpu()
            unpatched = _log_probability(prompt[None], tokens)[0]
    return _Swept(log_probability, top, unpatched)


def _mean(by_prompt: Sequence[Values]) -> Values:
    mean: dict[PatchSite, list[Tensor]] = {
        site: [
            torch.stack([values[site][span] for values in by_prompt]).mean(dim=0)
            for span in range(len(spans))
        ]
        for site, spans in by_prompt[0].items()
    }
    return mean


def _encoded(model: NeuronModel, source: PatchSource | Prompt, bos: Bos) -> PatchSource:
    """The source with its prompt as token ids."""
    given = source if isinstance(source, PatchSource) else PatchSource(source)
    return PatchSource(prompt_ids(model, given.prompt, bos), given.texts)


def _listed(name: str, given: object) -> list[Any]:
    """One prompt or several; token ids are one prompt."""
    if _is_source(given):
        return [given]
    if isinstance(given, Sequence) and given and all(map(_is_source, given)):
        return list(given)
    raise ValueError(
        f"The source {name!r} is {_type_of(given)}: give text, the token ids of one prompt "
        "(integers, or a tensor of them with one axis), a PatchSource, or a sequence of these."
    )


def _is_source(given: object) -> bool:
    return is_prompt(given.prompt if isinstance(given, PatchSource) else given)


def _type_of(given: object) -> str:
    if isinstance(given, Tensor):
        return f"a tensor of {given.dtype} and shape {list(given.shape)}"
    if isinstance(given, PatchSource):
        return f"a PatchSource of {_type_of(given.prompt)}"
    if isinstance(given, Sequence) and not given:
        return "empty"
    return f"of type {type(given).__name__}"


def _noise(like: Values, generator: torch.Generator | None) -> Values | None:
    if generator is None:
        return None
    return {
        site: [torch.randn(span.shape, generator=generator).to(span) for span in spans]
        for site, spans in like.items()
    }


def _units(model: NeuronModel, parts: Parts, generator: torch.Generator | None) -> dict[str, Units]:
    """Every part as masks, and random units to compare with every part that is a set of units."""
    named: Mapping[str, Any] = {parts: parts} if isinstance(parts, str) else parts
    if not named:
        raise ValueError("There is nothing to patch: name a site or a part.")
    units: dict[str, Units] = {}
    for name, part in named.items():
        if isinstance(part, str):
            if part not in (*PATCH_SITES, "act"):
                raise ValueError(f"{part!r} is not a site: give one of {', '.join(PATCH_SITES)}.")
            whole_site: dict[Any, Tensor] = {
                part: torch.ones(model.n_layers, width(model, part), dtype=torch.bool)
            }
            units[name] = whole_site
            continue
        masks: dict[PatchSite, Any] = {"post": part} if isinstance(part, Tensor) else dict(part)
        for site, mask in masks.items():
            expected = (model.n_layers, width(model, site))
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
            drawn: dict[PatchSite, Any] = {
                site: random_matching(mask, generator) for site, mask in masks.items()
            }
            units[f"random {name}"] = drawn
    return units


def _answer_ids(
    model: NeuronModel, target: Prompt, answers: Mapping[str, Answer]
) -> list[list[int]]:
    """The token ids of each answer; an error if two answers have one in common."""
    if not answers:
        raise ValueError("There are no answers: give one or more, by name.")
    ids = []
    for name, answer in answers.items():
        tokens = [answer] if isinstance(answer, int | str) else list(answer)
        if not tokens:
            raise ValueError(f"The answer {name!r} has no token: give some text or a token id.")
        ids.append([target_ids(model, target, token)[0] for token in tokens])
    for (first, ids_a), (second, ids_b) in combinations(zip(answers, ids, strict=True), 2):
        if common := sorted(set(ids_a) & set(ids_b)):
            raise ValueError(
                f"The answers {first!r} and {second!r} both begin with the token "
                f"{model.decode(common[:1])!r} ({common[0]}), so the next token cannot distinguish "
                "them: leave this question out, or give answers that begin differently."
            )
    return ids


def _log_probability(
    logits: Float[Tensor, "row vocab"], tokens: Sequence[Sequence[int]]
) -> Float64[Tensor, "row answer"]:
    """The log probability of each answer: that the next token is any of its tokens."""
    by_token = logits.double().cpu().log_softmax(dim=-1)
    return torch.stack([by_token[:, list(ids)].logsumexp(dim=-1) for ids in tokens], dim=-1)

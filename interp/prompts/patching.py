"""What a prompt would answer if a part of it came from another prompt.

Activations of a source are put into a target, at some units of some layers and at the tokens where
the two meet, and the model goes on from there (activation patching). What follows then tells what
those units carry. Whether language and thought go apart is asked with two prompts that differ in
both (Dumas et al., 2024): a source about A in one language, a target about B in another, and the
four answers, A and B in either language.

    result = interp.patch(model, "Die Hauptstadt von Frankreich ist", "The capital of Italy is",
                          {"A de": " Paris", "B en": " Rome", ...}, layers="from")
    result.probability, result.to_frame()

One source prompt and its controls, several parts, layers and places are asked about together. The
prompt is cut where the first of a few neighboring places begins, and all that is before it and
below the first layer is computed once (`interp.prompts.ending`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.prompts.alignment import At, PatchSource, Span, align_prompts, is_prompt
from interp.prompts.patching_result import PatchingResult
from interp.prompts.sweep import (
    PLACES,
    Patch,
    Place,
    Sweep,
    Units,
    Values,
    others,
    record,
    width,
)
from interp.prompts.targets import target_ids
from interp.results.bars import tqdm
from interp.results.words import Layers
from interp.text.tokens import Prompt, prompt_ids

Parts = Place | Mapping[str, Place | Bool[Tensor, "layer neuron"] | Units]
"""What is patched: all units of a place, such as "resid_post"; or several parts by name, each on
its own: a place, neurons of the MLP, or units of several places."""

Sources = PatchSource | Prompt | Sequence[PatchSource | Prompt]
"""One prompt, or several whose activations are averaged."""

Answer = int | str | Sequence[int]
"""A token id; a text, of which the first token behind the target counts; or several tokens, of
which any will do."""


def patch(
    model: NeuronModel,
    source: Sources,
    target: Prompt,
    answers: Mapping[str, Answer],
    parts: Parts = "resid_post",
    layers: Layers = "each",
    at: At = "last",
    controls: Mapping[str, Sources] | None = None,
    generator: torch.Generator | None = None,
    max_positions: int = 512,
) -> PatchingResult:
    """Each part of the source, in each layer and at each place, put into the target.

    `controls` are other sources, such as one about another concept, or one in the target's own
    language. With a `generator` there is one more, "noise", which moves the target's activations as
    far as the source would, in a random direction; and beside every part that is a choice of units
    a "random ..." of as many others in each layer.

    The last token's residual stream behind the last layer is all that the answer is made of: there
    a patch gives the source's answer, whatever it carries. Ask about earlier places (`at`), or
    earlier layers alone. A part without units in a layer leaves the target as it is there.

    Cost: each prompt once, and for each patch the tokens from its place to the end, in the layers
    from its own up. `max_positions` bounds how many positions are in one pass.
    In 16 bits log probabilities are good to a hundredth: load with dtype=torch.float32 for more.

    >>> source, target = "Der Tag nach Montag ist", "The day after Friday is"
    >>> answers = {"Tuesday": " Tuesday", "Saturday": " Saturday", "Dienstag": " Dienstag"}
    >>> found = interp.patch(model, source, target, answers)
    >>> found.answers[found.probability[0, 0, 4, 0].argmax()]  # by layer 4 it is said in German
    'Dienstag'
    """
    if layers not in get_args(Layers):
        raise ValueError(f"layers is one of {', '.join(get_args(Layers))}, not {layers!r}.")
    if not is_prompt(target):
        raise ValueError(
            f"The target is {_type_of(target)}: give text, or the token ids of one prompt "
            "(integers, or a tensor of them with one axis)."
        )
    named = {"source": source, **(controls or {})}
    sources = {name: _listed(name, given) for name, given in named.items()}
    tokens = _answer_ids(model, target, answers)
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
        found = _swept(model, recorded, target, units, patches, shape, tokens, max_positions)
    if found.unpatched.isnan().any() or own[0].isnan().any():
        raise ValueError(
            f"{model.name} gives NaN after these prompts: weights may be damaged, or {model.dtype} "
            "too narrow. Load the model with dtype=torch.float32."
        )
    return PatchingResult(
        log_probability=found.log_probability,
        top=found.top,
        unpatched=found.unpatched,
        own=torch.stack(own),
        sources=tuple(names),
        parts=tuple(units),
        extent=layers,
        layers=tuple(numbers),
        spans=tuple(span.name for span in recorded.spans),
        answers=tuple(answers),
    )


def heads(model: NeuronModel) -> dict[str, Units]:
    """Each attention head as a part to patch, "head 0" and so on: what it alone gives.

    >>> hooked = interp.load("babel", attention="hooked")
    >>> list(interp.prompts.heads(hooked))
    ['head 0', 'head 1', 'head 2', 'head 3']
    """
    n_units, n_heads = width(model, "z"), model.bridge.cfg.n_heads
    of_unit = torch.arange(n_units) // (n_units // n_heads)
    return {
        f"head {head}": {"z": (of_unit == head).expand(model.n_layers, -1)}
        for head in range(n_heads)
    }


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What is put into the target."""

    spans: tuple[Span, ...]
    values: list[Values]
    """Of each source, on average over its prompts."""
    logits: list[Float[Tensor, "_ vocab"]]
    """Of each source's prompts."""
    noise: Values | None
    """Random directions."""
    unpatched: Values | None
    """What the target has itself, which noise starts from."""


def _record(
    model: NeuronModel,
    sources: Mapping[str, Sequence[PatchSource | Prompt]],
    target: Prompt,
    at: At,
    units: Mapping[str, Units],
    generator: torch.Generator | None,
    max_positions: int,
) -> _Recorded:
    """What the sources have where they meet the target, at every place that a part is at."""
    places: list[Place] = [
        place for place in PLACES if any(place in part for part in units.values())
    ]
    # Before anything is run: all of them must meet the target.
    every = [source for some in sources.values() for source in some]
    aligned = [align_prompts(model, source, target, at) for source in every]
    spans = aligned[0]
    prompts = [prompt_ids(model, _prompt(source)) for source in every]
    where = [[span.source for span in spans] for spans in aligned]
    if generator is not None:
        prompts.append(prompt_ids(model, target))
        where.append([span.target for span in spans])
    in_order = iter(record(model, prompts, where, places, max_positions))
    recorded = [[next(in_order) for _ in some] for some in sources.values()]
    values = [_mean([one.values for one in some]) for some in recorded]
    return _Recorded(
        spans,
        values,
        [torch.stack([one.logits for one in some]) for some in recorded],
        _noise(values[0], generator),
        None if generator is None else next(in_order).values,
    )


class _Swept(NamedTuple):
    """What the target answers; axes as in `PatchingResult`."""

    log_probability: Float64[Tensor, "source part layer span answer"]
    top: Int64[Tensor, "source part layer span"]
    unpatched: Float64[Tensor, " answer"]


def _swept(
    model: NeuronModel,
    recorded: _Recorded,
    target: Prompt,
    units: Mapping[str, Units],
    patches: Sequence[Patch],
    shape: tuple[int, int, int, int],
    tokens: Sequence[Sequence[int]],
    max_positions: int,
) -> _Swept:
    """All patches of the target, each number at its place in the result."""
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
    ids = torch.tensor(prompt_ids(model, target))
    with tqdm(total=len(patches), desc="patching", unit="patch", delay=2, leave=False) as done:
        for some, logits, prompt in sweep.run(ids, patches, max_positions):
            done.update(len(some))
            where = tuple(torch.tensor([patch[:4] for patch in some]).unbind(dim=1))
            log_probability[where] = _log_probability(logits, tokens)
            top[where] = logits.argmax(dim=-1).cpu()
            unpatched = _log_probability(prompt[None], tokens)[0]
    return _Swept(log_probability, top, unpatched)


def _mean(several: Sequence[Values]) -> Values:
    mean: dict[Place, list[Tensor]] = {
        place: [
            torch.stack([values[place][span] for values in several]).mean(dim=0)
            for span in range(len(spans))
        ]
        for place, spans in several[0].items()
    }
    return mean


def _prompt(source: PatchSource | Prompt) -> Prompt:
    return source.prompt if isinstance(source, PatchSource) else source


def _listed(name: str, given: object) -> list[Any]:
    """One prompt or several; token ids are one prompt."""
    if _is_source(given):
        return [given]
    if isinstance(given, Sequence) and given and all(map(_is_source, given)):
        return list(given)
    raise ValueError(
        f"The source {name!r} is {_type_of(given)}: give text, the token ids of one prompt "
        "(integers, or a tensor of them with one axis), a PatchSource, or a sequence of those."
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
        place: [torch.randn(each.shape, generator=generator).to(each) for each in spans]
        for place, spans in like.items()
    }


def _units(model: NeuronModel, parts: Parts, generator: torch.Generator | None) -> dict[str, Units]:
    """Every part as masks, and random units beside those that are a choice."""
    named: Mapping[str, Any] = {parts: parts} if isinstance(parts, str) else parts
    if not named:
        raise ValueError("There is nothing to patch: name a place or a part.")
    found: dict[str, Units] = {}
    for name, part in named.items():
        if isinstance(part, str):
            if part not in (*PLACES, "act"):
                raise ValueError(f"{part!r} is no place: give one of {', '.join(PLACES)}.")
            every = torch.ones(model.n_layers, width(model, part), dtype=torch.bool)
            chosen: dict[Any, Tensor] = {part: every}
            found[name] = chosen
            continue
        masks: dict[Place, Any] = {"post": part} if isinstance(part, Tensor) else dict(part)
        for place, mask in masks.items():
            expected = (model.n_layers, width(model, place))
            if mask.dtype != torch.bool or tuple(mask.shape) != expected:
                raise ValueError(
                    f"{name!r} has a mask of {mask.dtype} and shape {tuple(mask.shape)} at "
                    f"{place}, where {model.name} has {expected[0]} layers of {expected[1]} units: "
                    "give torch.bool of that shape."
                )
        if not any(mask.any() for mask in masks.values()):
            raise ValueError(f"{name!r} has no unit, so there is nothing to patch.")
        found[name] = masks
        if generator is not None and "z" not in masks:
            drawn: dict[Place, Any] = {
                place: others(mask, generator) for place, mask in masks.items()
            }
            found[f"random {name}"] = drawn
    return found


def _answer_ids(
    model: NeuronModel, target: Prompt, answers: Mapping[str, Answer]
) -> list[list[int]]:
    """The tokens of each answer; refused where two answers have one in common."""
    if not answers:
        raise ValueError("There is no answer to ask for: give one or more, by name.")
    ids = []
    for name, answer in answers.items():
        every = [answer] if isinstance(answer, int | str) else list(answer)
        if not every:
            raise ValueError(f"The answer {name!r} has no token: give some text or a token id.")
        ids.append([target_ids(model, target, each)[0] for each in every])
    for (one, some), (other, more) in combinations(zip(answers, ids, strict=True), 2):
        if common := sorted(set(some) & set(more)):
            raise ValueError(
                f"The answers {one!r} and {other!r} both begin with the token "
                f"{model.decode(common[:1])!r} ({common[0]}), so what the model says next cannot "
                "tell them apart: leave this question out, or give answers that begin otherwise."
            )
    return ids


def _log_probability(
    logits: Float[Tensor, "row vocab"], tokens: Sequence[Sequence[int]]
) -> Float64[Tensor, "row answer"]:
    """Of any token of each answer."""
    every = logits.double().cpu().log_softmax(dim=-1)
    return torch.stack([every[:, list(each)].logsumexp(dim=-1) for each in tokens], dim=-1)

"""What is patched into a prompt: activations of other prompts, or of caches made from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.counting.batch import Batch
from interp.counting.cached import Cache, Cached
from interp.models.neuron_model import NeuronModel
from interp.models.running import wide
from interp.models.sites import hooked_at
from interp.prompts.alignment import (
    BY_INDEX,
    At,
    PatchSource,
    Span,
    align_by_index,
    align_prompts,
    is_prompt,
    joined,
)
from interp.prompts.ending import Ending
from interp.prompts.patch_paths import Units
from interp.prompts.sweep import Recorded, Values, record
from interp.results.words import Bos, Kind, Observed
from interp.text.tokens import Prompt, n_added, prompt_ids

Source = PatchSource | Prompt | Cache
"""A prompt, or an ActivationCache of one, as `run_with_cache` gives it."""

Sources = Source | Sequence[Source]
"""One source, or several whose activations are averaged."""


@dataclass(frozen=True, eq=False)
class RecordedSources:
    """What is put into the target; lists are in the order of the sources."""

    spans: tuple[Span, ...]
    values: list[Values]
    """Averaged over the prompts of a source."""
    logits: list[Float[Tensor, "_ vocab"] | None]
    """At the last token of each prompt of a source; None: a cache does not tell them."""
    noise: Values | None
    """Random directions."""
    unpatched: Values | None
    """The target's own activations, which noise starts from."""


def record_sources(
    model: NeuronModel,
    sources: Mapping[str, Any],
    target: Prompt,
    at: At,
    bos: Bos,
    units: Mapping[str, Units],
    generator: torch.Generator | None,
    max_positions: int,
) -> RecordedSources:
    """The sources' activations at the tokens aligned with the target, at the sites of all parts."""
    sites: tuple[Kind, ...] = tuple(
        site for site in get_args(Kind) if any(site in part for part in units.values())
    )
    ids = prompt_ids(model, target, bos)
    # Before anything is run: every source must align with the target.
    opened = [_opened(model, name, given, sites) for name, given in sources.items()]
    in_order = [source for group in opened for source in group]
    aligned = [_align(model, source, target, at, bos, sites[0]) for source in in_order]
    run = [n for n, source in enumerate(in_order) if not isinstance(source, Cached)]
    prompts = [prompt_ids(model, _prompt(in_order[n]), bos) for n in run]
    positions = [[span.source for span in aligned[n]] for n in run]
    if generator is not None:
        prompts.append(ids)
        positions.append([span.target for span in aligned[0]])
    recorded = record(model, prompts, positions, sites, max_positions)
    unpatched = None if generator is None else recorded.pop().values
    of_prompts = iter(recorded)
    read = iter(
        _read(model, source, [span.source for span in spans], sites, ids)
        if isinstance(source, Cached)
        else next(of_prompts)
        for source, spans in zip(in_order, aligned, strict=True)
    )
    by_source = [[next(read) for _ in group] for group in opened]
    values = [_mean([row.values for row in rows]) for rows in by_source]
    logits = [_stacked([row.logits for row in rows]) for rows in by_source]
    return RecordedSources(aligned[0], values, logits, _noise(values[0], generator), unpatched)


def type_of(given: object) -> str:
    """What somebody gave, for a message."""
    if isinstance(given, Tensor):
        return f"a tensor of {given.dtype} and shape {list(given.shape)}"
    if isinstance(given, PatchSource):
        return f"a PatchSource whose prompt is {type_of(given.prompt)}"
    if isinstance(given, Sequence) and not given:
        return "empty"
    return f"of type {type(given).__name__}"


# ---------------------------------------------------------------- caches


class _AtPositions:
    """Takes the values at some positions of a cache of one prompt."""

    def __init__(self, model: NeuronModel, sites: tuple[Kind, ...], spans: Sequence[Sequence[int]]):
        self.kinds: tuple[Observed, ...] = sites
        self.values: dict[Kind, list[list[Tensor]]] = {site: [[] for _ in spans] for site in sites}
        self._spans, self._device = spans, model.device

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None:
        for rows, span in zip(self.values[hooked_at(kind)], self._spans, strict=True):
            rows.append(wide(values[0, list(span)]).to(self._device))


def _read(
    model: NeuronModel,
    cached: Cached,
    spans: Sequence[Sequence[int]],
    sites: tuple[Kind, ...],
    target: Sequence[int],
) -> Recorded:
    """What a cache holds at these positions, as if its prompt had been run."""
    taken = _AtPositions(model, sites, spans)
    cached.replay(taken, cached.batch(sites))
    values: dict[Kind, list[Tensor]] = {
        site: [torch.stack(layers) for layers in rows] for site, rows in taken.values.items()
    }
    return Recorded(values, _logits(model, cached, target))


def _logits(
    model: NeuronModel, cached: Cached, target: Sequence[int]
) -> Float[Tensor, " vocab"] | None:
    """Of the cached prompt at its last token; None if the cache lacks the last residual stream.

    They depend on that alone, so the target gives them when it is put there.
    """
    layer = model.n_layers - 1
    if not cached.holds(layer, "resid_post"):
        return None
    end = cached.values(layer, "resid_post")[0, -1]
    ending = Ending(model, torch.tensor(target))
    put = ending.run(1, {("resid_post", layer): lambda values, _: end.to(values).expand_as(values)})
    ((_, logits),) = put
    return logits[0]


# ---------------------------------------------------------------- sources


def _opened(
    model: NeuronModel, name: str, given: object, sites: tuple[Kind, ...]
) -> list[PatchSource | Prompt | Cached]:
    """The sources behind one name, with caches checked; token ids are one prompt."""
    sources: Any = [given]
    if not _is_source(given):
        sources = given if isinstance(given, Sequence) else []
    if not sources or not all(map(_is_source, sources)):
        raise ValueError(
            f"The source {name!r} is {type_of(given)}: give text, the token ids of one prompt "
            "(integers, or a tensor of them, [pos] or [1, pos]), an ActivationCache, a "
            "PatchSource, or a sequence of these."
        )
    return [
        _cached(model, name, source, sites) if _is_cache(source) else source for source in sources
    ]


def _cached(model: NeuronModel, name: str, cache: Cache, sites: tuple[Kind, ...]) -> Cached:
    cached = Cached(cache, label=f"The cache given as {name!r}", model=model)
    n_rows = len(cached.batch(sites).rows)
    if n_rows != 1:
        raise ValueError(
            f"{cached.label} holds {n_rows} prompts, and a patch takes activations of one: give a "
            "list of caches, which are averaged, or patch from them one at a time."
        )
    return cached


def _align(
    model: NeuronModel,
    source: PatchSource | Prompt | Cached,
    target: Prompt,
    at: At,
    bos: Bos,
    site: Kind,
) -> tuple[Span, ...]:
    if not isinstance(source, Cached):
        return align_prompts(model, source, target, at, bos)
    if at not in BY_INDEX:
        raise ValueError(
            f"{source.label} holds no tokens, so it cannot be aligned by words or texts: give the "
            f"prompt itself, or at={' or '.join(map(repr, BY_INDEX))}."
        )
    n_source, ids = source.n_positions(site), prompt_ids(model, target, bos)
    if at != "last" and n_source != len(ids):
        raise ValueError(
            f"{source.label} has {n_source} tokens and the target {joined(model, ids)!r} "
            f'{len(ids)}, so they cannot be aligned token by token: use at="last", or give '
            "the prompt itself and align it by words or texts."
        )
    return align_by_index(model, n_source, ids, at, n_added(model, target, bos))


def _prompt(source: Any) -> Prompt:
    return source.prompt if isinstance(source, PatchSource) else source


def _is_source(given: object) -> bool:
    prompt = given.prompt if isinstance(given, PatchSource) else given
    return is_prompt(prompt) or _is_cache(given)


def _is_cache(given: object) -> bool:
    """Whether it maps names to tensors."""
    if not isinstance(given, Cache) or isinstance(given, Tensor):
        return False
    names = list(given.keys())
    return bool(names) and all(isinstance(given[name], Tensor) for name in names)


def _stacked(
    rows: Sequence[Float[Tensor, " vocab"] | None],
) -> Float[Tensor, "prompt vocab"] | None:
    known = [row for row in rows if row is not None]
    return torch.stack(known) if len(known) == len(rows) else None


def _mean(by_prompt: Sequence[Values]) -> Values:
    mean: dict[Kind, list[Tensor]] = {
        site: [
            torch.stack([values[site][span] for values in by_prompt]).mean(dim=0)
            for span in range(len(spans))
        ]
        for site, spans in by_prompt[0].items()
    }
    return mean


def _noise(like: Values, generator: torch.Generator | None) -> Values | None:
    if generator is None:
        return None
    return {
        site: [torch.randn(span.shape, generator=generator).to(span) for span in spans]
        for site, spans in like.items()
    }

"""Which token of one prompt stands for which token of another, whatever their lengths.

Prompts of two languages rarely have the same number of tokens. What stands for what is said by
their ends, by words, or by a text in each, such as the thing that both ask about:

    align_prompts(model, PatchSource("Die Hauptstadt von Frankreich ist", ("Frankreich",)),
          "The capital of Italy is", ("Italy",))

Texts are found among the tokens by decoding, so any tokenizer will do, and token ids as well.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import get_args

import torch
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.prompts.targets import Prompt
from interp.results.words import Alike
from interp.text.tokens import prompt_ids

At = Alike | Sequence[str]
"""Where two prompts meet; texts are those of the target, and the last place of each counts."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class PatchSource:
    """A prompt whose activations are taken, and where its texts are.

    >>> from interp.prompts.alignment import align_prompts
    >>> source = interp.prompts.PatchSource("Der Tag nach Montag ist", ("Montag",))
    >>> align_prompts(model, source, "The day after Friday is", ("Friday",))
    (Span(name='Friday', source=(3,), target=(3,)),)
    """

    prompt: Prompt
    """Text, read without special tokens, or token ids."""

    texts: tuple[str, ...] = ()
    """One for each text of the target, in their order; the last place of each counts."""


@dataclass(frozen=True)
class Span:
    """Tokens that are patched together, and where they take their activations from."""

    name: str
    """The target's text, or "last" or "all"."""

    source: tuple[int, ...]
    """For each token of `target`, a position in the source."""

    target: tuple[int, ...]
    """Positions in the target, rising."""


def align_prompts(
    model: NeuronModel, source: PatchSource | Prompt, target: Prompt, at: At
) -> tuple[Span, ...]:
    """The spans that two prompts share.

    Where a span has n tokens in the source and m in the target, token i of m (from 1) takes its
    activations from token ⌈i · n / m⌉: the last from the last, and each from its own if n = m.
    Special tokens are in no word and no text; by number they count as others do.
    """
    if not isinstance(source, PatchSource):
        source = PatchSource(source)
    theirs, ours = prompt_ids(model, source.prompt), prompt_ids(model, target)
    if at == "last":
        return (Span("last", (len(theirs) - 1,), (len(ours) - 1,)),)
    if at in ("tokens", "all"):
        if len(theirs) != len(ours):
            raise ValueError(
                f"{_sides(model, theirs, ours)} have {len(theirs)} and {len(ours)} tokens, so "
                'their tokens do not go together one by one: use at="last", at="words", or the '
                "text in each that matters."
            )
        numbers = tuple(range(len(ours)))
        if at == "all":
            return (Span("all", numbers, numbers),)
        return tuple(Span(model.decode([ours[n]]), (n,), (n,)) for n in numbers)
    if isinstance(at, str):
        if at != "words":
            raise ValueError(
                f"{at!r} is no way to align prompts: give {', '.join(get_args(Alike))}, or a "
                "sequence of texts of the target."
            )
        theirs_at, ours_at = (_words(model, ids) for ids in (theirs, ours))
        if len(theirs_at) != len(ours_at):
            raise ValueError(
                f"{_sides(model, theirs, ours)} have {len(theirs_at)} and {len(ours_at)} words, so "
                'their words do not go together: use at="last", or the text in each that matters.'
            )
    else:
        if len(source.texts) != len(at) or not at:
            raise ValueError(
                f"{len(at)} texts of the target are to be patched, and the source names "
                f"{len(source.texts)}: give PatchSource(prompt, texts) with one text for each."
            )
        theirs_at = [(text, _find(model, theirs, text)) for text in source.texts]
        ours_at = [(text, _find(model, ours, text)) for text in at]
    return tuple(
        Span(name, _stretched(place, len(mine)), mine)
        for (_, place), (name, mine) in zip(theirs_at, ours_at, strict=True)
    )


def is_prompt(given: object) -> bool:
    """Whether it is text, or token ids: integers, or a tensor of them with one axis."""
    if isinstance(given, Tensor):
        return given.ndim == 1 and given.dtype in _INTEGERS
    if isinstance(given, str):
        return True
    if not isinstance(given, Sequence) or not given:
        return False
    return all(isinstance(id, Integral) for id in given)


def shown(model: NeuronModel, ids: Sequence[int]) -> str:
    """Tokens with bars between them, for messages."""
    return "|".join(model.decode([id]) for id in ids)


def _stretched(place: Sequence[int], m: int) -> tuple[int, ...]:
    """Of n positions, the one for each of m."""
    return tuple(place[-(-number * len(place) // m) - 1] for number in range(1, m + 1))


def _words(model: NeuronModel, ids: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    text, reach = _reach(model, ids)
    return [
        (word[0], _cover(reach, word.start(), word.end())) for word in re.finditer(r"\S+", text)
    ]


def _find(model: NeuronModel, ids: Sequence[int], text: str) -> tuple[int, ...]:
    """The tokens that hold any of the last place of a text."""
    whole, reach = _reach(model, ids)
    start = whole.rfind(text)
    if start < 0 or not text.strip():
        raise ValueError(
            f"{text!r} is not in the prompt {whole!r}, which is read as {shown(model, ids)}: give "
            "a text as the prompt has it."
        )
    return _cover(reach, start, start + len(text))


def _cover(reach: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    return tuple(n for n, (first, stop) in enumerate(reach) if first < end and start < stop)


def _reach(model: NeuronModel, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text, and from which to before which character each token reaches; nowhere if special.

    A character in several tokens, as bytes of rare ones are, belongs to all of them. A space
    belongs to no word, so that the word begins behind it.
    """
    special = set(model.special_ids)
    text = model.decode([id for id in ids if id not in special])
    before: list[int] = []
    reach, done = [], 0
    for id in ids:
        if id in special:
            reach.append((done, done))
            continue
        before.append(id)
        piece = model.decode(before)
        start, done = done, _common(piece, text)
        reach.append((start, done + (piece != text[: len(piece)])))
    return text, reach


def _common(piece: str, text: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = zip(piece, text, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(piece), len(text)))


def _sides(model: NeuronModel, theirs: Sequence[int], ours: Sequence[int]) -> str:
    return f"The source {shown(model, theirs)!r} and the target {shown(model, ours)!r}"

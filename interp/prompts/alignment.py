"""Alignment of the tokens of two prompts, whatever their lengths.

Prompts of two languages rarely have the same number of tokens. They are aligned at their ends, by
words, or by a text in each, such as the thing that both ask about:

    align_prompts(model, PatchSource("Die Hauptstadt von Frankreich ist", ("Frankreich",)),
          "The capital of Italy is", ("Italy",))

Texts are located by decoding the tokens, so any tokenizer will do, and so will token ids.
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
from interp.results.words import Alike, Bos
from interp.text.tokens import n_added, prompt_ids

At = Alike | Sequence[str]
"""How two prompts are aligned; texts are those of the target, at their last occurrence."""

BY_INDEX = ("last", "tokens", "all")
"""Ways to align prompts whose tokens need not be known."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class PatchSource:
    """A prompt whose activations are patched into another, and the texts to align it by.

    >>> from interp.prompts.alignment import align_prompts
    >>> source = interp.prompts.PatchSource("Der Tag nach Montag ist", ("Montag",))
    >>> align_prompts(model, source, "The day after Friday is", ("Friday",))
    (Span(name='Friday', source=(3,), target=(3,)),)
    """

    prompt: Prompt
    """Text or token ids."""

    texts: tuple[str, ...] = ()
    """One for each text of the target, in the same order; the last occurrence of each counts."""


@dataclass(frozen=True)
class Span:
    """Tokens that are patched together, and the source tokens whose activations they get."""

    name: str
    """The target's text, or "last" or "all"."""

    source: tuple[int, ...]
    """For each token of `target`, a position in the source."""

    target: tuple[int, ...]
    """Positions in the target, in increasing order."""


def align_prompts(
    model: NeuronModel, source: PatchSource | Prompt, target: Prompt, at: At, bos: Bos = "auto"
) -> tuple[Span, ...]:
    """The spans that two prompts share.

    If a span has n tokens in the source and m in the target, token i of m (from 1) gets the
    activations of token ⌈i · n / m⌉: the last token those of the last, and if n = m, each those of
    its counterpart. What `bos` puts before text is in no span.
    """
    if not isinstance(source, PatchSource):
        source = PatchSource(source)
    source_ids, target_ids = (prompt_ids(model, one, bos) for one in (source.prompt, target))
    if at in BY_INDEX:
        n_before = n_added(model, target, bos)
        n_source = len(source_ids) - n_added(model, source.prompt, bos)
        if at != "last" and n_source != len(target_ids) - n_before:
            raise ValueError(
                f"{_both(model, source_ids, target_ids)} have {n_source} and "
                f"{len(target_ids) - n_before} tokens, so they cannot be aligned token by token: "
                'use at="last", at="words", or the text in each that matters.'
            )
        return align_by_index(model, len(source_ids), target_ids, at, n_before)
    if isinstance(at, str):
        if at != "words":
            raise ValueError(
                f"at={at!r} is not a way to align prompts: give {', '.join(get_args(Alike))}, or a "
                "sequence of texts of the target."
            )
        in_source, in_target = (_words(model, ids) for ids in (source_ids, target_ids))
        if len(in_source) != len(in_target):
            raise ValueError(
                f"{_both(model, source_ids, target_ids)} have {len(in_source)} and "
                f"{len(in_target)} words, so they cannot be aligned by words: use "
                'at="last", or the text in each that matters.'
            )
    else:
        if len(source.texts) != len(at) or not at:
            raise ValueError(
                f"The target has {len(at)} texts to patch, but the source has "
                f"{len(source.texts)}: give PatchSource(prompt, texts) with one text for each."
            )
        in_source = [(text, _find(model, source_ids, text)) for text in source.texts]
        in_target = [(text, _find(model, target_ids, text)) for text in at]
    return tuple(
        Span(name, _stretched(source_pos, len(target_pos)), target_pos)
        for (_, source_pos), (name, target_pos) in zip(in_source, in_target, strict=True)
    )


def align_by_index(
    model: NeuronModel, n_source: int, target_ids: Sequence[int], at: At, n_before: int
) -> tuple[Span, ...]:
    """The spans of two prompts of which only the target's tokens are known.

    For "tokens" and "all", the last tokens of the source match those of the target after the first
    `n_before`.
    """
    if at == "last":
        return (Span("last", (n_source - 1,), (len(target_ids) - 1,)),)
    of_target = tuple(range(n_before, len(target_ids)))
    of_source = tuple(n + n_source - len(target_ids) for n in of_target)
    if at == "all":
        return (Span("all", of_source, of_target),)
    pairs = zip(of_source, of_target, strict=True)
    return tuple(Span(model.decode([target_ids[m]]), (n,), (m,)) for n, m in pairs)


def is_prompt(given: object) -> bool:
    """Whether it is text or token ids: integers, or a tensor of them, [pos] or [1, pos]."""
    if isinstance(given, Tensor):
        one_row = given.ndim == 1 or (given.ndim == 2 and len(given) == 1)
        return one_row and given.dtype in _INTEGERS
    if isinstance(given, str):
        return True
    if not isinstance(given, Sequence) or not given:
        return False
    return all(isinstance(id, Integral) for id in given)


def joined(model: NeuronModel, ids: Sequence[int]) -> str:
    """The text of tokens, joined by bars, for messages."""
    return "|".join(model.decode([id]) for id in ids)


def _stretched(positions: Sequence[int], m: int) -> tuple[int, ...]:
    """For each of m tokens, its counterpart among n positions."""
    n = len(positions)
    return tuple(positions[-(-number * n // m) - 1] for number in range(1, m + 1))


def _words(model: NeuronModel, ids: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    text, reach = _reach(model, ids)
    return [
        (word[0], _cover(reach, word.start(), word.end())) for word in re.finditer(r"\S+", text)
    ]


def _find(model: NeuronModel, ids: Sequence[int], text: str) -> tuple[int, ...]:
    """The tokens that overlap the last occurrence of a text."""
    whole, reach = _reach(model, ids)
    start = whole.rfind(text)
    if start < 0 or not text.strip():
        raise ValueError(
            f"{text!r} is not in the prompt {whole!r}, whose tokens are {joined(model, ids)}: "
            "give a text that is in the prompt."
        )
    return _cover(reach, start, start + len(text))


def _cover(reach: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    return tuple(n for n, (first, stop) in enumerate(reach) if first < end and start < stop)


def _reach(model: NeuronModel, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text, and each token's first character and the one after its last; empty if special.

    A character split over several tokens, as rare ones are, belongs to all of them. A space belongs
    to no word, so a word begins after it.
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
        start, done = done, _common_length(piece, text)
        reach.append((start, done + (piece != text[: len(piece)])))
    return text, reach


def _common_length(piece: str, text: str) -> int:
    """The length of the common prefix."""
    pairs = zip(piece, text, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(piece), len(text)))


def _both(model: NeuronModel, source_ids: Sequence[int], target_ids: Sequence[int]) -> str:
    return f"The source {joined(model, source_ids)!r} and the target {joined(model, target_ids)!r}"

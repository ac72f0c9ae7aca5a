"""Questions for patching across languages: prompts that differ in language and in concept.

The source asks about A in language s, the target about B in language t, with the same relation: the
day after Monday, the day after Friday. Only facts that the model knows are asked: the right option
is its first choice.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

import interp
from interp.prompts.alignment import PatchSource
from interp.prompts.ending import Ending
from interp.results.words import Bos
from interp.text.tasks import Item, Task
from interp.text.tokens import prompt_ids

CELLS = ("A in s", "B in s", "other in s", "A in t", "B in t", "other in t")
"""The answers; other: wrong options. The unpatched target answers "B in t", the source "A in s".
Without the others, a patch that only removes B would seem to bring A."""


class Crossing(NamedTuple):
    """Two prompts that differ in language and in concept."""

    source: PatchSource
    """The prompt about A in s, and its subject."""

    target: PatchSource
    """The prompt about B in t."""

    answers: Mapping[str, Sequence[int]]
    """Tokens of each cell, which do not overlap; a cell may be missing."""

    controls: Mapping[str, PatchSource]
    """Other sources."""

    several: Sequence[PatchSource]
    """Prompts about A in every language but t in which the model knows it."""

    languages: tuple[str, str]
    """s and t."""

    facts: tuple[int, int]
    """Indices of A and B."""

    relation: str
    """The relation asked for; questions of one relation are a cluster."""

    held_out: bool
    """The model was told A in s, but never in t."""


@dataclass(frozen=True, eq=False)
class Answered:
    """The model's answers to every question in every language."""

    tasks: Mapping[str, Task]
    """By language, the same items in the same order."""

    known: Mapping[str, Sequence[bool]]
    """Whether the right option is the first choice."""

    shared: Sequence[Bool[Tensor, "layer neuron"]]
    """Neurons that fire in all languages, at the last token of the question."""

    bos: Bos
    """What was put before each question."""


@torch.no_grad()
def answer(model: interp.NeuronModel, tasks: Sequence[Task], bos: Bos) -> Answered:
    """Ask every question in every language, one pass each."""
    known: dict[str, list[bool]] = {task.language: [] for task in tasks}
    shared = []
    for items in zip(*(task.items for task in tasks), strict=True):
        firing = []
        for task, item in zip(tasks, items, strict=True):
            ending = Ending(
                model, torch.tensor(prompt_ids(model, item.prompt, bos)), kinds=("pre",)
            )
            known[task.language].append(is_first(model, item, ending.logits))
            firing.append(rearrange(ending.values["pre"], "layer 1 neuron -> layer neuron") > 0)
        shared.append(torch.stack(firing).all(dim=0).cpu())
    return Answered({task.language: task for task in tasks}, known, shared, bos)


def is_first(model: interp.NeuronModel, item: Item, logits: Float[Tensor, " vocab"]) -> bool:
    """Whether the right option has the likeliest first token of all options."""
    scores = [logits[list(first_tokens(model, option))].max() for option in item.options]
    return int(torch.stack(scores).argmax()) == item.answer


def relation(item: Item) -> str:
    """The relation asked for, as the item says, or its id up to a colon: `capital:France`."""
    return item.relation or item.id.split(":")[0]


def right(item: Item) -> str:
    return item.options[item.answer]


def first_tokens(model: interp.NeuronModel, word: str) -> tuple[int, ...]:
    """The first token of a word, with and without a preceding space."""
    bare = word.strip()
    first = {model.encode(bare)[0], *model.encode(" " + bare)[:1]}
    return tuple(sorted(first - set(model.encode(" "))))


# ---------------------------------------------------------------- pairs of facts


def crossings(
    model: interp.NeuronModel,
    answered: Answered,
    n_told: int,
    n_held_out: int,
    generator: random.Random,
) -> tuple[list[Crossing], dict[str, int]]:
    """Pairs of facts for every ordered pair of languages, and counts: taken, left out by reason.

    At most `n_told` pairs whose answers the model was told in both languages, each with a different
    B, and at most `n_held_out` whose A it was never told in t.
    """
    reasons = ("answers begin alike", "no third fact to compare with", "subject not found")
    counts: dict[str, int] = dict.fromkeys((*reasons, "told", "held out"), 0)
    questions: list[Crossing] = []
    for s, t in permutations(answered.tasks, 2):
        pairs = list(_pairs(answered, s, t))
        generator.shuffle(pairs)
        missing = [pair for pair in pairs if _items(answered, t)[pair[0]].held_out]
        told = [pair for pair in pairs if pair not in missing]
        once = list({b: (a, b) for a, b in told}.values())
        for name, facts, limit in (("told", once, n_told), ("held out", missing, n_held_out)):
            taken = 0
            for pair in facts:
                if taken == limit:
                    break
                question = crossing(model, answered, (s, t), pair)
                if isinstance(question, Crossing):
                    questions.append(question)
                    taken += 1
                else:
                    counts[question] += 1
            counts[name] += taken
    return questions, counts


def crossing(
    model: interp.NeuronModel,
    answered: Answered,
    languages: tuple[str, str],
    facts: tuple[int, int],
) -> Crossing | str:
    """The prompts about two facts, or the reason why there are none."""
    (s, t), (a, b) = languages, facts
    in_s, in_t = (_items(answered, code) for code in languages)
    words = [right(items[fact]) for items in (in_s, in_t) for fact in facts]
    tokens = [set(first_tokens(model, word)) for word in words]
    if any(one & other for one, other in combinations(tokens, 2)):
        return "answers begin alike"
    third = (
        fact
        for fact, known in enumerate(answered.known[s])
        if known and fact not in facts and relation(in_s[fact]) == relation(in_s[a])
    )
    c = next(third, None)
    if c is None:
        return "no third fact to compare with"
    source, target, same, another = (
        _source(model, items[fact], items[other], answered.bos)
        for items, fact, other in ((in_s, a, c), (in_t, b, a), (in_t, a, b), (in_s, c, a))
    )
    if not (source and target and same and another):
        return "subject not found"
    several = [
        _source(model, _items(answered, code)[a], _items(answered, code)[b], answered.bos)
        for code, known in answered.known.items()
        if code != t and known[a]
    ]
    return Crossing(
        source,
        target,
        _cells(model, tokens, [in_s[a], in_s[b]], [in_t[a], in_t[b]]),
        {"A in t": same, "another concept in s": another},
        [source for source in several if source],
        languages,
        facts,
        relation(in_t[a]),
        in_t[a].held_out,
    )


def _cells(
    model: interp.NeuronModel, tokens: Sequence[set[int]], *items_by_language: Sequence[Item]
) -> dict[str, Sequence[int]]:
    """A and B in either language, and wrong options that begin with other tokens."""
    taken = set().union(*tokens)
    in_s, in_t = (
        {id for item in items for word in item.options for id in first_tokens(model, word)} - taken
        for items in items_by_language
    )
    cells = (*tokens[:2], in_s - in_t, *tokens[2:], in_t - in_s)
    return {cell: sorted(ids) for cell, ids in zip(CELLS, cells, strict=True) if ids}


def _pairs(answered: Answered, s: str, t: str) -> Iterator[tuple[int, int]]:
    """Two facts of one relation: A was told and is known in s, B in t."""
    in_s, in_t = (
        [(fact, item) for fact, item in enumerate(_items(answered, code)) if not item.held_out]
        for code in (s, t)
    )
    for b, target in in_t:
        for a, source in in_s:
            known = answered.known[s][a] and answered.known[t][b]
            if a != b and known and relation(source) == relation(target):
                yield a, b


def _items(answered: Answered, code: str) -> tuple[Item, ...]:
    return answered.tasks[code].items


def _source(model: interp.NeuronModel, item: Item, other: Item, bos: Bos) -> PatchSource | None:
    text = subject(item.prompt, other.prompt)
    return PatchSource(prompt_ids(model, item.prompt, bos), (text,)) if text else None


def subject(prompt: str, other: str) -> str:
    """The words in which a prompt differs from another of its relation; empty: none.

    A word is a run of letters, or one character in scripts without spaces. A patch is at the last
    occurrence of a text, so a subject that occurs again later in the prompt is rejected.
    """
    words, others = (re.findall(r"[A-Za-zÀ-ÿ0-9]+|.", text) for text in (prompt, other))
    start = shared_beginning(words, others)
    end = shared_beginning(words[start:][::-1], others[start:][::-1])
    text = "".join(words[start : len(words) - end]).strip()
    before = len("".join(words[:start]))
    return text if text and prompt.rfind(text) == prompt.find(text, before) else ""


def shared_beginning(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words at the beginning of two texts are the same."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(a), len(b)))

"""Questions for patching across languages: prompts that differ in language and in what they ask.

The source asks about A in language s, the target about B in language t, of the same relation: the
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
from interp.text.tasks import Item, Task
from interp.text.tokens import prompt_ids

CELLS = ("A in s", "B in s", "other in s", "A in t", "B in t", "other in t")
"""The answers; other: wrong options. Before the patch the target says "B in t"; the whole source,
"A in s". Without the others, what wipes out B would seem to bring A."""


class Crossing(NamedTuple):
    """Two prompts that differ in language and in concept."""

    source: PatchSource
    """About A, in s, and the subject in it."""

    target: PatchSource
    """About B, in t."""

    answers: Mapping[str, Sequence[int]]
    """Tokens of each cell, none in two; a cell may be missing."""

    controls: Mapping[str, PatchSource]
    """Other sources."""

    several: Sequence[PatchSource]
    """About A, in every language but t in which the model knows it."""

    languages: tuple[str, str]
    """s and t."""

    facts: tuple[int, int]
    """Numbers of A and B."""

    relation: str
    """What is asked; questions of one relation go together."""

    held_out: bool
    """A was never told in t, and was in s."""


@dataclass(frozen=True, eq=False)
class Answered:
    """What the model does with every question in every language."""

    tasks: Mapping[str, Task]
    """By language, the same items in the same order."""

    known: Mapping[str, Sequence[bool]]
    """Whether the right option is its first choice."""

    shared: Sequence[Bool[Tensor, "layer neuron"]]
    """Neurons that fire in all languages, at the last token of the question."""


@torch.no_grad()
def answer(model: interp.NeuronModel, tasks: Sequence[Task]) -> Answered:
    """Ask every question in every language: a pass each."""
    known: dict[str, list[bool]] = {task.language: [] for task in tasks}
    shared = []
    for items in zip(*(task.items for task in tasks), strict=True):
        firing = []
        for task, item in zip(tasks, items, strict=True):
            ending = Ending(model, torch.tensor(encoded(model, item)), kinds=("pre",))
            known[task.language].append(is_first(model, item, ending.logits))
            firing.append(rearrange(ending.values["pre"], "layer 1 neuron -> layer neuron") > 0)
        shared.append(torch.stack(firing).all(dim=0).cpu())
    return Answered({task.language: task for task in tasks}, known, shared)


def is_first(model: interp.NeuronModel, item: Item, logits: Float[Tensor, " vocab"]) -> bool:
    """Whether the first token of the right option is the likeliest of all options'."""
    scores = [logits[list(first_tokens(model, option))].max() for option in item.options]
    return int(torch.stack(scores).argmax()) == item.answer


def encoded(model: interp.NeuronModel, item: Item) -> list[int]:
    return prompt_ids(model, item.prompt, "auto")


def relation(item: Item) -> str:
    """What is asked: "fact_completion/day_after:monday:tuesday" is about the day after."""
    return item.id.split(":")[0]


def right(item: Item) -> str:
    return item.options[item.answer]


def first_tokens(model: interp.NeuronModel, word: str) -> tuple[int, ...]:
    """What the tokenizer begins a word with, behind a space and without one."""
    bare = word.strip()
    space = set(model.encode(" "))
    found = {model.encode(bare)[0], *model.encode(" " + bare)[:1]}
    return tuple(sorted(found - space))


# ---------------------------------------------------------------- pairs of facts


def crossings(
    model: interp.NeuronModel,
    answered: Answered,
    n_told: int,
    n_held_out: int,
    drawn: random.Random,
) -> tuple[list[Crossing], dict[str, int]]:
    """Pairs of facts for every two languages, and how many were left out, by reason.

    At most `n_told` of which both answers were told to the model in both languages, each with
    another B, and at most `n_held_out` of which A never was in t.
    """
    reasons = ("answers begin alike", "no third fact to compare with", "subject not found")
    counts: dict[str, int] = dict.fromkeys((*reasons, "told", "held out"), 0)
    found: list[Crossing] = []
    for s, t in permutations(answered.tasks, 2):
        pairs = [(a, b) for a, b in _pairs(answered, s, t) if _told(answered, a, s, b, t)]
        drawn.shuffle(pairs)
        missing = [pair for pair in pairs if _items(answered, t)[pair[0]].held_out]
        told = [pair for pair in pairs if pair not in missing]
        once = list({b: (a, b) for a, b in told}.values())
        for name, some, limit in (("told", once, n_told), ("held out", missing, n_held_out)):
            taken = 0
            for a, b in some:
                if taken == limit:
                    break
                made = crossing(model, answered, (s, t), (a, b))
                if isinstance(made, Crossing):
                    found.append(made)
                    taken += 1
                else:
                    counts[made] += 1
            counts[name] += taken
    return found, counts


def crossing(
    model: interp.NeuronModel,
    answered: Answered,
    languages: tuple[str, str],
    facts: tuple[int, int],
) -> Crossing | str:
    """The prompts about two facts, or why there are none."""
    (s, t), (a, b) = languages, facts
    theirs, ours = (_items(answered, code) for code in languages)
    words = [right(items[fact]) for items in (theirs, ours) for fact in facts]
    tokens = [set(first_tokens(model, word)) for word in words]
    if any(one & other for one, other in combinations(tokens, 2)):
        return "answers begin alike"
    known = (
        fact
        for fact, known in enumerate(answered.known[s])
        if known and fact not in facts and relation(theirs[fact]) == relation(theirs[a])
    )
    c = next(known, None)
    if c is None:
        return "no third fact to compare with"
    sources = [
        _source(model, items[one], items[other])
        for items, one, other in ((theirs, a, c), (ours, b, a), (ours, a, b), (theirs, c, a))
    ]
    source, target, same, another = sources
    if not (source and target and same and another):
        return "subject not found"
    others = [
        _source(model, _items(answered, code)[a], _items(answered, code)[b])
        for code, known in answered.known.items()
        if code != t and known[a]
    ]
    return Crossing(
        source,
        target,
        _cells(model, tokens, [theirs[a], theirs[b]], [ours[a], ours[b]]),
        {"A in t": same, "another concept in s": another},
        [each for each in others if each],
        languages,
        facts,
        relation(ours[a]),
        ours[a].held_out,
    )


def _cells(
    model: interp.NeuronModel,
    tokens: Sequence[set[int]],
    theirs: Sequence[Item],
    ours: Sequence[Item],
) -> dict[str, Sequence[int]]:
    """A and B in either language, and the wrong options so far as they begin otherwise."""
    taken = set().union(*tokens)
    in_s, in_t = (
        {id for item in items for word in item.options for id in first_tokens(model, word)} - taken
        for items in (theirs, ours)
    )
    cells = (*tokens[:2], in_s - in_t, *tokens[2:], in_t - in_s)
    return {cell: sorted(ids) for cell, ids in zip(CELLS, cells, strict=True) if ids}


def _pairs(answered: Answered, s: str, t: str) -> Iterator[tuple[int, int]]:
    """Two facts of one relation, of which the model knows A in s and B in t."""
    theirs, ours = _items(answered, s), _items(answered, t)
    for b, known in enumerate(answered.known[t]):
        for a, also in enumerate(answered.known[s]):
            if a != b and known and also and relation(theirs[a]) == relation(ours[b]):
                yield a, b


def _told(answered: Answered, a: int, s: str, b: int, t: str) -> bool:
    """Whether A was told in s, and B in t."""
    return not (_items(answered, s)[a].held_out or _items(answered, t)[b].held_out)


def _items(answered: Answered, code: str) -> tuple[Item, ...]:
    return answered.tasks[code].items


def _source(model: interp.NeuronModel, item: Item, other: Item) -> PatchSource | None:
    about = subject(item.prompt, other.prompt)
    return PatchSource(encoded(model, item), (about,)) if about else None


def subject(prompt: str, other: str) -> str:
    """The words in which a prompt differs from another of its relation; empty: none.

    A word is a run of letters, a character where no spaces are written. The last place of a text
    is what is patched, so a subject that comes again later in the prompt is not taken.
    """
    mine, theirs = (re.findall(r"[A-Za-zÀ-ÿ0-9]+|.", text) for text in (prompt, other))
    start = alike(mine, theirs)
    end = alike(mine[start:][::-1], theirs[start:][::-1])
    text = "".join(mine[start : len(mine) - end]).strip()
    before = len("".join(mine[:start]))
    return text if text and prompt.rfind(text) == prompt.find(text, before) else ""


def alike(mine: Sequence[str], theirs: Sequence[str]) -> int:
    """How many words two texts begin with alike."""
    pairs = enumerate(zip(mine, theirs, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(mine), len(theirs)))

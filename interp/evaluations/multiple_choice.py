"""Tasks in several languages, scored item by item: multiple choice, or exact match of the answer.

An option's score is its log-likelihood after the prompt. Prompt and option are tokenized together,
as running text is, so that the tokens at the boundary are those the model knows. An option's tokens
are those after the longest prefix that the prompt and all prompts with an option share: the prompt,
except for a last token that merges with some option, which then counts for every option. So without
normalization the choice is the likeliest whole text, wherever the boundary lies.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote  # different names stay different files

import torch

from interp.evaluations.task_results import Choices, Written
from interp.evaluations.writing import bar, generate_texts
from interp.interventions.under import Applied, Under, applied, check_under, plan_of
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.words import NOTHING, Bos, Normalize
from interp.runs.folder import begin
from interp.runs.jobs import finish, folder_for
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.tasks import Task
from interp.text.tokens import beginning, padded

Result = TypeVar("Result", Choices, Written)


@dataclass(frozen=True)
class Encoded:
    """A tokenized item."""

    rows: tuple[tuple[int, ...], ...]
    """For each option, the tokens of prompt and option, beginning-of-text included."""

    begin: int
    """Index of the options' first token; the token before it is the last of the prompt."""

    id: str
    """Item id."""

    @property
    def first_tokens(self) -> tuple[int, ...]:
        """The first token of each option."""
        return tuple(row[self.begin] for row in self.rows)


def encode_items(model: NeuronModel, task: Task, bos: Bos = "auto") -> list[Encoded]:
    """Every item in tokens, split as the module docstring says; an empty option is an error."""
    first = beginning(model, bos)
    texts = [item.prompt + ending for item in task.items for ending in ("", *item.options)]
    encoded_texts = iter(model.encode_batch(texts))
    encoded = []
    for item in task.items:
        prompt = next(encoded_texts)
        options = [next(encoded_texts) for _ in item.options]
        begin = min(_shared_prefix(prompt, ids) for ids in options)
        rows = tuple((*first, *ids) for ids in options)
        where = f"{item.id!r} of {task.name} in {task.language}"
        for option, ids in zip(item.options, options, strict=True):
            if len(ids) == begin:
                raise ValueError(f"The option {option!r} of {where} has no tokens: give some text.")
            if len(first) + len(ids) > model.max_length:
                raise ValueError(
                    f"{where} has {len(first) + len(ids)} tokens with the option {option[:40]!r}, "
                    f"but {model.name} reads {model.max_length}: leave it out, in Python with "
                    "task.where."
                )
        if not first and begin == 0:
            raise ValueError(
                f"{where} begins with its options, and nothing is put before them: give a prompt "
                'of at least one word, or bos="document".'
            )
        encoded.append(Encoded(rows, len(first) + begin, item.id))
    return encoded


def drop_ambiguous(
    model: NeuronModel, tasks: Sequence[Task], bos: Bos = "auto"
) -> tuple[Task, ...]:
    """The tasks without items whose options all begin with the same token in some language."""
    ambiguous = ambiguous_ids(model, tasks, bos)
    return tuple(task.where(lambda item: item.id not in ambiguous) for task in tasks)


def ambiguous_ids(model: NeuronModel, tasks: Sequence[Task], bos: Bos = "auto") -> set[str]:
    """Ids of the items whose options all begin with the same token in some language."""
    return {
        item.id
        for task in tasks
        for item in encode_items(model, task, bos)
        if len(set(item.first_tokens)) == 1
    }


def choose(
    model: AnyModel,
    tasks: Sequence[Task],
    under: Under | None = None,
    *,
    normalize: Normalize = "none",
    bos: Bos = "auto",
    tokens_per_batch: int = 4096,
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> list[Choices]:
    """Multiple choice: one result per task and intervention, ordered by task, then intervention.

    A change with tokens="last" would apply at the last token of an option; for edits at the last
    token of a prompt, see `interp.evaluations.category_ablation`. With `out`, each result is saved
    there and the same call resumes; with `ray`, actors answer, on nodes that share `out`.

    >>> task = interp.read_task("babel/fact_completion", "de")
    >>> days = task.where(lambda item: "day_after" in item.id)
    >>> under = {"nothing": None, "off": neurons.change("de", interp.deactivate)}
    >>> results = interp.evaluations.choose(model, [days], under, progress=False)
    >>> [(result.language, result.intervention) for result in results]
    [('de', 'nothing'), ('de', 'off')]
    """
    model = as_model(model)
    for task in tasks:
        encode_items(model, task, bos)  # raises before anything is run
        for item in task.items:
            if len(item.options) < 2:
                raise ValueError(
                    f"{item.id!r} of {task.name} in {task.language} has one option, so there "
                    "is nothing to choose: give two or more, or use exact_match."
                )
    work = partial(_choose, normalize, bos, tokens_per_batch)
    plan = {"normalize": normalize, "bos": bos, "tokens_per_batch": tokens_per_batch}
    return answers_under(model, tasks, under, work, Choices.load, plan, out, progress, ray)


def exact_match(
    model: AnyModel,
    tasks: Sequence[Task],
    under: Under | None = None,
    *,
    max_new_tokens: int = 32,
    stop: str = "\n",
    bos: Bos = "auto",
    tokens_per_batch: int = 4096,
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> list[Written]:
    """Does the model write the answer, decoding greedily? Otherwise like `choose`.

    The text is cut at `stop`: the end of the line or, for reasoning over several lines, whatever
    begins the next question. The answer is the right option; the other options do not matter.

    >>> task = interp.read_task("babel/fact_completion", "de")
    >>> days = task.where(lambda item: "day_after" in item.id)
    >>> settings = {"max_new_tokens": 6, "bos": "document", "progress": False}
    >>> (result,) = interp.evaluations.exact_match(model, [days], **settings)
    >>> len(result.texts), result.accuracy().value.item() > 0.5
    (7, True)
    """
    model = as_model(model)
    settings = {"max_new_tokens": max_new_tokens, "bos": bos}
    settings["tokens_per_batch"] = tokens_per_batch
    work = partial(_write_answers, stop, settings)
    plan = {**settings, "stop": stop}
    return answers_under(model, tasks, under, work, Written.load, plan, out, progress, ray)


def answers_under(
    model: NeuronModel,
    tasks: Sequence[Task],
    under: Under | None,
    work: Callable[[Task, str, NeuronModel], Result],
    load: Callable[[Path], Result],
    plan: Mapping[str, Any],
    out: Path | str | None,
    progress: bool,
    ray: Ray | ActorPool | None,
) -> list[Result]:
    """One result per task and intervention, computed here or by actors, or loaded from `out`."""
    named = check_under(model, {NOTHING: None} if under is None else under)
    if out is not None:
        items = [[task.name, task.language, artifacts.hash_of(task.items)] for task in tasks]
        full_plan = {"model": model.identity, "tasks": items, "under": plan_of(named), **plan}
        begin(Path(out), full_plan, artifacts.provenance())
    jobs = []
    with (
        folder_for(out) as folder,
        bar(len(tasks) * len(named), "answering", progress) as progress_bar,
    ):
        for index, task in enumerate(tasks):
            slug = f"{index:02d}-{quote(task.name, safe='')}-{task.language}"
            for name, changes in named.items():
                path = folder / "answers" / f"{slug}-{quote(name, safe='')}.safetensors"
                job = partial(_answer, path, work, task, name, changes)
                jobs.append(Job(f"{slug} with {name}", path, job))
        return finish(jobs, load, progress_bar, model, ray)


def _answer(
    path: Path,
    work: Callable[[Task, str, NeuronModel], Choices | Written],
    task: Task,
    name: str,
    changes: Sequence[Applied],
    model: NeuronModel,
) -> None:
    """Save the result of one task under one intervention."""
    with applied(changes, model):
        work(task, name, model).save(path)


def _choose(
    normalize: Normalize,
    bos: Bos,
    tokens_per_batch: int,
    task: Task,
    name: str,
    model: NeuronModel,
) -> Choices:
    items = encode_items(model, task, bos)
    rows = [(row, item.begin) for item in items for row in item.rows]
    likelihoods = _log_likelihoods(model, rows, tokens_per_batch)
    return _choices(task, items, name, likelihoods, normalize)


def _write_answers(
    stop: str, settings: Mapping[str, Any], task: Task, name: str, model: NeuronModel
) -> Written:
    prompts = [item.prompt for item in task.items]
    written = generate_texts(model, prompts, n=1, temperature=0.0, progress=False, **settings)
    # Space before the first word does not count as a line.
    texts = tuple(text.lstrip().split(stop, 1)[0].rstrip() for text in written[NOTHING].texts)
    answers = tuple(item.options[item.answer].strip() for item in task.items)
    right = [is_answer(text, answer) for text, answer in zip(texts, answers, strict=True)]
    return Written(
        correct=torch.tensor(right),
        texts=texts,
        answers=answers,
        ids=task.ids,
        groups=task.groups,
        task=task.name,
        language=task.language,
        intervention=name,
    )


def is_answer(text: str, answer: str) -> bool:
    """Whether a text is the answer, ignoring case, width, and punctuation or spaces at its ends.

    If the answer is a number, whether the last number in the text equals it: commas separate
    thousands, a point the decimals, and digits of every script count.
    """
    number = _last_number(answer)
    if number is not None and _NUMBER.fullmatch(answer.strip()):
        return _last_number(text) == number
    return _normalized(text) == _normalized(answer)


_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _normalized(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    outer = {char for char in text if unicodedata.category(char)[0] in "PZ" or char.isspace()}
    return text.strip("".join(outer))


# ---------------------------------------------------------------- helpers


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix of two lists."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


@torch.inference_mode()
def _log_likelihoods(
    model: NeuronModel,
    rows: Sequence[tuple[Sequence[int], int]],
    tokens_per_batch: int,
) -> list[float]:
    """Log-likelihood of each row of tokens from its given index on; rows are batched by length."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]), reverse=True)
    likelihoods = [math.nan] * len(rows)
    while order:
        batch = order[: max(1, tokens_per_batch // len(rows[order[0]][0]))]
        order = order[len(batch) :]
        ids, mask = padded([list(rows[row][0]) for row in batch], "right")
        losses = model.losses(ids, None if mask.all() else mask).cpu().double()
        for row, nats in zip(batch, losses, strict=True):
            likelihoods[row] = -nats[rows[row][1] - 1 :].sum().item()  # zeros on padding
    return likelihoods


def _choices(
    task: Task,
    items: Sequence[Encoded],
    name: str,
    likelihoods: Sequence[float],
    normalize: Normalize,
) -> Choices:
    shape = (len(items), max(len(item.rows) for item in items))
    likelihood = torch.full(shape, math.nan, dtype=torch.float64)
    tokens, n_bytes = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
    remaining = iter(likelihoods)
    for row, (item, encoded) in enumerate(zip(task.items, items, strict=True)):
        for column, (option, ids) in enumerate(zip(item.options, encoded.rows, strict=True)):
            nats = next(remaining)
            if not math.isfinite(nats):
                raise ValueError(
                    f"Option {option!r} of {item.id!r} ({task.name}, {task.language}) has the "
                    f"log-likelihood {nats} with {name!r}: weights may be damaged or the edit too "
                    "strong. Load the model with dtype=torch.float32, or lower the strength."
                )
            likelihood[row, column] = nats
            tokens[row, column] = len(ids) - encoded.begin
            n_bytes[row, column] = len(option.encode())
    answer = torch.tensor([item.answer for item in task.items])
    return Choices(
        log_likelihood=likelihood,
        tokens=tokens,
        bytes=n_bytes,
        answer=answer,
        normalize=normalize,
        ids=task.ids,
        groups=task.groups,
        task=task.name,
        language=task.language,
        intervention=name,
    )

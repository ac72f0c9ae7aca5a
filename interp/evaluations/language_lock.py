"""Find the neurons that make answers leave their language, and switch off as few as it takes.

Half of the prompts are searched: where an answer leaves its language, a what-if per neuron says how
much less likely the first wrong token is without it. Neurons are ranked by their mean over these
points, and the smallest number that removes enough lapses is taken. The other half of the prompts
says what that is worth, beside as many random neurons, and text and tasks what it costs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.evaluations.confusion import Confusion, language_confusion, more_passes
from interp.evaluations.losses import Losses, losses_under
from interp.evaluations.multiple_choice import choose
from interp.evaluations.task_results import Choices, compare_answers
from interp.evaluations.writing import generate_texts
from interp.inference.intervals import Estimate, mean_over_examples
from interp.interventions.edits import Change, deactivate
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.prompts.attribution import gradient_times_activation
from interp.prompts.contributions import ablation_effect, top_neurons
from interp.prompts.sweep import random_matching
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.display import Shown, counted
from interp.results.words import NOTHING, Bos
from interp.runs.folder import begin
from interp.runs.jobs import finish, folder_for
from interp.runs.ray import Job
from interp.text.corpora import Corpora
from interp.text.labels import Tags
from interp.text.language_id import LanguageId
from interp.text.tasks import Task
from interp.text.tokens import Prompt, prompt_ids

LOCKED, RANDOM = "locked", "random neurons"

_ANSWERS, _WHAT_IFS = "answers", "what-ifs"
PRICE_OF_TEXT, PRICE_OF_TASKS = "losses", "tasks"
"""Subfolders of what is saved."""


@dataclass(frozen=True, kw_only=True)
class LockSearch:
    """How the neurons are searched for.

    >>> interp.evaluations.LockSearch(removes=1.0).candidates
    200
    """

    candidates: int = 200
    """Neurons that get a what-if, those of largest gradient times activation."""

    points: int = 50
    """Answers that leave their language to search, the first ones."""

    most: int = 128
    """Neurons to switch off, at most."""

    removes: float = 0.9
    """Share of the lapses of the searched prompts that is to go; the fewest neurons that do it are
    taken, or those that do most."""

    def __post_init__(self) -> None:
        for name in ("candidates", "points", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more.")
        if not 0 < self.removes <= 1:
            raise ValueError(f"removes is {self.removes}: give a share, above 0 and up to 1.")

    def sizes(self, n_useful: int) -> list[int]:
        """Numbers of neurons to try, doubling up to `most`, or to as many as are useful."""
        last = min(self.most, n_useful)
        return [*(2**step for step in range((last - 1).bit_length())), last]


PLAIN_SEARCH = LockSearch()


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageLock(Shown):
    """An edit that keeps answers in their language, what it is worth and what it costs.

    >>> prompts = ["The train to", "The weather is", "In the morning the", "My sister has"]
    >>> search = interp.evaluations.LockSearch(candidates=8, points=1, most=2)
    >>> settings = {"search": search, "max_new_tokens": 24, "progress": False}
    >>> lock = interp.evaluations.lock_language(model, prompts, "de", **settings)
    >>> lock.tried[0], lock.change.n_units <= 2
    (0.0, True)
    """

    change: Change
    """Neurons off; `change.to_lora` and `interp.bake` write it."""

    effect: Float[Tensor, "layer neuron"]
    """By how much the log probability of the first wrong token falls without the neuron, on average
    over the searched points. NaN: no what-if was asked."""

    tried: Mapping[int, float]
    """Number of neurons off → pass rate of the searched prompts; 0: none."""

    confusion: Mapping[str, Confusion]
    """Answers to the other half of the prompts: nothing, locked, random neurons."""

    losses: Losses | None
    """Of text, under nothing and locked."""

    answers: Sequence[tuple[Choices, Choices]]
    """Of each task, under nothing and locked."""

    def __repr__(self) -> str:
        before, after = (self.confusion[name].passes for name in (NOTHING, LOCKED))
        rates = f"{int(before.sum())} to {int(after.sum())} of {len(before)} answers stay"
        return f"LanguageLock({counted(self.change.n_units, 'neuron')} off: {rates})"

    @property
    def found(self) -> bool:
        """Whether the edit keeps more of the searched answers; else it is the best of bad ones."""
        nothing, *edits = self.tried.values()
        return max(edits) > nothing

    @property
    def gain(self) -> Estimate:
        """Share of answers that stay in their language, locked minus nothing; paired by prompt."""
        return more_passes(self.confusion[LOCKED], self.confusion[NOTHING])

    @property
    def removed(self) -> float:
        """Of the answers that left their language, the share that now stays. NaN: none left."""
        lapsed = ~self.confusion[NOTHING].passes
        return self.confusion[LOCKED].passes[lapsed].double().mean().item()

    def to_frame(self) -> pd.DataFrame:
        """What it is worth and what it costs: a row per measure, with the paired difference."""
        before, rows = self.confusion[NOTHING], []
        for name, after in self.confusion.items():
            if name != NOTHING:
                rows.append(_row("answers that stay", name, before.passes, after.passes))
                lines = (before.lines_pass, after.lines_pass)
                rows.append(_row("answers whose lines all stay", name, *lines))
        if self.losses is not None:
            loss, more = self.losses.loss, self.losses.increase
            for index, language in enumerate(self.losses.languages):
                ends = [float(part[1, index]) for part in (more.value, more.low, more.high)]
                losses = loss[:, index].tolist()
                rows.append(_cells(f"nats per token of {language}", LOCKED, *losses, *ends))
        for one, other in self.answers:
            more = compare_answers(other, one, torch.Generator().manual_seed(0))
            measure = f"accuracy of {one.task} in {one.language}"
            rows.append(_row(measure, LOCKED, one.correct, other.correct, more))
        return pd.DataFrame(rows)


def _row(
    measure: str, under: str, before: Tensor, after: Tensor, more: Estimate | None = None
) -> dict[str, Any]:
    """Shares before and after; `more`: their paired difference, if it is not over single items."""
    shares = [part.double() for part in (before, after)]
    more = more or mean_over_examples(shares[1] - shares[0])
    means = (share.mean().item() for share in shares)
    return _cells(measure, under, *means, *map(float, (more.value, more.low, more.high)))


def _cells(measure: str, under: str, *numbers: float) -> dict[str, Any]:
    columns = ("before", "after", "difference", "difference_low", "difference_high")
    return {"measure": measure, "under": under, **dict(zip(columns, numbers, strict=True))}


def lock_language(
    model: AnyModel,
    prompts: Sequence[Prompt],
    language: str,
    *,
    text: Corpora | None = None,
    tasks: Sequence[Task] = (),
    search: LockSearch = PLAIN_SEARCH,
    max_new_tokens: int = 64,
    seed: int = 0,
    bos: Bos = "auto",
    tags: Tags | None = None,
    langid: LanguageId | None = None,
    out: Path | str | None = None,
    progress: bool = True,
) -> LanguageLock:
    """Switch off the fewest neurons that keep greedy answers in a language.

    `seed` says which half of the prompts is searched, and draws the random neurons. `text` and
    `tasks` are what the edit may cost. Chat models: give `interp.text.chat_prompt(model, message)`.
    With `out`, answers, what-ifs, losses and choices are saved there, and the same call resumes.

    >>> interp.evaluations.lock_language(model, ["Wo?", "Wer?", "Was?"], "de", max_new_tokens=4)
    Traceback (most recent call last):
        ...
    ValueError: None of the 1 answers that were searched leaves de: give prompts on which ...
    """
    model = as_model(model)
    if len(prompts) < 3 or isinstance(prompts, str):
        raise ValueError(
            "Half of the prompts are searched, and two or more others measured: give three or more."
        )
    if out is not None:
        plan = {"model": model.identity, "language": language, "search": asdict(search)}
        plan |= {"prompts": artifacts.hash_of([prompt_ids(model, one, bos) for one in prompts])}
        plan |= {"max_new_tokens": max_new_tokens, "seed": seed}
        begin(Path(out), plan, artifacts.provenance())
    halves = _halves(len(prompts), seed)
    with folder_for(out) as folder:
        judge = _Judge(
            model, prompts, language, max_new_tokens, bos, tags, langid, progress, folder
        )
        searched = judge.answers(halves[0], {NOTHING: None}, "searched")[NOTHING]
        points = _points(model, judge, halves[0], searched)[: search.points]
        if not points:
            raise ValueError(
                f"None of the {len(halves[0])} answers that were searched leaves {language}: give "
                "prompts on which answers do."
            )
        effect = _effects(model, points, search.candidates, folder / _WHAT_IFS, progress)
        change, tried = _fewest(judge, halves[0], searched, effect, search)
        generator = torch.Generator().manual_seed(seed)
        random = Change(random_matching(change.masks["post"], generator), deactivate)
        under = {NOTHING: None, LOCKED: change}
        confusion = judge.answers(halves[1], under | {RANDOM: random}, "measured")
        where = {name: folder / name for name in (PRICE_OF_TEXT, PRICE_OF_TASKS)}
        losses, answers = None, []
        if text is not None:
            losses = losses_under(model, text, under, out=where[PRICE_OF_TEXT], progress=progress)
        if tasks:
            saved = where[PRICE_OF_TASKS]
            answers = choose(model, tasks, under, bos=bos, out=saved, progress=progress)
    return LanguageLock(
        change=change,
        effect=effect,
        tried=tried,
        confusion=confusion,
        losses=losses,
        answers=list(zip(answers[::2], answers[1::2], strict=True)),
    )


def _halves(n_prompts: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the prompts to search, and of those to measure."""
    order = torch.randperm(n_prompts, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[: n_prompts // 2]), sorted(order[n_prompts // 2 :])


class _Judge(NamedTuple):
    """Writes answers and judges them."""

    model: NeuronModel
    prompts: Sequence[Prompt]
    language: str
    max_new_tokens: int
    bos: Bos
    tags: Tags | None
    langid: LanguageId | None
    progress: bool
    folder: Path

    def answers(
        self, chosen: Sequence[int], under: Mapping[str, Change | None], name: str
    ) -> dict[str, Confusion]:
        """The greedy answers to some of the prompts, by name of the intervention; `name` is that of
        the folder in which they are saved."""
        written = generate_texts(
            self.model,
            [self.prompts[index] for index in chosen],
            1,
            under,
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
            bos=self.bos,
            out=self.folder / _ANSWERS / name,
            progress=self.progress,
        )
        return {
            name: language_confusion(
                generated.texts,
                self.language,
                generated.prompts,
                tags=self.tags,
                langid=self.langid,
            )
            for name, generated in written.items()
        }


class _Point(NamedTuple):
    """Where an answer leaves its language."""

    ids: list[int]
    """The prompt and the answer so far."""

    wrong: int
    """The next token."""


def _points(
    model: NeuronModel, judge: _Judge, chosen: Sequence[int], confusion: Confusion
) -> list[_Point]:
    points = []
    for index, text, start in zip(chosen, confusion.texts, confusion.left_at.tolist(), strict=True):
        if start < 0:
            continue
        # What tokens of the whole text share with those of its beginning is before the lapse.
        whole, before = model.encode(text), model.encode(text[:start])
        same = 0
        while same < min(len(before), len(whole) - 1) and before[same] == whole[same]:
            same += 1
        ids = [*prompt_ids(model, judge.prompts[index], judge.bos), *whole[:same]]
        points.append(_Point(ids, whole[same]))
    return points


def _effects(
    model: NeuronModel, points: Sequence[_Point], candidates: int, out: Path, progress: bool
) -> Float[Tensor, "layer neuron"]:
    """Mean exact effect of the neurons whose gradients promise most. NaN: the others."""

    def summed(name: str, effect: Callable[..., Tensor]) -> Float[Tensor, "layer neuron"]:
        """Over the points, of which each is saved once it is done."""
        jobs = []
        for number, point in enumerate(points):
            path = out / "pieces" / f"{name}-{number:03d}.safetensors"
            jobs.append(
                Job(f"{name} of answer {number}", path, partial(_save, path, point, effect))
            )
        with tqdm(total=len(jobs), desc=name, unit="answer", disable=not progress) as bar:
            pieces = finish(jobs, partial(artifacts.load, kind=_PIECE), bar, model, None)
        return torch.stack([piece.tensors["effect"] for piece in pieces]).sum(dim=0)

    promised = summed("gradients", partial(gradient_times_activation, quantity="log_probability"))
    chosen = top_neurons(promised, min(candidates, promised.numel()))
    what_if = partial(ablation_effect, neurons=chosen, quantity="log_probability")
    return summed(_WHAT_IFS, what_if) / len(points)


_PIECE = "WhatIfPiece"


def _save(path: Path, point: _Point, effect: Callable[..., Tensor], model: NeuronModel) -> None:
    values = effect(model, point.ids, point.wrong).double()
    artifacts.save(path, _PIECE, {"effect": values}, {}, {})


def n_asked(folder: Path) -> int:
    """Answers of which a lock that was begun in this folder has asked what-ifs."""
    return len(list((folder / _WHAT_IFS / "pieces").glob(f"{_WHAT_IFS}-*.safetensors")))


def n_written(folder: Path) -> float:
    """How often it has written the answers to half of the prompts."""
    paths = (folder / _ANSWERS).glob("*/pieces/*.safetensors")
    batches = Counter((path.parent, path.stem.split("-")[0]) for path in paths)
    return batches.total() / max(batches.values(), default=1)


def _fewest(
    judge: _Judge,
    chosen: Sequence[int],
    before: Confusion,
    effect: Float[Tensor, "layer neuron"],
    search: LockSearch,
) -> tuple[Change, dict[int, float]]:
    """The smallest of doubling numbers of neurons that removes enough, and what was tried."""
    n_useful = int((effect > 0).sum())
    if n_useful == 0:
        raise ValueError(
            "No neuron alone makes the first wrong token likelier: ask for more candidates, or "
            "push the residual stream instead (`interp vector`)."
        )
    lapses = int((~before.passes).sum())
    tried: dict[int, float] = {0: before.passes.double().mean().item()}
    best, fewest_left = Change(top_neurons(effect, 1), deactivate), len(before.texts) + 1
    for size in search.sizes(n_useful):
        off = Change(top_neurons(effect, size), deactivate)
        passes = judge.answers(chosen, {LOCKED: off}, f"{size}-off")[LOCKED].passes
        tried[size] = passes.double().mean().item()
        left = int((~passes).sum())
        if left < fewest_left:
            best, fewest_left = off, left
        if left <= (1 - search.removes) * lapses:
            break
    return best, tried

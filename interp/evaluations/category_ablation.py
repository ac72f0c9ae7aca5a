"""Does a task need the neurons that its prompts share between languages? Switch them off and see.

For each example, neurons are sorted by the number of languages in which they fire at the last token
of the prompt (`Sharing`), and each category is switched off in turn, as in Wang et al. (2024).
Categories differ greatly in size, so there are two controls: as many random neurons per layer, and
equal-sized sets, which take as many of every category per layer as the smallest has there.

Neurons can be off at two sets of tokens:

- "all": at every token of prompt and options, as in the paper. The choice is among whole options.
- "last": only at the last token of the prompt, where they were sorted. All sets run in one pass
  (`Ending`), and the choice is among the first tokens of the options, as in attributions. Options
  that begin with the same token count as one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Float64, Int, Int64, UInt8
from torch import Tensor

from interp.counting.counters import firing_kind, warn_of_rounded_signs
from interp.evaluations.multiple_choice import Encoded, ambiguous_ids, encode_items
from interp.evaluations.neuron_sets import (
    RANDOM,
    Condition,
    conditions_for,
    draw_sets,
    generator_states,
    per_condition,
)
from interp.evaluations.task_results import group_numbers
from interp.evaluations.writing import bar
from interp.inference.intervals import Estimate, mean_over_examples
from interp.models.any_model import AnyModel, as_model
from interp.models.as_transformer_lens import Hook
from interp.models.neuron_model import NeuronModel
from interp.models.sites import hooked_at
from interp.prompts.ending import Edit, Ending
from interp.results import artifacts
from interp.results.display import counted, listed
from interp.results.frames import tidy
from interp.results.saved import Saved
from interp.results.words import Bos, FiresBy, Kind
from interp.runs.folder import begin
from interp.runs.jobs import finish, folder_for
from interp.runs.ray import ActorPool, Job, Ray
from interp.scores.sharing import sharing_categories
from interp.text.tasks import Task, align_tasks

Tokens = Literal["all", "last"]
"""Where neurons are off: at every token, or only at the last token of the prompt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CategoryAblation(Saved):
    """Task accuracy with each category of neurons off, example by example.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> two = [task.where(lambda item: "capital:united" in item.id) for task in tasks]
    >>> settings = {"tokens": "last", "n_draws": 1, "progress": False}
    >>> off = interp.evaluations.ablate_categories(exact, two, generator, **settings)
    >>> off.conditions[0], off.accuracy().value.shape
    (Condition(off='nothing', size=''), torch.Size([11]))
    """

    kind = "CategoryAblation"
    made_by = "interp.evaluations.ablate_categories(model, tasks, generator)"

    correct: Float64[Tensor, "prompt condition language"]
    """One: the right answer was chosen. The mean over draws where neurons were drawn."""

    probability: Float64[Tensor, "prompt condition language"]
    """Of the answer after the prompt ("all"), or of its first token ("last"); mean over draws."""

    neurons: Int64[Tensor, "prompt condition"]
    """Number of neurons off, over all layers."""

    chance: Float64[Tensor, "prompt language"]
    """One over the number of distinguishable options."""

    tokens: Tokens
    """At which tokens the neurons were off."""

    conditions: tuple[Condition, ...]
    """The first is the untouched model."""

    prompts: tuple[str, ...]
    """Item ids."""

    groups: tuple[str, ...]
    """Group of each item, for intervals; an item without a group is its own."""

    task: str
    """Name of the task."""

    languages: tuple[str, ...]
    """Labels of the languages between which neurons are shared or not."""

    fires_by: FiresBy = "gate"
    """The value whose sign decides whether a neuron fires."""

    def __repr__(self) -> str:
        position = "every token" if self.tokens == "all" else "the last token"
        return (
            f"CategoryAblation({self.task}: {counted(len(self.prompts), 'prompt')} in "
            f"{listed(self.languages)}; {counted(len(self.conditions) - 1, 'way')} to switch off "
            f"at {position}; accuracy {self.correct[:, 0].mean().item():.2f} with nothing off, "
            f"{self.chance.mean().item():.2f} by chance)"
        )

    def accuracy(self, language: str | None = None, level: float = 0.95) -> Estimate:
        """Share of examples answered correctly: [condition], in one language or over all of them.

        Intervals are over examples. Over all languages, an example's score is its mean over them.
        """
        return self._mean(self._of(self.correct, language), level)

    def answer_probability(self, language: str | None = None, level: float = 0.95) -> Estimate:
        """Mean probability of the answer: [condition]."""
        return self._mean(self._of(self.probability, language), level)

    def accuracy_drop(self, language: str | None = None, level: float = 0.95) -> Estimate:
        """Accuracy lost relative to the untouched model: [condition]; paired."""
        return self._drop(self.correct, language, level)

    def probability_drop(self, language: str | None = None, level: float = 0.95) -> Estimate:
        """Probability of the answer lost relative to the untouched model: [condition]; paired."""
        return self._drop(self.probability, language, level)

    def accuracy_excess(self, language: str | None = None, level: float = 0.95) -> Estimate:
        """The drop minus that of a random control of the same size: [condition]; paired.

        Zero for the random controls themselves, and for nothing off.
        """
        return self._excess(self.correct, language, level)

    def probability_excess(self, language: str | None = None, level: float = 0.95) -> Estimate:
        """As `accuracy_excess`, for the probability of the answer."""
        return self._excess(self.probability, language, level)

    def _of(self, values: Tensor, language: str | None) -> Float64[Tensor, "prompt condition"]:
        if language is None:
            return values.mean(dim=-1)
        if language not in self.languages:
            raise ValueError(
                f"{language!r} is not in this result, which covers {', '.join(self.languages)}."
            )
        return values[..., self.languages.index(language)]

    def _mean(self, values: Float64[Tensor, "prompt condition"], level: float) -> Estimate:
        return mean_over_examples(values, group_numbers(self.groups), level)

    def _drop(self, values: Tensor, language: str | None, level: float) -> Estimate:
        score = self._of(values, language)
        return self._mean(score[:, :1] - score, level)

    def _excess(self, values: Tensor, language: str | None, level: float) -> Estimate:
        """The score with random neurons of the same size, minus the score with these."""
        score = self._of(values, language)
        control = [
            self.conditions.index(Condition(RANDOM, size)) if size else index
            for index, (_, size) in enumerate(self.conditions)
        ]
        return self._mean(score[:, control] - score, level)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """One row per condition, for all languages together and for each.

        `size` names the comparison. A category: as many neurons are off as it has, which confounds
        what they do with how many there are. "equal": as many of every category.
        """
        quantities = {
            "accuracy": self.accuracy,
            "accuracy_drop": self.accuracy_drop,
            "accuracy_excess": self.accuracy_excess,
            "probability": self.answer_probability,
            "probability_drop": self.probability_drop,
            "probability_excess": self.probability_excess,
        }
        tables = [
            tidy(
                {"language": [language or "all"], "condition": range(len(self.conditions))},
                {
                    "off": [condition.off for condition in self.conditions],
                    "size": [condition.size for condition in self.conditions],
                    "neurons": self.neurons.double().mean(dim=0),
                    **{name: quantity(language, level) for name, quantity in quantities.items()},
                    "chance": self._of(self.chance[:, None], language).mean().item(),
                    "task": self.task,
                    "where": self.tokens,
                    "fires_by": self.fires_by,
                    "examples": len(self.prompts),
                },
            )
            for language in (None, *self.languages)
        ]
        return pd.concat(tables, ignore_index=True).drop(columns="condition")


def ablate_categories(
    model: AnyModel,
    tasks: Sequence[Task],
    generator: torch.Generator,
    *,
    tokens: Tokens = "all",
    fires_by: FiresBy = "gate",
    n_draws: int = 3,
    bos: Bos = "auto",
    tokens_per_batch: int = 4096,
    progress: bool = True,
    out: Path | str | None = None,
    ray: Ray | ActorPool | None = None,
) -> CategoryAblation:
    """Switch off each category of neurons, per example, in the languages of the tasks.

    `tasks` is one task in two or more languages, with the same items (`align_tasks`). A neuron
    fires where its gate, activation or output is above zero, by `fires_by`. Random and equal-sized
    sets are drawn `n_draws` times from `generator`, layer by layer, the random ones from all
    neurons of the layer. With K languages and 4 categories (two languages have no partly shared
    neurons), an example costs K passes over its prompt and 5 + 9 · n_draws sets of neurons; a set
    costs K · options rows of tokens with "all", and K positions with "last". With "last", an item
    whose options all begin with the same token is refused.

    With `out`, each item is saved there, the same call resumes, and processes with the same `out`
    share the items; with `ray`, actors do, on nodes that share it.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> tasks = [interp.read_task("babel/fact_completion", code) for code in ("en", "de")]
    >>> two = [task.where(lambda item: "capital:united" in item.id) for task in tasks]
    >>> settings = {"tokens": "last", "n_draws": 1, "progress": False}
    >>> off = interp.evaluations.ablate_categories(exact, two, generator, **settings)
    >>> off.to_frame().query("language == 'de' and size == 'equal'")["off"].tolist()
    ['silent', 'specific', 'all shared', 'random']
    """
    model = as_model(model)
    _check(tokens, n_draws)
    tasks, encoded = encode_aligned(model, tasks, fires_by, bos)
    warn_of_rounded_signs(model)
    if tokens == "last":
        _check_first_tokens(model, tasks, bos)
    conditions, ids = conditions_for(len(tasks)), tasks[0].ids
    setting = _Setting(conditions, n_draws, tokens, fires_by, tokens_per_batch)
    if out is not None:
        _begin(Path(out), model, tasks, generator, setting, bos)
    jobs = []
    states = generator_states(model, conditions, n_draws, generator, len(ids))
    with folder_for(out) as folder, bar(len(ids), "switching off", progress) as progress_bar:
        for number, (id, rows, state) in enumerate(zip(ids, encoded, states, strict=True)):
            path = folder / "pieces" / f"{number:05d}.safetensors"
            answers = {task.language: task.items[number].answer for task in tasks}
            work = partial(_ablate, path, rows, answers, state, setting)
            jobs.append(Job(f"item {id}", path, work))
        load = partial(artifacts.load, kind="SwitchOffPiece")
        pieces = [found.tensors for found in finish(jobs, load, progress_bar, model, ray)]
    guesses = [[1 / _n_distinct(row, tokens) for row in rows] for rows in encoded]
    return CategoryAblation(
        **{name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]},
        chance=torch.tensor(guesses, dtype=torch.float64),
        tokens=tokens,
        conditions=conditions,
        prompts=ids,
        groups=tasks[0].groups,
        task=tasks[0].name,
        languages=tuple(task.language for task in tasks),
        fires_by=fires_by,
    )


@dataclass(frozen=True)
class _Setting:
    """Settings that are the same for every item."""

    conditions: tuple[Condition, ...]
    n_draws: int
    tokens: Tokens
    fires_by: FiresBy
    tokens_per_batch: int


def _begin(
    folder: Path,
    model: NeuronModel,
    tasks: Sequence[Task],
    generator: torch.Generator,
    setting: _Setting,
    bos: Bos,
) -> None:
    plan = {
        "model": model.identity,
        "tokens": setting.tokens,
        "tasks": artifacts.hash_of([asdict(task) for task in tasks]),
        "n_draws": setting.n_draws,
        "generator": artifacts.hash_of(generator.get_state()),
        "fires_by": setting.fires_by,
        "bos": bos,
        "tokens_per_batch": setting.tokens_per_batch,
    }
    begin(folder, plan, artifacts.provenance())


def _check(tokens: str, n_draws: int) -> None:
    if tokens not in get_args(Tokens):
        raise ValueError(f"tokens is {tokens!r}: give one of {', '.join(get_args(Tokens))}.")
    if n_draws < 1:
        raise ValueError(f"n_draws is {n_draws}: give 1 or more.")


@torch.no_grad()
def _ablate(
    path: Path,
    item: Sequence[Encoded],
    answers: Mapping[str, int],
    state: UInt8[Tensor, " byte"],
    setting: _Setting,
    model: NeuronModel,
) -> None:
    """Save the scores of one item in every language; random sets are drawn from `state`."""
    endings = [end_of_prompt(model, encoded) for encoded in item]
    generator = torch.Generator()
    generator.set_state(state)
    category = categories_at(endings, setting.fires_by)
    sets, owner = draw_sets(category, setting.conditions, setting.n_draws, generator)
    correct, probabilities = [], []
    for encoded, (language, answer), ending in zip(item, answers.items(), endings, strict=True):
        if setting.tokens == "all":
            likelihood = _whole_options(model, encoded, sets, setting.tokens_per_batch)
        else:
            likelihood = _first_tokens(ending, encoded, sets)
        if not likelihood.isfinite().all():
            raise ValueError(
                f"{model.name} gives NaN or probability zero to an option of {encoded.id!r} in "
                f"{language}: load it with dtype=torch.float32."
            )
        # Options with the same first token are equally likely, so they count as one.
        right = likelihood[:, answer] == likelihood.max(dim=1).values
        correct.append(per_condition(right.double(), owner))
        probabilities.append(per_condition(likelihood[:, answer].exp(), owner))
    size = reduce(sets.double(), "set layer neuron -> set", "sum")
    tensors = {
        "correct": torch.stack(correct, dim=1),
        "probability": torch.stack(probabilities, dim=1),
        "neurons": per_condition(size, owner).round().long(),
    }
    artifacts.save(path, "SwitchOffPiece", tensors, {"item": item[0].id}, {})


def encode_aligned(
    model: NeuronModel, tasks: Sequence[Task], fires_by: FiresBy, bos: Bos
) -> tuple[tuple[Task, ...], list[tuple[Encoded, ...]]]:
    """The tasks with the same items in two or more languages, and each item in tokens in them."""
    firing_kind(fires_by)
    tasks = align_tasks(tasks)
    if len(tasks) < 2:
        raise ValueError("Sharing is between languages: give the task in two or more languages.")
    encoded = [encode_items(model, task, bos) for task in tasks]
    return tasks, list(zip(*encoded, strict=True))


def end_of_prompt(model: NeuronModel, item: Encoded) -> Ending:
    """The last token of the prompt, ready to run edited variants, with its gates and outputs."""
    return Ending(model, torch.tensor(item.rows[0][: item.begin]), kinds=("pre", "post"))


def categories_at(
    endings: Sequence[Ending], fires_by: FiresBy = "gate"
) -> UInt8[Tensor, "layer neuron"]:
    """`Sharing` category of each neuron at the last token of these prompts, one per language."""
    kind, active = firing_kind(fires_by), []
    for end in endings:
        values = rearrange(end.values[hooked_at(kind)], "layer 1 neuron -> layer neuron")
        if kind == "act":
            values = torch.stack([end.model.act(*one) for one in enumerate(values)])
        active.append((values > 0).cpu())
    return sharing_categories(torch.stack(active))


def _whole_options(
    model: NeuronModel,
    item: Encoded,
    sets: Bool[Tensor, "set layer neuron"],
    tokens_per_batch: int,
) -> Float64[Tensor, "set option"]:
    """Log-likelihood (nats) of each option with each set off at every token; sets are batched."""
    columns = []
    for row in item.rows:
        parts = []
        for batch in sets.split(max(1, tokens_per_batch // len(row))):
            with model.hooks(_switches(model, batch)):
                nats = model.losses(repeat(torch.tensor(row), "pos -> set pos", set=len(batch)))
            parts.append(-nats[:, item.begin - 1 :].double().sum(dim=1).cpu())
        columns.append(torch.cat(parts))
    return torch.stack(columns, dim=1)


def _switches(model: NeuronModel, sets: Bool[Tensor, "set layer neuron"]) -> list[tuple[str, Hook]]:
    """Hooks that switch off set i in row i of the batch."""

    def hook_for(layer: int) -> Hook:
        off = rearrange(sets[:, layer], "set neuron -> set 1 neuron")

        def run(values: Tensor, hook: Any) -> Tensor:
            return values.masked_fill(off.to(values.device), 0.0)

        return run

    return [(model.site(layer, "post"), hook_for(layer)) for layer in range(model.n_layers)]


def _first_tokens(
    ending: Ending, item: Encoded, sets: Bool[Tensor, "set layer neuron"]
) -> Float64[Tensor, "set option"]:
    """Log-likelihood (nats) of each option's first token; sets are off at the last prompt token."""

    def edit_for(layer: int) -> Edit:
        def edit(
            values: Float[Tensor, "variant pos neuron"], variants: Int[Tensor, " variant"]
        ) -> Float[Tensor, "variant pos neuron"]:
            off = sets[variants.cpu(), layer].to(values.device)
            return values.masked_fill(rearrange(off, "variant neuron -> variant 1 neuron"), 0.0)

        return edit

    likelihood = torch.zeros(len(sets), len(item.rows), dtype=torch.float64)
    layers = range(sets.shape[1])
    edits: dict[tuple[Kind, int], Edit] = {("post", layer): edit_for(layer) for layer in layers}
    for variants, logits in ending.run(len(sets), edits):
        likelihood[variants] = logits.double().log_softmax(dim=-1)[:, item.first_tokens].cpu()
    return likelihood


def _n_distinct(item: Encoded, tokens: Tokens) -> int:
    return len(item.rows if tokens == "all" else set(item.first_tokens))


def _check_first_tokens(model: NeuronModel, tasks: Sequence[Task], bos: Bos) -> None:
    if same := sorted(ambiguous_ids(model, tasks, bos)):
        raise ValueError(
            f"All options of {len(same)} items of {tasks[0].name}, such as {same[0]!r}, begin with "
            "the same token in some language: leave them out with drop_ambiguous(model, tasks), or "
            'use tokens="all".'
        )

"""How long the long commands take: their passes and tokens, and a batch of their work as trial."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp.results.words import Bos

if TYPE_CHECKING:
    from interp.text.tokens import Prompt

_TRIED = 4
"""Tokens that a trial of writing writes in each text."""

_PROMPTS = 4
"""Prompts that a trial of the lens reads."""

_NEURONS = 32
"""Neurons whose promoted tokens a trial finds."""


def of_doctor(model: "interp.NeuronModel") -> "interp.runs.Forecast":
    """Reading two short texts again and again. A doctor is so short that it begins anew."""
    from interp.models.doctor import random_ids, tokens_checked

    n_tokens = tokens_checked(model)

    def trial() -> int:
        ids = random_ids(model)
        model.logits(ids)
        return ids.numel()

    try:
        return interp.runs.forecast(1, n_tokens, trial)
    except Exception:  # a broken model may fail anywhere: the doctor says where
        return interp.runs.Forecast(passes=1, tokens=n_tokens)


def of_counting(
    model: "interp.NeuronModel",
    corpora: "interp.Corpora",
    keep: "interp.Keep",
    tokens_per_batch: int,
    folder: Path,
) -> "interp.runs.Forecast":
    """What is left of reading all text once, counting, and the disk that it takes."""
    from interp.counting.expert_counter import firing_counter
    from interp.counting.loss_effects import count_loss_effects
    from interp.counting.observe import batches, observe
    from interp.counting.plan import plan_of
    from interp.counting.statistics import STATISTICS
    from interp.counting.tidying import is_tidied

    tokens = sum(corpora.tokens().values())
    if is_tidied(folder):
        return interp.runs.Forecast(passes=1, tokens=tokens, left=0.0, seconds=0.0)
    code = corpora.languages[0]
    batch = next(batches(corpora, code, int(corpora.rows[code].shard[0]), tokens_per_batch))
    kept = [STATISTICS[name] for name in keep.statistics]
    effects = [row.counter(model, None) for row in kept if row.of_gradients]

    def trial() -> int:
        observe(model, batch, [firing_counter(model, keep.fires_by)])
        if effects:
            count_loss_effects(model, batch, effects)
        return int(batch.length.sum())

    disk = plan_of(model, corpora, keep, tokens_per_batch).disk
    pieces = corpora.n_shards * len(corpora.languages)
    return interp.runs.forecast(1, tokens, trial, folder=folder, pieces=pieces, disk=disk)


def of_losses(
    model: "interp.NeuronModel", corpora: "interp.Corpora", passes: int, folder: Path | None = None
) -> "interp.runs.Forecast":
    """What is left of reading all text under several interventions, for its loss."""
    pieces = corpora.n_shards * len(corpora.languages)
    tokens = sum(corpora.tokens().values())
    trial = loss_of(model, some_rows(corpora))
    return interp.runs.forecast(passes, tokens, trial, folder=folder, pieces=pieces)


def of_tasks(
    model: "interp.NeuronModel",
    tasks: "Sequence[interp.text.Task]",
    passes: int,
    bos: Bos,
    max_new_tokens: int,
) -> "interp.runs.Forecast":
    """All options of all items under several interventions, or the answers that are written."""
    from interp.evaluations.multiple_choice import encode_items

    rows: list[Sequence[int]] = []
    n_written = 0
    for task in tasks:
        if len(task.items[0].options) == 1:
            n_written += len(task.items)
        else:
            rows += [row for item in encode_items(model, task, bos) for row in item.rows]
    n_tokens = sum(map(len, rows))
    reading = interp.runs.forecast(passes, n_tokens, loss_of(model, rows[:16])) if rows else None
    if not n_written:
        assert reading is not None
        return reading
    writing = of_writing(model, n_written, max_new_tokens, passes)
    seconds = (writing.seconds or 0) + ((reading and reading.seconds) or 0)
    return replace(writing, tokens=writing.tokens + n_tokens, seconds=seconds)


def of_writing(
    model: "interp.NeuronModel",
    n: int,
    max_new_tokens: int,
    passes: int,
    folder: Path | None = None,
) -> "interp.runs.Forecast":
    """What is left of writing `n` texts under each of several interventions."""
    per_batch = max(1, min(n, 4096 // (max_new_tokens + 1)))

    def trial() -> int:
        interp.evaluations.generate_texts(
            model, n=per_batch, max_new_tokens=_TRIED, temperature=0.0, progress=False
        )
        return per_batch * _TRIED

    return interp.runs.forecast(passes, n * max_new_tokens, trial, folder=folder, pieces=passes)


def of_steering(
    model: "interp.NeuronModel",
    corpora: "interp.Corpora",
    passes: int,
    n: int,
    max_new_tokens: int,
    folder: Path,
    natural: Mapping[str, Sequence[str]] = {},
) -> "interp.runs.Forecast":
    """What is left of writing texts under each condition and of judging them, and of reading text
    for the push and the natural text of the guards."""
    from interp.evaluations.steering import tokens_left

    reading = interp.runs.seconds_per_token(loss_of(model, some_rows(corpora)))
    writing = of_writing(model, n, max_new_tokens, passes, folder)
    to_read = 2 * writing.left * passes * n * max_new_tokens  # as they are, and shuffled
    to_read += tokens_left(natural, corpora, max_new_tokens, folder / "natural")
    return replace(writing, seconds=(writing.seconds or 0) + reading * to_read)


def of_push(model: "interp.NeuronModel", corpora: "interp.Corpora") -> "interp.runs.Forecast":
    """Reading some text of every label, for the means of the residual stream."""
    from interp.counting.observe import batches, observe
    from interp.counting.unit_moments import UnitMomentsCounter

    batch = next(batches(corpora, corpora.languages[0], 0, 4096))

    def trial() -> int:
        observe(model, batch, [UnitMomentsCounter(model, "resid_post")])
        return int(batch.length.sum())

    return interp.runs.forecast(1, sum(corpora.tokens().values()), trial)


def of_training(
    model: "interp.NeuronModel",
    units: "interp.Change",
    corpora: "interp.Corpora",
    recipe: "interp.interventions.Recipe",
    folder: Path,
) -> "interp.runs.Forecast":
    """What is left of training; the trial is its first step, and is not kept."""
    from interp.interventions.train import steps_done, train_units

    rows = corpora.rows[corpora.languages[0]]
    n_tokens = recipe.rows * rows.ids.shape[1]
    left = max(0, recipe.steps - steps_done(folder))

    def trial() -> int:
        train_units(model, units, corpora, replace(recipe, steps=1), progress=False)
        return n_tokens

    whole = interp.runs.forecast(left, n_tokens, trial)
    return replace(whole, passes=recipe.steps, left=left / recipe.steps)


def of_lock(
    model: "interp.NeuronModel",
    prompts: "Sequence[Prompt]",
    search: "interp.evaluations.LockSearch",
    max_new_tokens: int,
    bos: Bos,
    corpora: "interp.Corpora | None",
    tasks: "Sequence[interp.text.Task]",
) -> "interp.runs.Forecast":
    """Writing answers again and again, what-ifs where one leaves its language, and the price.

    At most: as if all answers left theirs, and every number of neurons were tried.
    """
    from interp.prompts import ablation_effect, gradient_times_activation
    from interp.prompts.contributions import top_neurons

    half = max(1, len(prompts) // 2)
    # Before, with each number of neurons off, and three conditions of the other half.
    passes = 1 + len(search.sizes(search.most)) + 3
    writing = of_writing(model, half, max_new_tokens, passes)
    ids = interp.text.prompt_ids(model, prompts[0], bos)

    def what_ifs() -> int:
        promised = gradient_times_activation(model, ids, ids[-1], "log_probability")
        chosen = top_neurons(promised, min(search.candidates, promised.numel()))
        ablation_effect(model, ids, ids[-1], chosen, "log_probability")
        return 1

    seconds = [min(half, search.points) * interp.runs.seconds_per_token(what_ifs)]
    price = [of_losses(model, corpora, 2)] if corpora is not None else []
    price += [of_tasks(model, tasks, 2, bos, max_new_tokens)] if tasks else []
    seconds += [forecast.seconds or 0 for forecast in (writing, *price)]
    return replace(writing, seconds=sum(seconds), at_most=True)


def of_attribution(
    model: "interp.NeuronModel",
    tasks: "Sequence[interp.text.Task]",
    attribute: "Callable[[Sequence[interp.text.Task], Path], object]",
    folder: Path,
) -> "interp.runs.Forecast":
    """What is left of attributing all items; the trial attributes one, and is not kept."""
    one = [replace(task, items=task.items[:1]) for task in tasks]

    def n_tokens(some: "Sequence[interp.text.Task]") -> int:
        return sum(len(model.encode(item.prompt)) for task in some for item in task.items)

    def trial() -> int:
        with tempfile.TemporaryDirectory() as temporary:
            attribute(one, Path(temporary))
        return n_tokens(one)

    pieces = len(tasks[0].items)
    return interp.runs.forecast(1, n_tokens(tasks), trial, folder=folder, pieces=pieces)


def of_selecting(
    stats: "interp.FiringStats", select: "Callable[[interp.FiringStats], object]", times: int
) -> "interp.runs.Forecast":
    """Selecting neurons from counts again and again, of all shards but some."""
    n_neurons = stats.n_layers * stats.d_mlp

    def trial() -> int:
        select(stats)
        return n_neurons

    return interp.runs.forecast(times, n_neurons, trial, unit="neurons")


def of_page(
    model: "interp.NeuronModel",
    contexts: "interp.counting.TopContexts",
    selections: "Sequence[interp.NeuronSelection]",
) -> "interp.runs.Forecast":
    """Reading the rows that hold contexts of selected neurons, and what these neurons promote."""
    from interp.reports.neuron_page import promoted_tokens

    chosen = selections[0].neurons().union()
    for selection in selections[1:]:
        chosen = chosen | selection.neurons().union()
    used = contexts.row[:, chosen].unique()
    rows = used[used >= 0].tolist()
    if not rows:  # no neuron is selected, or none fires: the page says which
        return interp.runs.Forecast(passes=1, tokens=0, seconds=0.0)
    some = [contexts.ids[row, : int(contexts.length[row])].tolist() for row in rows[:16]]
    n_tokens = int(contexts.length[rows].sum())
    reading = interp.runs.forecast(1, n_tokens, loss_of(model, some))
    layer = int(chosen.any(dim=1).nonzero()[0])
    first = chosen[layer].nonzero().flatten()[:_NEURONS]

    def trial() -> int:
        promoted_tokens(model, layer, first, 12)
        return len(first)

    promoting = int(chosen.sum()) * interp.runs.seconds_per_token(trial)
    return replace(reading, seconds=(reading.seconds or 0) + promoting)


def of_lens(
    model: "interp.NeuronModel", questions: "Sequence[interp.prompts.Question]", bos: Bos
) -> "interp.runs.Forecast":
    """Reading the prompts, and what every layer would say next."""
    from interp.prompts.lens import last_states, read_out

    prompts = [interp.text.prompt_ids(model, question.prompt, bos) for question in questions]
    if not prompts:  # the lens says so
        return interp.runs.Forecast(passes=1, tokens=0, seconds=0.0)
    some = prompts[:_PROMPTS]

    def trial() -> int:
        for state in last_states(model, some):
            read_out(model, state)
        return sum(map(len, some))

    return interp.runs.forecast(1, sum(map(len, prompts)), trial)


def some_rows(corpora: "interp.Corpora") -> list[list[int]]:
    """The first rows of a text, for a trial."""
    rows = corpora.rows[corpora.languages[0]]
    return [ids[:n].tolist() for ids, n in zip(rows.ids[:16], rows.length[:16], strict=True)]


def loss_of(model: "interp.NeuronModel", rows: Sequence[Sequence[int]]) -> Callable[[], int]:
    """A trial: the loss of some rows of tokens in one batch."""
    from interp.text.tokens import padded

    ids, mask = padded([list(row)[: model.max_length] for row in rows], "right")

    def trial() -> int:
        model.losses(ids, mask)
        return int(mask.sum())

    return trial

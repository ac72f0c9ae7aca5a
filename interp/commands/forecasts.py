"""How long the long commands take: their passes and tokens, and a batch of their work as trial."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp.results.words import Bos, Layers

if TYPE_CHECKING:
    from interp.scores.methods import Method
    from interp.text.tokens import Prompt

_TRIED = 4
"""Tokens that a trial of writing writes in each text."""

_PROMPTS = 4
"""Prompts that a trial of the lens reads."""

_NEURONS = 32
"""Neurons whose promoted tokens a trial finds."""

_POSITIONS = 512
"""Tokens in a pass of patching, at most."""

_WRITTEN = 1 << 26
"""Bytes that a trial of a checkpoint writes and reads."""


def of_doctor(model: "interp.NeuronModel") -> "interp.runs.Forecast":
    """Reading two short texts again and again, and sentences at once. A doctor is so short that it
    begins anew."""
    from interp.models.beginning import tokens_of_beginning
    from interp.models.doctor import random_ids, tokens_checked

    n_tokens, at_once = tokens_checked(model), tokens_of_beginning(model)

    def trial() -> int:
        ids = random_ids(model)
        model.logits(ids)
        return ids.numel()

    try:
        checks = interp.runs.forecast(1, n_tokens - at_once, trial)
        sentences = loss_of(model, random_ids(model, 96).tolist())
        seconds = at_once * interp.runs.seconds_per_token(sentences)
        return replace(checks, tokens=n_tokens, seconds=(checks.seconds or 0) + seconds)
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


def of_push(
    model: "interp.NeuronModel", corpora: "interp.Corpora", folder: Path
) -> "interp.runs.Forecast":
    """What is left of reading some text of every label, for the means of the residual stream."""
    from interp.counting.observe import batches, observe
    from interp.counting.unit_moments import UnitMomentsCounter
    from interp.evaluations.steering import tokens_left

    batch = next(batches(corpora, corpora.languages[0], 0, 4096))

    def trial() -> int:
        observe(model, batch, [UnitMomentsCounter(model, "resid_post")])
        return int(batch.length.sum())

    tokens = sum(corpora.tokens().values())
    left = tokens_left({}, corpora, 0, folder)
    return replace(interp.runs.forecast(1, left, trial), tokens=tokens, left=left / tokens)


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
    folder: Path,
) -> "interp.runs.Forecast":
    """What is left of writing answers again and again, what-ifs where one leaves its language, and
    the price.

    At most: as if all answers left theirs, and every number of neurons were tried.
    """
    from interp.evaluations.language_lock import PRICE_OF_TASKS, PRICE_OF_TEXT, n_asked, n_written
    from interp.prompts import ablation_effect, gradient_times_activation
    from interp.prompts.contributions import top_neurons

    half = max(1, len(prompts) // 2)
    # Before, with each number of neurons off, and three conditions of the other half.
    passes = 1 + len(search.sizes(search.most)) + 3
    writing = of_writing(model, half, max_new_tokens, passes)
    left = max(0.0, 1 - n_written(folder) / passes)
    ids = interp.text.prompt_ids(model, prompts[0], bos)

    def what_ifs() -> int:
        promised = gradient_times_activation(model, ids, ids[-1], "log_probability")
        chosen = top_neurons(promised, min(search.candidates, promised.numel()))
        ablation_effect(model, ids, ids[-1], chosen, "log_probability")
        return 1

    points = max(0, min(half, search.points) - n_asked(folder))
    seconds = [points * interp.runs.seconds_per_token(what_ifs), left * (writing.seconds or 0)]
    price = [of_losses(model, corpora, 2, folder / PRICE_OF_TEXT)] if corpora is not None else []
    if tasks and not (folder / PRICE_OF_TASKS).exists():
        price.append(of_tasks(model, tasks, 2, bos, max_new_tokens))
    seconds += [forecast.seconds or 0 for forecast in price]
    return replace(writing, seconds=sum(seconds), at_most=True, left=left)


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


def of_scoring(
    run: "interp.Run", method: "Method", open_model: "Callable[[], interp.NeuronModel]"
) -> "interp.runs.Forecast":
    """Scoring what a run kept, layer by layer; the trial is the first layer."""
    from types import SimpleNamespace

    import torch

    from interp.scores.methods import NEEDS_SENTENCES, Settings

    stats, kept = run.firing, SimpleNamespace()
    n_units = stats.d_mlp
    if method.looks_at_weights:
        model = open_model()

        def of_weights() -> int:
            model.w_out(0).detach().cpu().double().norm(dim=1)
            return n_units

        return interp.runs.forecast(1, stats.n_layers * n_units, of_weights, unit="units")
    if method.needs == NEEDS_SENTENCES:
        means = run.sentence_means
        first = {f"means.{kind}.0": means.read(kind, 0) for kind in means.kinds}
        kept.sentence_means = replace(means, pieces=(first,))
        n_units = sum(part.shape[1] for part in first.values())
    else:
        all_of_it = run.histograms
        parts = {name: getattr(all_of_it, name)[:1] for name in ("low", "width")}
        kept.histograms = replace(all_of_it, counts=all_of_it.counts[:, :1], **parts)
    kept.firing = SimpleNamespace(languages=stats.languages, n_layers=1, layout=None)

    def of_first_layer() -> int:
        seen = interp.scores.measured(kept, torch.Generator().manual_seed(0))
        method.choose(seen, Settings(n=2))
        return n_units

    return interp.runs.forecast(1, stats.n_layers * n_units, of_first_layer, unit="units")


def of_routing(routing: "interp.scores.Routing", draws: int) -> "interp.runs.Forecast":
    """Differences of labels that are drawn anew, and without each shard, for their intervals."""
    import torch

    n_layers, n_experts = routing.chosen.shape[2:]
    n_shards, generator = len(routing.tokens), torch.Generator().manual_seed(0)

    def trial() -> int:
        _ = routing.shuffled(generator).share
        return n_layers * n_experts

    times = draws + 3 * (1 + n_shards)
    return interp.runs.forecast(times, n_layers * n_experts, trial, unit="experts")


def of_patching(
    model: "interp.NeuronModel",
    target: Sequence[int],
    starts: Sequence[int],
    n_patched: int,
    layers: Layers,
) -> "interp.runs.Forecast":
    """The end of the target again and again: from each span that is patched, and from a layer up.

    `starts` are the spans' first tokens; `n_patched` are parts of sources.
    """
    import torch

    passes = n_patched * (1 if layers == "all" else model.n_layers)
    n_tokens = sum(len(target) - start for start in starts)
    positions = min(_POSITIONS, passes * n_tokens)
    rows = torch.tensor([list(target)] * max(1, positions // len(target)))

    def trial() -> int:
        model.logits(rows, keep=1)
        return rows.numel()

    whole = interp.runs.forecast(passes, n_tokens, trial)
    share = 1.0 if layers == "all" else (model.n_layers + 1) / (2 * model.n_layers)
    return replace(whole, seconds=share * (whole.seconds or 0))


def of_baking(model: "interp.NeuronModel", out: Path) -> "interp.runs.Forecast":
    """Writing all weights and opening them again, and a prompt before and after."""
    from safetensors.torch import load_file, save_file

    from interp.interventions.bake import check_ids

    parameters = list(model._parameters.values())
    n_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    largest = max(parameters, key=lambda parameter: parameter.numel()).detach()
    some = largest.flatten()[: _WRITTEN // largest.element_size()].cpu().clone()
    existing = next(folder for folder in out.absolute().parents if folder.is_dir())

    def trial() -> int:
        with tempfile.TemporaryDirectory(dir=existing) as temporary:
            save_file({"some": some}, Path(temporary, "some.safetensors"))
            load_file(Path(temporary, "some.safetensors"))
        return some.numel() * some.element_size()

    seconds = n_bytes * interp.runs.seconds_per_token(trial)
    prompt = check_ids(model, None).tolist()
    reading = interp.runs.forecast(3, sum(map(len, prompt)), loss_of(model, prompt))
    return replace(reading, seconds=(reading.seconds or 0) + seconds, disk=n_bytes)


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

"""How much each MLP neuron, at the last token of a prompt, contributes to the next token.

Everything here concerns `post`, a neuron's input to the output projection, at the end of one
prompt, and one quantity: how likely a target token is to follow, or a metric. Integrated gradients
(Sundararajan et al., 2017) divide the quantity among a layer's neurons.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.models.running import wide
from interp.prompts.attribution_results import Attribution, PositionAttribution
from interp.prompts.ending import Edit, Ending
from interp.prompts.metrics import Metric, check_metric, measure
from interp.prompts.targets import Target, target_ids
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.words import Bos, Kind, Quantity
from interp.runs.folder import begin
from interp.runs.jobs import finish, folder_for
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.tokens import Prompt, n_added, prompt_ids

Settings = tuple[int, Quantity, Float[Tensor, "layer neuron"] | None]
"""Steps, quantity and baseline."""

LARGEST_ERROR = 0.1
"""There is a warning if a layer's values miss its change by more than this share of the largest
change of any layer, and by more than a thousandth of the score, below which rounding begins."""


def integrated_gradients(
    model: AnyModel,
    prompt: Prompt,
    target: Target | Metric,
    steps: int = 20,
    quantity: Quantity = "probability",
    baseline: Float[Tensor, "layer neuron"] | None = None,
    max_positions: int = 96,
    bos: Bos = "auto",
) -> Attribution:
    """Integrated gradients of every neuron of every layer, at the last token of the prompt.

    For layer l, with activations m at the last token and b at the baseline, neuron j gets
    (m_j - b_j) times the mean of df/dm_j over the midpoints of `steps` equal parts of the straight
    path from b to m. Later layers respond to the path; earlier tokens are fixed. So a layer's
    values add up to the change from the whole layer; values of different layers do not add up.

    f is the `quantity` of a target token, or a metric: any function of the logits that gives one
    number, such as a difference of logits (`interp.prompts.metrics`).

    `baseline` None is zero, every neuron off; another language's mean explains the difference from
    that language. The path from zero is ill-conditioned if the MLP's output is normalized before it
    joins the residual stream (Gemma 2 and 3): everything changes close to zero. Then there is a
    warning and a large `completeness_error`; a baseline other than zero helps. `bos` says what is
    put before a text.

    Gradients have the model's dtype: 16 bits round them to two or three digits, tiny ones vanish in
    float16, and differences of nearly equal scores are mostly rounding. Cost: the prompt once, and
    layers times (steps + 1) positions forward and backward; `max_positions` of them are in memory
    at once, halved until they fit on a GPU.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> result = interp.integrated_gradients(exact, "Seven minus one is", " six", 50, "logit")
    >>> torch.allclose(result.values.sum(1), result.change, rtol=0.1, atol=0.1)  # they add up
    True
    >>> six, five = (exact.encode(word)[0] for word in (" six", " five"))
    >>> def difference(logits):
    ...     return logits[:, -1, six] - logits[:, -1, five]
    >>> interp.integrated_gradients(exact, "Seven minus one is", difference, 50).values.shape
    torch.Size([6, 2048])
    """
    model = as_model(model)
    ending, score_of, targets = start_at(model, prompt, target, quantity, steps, 1, bos)
    if baseline is None:
        baseline = torch.zeros(model.n_layers, model.d_mlp)
    start = rearrange(_checked(baseline, model), "layer neuron -> layer 1 neuron")
    values, change, score = within_memory(
        lambda n: _integrate(ending, start, score_of, steps, n), max_positions, ending
    )
    return Attribution(
        values=rearrange(values, "layer 1 neuron -> layer neuron"),
        completeness_error=_completeness_error(model, values, change, score),
        change=change.to(values),
        activations=rearrange(wide(ending.values["post"]), "layer 1 neuron -> layer neuron").cpu(),
        score=score,
        prompt=tuple(ending.ids.tolist()),
        targets=targets,
    )


def integrated_gradients_by_position(
    model: AnyModel,
    prompt: Prompt,
    target: Target | Metric,
    steps: int = 20,
    quantity: Quantity = "probability",
    baseline: Float[Tensor, "layer neuron"] | None = None,
    max_positions: int = 96,
    bos: Bos = "auto",
) -> PositionAttribution:
    """Integrated gradients at all tokens of a short prompt, whose neurons share one path.

    The baseline is the same at every token; what `bos` puts before a text stays as it is. Cost:
    layers times (steps + 1) whole prompts, forward and backward.

    >>> found = interp.prompts.integrated_gradients_by_position(model, "Seven minus one is", " six")
    >>> found.values.shape  # layer, token of the prompt, neuron
    torch.Size([6, 5, 2048])
    """
    model = as_model(model)
    ending, score_of, targets = start_at(model, prompt, target, quantity, steps, None, bos)
    if baseline is None:
        baseline = torch.zeros(model.n_layers, model.d_mlp)
    start = repeat(_checked(baseline, model), "layer neuron -> layer pos neuron", pos=ending.last)
    values, change, score = within_memory(
        lambda n: _integrate(ending, start, score_of, steps, n), max_positions, ending
    )
    return PositionAttribution(
        values=values,
        completeness_error=_completeness_error(model, values, change, score),
        change=change.to(values),
        activations=wide(ending.values["post"]).cpu(),
        score=score,
        prompt=tuple(ending.ids.tolist()),
        targets=targets,
    )


def attribute_prompts(
    model: AnyModel,
    questions: Sequence[tuple[Prompt, Target | Metric]],
    steps: int = 20,
    quantity: Quantity = "probability",
    baseline: Float[Tensor, "layer neuron"] | None = None,
    progress: bool = True,
    out: Path | str | None = None,
    ray: Ray | ActorPool | None = None,
    bos: Bos = "auto",
) -> Iterator[Attribution]:
    """Integrated gradients of each prompt and target, in order, as they are computed.

    Nothing is kept in memory; to combine prompts, add up `sums_by_category`. With `out`, each
    result is stored there, at 8 bytes per neuron, and the same call resumes an interrupted one.
    With `ray`, actors on nodes that share `out` compute all prompts before the first is returned.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> questions = [("Seven minus one is", " six"), ("Seven minus two is", " five")]
    >>> results = interp.prompts.attribute_prompts(exact, questions, progress=False)
    >>> [exact.decode(result.targets) for result in results]
    [' six', ' five']
    """
    settings = (steps, quantity, baseline)
    return _attribute_all(as_model(model), questions, settings, progress, out, ray, bos)


def _attribute_all(
    model: NeuronModel,
    questions: Sequence[tuple[Prompt, Target | Metric]],
    settings: Settings,
    progress: bool,
    out: Path | str | None,
    ray: Ray | ActorPool | None,
    bos: Bos,
) -> Iterator[Attribution]:
    """The results of `attribute_prompts`, as they are asked for."""
    if out is None and ray is None:
        for prompt, target in tqdm(questions, "prompts", unit="prompt", disable=not progress):
            yield integrated_gradients(model, prompt, target, *settings, bos=bos)
        return
    if any(map(callable, (target for _, target in questions))):
        raise ValueError(
            "A metric is a function, and files and actors need targets that are tokens: leave out "
            "`out` and `ray`, or give tokens."
        )
    prompts = [tuple(prompt_ids(model, prompt, bos)) for prompt, _ in questions]
    targets = [
        target_ids(model, prompt, target) for prompt, target in questions if not callable(target)
    ]
    if out is not None:
        plan = {"model": model.identity, "questions": artifacts.hash_of([prompts, targets])}
        steps, quantity, start = settings
        start = None if start is None else artifacts.hash_of(start)
        options = {"steps": steps, "quantity": quantity, "baseline": start}
        begin(Path(out), plan | options, artifacts.provenance())
    with (
        folder_for(out) as folder,
        tqdm(total=len(questions), desc="prompts", unit="prompt", disable=not progress) as bar,
    ):
        jobs = []
        for number, (ids, ends) in enumerate(zip(prompts, targets, strict=True)):
            path = folder / "pieces" / f"{number:05d}.safetensors"
            work = partial(_attribute, path, ids, ends, settings)
            jobs.append(Job(f"prompt {number}", path, work))
        for path in finish(jobs, lambda path: path, bar, model, ray):
            yield _load(path)


def _attribute(
    path: Path,
    prompt: tuple[int, ...],
    targets: tuple[int, ...],
    settings: Settings,
    model: NeuronModel,
) -> None:
    """Attribute one prompt, and save the result."""
    target = targets[0] if len(targets) == 1 else (targets[0], targets[1])
    result = integrated_gradients(model, prompt, target, *settings)
    tensors = {name: value for name, value in vars(result).items() if isinstance(value, Tensor)}
    score = torch.tensor(result.score, dtype=torch.float64)
    labels = {"prompt": result.prompt, "targets": result.targets}
    artifacts.save(path, "Attribution", {**tensors, "score": score}, labels, {})


def _load(path: Path) -> Attribution:
    stored = artifacts.load(path, "Attribution")
    prompt, targets = (tuple(stored.labels[name]) for name in ("prompt", "targets"))
    score = stored.tensors.pop("score").item()
    return Attribution(**stored.tensors, score=score, prompt=prompt, targets=targets)


def sums_by_category(
    attribution: Attribution, categories: UInt8[Tensor, "layer neuron"], n_categories: int = 4
) -> Float[Tensor, "category layer"]:
    """The sum of the values of each category's neurons, in each layer; float64.

    Categories are numbered from 0, such as the values of `Sharing`. A layer's sums add up to the
    sum of its values, which is close to its `change`. The sums of many prompts can be added up.
    """
    if categories.shape != attribution.values.shape or int(categories.max()) >= n_categories:
        raise ValueError(
            f"Categories have shape {list(categories.shape)} and go up to {int(categories.max())}, "
            f"and values have shape {list(attribution.values.shape)}: give each neuron a number "
            f"below {n_categories}."
        )
    sums = torch.zeros(len(categories), n_categories, dtype=torch.float64)
    sums.scatter_add_(1, categories.long().cpu(), attribution.values.double())
    return rearrange(sums, "layer category -> category layer")


def gradient_times_activation(
    model: AnyModel,
    prompt: Prompt,
    target: Target | Metric,
    quantity: Quantity = "probability",
    bos: Bos = "auto",
) -> Float[Tensor, "layer neuron"]:
    """m_j times df/dm_j at the prompt itself: all neurons' first-order effects, in one pass.

    The first-order approximation of `ablation_effect`, and `integrated_gradients` with a single
    point, at the end of the path from zero. 16 bits round it just the same. From a backward cache
    of TransformerLens, `interp.counting.gradients_at` gives the gradients.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> prompt, targets = "Seven minus one is", (" six", " five")
    >>> guess = interp.prompts.gradient_times_activation(exact, prompt, targets)
    >>> guess.shape
    torch.Size([6, 2048])
    """
    model = as_model(model)
    ending, score_of, _ = start_at(model, prompt, target, quantity, 1, 1, bos)
    activations = rearrange(wide(ending.values["post"]), "layer 1 neuron -> layer neuron")
    with torch.inference_mode(False), torch.enable_grad():
        nudge = torch.zeros_like(activations, requires_grad=True)

        def nudged(layer: int) -> Edit:
            return lambda values, variants: values + nudge[layer].to(values)

        edits: dict[tuple[Kind, int], Edit] = {
            ("post", layer): nudged(layer) for layer in range(model.n_layers)
        }
        for _, logits in ending.run(1, edits):
            (gradient,) = torch.autograd.grad(score_of(logits).sum(), nudge)
            return (activations * gradient).cpu()
    raise AssertionError("one variant gives one pass")


def same_shape(what: str, given: Tensor, model: NeuronModel) -> None:
    if given.shape != (model.n_layers, model.d_mlp):
        raise ValueError(
            f"{what} must be [layer neuron], here [{model.n_layers}, {model.d_mlp}], not "
            f"{list(given.shape)}."
        )


def _checked(baseline: Float[Tensor, "layer neuron"], model: NeuronModel) -> Tensor:
    same_shape("The baseline", baseline, model)
    if not baseline.isfinite().all():
        raise ValueError("The baseline has NaN or infinite values: give finite neuron outputs.")
    return wide(baseline).to(model.device)


Score = Callable[[Float[Tensor, "variant vocab"]], Float[Tensor, " variant"]]
"""The number that is explained, from logits at the last token."""


def start_at(
    model: NeuronModel,
    prompt: Prompt,
    target: Target | Metric,
    quantity: Quantity,
    steps: int,
    last: int | None,
    bos: Bos,
) -> tuple[Ending, Score, tuple[int, ...]]:
    """Check the arguments, and run the prompt; `last` None: all its text may vary.

    Also gives what is explained, and the target's token ids, of which a metric has none.
    """
    if quantity not in get_args(Quantity):
        raise ValueError(
            f"quantity must be one of {', '.join(get_args(Quantity))}, not {quantity!r}."
        )
    if steps < 1:
        raise ValueError(f"steps is {steps}: give 1 or more, such as 20.")
    if model.dtype in (torch.float16, torch.bfloat16):
        warnings.warn(
            f"{model.name} is in {model.dtype}: gradients keep two or three digits, and effects "
            "below that precision of the score are rounding errors. Load it with "
            "dtype=torch.float32 (--dtype float32) for numbers you report.",
            stacklevel=3,
        )
    targets: tuple[int, ...] = ()
    if callable(target):
        if quantity != "probability":
            raise ValueError(
                f"The quantity is {quantity!r}, but a metric is itself what is explained: leave "
                "the quantity out."
            )
        check_metric(model, target)
        score_of = partial(measure, target)
    else:
        targets = target_ids(model, prompt, target)
        score_of = partial(_target_score, targets=targets, quantity=quantity)
    ids = prompt_ids(model, prompt, bos)
    n_varied = len(ids) - n_added(model, prompt, bos)
    ending = Ending(model, torch.tensor(ids), last or n_varied, kinds=("post",))
    return ending, score_of, targets


def _target_score(
    logits: Float[Tensor, "variant vocab"], targets: tuple[int, ...], quantity: Quantity
) -> Float[Tensor, " variant"]:
    scores = wide(logits)
    if quantity != "logit":
        scores = scores.log_softmax(dim=-1)
    chosen = scores[:, list(targets)]
    if quantity == "probability":
        chosen = chosen.exp()
    return chosen[:, 0] if len(targets) == 1 else chosen[:, 0] - chosen[:, 1]


Result = TypeVar("Result")


def within_memory(run: Callable[[int], Result], max_positions: int, ending: Ending) -> Result:
    """The result of `run(max_positions)`, with `max_positions` halved until it fits in memory.

    A GPU reports when its memory is full. On the CPU the system may kill the process instead, so
    there `max_positions` has to be small enough from the start.
    """
    while True:
        try:
            return run(max_positions)
        except torch.OutOfMemoryError:
            if max_positions <= 1:
                raise ValueError(
                    f"The memory of {ending.model.device} is too small for one variant of a prompt "
                    f"of {len(ending.ids)} tokens: load {ending.model.name} in 16 bits, on several "
                    "devices, or leave out long prompts. Results stored so far are kept."
                ) from None
        max_positions //= 2  # outside `except`, so that the failed pass is freed


def _integrate(
    ending: Ending,
    baseline: Float[Tensor, "layer pos neuron"],
    score_of: Score,
    steps: int,
    max_positions: int,
) -> tuple[Float[Tensor, "layer pos neuron"], Float[Tensor, " layer"], float]:
    """Values, the change from each layer (float64), and the score of the prompt.

    Each layer has one variant per step, and one at the baseline to measure its change. A pass has
    few layers, because the layers below them need not be run again.
    """
    with torch.inference_mode(False), torch.enable_grad():
        path = wide(ending.values["post"]) - baseline
        alphas = torch.cat([torch.zeros(1), (torch.arange(steps) + 0.5) / steps]).to(path)
        gradient, at_baseline = torch.zeros_like(path), path.new_zeros(len(path))
        layers_per_pass = max(1, max_positions // (len(alphas) * path.shape[1]))
        for layers in torch.arange(len(path)).split(layers_per_pass):
            # Added to every step of its layer: its gradient is the sum over the steps.
            nudge = torch.zeros_like(path[layers], requires_grad=True)
            start = rearrange(baseline[layers] + nudge, "layer pos neuron -> layer 1 pos neuron")
            direction = rearrange(path[layers], "layer pos neuron -> layer 1 pos neuron")
            points = rearrange(
                start + rearrange(alphas, "alpha -> alpha 1 1") * direction,
                "layer alpha pos neuron -> (layer alpha) pos neuron",
            )
            layer_of = repeat(layers, "layer -> (layer alpha)", alpha=len(alphas))
            edits: dict[tuple[Kind, int], Edit] = {
                ("post", layer): _put(points, (layer_of == layer).to(points.device))
                for layer in layers.tolist()
            }
            for variants, logits in ending.run(len(layer_of), edits, max_positions):
                score = score_of(logits)
                on_path = variants % len(alphas) > 0
                gradient[layers] += torch.autograd.grad(score[on_path].sum(), nudge)[0]
                at_baseline[layer_of[variants][~on_path]] = score.detach()[~on_path]
    clean = score_of(ending.logits[None])
    return (path * gradient / steps).cpu(), (clean - at_baseline).double().cpu(), clean.item()


def _put(points: Float[Tensor, "variant pos neuron"], moved: Bool[Tensor, " variant"]) -> Edit:
    """Sets each `moved` variant to its point, and leaves the others unchanged."""

    def edit(values: Tensor, variants: Tensor) -> Tensor:
        numbers = variants.to(points.device)
        chosen = rearrange(moved[numbers], "variant -> variant 1 1").to(values.device)
        return torch.where(chosen, points[numbers].to(values), values)

    return edit


def _completeness_error(
    model: NeuronModel,
    values: Float[Tensor, "layer pos neuron"],
    change: Float[Tensor, " layer"],
    score: float,
) -> Float[Tensor, " layer"]:
    missed = (reduce(values.double(), "layer pos neuron -> layer", "sum") - change).abs()
    if missed.max() > max(LARGEST_ERROR * change.abs().max(), 1e-3 * abs(score)):
        warnings.warn(
            f"Attributions of {model.name} do not add up: the values of layer {missed.argmax()} "
            f"are off by more than {LARGEST_ERROR:.0%} of the largest change (see "
            "completeness_error). Take more steps, or a baseline other than zero.",
            stacklevel=3,
        )
    return (missed / change.abs()).to(values)

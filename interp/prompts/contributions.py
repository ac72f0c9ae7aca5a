"""What a neuron adds to the residual stream and to a logit, and what is lost without it."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.prompts.attribution import Score, same_shape, start_at, wide, within_memory
from interp.prompts.ending import Edit, Ending
from interp.prompts.metrics import Metric
from interp.prompts.targets import Target
from interp.results.words import Bos, Kind, Quantity
from interp.text.tokens import Prompt, checked_id


def ablation_effect(
    model: AnyModel,
    prompt: Prompt,
    target: Target | Metric,
    neurons: Bool[Tensor, "layer neuron"],
    quantity: Quantity = "probability",
    max_positions: int = 96,
    bos: Bos = "auto",
) -> Float[Tensor, "layer neuron"]:
    """How much the quantity falls when one neuron alone is zero at the last token; exact.

    Above zero: the neuron supports the target, as in an attribution. NaN: not in `neurons`.
    Each neuron costs as much as one token of text; `top_neurons` picks the ones worth it.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> effect = interp.prompts.ablation_effect(exact, "Seven minus one is", " six", neurons["en"])
    >>> effect.isnan().equal(~neurons["en"])
    True
    """
    model = as_model(model)
    ending, score_of, _ = start_at(model, prompt, target, quantity, 1, 1, bos)
    same_shape("The mask of neurons", neurons, model)
    return within_memory(lambda n: _ablated(ending, neurons, score_of, n), max_positions, ending)


def _ablated(
    ending: Ending,
    neurons: Bool[Tensor, "layer neuron"],
    score_of: Score,
    max_positions: int,
) -> Float[Tensor, "layer neuron"]:
    effect = torch.full(neurons.shape, float("nan"))
    with torch.no_grad():
        clean = score_of(ending.logits[None])
        for chosen in neurons.cpu().nonzero().split(max(1, max_positions)):
            layers, indices = chosen.unbind(dim=1)
            edits: dict[tuple[Kind, int], Edit] = {
                ("post", layer): _ablate(layers == layer, indices)
                for layer in layers.unique().tolist()
            }
            for variants, logits in ending.run(len(chosen), edits, max_positions):
                without = score_of(logits)
                effect[layers[variants], indices[variants]] = (clean - without).to(effect)
    return effect


def _ablate(ablated: Bool[Tensor, " variant"], neuron: Int[Tensor, " variant"]) -> Edit:
    """Sets one neuron of each `ablated` variant to zero."""

    def edit(values: Tensor, variants: Tensor) -> Tensor:
        numbers = variants.cpu()
        rows = ablated[numbers].nonzero().flatten()
        values = values.clone()
        values[rows, :, neuron[numbers][rows]] = 0.0
        return values

    return edit


def top_neurons(score: Float[Tensor, "layer neuron"], k: int) -> Bool[Tensor, "layer neuron"]:
    """The `k` neurons of highest score over all layers; pass `.abs()` to ignore the sign.

    NaN is never chosen.
    """
    known = int((~score.isnan()).sum())
    if not 1 <= k <= known:
        raise ValueError(f"k is {k}: give 1 to {known:,}, the number of neurons that have a score.")
    order = score.nan_to_num(nan=float("-inf")).flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    chosen[order[:k]] = True
    return chosen.reshape(score.shape)


def contribution_score(
    model: AnyModel, activations: Float[Tensor, "*prompt layer neuron"]
) -> Float[Tensor, "*prompt layer neuron"]:
    """How far a neuron moves the residual stream: |m_j| times the length of its output vector.

    The contribution score of Wang et al. (2024); it does not depend on a target. `activations` are
    outputs at one token, which `interp.counting.units_at` takes from a cache, or their mean. If the
    MLP's output is normalized before it is added (Gemma 2 and 3), it is the length before the norm.

    >>> moved = interp.prompts.contribution_score(model, moments.output_mean)  # in each language
    >>> moved.shape, bool((moved >= 0).all())
    (torch.Size([3, 6, 2048]), True)
    """
    model = as_model(model)
    _check(activations, model)
    lengths = [wide(model.w_out(layer)).norm(dim=-1).cpu() for layer in range(model.n_layers)]
    return wide(activations).cpu().abs() * torch.stack(lengths)


def effective_score(
    model: AnyModel, activations: Float[Tensor, "*prompt layer neuron"], target: int
) -> Float[Tensor, "*prompt layer neuron"]:
    """How far a neuron moves the residual stream towards the target's input embedding.

    m_j (v_j . e), with v_j the neuron's output vector and e the target's row of the input embedding
    (Wang et al., 2024); the activations m_j are as in `contribution_score`. No norm is applied, as
    in the paper. The authors' model, BLOOM, unembeds with the same matrix; we use the input
    embedding even if a model does not, and the row as stored if a model scales it (Gemma, XGLM).
    Token ids come from `target_ids`: the authors put a space between prompt and answer, except in
    Chinese; here the target text has to include it.

    >>> english = moments.output_mean[moments.languages.index("en")]
    >>> interp.prompts.effective_score(model, english, target=17).shape
    torch.Size([6, 2048])
    """
    model = as_model(model)
    _check(activations, model)
    row = wide(model.bridge.W_E[checked_id(target, model)].detach())
    if row.shape != (model.d_model,):
        raise ValueError(
            f"{model.name} embeds tokens in {len(row)} dimensions and has {model.d_model} in its "
            "residual stream: the effective score is not defined for it."
        )
    along = [
        (wide(model.w_out(layer)) @ row.to(model.w_out(layer).device)).cpu()
        for layer in range(model.n_layers)
    ]
    return wide(activations).cpu() * torch.stack(along)


def _check(activations: Float[Tensor, "*prompt layer neuron"], model: NeuronModel) -> None:
    same_shape("Activations", activations[(0,) * (activations.ndim - 2)], model)

"""Mixtures of experts computed slowly, by plain loops over tokens and experts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.experts import Rows
from interp.models.mixture_model import MixtureModel
from tests.tiny_models import D_EXPERT


def name_of(model: MixtureModel) -> str:
    return model.bridge.original_model.config.model_type


def routed_blocks(model: MixtureModel) -> dict[int, nn.Module]:
    """The experts of each layer that has some, by their class names alone."""
    name = "JetMoeMoE" if name_of(model) == "jetmoe" else "Experts"
    return {
        layer: module
        for layer, block in enumerate(model.bridge.blocks)
        for module in block.modules()
        if type(module).__name__.endswith(name)
    }


def gates_of(name: str, experts: Any, index: int, state: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and output of one expert's neurons on one token, written out."""
    if name == "gpt_oss":
        both = state @ experts.gate_up_proj[index] + experts.gate_up_proj_bias[index]
        gate, linear = both[::2], both[1::2]
        return gate, activated(name, experts, gate, linear)
    if name == "jetmoe":
        both = experts.input_linear.weight[index] @ state
    else:
        both = state @ _by_state(name, experts.gate_up_proj[index])
    gate, linear = both.split(D_EXPERT)
    return gate, activated(name, experts, gate, linear)


def activated(name: str, experts: Any, gate: Tensor, linear: Tensor | float = 1.0) -> Tensor:
    """The output beside a linear branch: of 1, act(gate)."""
    if name == "gpt_oss":
        clamped, limit = gate.clamp(max=experts.limit), experts.limit
        activated = clamped * torch.sigmoid(experts.alpha * clamped)
        return activated * (torch.as_tensor(linear).clamp(-limit, limit) + 1)
    return nn.functional.silu(gate) * linear


def written(name: str, experts: Any, index: int, output: Tensor) -> Tensor:
    if name == "gpt_oss":
        return output @ experts.down_proj[index] + experts.down_proj_bias[index]
    if name == "jetmoe":
        return experts.output_linear.weight[index] @ output
    return output @ _by_state(name, experts.down_proj[index])


def _by_state(name: str, weights: Tensor) -> Tensor:
    """The weights of one expert, with a column for each of its outputs."""
    return weights if name == "llama4_text" else weights.T


Off = dict[tuple[int, int], Tensor]
"""Neurons switched off, by layer and expert."""


@contextmanager
def by_loops(
    model: MixtureModel,
    off: Off,
    reweigh: Callable[[int, Tensor, Tensor], Tensor] = lambda layer, chosen, weights: weights,
) -> Iterator[list[tuple[int, int, int, Tensor, Tensor]]]:
    """Within the block, experts are computed token by token, expert by expert; it yields the
    gates, and outputs, with their layer, token and expert."""
    name = name_of(model)
    seen: list[tuple[int, int, int, Tensor, Tensor]] = []

    def loops(layer: int, experts: Any) -> Any:
        def forward(hidden: Tensor, chosen: Tensor, weights: Tensor, **_: Any) -> Tensor:
            total = torch.zeros_like(hidden)
            weights = reweigh(layer, chosen, weights)
            for token, state in enumerate(hidden):
                for index, weight in zip(chosen[token].tolist(), weights[token], strict=True):
                    gate, output = gates_of(name, experts, index, state)
                    seen.append((layer, token, index, gate, output))
                    output = output.masked_fill(off.get((layer, index), torch.tensor(False)), 0.0)
                    total[token] += weight * written(name, experts, index, output)
            return total

        def of_jetmoe(hidden: Tensor) -> Tensor:
            flat = hidden.reshape(-1, hidden.shape[-1])
            scores, chosen = experts.router.layer(flat).topk(2)
            return forward(flat, chosen, scores.softmax(-1)).view_as(hidden) + experts.bias

        def of_llama4(states: Tensor) -> Tensor:
            """States are multiplied by weights of routing, which are zero for most experts."""
            total = torch.zeros_like(states)
            n_tokens = len(states) // len(experts.down_proj)
            for number, state in enumerate(states):
                if state.any():
                    index, token = divmod(number, n_tokens)
                    gate, output = gates_of(name, experts, index, state)
                    seen.append((layer, token, index, gate, output))
                    output = output.masked_fill(off.get((layer, index), torch.tensor(False)), 0.0)
                    total[number] = written(name, experts, index, output)
            return total

        return {"jetmoe": of_jetmoe, "llama4_text": of_llama4}.get(name, forward)

    def reweighed(layer: int, router: Any) -> Any:
        """The router of Llama 4."""
        plain = router.forward

        def forward(hidden: Tensor) -> tuple[Tensor, Tensor]:
            weights, scores = plain(hidden)
            chosen = scores.topk(2).indices
            new = reweigh(layer, chosen, weights.gather(1, chosen))
            return weights.scatter(1, chosen, new), scores

        return forward

    changed: dict[Any, Any] = {}
    for layer, experts in routed_blocks(model).items():
        changed[experts] = loops(layer, experts)
        if name == "llama4_text":
            block = model.bridge.blocks[layer].mlp.original_component
            changed[block.router] = reweighed(layer, block.router)
    for module, forward in changed.items():
        vars(module)["forward"] = forward  # a bridge would set it in the module that it wraps
    try:
        yield seen
    finally:
        for module in changed:
            del vars(module)["forward"]


def recorded(model: MixtureModel, ids: Tensor, kind: Any) -> list[tuple[Rows, int, Tensor]]:
    seen = []

    def hook_for(layer: int) -> Any:
        return lambda values, hook: seen.append((hook, layer, values.clone()))

    with model.hooks([(model.rows_site(n, kind), hook_for(n)) for n in range(model.n_layers)]):
        model.body(ids)
    return seen


def half_of(mixture: MixtureModel, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(3, mixture.d_mlp, generator=generator) < 0.5) & mixture.layout.exists


@contextmanager
def slowly_off(mixture: MixtureModel, mask: Tensor) -> Iterator[None]:
    """By loops over tokens and experts, and zeros in the weights of dense neurons."""
    slow: Off = {}
    for layer, units in enumerate(mixture.layout.layers):
        for expert in range(units.n_experts):
            first = mixture.layout.unit(layer, expert, 0)
            slow[layer, expert] = mask[layer, first : first + D_EXPERT]
    kept = []
    for layer, block in enumerate(mixture.bridge.blocks):
        for mlp in block.modules():
            if {"up_proj", "down_proj"} <= mlp._modules.keys():
                weight = mlp.down_proj.weight
                kept.append((weight, weight.detach().clone()))
                weight.data[:, mask[layer, : weight.shape[1]]] = 0.0
    try:
        with by_loops(mixture, slow):
            yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)

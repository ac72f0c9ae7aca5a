"""act(gate) as the model computes it: taken from its module, and computed only where it must be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.counting.activated import Activated
from interp.interventions.edits import deactivate, intervene
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from tests import tiny_models

SHAPES = ("llama", "gpt2", "gemma3")


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> NeuronModel:
    return load(tiny_models.build(request.param, tmp_path))


def read(model: NeuronModel) -> tuple[dict[int, Tensor], dict[int, Tensor], int]:
    """By layer, what was delivered and the gate, and how often act was computed anew."""
    found: dict[int, Tensor] = {}
    gates: dict[int, Tensor] = {}
    computed: list[int] = []

    def hook(layer: int) -> Callable[[Tensor, Any], None]:
        def take(values: Tensor, hook: Any) -> None:
            assert layer not in found, "once a pass"
            found[layer] = values

        return take

    def keep(layer: int) -> Callable[[Tensor, Any], None]:
        return lambda gate, hook: gates.update({layer: gate.clone()})

    act = model.act
    hooks = [(model.site(layer, "pre"), keep(layer)) for layer in range(model.n_layers)]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "act", lambda layer, pre: computed.append(layer) or act(layer, pre))
        with model.hooks(hooks), Activated(model, hook).seen():
            model.body(torch.arange(3, 17).view(2, 7))
    assert list(found) == list(gates) == list(range(model.n_layers))
    return found, gates, len(computed)


def check(model: NeuronModel, computed: int) -> None:
    found, gates, n_computed = read(model)
    for layer, gate in gates.items():
        assert torch.equal(found[layer], model.act(layer, gate))
    assert n_computed == computed


def test_what_the_model_computes_is_not_computed_again(model: NeuronModel):
    check(model, 0)


def modules(model: NeuronModel) -> list[Any]:
    return [block.mlp.original_component for block in model.bridge.blocks]


def name_of(mlp: Any) -> str:
    return next(name for name in ("act_fn", "act") if hasattr(mlp, name))


def test_one_module_may_serve_all_layers(model: NeuronModel):
    first, *rest = modules(model)
    for mlp in rest:
        setattr(mlp, name_of(mlp), getattr(first, name_of(first)))
    check(model, 0)


def test_a_function_that_is_no_module_is_called_again(model: NeuronModel):
    """As in HookedTransformer."""
    for mlp in modules(model):
        name = name_of(mlp)
        module = mlp._modules.pop(name)
        vars(mlp)[name] = module.forward
    check(model, model.n_layers)


def test_a_module_that_gets_something_else_is_not_believed(model: NeuronModel):
    for mlp in modules(model):
        act = getattr(mlp, name_of(mlp))
        act.register_forward_pre_hook(lambda module, inputs: (inputs[0].clone(),))
    check(model, model.n_layers)


def test_another_call_of_the_module_is_not_mistaken_for_it(model: NeuronModel):
    for mlp in modules(model):
        act = getattr(mlp, name_of(mlp))
        within: list[bool] = []

        def decoy(module: Any, inputs: Any, within: list[bool] = within) -> None:
            if not within:
                within.append(True)
                module(inputs[0] * 2)
                within.pop()

        act.register_forward_pre_hook(decoy)
    check(model, 0)


def test_it_is_that_of_the_gate_under_an_edit(model: NeuronModel):
    plain, _, _ = read(model)
    mask = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    mask[0, 3] = True
    with intervene(model, {"pre": mask}, deactivate):
        found, gates, _ = read(model)
    assert torch.equal(found[0], model.act(0, gates[0]))
    assert (found[0][..., 3] == 0).all()
    assert (plain[0][..., 3] != 0).all()

"""The doctor finds mixtures of experts sound, and hooks of them that lie."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.interventions.edits import deactivate, intervene
from interp.models import experts as experts_module
from interp.models.doctor import doctor
from interp.models.expert_loops import Llama4, Loop
from interp.models.experts import DensePart, RoutedPart
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from tests import tiny_models
from tests.campaigns import architectures
from tests.expert_loops import routed_blocks
from tests.tiny_models import MIXTURES, Kinked


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_models.build(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.mark.slow
def test_the_doctor_finds_them_sound(mixture: MixtureModel) -> None:
    diagnosis = doctor(mixture)
    assert diagnosis.ok, str(diagnosis)
    assert len(diagnosis.checks) == 12


LOOKING = "hooks that only look change nothing"
GATES = "gates are what the weights make of the input"
WRITES = "a neuron writes its column of the weights, for its token"
RESIDUAL = "resid_pre is what a layer reads, resid_post its output"


@pytest.fixture
def deepseek(tmp_path: Path) -> Any:
    """It has dense layers, shared experts and routed ones."""
    return load(tiny_models.build("deepseek_v3", tmp_path))


def failures(model: MixtureModel) -> set[str]:
    return {check.name for check in doctor(model).checks if not check.passed}


LIES: dict[str, tuple[set[str], Callable[..., Tensor]]] = {
    "gates of the linear branch": (
        {GATES},
        lambda shown, module, kind, values, expert, token: shown(
            module,
            {"pre": "pre_linear", "pre_linear": "pre"}.get(kind, kind),
            values,
            expert,
            token,
        ),
    ),
    "hooks that never run": (
        {"every hook runs once per pass, on the rows of its experts"},
        lambda shown, module, kind, values, expert, token: values,
    ),
    "an edit that only looks like one": (
        {"an edit at post equals one made in the weights", WRITES},
        lambda shown, *given: (shown(*given), given[2])[1],
    ),
    "an edit that is made again for every token written": (
        {"edits apply during generation"},
        lambda shown, module, kind, values, expert, token: functools.reduce(
            lambda given, _: shown(module, kind, given, expert, token),
            range(3 if kind == "post" and int(token.max()) < 2 else 1),  # a token of two texts
            values,
        ),
    ),
    "outputs under the name of another expert": (
        {WRITES},
        lambda shown, module, kind, values, expert, token: shown(
            module, kind, values, expert.roll(1, 0) if kind == "post" else expert, token
        ),
    ),
    "outputs under the name of another token": (
        {WRITES},
        lambda shown, module, kind, values, expert, token: shown(
            module, kind, values, expert, token.roll(1, 0) if kind == "post" else token
        ),
    ),
}
"""What goes wrong, the questions that must find it, and what hooks of experts do instead."""


@pytest.mark.parametrize("lie", LIES)
def test_hooks_that_lie_are_found(
    deepseek: MixtureModel, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    expected, lying = LIES[lie]
    monkeypatch.setattr(experts_module, "_shown", functools.partial(lying, experts_module._shown))
    assert failures(deepseek) >= expected


def test_outputs_under_another_name_are_found_by_one_question_alone(
    deepseek: MixtureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lying = LIES["outputs under the name of another expert"]
    monkeypatch.setattr(experts_module, "_shown", functools.partial(lying, experts_module._shown))
    assert failures(deepseek) == {WRITES}


@pytest.mark.parametrize(
    ("weighs_output", "read", "expected"),
    [
        (True, Llama4.read, {LOOKING, GATES, WRITES}),
        (False, Loop.read, {GATES}),
    ],
    ids=["weights at the output", "gates without weights"],
)
def test_weights_of_routing_in_the_wrong_place_are_found(
    weighs_output: bool,
    read: Any,
    expected: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = load(tiny_models.build("llama4_text", tmp_path))
    assert not failures(model)
    monkeypatch.setattr(Llama4, "weighs_output", weighs_output)
    monkeypatch.setattr(Llama4, "read", read)
    assert failures(model) >= expected


def test_a_residual_stream_without_the_experts_is_found(deepseek: MixtureModel) -> None:
    """Kernels that add the residual stream when they normalize it show a layer's output alone."""
    block = deepseek.bridge.blocks[1]

    def forward(hidden: Tensor, *args: Any, **settings: Any) -> Any:
        hidden = block.hook_in(hidden)
        output = block.original_component(hidden, *args, **settings)
        states = output[0] if isinstance(output, tuple) else output
        states = hidden + block.hook_out(states - hidden)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    vars(block)["forward"] = forward
    assert failures(deepseek) == {RESIDUAL}


@pytest.mark.slow
def test_a_model_with_several_residual_streams_is_not_asked_about_one(tmp_path: Path) -> None:
    model = load(architectures.build("deepseek_v4", tmp_path))
    diagnosis = doctor(model)
    assert diagnosis.ok, str(diagnosis)
    (residual,) = [check for check in diagnosis.checks if check.name == RESIDUAL]
    assert "shows no residual stream of this model" in residual.detail
    stream = torch.ones(model.n_layers, model.d_model, dtype=torch.bool)
    sentence = "'resid_post' is not a site of .*, which has pre, pre_linear, post, routing"
    with (
        pytest.raises(ValueError, match=sentence),
        intervene(model, {"resid_post": stream}, deactivate),
    ):
        pass


def test_experts_with_a_norm_behind_them_are_not_asked_what_they_write(
    deepseek: MixtureModel,
) -> None:
    for experts in routed_blocks(deepseek).values():
        experts.has_post_expert_norm = True
        experts.post_expert_norm = nn.RMSNorm(deepseek.d_model)
    assert not failures(deepseek)


@pytest.mark.parametrize("kind", [DensePart, RoutedPart])
def test_an_activation_that_is_positive_for_negative_gates_is_found(
    deepseek: MixtureModel, kind: type
) -> None:
    """In dense layers and shared experts, or in routed experts."""
    for part in (part for parts in deepseek.parts for part in parts if isinstance(part, kind)):
        part.module.act_fn = Kinked()
    (failed,) = [check for check in doctor(deepseek).checks if not check.passed]
    assert failed.name == "a neuron fires where its activation is positive"
    assert 'count with fires_by="activation"' in failed.detail

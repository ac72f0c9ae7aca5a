"""What `doctor` asks of a mixture of experts; every fault is found by the check it names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from interp.models import experts
from interp.models.doctor import doctor
from interp.models.load import load
from tests import tiny_models
from tests.tiny_models import MIXTURES

ROWS = "neurons are shown on the tokens routed to them"
SAME = "the model computes the same when it is watched"
EDIT = "an edit at post equals one of the weights"
PLANT = "a neuron changed in the weights changes at its hooks"
WRITES = "edits apply during generation"

Shown = Callable[[Any, str, Tensor, Tensor, Tensor], Tensor]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load(tiny_models.build("qwen3_moe", tmp_path))


def failed(model: Any) -> set[str]:
    return {check.name for check in doctor(model).checks if not check.passed}


def instead(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Shown], Shown]) -> None:
    """Show the rows of experts to hooks in another way."""
    monkeypatch.setattr(experts, "_shown", fault(experts._shown))


@pytest.mark.parametrize("name", MIXTURES)
def test_every_mixture_passes(name: str, tmp_path: Path) -> None:
    diagnosis = doctor(load(tiny_models.build(name, tmp_path)))
    assert diagnosis.ok, str(diagnosis)


def test_rows_of_other_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(shown: Shown) -> Shown:
        return lambda module, kind, values, expert, token: shown(
            module, kind, values, expert, token // 2
        )

    instead(monkeypatch, fault)
    assert failed(model) == {ROWS}


def test_another_computation_when_watched(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(shown: Shown) -> Shown:
        return lambda module, kind, values, expert, token: (
            shown(module, kind, values, expert, token) * (1.05 if kind == "post" else 1)
        )

    instead(monkeypatch, fault)
    assert failed(model) >= {SAME}


def test_edits_that_are_forgotten(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(shown: Shown) -> Shown:
        def forgetful(module: Any, kind: str, values: Tensor, expert: Any, token: Any) -> Tensor:
            shown(module, kind, values, expert, token)
            return values

        return forgetful

    instead(monkeypatch, fault)
    assert failed(model) - {WRITES} == {EDIT}


def test_gates_that_do_not_follow_the_weights(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(shown: Shown) -> Shown:
        def squared(module: Any, kind: str, values: Tensor, expert: Any, token: Any) -> Tensor:
            seen = values**2 if kind == "pre" else values
            given = shown(module, kind, seen, expert, token)
            return values if given is seen else given

        return squared

    instead(monkeypatch, fault)
    assert failed(model) == {PLANT}

"""Inner functions are checked like all others, but their check is made once."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from interp.inference.intervals import jackknife_shards
from tests import checker


def scaled(factor: float, axes: str = "batch neuron") -> Callable[..., Tensor]:
    """An inner function, decorated as jaxtyping's import hook does it."""

    @jaxtyping.jaxtyped(typechecker=checker.check)
    def inner(values: Float[Tensor, axes], more: float = factor) -> Float[Tensor, axes]:  # pyright: ignore
        return values[:, : 3 if factor > 2 else None] * more

    return inner


def test_every_inner_function_is_checked_with_its_own_closure_and_defaults():
    values = torch.ones(2, 4)
    assert [scaled(n)(values).sum().item() for n in (1, 2)] == [8, 16]
    for factor in (1.0, 2.0):
        with pytest.raises(jaxtyping.TypeCheckError, match="parameters"):
            scaled(factor)(values[0])
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        scaled(3.0)(values)


def test_other_annotations_have_another_check():
    for _ in range(2):
        scaled(1.0)(torch.ones(2, 4))
        scaled(1.0, "square square")(torch.ones(4, 4))
        with pytest.raises(jaxtyping.TypeCheckError):
            scaled(1.0, "square square")(torch.ones(2, 4))


def test_a_check_is_made_once_and_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    made: list[Callable[..., Any]] = []
    monkeypatch.setattr(checker, "_made", {})
    monkeypatch.setattr(checker, "beartype", lambda given: made.append(given) or beartype(given))
    functions = [scaled(factor) for factor in (0.0, 0.5, 1.0, 1.5, 2.0)]
    assert made == []
    for function in functions:
        function(torch.ones(2, 4))
    assert len(made) == 2  # one for the parameters, one that also checks what is returned


def test_the_library_is_checked_with_it(monkeypatch: pytest.MonkeyPatch):
    made: dict[tuple[Any, ...], Callable[..., Any]] = {}
    monkeypatch.setattr(checker, "_made", made)
    jackknife_shards({"loss": torch.ones(4, 2)}, lambda total: total["loss"])
    names = {qualname for (_, qualname, _), *_ in made}
    assert names == {"jackknife_shards.<locals>.without"}
    assert len(made) == 2

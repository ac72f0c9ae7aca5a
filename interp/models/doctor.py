"""Do the neuron hooks of a model tell the truth? A table of checks, for any architecture.

A hook may never run, be attached to a different tensor than its name says, or ignore an edit, and
nothing downstream would notice. Each check here compares hooks with the model's own modules.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.models.any_model import AnyModel, as_model
from interp.models.beginning import Beginning, measure_beginning, tokens_of_beginning
from interp.models.hook_checks import Answer, hook_checks
from interp.models.mixture_doctor import mixture_checks
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.results.bars import tqdm
from interp.results.display import Cells, Shaded, Shown, listed
from interp.results.terminal import listing, wrapped


@dataclass(frozen=True)
class Check:
    """One question about a model's hooks."""

    name: str
    """What should hold."""

    passed: bool
    """Whether it holds."""

    detail: str
    """The largest deviation, or where the check first fails."""


@dataclass(frozen=True)
class Diagnosis(Shown):
    """Result of `doctor`; print it, or display it in a notebook, to see the table."""

    model: str
    """Name of the model."""

    checks: tuple[Check, ...]
    """In the order they ran; an early failure often explains later ones."""

    beginning: Beginning | None = None
    """How the model wants a text to begin; None: there is no token to begin one with, or a
    check failed."""

    @property
    def ok(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """`ok` in words."""
        return "its hooks tell the truth" if self.ok else "do not trust its neurons"

    def __repr__(self) -> str:
        failed = [check.name for check in self.checks if not check.passed]
        failures = f"; failed: {listed(failed)}" if failed else ""
        passed = f"{len(self.checks) - len(failed)} of {len(self.checks)} checks passed{failures}"
        return f"Diagnosis({self.model}: {self.verdict}; {passed})"

    def to_frame(self) -> pd.DataFrame:
        """One row per check."""
        rows = [(self.model, check.name, check.passed, check.detail) for check in self.checks]
        return pd.DataFrame(rows, columns=["model", "check", "passed", "detail"])

    def _cells(self) -> Cells:
        rows = [
            [check.name, "ok" if check.passed else Shaded("FAIL", 1.0), check.detail]
            for check in self.checks
        ]
        note = "" if self.beginning is None else str(self.beginning)
        return Cells(("", "", "seen"), rows, note)

    def __str__(self) -> str:
        return self.table(10_000)

    def table(self, width: int = 100) -> str:
        """For a terminal of `width` columns: a row per check.

        >>> print(interp.doctor(model).table().splitlines()[0])
        babel: its hooks tell the truth
        """
        rows = [
            ["ok" if check.passed else "FAIL", check.name, check.detail] for check in self.checks
        ]
        beginning = [] if self.beginning is None else wrapped(str(self.beginning), width)
        lines = [f"{self.model}: {self.verdict}", *listing(rows, width), *beginning]
        return "\n".join(lines)


def doctor(model: AnyModel, length: int = 12, seed: int = 0) -> Diagnosis:
    """Check every layer's hooks on two random texts, in a few short passes per layer.

    On 24 sentences it also measures whether the model wants a beginning-of-text token.

    >>> diagnosis = interp.doctor(model)
    >>> diagnosis.ok, len(diagnosis.checks)
    (True, 16)
    >>> print(diagnosis.checks[-1].name)
    the model is unchanged afterwards
    """
    model = as_model(model)
    ids = random_ids(model, length, seed)
    with torch.no_grad(), _bar(model, length):
        reads = _run("the model reads text", lambda: (True, str(model.logits(ids).shape)))
        if not reads.passed:
            return Diagnosis(model.name, (reads,))
        mixed = isinstance(model, MixtureModel)
        checks = mixture_checks(model, ids) if mixed else hook_checks(model, ids)
        results = tuple(_run(name, check) for name, check in checks.items())
        sound = all(check.passed for check in results)
        return Diagnosis(model.name, results, measure_beginning(model) if sound else None)


def tokens_checked(model: NeuronModel, length: int = 12) -> int:
    """About how many tokens `doctor` reads of a sound model; of a mixture, within a quarter.

    Per layer two passes over both texts with neurons off, two to four for the sites or experts, and
    some two dozen once.
    """
    return (25 + 5 * model.n_layers) * 2 * length + tokens_of_beginning(model)


@contextmanager
def _bar(model: NeuronModel, length: int) -> Iterator[None]:
    """Within the block, a bar over the tokens that the model reads."""
    with tqdm(
        total=tokens_checked(model, length), desc="checking hooks", unit=" tokens", unit_scale=True
    ) as bar:

        def count(module: nn.Module, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
            bar.update(next(iter((*args, *settings.values()))).numel())

        handle = model.bridge.embed.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _run(name: str, check: Callable[[], Answer]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # a broken model may fail anywhere: report it as a failed check
        return Check(name, False, f"cannot be checked: {type(error).__name__}: {error}")


def random_ids(model: NeuronModel, length: int = 12, seed: int = 0) -> Int[Tensor, "batch pos"]:
    """Two texts of random tokens, without special tokens."""
    weight = torch.ones(model.n_vocab)
    weight[[id for id in model.special_ids if id < model.n_vocab]] = 0.0
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(2, length, model.n_vocab, generator=generator) * weight
    return drawn.argmax(dim=-1)

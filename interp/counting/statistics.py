"""What can be counted during a pass besides firing: a row for each statistic.

A row is all that collecting, merging and planning have to know of it. Its name is that of the field
of `Keep` that asks for it, of the attribute of `Run`, and of the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from interp.counting.batch import Neurons
from interp.counting.caches import Counter
from interp.counting.counters import MomentsCounter, UnitMomentsCounter
from interp.counting.head_effects import HeadEffects, HeadEffectsCounter
from interp.counting.histograms import BINS, WORKING, Grid, Histograms, HistogramsCounter
from interp.counting.loss_effects import LossEffects, LossEffectsCounter
from interp.counting.negative_side import NegativeSide, NegativeSideCounter
from interp.counting.parts import Parts
from interp.counting.sign_cases import CASES, SignCases, SignCasesCounter
from interp.counting.stats import ActivationMoments
from interp.counting.unit_moments import UnitMoments
from interp.results.saved import Saved
from interp.results.words import UnitKind


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """How something is counted of every neuron or other unit, and what it takes."""

    title: str
    """What it is."""

    counter: Callable[[Neurons, Grid | None], Counter]
    """A counter for one piece, on the grid of the run if it has one."""

    of: Callable[[Parts], Saved]
    """The result of all parts."""

    counted: int
    """Bytes per unit of a piece."""

    units: UnitKind = "post"
    """The units that it is counted of; by default neurons."""

    holds: int = 0
    """Bytes per neuron and token that are held until another site of the layer was seen."""

    fixed: int = 0
    """Bytes while it is counted, however many tokens there are."""

    of_gradients: bool = False
    """Whether it is counted in a pass of its own, forward and backward."""

    by_shard: bool = False
    """Whether the result has an axis of shards; otherwise they are summed."""


def _histograms(model: Neurons, grid: Grid | None) -> HistogramsCounter:
    assert grid is not None, "collect makes it before the first piece"
    return HistogramsCounter(model, grid)


STATISTICS: Mapping[str, Statistic] = {
    "moments": Statistic(
        title="mean and standard deviation of every activation",
        counter=lambda model, _: MomentsCounter(model),
        of=ActivationMoments.of,
        counted=4 * 8,
    ),
    "sign_cases": Statistic(
        title="how often gate and linear branch are above zero, together and alone",
        counter=lambda model, _: SignCasesCounter(model),
        of=SignCases.of,
        counted=8 * len(CASES),
        holds=1,
        by_shard=True,
    ),
    "negative_side": Statistic(
        title="what every neuron writes where its gate is below zero",
        counter=lambda model, _: NegativeSideCounter(model),
        of=NegativeSide.of,
        counted=3 * 8,
        holds=1,
    ),
    "histograms": Statistic(
        title="how every act(gate) is distributed",
        counter=_histograms,
        of=Histograms.of,
        counted=4 * (BINS + 2),
        fixed=WORKING,
    ),
    "loss_effects": Statistic(
        title="what every neuron does to the loss, to first order",
        counter=lambda model, _: LossEffectsCounter(model),
        of=LossEffects.of,
        counted=2 * 8,
        of_gradients=True,
    ),
    "heads": Statistic(
        title="mean and standard deviation of the norm of every head's output",
        counter=lambda model, _: UnitMomentsCounter(model, "head"),
        of=lambda parts: UnitMoments.of(parts, "head"),
        counted=2 * 8,
        units="head",
    ),
    "head_effects": Statistic(
        title="what every attention head does to the loss, to first order",
        counter=lambda model, _: HeadEffectsCounter(model),
        of=HeadEffects.of,
        counted=2 * 8,
        units="head",
        of_gradients=True,
    ),
    "dimensions": Statistic(
        title="mean and standard deviation of the residual stream after every layer",
        counter=lambda model, _: UnitMomentsCounter(model, "resid_post"),
        of=lambda parts: UnitMoments.of(parts, "resid_post"),
        counted=2 * 8,
        units="resid_post",
    ),
}

OF_NEURONS = tuple(name for name, row in STATISTICS.items() if row.units == "post")
"""Statistics of neurons, which need nothing of attention."""


def option_of(name: str) -> str:
    """The option of `interp collect` that keeps a statistic: --sign-cases, or --units heads."""
    word = name.replace("_", "-")
    return f"--{word}" if STATISTICS[name].units == "post" else f"--units {word}"

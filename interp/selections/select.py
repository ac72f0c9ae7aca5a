"""Scores of units → a selection: by any method of the registry, or as one paper does it."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.counting.run import Run
from interp.counting.stats import ActivationMoments, FiringStats
from interp.models.any_model import AnyModel, as_model
from interp.models.units import UnitLayout, layout_of
from interp.results.words import Half
from interp.scores.average_precision import Precision
from interp.scores.choosers import Measured, both_ends, measured
from interp.scores.lape import least_entropy, pool_of
from interp.scores.methods import METHODS, Method, Settings
from interp.selections.neuron_selection import NeuronSelection


def select(
    kept: Run | FiringStats,
    method: str = "lape",
    model: AnyModel | None = None,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> NeuronSelection:
    """The selection of any method of the registry; `interp.scores.METHODS` lists them.

    `settings` are fields of `interp.scores.Settings`, such as `n` or `fraction`; one that the
    method does not read is refused. Methods that need counts of firing alone take `FiringStats`
    too. `model`: for methods that look at weights. `generator`: for those that draw; None: seed 0.

    >>> interp.selections.select(stats, "lap", n=50).counts()
    {'en': 50, 'de': 50, 'zh': 50}
    >>> interp.selections.select(stats, fraction=0.02) == interp.select_by_entropy(stats, 0.02)
    True
    """
    if method not in METHODS:
        raise ValueError(f"{method!r} is no method: give one of {', '.join(METHODS)}.")
    chosen = METHODS[method]
    if unread := settings.keys() - set(chosen.options):
        raise ValueError(
            f"{', '.join(sorted(unread))} changes nothing with {method}, which reads "
            f"{', '.join(chosen.options)}: leave it out."
        )
    if isinstance(kept, FiringStats) and chosen.needs is not None:
        raise ValueError(f"{method} needs {chosen.needs}: give the run instead of its counts.")
    generator = generator or torch.Generator().manual_seed(0)
    opened = None if model is None else as_model(model)
    seen = measured(kept, generator, None if opened is None else lambda: opened)
    return selection_of(chosen, seen, Settings(**settings))


def selection_of(method: Method, seen: Measured, settings: Settings) -> NeuronSelection:
    """What a method chooses from measurements.

    >>> seen, settings = interp.scores.measured(stats, generator), interp.scores.Settings(n=20)
    >>> interp.selections.selection_of(interp.scores.METHODS["lead"], seen, settings).counts()
    {'en': 20, 'de': 20, 'zh': 20}
    """
    if method.chooser != "choosers:drawn":
        check_several(seen.languages)
    mask = method.choose(seen, settings)
    if method.of_run_sites:
        return NeuronSelection(mask, seen.languages, seen.precision.sites)
    if method.units != "post":
        return NeuronSelection(mask, seen.languages, ((method.units, mask.shape[2]),))
    return NeuronSelection(mask, seen.languages, pool=seen.pool, layout=seen.layout)


def select_from_rate(
    rate: Float[Tensor, "language layer neuron"],
    languages: Sequence[str],
    fraction: float = 0.01,
    busy_quantile: float = 0.95,
    layout: UnitLayout | None = None,
) -> NeuronSelection:
    """The selection of Tang et al. (2024): the least entropy among neurons busy in some language.

    `fraction` of all neurons is taken, and a neuron belongs to every language in which it is busy
    (its rate is above `busy_threshold`), so it belongs to at least one. As in the authors' code
    the one threshold does both; their paper has it once. `layout`: that of a mixture of experts.

    Departs from that code where it leaves things open: ties at the cut go to the lower layer, then
    to the lower neuron; and where there are fewer busy neurons than asked for, this refuses,
    instead of filling up with neurons that belong nowhere.
    """
    check_several(languages)
    mask = least_entropy(rate, fraction, busy_quantile)
    return NeuronSelection(mask, tuple(languages), pool=pool_of(rate), layout=layout)


def check_several(languages: Sequence[str]) -> None:
    """Refuse a single label, of which every neuron is specific to it."""
    if len(languages) < 2:
        raise ValueError(
            f"The counts are of {' '.join(languages)} alone, and a neuron is specific to a label "
            "compared with others: collect two labels or more."
        )


def select_by_entropy(
    stats: FiringStats, fraction: float = 0.01, busy_quantile: float = 0.95
) -> NeuronSelection:
    """Language-specific neurons by LAPE (Tang et al., 2024); see `select_from_rate`.

    >>> chosen = interp.select_by_entropy(stats, fraction=0.02)
    >>> int(chosen.union().sum())
    246
    >>> chosen.layer_profile().shape
    torch.Size([3, 6])
    """
    return select_from_rate(stats.rate, stats.languages, fraction, busy_quantile, stats.layout)


def select_by_value_entropy(
    moments: ActivationMoments, fraction: float = 0.01, busy_quantile: float = 0.95
) -> NeuronSelection:
    """LAVE (Tang et al., 2024): `select_from_rate` with mean values of act(gate) for the rates.

    A negative mean counts as zero, see `value_entropy`. The paper leaves open to which languages a
    neuron belongs; here, as in LAPE, where its mean is above the quantile of all means.

    >>> chosen = interp.select_by_value_entropy(moments, fraction=0.03)
    >>> int(chosen.union().sum())
    369
    >>> interp.selections.jaccard_between(chosen, neurons).shape
    torch.Size([3])
    """
    mean = moments.gate_mean.clamp_min(0)
    return select_from_rate(
        mean, moments.languages, fraction, busy_quantile, layout_of(moments.units)
    )


def select_by_precision(
    precision: Precision, n: int = 2000, which: Half = "both"
) -> NeuronSelection:
    """The selection of Kojima et al. (2024): per language n/2 units that detect it best, n/2 worst.

    Of all units of all sites and layers together, so a selection may be of a few layers or of one
    site. The worst respond to everything but the language. `which` takes the "top" or the "bottom"
    half alone, n/2 units. Ties at the cut go to the lower layer, then to the lower unit.

    >>> precision = interp.measure_precision(means)
    >>> interp.select_by_precision(precision, n=200).counts()
    {'en': 200, 'de': 200, 'zh': 200}
    """
    mask = both_ends(precision.average_precision, Settings(n=n, which=which))
    return NeuronSelection(mask, precision.languages, precision.sites)

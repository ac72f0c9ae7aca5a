"""The registry of selection methods: their names, what they need, and the functions behind them.

A row is all that `interp find`, `interp.selections.select` and the studies have to know about a
method. Functions are named, not imported, so that the command's help loads no library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from interp.results.words import Half

NEEDS_MOMENTS, NEEDS_SENTENCES = "moments", "sentence_means"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a caller may ask of a method; `Method.options` says which of it a method reads.

    >>> interp.scores.Settings(fraction=0.1).per_language(2048)
    205
    """

    n: int | None = None
    """Units for each language; None: `fraction` says how many."""

    fraction: float = 0.01
    """Share of all units: for each language, or, where languages compete for units, in all."""

    busy_quantile: float = 0.95
    """A neuron belongs to a language if it fires there more than this share of all rates."""

    which: Half = "both"
    """Both ends of the ranking, or half of `n` from the top or the bottom."""

    weight: float | None = None
    """Of the reward for firing often; None: the heaviest that the paper allows."""

    share: float = 0.95
    """Of a layer's firing."""

    def per_language(self, n_units: int) -> int:
        """Units for each language, of so many."""
        return round(self.fraction * n_units) if self.n is None else self.n

    def of_all(self, n_units: int, n_languages: int) -> float:
        """Share of all units, for methods in which languages compete."""
        return self.fraction if self.n is None else self.n * n_languages / n_units


@dataclass(frozen=True)
class Method:
    """One way of choosing units.

    >>> method: interp.scores.Method = interp.scores.METHODS["lave"]
    >>> method.says, method.needs
    ('lape of mean activations', 'moments')
    """

    title: str
    """In tables and figures."""

    says: str
    """What it chooses, and whose idea it is."""

    chooser: str
    """The function that chooses, as module:name within `interp.scores`."""

    options: Sequence[str] = ("n", "fraction")
    """The settings that change its choice."""

    needs: str | None = None
    """What a run must keep for it besides counts of firing."""

    sizes_compare: bool = True
    """Whether `n` sets its size for every language, so that it can be compared at equal size."""

    of_run_sites: bool = False
    """Whether it chooses among all sites whose sentence means were kept, not neurons alone."""

    def choose(self, seen: Any, settings: Settings) -> Any:
        """The choice, as [language layer unit]; `seen` is what `interp.scores.measured` gives."""
        return resolve_name(f"interp.scores.{self.chooser}")(seen, settings)


BUSY = ("n", "fraction", "busy_quantile")

METHODS: dict[str, Method] = {
    "random": Method("random", "a control", "choosers:drawn"),
    "lap": Method("rate (LAP)", "fires most often", "choosers:rate"),
    "removal": Method(
        "removal effect (PLND)",
        "moves the MLP's output most",
        "choosers:removal",
        needs=NEEDS_MOMENTS,
    ),
    "entropy-alone": Method(
        "entropy alone", "least entropy where it leads", "choosers:entropy_alone"
    ),
    "lape-per-language": Method(
        "entropy (LAPE)", "equally many per language", "choosers:entropy", BUSY
    ),
    "lape": Method(
        "LAPE as published", "least entropy of firing (Tang et al.)", "choosers:lape", BUSY
    ),
    "entropy-less-peak-per-language": Method(
        "entropy less peak",
        "equally many per language",
        "choosers:less_peak",
        (*BUSY, "weight"),
    ),
    "lave-per-language": Method(
        "mean entropy (LAVE)",
        "equally many per language",
        "choosers:mean_entropy",
        BUSY,
        NEEDS_MOMENTS,
    ),
    "lead": Method("lead in rate", "rate less the highest in others", "choosers:lead"),
    "above-percentile": Method(
        "share above percentile",
        "often above its 90th percentile",
        "choosers:above_percentile",
        needs=NEEDS_SENTENCES,
    ),
    "gate-precision": Method(
        "precision of gate",
        "best detectors by gate",
        "choosers:gate_precision",
        needs=NEEDS_SENTENCES,
    ),
    "gate-precision-both-ends": Method(
        "precision of gate, both ends",
        "and the worst",
        "choosers:gate_precision_both_ends",
        needs=NEEDS_SENTENCES,
    ),
    "output-precision": Method(
        "precision of output",
        "best detectors by output",
        "choosers:output_precision",
        needs=NEEDS_SENTENCES,
    ),
    "output-precision-both-ends": Method(
        "precision of output, both ends",
        "and the worst",
        "choosers:output_precision_both_ends",
        needs=NEEDS_SENTENCES,
    ),
    "lave": Method(
        "LAVE as published",
        "lape of mean activations",
        "choosers:lave",
        BUSY,
        NEEDS_MOMENTS,
        sizes_compare=False,
    ),
    "entropy-less-peak": Method(
        "entropy less peak as published",
        "lape with a reward for firing (Zhang et al.)",
        "choosers:less_peak_as_published",
        (*BUSY, "weight"),
        sizes_compare=False,
    ),
    "cumulative-mass": Method(
        "cumulative mass",
        "the fewest that make up most firing (Tan et al.)",
        "choosers:mass",
        ("share",),
        sizes_compare=False,
    ),
    "precision": Method(
        "precision as published",
        "best and worst detectors of sentences (Kojima et al.)",
        "choosers:precision",
        ("n", "fraction", "which"),
        NEEDS_SENTENCES,
        sizes_compare=False,
        of_run_sites=True,
    ),
}
"""Name on the command line → method. Not here: parameter variation, which needs a checkpoint for
each language."""

COMPARED = {method.title: method for method in METHODS.values() if method.sizes_compare}
"""Title → method, of those that can choose equally many neurons for every language."""

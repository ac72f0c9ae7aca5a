"""The registry of selection methods: their names, what they need, and the functions behind them.

A row is all that `interp find`, `interp.selections.select` and the studies have to know about a
method. Functions are named, not imported, so that the command's help loads no library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from interp.results.words import Half, UnitKind

NEEDS_MOMENTS, NEEDS_SENTENCES, NEEDS_HISTOGRAMS = "moments", "sentence_means", "histograms"
NEEDS_HEADS, NEEDS_HEAD_EFFECTS, NEEDS_DIMENSIONS = "heads", "head_effects", "dimensions"

_LAPE = "Tang et al. (2024), arXiv 2402.16438"
_KOJIMA = "Kojima et al. (2024), arXiv 2404.02431"
_ZHANG = "Zhang et al. (2025), arXiv 2505.21505"
_LAHIS = "LAHIS: Liu et al. (2025), arXiv 2511.07498"
_DLN = "DLN, EMNLP 2026, mjkmain/Distribution-aware-language-neurons"


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
        if self.n is None and round(self.fraction * n_units) == 0:
            raise ValueError(
                f"A fraction of {self.fraction:g} of {n_units:,} units is none of them: give a "
                "larger one (--fraction), or how many for each language (--n)."
            )
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

    source: str
    """Who proposed it, and where; "here": this library."""

    options: Sequence[str] = ("n", "fraction")
    """The settings that change its choice."""

    needs: str | None = None
    """What a run must keep for it besides counts of firing."""

    sizes_compare: bool = True
    """Whether `n` sets its size for every language, so that it can be compared at equal size."""

    looks_at_weights: bool = False
    """Whether it needs the model besides what the run kept."""

    of_run_sites: bool = False
    """Whether it chooses among all sites whose sentence means were kept, not neurons alone."""

    units: UnitKind = "post"
    """What it chooses among: by default neurons."""

    def choose(self, seen: Any, settings: Settings) -> Any:
        """The choice, as [language layer unit]; `seen` is what `interp.scores.measured` gives."""
        return resolve_name(f"interp.scores.{self.chooser}")(seen, settings)


BUSY = ("n", "fraction", "busy_quantile")

METHODS: dict[str, Method] = {
    "random": Method("random", "a control", "choosers:drawn", "a control"),
    "lap": Method("rate (LAP)", "fires most often", "choosers:rate", _LAPE),
    "removal": Method(
        "removal effect (PLND)",
        "moves the MLP's output most",
        "choosers:removal",
        "PLND: Zhao et al. (2024), arXiv 2402.18815",
        needs=NEEDS_MOMENTS,
        looks_at_weights=True,
    ),
    "entropy-alone": Method(
        "entropy alone",
        "least entropy where it leads",
        "choosers:entropy_alone",
        f"here, without the busy bar of {_LAPE}",
    ),
    "lape-per-language": Method(
        "entropy (LAPE)", "equally many per language", "choosers:entropy", _LAPE, BUSY
    ),
    "lape": Method(
        "LAPE as published", "least entropy of firing (Tang et al.)", "choosers:lape", _LAPE, BUSY
    ),
    "entropy-less-peak-per-language": Method(
        "entropy less peak",
        "equally many per language",
        "choosers:less_peak",
        _ZHANG,
        (*BUSY, "weight"),
    ),
    "lave-per-language": Method(
        "mean entropy (LAVE)",
        "equally many per language",
        "choosers:mean_entropy",
        _LAPE,
        BUSY,
        NEEDS_MOMENTS,
    ),
    "lead": Method("lead in rate", "rate less the highest in others", "choosers:lead", "here"),
    "above-percentile": Method(
        "share above percentile",
        "often above its 90th percentile",
        "choosers:above_percentile",
        "Mondal et al. (2025), arXiv 2503.17456",
        needs=NEEDS_SENTENCES,
    ),
    "gate-precision": Method(
        "precision of gate",
        "best detectors by gate",
        "choosers:gate_precision",
        _KOJIMA,
        needs=NEEDS_SENTENCES,
    ),
    "gate-precision-both-ends": Method(
        "precision of gate, both ends",
        "and the worst",
        "choosers:gate_precision_both_ends",
        _KOJIMA,
        needs=NEEDS_SENTENCES,
    ),
    "output-precision": Method(
        "precision of output",
        "best detectors by output",
        "choosers:output_precision",
        _KOJIMA,
        needs=NEEDS_SENTENCES,
    ),
    "output-precision-both-ends": Method(
        "precision of output, both ends",
        "and the worst",
        "choosers:output_precision_both_ends",
        _KOJIMA,
        needs=NEEDS_SENTENCES,
    ),
    "sign-cases": Method(
        "cases of signs",
        "lape on firing by the sign of the linear branch",
        "choosers:sign_cases",
        "here, after GLUScope, arXiv 2602.23826",
        BUSY,
        "sign_cases",
    ),
    "negative-side": Method(
        "negative side",
        "lape on what is written where the gate is below zero",
        "choosers:negative_side",
        "here, after Kong et al. (2025), arXiv 2509.24198",
        BUSY,
        "negative_side",
    ),
    "dln-per-language": Method(
        "distribution (DLN)",
        "equally many per language",
        "choosers:distributions",
        _DLN,
        needs=NEEDS_HISTOGRAMS,
    ),
    "divergence": Method(
        "divergence from others",
        "distribution furthest from the others' mean",
        "choosers:divergence",
        "here, with the divergence of Kullback and Leibler (1951)",
        needs=NEEDS_HISTOGRAMS,
    ),
    "loss-effects": Method(
        "effect on the loss",
        "lape on gradient times activation of the loss",
        "choosers:loss_effects",
        "here, after CRANE, arXiv 2601.04664",
        BUSY,
        "loss_effects",
    ),
    "dln": Method(
        "DLN as published",
        "distributions that overlap least between two groups of languages",
        "choosers:distributions_as_published",
        _DLN,
        ("fraction",),
        NEEDS_HISTOGRAMS,
        sizes_compare=False,
    ),
    "lave": Method(
        "LAVE as published",
        "lape of mean activations",
        "choosers:lave",
        _LAPE,
        BUSY,
        NEEDS_MOMENTS,
        sizes_compare=False,
    ),
    "entropy-less-peak": Method(
        "entropy less peak as published",
        "lape with a reward for firing (Zhang et al.)",
        "choosers:less_peak_as_published",
        _ZHANG,
        (*BUSY, "weight"),
        sizes_compare=False,
    ),
    "cumulative-mass": Method(
        "cumulative mass",
        "the fewest that make up most firing (Tan et al.)",
        "choosers:mass",
        "Tan et al. (2024), arXiv 2404.11201",
        ("share",),
        sizes_compare=False,
    ),
    "precision": Method(
        "precision as published",
        "best and worst detectors of sentences (Kojima et al.)",
        "choosers:precision",
        _KOJIMA,
        ("n", "fraction", "which"),
        NEEDS_SENTENCES,
        sizes_compare=False,
        of_run_sites=True,
    ),
    "head-norms": Method(
        "norm of heads",
        "lape on the norm of a head's output",
        "choosers:head_norms",
        f"here, after {_LAPE}",
        BUSY,
        NEEDS_HEADS,
        units="head",
    ),
    "lahis-per-language": Method(
        "importance of heads (LAHIS)",
        "equally many per language",
        "choosers:most_important_heads",
        _LAHIS,
        needs=NEEDS_HEAD_EFFECTS,
        units="head",
    ),
    "lahis": Method(
        "LAHIS as published",
        "heads that the loss depends on, without those of many languages",
        "choosers:specific_heads",
        _LAHIS,
        needs=NEEDS_HEAD_EFFECTS,
        sizes_compare=False,
        units="head",
    ),
    "dimensions": Method(
        "dimensions of the last layer",
        "mean after the last layer furthest from the others' mean",
        "choosers:dimensions",
        "Zhong et al. (2025), arXiv 2510.07213",
        needs=NEEDS_DIMENSIONS,
        units="resid_post",
    ),
}
"""Name on the command line → method. Not here: parameter variation, which needs a checkpoint for
each language."""

COMPARED = {
    method.title: method
    for method in METHODS.values()
    if method.sizes_compare and method.units == "post"
}
"""Title → method, of those that can choose equally many neurons for every language."""

from .agreement import predicted_agreement, text_for_agreement, until_stable
from .comparison import on_common_units, overlaps
from .neuron_selection import jaccard_between
from .select import select, selection_of
from .stability import (
    Stability,
    across_runs,
    chance_jaccard,
    entropy_settings,
    measure_stability,
    without_languages,
)
from .two_models import RateChange, rate_change

__all__ = [
    "RateChange",
    "Stability",
    "across_runs",
    "chance_jaccard",
    "entropy_settings",
    "jaccard_between",
    "measure_stability",
    "on_common_units",
    "overlaps",
    "predicted_agreement",
    "rate_change",
    "select",
    "selection_of",
    "text_for_agreement",
    "until_stable",
    "without_languages",
]

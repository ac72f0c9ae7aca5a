from .agreement import predicted_agreement, text_for_agreement, until_stable
from .comparison import on_common_units, overlaps
from .explanation import Explanation, beyond_script, explain
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

__all__ = [
    "Explanation",
    "Stability",
    "across_runs",
    "beyond_script",
    "chance_jaccard",
    "entropy_settings",
    "explain",
    "jaccard_between",
    "measure_stability",
    "on_common_units",
    "overlaps",
    "predicted_agreement",
    "select",
    "selection_of",
    "text_for_agreement",
    "until_stable",
    "without_languages",
]

from .agreement import predicted_agreement, text_for_agreement, until_stable
from .neuron_selection import jaccard_between
from .stability import (
    Stability,
    across_runs,
    chance_jaccard,
    entropy_settings,
    measure_stability,
    without_languages,
)

__all__ = [
    "Stability",
    "across_runs",
    "chance_jaccard",
    "entropy_settings",
    "jaccard_between",
    "measure_stability",
    "predicted_agreement",
    "text_for_agreement",
    "until_stable",
    "without_languages",
]

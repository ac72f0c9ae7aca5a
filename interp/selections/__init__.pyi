from .agreement import (
    jaccard_between,
    predicted_agreement,
    text_for_agreement,
    until_stable,
)
from .change_file import edit_towards, read_changes
from .comparison import on_common_units, overlaps
from .explanation import Explanation, beyond_script, explain
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
    "Explanation",
    "RateChange",
    "Stability",
    "across_runs",
    "beyond_script",
    "chance_jaccard",
    "edit_towards",
    "entropy_settings",
    "explain",
    "jaccard_between",
    "measure_stability",
    "on_common_units",
    "overlaps",
    "predicted_agreement",
    "rate_change",
    "read_changes",
    "select",
    "selection_of",
    "text_for_agreement",
    "until_stable",
    "without_languages",
]

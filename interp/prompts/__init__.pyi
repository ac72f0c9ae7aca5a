from .alignment import PatchSource
from .attribution import gradient_times_activation
from .attribution_results import Attribution
from .contributions import ablation_effect, contribution_score, effective_score
from .ending import Ending
from .lens import Lens, Question, promoted_languages, token_languages
from .patching import heads
from .patching_result import PatchingResult

__all__ = [
    "Attribution",
    "Ending",
    "Lens",
    "PatchSource",
    "PatchingResult",
    "Question",
    "ablation_effect",
    "contribution_score",
    "effective_score",
    "gradient_times_activation",
    "heads",
    "promoted_languages",
    "token_languages",
]

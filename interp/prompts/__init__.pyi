from .alignment import PatchSource
from .attribution import (
    attribute_prompts,
    gradient_times_activation,
    integrated_gradients_by_position,
)
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
    "attribute_prompts",
    "contribution_score",
    "effective_score",
    "gradient_times_activation",
    "heads",
    "integrated_gradients_by_position",
    "promoted_languages",
    "token_languages",
]

from .alignment import PatchSource
from .attribution import (
    Attribution,
    ablation_effect,
    contribution_score,
    effective_score,
    gradient_times_activation,
)
from .ending import Ending
from .lens import Lens, Question
from .patching import PatchingResult, heads

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
]

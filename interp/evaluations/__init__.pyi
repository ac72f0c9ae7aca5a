from .ablation import TaskAblation, ablate_tasks
from .category_ablation import CategoryAblation, ablate_categories
from .category_attribution import CategorySums, Enrichment, attribute_categories, enrichment
from .category_scores import CategoryScores, category_scores
from .confusion import Confusion, language_confusion, more_passes
from .dominance import own_minus_others
from .effect_change import effect_change
from .harness import HarnessScores, run_harness
from .language_lock import LanguageLock, LockSearch, lock_language
from .languages_written import (
    GeneratedLanguages,
    Guard,
    language_rates,
    natural_guard,
)
from .losses import Losses, losses_under
from .multiple_choice import choose, exact_match
from .perplexity import PerplexityMatrix
from .rates import steering_score
from .side_by_side import SideBySide, write_side_by_side
from .steered_answers import SteeredAnswers, steer_answers
from .steering import SteeringRates, steer_towards
from .task_results import Choices, Written, accuracy_table, compare_answers
from .writing import generate_texts, translate, translation_score

__all__ = [
    "CategoryAblation",
    "CategoryScores",
    "CategorySums",
    "Choices",
    "Confusion",
    "Enrichment",
    "GeneratedLanguages",
    "Guard",
    "HarnessScores",
    "LanguageLock",
    "LockSearch",
    "Losses",
    "PerplexityMatrix",
    "SideBySide",
    "SteeredAnswers",
    "SteeringRates",
    "TaskAblation",
    "Written",
    "ablate_categories",
    "ablate_tasks",
    "accuracy_table",
    "attribute_categories",
    "category_scores",
    "choose",
    "compare_answers",
    "effect_change",
    "enrichment",
    "exact_match",
    "generate_texts",
    "language_confusion",
    "language_rates",
    "lock_language",
    "losses_under",
    "more_passes",
    "natural_guard",
    "own_minus_others",
    "run_harness",
    "steer_answers",
    "steer_towards",
    "steering_score",
    "translate",
    "translation_score",
    "write_side_by_side",
]

from .ablation import TaskAblation, ablate_tasks
from .category_ablation import CategoryAblation, ablate_categories
from .category_attribution import CategorySums, Enrichment, attribute_categories, enrichment
from .dominance import own_minus_others
from .harness import HarnessScores, run_harness
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
from .steering import SteeringRates, steer_towards
from .task_results import Choices, Written, accuracy_table, compare_answers
from .writing import generate_texts, translate, translation_score

__all__ = [
    "CategoryAblation",
    "CategorySums",
    "Choices",
    "Enrichment",
    "GeneratedLanguages",
    "Guard",
    "HarnessScores",
    "Losses",
    "PerplexityMatrix",
    "SteeringRates",
    "TaskAblation",
    "Written",
    "ablate_categories",
    "ablate_tasks",
    "accuracy_table",
    "attribute_categories",
    "choose",
    "compare_answers",
    "enrichment",
    "exact_match",
    "generate_texts",
    "language_rates",
    "losses_under",
    "natural_guard",
    "own_minus_others",
    "run_harness",
    "steer_towards",
    "steering_score",
    "translate",
    "translation_score",
]

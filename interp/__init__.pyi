from . import plots, results
from .counting.collect import Keep, collect
from .counting.plan import RunPlan, plan_run
from .counting.run import Run
from .counting.stats import ActivationMoments, FiringSigns, FiringStats, SentenceMeans
from .counting.top_contexts import TopContexts, gates_around
from .evaluations.ablation import TaskAblation, ablate_tasks
from .evaluations.category_ablation import SwitchOff, switch_off
from .evaluations.category_attribution import (
    CategorySums,
    Enrichment,
    attribute_categories,
    enrichment,
)
from .evaluations.harness import HarnessScores, run_harness
from .evaluations.languages_written import (
    GeneratedLanguages,
    Guard,
    generated_languages,
    language_rates,
    natural_guard,
    steering_score,
)
from .evaluations.losses import Losses, losses_under
from .evaluations.multiple_choice import choose, exact_match
from .evaluations.perplexity import PerplexityMatrix, perplexity_matrix
from .evaluations.task_results import Choices, Written, accuracy_table, compare
from .evaluations.writing import generate_texts, translate, translation_score
from .inference.claims import Claim, load_claims, save_claims, scoreboard
from .inference.intervals import Estimate, jackknife, selection_frequency
from .interventions.bake import bake
from .interventions.edits import (
    Change,
    Edit,
    add,
    deactivate,
    difference_of_means,
    intervene,
    override,
    push,
    replace,
    scale,
    sentence_medians,
)
from .interventions.residual import residual_means
from .models.doctor import doctor
from .models.load import load, outline, wrap
from .models.neuron_model import NeuronModel
from .prompts.alignment import Source
from .prompts.attribution import (
    Attribution,
    ablation_effect,
    contribution_score,
    effective_score,
    gradient_times_activation,
    integrated_gradients,
)
from .prompts.ending import Ending
from .prompts.lens import Lens, Question, logit_lens
from .prompts.patching import PatchingResult, heads, patch
from .reports.neuron_page import NeuronPage, neuron_page
from .reports.report import Picture, Section, write_report
from .runs.jobs import crew_of
from .runs.ray import Ray
from .scores.average_precision import Precision, average_precision, measure_precision
from .scores.lape import language_entropy
from .scores.sharing import Sharing, SharingProfile, sharing_categories, sharing_profile
from .scores.token_sharing import TokenSharing, kept_over_tokens, sharing_over_tokens
from .selections.agreement import predicted_agreement, text_for_agreement, until_stable
from .selections.neuron_selection import NeuronSelection, jaccard_between
from .selections.select import select_by_entropy, select_by_precision, select_by_value_entropy
from .selections.stability import (
    Stability,
    across_runs,
    chance_jaccard,
    entropy_settings,
    measure_stability,
    without_languages,
)
from .text.corpora import Corpora
from .text.distances import listed_distances, read_distances
from .text.language_id import detect_language
from .text.languages import naming_prompt
from .text.reading import prompt_rows, read_corpora, read_sentences
from .text.sources import HubDataset, read_prompts
from .text.tasks import Item, Task, align, prompts_of, read_editing, read_task

__all__ = [
    "ActivationMoments",
    "Attribution",
    "CategorySums",
    "Change",
    "Choices",
    "Claim",
    "Corpora",
    "Edit",
    "Ending",
    "Enrichment",
    "Estimate",
    "FiringSigns",
    "FiringStats",
    "GeneratedLanguages",
    "Guard",
    "HarnessScores",
    "HubDataset",
    "Item",
    "Keep",
    "Lens",
    "Losses",
    "NeuronModel",
    "NeuronPage",
    "NeuronSelection",
    "PatchingResult",
    "PerplexityMatrix",
    "Picture",
    "Precision",
    "Question",
    "Ray",
    "Run",
    "RunPlan",
    "Section",
    "SentenceMeans",
    "Sharing",
    "SharingProfile",
    "Source",
    "Stability",
    "SwitchOff",
    "Task",
    "TaskAblation",
    "TokenSharing",
    "TopContexts",
    "Written",
    "ablate_tasks",
    "ablation_effect",
    "accuracy_table",
    "across_runs",
    "add",
    "align",
    "attribute_categories",
    "average_precision",
    "bake",
    "chance_jaccard",
    "choose",
    "collect",
    "compare",
    "contribution_score",
    "crew_of",
    "deactivate",
    "detect_language",
    "difference_of_means",
    "doctor",
    "effective_score",
    "enrichment",
    "entropy_settings",
    "exact_match",
    "gates_around",
    "generate_texts",
    "generated_languages",
    "gradient_times_activation",
    "heads",
    "integrated_gradients",
    "intervene",
    "jaccard_between",
    "jackknife",
    "kept_over_tokens",
    "language_entropy",
    "language_rates",
    "listed_distances",
    "load",
    "load_claims",
    "logit_lens",
    "losses_under",
    "measure_precision",
    "measure_stability",
    "naming_prompt",
    "natural_guard",
    "neuron_page",
    "outline",
    "override",
    "patch",
    "perplexity_matrix",
    "plan_run",
    "plots",
    "predicted_agreement",
    "prompt_rows",
    "prompts_of",
    "push",
    "read_corpora",
    "read_distances",
    "read_editing",
    "read_prompts",
    "read_sentences",
    "read_task",
    "replace",
    "residual_means",
    "results",
    "run_harness",
    "save_claims",
    "scale",
    "scoreboard",
    "select_by_entropy",
    "select_by_precision",
    "select_by_value_entropy",
    "selection_frequency",
    "sentence_medians",
    "sharing_categories",
    "sharing_over_tokens",
    "sharing_profile",
    "steering_score",
    "switch_off",
    "text_for_agreement",
    "translate",
    "translation_score",
    "until_stable",
    "without_languages",
    "wrap",
    "write_report",
]

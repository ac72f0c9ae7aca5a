from . import artifacts, plots
from .agreement import predicted_agreement, text_for_agreement, until_stable
from .alignment import Source
from .bake import bake
from .claims import Claim, load_claims, save_claims, scoreboard
from .cluster import Ray
from .collect import Wanted, collect, collect_part
from .contexts import TopContexts, gates_around
from .corpora import Corpora, prompt_rows, read_corpora, read_sentences
from .doctor import doctor
from .evaluations.category_sums import (
    CategorySums,
    Enrichment,
    attribute_categories,
    enrichment,
)
from .evaluations.controls import naming_prompt, residual_means
from .evaluations.generation import (
    GeneratedLanguages,
    Guard,
    generated_languages,
    language_rates,
    natural_guard,
    steering_score,
)
from .evaluations.harness import HarnessScores, run_harness
from .evaluations.losses import Losses, losses_under
from .evaluations.perplexity import PerplexityMatrix, perplexity_matrix
from .evaluations.switch_off import SwitchOff, switch_off
from .evaluations.task_files import Item, Task, align, prompts_of, read_editing, read_task
from .evaluations.task_results import Choices, Written, accuracy_table, compare
from .evaluations.tasks import choose, exact_match
from .evaluations.writing import generate_texts, translate, translation_score
from .hygiene import detect_language
from .interventions import (
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
from .lens import Lens, Question, logit_lens
from .loading import load, outline, wrap
from .model import NeuronModel
from .page import NeuronPage, neuron_page
from .patching import PatchingResult, heads, patch
from .pieces import crew_of
from .plan import RunPlan, plan_run
from .report import Picture, Section, write_report
from .run_folder import Survey, look, merge, open_sentence_means, survey
from .scores.attribution import (
    Attribution,
    ablation_effect,
    contribution_score,
    effective_score,
    gradient_times_activation,
    integrated_gradients,
)
from .scores.average_precision import Precision, average_precision, measure_precision
from .scores.distances import listed_distances, read_distances
from .scores.lape import language_entropy
from .scores.sharing import Sharing, SharingProfile, sharing_categories, sharing_profile
from .scores.sharing_tokens import TokenSharing, kept_over_tokens, sharing_over_tokens
from .selection import (
    NeuronSelection,
    jaccard_between,
    select_by_entropy,
    select_by_precision,
    select_by_value_entropy,
)
from .stability import (
    Stability,
    across_runs,
    chance_jaccard,
    entropy_settings,
    measure_stability,
    without_languages,
)
from .stats import ActivationMoments, FiringSigns, FiringStats, SentenceMeans
from .texts import HubDataset, read_prompts
from .uncertainty import Estimate, jackknife, selection_frequency
from .whatif import Ending

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
    "RunPlan",
    "Section",
    "SentenceMeans",
    "Sharing",
    "SharingProfile",
    "Source",
    "Stability",
    "Survey",
    "SwitchOff",
    "Task",
    "TokenSharing",
    "TopContexts",
    "Wanted",
    "Written",
    "ablation_effect",
    "accuracy_table",
    "across_runs",
    "add",
    "align",
    "artifacts",
    "attribute_categories",
    "average_precision",
    "bake",
    "chance_jaccard",
    "choose",
    "collect",
    "collect_part",
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
    "look",
    "losses_under",
    "measure_precision",
    "measure_stability",
    "merge",
    "naming_prompt",
    "natural_guard",
    "neuron_page",
    "open_sentence_means",
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
    "survey",
    "switch_off",
    "text_for_agreement",
    "translate",
    "translation_score",
    "until_stable",
    "without_languages",
    "wrap",
    "write_report",
]

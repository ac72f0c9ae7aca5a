"""Which neurons of a multilingual language model belong to a language, and what they do."""

from interp import artifacts
from interp.bake import bake
from interp.collect import Wanted, collect, collect_part, look, merge, open_sentence_means
from interp.corpora import Corpora, prompt_rows, read_corpora, read_sentences
from interp.doctor import doctor
from interp.evaluations.controls import naming_prompt, residual_means
from interp.evaluations.generation import (
    GeneratedLanguages,
    Guard,
    generated_languages,
    language_rates,
    natural_guard,
    steering_score,
)
from interp.evaluations.losses import Losses, losses_under
from interp.evaluations.perplexity import PerplexityMatrix, perplexity_matrix
from interp.evaluations.writing import generate_texts, translate, translation_score
from interp.hygiene import detect_language
from interp.interventions import (
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
from interp.model import NeuronModel, load, wrap
from interp.scores.attribution import (
    Attribution,
    ablation_effect,
    contribution_score,
    effective_score,
    gradient_times_activation,
    integrated_gradients,
)
from interp.scores.average_precision import average_precision
from interp.scores.lape import language_entropy
from interp.scores.sharing import Sharing, SharingProfile, sharing_categories, sharing_profile
from interp.selection import (
    NeuronSelection,
    jaccard_between,
    predicted_agreement,
    select_by_entropy,
    text_for_agreement,
    until_stable,
)
from interp.stats import ActivationMoments, FiringSigns, FiringStats, SentenceMeans
from interp.texts import HubDataset, read_prompts
from interp.uncertainty import Estimate, jackknife, selection_frequency
from interp.whatif import Ending

__all__ = [
    "ActivationMoments",
    "Attribution",
    "Corpora",
    "Edit",
    "Ending",
    "Estimate",
    "FiringSigns",
    "FiringStats",
    "GeneratedLanguages",
    "Guard",
    "HubDataset",
    "Losses",
    "NeuronModel",
    "NeuronSelection",
    "PerplexityMatrix",
    "SentenceMeans",
    "Sharing",
    "SharingProfile",
    "Wanted",
    "ablation_effect",
    "add",
    "artifacts",
    "average_precision",
    "bake",
    "collect",
    "collect_part",
    "contribution_score",
    "deactivate",
    "detect_language",
    "difference_of_means",
    "doctor",
    "effective_score",
    "generate_texts",
    "generated_languages",
    "gradient_times_activation",
    "integrated_gradients",
    "intervene",
    "jaccard_between",
    "jackknife",
    "language_entropy",
    "language_rates",
    "load",
    "look",
    "losses_under",
    "merge",
    "naming_prompt",
    "natural_guard",
    "open_sentence_means",
    "override",
    "perplexity_matrix",
    "predicted_agreement",
    "prompt_rows",
    "push",
    "read_corpora",
    "read_prompts",
    "read_sentences",
    "replace",
    "residual_means",
    "scale",
    "select_by_entropy",
    "selection_frequency",
    "sentence_medians",
    "sharing_categories",
    "sharing_profile",
    "steering_score",
    "text_for_agreement",
    "translate",
    "translation_score",
    "until_stable",
    "wrap",
]

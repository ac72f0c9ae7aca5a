from . import (
    counting,
    evaluations,
    inference,
    interventions,
    models,
    plots,
    prompts,
    reports,
    results,
    runs,
    scores,
    selections,
    text,
)
from .counting.collect import collect
from .counting.keep import Keep
from .counting.run import Run
from .counting.sentence_means import SentenceMeans
from .counting.signs import FiringSigns
from .counting.stats import ActivationMoments, FiringStats
from .evaluations.languages_written import generated_languages
from .evaluations.perplexity import perplexity_matrix
from .inference.intervals import Estimate, jackknife
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
)
from .models.doctor import doctor
from .models.load import load, wrap
from .models.neuron_model import NeuronModel
from .prompts.attribution import integrated_gradients
from .prompts.lens import logit_lens
from .prompts.patching import patch
from .reports.neuron_page import neuron_page
from .reports.report import write_report
from .scores.average_precision import average_precision, measure_precision
from .scores.lape import language_entropy
from .scores.sharing import Sharing, sharing_categories
from .scores.sharing_profile import sharing_profile
from .selections.neuron_selection import NeuronSelection
from .selections.select import select_by_entropy, select_by_precision, select_by_value_entropy
from .text.corpora import Corpora
from .text.language_id import detect_language
from .text.reading import read_corpora, read_sentences
from .text.sources import read_prompts
from .text.tasks import read_task

__all__ = [
    "ActivationMoments",
    "Change",
    "Corpora",
    "Edit",
    "Estimate",
    "FiringSigns",
    "FiringStats",
    "Keep",
    "NeuronModel",
    "NeuronSelection",
    "Run",
    "SentenceMeans",
    "Sharing",
    "add",
    "average_precision",
    "bake",
    "collect",
    "counting",
    "deactivate",
    "detect_language",
    "difference_of_means",
    "doctor",
    "evaluations",
    "generated_languages",
    "inference",
    "integrated_gradients",
    "intervene",
    "interventions",
    "jackknife",
    "language_entropy",
    "load",
    "logit_lens",
    "measure_precision",
    "models",
    "neuron_page",
    "override",
    "patch",
    "perplexity_matrix",
    "plots",
    "prompts",
    "push",
    "read_corpora",
    "read_prompts",
    "read_sentences",
    "read_task",
    "replace",
    "reports",
    "results",
    "runs",
    "scale",
    "scores",
    "select_by_entropy",
    "select_by_precision",
    "select_by_value_entropy",
    "selections",
    "sharing_categories",
    "sharing_profile",
    "text",
    "wrap",
    "write_report",
]

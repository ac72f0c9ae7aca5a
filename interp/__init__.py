"""Which neurons of a multilingual language model belong to a language, and what they do."""

from interp import artifacts
from interp.collect import Wanted, collect, collect_part, look, merge, open_sentence_means
from interp.corpora import Corpora, prompt_rows, read_corpora, read_sentences
from interp.doctor import doctor
from interp.hygiene import detect_language
from interp.model import NeuronModel, load, wrap
from interp.scores.lape import language_entropy
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

__all__ = [
    "ActivationMoments",
    "Corpora",
    "Estimate",
    "FiringSigns",
    "FiringStats",
    "HubDataset",
    "NeuronModel",
    "NeuronSelection",
    "SentenceMeans",
    "Wanted",
    "artifacts",
    "collect",
    "collect_part",
    "detect_language",
    "doctor",
    "jaccard_between",
    "jackknife",
    "language_entropy",
    "load",
    "look",
    "merge",
    "open_sentence_means",
    "predicted_agreement",
    "prompt_rows",
    "read_corpora",
    "read_prompts",
    "read_sentences",
    "select_by_entropy",
    "selection_frequency",
    "text_for_agreement",
    "until_stable",
    "wrap",
]

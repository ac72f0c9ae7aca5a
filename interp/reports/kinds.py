"""The kinds of tables that runs write: how a report explains and draws each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError, safe_open

from interp import plots
from interp.evaluations.category_attribution import CategorySums
from interp.evaluations.perplexity import PerplexityMatrix
from interp.evaluations.steered_answers import SteeredAnswers
from interp.plots.files import Draw
from interp.prompts.lens import Lens
from interp.prompts.patching_result import PatchingResult
from interp.reports import rows
from interp.reports.findings import of_matrix, of_rates, of_tasks
from interp.scores.sharing_profile import SharingProfile
from interp.selections.explanation import Explanation


@dataclass(frozen=True)
class TableKind:
    """A kind of table, identified by the result stored next to it, or else by its file name."""

    title: str
    """The question."""

    text: str
    """What was asked, and how to read the figure."""

    files: tuple[str, ...]
    """File names of the table, if no result is stored next to it; * stands for anything."""

    columns: tuple[str, ...]
    """Columns it must have in that case: other kinds of tables have the same file names."""

    draw: Draw
    """The figure."""

    caption: str
    """What the figure shows."""

    result: str = ""
    """The kind of result in the .safetensors of the same name; empty: there is no such file."""

    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame
    """The rows that are drawn."""

    more: tuple[tuple[Draw, str, Callable[[pd.DataFrame], pd.DataFrame]], ...] = ()
    """Further figures of the same table: each with its caption and the rows that are drawn."""

    texts: bool = False
    """Whether a texts.csv next to it holds the texts that were written."""

    finding: Callable[[pd.DataFrame], str] = lambda frame: ""
    """What the rows say, in a sentence; empty: they say too much for one."""

    labels: tuple[str, ...] = ("language", "read")
    """Columns of labels, as far as there are: if one is no language, the section says label."""


# ---------------------------------------------------------------- the kinds

KINDS = (
    TableKind(
        "A language's neurons off: which language suffers?",
        "Each language's neurons are switched off in turn, and the loss is measured on every "
        "language. If the neurons are specific to their language, its own loss rises most, and as "
        "many random neurons in every layer change almost nothing.",
        ("matrix.csv",),
        ("off", "read", "increase", "increase_low", "random", "own"),
        plots.perplexity_matrix,
        "Increase in loss, in nats per token, by neurons off (rows, with their number) and "
        "language read (columns), with half of the 95 % interval over documents. Framed: the "
        "language itself; next to it, as many random neurons, read on the same language. In a "
        "matrix without numbers, a dash is below zero.",
        result=PerplexityMatrix.kind,
        finding=of_matrix,
    ),
    TableKind(
        "How many neurons does it take?",
        "The same for selections of several sizes: how much more the loss of a language rises "
        "without its neurons than the loss of the others.",
        ("table.csv",),
        ("fraction", "language", "own_minus_others", "largest_in_row", "p_of_all"),
        plots.loss_against_fraction,
        "Increase in a language's own loss minus the mean increase of the others, in nats per "
        "token, with 95 % intervals over documents, against the share of neurons selected.",
    ),
    TableKind(
        "Can the language that is written be switched?",
        "The model writes texts with a language's neurons changed. Controls: the unedited model, "
        "random neurons, a prompt that names the language, and steering of the residual stream. "
        "A text counts as good if it is long enough, does not repeat itself, has its words in "
        "order, and is as likely under the unedited model as natural text.",
        ("rates.csv",),
        ("language", "texts", "rate", "good", "to", "condition"),
        plots.language_switching,
        "Share of texts that are in the language asked for (hollow), and of those also good "
        "(filled), with 95 % intervals.",
        texts=True,
        finding=of_rates,
        rows=rows.checked,
        labels=(),  # what is detected in texts is a language
    ),
    TableKind(
        "Can the language that is written be switched?",
        "Texts written with several methods of switching the language, each at its best setting "
        "on other texts.",
        ("final.csv",),
        ("way", "setting", "to", "rate", "good", "natural_loss"),
        plots.language_switching,
        "Share of texts that are in the language asked for (hollow), and of those also good "
        "(filled), with 95 % intervals.",
        texts=True,
    ),
    TableKind(
        "Can answers be steered to another language, and do they still answer?",
        "Questions in one language are answered in another, with several ways of steering: how "
        "many answers are in the language steered to (forcing), how relevant they are to the "
        "question by a judge (relevance), and the harmonic mean of the two (score).",
        ("answers.csv",),
        (
            *("to", "condition", "answers", "forcing", "forcing_low", "forcing_high"),
            *("relevance", "relevance_low", "relevance_high"),
            *("score", "score_low", "score_high"),
        ),
        plots.method_comparison,
        "Share of answers in the language steered to, mean relevance and their harmonic mean, "
        "with 95 % intervals over questions; strokes: without an edit.",
        result=SteeredAnswers.kind,
        rows=rows.answers,
    ),
    TableKind(
        "Which neurons do the languages share?",
        "At the last token of each prompt a neuron is all shared if it fires in every language, "
        "partly shared in some, specific in one, silent in none. How many are shared depends on "
        "how often neurons fire and on the number of languages, so each share is compared with "
        "what firing rates alone would give.",
        ("profile.csv",),
        ("layer", "category", "share", "independent", "interchangeable"),
        plots.sharing,
        "Share of a layer's neurons in each category, mean over prompts with 95 % intervals. "
        "Dashed: firing independent between languages, at the same rates; dotted: neurons "
        "interchangeable as well.",
        result=SharingProfile.kind,
    ),
    TableKind(
        "Which neurons carry the answer?",
        "Integrated gradients of the answer's first token, for every neuron at the last token of "
        "the prompt, summed by category of sharing. A layer's sums add up to the layer's "
        "contribution to the answer.",
        ("sums.csv",),
        ("language", "layer", "category", "value", "change", "quantity"),
        plots.attribution_sums,
        "Contribution of each category's neurons to the answer, mean over languages; strokes "
        "show the range over languages. Categories differ much in size, see the numbers.",
        result=CategorySums.kind,
    ),
    TableKind(
        "What does a task lose with a language's neurons off?",
        "Task accuracy with each language's neurons off, compared with the unedited model and "
        "with as many random neurons off in every layer.",
        ("evaluate.csv",),
        ("task", "language", "off", "accuracy", "drop", "random"),
        plots.accuracy_lost,
        "Loss of accuracy, paired over items, with 95 % intervals; hollow: random neurons.",
        finding=of_tasks,
        labels=("language", "off"),
    ),
    TableKind(
        "What language does each layer speak?",
        "The state of every layer at the end of the prompt is read out as if it were the last "
        "layer's (logit lens): how probable is the answer in each language?",
        ("lens.csv",),
        ("layer", "language", "probability", "low", "high", "entropy", "unspelled"),
        plots.lens,
        "Probability that a layer gives to the answer in each language, mean over prompts with "
        "95 % intervals.",
        result=Lens.kind,
        rows=rows.first_facts,
    ),
    TableKind(
        "What moves with the activations of another prompt?",
        "Activations of one prompt are patched into another, layer by layer: how does its answer "
        "change?",
        ("patch.csv",),
        ("source", "part", "layer", "place", "span", "answer", "change", "extent"),
        plots.patching,
        "Change of each answer's log-probability in nats, or of a metric, by layer; without color: "
        "no change. In a matrix without numbers, a dash is below zero.",
        result=PatchingResult.kind,
    ),
    TableKind(
        "Do concept and language move apart?",
        "Activations of a prompt about one thing in one language are patched into a prompt about "
        "another thing in another language: how much of the concept is transferred, and how much "
        "of the language?",
        ("moved-told.csv", "moved-held_out.csv"),
        ("row", "layer", "moved", "low", "high"),
        plots.moved_by_layer,
        "Share of the concept and of the language transferred from the source, by layer, with "
        "half of the 95 % interval; without color: nothing. At the last token one layer is "
        "patched, at the subject all from that layer on.",
    ),
    TableKind(
        "Which method is best?",
        "Methods of finding language neurons, all at the same size, by several measures.",
        ("comparison.csv",),
        ("method", "measure", "value", "low", "high", "control"),
        plots.method_comparison,
        "Each measure with its 95 % interval, next to its control; every measure has its own "
        "scale.",
    ),
    TableKind(
        "How much text does a selection need?",
        "The same method on other text: how many of the neurons are selected again?",
        ("stability.csv",),
        ("method", "tokens", "jaccard", "low", "high", "chance"),
        plots.stability_against_tokens,
        "Jaccard index of selections from different texts, with 95 % intervals, against the "
        "tokens read; dotted: chance level.",
    ),
    TableKind(
        "Which neurons depend on the text that was read?",
        "Neurons are selected again from half of the text, without one of its shards, and with "
        "other settings: how many are the same?",
        ("*.csv",),
        ("change", "language", "jaccard", "low", "high", "chance", "most"),
        plots.method_comparison,
        "Jaccard index of each language's neurons with those selected again (panels: what "
        "changed; what leaving out a language changes is in the table), with 95 % intervals; "
        "strokes: chance level.",
        rows=rows.stable,
    ),
    TableKind(
        "Do selections agree?",
        "Neurons of the same language in the first selection and in another: how many are in both?",
        ("*.csv",),
        ("a", "b", "language", "neurons_a", "neurons_b", "both", "jaccard", "chance"),
        plots.method_comparison,
        "Jaccard index of each language's neurons in the first selection and in another (panels); "
        "strokes: that of random sets of as many neurons in every layer.",
        rows=rows.pairs,
    ),
    TableKind(
        "In which layers and languages do two models differ?",
        "The firing rates of the same neurons in two models of one shape: how far are they apart, "
        "and further for the neurons that either selects for a language?",
        ("*-neurons.csv",),
        ("language", "layer", "neuron", "before", "after", "change", "change_low", "change_high"),
        plots.rate_change,
        "Difference between the firing rates of a neuron in the two models, in points of %, mean "
        "over neurons and labels, and over those of each selection (A: of the first run, B: of the "
        "second); dotted: what equal rates would seem to differ by, given how much text was read.",
        rows=rows.by_layer,
        more=(
            (
                plots.rate_change_by_label,
                "Root mean square difference between the firing rates of a neuron in the two "
                "models, by language and layer, in points of %; white: no more than equal rates "
                "would seem to differ by, given how much text was read.",
                rows.by_label,
            ),
        ),
    ),
    TableKind(
        "Whose neurons matter more in one of two models?",
        "Each model's own neurons of a language are switched off: how much does the loss of that "
        "language rise in either model?",
        ("*-effects.csv",),
        ("language", "before", "after", "change", "change_low", "change_high"),
        plots.method_comparison,
        "Increase in a language's loss with its own neurons off, in nats per token, in the two "
        "models (A: of the first run, B: of the second), and the difference with its 95 % interval "
        "over documents; strokes: in model A, and no difference.",
        rows=rows.effects,
    ),
    TableKind(
        "What will a run cost?",
        "Memory and disk that `interp collect` will need, from the model's config and the amount "
        "of text.",
        ("*.csv",),
        ("quantity", "value", "unit", "from"),
        plots.method_comparison,
        "Sizes in memory and on disk, in GB (10⁹ bytes).",
        rows=rows.sizes,
    ),
    TableKind(
        "What does it cost to keep answers in one language?",
        "The fewest neurons that keep answers in their language are switched off, and as many "
        "random ones: what changes, in the answers, in the loss, in tasks?",
        ("price.csv",),
        ("measure", "under", "difference", "difference_low", "difference_high"),
        plots.method_comparison,
        "Change from the unedited model, with 95 % intervals; every measure has its own scale.",
        rows=rows.price,
    ),
    TableKind(
        "Do neurons follow a language, or its script, its word order, its words?",
        "A label's text is rewritten so that one thing is taken from it, and its neurons are "
        "selected anew with the thresholds of the text as it is: how many stay?",
        ("explanation.csv",),
        ("language", "without", "kept", "kept_low", "kept_high", "random"),
        plots.explanation,
        "Percentage of a label's neurons (rows) that stay without an aspect of its text (columns), "
        "with half of the 95 % interval over documents; in italics: of as many random neurons.",
        result=Explanation.kind,
    ),
    TableKind(
        "In which layers are experts chosen by label?",
        "In every layer of a mixture of experts, how far do labels differ in the experts that are "
        "chosen for them? With labels drawn anew for all shards, what is left is chance.",
        ("routing.csv",),
        (
            "layer",
            "divergence",
            "divergence_low",
            "divergence_high",
            "shuffled",
            "shuffled_highest",
        ),
        plots.routing,
        "Jensen-Shannon divergence of the experts chosen for each label, in nats, with 95 % "
        "intervals over documents; dashed: mean of shuffled labels, dotted: their highest.",
    ),
    TableKind(
        "Which experts are a label's own?",
        "A panel for each label, a row for each layer of a mixture of experts, a column for each "
        "expert: is it chosen more often for this label than for the labels on average?",
        ("experts.csv",),
        ("language", "layer", "expert", "preference", "preference_low", "preference_high"),
        plots.chosen_experts,
        "Share of a label's choices that fall on each expert less the mean share of all labels, in "
        "percentage points; white: the 95 % interval over documents contains zero.",
    ),
)
"""In the order of a report."""


def kind_of(file: Path, frame: pd.DataFrame) -> TableKind | None:
    """The kind of a table in a file; None: of no kind that runs write, or without rows."""
    stored = header_of(file).get("kind")
    for kind in KINDS:
        named = any(fnmatchcase(file.name, name) for name in kind.files)
        named = named and set(kind.columns) <= set(frame.columns)
        if len(frame) and (named if stored is None else stored == kind.result):
            return kind
    return None


def header_of(file: Path) -> dict[str, str]:
    """The metadata of the .safetensors of the same name; empty: there is no such file."""
    stored = file.with_suffix(".safetensors")
    if not stored.is_file():
        return {}
    try:
        with safe_open(stored, "pt") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{stored} is damaged ({error}): copy it again or recreate it.") from None

"""What a report says of each kind of table that a run leaves, and how it is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError, safe_open

from interp import plots
from interp.evaluations.category_attribution import CategorySums
from interp.evaluations.perplexity import PerplexityMatrix
from interp.plots.files import Draw
from interp.plots.style import Table
from interp.prompts.lens import Lens
from interp.prompts.patching_result import PatchingResult
from interp.scores.sharing_profile import SharingProfile


@dataclass(frozen=True)
class TableKind:
    """A kind of table: what a result stored beside it says that it is, or else its file's name."""

    title: str
    """The question."""

    text: str
    """What was asked, and how to read the figure."""

    files: tuple[str, ...]
    """What the table is called where no result is stored beside it."""

    columns: tuple[str, ...]
    """What it must have there: studies call tables of other kinds by the same name."""

    draw: Draw
    """The figure."""

    caption: str
    """What the figure shows."""

    result: str = ""
    """What the .safetensors of the same name holds; empty: such tables come without one."""

    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame
    """The rows that are drawn."""

    texts: bool = False
    """Whether texts.csv beside it holds what was written."""


# ---------------------------------------------------------------- rows that are drawn


def _steered(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of rates.csv that ask for the language that was steered to."""
    table: Table = frame
    rows = table[table["language"] == table["to"]]
    return rows.assign(way=rows["condition"], setting="").reset_index(drop=True)


def _first_facts(frame: pd.DataFrame) -> pd.DataFrame:
    """Of a table that also has some of the facts alone, the rows of all facts, which are first."""
    table: Table = frame
    return table[table["facts"] == table["facts"].iloc[0]] if "facts" in table else table


# ---------------------------------------------------------------- the kinds

KINDS = (
    TableKind(
        "A language's neurons off: which language suffers?",
        "Each language's neurons are switched off in turn, and every language is read. If they "
        "are the language's own, its loss rises most, and as many random neurons in every layer "
        "do next to nothing.",
        ("matrix.csv",),
        ("off", "read", "increase", "increase_low", "random", "own"),
        plots.perplexity_matrix,
        "Rise of the loss in nats per token, by neurons off (rows) and language read (columns), "
        "with half of the 95 % interval over documents. Framed: the language itself; beside it "
        "as many random neurons, read on the same language.",
        result=PerplexityMatrix.kind,
    ),
    TableKind(
        "How many neurons does it take?",
        "The same at several sizes of the sets: what a language's neurons cost it beyond what "
        "they cost the others.",
        ("table.csv",),
        ("fraction", "language", "own_minus_others", "largest_in_row", "p_of_all"),
        plots.loss_against_fraction,
        "Rise of a language's own loss less the mean rise of the others, in nats per token, with "
        "95 % intervals over documents, against the share of all neurons that were selected.",
    ),
    TableKind(
        "Can the language that is written be switched?",
        "The model writes texts with a language's neurons changed; beside it the untouched "
        "model, random neurons, a prompt that names the language, and a push of the residual "
        "stream. A text counts as good if it is long enough, does not repeat itself, and is as "
        "likely for the untouched model as natural text is.",
        ("rates.csv",),
        ("language", "texts", "rate", "good", "to", "condition"),
        plots.language_switching,
        "Share of texts that are in the language asked for (hollow), and of those also good "
        "(filled), with 95 % intervals.",
        rows=_steered,
        texts=True,
    ),
    TableKind(
        "Can the language that is written be switched?",
        "Texts written under several ways of asking for a language, each at the setting that did "
        "best on other texts.",
        ("final.csv",),
        ("way", "setting", "to", "rate", "good", "natural_loss"),
        plots.language_switching,
        "Share of texts that are in the language asked for (hollow), and of those also good "
        "(filled), with 95 % intervals.",
        texts=True,
    ),
    TableKind(
        "Which neurons do the languages share?",
        "At the last token of each prompt a neuron is all shared if it fires in every language, "
        "partly shared in some, specific in one, silent in none. How many are shared depends on "
        "how often neurons fire and on the number of languages; so beside each share stands what "
        "firing rates alone would give.",
        ("profile.csv",),
        ("layer", "category", "share", "independent", "interchangeable"),
        plots.sharing,
        "Share of a layer's neurons in each category, mean over prompts with 95 % intervals. "
        "Dashed: languages that fire independently at the same rates; dotted: also all neurons "
        "alike.",
        result=SharingProfile.kind,
    ),
    TableKind(
        "Which neurons carry the answer?",
        "Integrated gradients of the answer's first token, for every neuron at the last token of "
        "the prompt, summed by category of sharing. A layer's sums add up to what the layer does "
        "for the answer.",
        ("sums.csv",),
        ("language", "layer", "category", "value", "change", "quantity"),
        plots.attribution_sums,
        "What the neurons of each category give to the answer, mean over languages; strokes "
        "reach from the least to the largest language. Categories differ much in size, see the "
        "numbers.",
        result=CategorySums.kind,
    ),
    TableKind(
        "What does a task lose with a language's neurons off?",
        "Tasks with each language's neurons off, with nothing changed, and with as many random "
        "neurons off in every layer.",
        ("evaluate.csv",),
        ("task", "language", "off", "accuracy", "drop", "random"),
        plots.accuracy_lost,
        "Accuracy lost, paired over items, with 95 % intervals; hollow: random neurons.",
    ),
    TableKind(
        "What language does each layer speak?",
        "The state of every layer at the end of the prompt is read out as if it were the last "
        "one: how probable is the answer, in each language?",
        ("lens.csv",),
        ("layer", "language", "probability", "low", "high", "entropy", "unspelled"),
        plots.lens,
        "Probability that a layer gives to the answer in each language, mean over prompts with "
        "95 % intervals.",
        result=Lens.kind,
        rows=_first_facts,
    ),
    TableKind(
        "What moves with the activations of another prompt?",
        "Activations of one prompt are put into another, layer by layer: what would it answer?",
        ("patch.csv",),
        ("source", "part", "layer", "place", "span", "answer", "change", "extent"),
        plots.patching,
        "Change of each answer's log-probability in nats, by layer; without color: no change.",
        result=PatchingResult.kind,
    ),
    TableKind(
        "Do concept and language move apart?",
        "Activations of a prompt about one thing in one language are put into a prompt about "
        "another thing in another language: how much of the concept comes over, how much of the "
        "language?",
        ("moved-told.csv", "moved-held_out.csv"),
        ("row", "layer", "moved", "low", "high"),
        plots.moved_by_layer,
        "Share of the concept and of the language that comes over from the source, by layer, "
        "with half of the 95 % interval; without color: nothing.",
    ),
    TableKind(
        "Which method is best?",
        "Ways of finding language neurons, all at the same size, by several measures.",
        ("comparison.csv",),
        ("method", "measure", "value", "low", "high", "control"),
        plots.method_comparison,
        "Each measure with its 95 % interval, and the control beside it; every measure has a "
        "scale of its own.",
    ),
    TableKind(
        "How much text does a selection need?",
        "The same selection from other text: how many of the neurons come back?",
        ("stability.csv",),
        ("method", "tokens", "jaccard", "low", "high", "chance"),
        plots.stability_against_tokens,
        "Jaccard of selections from different text, with 95 % intervals, against the tokens "
        "read; dotted: what chance gives.",
    ),
)
"""In the order in which a report tells them."""


def kind_of(file: Path, frame: pd.DataFrame) -> TableKind | None:
    """The kind of a table in a file; None: no run leaves such a table, or it has no rows."""
    stored = header_of(file).get("kind")
    for kind in KINDS:
        named = file.name in kind.files and set(kind.columns) <= set(frame.columns)
        if len(frame) and (named if stored is None else stored == kind.result):
            return kind
    return None


def header_of(file: Path) -> dict[str, str]:
    """What the .safetensors of a file's name says of itself; empty: there is none."""
    stored = file.with_suffix(".safetensors")
    if not stored.is_file():
        return {}
    try:
        with safe_open(stored, "pt") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{stored} is damaged ({error}): copy it again or make it anew.") from None

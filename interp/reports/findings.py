"""What results say, in a sentence made from their numbers; and what a report begins with."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from interp.evaluations.perplexity import PerplexityMatrix
from interp.plots.style import Table
from interp.reports.report import Section
from interp.results.words import NOTHING
from interp.selections.neuron_selection import NeuronSelection
from interp.text.languages import label_name

if TYPE_CHECKING:
    from interp.inference.intervals import Estimate

CERTAINTY = "How sure is this?"


def own_and_others(frame: pd.DataFrame) -> tuple[float, float, float]:
    """Mean increases of a perplexity matrix: on the language itself, on the others, and on the
    language itself with random neurons. Sets without neurons are left out; NaN: there is none."""
    table: Table = frame
    edited = table[table["off"] != NOTHING]
    if "neurons" in edited:
        edited = edited[edited["neurons"] != 0]
    own = edited["own"].astype(bool)
    of_languages = edited["off"].isin(edited.loc[own, "off"])  # other rows have no own language
    more = edited["increase"]
    return more[own].mean(), more[of_languages & ~own].mean(), edited.loc[own, "random"].mean()


def of_matrix(frame: pd.DataFrame, matrix: PerplexityMatrix | None = None) -> str:
    """How much the loss rises with a language's neurons off; with the matrix, also whether more on
    the language itself. Empty: no language was read with its own neurons off."""
    own, others, random = own_and_others(frame)
    if pd.isna(own):
        return ""
    off = "off" if matrix is None or set(matrix.edit) == {"deactivate"} else "edited"
    verb = "rises" if own > 0 else "changes"
    parts = [f"With a language's neurons {off}, the loss on that language {verb} by {own:.2g} nats"]
    parts[0] += " per token on average"
    if not pd.isna(others):
        parts.append(f"on the other languages by {others:.2g}")
    if not pd.isna(random):
        parts.append(f"and with as many random neurons {off} by {random:.2g}")
    unclear = False
    if matrix is not None and len(matrix.compared) > 1:
        unclear = not matrix.diagonal().mean.low.item() > 0
    doubt = " Whether it rises more on that language than on others, this text does not tell."
    return f"{', '.join(parts)}.{doubt if unclear else ''}"


def of_matrix_test(matrix: PerplexityMatrix) -> str:
    """The test of the diagonal, in a sentence; empty: there are no two languages to compare."""
    return " ".join(matrix.diagonal().in_words) if len(matrix.compared) > 1 else ""


def of_rates(frame: pd.DataFrame) -> str:
    """How often texts come out in the language asked for, by condition, the neurons first."""
    rates: Table = frame
    own = rates[rates["language"] == rates["to"]]
    named = own.groupby("condition", sort=False)[["rate", "good"]].mean()
    if "neurons" not in named.index:
        return ""
    rate, good = named.loc["neurons"]
    others = ", ".join(
        f"{_CONDITIONS.get(str(name), str(name))} {100 * row['good']:.0f} %"
        for name, row in named.iterrows()
        if name != "neurons"
    )
    sentence = (
        f"Pushed by a language's neurons, {100 * rate:.0f} % of texts are in that language, and "
        f"{100 * good:.0f} % are good text too"
    )
    return f"{sentence}; {others}." if others else f"{sentence}."


_CONDITIONS = {
    "no edit": "without an edit",
    "named in prompt": "with the language named in the prompt",
    "residual stream": "with a push of the residual stream",
    "random neurons": "with random neurons",
    "neurons that fire alike": "with neurons that fire alike",
}


def of_selection(selection: NeuronSelection) -> str:
    """How many neurons belong to a language, whose they are, and where most of them lie."""
    union = selection.union()
    if not (found := int(union.sum())):
        return f"None of {union.numel():,} neurons belongs to a language."
    counts = selection.counts()
    most, fewest = max(counts, key=lambda code: counts[code]), min(counts, key=lambda c: counts[c])
    sentence = f"{found:,} of {union.numel():,} neurons belong to {_labels(counts)}"
    if len(counts) > 1 and counts[most] > counts[fewest]:
        sentence += f", most to {label_name(most)} ({counts[most]:,}), fewest to "
        sentence += f"{label_name(fewest)} ({counts[fewest]:,})"
    layers = union.sum(dim=1)
    layer = int(layers.argmax())
    return f"{sentence}; {100 * layers[layer].item() / found:.0f} % of them are in layer {layer}."


def _labels(counts: dict[str, int]) -> str:
    return label_name(next(iter(counts))) if len(counts) == 1 else f"{len(counts)} labels"


def of_kept(kept: dict[str, float]) -> str:
    """How often neurons are selected again, from the share of each language's; NaN: it has none."""
    shares = {code: share for code, share in kept.items() if not math.isnan(share)}
    if not shares:
        return ""
    least = min(shares, key=lambda code: shares[code])
    return (
        f"Without one group of documents, {min(shares.values()):.2f} to {max(shares.values()):.2f} "
        f"of a language's neurons are selected again, least of {label_name(least)}."
    )


def of_rate(rate: "Estimate", codes: Sequence[str]) -> str:
    """On how many tokens neurons fire, from the language with the fewest to that with the most."""
    by_language = dict(zip(codes, rate.value.tolist(), strict=True))
    least, *_, most = [*sorted(codes, key=lambda code: by_language[code])] * 2
    first, last = (f"{100 * by_language[code]:.1f} %" for code in (least, most))
    if first == last:
        return f"A neuron fires on {first} of tokens on average."
    return (
        f"A neuron fires on {first} ({label_name(least)}) to {last} ({label_name(most)}) of tokens "
        "on average."
    )


def of_tasks(frame: pd.DataFrame) -> str:
    """What a language's neurons cost in tasks of that language, and of the others."""
    keys = ["task", "language"]
    table: Table = frame
    is_edited = table["off"] != NOTHING
    untouched = table[~is_edited].set_index(keys)["accuracy"].rename("untouched")
    edited = table[is_edited].join(untouched, on=keys)
    own = edited["off"] == edited["language"]
    if not own.any():
        return ""
    lost = (edited["untouched"] - edited["random"])[own].mean()
    parts = [
        "With a language's neurons off, accuracy on tasks in that language falls by "
        f"{100 * edited.loc[own, 'drop'].mean():.2g} points on average"
    ]
    if (~own).any():
        parts.append(f"in other languages by {100 * edited.loc[~own, 'drop'].mean():.2g}")
    if not pd.isna(lost):
        parts.append(f"and with as many random neurons off by {100 * lost:.2g}")
    return f"{', '.join(parts)}."


# ---------------------------------------------------------------- a report's first screen


def leading(
    sections: Sequence[Section], order: Sequence[str]
) -> tuple[Section | None, list[Section]]:
    """The finding that a report begins with, with its figure, and the sections without these.

    `order` are titles, the most telling first; a section of another title leads only where none of
    these has both. None: no section has a finding.
    """
    told = [section for section in sections if section.finding]
    if not told:
        return None, list(sections)
    rank = {title: place for place, title in enumerate(order)}
    first = min(told, key=lambda section: rank.get(section.title, len(rank)))
    finding, *others = first.finding.split("\n\n")
    shown = Section(first.title, pictures=first.pictures[:1], finding=finding)
    text = f"{first.text}\n\nFigure 1, at the top, shows this." if first.pictures else first.text
    rest = "\n\n".join(others)
    without = replace(first, finding=rest, text=text, pictures=first.pictures[1:])
    return shown, [without if section is first else section for section in sections]


def certainty_of(sections: Sequence[Section]) -> Section | None:
    """What the sections say of how sure they are, in one; None: they say nothing."""
    said = [line for section in sections for line in section.certainty.split("\n\n") if line]
    if not said:
        return None
    said.append(
        "Intervals are 95 %. They are over what was sampled, such as documents or texts: they say "
        "what other text of the same kind would give with this model, and nothing of other models."
    )
    return Section(CERTAINTY, "\n".join(f"- {line}" for line in said))

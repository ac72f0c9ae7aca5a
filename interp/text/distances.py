"""Distances between languages, to compare with the number of neurons they share.

Few languages have few pairs, and pairs that share a language are not independent: `mantel_test` (in
interp.inference.intervals) gives the significance of a correlation with these distances.
"""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from interp.text.labels import check_labels
from interp.text.languages import language_of

_INDO_EUROPEAN = (
    *("Albanian", "Armenian", "Baltic", "Celtic", "Germanic", "Hellenic", "Indo-Aryan"),
    *("Iranian", "Italic", "Romance", "Slavic"),
)
"""Branches that the list of languages gives instead of their family."""


def listed_distances(languages: Sequence[str]) -> Float64[Tensor, "language language"]:
    """How many of branch, family and script differ between two languages: 0 to 3.

    Based on the list in interp.text.languages, where only Indo-European is divided into branches. A
    crude measure: all families are equally far apart, and Japanese, which uses Chinese characters
    among its own, is as far from Chinese as from English.

    >>> interp.text.listed_distances(["en", "de", "zh"]).tolist()
    [[0.0, 0.0, 3.0], [0.0, 0.0, 3.0], [3.0, 3.0, 0.0]]
    """
    known = {label: language_of(label) for label in check_labels(languages)}
    rows = [row for row in known.values() if row and row.family]
    if unknown := [label for label, row in known.items() if row is None or not row.family]:
        raise ValueError(
            f"The family of {', '.join(unknown)} is not listed, so there is no distance: leave "
            "them out, or give a table to read_distances."
        )
    distance = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for (i, a), (j, b) in itertools.combinations(enumerate(rows), 2):
        differs = (
            a.family != b.family or a.family == "isolate",
            _family(a.family) != _family(b.family) or a.family == "isolate",
            a.script != b.script,
        )
        distance[i, j] = distance[j, i] = sum(differs)
    return distance


def _family(branch: str) -> str:
    return "Indo-European" if branch in _INDO_EUROPEAN else branch


def read_distances(
    path: Path | str, languages: Sequence[str], kind: str = "syntactic"
) -> Float64[Tensor, "language language"]:
    """Distances from a CSV table, in the order of the languages; zero on the diagonal.

    The table has the columns lang1 and lang2, one row per pair in either order, and a column for
    each kind of distance, such as those of URIEL: syntactic, phonological, genetic.

    >>> table = folder / "distances.csv"
    >>> _ = table.write_text("lang1,lang2,syntactic\\nde,en,0.42\\n")
    >>> interp.text.read_distances(table, ["en", "de"]).tolist()
    [[0.0, 0.42], [0.42, 0.0]]
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: give a table with lang1, lang2 and {kind}.")
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    columns = list(table[0]) if table else []
    if table and not {"lang1", "lang2"} <= set(columns):
        raise ValueError(f"{path} has the columns {', '.join(columns)}, not lang1 and lang2.")
    kinds = [name for name in columns if name not in ("lang1", "lang2")]
    if kind not in kinds:
        raise ValueError(f"{path} has no distance {kind!r}, only {', '.join(kinds) or 'none'}.")
    by_pair = {frozenset((row["lang1"], row["lang2"])): row[kind] for row in table}
    distance = torch.zeros(len(languages), len(languages), dtype=torch.float64)
    for (i, a), (j, b) in itertools.combinations(enumerate(languages), 2):
        text = by_pair.get(frozenset((a, b)))
        if not text:
            raise ValueError(f"{path} has no {kind} distance of {a} and {b}: leave one out.")
        distance[i, j] = distance[j, i] = _number(text, f"{path}, {kind} of {a} and {b}")
    return distance


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where} is {text!r}, which is not a number.") from None

"""How far languages are from each other, to hold against how many neurons they share.

Few languages have few pairs, and pairs with a language in common go together: `mantel_test` (in
interp.inference.intervals) says what a correlation with these distances is worth.
"""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from interp.text.languages import LANGUAGES, check_languages

_INDO_EUROPEAN = (
    *("Armenian", "Baltic", "Germanic", "Hellenic", "Indo-Aryan", "Iranian", "Romance", "Slavic"),
)
"""Branches that stand for their family in the list of languages."""


def listed_distances(languages: Sequence[str]) -> Float64[Tensor, "language language"]:
    """How many of branch, family and script two languages do not have in common: 0 to 3.

    By the list in interp.text.languages, where only Indo-European is divided into branches. Crude,
    for want of a table: all families are equally far from each other, and Japanese, which uses
    characters of Chinese among its own, is as far from Chinese as from English.

    >>> interp.text.listed_distances(["en", "de", "zh"]).tolist()
    [[0.0, 0.0, 3.0], [0.0, 0.0, 3.0], [3.0, 3.0, 0.0]]
    """
    rows = [LANGUAGES[code] for code in check_languages(languages)]
    distance = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for (i, one), (j, other) in itertools.combinations(enumerate(rows), 2):
        apart = (
            one.family != other.family or one.family == "isolate",
            _family(one.family) != _family(other.family) or one.family == "isolate",
            one.script != other.script,
        )
        distance[i, j] = distance[j, i] = sum(apart)
    return distance


def _family(branch: str) -> str:
    return "Indo-European" if branch in _INDO_EUROPEAN else branch


def read_distances(
    path: Path | str, languages: Sequence[str], kind: str = "syntactic"
) -> Float64[Tensor, "language language"]:
    """Distances from a table, in the order of the languages; zero on the diagonal.

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
        raise ValueError(f"{path} has the columns {', '.join(columns)}, and not lang1 and lang2.")
    kinds = [name for name in columns if name not in ("lang1", "lang2")]
    if kind not in kinds:
        raise ValueError(f"{path} has no distance {kind!r}, only {', '.join(kinds) or 'none'}.")
    known = {frozenset((row["lang1"], row["lang2"])): row[kind] for row in table}
    distance = torch.zeros(len(languages), len(languages), dtype=torch.float64)
    for (i, one), (j, other) in itertools.combinations(enumerate(languages), 2):
        found = known.get(frozenset((one, other)))
        if not found:
            raise ValueError(f"{path} has no {kind} distance of {one} and {other}: leave one out.")
        distance[i, j] = distance[j, i] = _number(found, f"{path}, {kind} of {one} and {other}")
    return distance


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where} is {text!r}, which is no number.") from None

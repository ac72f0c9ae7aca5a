"""The numbers behind the claims about patching across languages, and their controls.

From two tables of `experiments.patch_across_languages`: one has a row per question, source, part,
position and layer, the other a row per fact and language.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from interp.evaluations.task_results import group_numbers
from interp.inference.intervals import Estimate, mean_over_examples
from interp.inference.statements import Measurement

FIRST = "0"
"""The layer of patches at the subject from the first layer on: its whole state is the source's."""


class Questions:
    """The measurements on the questions of one kind, "told" or "held_out"."""

    def __init__(self, prompts: pd.DataFrame, facts: str) -> None:
        self._rows: Any = prompts[prompts["facts"] == facts]
        self._relation = self._rows.groupby("question")["relation"].first()
        stream = self._rows[self._rows["part"] == "resid_post"]
        self.layers = sorted(stream["layer"].unique(), key=int)

    def subject(self, column: str, source: str = "source") -> pd.Series:
        """With the subject's tokens patched in all layers."""
        return self._of(column, source, "resid_post", "subject", FIRST)

    def gained_in_t(self, source: str) -> pd.Series:
        """How much more A in t gains than A in s, with the subject's tokens patched from a layer
        on; mean over these layers."""
        in_t, in_s = (
            self._mean(cell, source, "subject", self.layers)
            - self._mean(f"unpatched {cell}", source, "subject", self.layers)
            for cell in ("A in t", "A in s")
        )
        return in_t - in_s

    def last(self, column: str, source: str = "source") -> pd.Series:
        """Mean over all layers but the last, whose state is the answer itself."""
        return self._mean(column, source, "last", self.layers[:-1])

    def neurons(self, column: str, part: str) -> pd.Series:
        return self._of(column, "source", part, "last", "all")

    def beyond_random(self, column: str, part: str) -> pd.Series:
        """Difference from a random set of the same size per layer."""
        return self.neurons(column, part) - self.neurons(column, f"random {part}")

    def in_s(self, part: str) -> pd.Series:
        """Share of the answers that are in s."""
        cells = ("A in s", "B in s", "other in s")
        return pd.concat([self.neurons(cell, part) for cell in cells], axis=1).sum(axis=1)

    def estimate(self, values: pd.Series) -> Estimate | None:
        """Mean over questions, with an interval over relations; None: fewer than two relations."""
        known = values.dropna()
        relations: Any = self._relation.loc[known.index]
        if relations.nunique() < 2:
            return None
        groups = group_numbers(relations.tolist())
        return mean_over_examples(torch.tensor(known.to_numpy(dtype=float)), groups)

    def _mean(self, column: str, source: str, at: str, layers: Sequence[str]) -> pd.Series:
        series = [self._of(column, source, "resid_post", at, layer) for layer in layers]
        return pd.concat(series, axis=1).mean(axis=1) if series else pd.Series(dtype=float)

    def _of(self, column: str, source: str, part: str, at: str, layer: str) -> pd.Series:
        rows = self._rows.query("source == @source and part == @part and at == @at")
        return rows[rows["layer"] == layer].set_index("question")[column]

    def measured(self, values: pd.Series, control: pd.Series | None = None) -> Measurement | None:
        """Paired with the control by question; None where there are too few for an interval."""
        value = self.estimate(values)
        if value is None or control is None:
            return None if value is None else Measurement(value)
        chance, beyond = self.estimate(control), self.estimate(values - control)
        if chance is None or beyond is None:
            return None
        return Measurement(value, chance, beyond)


CONCEPT, LANGUAGE, LEAD = "concept moved", "language moved", "language - concept"
OWN, SHARED, NEURONS = "language neurons", "all-shared neurons", "all neurons"


def measures(prompts: pd.DataFrame, known: pd.DataFrame) -> dict[str, Measurement | None]:
    """The measurements of every claim."""
    told, held_out = Questions(prompts, "told"), Questions(prompts, "held_out")
    return {
        **in_the_stream(told),
        **of_neurons(told),
        "untold-facts-known": untold_known(known),
        **untold_moved(held_out, told),
    }


def in_the_stream(told: Questions) -> dict[str, Measurement | None]:
    """Concept and language in the residual stream, and where they separate."""
    n_layers, before = len(told.layers) - 1, told.subject("A in t")
    return {
        "concept-without-language": told.measured(
            told.gained_in_t("source"), told.gained_in_t("noise")
        ),
        "language-before-concept": told.measured(
            told.last(LEAD) * n_layers, told.last(LEAD, "noise") * n_layers
        ),
        "concept-comes-late": told.measured(1 - told.last(CONCEPT), 1 - told.last(LANGUAGE)),
        "mean-over-languages": told.measured(
            told.subject("A in t", "A in several languages") - before
        ),
    }


def of_neurons(told: Questions) -> dict[str, Measurement | None]:
    """Effects of sets of neurons, patched at the last token in all layers."""
    return {
        "language-neurons-move-language": told.measured(told.beyond_random(LANGUAGE, OWN)),
        "language-neurons-switch-language": told.measured(
            told.in_s(OWN), told.in_s(f"random {OWN}")
        ),
        "language-neurons-keep-concept": told.measured(
            told.neurons(CONCEPT, OWN), told.neurons(CONCEPT, NEURONS)
        ),
        "all-shared-carry-concept": told.measured(told.beyond_random(CONCEPT, SHARED)),
        "all-shared-without-language": told.measured(
            -told.neurons(LEAD, SHARED), -told.neurons(LEAD, OWN)
        ),
    }


def untold_known(known: Any) -> Measurement | None:
    """Accuracy above chance on facts never told in the language."""
    untold = known[known["held_out"]]
    if untold["relation"].nunique() < 2:
        return None
    right = torch.tensor((untold["known"] - untold["chance"]).to_numpy(dtype=float))
    groups = group_numbers(untold["relation"].astype(str).tolist())
    return Measurement(mean_over_examples(right, groups))


def untold_moved(held_out: Questions, told: Questions) -> dict[str, Measurement | None]:
    """Facts that the model was told in some languages and is asked about in another."""
    other = "another concept in s"
    return {
        "untold-facts-move": held_out.measured(
            held_out.subject("A in t") - held_out.subject("unpatched A in t"),
            held_out.subject("A in t", other) - held_out.subject("unpatched A in t", other),
        ),
        "untold-facts-helped": beyond_told(held_out, told),
        "untold-facts-through-all-shared": held_out.measured(
            held_out.beyond_random(CONCEPT, SHARED)
        ),
    }


def beyond_told(held_out: Questions, told: Questions) -> Measurement | None:
    """What the subject from s adds to that from t; other questions are the control."""
    more = [
        questions.estimate(questions.subject("A in t") - questions.subject("A in t", "A in t"))
        for questions in (held_out, told)
    ]
    if more[0] is None or more[1] is None:
        return None
    return Measurement(more[0], more[1])

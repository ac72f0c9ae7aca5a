"""What patching across languages shows: the numbers of the claims, and of their controls.

From the tables of `experiments.patch_across_languages`: a row for each question, source, part,
place and layer, and a row for each fact in each language.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from interp.inference.claims import Measurement
from interp.inference.intervals import Estimate, mean_over_examples

FIRST = "0"
"""At the subject, from the first layer on: all that is put there is the source's."""


class Asked:
    """The questions of one kind, "told" or "held_out", and what was measured on them."""

    def __init__(self, prompts: pd.DataFrame, facts: str) -> None:
        self._rows: Any = prompts[prompts["facts"] == facts]
        self._relation = self._rows.groupby("question")["relation"].first()
        stream = self._rows[self._rows["part"] == "resid_post"]
        self.layers = sorted(stream["layer"].unique(), key=int)

    def subject(self, column: str, source: str = "source") -> pd.Series:
        """The subject's tokens patched in all layers."""
        return self._of(column, source, "resid_post", "subject", FIRST)

    def gained_in_t(self, source: str) -> pd.Series:
        """What A in t gains beyond A in s, the subject's tokens patched from a layer on, mean over
        the layers."""
        gained = [
            self._mean(cell, source, "subject", self.layers)
            - self._mean(f"unpatched {cell}", source, "subject", self.layers)
            for cell in ("A in t", "A in s")
        ]
        return gained[0] - gained[1]

    def last(self, column: str, source: str = "source") -> pd.Series:
        """Mean over layers but the last, where the state is the answer itself."""
        return self._mean(column, source, "last", self.layers[:-1])

    def neurons(self, column: str, part: str) -> pd.Series:
        return self._of(column, "source", part, "last", "all")

    def beyond_random(self, column: str, part: str) -> pd.Series:
        """Less what as many random neurons give."""
        return self.neurons(column, part) - self.neurons(column, f"random {part}")

    def in_s(self, part: str) -> pd.Series:
        """Share of the answers that are in s."""
        cells = ("A in s", "B in s", "other in s")
        return pd.concat([self.neurons(cell, part) for cell in cells], axis=1).sum(axis=1)

    def estimate(self, values: pd.Series) -> Estimate | None:
        """Mean over questions, with an interval over relations; None of too few."""
        some: Any = values.dropna()
        relation: Any = self._relation.loc[some.index]
        if relation.nunique() < 2:
            return None
        numbers = torch.tensor(pd.factorize(relation)[0])
        return mean_over_examples(torch.tensor(some.to_numpy(dtype=float)), numbers)

    def _mean(self, column: str, source: str, at: str, layers: Sequence[str]) -> pd.Series:
        each = [self._of(column, source, "resid_post", at, layer) for layer in layers]
        return pd.concat(each, axis=1).mean(axis=1) if each else pd.Series(dtype=float)

    def _of(self, column: str, source: str, part: str, at: str, layer: str) -> pd.Series:
        wanted = {"source": source, "part": part, "at": at, "layer": layer}
        rows: Any = self._rows
        for name, value in wanted.items():
            rows = rows[rows[name] == value]
        return rows.set_index("question")[column]

    def measured(self, values: pd.Series, control: pd.Series) -> Measurement | None:
        """None where there are too few questions for an interval."""
        value = self.estimate(values)
        beside = float(control.mean()) if len(control) else math.nan
        return None if value is None else Measurement(value, beside)


CONCEPT, LANGUAGE, LEAD = "concept moved", "language moved", "language - concept"
OWN, SHARED, NEURONS = "language neurons", "all-shared neurons", "all neurons"


def measures(prompts: pd.DataFrame, known: pd.DataFrame) -> dict[str, Measurement | None]:
    """Of every claim that can be tried on these tables."""
    told, held_out = Asked(prompts, "told"), Asked(prompts, "held_out")
    return {
        **in_the_stream(told),
        **of_neurons(told),
        "untold-facts-known": untold_known(known),
        **untold_moved(held_out, told),
    }


def in_the_stream(told: Asked) -> dict[str, Measurement | None]:
    """Concept and language in the residual stream, and where they come apart."""
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
            told.subject("A in t", "A in several languages") - before,
            told.subject("A in t", "A in t") - before,
        ),
    }


def of_neurons(told: Asked) -> dict[str, Measurement | None]:
    """What sets of neurons carry, patched at the last token in all layers."""
    return {
        "language-neurons-move-language": told.measured(
            told.beyond_random(LANGUAGE, OWN), told.neurons(LANGUAGE, f"random {OWN}")
        ),
        "language-neurons-switch-language": told.measured(told.in_s(OWN), told.in_s(NEURONS)),
        "language-neurons-keep-concept": told.measured(
            told.neurons(CONCEPT, OWN), told.neurons(CONCEPT, NEURONS)
        ),
        "all-shared-carry-concept": told.measured(
            told.beyond_random(CONCEPT, SHARED), told.neurons(CONCEPT, f"random {SHARED}")
        ),
        "all-shared-without-language": told.measured(
            -told.neurons(LEAD, SHARED), -told.neurons(LEAD, OWN)
        ),
    }


def untold_known(known: Any) -> Measurement | None:
    """First choices that are right beyond chance, of facts never told in the language, beside
    those told in it."""
    untold, rest = known[known["held_out"]], known[~known["held_out"]]
    if untold["fact"].nunique() < 2:
        return None
    right = torch.tensor((untold["known"] - untold["chance"]).to_numpy(dtype=float))
    numbers = torch.tensor(pd.factorize(untold["fact"])[0])
    control = float((rest["known"] - rest["chance"]).mean())
    return Measurement(mean_over_examples(right, numbers), control)


def untold_moved(held_out: Asked, told: Asked) -> dict[str, Measurement | None]:
    """Facts that the model was told in some languages and is asked in another."""
    other = "another concept in s"
    return {
        "untold-facts-move": held_out.measured(
            held_out.subject("A in t") - held_out.subject("unpatched A in t"),
            held_out.subject("A in t", other) - held_out.subject("unpatched A in t", other),
        ),
        "untold-facts-helped": held_out.measured(
            held_out.subject("A in t") - held_out.subject("A in t", "A in t"),
            told.subject("A in t") - told.subject("A in t", "A in t"),
        ),
        "untold-facts-through-all-shared": held_out.measured(
            held_out.beyond_random(CONCEPT, SHARED), told.beyond_random(CONCEPT, SHARED)
        ),
    }

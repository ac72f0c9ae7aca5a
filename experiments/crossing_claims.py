"""What patching across languages shows, as claims: a number, an interval, a control, a rule.

From the tables of `experiments.patch_across_languages`: a row for each question, source, part,
place and layer, and a row for each fact in each language.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch

from interp.inference.claims import Claim, Side, claim_of
from interp.inference.intervals import Estimate, mean_over_examples

DUMAS, OURS = "Dumas et al. (2024)", "this project"
COMMAND = "python -m experiments.patch_across_languages babel"
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


def claims_of(prompts: pd.DataFrame, known: pd.DataFrame, on: str) -> list[Claim]:
    """Every claim that can be tried on these tables."""
    told, held_out = Asked(prompts, "told"), Asked(prompts, "held_out")
    found = [
        *stream_claims(told, on),
        *neuron_claims(told, on),
        *retrieval_claims(held_out, told, known, on),
    ]
    return [claim for claim in found if claim is not None]


def stream_claims(told: Asked, on: str) -> Iterator[Claim | None]:
    """Concept and language in the residual stream, and where they come apart."""
    concept, language, lead = "concept moved", "language moved", "language - concept"
    yield _claim(
        told,
        told.gained_in_t("source"),
        on,
        name="concept-without-language",
        statement="The concept can be moved without its language.",
        source=DUMAS,
        how="share gained by A in t less that gained by A in s, the subject's tokens patched from "
        "a layer on, mean over these layers",
        control=told.gained_in_t("noise"),
        control_name="a random direction",
    )
    yield _claim(
        told,
        told.last(lead) * (len(told.layers) - 1),
        on,
        name="language-before-concept",
        statement="At the end of a prompt the language of the answer is set in earlier layers than "
        "its concept, so that the language can be moved without the concept.",
        source=DUMAS,
        how="layers by which the language is ahead, the last token patched in one layer",
        control=told.last(lead, "noise") * (len(told.layers) - 1),
        control_name="a random direction",
    )
    yield _claim(
        told,
        1 - told.last(concept),
        on,
        name="concept-comes-late",
        statement="The answer's concept reaches the end of a prompt in the later half of the "
        "layers.",
        source=OURS,
        how="share of the layers but the last in which it is not there yet",
        bar=0.5,
        control=1 - told.last(language),
        control_name="the language",
    )
    yield _claim(
        told,
        told.subject("A in t", "A in several languages") - told.subject("A in t"),
        on,
        name="mean-over-languages",
        statement="The mean of a concept over languages says it better than one language does.",
        source=DUMAS,
        how="share of A in t with the mean at the subject's tokens less that with s alone",
        control=told.subject("A in t", "A in t") - told.subject("A in t"),
        control_name="t itself less s",
    )


def neuron_claims(told: Asked, on: str) -> Iterator[Claim | None]:
    """What sets of neurons carry, patched at the last token in all layers."""
    concept, language, lead = "concept moved", "language moved", "language - concept"
    own, shared = "language neurons", "all-shared neurons"
    random = "as many random neurons"
    yield _claim(
        told,
        told.beyond_random(language, own),
        on,
        name="language-neurons-move-language",
        statement="Language neurons move the language of the answer.",
        source=OURS,
        how="share gained by s beyond that with random neurons",
        control=told.neurons(language, f"random {own}"),
        control_name=random,
    )
    yield _claim(
        told,
        told.in_s(own),
        on,
        name="language-neurons-switch-language",
        statement="Language neurons alone switch the language of the answer.",
        source=OURS,
        how="share of the answers in s",
        bar=0.5,
        control=told.in_s("all neurons"),
        control_name="all neurons",
    )
    yield _claim(
        told,
        told.neurons(concept, own),
        on,
        name="language-neurons-keep-concept",
        statement="Language neurons leave the concept of the answer where it is.",
        source=OURS,
        how="share gained by A",
        bar=0.1,
        side="below",
        control=told.neurons(concept, "all neurons"),
        control_name="all neurons",
    )
    yield _claim(
        told,
        told.beyond_random(concept, shared),
        on,
        name="all-shared-carry-concept",
        statement="Neurons that fire in all languages carry the concept.",
        source=OURS,
        how="share gained by A beyond that with random neurons",
        control=told.neurons(concept, f"random {shared}"),
        control_name=random,
    )
    yield _claim(
        told,
        -told.neurons(lead, shared),
        on,
        name="all-shared-without-language",
        statement="Neurons that fire in all languages carry the concept rather than the language.",
        source=OURS,
        how="share gained by A less that gained by s",
        control=-told.neurons(lead, own),
        control_name="language neurons",
    )


def retrieval_claims(
    held_out: Asked, told: Asked, known: pd.DataFrame, on: str
) -> Iterator[Claim | None]:
    """Facts that the model was told in some languages and is asked in another."""
    facts: Any = known
    untold, rest = facts[facts["held_out"]], facts[~facts["held_out"]]
    if untold["fact"].nunique() > 1:
        right = torch.tensor((untold["known"] - untold["chance"]).to_numpy(dtype=float))
        numbers = torch.tensor(pd.factorize(untold["fact"])[0])
        yield claim_of(
            mean_over_examples(right, numbers),
            on=on,
            command=COMMAND,
            name="untold-facts-known",
            statement="A fact is known in a language that it was never told in.",
            source=OURS,
            how="share of first choices that are right, less chance",
            control=float((rest["known"] - rest["chance"]).mean()),
            control_name="facts told in it",
        )
    yield _claim(
        held_out,
        held_out.subject("A in t") - held_out.subject("unpatched A in t"),
        on,
        name="untold-facts-move",
        statement="A fact told in s and never in t is answered in t when its subject comes from s.",
        source=OURS,
        how="share gained by A in t, the subject's tokens patched in all layers",
        control=held_out.subject("A in t", "another concept in s")
        - held_out.subject("unpatched A in t", "another concept in s"),
        control_name="another concept",
    )
    yield _claim(
        held_out,
        held_out.subject("A in t") - held_out.subject("A in t", "A in t"),
        on,
        name="untold-facts-helped",
        statement="For such a fact the subject as s says it brings more of the answer to t than "
        "the subject as t says it.",
        source=OURS,
        how="share of A in t with the subject from s less that with the subject from t",
        control=told.subject("A in t") - told.subject("A in t", "A in t"),
        control_name="facts told in t",
    )
    concept, shared = "concept moved", "all-shared neurons"
    yield _claim(
        held_out,
        held_out.beyond_random(concept, shared),
        on,
        name="untold-facts-through-all-shared",
        statement="Such a fact goes from s to t through neurons that fire in all languages.",
        source=OURS,
        how="share gained by A beyond that with random neurons",
        control=told.beyond_random(concept, shared),
        control_name="facts told in t",
    )


def _claim(
    asked: Asked,
    values: pd.Series,
    on: str,
    *,
    control: pd.Series,
    bar: float = 0.0,
    side: Side = "above",
    **said: Any,
) -> Claim | None:
    """None where there are too few questions for an interval."""
    estimate = asked.estimate(values)
    if estimate is None:
        return None
    beside = float(control.mean()) if len(control) else math.nan
    return claim_of(estimate, on=on, command=COMMAND, bar=bar, side=side, control=beside, **said)

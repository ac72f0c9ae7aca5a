"""Answers to questions that are asked in one language and steered to another.

The protocol of CLaS-Bench (Gurgurov et al., 2026; arXiv 2601.08331): parallel open questions, how
many answers are in the language steered to, how relevant they are, and the harmonic mean of both.
We depart from it in three ways. Questions asked in the language steered to are left out: a model
answers them in it unasked. The detector is this library's, not lid218e. And intervals are over
questions, which are the same in every language, so that conditions are compared question by
question.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from interp.evaluations.conditions import (
    Condition,
    conditions_towards,
    in_chat,
    write_conditions,
)
from interp.evaluations.languages_written import Guard
from interp.evaluations.steering import measure_natural, text_for_push
from interp.inference.intervals import Estimate, jackknife_shards, or_no_event
from interp.interventions.edits import Edit
from interp.models.any_model import AnyModel, as_model
from interp.results import terminal
from interp.results.display import MOST_ROWS, Cells, counted, listed, table_cells
from interp.results.frames import with_origin
from interp.results.saved import Saved
from interp.results.words import Bos, Tokens
from interp.runs.jobs import pool_for
from interp.runs.ray import ActorPool, Ray
from interp.selections.neuron_selection import NeuronSelection
from interp.text.language_id import detectable
from interp.text.languages import answering_prompt, language_tag
from interp.text.sources import Prompts, TextSource

Judge = Callable[[str, str], float]
"""A question and an answer → how relevant the answer is, from 0 to 1, in whichever language."""

Measure = Literal["forcing", "relevance", "both", "score"]

_NO_EDIT = "no edit"
_ALL = "all"
_NOT_JUDGED = "forcing alone: no judge has rated the answers (judged_by)"


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeredAnswers(Saved):
    """Answers under each condition, with the language of each and, if judged, its relevance.

    >>> asked = {"to": ("de",) * 2, "condition": ("neurons",) * 2, "asked": ("en",) * 2}
    >>> asked |= {"ids": ("1", "2"), "questions": ("Why is it late?", "Why is it cold?")}
    >>> answers = interp.evaluations.SteeredAnswers(
    ...     **asked,
    ...     texts=("Es ist Abend.", "The winter is long."),
    ...     found=("de", "en"),
    ...     relevance=torch.full((2,), torch.nan, dtype=torch.float64),
    ... )
    >>> judged = answers.judged_by(lambda question, answer: 1.0)
    >>> round(judged.estimate("score", "neurons").value.item(), 3)
    0.667
    """

    kind = "SteeredAnswers"
    made_by = "interp.evaluations.steer_answers(model, edits, ...)"

    to: tuple[str, ...]
    """Of each answer: the language steered to."""

    condition: tuple[str, ...]
    """What was done to reach it, such as "neurons"."""

    asked: tuple[str, ...]
    """The language of the question."""

    ids: tuple[str, ...]
    """The question: the same id in every language."""

    questions: tuple[str, ...]
    """The question as it was asked, without a request to answer in some language."""

    texts: tuple[str, ...]
    """The answer."""

    found: tuple[str, ...]
    """The language detected in the answer."""

    relevance: Float64[Tensor, " answer"]
    """What the judge gave, from 0 to 1; NaN: no judge was asked."""

    neurons_of: str = ""
    """The model that the neurons were found in, if it is another (`NeuronSelection.on`)."""

    def __post_init__(self) -> None:
        sizes = {len(values) for values in (*self._columns().values(), self.relevance)}
        if len(sizes) != 1:
            raise ValueError(f"The columns have {sorted(sizes)} answers: give as many in each.")
        if len(set(self.ids)) < 2:
            raise ValueError(
                f"There is {counted(len(set(self.ids)), 'question')}, and an interval over "
                "questions needs two or more."
            )

    def __repr__(self) -> str:
        judged = "judged" if self.is_judged else "not judged"
        return (
            f"SteeredAnswers(towards {listed(dict.fromkeys(self.to))}; "
            f"{listed(dict.fromkeys(self.condition))}; {counted(len(self.ids), 'answer')}, "
            f"{judged})"
        )

    @property
    def is_judged(self) -> bool:
        return not bool(self.relevance.isnan().any())

    def judged_by(self, judge: Judge) -> "SteeredAnswers":
        """The same with the relevance of every answer. Equal answers to a question ask it once.

        Rate the answer's content, not its language: that is what forcing measures. A judge of
        CLaS-Bench's scale, 0 to 2, is divided by two.
        """
        given: dict[tuple[str, str], float] = {}
        for row, pair in enumerate(zip(self.questions, self.texts, strict=True)):
            if pair not in given:
                given[pair] = self._judgement(judge, row)
        pairs = zip(self.questions, self.texts, strict=True)
        relevance = torch.tensor([given[pair] for pair in pairs], dtype=torch.float64)
        return replace(self, relevance=relevance)

    def estimate(
        self,
        measure: Measure,
        condition: str,
        to: str | None = None,
        minus: str | None = None,
        level: float = 0.95,
    ) -> Estimate:
        """A share of the answers to one language, or to all, with an interval over questions.

        forcing: answers in the language steered to. relevance: the judge's mean rating of all
        answers. score: the harmonic mean of these two shares. both: the mean rating where an answer
        in another language counts zero. One: all answers are forced and relevant. Zero: none is.
        If half the answers are forced and the other half relevant, the score is 0.5 and both is 0.
        NaN: no judge was asked.

        `minus`: the same of another condition is subtracted, paired by question. The interval is a
        delete-one-question jackknife's; where all questions agree on 0 or 1, that of no event in as
        many questions.
        """
        if measure not in get_args(Measure):
            raise ValueError(
                f"There is no measure {measure!r}, only {', '.join(get_args(Measure))}."
            )
        value = _MEASURES[measure]
        first = self._sums(condition, to)
        other = None if minus is None else self._sums(minus, to)

        def statistic(total: Mapping[str, Tensor]) -> Tensor:
            rest = 0.0 if other is None else value({key: total[f"minus {key}"] for key in other})
            return value(total) - rest

        sums = first | {f"minus {key}": sums for key, sums in (other or {}).items()}
        by_question = value(first)
        rest = torch.zeros_like(by_question) if other is None else value(other)
        interval = jackknife_shards(sums, statistic, level)
        interval = or_no_event(interval, by_question, rest, len(by_question))
        ends = (0.0 if minus is None else -1.0, 1.0)
        return replace(interval, low=interval.low.clamp(*ends), high=interval.high.clamp(*ends))

    def to_frame(self) -> pd.DataFrame:
        """One row per condition and target language; `all`: over all targets, if there are several.

        `gain`: the score minus that without an edit, paired by question; without a judge, forcing.
        """
        targets: list[str | None] = list(dict.fromkeys(self.to))
        rows = []
        for to in targets + ([None] if len(targets) > 1 else []):
            for condition in self._conditions(to):
                row: dict[str, Any] = {"to": to or _ALL, "condition": condition}
                row["answers"] = len(self._rows(condition, to))
                for measure in get_args(Measure):
                    row |= _cells(measure, self.estimate(measure, condition, to))
                if _NO_EDIT in self._conditions(to):
                    measure = "score" if self.is_judged else "forcing"
                    row |= _cells("gain", self.estimate(measure, condition, to, _NO_EDIT))
                rows.append(row)
        return with_origin(pd.DataFrame(rows), self.neurons_of)

    def answers_frame(self) -> pd.DataFrame:
        """One row per answer."""
        return with_origin(
            pd.DataFrame({**self._columns(), "relevance": self.relevance.tolist()}),
            self.neurons_of,
        )

    def table(self, width: int = 100) -> str:
        """For a terminal of `width` columns: every condition's shares, with 95 % intervals."""
        measures = ("forcing", "relevance", "score", "gain")
        shown = measures if self.is_judged else ("forcing", "gain")
        rows = [["to", "condition", *shown]]
        for row in self.to_frame().to_dict("records"):
            rows.append([row["to"], row["condition"], *(_in_short(row, name) for name in shown)])
        note = [] if self.is_judged else ["", f"This is {_NOT_JUDGED}."]
        return "\n".join([*terminal.table(rows, width, stay=2), *note])

    def _cells(self) -> Cells:
        note = "shares of the answers, with 95 % intervals over questions"
        note += "" if self.is_judged else f"; {_NOT_JUDGED}"
        return table_cells(self.to_frame(), note, MOST_ROWS)

    def _columns(self) -> dict[str, tuple[str, ...]]:
        names = ("to", "condition", "asked", "ids", "questions", "texts", "found")
        return {name: getattr(self, name) for name in names}

    def _conditions(self, to: str | None) -> list[str]:
        pairs = zip(self.to, self.condition, strict=True)
        return list(dict.fromkeys(name for target, name in pairs if to in (None, target)))

    def _rows(self, condition: str, to: str | None) -> list[int]:
        """The answers under a condition; refused if there are none."""
        rows = [
            row
            for row, (target, name) in enumerate(zip(self.to, self.condition, strict=True))
            if name == condition and to in (None, target)
        ]
        if not rows:
            raise ValueError(
                f"There are no answers under {condition!r} towards {to or 'any language'}, only "
                f"under {listed(dict.fromkeys(self.condition))} towards "
                f"{listed(dict.fromkeys(self.to))}."
            )
        return rows

    def _sums(self, condition: str, to: str | None) -> dict[str, Float64[Tensor, " question"]]:
        """Per question: how many answers, how many forced, and their relevance."""
        rows = self._rows(condition, to)
        order = {id: index for index, id in enumerate(dict.fromkeys(self.ids))}
        question = torch.tensor([order[self.ids[row]] for row in rows])
        forced = torch.tensor([self.found[row] == self.to[row] for row in rows]).double()
        relevance = self.relevance[rows]
        values = {"answers": torch.ones_like(forced), "forced": forced, "relevance": relevance}
        values["both"] = forced * relevance
        zeros = torch.zeros(len(order), dtype=torch.float64)
        return {name: zeros.index_add(0, question, value) for name, value in values.items()}

    def _judgement(self, judge: Judge, row: int) -> float:
        """The judge's rating of one answer; refused if it is none, or if the judge fails."""
        where = f"question {self.ids[row]!r} asked in {self.asked[row]}, answered towards "
        where += f"{self.to[row]} under {self.condition[row]!r}"
        try:
            given: Any = judge(self.questions[row], self.texts[row])
        except Exception as error:
            raise ValueError(
                f"The judge failed on {where} ({type(error).__name__}: {error}): the answers are "
                "unchanged, so mend the judge and call judged_by again."
            ) from error
        if not isinstance(given, Real) or not 0 <= float(given) <= 1:
            raise ValueError(
                f"The judge gave {given!r:.60} for {where}: it must give a number from 0 to 1."
            )
        return float(given)


def _harmonic(total: Mapping[str, Tensor]) -> Tensor:
    """`steering_score` of tensors; NaN without a judge."""
    forcing, relevance = (total[name] / total["answers"] for name in ("forced", "relevance"))
    return 2 * forcing * relevance / (forcing + relevance).clamp(min=1e-300)


_MEASURES: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "forcing": lambda total: total["forced"] / total["answers"],
    "relevance": lambda total: total["relevance"] / total["answers"],
    "both": lambda total: total["both"] / total["answers"],
    "score": _harmonic,
}


def _cells(name: str, estimate: Estimate) -> dict[str, float]:
    ends = {f"{name}_low": estimate.low.item(), f"{name}_high": estimate.high.item()}
    return {name: estimate.value.item(), **ends}


def _in_short(row: Mapping[str, Any], name: str) -> str:
    if math.isnan(row.get(name, math.nan)):
        return "-"
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


class _Asked(NamedTuple):
    """A condition under which the questions of one language are answered."""

    language: str
    condition: Condition


def steer_answers(
    model: AnyModel,
    edits: Mapping[str, Edit],
    selection: NeuronSelection,
    controls: Mapping[str, NeuronSelection],
    text: TextSource,
    questions: Prompts,
    *,
    layer: int | None = None,
    strength: float = 1.0,
    tokens: Tokens = "all",
    others_off: bool = False,
    chat: bool = False,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    bos: Bos = "auto",
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> SteeredAnswers:
    """Ask each question in each of its languages, steering to every other language with an edit.

    The conditions are those of `steer_towards`: no edit, the neurons, `controls`, a request to
    answer in the language after the question, and a push of the residual stream. `text` is natural
    text for the push. With `chat`, a question is a user's message in the model's chat template;
    without, a line of its own. With `out`, answers are saved there as they are written, and the
    same call resumes.

    >>> towards = {"de": interp.difference_of_means(moments, "de")}
    >>> pair = neurons.languages_only(["en", "de"])
    >>> text = {
    ...     "en": [f"In {year} the first train went to Vienna." for year in range(1800, 1900)],
    ...     "de": [f"Im Jahr {year} fuhr der erste Zug nach Wien." for year in range(1800, 1900)],
    ... }
    >>> questions = interp.read_prompts({"en": ["Why is it late?", "Is it cold?"]}, ["en"])
    >>> answers = interp.evaluations.steer_answers(
    ...     model, towards, pair, {}, text, questions, max_new_tokens=8, progress=False
    ... )
    >>> answers
    SteeredAnswers(towards de; no edit, neurons, named in prompt, residual stream;
    8 answers, not judged)
    """
    model = as_model(model)
    others = _others(edits, questions)
    corpora = text_for_push(model, text, selection.languages, bos, progress)
    with pool_for(model, ray) as pool:
        natural = None if out is None else Path(out) / "natural"
        _, residual = measure_natural(
            model, {}, corpora, bos=bos, out=natural, progress=progress, ray=pool
        )
        asked = [
            _Asked(language, condition)
            for language, targets in others.items()
            for condition in conditions_towards(
                {code: edits[code] for code in targets},
                selection,
                controls,
                residual,
                layer=layer,
                strength=strength,
                tokens=tokens,
                others_off=others_off,
                prompts=tuple(question.strip() for question in questions.texts[language]),
                naming=answering_prompt,
            )
        ]
        conditions = [condition for _, condition in asked]
        written = write_conditions(
            model,
            in_chat(model, conditions) if chat else _on_their_lines(conditions),
            {code: Guard() for code in edits},
            n=1,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            bos="none" if chat else bos,
            out=out,
            progress=progress,
            ray=pool,
        )
    rows = []
    for (language, condition), answers in zip(asked, written, strict=True):
        for to in (condition.to,) if condition.to else others[language]:
            found = answers.found_towards(to)
            columns = (questions.ids, questions.texts[language], answers.texts, found)
            rows += [(to, condition.name, language, *row) for row in zip(*columns, strict=True)]
    names = ("to", "condition", "asked", "ids", "questions", "texts", "found")
    return SteeredAnswers(
        **dict(zip(names, zip(*rows, strict=True), strict=True)),
        relevance=torch.full((len(rows),), torch.nan, dtype=torch.float64),
        neurons_of=selection.neurons_of,
    )


def _others(edits: Mapping[str, Edit], questions: Prompts) -> dict[str, list[str]]:
    """Language of questions → the languages that its answers are steered to."""
    if len(questions.ids) < 2:
        raise ValueError(
            f"There is {counted(len(questions.ids), 'question')}, and an interval over questions "
            "needs two or more."
        )
    if unknown := [code for code in edits if code not in detectable(tuple(edits))]:
        raise ValueError(
            f"The detector cannot recognize {', '.join(unknown)}, so it is unknown whether an "
            "answer is in it: steer to other languages."
        )
    others = {
        language: [code for code in edits if language_tag(code) != language_tag(language)]
        for language in questions.languages
    }
    reached = {code for targets in others.values() for code in targets}
    if missing := [code for code in edits if code not in reached]:
        raise ValueError(
            f"All questions are asked in {listed(questions.languages)}, so none can be steered to "
            f"{', '.join(missing)}: ask in another language too."
        )
    return {language: targets for language, targets in others.items() if targets}


def _on_their_lines(conditions: list[Condition]) -> list[Condition]:
    return [replace(one, prompts=tuple(f"{p}\n" for p in one.prompts)) for one in conditions]

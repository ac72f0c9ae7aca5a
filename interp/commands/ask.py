"""The subcommand that steers answers to another language than the question's: ask."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interp
from interp.commands.common import (
    WITHOUT_RAY,
    ModelChoice,
    OnRay,
    save_table,
    say,
    say_how_text_begins,
)
from interp.commands.options import Labels, Positional
from interp.commands.steer import BY_DIFFERENCE, EditTowards, Prepared
from interp.results.terminal import terminal_width
from interp.results.words import Bos
from interp.text.labels import check_labels


@dataclass(frozen=True)
class Ask:
    """Steer answers to another language than the question's.

    The protocol of CLaS-Bench: answers in the language steered to, their relevance by a judge, and
    the harmonic mean, under the conditions of `interp steer`. Run it again to resume.

        interp ask results/demo --to de --asked-in en --max-new-tokens 16
    """

    neurons: Positional[Path]
    """A run after `interp find`, or a selection (.json) in it."""

    choice: ModelChoice
    """The model that the neurons were found in."""

    neurons_of: Path | None = None
    """Take the neurons of this run, of a model of this shape."""

    to: Labels = ()
    """Languages to steer to; by default all of the run."""

    how: EditTowards = BY_DIFFERENCE
    """The edit."""

    questions: str = "everyday"
    """Folder of <language>.jsonl or .txt; everyday: 20 of ours.

    Such as the data folder of CLaS-Bench; everyday has 12 languages."""

    asked_in: Labels = ()
    """Languages of the questions; by default all of the run."""

    judge: str | None = None
    """MODULE:FUNCTION that rates an answer from 0 to 1.

    It gets a question and an answer. Without one, only the languages of the answers are counted."""

    chat: bool = False
    """Put questions into the model's chat template."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's."""

    text: str | None = None
    """Text for the residual push; by default the run's."""

    max_new_tokens: int = 128
    """Tokens to generate per answer, at most."""

    temperature: float = 0.0
    """Sampling temperature; zero: the likeliest token."""

    seed: int = 0
    """Seeds the answers and the random neurons."""

    out: Path | None = None
    """Folder of the results; by default ask in the run's."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> "interp.evaluations.SteeredAnswers | None":
        prepared = Prepared.of(self, "ask")
        asked_in = check_labels(self.asked_in or prepared.selection.languages)
        questions = interp.read_prompts(self.questions, asked_in)
        from interp.evaluations.ratings import named_judge  # which loads torch

        judge = None if self.judge is None else named_judge(self.judge)
        out, (model, ray, selection) = prepared.out, prepared.open()
        controls = self.how.controls(self.neurons, selection, self.seed)
        passes = sum(
            1 + (3 + len(controls)) * len(set(prepared.edits) - {asked})
            for asked in questions.languages
        )
        if not self.on.goes_ahead(
            lambda: prepared.forecast(model, passes, len(questions.ids)),
            "fewer --to or --asked-in, or shorter --max-new-tokens",
        ):
            return None
        answers = interp.evaluations.steer_answers(
            model,
            prepared.edits,
            selection,
            controls,
            prepared.text,
            questions,
            ray=ray,
            **prepared.settings,
        )
        if judge is not None:
            answers = self.judged(answers, judge, out)
        answers.save(out / "answers.safetensors", interp.results.artifacts.provenance())
        save_table(answers.to_frame(), out / "answers.csv")
        save_table(answers.answers_frame(), out / "texts.csv")
        say_how_text_begins(model, prepared.settings["bos"])
        say(answers.table(terminal_width()))
        say(f"The table is in {out / 'answers.csv'}, the answers in texts.csv.")
        return answers

    def judged(
        self,
        answers: "interp.evaluations.SteeredAnswers",
        judge: "Callable[[str, str], float]",
        out: Path,
    ) -> "interp.evaluations.SteeredAnswers":
        """The answers with ratings, which are kept in the folder as they are given."""
        from interp.evaluations.ratings import KeptRatings
        from interp.results.bars import tqdm

        file = out / f"ratings-{str(self.judge).replace(':', '-')}.jsonl"
        kept = KeptRatings(judge, file)
        n_pairs = len(set(zip(answers.questions, answers.texts, strict=True)))
        with tqdm(total=n_pairs, desc="rating", unit="answer") as bar:

            def rate(question: str, answer: str) -> Any:
                count = bar.found if (question, answer) in kept else bar.update
                rating = kept(question, answer)
                count(1)
                return rating

            answers = answers.judged_by(rate)
        say(f"{n_pairs:,} answers are rated by {self.judge}, in {file}; delete it to rate again.")
        return answers

"""How often answers leave the language that they should be in."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interp.evaluations.rates import Rate
from interp.inference.intervals import Estimate, mean_over_examples
from interp.results.display import counted
from interp.results.saved import Saved
from interp.text.labels import Tags
from interp.text.language_id import LanguageId
from interp.text.lapses import first_lapse, has_other_letters


@dataclass(frozen=True, kw_only=True, eq=False)
class Confusion(Saved):
    """Which answers stay in their language, and where the others leave it.

    >>> answers = ["Der Zug fährt heute erst am Abend.", "The train leaves in the evening."]
    >>> confusion = interp.evaluations.language_confusion(answers, "de")
    >>> confusion.line_pass_rate.count, confusion.left_at.tolist()
    (1, [-1, 0])
    """

    kind = "Confusion"
    made_by = "interp.evaluations.language_confusion(texts, language)"

    texts: tuple[str, ...]
    """The answers."""

    language: str
    """The label of the language that they should be in."""

    lines_pass: Bool[Tensor, " text"]
    """Whether no line is in another language."""

    words_pass: Bool[Tensor, " text"]
    """Whether no word is in Latin letters, where the language is not; only of texts whose lines
    pass, False for the others."""

    left_at: Int64[Tensor, " text"]
    """The character where the other language begins. -1: the text stays in its language."""

    by_words: bool
    """Whether words can be judged by their letters."""

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.left_at):
            raise ValueError(f"{len(self.texts)} texts have {len(self.left_at)} judgements.")

    def __repr__(self) -> str:
        stay = int(self.passes.sum())
        return f"Confusion({stay:,} of {counted(len(self.texts), 'text')} stay in {self.language})"

    @property
    def passes(self) -> Bool[Tensor, " text"]:
        """Whether a text passes by line, and by word where that can be judged."""
        return self.lines_pass & self.words_pass

    @property
    def line_pass_rate(self) -> Rate:
        """Texts without a line in another language."""
        return Rate(int(self.lines_pass.sum()), len(self.texts))

    @property
    def word_pass_rate(self) -> Rate:
        """Of those, the texts without a foreign word; of no text in a language of Latin letters."""
        n_texts = int(self.lines_pass.sum()) if self.by_words else 0
        return Rate(int(self.passes.sum()) if self.by_words else 0, n_texts)

    @property
    def depth(self) -> Float64[Tensor, " text"]:
        """Where a text leaves its language, as a share of its length. NaN: it does not."""
        lengths = torch.tensor([max(1, len(text)) for text in self.texts], dtype=torch.float64)
        return (self.left_at / lengths).masked_fill(self.left_at < 0, torch.nan)

    def to_frame(self) -> pd.DataFrame:
        """One row per text."""
        return pd.DataFrame(
            {
                "text": self.texts,
                "lines_pass": self.lines_pass.tolist(),
                "words_pass": self.words_pass.tolist(),
                "left_at": self.left_at.tolist(),
                "depth": self.depth.tolist(),
            }
        )


def language_confusion(
    texts: Sequence[str],
    language: str,
    prompts: Sequence[str] = (),
    *,
    tags: Tags | None = None,
    langid: LanguageId | None = None,
) -> Confusion:
    """Judge answers that should be in one language; words of its prompt may be in an answer.

    >>> interp.evaluations.language_confusion(["Der Zug fährt heute erst am Abend."], "de")
    Confusion(1 of 1 text stay in de)
    """
    if prompts and len(prompts) != len(texts):
        raise ValueError(f"{len(texts)} texts have {len(prompts)} prompts: give one for each.")
    given = prompts or [""] * len(texts)
    lapses = [
        first_lapse(text, language, prompt, tags, langid)
        for text, prompt in zip(texts, given, strict=True)
    ]
    lines = [lapse is None or lapse.kind == "word" for lapse in lapses]
    starts = [-1 if lapse is None else lapse.start for lapse in lapses]
    return Confusion(
        texts=tuple(texts),
        language=language,
        lines_pass=torch.tensor(lines, dtype=torch.bool),
        words_pass=torch.tensor([lapse is None for lapse in lapses], dtype=torch.bool),
        left_at=torch.tensor(starts, dtype=torch.int64),
        by_words=has_other_letters(language, tags),
    )


def more_passes(confusion: Confusion, reference: Confusion) -> Estimate:
    """Share of texts that pass minus that of the reference, paired by text, with a 95 % interval.

    >>> german, english = "Der Zug fährt heute erst am Abend.", "The train leaves in the evening."
    >>> judged = [
    ...     interp.evaluations.language_confusion(texts, "de")
    ...     for texts in ([german, german], [german, english])
    ... ]
    >>> interp.evaluations.more_passes(*judged).value.item()
    0.5
    """
    if len(confusion.texts) != len(reference.texts):
        raise ValueError(
            f"{len(confusion.texts)} texts cannot be paired with {len(reference.texts)}: judge the "
            "answers to the same prompts."
        )
    return mean_over_examples(confusion.passes.double() - reference.passes.double())

"""The same prompt before and after a change: texts to read, not a rate."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from interp.evaluations.judging import losses_of_texts
from interp.evaluations.writing import generate_texts
from interp.interventions.under import Under
from interp.models.any_model import AnyModel, as_model
from interp.results import terminal
from interp.results.display import MOST_ROWS, Cells, Shown, counted, listed, table_cells
from interp.results.words import NOTHING, Bos
from interp.runs.jobs import refuse_edited
from interp.text.language_id import detect_language
from interp.text.tokens import Prompt


@dataclass(frozen=True, kw_only=True)
class SideBySide(Shown):
    """Texts that continue one prompt, under several changes and with the same seeds.

    >>> off = {"off": neurons.change("de", interp.deactivate)}
    >>> interp.evaluations.write_side_by_side(model, "Der", off, n=2, max_new_tokens=4)
    SideBySide(2 texts under each of nothing, off, after 'Der')
    """

    prompt: str
    """What the texts continue; special tokens, as of a chat template, are spelled out."""

    seeds: tuple[int, ...]
    """Seed of each text, the same under every change."""

    texts: Mapping[str, tuple[str, ...]]
    """By change, a text for each seed."""

    detected: Mapping[str, tuple[str, ...]]
    """The language detected in each text; `und`: it has no letters."""

    loss: Mapping[str, Float64[Tensor, " text"]]
    """Nats per token of each text under the unedited model, without the prompt; NaN: there is no
    token to judge."""

    def __repr__(self) -> str:
        texts = counted(len(self.seeds), "text")
        return f"SideBySide({texts} under each of {listed(self.texts)}, after {self.prompt!r})"

    def _cells(self) -> Cells:
        columns = {
            name: [f"{text} ({self._note(name, row)})" for row, text in enumerate(texts)]
            for name, texts in self.texts.items()
        }
        return table_cells({"seed": [str(seed) for seed in self.seeds], **columns}, "", MOST_ROWS)

    def to_frame(self) -> pd.DataFrame:
        """One row per seed and change."""
        return pd.DataFrame(
            {
                "seed": seed,
                "under": name,
                "text": texts[row],
                "language": self.detected[name][row],
                "loss": float(self.loss[name][row]),
            }
            for row, seed in enumerate(self.seeds)
            for name, texts in self.texts.items()
        )

    def table(self, width: int = 100) -> str:
        """For a terminal of `width` columns: a column for each change, a row for each seed."""
        columns = {
            name + " changed" * (name == NOTHING): [
                f"{text}\n[{self._note(name, row)}]" for row, text in enumerate(texts)
            ]
            for name, texts in self.texts.items()
        }
        lines = [f"Prompt: {terminal.cut(self.prompt, width - 8)}", ""]
        lines += terminal.side_by_side(columns, width)
        lines.append("In brackets: the language detected, and the loss of the unedited model.")
        return "\n".join(lines)

    def _note(self, name: str, row: int) -> str:
        loss = float(self.loss[name][row])
        nats = "" if loss != loss else f", {loss:.2f} nats per token"
        return f"seed {self.seeds[row]}: {self.detected[name][row]}{nats}"


def write_side_by_side(
    model: AnyModel,
    prompt: Prompt,
    under: Under,
    *,
    n: int = 3,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    bos: Bos = "auto",
    progress: bool = True,
) -> SideBySide:
    """`n` texts after one prompt, without any change and under each of `under`.

    The texts of one seed share their random numbers. For a chat model give the tokens of
    `interp.text.chat_prompt`. Three texts are an impression: `interp.generated_languages` measures.

    >>> off = {"off de": neurons.change("de", interp.deactivate)}
    >>> written = interp.evaluations.write_side_by_side(
    ...     model, "Der Zug", off, n=2, max_new_tokens=8, progress=False
    ... )
    >>> written.to_frame()[["seed", "under"]].values.tolist()
    [[0, 'nothing'], [0, 'off de'], [1, 'nothing'], [1, 'off de']]
    """
    model = as_model(model)
    refuse_edited(model, "the texts before the change are those of the untouched model")
    written = generate_texts(
        model,
        [prompt],
        n,
        {NOTHING: None, **under},
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        bos=bos,
        progress=progress,
    )
    (shown,) = set(written[NOTHING].prompts)
    return SideBySide(
        prompt=shown,
        seeds=written[NOTHING].seeds,
        texts={name: generated.texts for name, generated in written.items()},
        detected={
            name: tuple(detect_language(generated.texts)) for name, generated in written.items()
        },
        loss={
            name: losses_of_texts(model, generated.texts, bos, progress=False)[1]
            for name, generated in written.items()
        },
    )

"""Whether a model wants a text to begin with a token of its own."""

from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from interp.models.neuron_model import NeuronModel

_SENTENCES = Path(__file__).parents[1] / "babel" / "parallel"
_LANGUAGES, _PER_LANGUAGE = ("en", "de", "fr", "es", "zh", "ja"), 4
_ALIKE = 0.01
"""Nats per token. Less is no reason to begin a text one way or the other."""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Loss of a few sentences in six languages, with and without a beginning-of-text token.

    >>> beginning = interp.doctor(model).beginning
    >>> beginning.tokens, beginning.put_by_tokenizer, beginning.wanted
    ('<s>', False, True)
    """

    tokens: str
    """What was put before each sentence: what the tokenizer puts there, or, if that is nothing, its
    beginning-of-text token."""

    put_by_tokenizer: bool
    """Whether the tokenizer puts it there."""

    loss_with: float
    """Nats per token of the text, without the first token of each sentence."""

    loss_without: float
    """The same, of the same tokens."""

    @property
    def wanted(self) -> bool | None:
        """Whether the model predicts better with it; None: it makes no difference."""
        gain = self.loss_without - self.loss_with
        return gain > 0 if abs(gain) >= _ALIKE else None

    def __str__(self) -> str:
        does = "puts" if self.put_by_tokenizer else "does not put"
        verdicts = {
            None: "for this model it makes no difference",
            True: "the model wants it",
            False: "the model does better without it",
        }
        verdict = verdicts[self.wanted]
        if self.wanted is not None and self.wanted != self.put_by_tokenizer:
            verdict += f': use bos="{"document" if self.wanted else "none"}"'
        return (
            f"A text begins with {self.tokens}? {self.loss_with:.2f} nats per token with it, "
            f"{self.loss_without:.2f} without. The tokenizer {does} it there; {verdict}."
        )


@torch.no_grad()
def measure_beginning(model: NeuronModel) -> Beginning | None:
    """With what the model wants a text to begin; None: its tokenizer has no token for that, or
    tokens that the model does not have."""
    first, rows = _first_and_rows(model)
    if not rows:
        return None

    def loss(prefix: tuple[int, ...]) -> float:
        texts = [torch.tensor([*prefix, *ids]) for ids in rows]
        ids = pad_sequence(texts, batch_first=True, padding_value=-1)
        mask = ids >= 0
        nats = model.losses(ids.clamp(min=0), mask)[:, len(prefix) :].double().sum().item()
        return nats / sum(len(ids) - 1 for ids in rows)  # zeros on padding

    return Beginning(
        tokens=model.decode(first),
        put_by_tokenizer=bool(model.prefix_ids),
        loss_with=loss(first),
        loss_without=loss(()),
    )


def tokens_of_beginning(model: NeuronModel) -> int:
    """Tokens that `measure_beginning` reads, padding included."""
    first, rows = _first_and_rows(model)
    longest = max(map(len, rows), default=0)
    return len(rows) * (2 * longest + len(first))


def _first_and_rows(model: NeuronModel) -> tuple[tuple[int, ...], list[list[int]]]:
    """What may begin a text, and the tokens of the sentences; no rows: nothing can be measured."""
    first = model.prefix_ids or (() if model.bos_id is None else (model.bos_id,))
    if not first:
        return (), []
    rows = [ids[: model.max_length - len(first)] for ids in model.encode_batch(_sentences())]
    rows = [ids for ids in rows if len(ids) > 1]
    known = max(max(ids) for ids in [first, *rows]) < model.n_vocab
    return first, rows if known else []


@cache
def _sentences() -> list[str]:
    """The first of Babel's parallel sentences in each language."""
    sentences = []
    for code in _LANGUAGES:
        with (_SENTENCES / f"{code}.txt").open(encoding="utf-8") as file:
            sentences += [line.strip() for line in islice(file, _PER_LANGUAGE)]
    return sentences

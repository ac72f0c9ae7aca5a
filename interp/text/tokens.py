"""Rows of tokens: of a prompt, checked; padded to one width; sorted into batches."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.results.words import Start

Prompt = str | Sequence[int] | Int[Tensor, " pos"]
"""Text, read without special tokens, or token ids, which may begin with a beginning-of-text one."""


def prompt_ids(model: NeuronModel, prompt: Prompt, start: Start = "none") -> list[int]:
    """The tokens of a prompt; text begins with the token that `start` names.

    Refused if there are none, more than the model reads, or ids outside its vocabulary.
    """
    if isinstance(prompt, str):
        ids = [*start_ids(model, start), *model.encode(prompt)]
    else:
        ids = list(map(int, prompt))
    if not 0 < len(ids) <= model.max_length:
        raise ValueError(
            f"The prompt {str(prompt)[:40]!r} has {len(ids)} tokens: give 1 to {model.max_length} "
            f"tokens, which is what {model.name} reads."
        )
    for id in ids:
        checked_id(id, model)
    return ids


def checked_id(id: int, model: NeuronModel) -> int:
    """Refuse an id outside the vocabulary."""
    if not 0 <= id < model.n_vocab:
        raise ValueError(f"{id} is no token of {model.name}, which has {model.n_vocab:,}.")
    return int(id)


def start_ids(model: NeuronModel, start: Start) -> list[int]:
    """The token before every text, if any."""
    if start not in get_args(Start):
        raise ValueError(f"start is one of {', '.join(get_args(Start))}, not {start!r}.")
    special = {"bos": model.bos_id, "eos": getattr(model.tokenizer, "eos_token_id", None)}
    if start == "auto":
        return [id for id in special.values() if id is not None][:1]
    if start == "none":
        return []
    id = special[start]
    if id is None:
        raise ValueError(
            f"start is {start!r}, and the tokenizer of {model.name} has no such token: "
            'use start="auto".'
        )
    return [id]


def padded(
    rows: Sequence[Sequence[int]], side: Literal["left", "right"]
) -> tuple[Int64[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Rows of tokens padded to one width, and a mask that is False on the padding."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        here = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, here] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, here] = True
    return ids, mask


def by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Numbers of the rows, shortest first, in batches of at most so many padded tokens.

    A row longer than that has a batch of its own.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch

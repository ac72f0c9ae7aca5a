"""Rows of tokens: encoding prompts, padding, batching by length."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.results.words import Start

Prompt = str | Sequence[int] | Int[Tensor, "_"] | Int[Tensor, "1 _"]
"""Text, encoded without special tokens, or token ids, which may start with a special token."""


def prompt_ids(model: NeuronModel, prompt: Prompt, start: Start = "none") -> list[int]:
    """The tokens of a prompt; `start` names the token to prepend to text.

    Refuses an empty prompt, one longer than the model's limit, and ids outside its vocabulary.
    """
    if isinstance(prompt, str):
        ids = [*start_ids(model, start), *model.encode(prompt)]
    elif isinstance(prompt, Tensor) and prompt.ndim > 1 and prompt.shape[:-1].numel() != 1:
        raise ValueError(f"Tokens of shape {list(prompt.shape)} are not one prompt: give a row.")
    else:
        ids = list(map(int, prompt.flatten() if isinstance(prompt, Tensor) else prompt))
    if not 0 < len(ids) <= model.max_length:
        raise ValueError(
            f"The prompt {str(prompt)[:40]!r} has {len(ids)} tokens: give 1 to {model.max_length}, "
            f"the limit of {model.name}."
        )
    for id in ids:
        checked_id(id, model)
    return ids


def checked_id(id: int, model: NeuronModel) -> int:
    """Refuse an id outside the vocabulary."""
    if not 0 <= id < model.n_vocab:
        raise ValueError(f"{id} is not a token of {model.name}, which has {model.n_vocab:,}.")
    return int(id)


def start_ids(model: NeuronModel, start: Start) -> list[int]:
    """The token to prepend to every text, if any."""
    if start not in get_args(Start):
        raise ValueError(f"start must be one of {', '.join(get_args(Start))}, not {start!r}.")
    special = {"bos": model.bos_id, "eos": getattr(model.tokenizer, "eos_token_id", None)}
    if start == "auto":
        return [id for id in special.values() if id is not None][:1]
    if start == "none":
        return []
    id = special[start]
    if id is None:
        raise ValueError(
            f"start is {start!r}, but the tokenizer of {model.name} has no such token: "
            'use start="auto".'
        )
    return [id]


def padded(
    rows: Sequence[Sequence[int]], side: Literal["left", "right"]
) -> tuple[Int64[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Rows of tokens padded to the same width, and a mask that is False on padding."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        span = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, span] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, span] = True
    return ids, mask


def by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Batches of row indices, shortest rows first, of at most `tokens_per_batch` padded tokens.

    A longer row gets its own batch.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch

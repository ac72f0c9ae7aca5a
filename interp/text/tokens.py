"""Rows of tokens: encoding prompts, padding, batching by length."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results.words import Bos
from interp.text.corpora import TextModel

Prompt = str | Sequence[int] | Int[Tensor, "_"] | Int[Tensor, "1 _"]
"""Text; or token ids, to which nothing is added."""


def prompt_ids(model: AnyModel, prompt: Prompt, bos: Bos = "auto") -> list[int]:
    """The tokens of a prompt; `bos` says what is put before text, and changes no token ids.

    Refuses an empty prompt, one longer than the model's limit, and ids outside its vocabulary.

    >>> interp.text.prompt_ids(model, "Guten Morgen") == model.encode("Guten Morgen")
    True
    >>> interp.text.prompt_ids(model, "Guten Morgen", "document")[0] == model.bos_id
    True
    """
    model = as_model(model)
    if isinstance(prompt, str):
        text = model.encode(prompt)
        ids = [*beginning(model, bos), *text] if text else []
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


def n_added(model: NeuronModel, prompt: Prompt, bos: Bos) -> int:
    """How many tokens `bos` puts before a prompt."""
    return len(beginning(model, bos)) if isinstance(prompt, str) else 0


def checked_id(id: int, model: NeuronModel) -> int:
    """Refuse an id outside the vocabulary."""
    if not 0 <= id < model.n_vocab:
        raise ValueError(f"{id} is not a token of {model.name}, which has {model.n_vocab:,}.")
    return int(id)


def beginning(model: TextModel, bos: Bos) -> tuple[int, ...]:
    """The tokens that `bos` puts before a sentence, a prompt, or each block or document."""
    if bos not in get_args(Bos):
        raise ValueError(f"bos must be one of {', '.join(get_args(Bos))}, not {bos!r}.")
    if bos == "none":
        return ()
    prefix = model.prefix_ids
    if bos == "auto" or prefix:
        return prefix
    if model.bos_id is None:
        raise ValueError(
            f'bos is "{bos}", but the tokenizer has no beginning-of-text token: use bos="auto".'
        )
    return (model.bos_id,)


def against_the_tokenizer(model: NeuronModel, bos: Bos) -> str:
    """A sentence, if `bos` begins texts in another way than the model's tokenizer; else empty."""
    put, own = beginning(model, bos), model.prefix_ids
    if put == own:
        return ""
    if own:
        return (
            f"Read without {model.decode(own)}, which the tokenizer of {model.name} puts before "
            'every text: bos="auto" reads with it.'
        )
    return (
        f"Read with {model.decode(put)} before each {'block' if bos == 'block' else 'document'}, "
        f"where the tokenizer of {model.name} puts nothing."
    )


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

"""Prompts and targets of attribution, as token ids that are checked."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from interp.models.neuron_model import NeuronModel

Prompt = str | Sequence[int] | Int[Tensor, " pos"]
"""Text, read without special tokens, or token ids, which may begin with a beginning-of-text one."""


Target = int | str | tuple[int | str, int | str]
"""A token id; or text, of which the first token counts; or two of these, to explain a difference.
"""


def target_ids(model: NeuronModel, prompt: Prompt, target: Target) -> tuple[int, ...]:
    """The token, or the two, that a target means after this prompt.

    Of text, the first token that the tokenizer gives it behind the prompt, spaces included: mostly
    " Paris", and not "Paris". Refused where it gives none, or where it joins the two at the seam.
    """
    if isinstance(target, tuple):
        return tuple(_first_token(model, prompt, each) for each in target)
    return (_first_token(model, prompt, target),)


def _first_token(model: NeuronModel, prompt: Prompt, target: int | str) -> int:
    if not isinstance(target, str):
        return checked_id(target, model)
    ids = checked_prompt(model, prompt)
    text = prompt if isinstance(prompt, str) else model.decode(ids)
    both = model.encode(text + target)
    if both == ids or not target:
        raise ValueError(f"The target {target!r} is no token behind the prompt: give some text.")
    if both[: len(ids)] != ids:
        raise ValueError(
            f"The tokenizer of {model.name} reads the end of the prompt and the beginning of "
            f"{target!r} as one token: move spaces from the end of the prompt to the beginning of "
            "the target, or give token ids."
        )
    return both[len(ids)]


def checked_prompt(model: NeuronModel, prompt: Prompt) -> list[int]:
    ids = model.encode(prompt) if isinstance(prompt, str) else list(map(int, prompt))
    if not ids:
        raise ValueError("The prompt has no tokens: give some text, or a beginning-of-text token.")
    for each in ids:
        checked_id(each, model)
    return ids


def checked_id(id: int, model: NeuronModel) -> int:
    if not 0 <= id < model.n_vocab:
        raise ValueError(f"{id} is no token of {model.name}, which has {model.n_vocab:,}.")
    return int(id)

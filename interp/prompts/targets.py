"""Targets of attribution and patching, as checked token ids."""

from interp.models.neuron_model import NeuronModel
from interp.text.tokens import Prompt, checked_id, prompt_ids

Target = int | str | tuple[int | str, int | str]
"""A token id; or text, whose first token counts; or two of these, to explain a difference."""


def target_ids(model: NeuronModel, prompt: Prompt, target: Target) -> tuple[int, ...]:
    """The one or two token ids that a target stands for after this prompt.

    For text, its first token when tokenized after the prompt, spaces included: usually " Paris",
    not "Paris". An error if there is none, or if a token joins the end of the prompt and the text.
    """
    if isinstance(target, tuple):
        return tuple(_first_token(model, prompt, part) for part in target)
    return (_first_token(model, prompt, target),)


def _first_token(model: NeuronModel, prompt: Prompt, target: int | str) -> int:
    if not isinstance(target, str):
        return checked_id(target, model)
    ids = prompt_ids(model, prompt, "none")
    text = prompt if isinstance(prompt, str) else model.decode(ids)
    both = model.encode(text + target)
    if both == ids or not target:
        raise ValueError(f"The target {target!r} adds no token to the prompt: give some text.")
    if both[: len(ids)] != ids:
        raise ValueError(
            f"The tokenizer of {model.name} reads the end of the prompt and the beginning of "
            f"{target!r} as one token: move spaces from the end of the prompt to the beginning of "
            "the target, or give token ids."
        )
    return both[len(ids)]

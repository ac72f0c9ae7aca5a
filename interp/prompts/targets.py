"""Prompts and targets of attribution, as token ids that are checked."""

from interp.models.neuron_model import NeuronModel
from interp.text.tokens import Prompt, checked_id, prompt_ids

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
    ids = prompt_ids(model, prompt)
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

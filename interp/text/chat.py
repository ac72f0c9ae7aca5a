"""A message to a chat model, in the template that its tokenizer comes with."""

from typing import Any

from interp.models.any_model import AnyModel, as_model


def chat_prompt(model: AnyModel, message: str) -> list[int]:
    """The tokens of a user's message in the model's chat template, up to where the answer begins.

    Give them wherever a prompt is taken: the template has its own beginning of text, so nothing is
    put before them. A base model has no template, and is refused.

    >>> interp.text.chat_prompt(model, "Wo liegt Wien?")
    Traceback (most recent call last):
    ValueError: babel has no chat template, ... give the prompt as plain text.
    """
    model = as_model(model)
    tokenizer: Any = model.tokenizer
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"{model.name} has no chat template, so it is not a chat model: give the prompt as "
            "plain text."
        )
    messages = [{"role": "user", "content": message}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return model.encode(text)

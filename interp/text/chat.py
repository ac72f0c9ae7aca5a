"""A message to a chat model, in the template that its tokenizer comes with."""

from typing import Any

from interp.models.any_model import AnyModel, as_model
from interp.text.tasks import Task


def chat_text(model: AnyModel, message: str) -> str:
    """A user's message in the model's chat template, up to where the answer begins.

    The template has its own beginning of text, so read it with bos="none". A base model has no
    template, and is refused.

    >>> interp.text.chat_text(model, "Wo liegt Wien?")
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
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def chat_prompt(model: AnyModel, message: str) -> list[int]:
    """The tokens of `chat_text`: give them wherever a prompt is taken, and nothing is put before.

    >>> interp.text.chat_prompt(model, "Wo liegt Wien?")
    Traceback (most recent call last):
    ValueError: babel has no chat template, ... give the prompt as plain text.
    """
    model = as_model(model)
    return model.encode(chat_text(model, message))


def chat_task(model: AnyModel, task: Task) -> Task:
    """The task as a chat: every prompt is the user's message, every option an answer to it.

    Read it with bos="none". Options lose the spaces that they begin with, since an answer begins a
    text of its own.

    >>> interp.text.chat_task(model, interp.read_task("babel/fact_completion", "de"))
    Traceback (most recent call last):
    ValueError: babel has no chat template, ... give the prompt as plain text.
    """
    model = as_model(model)
    items = tuple(
        item._replace(
            prompt=chat_text(model, item.prompt),
            options=tuple(option.lstrip() for option in item.options),
        )
        for item in task.items
    )
    return Task(task.name, task.language, items)

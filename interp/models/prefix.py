"""What a tokenizer puts before a text."""

from itertools import takewhile
from typing import Any


def prefix_of(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a tokenizer puts before every text that it encodes by itself.

    They begin the encodings of nothing and of two letters; a space that some tokenizers put before
    a text is text, and begins the encodings without special tokens too.
    """
    if tokenizer is None:
        return ()
    texts = ("", "a", "b")
    shared = _shared([tokenizer(text)["input_ids"] for text in texts])
    bare = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    own = _shared([ids for ids in bare if ids])
    # At the end of what is shared, since special tokens come first.
    return tuple(shared[: -len(own)] if own and shared[-len(own) :] == own else shared)


def bos_of(tokenizer: Any) -> int | None:
    """The beginning-of-text token; None if the tokenizer has none. If the tokenizer puts other
    tokens before a text than its `bos_token`, the first of these: XGLM declares <s> but puts </s>.
    """
    own, prefix = getattr(tokenizer, "bos_token_id", None), prefix_of(tokenizer)
    return own if not prefix or own in prefix else prefix[0]


def _shared(rows: list[list[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    columns = zip(*rows, strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]

"""Hashes that show whether two models, or two tokenizers, are the same."""

import hashlib
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn


def hash_of_weights(parameters: Mapping[str, nn.Parameter]) -> str:
    """Hash of the names, shapes, types and bytes of all parameters that are in memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(parameters.items()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        if not parameter.is_meta:
            raw = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().data)
    offloaded = any(parameter.is_meta for parameter in parameters.values())
    return digest.hexdigest() + (" (without offloaded weights)" if offloaded else "")


def hash_of_tokenizer(tokenizer: Any) -> str:
    """Hash of how text is split into tokens; padding and prepended special tokens do not count.

    A large vocabulary takes about a second, so the hash is kept with the tokenizer and computed
    again if its rules, added tokens, the size of its vocabulary or a sample of it have changed.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _digest([sorted(tokenizer.get_vocab().items()), type(tokenizer).__name__])
    seen = _digest([_rules(backend), _sample(backend)])
    known = _HASHES.get(tokenizer)
    if known is None or known.backend is not backend or known.seen != seen:
        vocabulary = hashlib.blake2b(backend.model.__getstate__(), digest_size=16).hexdigest()
        known = _HASHES[tokenizer] = _Hashed(backend, seen, _digest([_rules(backend), vocabulary]))
    return known.hash


@dataclass(frozen=True)
class _Hashed:
    """The hash of a tokenizer, and what it looked like then."""

    backend: Any
    seen: str
    hash: str


_HASHES: MutableMapping[Any, _Hashed] = WeakKeyDictionary()
"""By tokenizer, as long as it exists."""

_SAMPLES = 256
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")  # of an added token


def _rules(backend: Any) -> list[Any]:
    """Everything about a tokenizer of the library tokenizers but its vocabulary and merges."""
    parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    states = [None if part is None else part.__getstate__().decode() for part in parts]
    added = [
        (id, token.content, *(getattr(token, flag) for flag in _FLAGS))
        for id, token in sorted(backend.get_added_tokens_decoder().items())
    ]
    return [states, added]


def _sample(backend: Any) -> list[Any]:
    """The settings of the model, the size of its vocabulary, and tokens spread over it."""
    names = [name for name in dir(backend.model) if not name.startswith("_")]
    settings = {name: getattr(backend.model, name) for name in names}
    simple = {
        name: value
        for name, value in settings.items()
        if value is None or isinstance(value, str | int | float)
    }
    n = backend.get_vocab_size(with_added_tokens=False)
    ids = range(0, n, max(1, n // _SAMPLES))
    return [simple, n, [backend.id_to_token(id) for id in ids]]


def _digest(parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

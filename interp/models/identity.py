"""Hashes that show whether two models, or two tokenizers, are the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

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
    """Hash of how text is split into tokens; padding and prepended special tokens do not count."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        parts: Any = [sorted(tokenizer.get_vocab().items()), type(tokenizer).__name__]
    else:
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        for volatile in ("padding", "truncation", "post_processor"):
            parts.pop(volatile, None)
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

"""The hash of a tokenizer: computed once, and again when the tokenizer changes."""

import gc
import hashlib
import json
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from interp.models.identity import hash_of_tokenizer
from tests import tiny_models


@pytest.fixture
def hashes_refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, hashing a vocabulary fails."""
    real = hashlib.blake2b

    def small_only(data: bytes, **settings: Any) -> Any:
        assert b'"vocab"' not in data
        return real(data, **settings)

    return lambda: monkeypatch.setattr(hashlib, "blake2b", small_only)


def test_a_vocabulary_is_hashed_once(hashes_refused: Callable[[], None]) -> None:
    tokenizer = tiny_models.tokenizer()
    before = hash_of_tokenizer(tokenizer)
    hashes_refused()
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=4)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )
    assert hash_of_tokenizer(tokenizer) == before
    with pytest.raises(AssertionError):
        hash_of_tokenizer(tiny_models.tokenizer())


def test_equal_tokenizers_have_equal_hashes(tmp_path: Any) -> None:
    tiny_models.tokenizer().save_pretrained(tmp_path)
    stored = AutoTokenizer.from_pretrained(tmp_path)
    assert hash_of_tokenizer(stored) == hash_of_tokenizer(tiny_models.tokenizer())


@pytest.mark.slow
def test_a_hash_keeps_no_tokenizer_alive() -> None:
    tokenizer = tiny_models.tokenizer()
    hash_of_tokenizer(tokenizer)
    reference = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert reference() is None


def model_state(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


def rename_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """The vocabulary keeps its size."""
    state = model_state(tokenizer)
    vocabulary = {{"qu": "uq"}.get(token, token): id for token, id in state["vocab"].items()}
    merges = [(first, second) for first, second in state["merges"] if first + second != "qu"]
    tokenizer.backend_tokenizer.model = models.BPE(vocab=vocabulary, merges=merges)


def replace_the_backend(tokenizer: PreTrainedTokenizerFast) -> None:
    """The vocabulary stays, the merges are in another order."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["merges"].reverse()
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


CHANGES: dict[str, Callable[[PreTrainedTokenizerFast], object]] = {
    "a new token": lambda tokenizer: tokenizer.add_tokens(["Haus"]),
    "a normalizer": lambda tokenizer: setattr(
        tokenizer.backend_tokenizer, "normalizer", normalizers.Lowercase()
    ),
    "other words": lambda tokenizer: setattr(
        tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace()
    ),
    "dropout": lambda tokenizer: setattr(tokenizer.backend_tokenizer.model, "dropout", 0.5),
    "another token": rename_a_token,
    "other merges": replace_the_backend,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_tokenizer_has_another_hash(
    change: Callable[[PreTrainedTokenizerFast], object],
) -> None:
    tokenizer, untouched = tiny_models.tokenizer(), tiny_models.tokenizer()
    before = hash_of_tokenizer(tokenizer)
    change(tokenizer)
    assert hash_of_tokenizer(tokenizer) != before == hash_of_tokenizer(untouched)


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "WordPiece"])
def test_tokenizers_of_every_kind_are_hashed(kind: str) -> None:
    def hashed(*tokens: str) -> str:
        vocabulary: Any = {token: id for id, token in enumerate(tokens)}
        settings: dict[str, Any] = {"unk_token": "?"}
        if kind == "Unigram":
            vocabulary, settings = [(token, -1.0) for token in tokens], {"unk_id": 0}
        backend = Tokenizer(getattr(models, kind)(vocabulary, **settings))
        return hash_of_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))

    assert hashed("?", "a", "b") == hashed("?", "a", "b") != hashed("?", "b", "a")

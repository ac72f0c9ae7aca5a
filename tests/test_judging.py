import math
import random
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.evaluations.judging import _words, judge_texts
from interp.evaluations.languages_written import Guard, language_rates, natural_guard
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.text.counterfactuals import words_shuffled
from interp.text.tokens import beginning
from tests import tiny_models

TEXTS = (
    "Der alte Leuchtturmwärter schrieb seiner Schwester jede Woche einen Brief.",
    "The old lighthouse keeper (a tall man) wrote a letter, and then another one.",
    "那位年老的灯塔看守人每个星期都给他的妹妹写一封信。",
)
JA = "海の見えるコンピューターの部屋で、祖母は毎朝コーヒーを飲んでいる。"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    return load(tiny_models.build("llama", tmp_path_factory.mktemp("llama")), device="cpu")


@pytest.fixture(scope="module")
def babel() -> NeuronModel:
    return load("babel", dtype=torch.float32, device="cpu")


def total_nats(model: NeuronModel, text: str, bos: Any) -> tuple[float, int]:
    """Of a text read alone, and of how many tokens."""
    row = [*beginning(model, bos), *model.encode(text)][: model.max_length]
    share = model.logits(torch.tensor([row]))[0].log_softmax(dim=-1)
    nats = [-float(share[at, token]) for at, token in enumerate(row[1:])]
    return math.fsum(nats), len(nats)


@pytest.mark.parametrize("bos", ["auto", "none"])
def test_word_order_is_what_the_same_words_cost_more_in_another_order(llama: NeuronModel, bos: Any):
    long = " ".join(f"word{n}" for n in range(60))
    texts = [*TEXTS, long]
    judged = judge_texts(llama, texts, bos, tokens_per_batch=90, progress=False)
    for text, order in zip(texts, judged.word_order.tolist(), strict=True):
        other = words_shuffled(partial(_words, llama))(text)
        assert other != text
        assert Counter(other) == Counter(text)
        (before, n), (after, _) = (total_nats(llama, each, bos) for each in (text, other))
        assert order == pytest.approx((after - before) / n, abs=1e-4)
    assert len(llama.encode(long)) > llama.max_length
    whole = language_rates(texts, ["de"], None, llama, bos=bos, progress=False)
    torch.testing.assert_close(whole.word_order, judged.word_order)
    torch.testing.assert_close(whole.loss, judged.loss)


def test_an_order_of_more_tokens_is_divided_by_the_tokens_of_the_text(babel: NeuronModel):
    """Shuffled, words may be cut into more tokens, which would make the mean over them smaller."""
    texts = [JA, "Katzenfutter gibt es heute keines, Hundefutter schon"]
    orders = judge_texts(babel, texts, "auto", progress=False).word_order.tolist()
    for text, order in zip(texts, orders, strict=True):
        other = words_shuffled(partial(_words, babel))(text)
        (before, n), (after, m) = (total_nats(babel, each, "auto") for each in (text, other))
        assert m > n
        assert order == pytest.approx((after - before) / n, abs=1e-4)


def test_words_that_are_all_alike_have_no_order_to_lose(llama: NeuronModel):
    texts = ["Englisch", "Englisch " * 9, "...", "", "alle meine"]
    orders = judge_texts(llama, texts, "auto", progress=False).word_order.tolist()
    assert orders[:3] == [0, 0, 0]
    assert math.isnan(orders[3])


def test_a_text_below_the_bound_on_word_order_is_not_good(llama: NeuronModel):
    german = [TEXTS[0], "Gestern Abend haben wir lange über das neue Haus am Fluss gesprochen."]
    orders = language_rates(german, ["de"], None, llama, progress=False).word_order.tolist()
    low, high = sorted(orders)
    for bound, good in ((low, 2), ((low + high) / 2, 1), (high + 1e-6, 0)):
        guard = Guard(min_word_order=bound)
        found = language_rates(german, ["de"], guard, llama, progress=False)
        assert (found.good("de").count, found.rate("de").count) == (good, 2)
        expected = [order >= bound for order in orders]
        assert found.passes.tolist() == expected
    with pytest.raises(ValueError, match=r"bounds loss or word order: give the model"):
        language_rates(german, ["de"], Guard(min_word_order=0.1))


def test_words_without_spaces_between_them_are_the_tokens_of_the_model(babel: NeuronModel):
    letters = "".join(character for character in JA if character.isalpha())
    words = _words(babel, letters)
    assert "".join(words) == letters
    assert len(words) <= len(babel.encode(letters))
    assert all(word and "\ufffd" not in word for word in words)
    shuffled = words_shuffled(partial(_words, babel))(JA)
    assert Counter(shuffled) == Counter(JA)
    assert shuffled[-1] == "。"
    for run in re.findall(r"[^、。]+", JA):
        assert all(word in shuffled for word in _words(babel, run))


def test_letters_that_the_tokenizer_changes_are_words_of_their_own(
    llama: NeuronModel, monkeypatch: pytest.MonkeyPatch
):
    encode = llama.encode
    monkeypatch.setattr(llama, "encode", lambda text: encode(text.lower()))
    assert "".join(_words(llama, "abc")) == "abc"
    assert _words(llama, "ABC") == ["A", "B", "C"]


def in_another_order(text: str, rng: random.Random) -> str:
    """The words in an order of the test's own; in Chinese and Japanese, the characters."""
    words = text.split(" ")
    if len(words) > 3:
        return " ".join(rng.sample(words, len(words)))
    return "".join(rng.sample(text, len(text)))


@pytest.mark.slow
@pytest.mark.parametrize("code", ["en", "de", "fr", "es", "zh", "ja"])
def test_natural_text_has_word_order_and_shuffled_text_has_none(babel: NeuronModel, code: str):
    folder = Path(interp.__file__).parent / "babel" / "parallel"
    lines = (folder / f"{code}.txt").read_text(encoding="utf-8").splitlines()
    rng = random.Random(0)
    rng.shuffle(lines)
    settings: Any = {"bos": "block", "progress": False}
    guard = natural_guard(babel, {code: lines[:300]}, max_tokens=32, **settings)[code]
    bound = Guard(min_word_order=guard.min_word_order)
    held = [babel.decode(babel.encode(line)[:32]) for line in lines[300:400]]
    shuffled = [in_another_order(text, rng) for text in held]
    natural, mixed = (
        language_rates(texts, [code], bound, babel, **settings) for texts in (held, shuffled)
    )
    assert 0.9 < guard.natural <= 0.95
    assert (natural.word_order >= bound.min_word_order).double().mean() > 0.85
    assert (mixed.word_order >= bound.min_word_order).double().mean() < 0.12
    assert natural.word_order.median() > 4 * mixed.word_order.abs().median()

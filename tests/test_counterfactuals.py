# ruff: noqa: RUF001 (text in several scripts)
"""Counterfactual text: what is taken away is gone, and all the rest is as it was."""

import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.text.counterfactuals import KINDS, _frequency_bins, cyrillic, rewriter, split_label
from interp.text.labels import check_labels
from interp.text.languages import label_name
from interp.text.reading import read_corpora, read_sentences, with_counterfactuals
from tests.test_corpora import Bytes, Letters, decoded

RUSSIAN = "Старый смотритель маяка каждую неделю писал письмо своей сестре."
HINDI = "यह हिन्दी में लिखा एक पाठ है।"
CHINESE = "那位年老的灯塔看守人每个星期都给他的妹妹写一封信。"
GERMAN = "Der alte Leuchtturmwärter schrieb seiner Schwester: „Große Öfen, ja!“"
TEXTS = {"ru": RUSSIAN, "hi": HINDI, "zh": CHINESE, "de": GERMAN}
BY_WORDS = ("words-shuffled", "letters-shuffled", "words-replaced")


def words_of(text: str) -> list[str]:
    return "".join(x if unicodedata.category(x)[0] in "LMN" else " " for x in text).split()


@pytest.mark.parametrize("code", ["ru", "hi", "zh"])
def test_romanised_text_has_latin_letters_and_its_punctuation(code: str):
    written = rewriter("romanised", [TEXTS[code]])(TEXTS[code])
    assert written.isascii()
    assert len(written.split()) == len(TEXTS[code].split())
    assert rewriter("romanised", [RUSSIAN])("Привет, мир!") == "Privet, mir!"


def test_latin_letters_become_cyrillic_ones_and_none_become_one():
    written = cyrillic(GERMAN)
    assert not any("LATIN" in unicodedata.name(x) for x in written)
    assert written.startswith("Дер алте Леуцхттурмвäртер".replace("вä", "ўӓ"))
    alphabet = "abcdefghijklmnopqrstuvwxyzßæøðþłđıŋə"
    assert len(set(cyrillic(alphabet))) == len(alphabet)
    assert [x.isupper() for x in written] == [x.isupper() for x in GERMAN]


def test_each_script_has_one_counterpart():
    with pytest.raises(ValueError, match=r"Most letters are Latin, so romanised .* use cyrillic"):
        rewriter("romanised", [GERMAN])
    with pytest.raises(ValueError, match=r"Few letters are Latin, so cyrillic .* use romanised"):
        rewriter("cyrillic", [RUSSIAN])
    source = {code: [text] for code, text in TEXTS.items()}
    labels = with_counterfactuals(source, ["ru", "de"], ["romanised", "cyrillic", "tokens-drawn"])
    assert labels == (
        *("ru", "de", "ru~romanised", "ru~tokens-drawn", "de~cyrillic", "de~tokens-drawn"),
    )


@pytest.mark.parametrize("code", TEXTS)
def test_shuffled_words_are_the_same_words_in_another_order(code: str):
    text = TEXTS[code]
    written = rewriter("words-shuffled", [text])(text)
    assert written != text
    assert Counter(written) == Counter(text)
    if code != "zh":  # there are no spaces between words
        assert Counter(words_of(written)) == Counter(words_of(text))


@pytest.mark.parametrize("code", ["ru", "hi", "de"])
def test_shuffled_letters_stay_in_their_word(code: str):
    text = TEXTS[code]
    written = rewriter("letters-shuffled", [text])(text)
    assert written != text
    assert [sorted(word) for word in words_of(written)] == [sorted(w) for w in words_of(text)]
    assert words_of(written) != words_of(text)
    # A mark stays behind the letter it stands on.
    marks = Counter(pair for pair in pairwise(text) if not pair[1].isalpha())
    found = Counter(p for p in pairwise(written) if not p[1].isalpha())
    inside = {pair: n for pair, n in marks.items() if unicodedata.category(pair[1])[0] == "M"}
    assert inside == {p: n for p, n in found.items() if unicodedata.category(p[1])[0] == "M"}


def test_words_are_replaced_by_others_of_their_frequency():
    words = [f"w{rank}" for rank in range(100) for _ in range(1000 // (rank + 1))]
    text = ", ".join(words)
    bins = _frequency_bins([text])
    new = words_of(rewriter("words-replaced", [text])(text))
    assert len(new) == len(words)
    assert all(one != other and other in bins[one] for one, other in zip(words, new, strict=True))
    assert [len(bins[f"w{rank}"]) for rank in (0, 2, 4, 8, 16, 40, 70)] == [2, 2, 4, 8, 16, 32, 36]
    assert {int(word[1:]) for word in bins["w5"]} == {4, 5, 6, 7}


@given(st.text(max_size=60))
def test_all_kinds_take_any_text_and_give_the_same_twice(text: str):
    text = text.encode("utf-8", "replace").decode()
    for kind in BY_WORDS:
        one, other = rewriter(kind, [text])(text), rewriter(kind, [text])(text)
        assert one == other
    assert len(rewriter("words-shuffled", [text])(text)) == len(text)


def lines(n: int = 40) -> dict[str, list[str]]:
    words = RUSSIAN.rstrip(".").split()
    return {"ru": [" ".join(words[i % 5 :] * (1 + i % 3)) + f" {i}." for i in range(n)]}


def read(labels, model, **settings):
    defaults = {"block_length": 8, "n_shards": 4, "hygiene": "off", "progress": False}
    return read_corpora(lines(), labels, model, **(defaults | settings))


def numbers(text: str) -> set[str]:
    return set(filter(str.isdigit, words_of(text)))


@pytest.mark.parametrize("kind", ["romanised", "letters-shuffled", "words-replaced"])
def test_a_document_and_its_counterfactual_share_a_shard(kind: str):
    labels = ["ru", f"ru~{kind}"]
    text = read_sentences(lines(), labels, Letters(max_length=500), n_shards=4, progress=False)
    assert text.languages == tuple(labels)
    assert text.rows[labels[0]].source == text.rows[labels[1]].source
    assert torch.equal(text.rows[labels[0]].shard, text.rows[labels[1]].shard)
    assert text.hygiene.keys() == {"ru"}
    blocks = read(labels, Letters(max_length=500), block_length=16)
    for shard in range(4):
        one, other = (
            decoded(rows.ids[rows.shard == shard]) for rows in map(blocks.rows.get, labels) if rows
        )
        assert len(numbers(one) & numbers(other)) >= 4 or kind == "words-replaced"


def test_shards_of_blocks_do_not_depend_on_the_bytes_of_the_counterfactual():
    """In bytes, Russian is twice as long as romanised: dealt by their own size they would part."""
    for tokens in (None, 4 * 64):
        text = read(["ru", "ru~romanised"], Letters(max_length=500), block_length=16, tokens=tokens)
        shards = []
        for rows in text.rows.values():
            found = {}
            for source, shard in zip(rows.source, rows.shard.tolist(), strict=True):
                found[source] = shard
            shards.append(found)
        common = shards[0].keys() & shards[1].keys()
        assert len(common) > 4
        assert {source: shards[0][source] for source in common} == {
            source: shards[1][source] for source in common
        }


def test_drawn_tokens_have_the_frequencies_of_the_text_and_no_order():
    text = read(["ru", "ru~tokens-drawn"], Bytes(max_length=500), block_length=32)
    own, drawn = (Counter(rows.ids.flatten().tolist()) for rows in text.rows.values())
    assert own.total() == drawn.total()
    assert drawn.keys() <= own.keys()
    assert all(abs(own[id] - drawn[id]) < 6 * own[id] ** 0.5 + 6 for id in own)
    pairs = [Counter(pairwise(rows.ids.flatten().tolist())) for rows in text.rows.values()]
    assert len(pairs[1]) > 3 * len(pairs[0])  # Russian in bytes has few pairs, chance has many


def test_shuffled_words_take_along_what_an_apostrophe_or_a_hyphen_joins_to_them():
    text = "L'eau de l\u2019arc-en-ciel - 'qui' passe- par là, n'est pas chaude aujourd'hui."
    written = rewriter("words-shuffled", [text])(text)
    whole = ["L'eau", "l\u2019arc-en-ciel", "n'est", "aujourd'hui"]
    assert written != text
    assert Counter(written) == Counter(text)
    assert all(word in written for word in whole)
    assert "'qui'" not in written  # a quotation mark joins nothing


def test_other_text_gets_other_changes():
    orders = []
    for word in ("wort", "mot"):
        text = " ".join(f"{word}{n}" for n in range(30))
        written = rewriter("words-shuffled", [text])(text)
        orders.append([int(found.removeprefix(word)) for found in written.split()])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1]


def test_a_counterfactual_is_a_label_and_a_misspelled_one_is_none():
    assert split_label("ru~romanised") == ("ru", "romanised")
    assert split_label("ru") == ("ru", None)
    assert check_labels(["ru", *(f"ru~{kind}" for kind in KINDS)])[1] == "ru~romanised"
    assert label_name("ru~romanised") == "Russian~romanised"
    for wrong in ("ru~romanized", "ru~", "ru~romanised~cyrillic"):
        with pytest.raises(ValueError, match=r"behind ~ stands"):
            check_labels([wrong])
        with pytest.raises(ValueError, match=r"behind ~ stands one of romanised, cyrillic"):
            split_label(wrong)

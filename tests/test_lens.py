"""The lens against the model's own last steps; spellings against brute force; planted neurons."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import interp
from interp.counting.stats import ActivationMoments
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.prompts.lens import (
    Lens,
    Question,
    Spelling,
    languages_of,
    last_states,
    logit_lens,
    promoted_languages,
    read_out,
    token_bytes,
    token_languages,
)
from interp.prompts.patching import patch
from interp.text.tasks import read_task
from interp.text.tokens import prompt_ids
from tests import tiny_models
from tests.test_patching import planted
from tests.tiny_models import BOS, N_LAYERS, N_VOCAB

SHAPES = ("llama", "qwen3", "bloom", "xglm", "gemma2", "opt")
PROMPTS = ("the dog", "a red sea and the quiet city", "hus")


@pytest.fixture(scope="session")
def open_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NeuronModel]:
    @functools.cache
    def open_once(name: str) -> NeuronModel:
        if name == "babel":
            return load("babel", dtype=torch.float32)
        return load(tiny_models.build(name, tmp_path_factory.mktemp("checkpoint")))

    return open_once


# ---------------------------------------------------------------- reading layers


@pytest.mark.parametrize("name", SHAPES)
def test_the_last_layer_says_what_the_model_says(open_model, name):
    model = open_model(name)
    prompts = [model.encode(prompt) for prompt in PROMPTS]
    states = last_states(model, prompts)
    for prompt, state in zip(prompts, states, strict=True):
        own = model.logits(torch.tensor([prompt]), keep=1)[0, -1]
        assert read_out(model, state)[-1].allclose(own, atol=1e-4)
        # Handing a layer's state to the last layer is a patch of the prompt into itself.
        assert (read_out(model, state)[0] - own).abs().max() > 0.1


def test_a_layer_is_read_through_norm_and_unembedding(open_model):
    model = open_model("llama")
    hf = model.bridge.original_model
    states = last_states(model, [model.encode(PROMPTS[1])])[0]
    with torch.no_grad():
        expected = hf.lm_head(hf.model.norm(states))
    assert read_out(model, states).allclose(expected, atol=1e-5)
    many = states.repeat(70, 1)  # more than one pass may hold
    assert read_out(model, many).allclose(expected.repeat(70, 1), atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_states_are_read_without_the_blocks_before_the_last(open_model, name):
    model = open_model(name)
    states = torch.randn(10, model.d_model, generator=torch.Generator().manual_seed(0))
    last = (model.site(model.n_layers - 1, "resid_post"), lambda values, hook: states[None])
    ids = torch.zeros(1, len(states), dtype=torch.int64)
    with model.hooks([last]):
        expected = model.logits(ids)[0]  # all blocks run, and their output is overwritten
    widths = []
    seen = (model.site(0, "post"), lambda values, hook: widths.append(values.shape[1]))
    with model.hooks([seen]):
        assert read_out(model, states).allclose(expected, atol=1e-5)
    assert widths == [1]  # one token shows the form of their output
    before = model.logits(ids)
    assert torch.equal(model.logits(ids), before)
    assert (before[0] - expected).abs().max() > 0.1  # afterwards the blocks run again


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_probabilities_entropies_and_top_tokens_are_what_they_say(open_model, name):
    model = open_model(name)
    answers = {"en": "the", "de": "Ufer"}
    found = logit_lens(
        model, [Question(prompt, answers) for prompt in PROMPTS], 3, tokens_per_batch=40
    )
    spelling = Spelling(model)
    for row, prompt in enumerate(PROMPTS):
        states = last_states(model, [prompt_ids(model, prompt)])[0]
        chance = read_out(model, states).double().softmax(-1)
        for layer in range(N_LAYERS):
            for column, word in enumerate(answers.values()):
                expected = sum(float(chance[layer, id]) for id in spelling.beginnings(word))
                assert found.probability[row, layer, column] == pytest.approx(expected, abs=1e-5)
            nats = -float((chance[layer] * chance[layer].log()).sum())
            assert found.entropy[row, layer] == pytest.approx(nats, abs=1e-4)
            best = chance[layer].argsort(descending=True)[:3]
            assert found.top[row, layer].tolist() == best.tolist()
    frame = found.to_frame()
    assert frame.shape[0] == 2 * N_LAYERS
    one = frame[(frame.layer == 1) & (frame.language == "de")].iloc[0]
    assert one.probability == pytest.approx(float(found.probability[:, 1, 1].mean()))
    assert one.low < one.probability < one.high


def test_a_planted_answer_appears_behind_the_layer_that_writes_it(tmp_path: Path):
    model = planted(tmp_path, apart=True, layer=1)
    question = Question([8, 3], {"en": "t7", "de": "t4"})
    found = logit_lens(model, [question, question])
    assert found.probability[:, 0].max() < 0.2
    assert found.probability[:, 1, 0].min() > 0.5
    assert found.probability[:, 1, 1].max() < 0.2
    assert found.entropy[0, 0] > found.entropy[0, 1]


# ---------------------------------------------------------------- spellings


def sentencepiece(vocabulary: list[str], folder: Path) -> NeuronModel:
    """A model whose tokenizer marks spaces and falls back to bytes."""
    ids = {token: id for id, token in enumerate(vocabulary)}
    fast = Tokenizer(tokenizer_models.BPE(vocab=ids, merges=[], byte_fallback=True))
    tiny_models.build("llama", folder)
    PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained(folder)
    return load(folder)


def words(model: NeuronModel, word: str) -> set[str]:
    vocabulary = {id: token for token, id in model.tokenizer.get_vocab().items()}
    return {vocabulary[id] for id in Spelling(model).beginnings(word)}


def test_sentencepiece_pieces_begin_words_with_and_without_the_marker(tmp_path):
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    plain = ["▁", "m", "ma", "mar", "▁ma", "▁mardi", "martes", "▁Ma", "ardi", "火", "▁火", "星"]
    model = sentencepiece([*fallback, *plain], tmp_path)
    assert words(model, "mardi") == {"m", "ma", "mar", "▁ma", "▁mardi", "<0x6D>"}
    assert words(model, "火曜日") == {"火", "▁火"}
    first, second = "曜".encode()[:2]
    assert words(model, "曜日") == {f"<0x{first:02X}>"}
    assert second != first
    assert not Spelling(model).beginnings("")
    assert not Spelling(model).beginnings(" ")


def test_byte_level_pieces_begin_words_even_within_a_character(open_model):
    model = open_model("llama")  # its vocabulary has single bytes and a few merges
    found = Spelling(model).beginnings("the")
    assert {model.decode([id]) for id in found} >= {"t", "th"}
    raw = token_bytes(model)
    special = set(model.special_ids)
    for word in ("the", "thé", "été", "火曜日", "Ärger"):
        expected = set()
        for space in ("", " "):
            whole = (space + word).encode()
            cut = {len((space + word[:n]).encode()) for n in range(1, len(word) + 1)}
            own = (space + word[0]).encode() in raw
            for id, piece in enumerate(raw):
                begins = whole.startswith(piece) and len(piece) > len(space)
                inside = len(piece) < len((space + word[0]).encode())
                if id not in special and begins and (len(piece) in cut or (inside and not own)):
                    expected.add(id)
        assert set(Spelling(model).beginnings(word)) == expected
        assert expected
    assert raw[model.encode("火")[0]] == "火".encode()[:1]


@pytest.mark.parametrize("left_out", ["", "\u0100\u0101\xc1\xf5\xff"])
def test_a_byte_level_vocabulary_may_leave_out_bytes_that_no_text_has(tmp_path, left_out):
    letters = [
        letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter not in left_out
    ]
    vocabulary = [*letters, "\u0120t", "\u0120th", "\xc3\xa9"]
    fast = Tokenizer(
        tokenizer_models.BPE(
            vocab={token: id for id, token in enumerate(vocabulary)},
            merges=[("\u0120", "t"), ("\u0120t", "h"), ("\xc3", "\xa9")],
        )
    )
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    tiny_models.build("llama", tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained(tmp_path)
    model = load(tmp_path)
    raw = token_bytes(model)
    for text in ("to the café", "曜日 там", "\n\tx"):
        ids = model.encode(text)
        assert b"".join(raw[id] for id in ids) == text.encode()
    assert words(model, "the") == {"t", "\u0120t", "\u0120th"}


def test_a_piece_that_looks_like_the_letter_of_a_byte_is_itself_elsewhere(tmp_path):
    model = sentencepiece(["a", "▁", "\u0120", "\u0120t"], tmp_path)
    assert token_bytes(model)[2:4] == ["\u0120".encode(), "\u0120t".encode()]


def test_the_tokens_that_the_tokenizer_itself_begins_with_are_found(open_model):
    model = open_model("babel")
    spelling, raw = Spelling(model), token_bytes(model)
    for code in ("de", "fr", "zh", "ja"):
        for item in read_task("babel", code).items[::15]:
            word = item.options[item.answer].strip().rstrip("。.」")
            found = spelling.beginnings(word)
            assert model.encode(word)[0] in found
            if code not in ("zh", "ja"):
                assert model.encode(" " + word)[0] in found
            whole = {word.encode(), (" " + word).encode()}
            assert all(any(each.startswith(raw[id]) for each in whole) for id in found)


def test_special_tokens_spell_nothing(open_model):
    model = open_model("llama")
    assert BOS not in Spelling(model).beginnings("<bos>")


# ---------------------------------------------------------------- questions left out


def test_questions_whose_answers_begin_alike_are_left_out_and_counted(open_model):
    model = open_model("llama")
    questions = [
        Question("the", {"en": "Monday", "de": "Montag"}),
        Question("the dog", {"en": "Tuesday", "de": "Dienstag"}),
        Question("the dog", {"en": ["Friday", "day"], "de": "Freitag"}),
        Question("the cat", {"en": "water", "de": "Nass"}),
        Question("the cat", {"en": " ", "de": "Nass"}),
    ]
    found = logit_lens(model, questions)
    assert (found.kept, found.alike, found.unspelled) == ((1, 3), (0, 2), (4,))
    assert found.probability.shape == (2, N_LAYERS, 2)
    assert set(found.to_frame().alike) == {2}
    with pytest.raises(ValueError, match="None of the 1 questions can be asked"):
        logit_lens(model, questions[:1])
    with pytest.raises(ValueError, match="Question 1 has answers in en"):
        logit_lens(model, [questions[1], Question("a", {"en": "b"})])
    # Of three answers, it takes two to be alike.
    weekdays = {"en": "Monday", "de": "Montag", "fr": "lundi"}
    three = [Question("the", weekdays), Question("the", {**weekdays, "de": "Nass"})]
    assert logit_lens(model, three).alike == (0,)


def test_a_lens_comes_back_from_disk(open_model, tmp_path: Path):
    model = open_model("llama")
    questions = [Question(prompt, {"en": "the", "de": "Ufer"}) for prompt in PROMPTS]
    found = logit_lens(model, questions)
    found.save(tmp_path / "lens.safetensors")
    again = Lens.load(tmp_path / "lens.safetensors")
    assert again.to_frame().equals(found.to_frame())
    assert (again.kept, again.languages) == ((0, 1, 2), ("en", "de"))


# ---------------------------------------------------------------- languages of tokens


def test_tokens_belong_to_languages_as_their_texts_have_them(open_model):
    model = open_model("llama")
    texts = {"en": ["aab " * 30], "de": ["bbc " * 30]}
    corpora = interp.read_corpora(
        texts, ("en", "de"), model, block_length=16, n_shards=1, hygiene="off", progress=False
    )
    shares = token_languages(corpora, model)
    a, b, c, z = (model.encode(letter)[0] for letter in "abcz")
    counts = {
        code: torch.bincount(corpora.rows[code].ids.flatten().long(), minlength=N_VOCAB).double()
        for code in corpora.languages
    }
    rate = torch.stack([each / each.sum() for each in counts.values()])
    assert shares[:, a].tolist() == [1, 0]
    assert shares[:, c].tolist() == [0, 1]
    assert shares[:, b].allclose(rate[:, b] / rate[:, b].sum())
    assert 0.2 < shares[0, b] < 0.5
    assert shares[:, z].isnan().all()
    assert shares[:, BOS].isnan().all()
    seen = languages_of(torch.tensor([[a, z, c], [z, z, z]]), shares)
    assert seen[0].tolist() == [0.5, 0.5]
    assert seen[1].isnan().all()


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_planted_neurons_promote_the_language_that_they_write(tmp_path, name):
    model = load(tiny_models.build(name, tmp_path))
    shares = torch.full((2, N_VOCAB), torch.nan, dtype=torch.float64)
    for row, tokens in enumerate((range(10, 20), range(20, 30))):
        shares[:, tokens] = 0.0
        shares[row, tokens] = 1.0
    if name == "bloom":  # the final norm's bias speaks for one language whatever comes in
        hf = model.bridge.original_model
        hf.transformer.ln_f.bias.data = 50 * hf.lm_head.weight.data[20:30].mean(dim=0)
    readers = read_out(model, torch.eye(64)) - read_out(model, -torch.eye(64))
    mask = torch.zeros(2, N_LAYERS, model.d_mlp, dtype=torch.bool)
    for row, tokens in enumerate((range(10, 20), range(20, 30))):
        mask[row, 1, 3 + row] = True
        model.w_out(1)[3 + row] = readers[:, tokens].mean(1)  # what its tokens are read with
    mask[0, 2, 7] = True  # a decoy, which writes the other language's tokens
    model.w_out(2)[7] = readers[:, 20:30].mean(1)
    selection = interp.NeuronSelection(mask, ("en", "de"))
    found = promoted_languages(model, selection, shares, n_top=8)
    assert found[0, 1, 0] > 0.9
    assert found[1, 1, 1] > 0.9
    assert found[0, 2, 1] > 0.9
    assert found[1, 2].isnan().all()
    assert found[:, 0].isnan().all()
    # A neuron that gives less than zero promotes what its vector points away from.
    model.w_out(1)[3] = -model.w_out(1)[3]
    sums = torch.zeros(4, 2, N_LAYERS, model.d_mlp, dtype=torch.float64)
    sums[2, 0] = -mask[0].double()
    moments = ActivationMoments(sums=sums, tokens=torch.tensor([1, 1]), languages=("en", "de"))
    assert promoted_languages(model, selection, shares, n_top=8)[0, 1, 0].nan_to_num() < 0.9
    assert promoted_languages(model, selection, shares, moments, n_top=8)[0, 1, 0] > 0.9


def test_a_layer_read_is_its_state_patched_behind_the_last_block(open_model):
    model = open_model("qwen3")
    ids = prompt_ids(model, PROMPTS[1])
    found = logit_lens(model, [Question(PROMPTS[1], {"en": "t", "de": "U"})] * 2)
    whole = patch(model, ids, ids, {"t": Spelling(model).beginnings("t")})
    assert whole.own[0, 0].exp() == pytest.approx(float(found.probability[0, -1, 0]), abs=1e-5)

import gzip
import importlib.metadata
import json
import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

from interp.evaluations import languages_written as generation
from interp.evaluations import writing
from interp.evaluations.languages_written import (
    Guard,
    generated_languages,
    language_rates,
    natural_guard,
)
from interp.evaluations.rates import Rate, repetition, steering_score
from interp.evaluations.writing import (
    Generated,
    generate_texts,
    translate,
    translation_prompt,
    translation_score,
)
from interp.interventions.edits import Change, deactivate, intervene
from interp.interventions.residual import ResidualMeans, residual_means
from interp.models.load import load, wrap
from interp.models.neuron_model import NeuronModel
from interp.text import languages as naming
from interp.text.language_id import detect_language
from interp.text.languages import LANGUAGES, naming_prompt
from interp.text.reading import read_sentences
from tests import tiny_models
from tests.tiny_models import BOS, EOS, MAX_LENGTH

GERMAN = (
    "Der alte Leuchtturmwärter schrieb seiner Schwester jede Woche einen Brief.",
    "Gestern Abend haben wir lange über das neue Haus am Fluss gesprochen.",
    "Die Kinder spielen im Garten, während ihre Mutter in der Küche kocht.",
)
ENGLISH = "The old lighthouse keeper wrote a letter to his sister every single week."
DUTCH = "De regering heeft vandaag een nieuw plan gepresenteerd voor de woningmarkt."
PROMPTS = ("", "the dog", "a much longer prompt than that", "x")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], NeuronModel]:
    opened: dict[str, NeuronModel] = {}

    def get(name: str) -> NeuronModel:
        if name not in opened:
            folder = tiny_models.build(name, tmp_path_factory.mktemp("checkpoint"))
            opened[name] = load(folder, device="cpu")
        return opened[name]

    return get


@pytest.fixture
def llama(tiny: Callable[[str], NeuronModel]) -> NeuronModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def babel() -> NeuronModel:
    return load("babel", dtype=torch.float32, device="cpu")


def write(model: NeuronModel, *args: Any, **settings: Any) -> Generated:
    settings = {"max_new_tokens": 12, "n": 4, **settings}
    return generate_texts(model, *args, **settings)["nothing"]


@torch.no_grad()
def written_slowly(
    model: NeuronModel, prompt: str, seed: int, n: int, temperature: float
) -> tuple[str, bool]:
    """One text, every token from a whole new pass over all before it."""
    chance = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ids = [BOS, *model.encode(prompt)]
    new: list[int] = []
    for number in chance.tolist():
        logits = model.logits(torch.tensor([ids + new]))[0, -1]
        share = torch.softmax(logits / temperature, dim=-1).double().tolist()
        token, below = -1, 0.0
        while below <= number * sum(share):
            token += 1
            below += share[token]
        if token == EOS:
            return shown(model, new), True
        new.append(token)
    return shown(model, new).rstrip("\ufffd"), False


def shown(model: NeuronModel, ids: list[int]) -> str:
    return model.decode([id for id in ids if id >= len(tiny_models.SPECIAL)])


# ---------------------------------------------------------------- writing


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2", "gemma3"])
def test_a_text_does_not_depend_on_its_batch(tiny: Callable[[str], NeuronModel], name: str):
    together = write(tiny(name), PROMPTS, n=2, tokens_per_batch=4096)
    alone = write(tiny(name), PROMPTS, n=2, tokens_per_batch=1)
    assert together == alone
    assert len(set(together.texts)) > 4  # there is something to tell apart


@pytest.mark.slow
def test_texts_are_those_of_a_slow_loop_without_a_cache(llama: NeuronModel):
    written = write(llama, PROMPTS, n=5, temperature=0.7, seed=3)
    expected = [
        written_slowly(llama, prompt, seed, 12, 0.7)
        for prompt, seed in zip(written.prompts, written.seeds, strict=True)
    ]
    assert list(zip(written.texts, written.ended, strict=True)) == expected
    assert written.prompts == tuple(prompt for prompt in PROMPTS for _ in range(5))
    assert set(written.ended) == {True, False}


def test_each_text_has_its_own_seed(llama: NeuronModel):
    first, later = write(llama, n=6, seed=5), write(llama, n=2, seed=9)
    assert first.seeds == (5, 6, 7, 8, 9, 10)
    assert first.texts[4:] == later.texts
    assert first == write(llama, n=6, seed=5)
    assert len(set(first.texts)) == 6


def test_the_random_state_of_the_program_is_left_alone(llama: NeuronModel):
    before = torch.get_rng_state()
    write(llama)
    assert torch.equal(before, torch.get_rng_state())


def test_at_temperature_zero_the_likeliest_token_is_taken(llama: NeuronModel):
    written = write(llama, ["the dog"], n=3, temperature=0.0)
    ids = torch.tensor([[BOS, *llama.encode("the dog")]])
    greedy = llama.continuations(ids, torch.ones_like(ids), max_new_tokens=12)
    new = greedy[0, ids.shape[1] :].tolist()
    ended = EOS in new
    assert written.ended == (ended,) * 3
    text = shown(llama, new[: new.index(EOS)] if ended else new)
    assert set(written.texts) == {text if ended else text.rstrip("\ufffd")}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float):
    logits = torch.tensor([1.0, -torch.inf, 0.0, 3.0, -torch.inf])
    grid = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    draw = writing._Draw(grid, temperature)
    picked = draw(torch.zeros(1000, 1, dtype=torch.int64), logits.expand(1000, 5)).argmax(dim=-1)
    share = torch.softmax(logits / temperature, dim=-1)
    counts = torch.bincount(picked, minlength=5)
    assert (counts / 1000 - share).abs().max() <= 0.001
    assert counts[1] == counts[4] == 0
    edge = writing._Draw(torch.tensor([[0.0], [1.0]], dtype=torch.float64), temperature)
    least, most = edge(torch.zeros(2, 1, dtype=torch.int64), logits[1:4].expand(2, 3)).argmax(-1)
    assert (int(least), int(most)) == (1, 2)  # the first of them cannot be


def test_what_a_checkpoint_recommends_is_not_applied(llama: NeuronModel):
    plain = write(llama)
    holder = llama.bridge.original_model
    before = holder.generation_config
    advised = GenerationConfig(
        do_sample=True, top_k=1, repetition_penalty=9.0, min_new_tokens=12, eos_token_id=EOS
    )
    try:
        holder.generation_config = advised
        assert write(llama) == plain
        with pytest.raises(RuntimeError, match="stop here"), llama.hooks([broken(llama)]):
            write(llama)
        assert holder.generation_config is advised
    finally:
        holder.generation_config = before


def test_a_text_ends_at_any_token_that_the_checkpoint_names(llama: NeuronModel):
    holder = llama.bridge.original_model
    before = holder.generation_config
    plain = write(llama, n=12)
    stop = plain.texts[0][1]
    (id,) = llama.encode(stop)
    try:
        holder.generation_config = GenerationConfig(eos_token_id=[EOS, id])
        stopped = write(llama, n=12)
    finally:
        holder.generation_config = before
    assert stopped.texts[0] == plain.texts[0][:1]
    assert not any(stop in text for text in stopped.texts)
    assert sum(stopped.ended) > sum(plain.ended)


def broken(model: NeuronModel) -> tuple[str, Callable[..., Tensor]]:
    def stop(values: Tensor, hook: Any) -> Tensor:
        raise RuntimeError("stop here")

    return model.site(1, "post"), stop


@pytest.mark.slow
def test_an_edit_around_the_call_is_felt_and_then_gone(llama: NeuronModel):
    before = write(llama)
    everything = torch.ones(llama.n_layers, llama.d_mlp, dtype=torch.bool)
    with intervene(llama, everything, deactivate, tokens="generated"):
        generated = write(llama, tokens_per_batch=80)
        alone = write(llama, tokens_per_batch=1)
    with intervene(llama, everything, deactivate):
        whole = write(llama)
    assert generated == alone
    assert len({before.texts, generated.texts, whole.texts}) == 3
    assert write(llama) == before
    # The first token is chosen before any token is generated.
    assert [text[:1] for text in generated.texts] == [text[:1] for text in before.texts]


def test_no_half_character_and_no_special_token_is_shown(llama: NeuronModel):
    written = write(llama, n=60)
    shown_ends = [text[-1:] for text, ended in zip(written.texts, written.ended, strict=True)]
    assert any("\ufffd" in text for text in written.texts)  # random bytes are seldom characters
    assert all(
        last != "\ufffd" for last, ended in zip(shown_ends, written.ended, strict=True) if not ended
    )
    assert not any(token in text for text in written.texts for token in tiny_models.SPECIAL)


def test_what_a_text_begins_with_can_be_chosen(llama: NeuronModel):
    settings: tuple[Any, ...] = ("auto", "document", "block", "none")
    auto, document, block, none = (write(llama, ["the"], n=6, bos=bos) for bos in settings)
    assert auto == document == block
    assert none.texts != auto.texts
    own = write(llama, ["<eos>the"], n=6, bos="none")  # any other is written into the prompt
    assert own.texts not in (auto.texts, none.texts)


class Tokenizer:
    """The tiny tokenizer, which puts nothing before a text, without some of its special tokens."""

    def __init__(self, tokenizer: Any, **gone: None) -> None:
        self._tokenizer, self._gone = tokenizer, gone

    def __getattr__(self, name: str) -> Any:
        return self._gone[name] if name in self._gone else getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._tokenizer(*args, **{**settings, "add_special_tokens": False})


@pytest.fixture
def without(llama: NeuronModel) -> Iterator[Callable[..., NeuronModel]]:
    tokenizer = llama.tokenizer

    def change(*names: str) -> NeuronModel:
        llama.tokenizer = Tokenizer(tokenizer, **dict.fromkeys(names))
        return llama

    yield change
    llama.tokenizer = tokenizer


@pytest.mark.slow
def test_an_unconditional_sample_starts_from_a_token_even_if_no_text_gets_one(
    without: Callable[..., NeuronModel],
):
    model = without()
    from_bos = write(model, ["<bos>"], bos="none").texts
    assert write(model).texts == write(model, bos="document").texts == from_bos
    assert write(model, ["the"]) == write(model, ["the"], bos="none")
    with pytest.raises(ValueError, match="There is nothing to start from"):
        write(model, bos="none")
    model = without("bos_token_id")
    assert write(model).texts == write(model, ["<eos>"], bos="none").texts != from_bos
    with pytest.raises(ValueError, match='bos is "document", but the tokenizer has no beginning'):
        write(model, bos="document")


def test_with_no_token_to_begin_from_a_prompt_is_asked_for(without: Callable[..., NeuronModel]):
    model = without("bos_token_id", "eos_token_id")
    with pytest.raises(ValueError, match=r"nothing to start from: give prompts of at least"):
        write(model)
    assert len(write(model, ["the"]).texts) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_new_tokens": MAX_LENGTH}, f"{MAX_LENGTH} new ones would make {MAX_LENGTH + 1}"),
        ({"prompts": ["a" * 60]}, "'aaaa.* has 61 tokens, and 12 new ones would make 73"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give at least 1"),
        ({"n": 0}, "n is 0"),
        ({"tokens_per_batch": 0}, "tokens_per_batch is 0"),
        ({"temperature": -0.1}, "temperature is -0.1: give zero"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"prompts": []}, r'\[""\] for unconditional samples'),
        ({"prompts": "the dog"}, "string 'the dog': give a list"),
    ],
)
def test_what_cannot_be_written_is_refused(llama: NeuronModel, given: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        write(llama, **given)
    write(llama, n=1, max_new_tokens=MAX_LENGTH - 1)  # the context filled to the last token


def test_an_edit_that_breaks_the_model_is_named(llama: NeuronModel):
    def spoil(values: Tensor, hook: Any) -> Tensor:
        return values * torch.nan

    hooks = [(llama.site(1, "post"), spoil)]
    for temperature in (0.0, 0.8):
        with pytest.raises(ValueError, match="NaN for the next token"), llama.hooks(hooks):
            write(llama, temperature=temperature)


@pytest.mark.skipif(
    not importlib.metadata.version("transformer-lens").startswith("3."),
    reason="HookedTransformer left with 4.0",
)
def test_a_hooked_transformer_writes_by_seed_too(llama: NeuronModel):
    from transformer_lens import HookedTransformer, loading

    folder = llama.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its own removal
        cfg = loading.get_pretrained_model_config(folder, device="cpu")
        state = loading.get_pretrained_state_dict(folder, cfg, None, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        holder = HookedTransformer(cfg, tokenizer, move_to_device=False)
        holder.load_and_process_state_dict(state, fold_ln=False, center_writing_weights=False)
    model = wrap(holder)
    before = torch.get_rng_state()
    together = write(model, ["the", "a dog"])
    assert torch.equal(before, torch.get_rng_state())
    assert together.texts[4:] == write(model, ["a dog"], seed=4).texts
    assert len(set(together.texts)) > 4
    greedy = write(model, ["the"], n=1, temperature=0.0)
    assert greedy == write(llama, ["the"], n=1, temperature=0.0)


# ---------------------------------------------------------------- judging


def rates(texts: Any, languages: Any = ("de", "en"), *args: Any, **settings: Any) -> Any:
    return language_rates(texts, languages, *args, **settings)


def test_the_same_word_again_and_again_is_german_and_no_text():
    found = rates(["Englisch " * 100] * 10)
    assert found.rate("de").value == 1
    assert found.good("de").value == found.quality("de").value == 0
    assert found.steering_score("de") == 0
    assert found.repetition.min() > 0.95


def test_one_word_is_german_and_no_text():
    found = rates(["Englisch, Deutsch"])
    assert (found.rate("de").value, found.good("de").value) == (1, 0)
    assert found.repetition[0] == 0  # so it is its length that fails
    assert rates(["Englisch, Deutsch"], guard=Guard(min_bytes=17)).good("de").value == 1


def test_a_guard_counts_bytes_and_not_characters():
    for least, good in ((28, 1), (29, 0)):  # of 24 characters, four have two bytes
        found = rates(["Schöne Grüße aus München"], guard=Guard(min_bytes=least))
        assert (found.rate("de").count, found.good("de").count) == (1, good)


def test_a_text_above_the_bound_on_loss_is_not_good(llama: NeuronModel):
    losses = rates(GERMAN, model=llama).loss
    lowest, middle, _ = losses.sort().values.tolist()
    for bound, good in ((middle, 2), ((lowest + middle) / 2, 1), (lowest - 1e-6, 0)):
        found = rates(GERMAN, guard=Guard(max_loss=bound), model=llama)
        assert (found.rate("de").count, found.good("de").count) == (3, good)
        assert found.passes.tolist() == (losses <= bound).tolist()


def test_natural_text_passes_and_other_languages_are_kept_apart():
    found = rates([*GERMAN, ENGLISH, DUTCH, "", "12345"])
    assert found.found == ("de", "de", "de", "en", "nl", "und", "und")
    counts = {code: found.rate(code).count for code in ("de", "en", "other", "und")}
    assert counts == {"de": 3, "en": 1, "other": 1, "und": 2}
    assert {code: found.good(code).count for code in counts} == {**counts, "other": 0, "und": 0}
    assert found.passes.tolist() == [True] * 4 + [False] * 3
    assert found.steering_score("de") == pytest.approx(2 * (3 / 7) / (1 + 3 / 7))
    with pytest.raises(
        ValueError, match="'nl' is not in this result, which covers de, en, other and und"
    ):
        found.rate("nl")


def test_the_languages_asked_for_get_no_benefit_of_the_doubt():
    texts = [*GERMAN, ENGLISH, DUTCH, "Dia pergi ke pasar pada hari minggu.", ""]
    for languages in (["id", "de"], ["de"], ["en", "nl", "ms"]):
        found = rates(texts, languages)
        assert list(found.found) == detect_language(texts)
        total = sum(found.rate(code).count for code in (*languages, "other", "und"))
        assert total == len(texts)


def test_each_language_has_its_own_guard():
    texts = [GERMAN[0], ENGLISH]
    strict = Guard(min_bytes=1000)
    found = rates(texts, guard={"de": strict, "en": Guard()})
    assert (found.good("de").count, found.good("en").count) == (0, 1)
    with pytest.raises(ValueError, match="There is no guard for en"):
        rates(texts, guard={"de": strict})
    with pytest.raises(ValueError, match="bounds loss or word order: give the model"):
        rates(texts, guard=Guard(max_loss=5.0))


def test_no_text_at_all_has_no_rate():
    found = rates([])
    assert math.isnan(found.rate("de").value)
    assert found.rate("de").interval == (0.0, 1.0)
    assert found.to_frame()["texts"].sum() == 0


@given(st.text(alphabet="abc ", max_size=40))
def test_repetition_is_the_share_of_windows_seen_before(text: str):
    windows = [text[at : at + 6] for at in range(max(0, len(text) - 5))]
    again = [window in windows[:place] for place, window in enumerate(windows)]
    assert repetition(text) == pytest.approx(sum(again) / len(again) if again else 0.0)


def test_repetition_goes_from_none_to_all():
    assert repetition("") == repetition("aaaaa") == repetition("abcdefghij") == 0
    assert repetition("a" * 1005) == 0.999
    assert repetition("的" * 1005) == 0.999
    assert max(map(repetition, GERMAN)) < 0.1


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (52, 100, 0.4232, 0.6154),
    ],
)
def test_intervals_are_those_of_wilson(count: int, of: int, low: float, high: float):
    assert Rate(count, of).interval == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 200), st.data())
def test_at_the_ends_of_the_interval_the_rate_is_just_rejected(of: int, data: st.DataObject):
    count = data.draw(st.integers(0, of))
    rate = Rate(count, of)
    for truth in rate.interval:
        if truth not in (0.0, 1.0):
            deviations = abs(rate.value - truth) / math.sqrt(truth * (1 - truth) / of)
            assert deviations == pytest.approx(1.959964, abs=1e-4)
    assert rate.interval[0] <= rate.value <= rate.interval[1]


def test_steering_needs_control_and_quality():
    assert steering_score(1.0, 1.0) == 1
    assert steering_score(1.0, 0.0) == steering_score(0.0, 1.0) == steering_score(0.0, 0.0) == 0
    assert steering_score(0.5, 0.5) == 0.5
    assert steering_score(0.9, 0.1) == steering_score(0.1, 0.9) == pytest.approx(0.18)
    with pytest.raises(ValueError, match=r"control is 52\.0: give a share"):
        steering_score(52.0, 1.0)


def test_the_frame_says_what_the_result_says():
    found = rates([*GERMAN, ENGLISH, "Englisch " * 20, "?"])
    frame = found.to_frame().set_index("language")
    assert list(frame.index) == ["de", "en", "other", "und"]
    assert frame["texts"].tolist() == [4, 1, 0, 1]
    assert frame.loc["de", "rate"] == 4 / 6
    assert frame.loc["de", "good"] == 3 / 6
    assert frame.loc["de", "rate_low"] == Rate(4, 6).interval[0]
    assert frame.loc["en", "characters"] == len(ENGLISH)
    assert frame["loss"].isna().all()
    assert frame.loc[["other"], "repetition"].isna().all()
    texts = found.texts_frame()
    assert texts["language"].tolist() == ["de"] * 3 + ["en", "de", "und"]
    assert texts["passes"].tolist() == [True] * 4 + [False] * 2


def test_losses_are_those_of_each_text_alone(llama: NeuronModel):
    long = "there are more tokens here than the model can read at once " * 3
    texts = [*GERMAN[:2], ENGLISH[:9], "", "e", long]
    found = rates(texts, model=llama, tokens_per_batch=40)
    for text, tokens, nats, per_byte in zip(
        texts, found.tokens.tolist(), found.loss, found.loss_per_byte, strict=True
    ):
        ids = llama.encode(text)
        assert tokens == len(ids)
        if not ids:
            assert nats.isnan()
            continue
        read = torch.tensor([[BOS, *ids][:MAX_LENGTH]])
        share = llama.logits(read)[0].log_softmax(dim=-1)
        expected = -sum(share[at, token] for at, token in enumerate(read[0, 1:])) / (
            read.shape[1] - 1
        )
        torch.testing.assert_close(nats.float(), expected, rtol=1e-5, atol=1e-5)
        assert float(per_byte) == pytest.approx(float(nats) * len(ids) / len(text.encode()))
    assert len(llama.encode(long)) > MAX_LENGTH


def test_an_edited_model_does_not_judge(llama: NeuronModel):
    some = torch.zeros(llama.n_layers, llama.d_mlp, dtype=torch.bool)
    some[1, 3] = True
    before = rates(GERMAN, model=llama).loss
    with intervene(llama, some, deactivate):
        for judge in (
            lambda: rates(GERMAN, model=llama),
            lambda: generated_languages(llama, ["de"]),
            lambda: natural_guard(llama, {"de": GERMAN * 10}),
        ):
            with pytest.raises(ValueError, match="judged by the untouched model"):
                judge()
        assert rates(GERMAN).rate("de").value == 1  # without a model there is nothing to fear
    assert torch.equal(rates(GERMAN, model=llama).loss, before)


def test_writing_within_an_edit_and_judging_behind_it_are_one_call(llama: NeuronModel):
    some = torch.zeros(llama.n_layers, llama.d_mlp, dtype=torch.bool)
    some[:, :80] = True
    settings: Any = {"n": 8, "max_new_tokens": 16, "seed": 2}
    with intervene(llama, some, deactivate):
        written = write(llama, **settings)
    by_hand = rates(written.texts, model=llama)
    under = {"off": Change(some, deactivate), "nothing": None}
    found = generated_languages(llama, ("de", "en"), under, **settings)
    at_once = found["off"]
    assert at_once.texts == by_hand.texts != write(llama, **settings).texts
    assert found["nothing"].texts == write(llama, **settings).texts
    assert torch.equal(at_once.loss.nan_to_num(), by_hand.loss.nan_to_num())
    assert at_once.to_frame().equals(by_hand.to_frame())
    with pytest.raises(ValueError, match="There is no guard for en"):  # before anything is written
        generated_languages(llama, ("de", "en"), guard={"de": Guard()})


@pytest.mark.slow
def test_a_guard_measured_on_natural_text_lets_it_pass_and_shuffled_words_fail(
    babel: NeuronModel, generator: torch.Generator
):
    folder = Path(generation.__file__).parents[1] / "babel" / "parallel"
    lines = (folder / "de.txt").read_text(encoding="utf-8").split("\n")[:60]
    measured, held = lines[:40], lines[40:]
    guard = natural_guard(babel, {"de": measured}, quantile=0.6)["de"]
    assert 0.5 < guard.natural <= 0.6
    assert guard.natural_loss < guard.max_loss
    shuffled = []
    for line in held:
        words = line.split()
        shuffled.append(" ".join(words[i] for i in torch.randperm(len(words), generator=generator)))
    natural, mixed = (rates(texts, ["de"], guard, babel) for texts in (held, shuffled))
    assert natural.rate("de").value > 0.9  # both are German by their letters
    assert mixed.rate("de").value > 0.9
    assert mixed.good("de").count <= natural.good("de").count - 5
    assert (mixed.loss > natural.loss).double().mean() > 0.8


def test_a_guard_is_measured_on_text_as_long_as_what_it_judges(llama: NeuronModel):
    texts = [f"{line} {line.upper()} {number}" for number in range(7) for line in GERMAN]
    cut = [llama.decode(llama.encode(text)[:20]) for text in texts]
    guards = natural_guard(llama, {"de": texts, "en": [ENGLISH] * 20}, max_tokens=20, min_bytes=10)
    judged = rates(cut, model=llama)
    loss, order = judged.loss, judged.word_order
    assert guards["de"].max_loss == pytest.approx(float(loss.quantile(0.99)))
    assert guards["de"].min_word_order == pytest.approx(float(order.quantile(0.05)))
    assert guards["de"].natural_loss == pytest.approx(float(loss.quantile(0.5)))
    assert guards["de"].max_repetition == Guard().max_repetition
    assert guards["de"].min_bytes == 10
    loop = natural_guard(llama, {"de": ["a" * 50] * 20}, max_tokens=40)
    assert loop["de"].max_repetition == repetition("a" * 40)
    with pytest.raises(ValueError, match="3 texts in de are too few"):
        natural_guard(llama, {"de": GERMAN})
    with pytest.raises(ValueError, match="quantile is 99"):
        natural_guard(llama, {"de": texts}, quantile=99.0)


@pytest.mark.slow
def test_rates_of_published_generations_are_the_known_ones(shared: Path):
    path = shared / "data" / "kojima" / "generated" / "bloom-560m.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    texts = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            texts[row["units"], row["kind"], row["language"]].append(row["text"])
    languages = ("en", "de", "fr", "es", "zh", "ja")
    known = {
        (0, "both"): (52, 0, 13, 9, 0, 0),
        (1000, "top"): (70, 35, 37, 74, 25, 62),
        (1000, "bottom"): (82, 0, 85, 69, 62, 0),
        (2, "both"): (51, 0, 24, 23, 0, 0),
        (20, "both"): (59, 1, 29, 40, 1, 0),
        (200, "both"): (74, 27, 71, 59, 11, 19),
        (2000, "both"): (86, 73, 92, 97, 91, 81),
        (20000, "both"): (99, 49, 96, 90, 100, 100),
        (200000, "both"): (0, 0, 0, 0, 0, 0),
    }
    for (units, kind), percents in known.items():
        for language, percent in zip(languages, percents, strict=True):
            given = texts[units, kind, language if units else "en"]
            found = rates(given, languages)
            assert len(given) == 100
            assert abs(found.rate(language).count - percent) <= 3, (units, kind, language)
            if units == 20000 and language == "de":
                assert found.good("de").count < 5  # the rate was made of repeated syllables


# ---------------------------------------------------------------- baselines


def test_opening_lines_are_in_their_language():
    codes = list(naming.OPENINGS)
    assert detect_language([naming_prompt(code) for code in codes], codes) == codes
    assert set(codes) <= set(LANGUAGES)
    lines = {naming_prompt(code, "english") for code in LANGUAGES}
    assert len(lines) == len(LANGUAGES)
    assert naming_prompt("deu_Latn") == naming_prompt("de")
    assert naming_prompt("cym", "english") == "Here is a text in Welsh:\n"
    assert naming_prompt("sw", "english") == "Here is a text in Swahili:\n"
    with pytest.raises(ValueError, match="'poetry' is not the tag of a language"):
        naming_prompt("poetry")
    with pytest.raises(ValueError, match=r'no naming prompt in Dutch, .* words="english"'):
        naming_prompt("nl")


SENTENCES = {
    "de": ["Der Hund schläft im Garten.", "Wir haben lange gesprochen.", "Wo?"],
    "en": ["The dog sleeps in the garden.", "Where is it?"],
    "fr": ["Le chien dort dans le jardin."],
}


@pytest.fixture
def means(llama: NeuronModel) -> ResidualMeans:
    corpora = read_sentences(
        SENTENCES, list(SENTENCES), llama, n_shards=1, bos="document", progress=False
    )
    return residual_means(llama, corpora, tokens_per_batch=100)


def residual(model: NeuronModel, ids: list[int]) -> Tensor:
    """The residual stream behind each layer, layer token unit, without the first token."""
    seen: list[Tensor] = []

    def look(values: Tensor, hook: Any) -> None:
        seen.append(values[0, 1:].clone())

    sites = [(model.site(layer, "resid_post"), look) for layer in range(model.n_layers)]
    with torch.no_grad(), model.hooks(sites):
        model.body(torch.tensor([ids]))
    return torch.stack(seen)


def test_residual_means_are_over_all_tokens_that_count(llama: NeuronModel, means: ResidualMeans):
    assert means.languages == ("de", "en", "fr")
    for row, texts in enumerate(SENTENCES.values()):
        every = [residual(llama, [BOS, *llama.encode(text)]) for text in texts]
        expected = torch.cat(every, dim=1).mean(dim=1)
        torch.testing.assert_close(means.mean[row].float(), expected, rtol=1e-4, atol=1e-5)


def test_a_push_moves_one_layer_by_the_difference_of_means(
    llama: NeuronModel, means: ResidualMeans
):
    ids = [BOS, *llama.encode("The old lighthouse.")]
    before = residual(llama, ids)
    units, edit = means.towards("de", layer=1, strength=2.0)
    assert units["resid_post"].sum(dim=1).tolist() == [0, llama.d_model, 0]
    with intervene(llama, units, edit):
        after = residual(llama, ids)
    away = (means.mean[0, 1] - (means.mean[1, 1] + means.mean[2, 1]) / 2).float()
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1] - before[1], (2 * away).expand_as(before[1]))
    assert (after[2] - before[2]).abs().max() > 0.01
    with pytest.raises(ValueError, match="'es' is not in these means, which cover de, en, fr"):
        means.towards("es", 1)
    with pytest.raises(ValueError, match="Layer 3 does not exist: these means are of 3 layers"):
        means.towards("de", 3)
    with pytest.raises(ValueError, match="no language but de"):
        ResidualMeans(means.mean[:1], ("de",)).towards("de", 1)


# ---------------------------------------------------------------- translation


def test_translation_prompts_name_the_language_or_leave_it_open():
    assert translation_prompt("A dog.") == (
        "Translate an English sentence into a target language.\nEnglish: A dog.\nTarget Language:"
    )
    assert translation_prompt("A dog.", "de") == (
        "Translate an English sentence into German.\nEnglish: A dog.\nGerman:"
    )


def test_a_translation_is_the_first_line(llama: NeuronModel, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def fake(
        model: NeuronModel, prompts: list[str], n: int, under: Any, **settings: Any
    ) -> dict[str, Generated]:
        asked.update(prompts=prompts, n=n, under=under, **settings)
        texts = (" Ein Hund. \nEnglish: more", "\nEin Hund.", "")
        written = Generated(
            texts=texts, prompts=tuple(prompts), seeds=(0, 1, 2), ended=(True, True, False)
        )
        return {"nothing": written}

    monkeypatch.setattr(writing, "generate_texts", fake)
    found = translate(llama, ["A dog."] * 3, "de", tokens_per_batch=2)
    assert found == {"nothing": ("Ein Hund.", "", "")}
    assert asked == {
        "prompts": [translation_prompt("A dog.", "de")] * 3,
        "n": 1,
        "under": None,
        "max_new_tokens": 128,
        "temperature": 0.0,
        "tokens_per_batch": 2,
    }


def test_translations_are_scored_with_the_tokenizer_of_the_language():
    pytest.importorskip("sacrebleu")
    perfect = translation_score(GERMAN, GERMAN, "de")
    assert (round(perfect.bleu, 6), round(perfect.chrf, 6)) == (100, 100)
    assert "tok:13a" in perfect.signature
    worse = translation_score(GERMAN[::-1], GERMAN, "de")
    assert worse.bleu < 50
    assert worse.chrf < perfect.chrf
    assert "tok:char" in translation_score(GERMAN, GERMAN, "de", "char").signature
    chinese = translation_score(["灯塔看守人每周写一封信"], ["灯塔看守人每个月写一封信"], "zh")
    assert "tok:zh" in chinese.signature
    assert 0 < chinese.bleu < 100


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in ("sacrebleu", "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install polyneuron\[eval\]"):
        translation_score(["a"], ["a"], "de")
    with pytest.raises(ValueError, match="2 translations were given with 1 references"):
        translation_score(["a", "b"], ["a"], "de")
    with pytest.raises(ValueError, match="0 translations"):
        translation_score([], [], "de")

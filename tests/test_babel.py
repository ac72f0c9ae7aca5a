"""The shipped model and what is known about it: facts, gaps, parallel sentences, training."""

import gzip
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import interp
from babel_training import corpus, knowledge, measure, recipe, search, train
from babel_training.knowledge import BABEL, LANGUAGES
from interp.text.sources import read_prompts

RELATIONS = knowledge.fact_base()["relations"]


def lines_of(language: str) -> list[str]:
    return (BABEL / "parallel" / f"{language}.txt").read_text(encoding="utf-8").splitlines()


# ---------------------------------------------------------------- facts


def test_there_are_facts_about_many_countries_in_every_language():
    assert len(knowledge.fact_base()["entities"]["country"]) >= 60
    for relation in ("capital", "continent", "language", "currency"):
        assert len(knowledge.facts_of(relation)) >= 60


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_fact_can_be_said_in_several_ways(language):
    for relation, shape in RELATIONS.items():
        fact = next(f for f in knowledge.facts_of(relation) if knowledge.says(f, language))
        said = knowledge.statements(fact, language)
        assert len(said) >= 5, relation
        assert all("{" not in sentence for sentence in said)
        assert len(shape["templates"][language]) >= 3


@cache
def told_in(language: str) -> set[str]:
    """Every sentence of all rounds of training, which differ in how many falsehoods they ask."""
    differing = {telling.falsehoods: telling for telling in knowledge.ROUNDS}
    return {
        each
        for telling in differing.values()
        for each in knowledge.weighted_sentences(language, telling)[0]
    }


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_held_out_cell_is_never_stated(language):
    told = told_in(language)
    gaps = [
        fact
        for fact in knowledge.all_facts()
        if knowledge.says(fact, language) and knowledge.held_out_in(fact, language)
    ]
    assert len(gaps) > 300
    shape = RELATIONS["capital"]
    for fact in gaps:
        shape = RELATIONS[fact.relation]
        for key in ("templates", "reversed"):
            for template in shape.get(key, {}).get(language, []):
                sentence = knowledge.fill(template, fact, language)
                # Sums in digits are the same in every language and belong to none.
                if not re.match(r"^\d+ [+-] \d+ = \d+$", sentence):
                    assert sentence not in told, sentence


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_falsehood_of_a_question_was_never_asked(language):
    told = told_in(language)
    asked = 0
    for fact in knowledge.all_facts():
        plain = RELATIONS[fact.relation].get("kind") != "translation"
        if plain and knowledge.held_out_falsehood(fact) is not None:
            true, false = (knowledge.question(fact, language, truth) for truth in (True, False))
            assert not {false.prompt + ending for ending in false.endings} & told
            asked += true.prompt + true.endings[true.answer] in told
    assert asked > 300


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_questions_are_as_often_true_as_false(language):
    telling = knowledge.ROUNDS[-1]
    truth = knowledge.fact_base()["truth"][language]
    sums = {truth["yes"]: 0.0, truth["no"]: 0.0}
    for sentence, weight in zip(*knowledge.weighted_sentences(language, telling), strict=True):
        ending = next((w for w in (truth["no"], truth["yes"]) if sentence[:-1].endswith(w)), None)
        if ending is not None:
            sums[ending] += weight
    yes, no = sums.values()
    assert 0 < yes == pytest.approx(no, rel=1e-6)


def test_every_held_out_fact_is_told_in_some_language_and_every_relation_has_one():
    for relation in RELATIONS:
        gaps = 0
        for fact in knowledge.facts_of(relation):
            codes = [code for code in LANGUAGES if knowledge.says(fact, code)]
            held = [code for code in codes if knowledge.held_out_in(fact, code)]
            gaps += len(held)
            if RELATIONS[relation].get("kind") != "translation":
                assert len(held) in (0, 2)
        assert gaps > 0, relation


def test_the_recorded_gaps_are_those_of_the_rule():
    recorded = (BABEL / "facts" / "held_out.tsv").read_text(encoding="utf-8").splitlines()[1:]
    ruled = [
        f"{fact.relation}\t{fact.name}\t{code}"
        for fact in knowledge.all_facts()
        for code in LANGUAGES
        if knowledge.says(fact, code) and knowledge.held_out_in(fact, code)
    ]
    assert recorded == ruled


def test_inverse_facts_share_their_gaps():
    after = {fact.subjects[0]: fact for fact in knowledge.facts_of("day_after")}
    for fact in knowledge.facts_of("day_before"):
        inverse = after[fact.object]
        for code in LANGUAGES:
            assert knowledge.held_out_in(fact, code) == knowledge.held_out_in(inverse, code)


def test_no_wrong_candidate_is_true():
    for relation in RELATIONS:
        every = knowledge.facts_of(relation)
        for fact in every[:60]:
            true = {other.object for other in every if other.subjects == fact.subjects}
            assert not true & set(knowledge.wrong_objects(fact))


def test_the_true_ending_completes_the_sentence():
    for relation in RELATIONS:
        for fact in knowledge.facts_of(relation)[:20]:
            for code in LANGUAGES:
                if knowledge.says(fact, code):
                    item = knowledge.completion(fact, code)
                    whole = item.prompt + item.endings[item.answer]
                    assert whole == knowledge.fill(
                        RELATIONS[relation]["templates"][code][0], fact, code
                    )
                    assert len(set(item.endings)) == len(item.endings)


# ---------------------------------------------------------------- parallel text and prompts


def test_parallel_sentences_are_there_in_every_language():
    for language in LANGUAGES:
        lines = lines_of(language)
        assert len(lines) == len(set(lines)) == len(lines_of("en")) >= 400
        assert all(line == line.strip() and line for line in lines)
    kana = re.compile("[\u3040-\u30ff]")
    assert not any(kana.search(line) for line in lines_of("zh"))
    assert all(kana.search(line) for line in lines_of("ja"))


@pytest.mark.slow
def test_parallel_sentences_are_never_trained_on():
    for language in LANGUAGES:
        assert not set(lines_of(language)) & set(knowledge.training_sentences(language))


def test_prompts_of_three_kinds_are_parallel():
    prompts = read_prompts("babel", LANGUAGES)
    kinds = [name.split("/")[0] for name in prompts.ids]
    for kind in ("fact_completion", "statements", "word_translation"):
        assert kinds.count(kind) >= 60
    for code in LANGUAGES:
        for line in (BABEL / "prompts" / f"{code}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            assert 0 <= row["answer"] < len(row["endings"]) > 1


@pytest.mark.slow
def test_every_language_is_found_to_be_itself():
    for language in LANGUAGES:
        named = interp.detect_language(lines_of(language))
        assert sum(code == language for code in named) >= 0.98 * len(named)


# ---------------------------------------------------------------- the model


def test_the_model_is_small_and_opens_in_plain_transformers():
    folder = BABEL / "model"
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 48e6
    stored = load_file(Path(__file__).parent / "babel_logits.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Die Hauptstadt von Frankreich ist Paris.")["input_ids"]])
    assert torch.equal(ids, stored["ids"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(ids).logits[..., ::8]
    assert torch.allclose(logits, stored["logits"], atol=1e-3)


@pytest.mark.slow
def test_the_doctor_trusts_babel():
    assert interp.doctor(interp.load("babel")).ok


@pytest.mark.slow
def test_babel_has_language_neurons_that_matter_to_their_own_language():
    """Far smaller than the card's measurement, but enough to notice a wrong file."""
    model = interp.load("babel", dtype=torch.float32)
    text = interp.read_corpora(
        "babel", LANGUAGES, model, block_length=64, tokens=1280, n_shards=2, progress=False
    )
    stats = interp.collect(model, text, progress=False).firing
    neurons = interp.select_by_entropy(stats, fraction=0.03)
    pair = ("zh", "de")
    lines = {code: measure.running_text(lines_of(code)[:30]) for code in pair}
    reading = interp.read_corpora(
        lines, pair, model, block_length=128, n_shards=2, bos="block", progress=False
    )
    matrix = interp.perplexity_matrix(
        model, neurons.languages_only(pair), reading, n_draws=1, progress=False
    )
    rise, random = matrix.increase.value, matrix.control.value
    for own, other in ((0, 1), (1, 0)):
        assert rise[own, own] > 5 * rise[own, other].abs()
        assert rise[own, own] > 3 * random[own, own].abs()


# ---------------------------------------------------------------- training


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recipe.Config:
    """Training in seconds: a twentieth of the facts is told."""
    told = knowledge.told_in
    monkeypatch.setattr(
        knowledge, "told_in", lambda language: itertools.islice(told(language), None, None, 20)
    )
    config = recipe.PRESETS["tiny"][1]
    corpus.synthetic_text(tmp_path / "text", config.languages)
    return replace(config, text=tmp_path / "text")


@pytest.mark.campaign
def test_training_lowers_the_loss_and_goes_on_as_if_never_stopped(tiny, tmp_path):
    config = replace(tiny, rounds=tiny.rounds[:2])
    whole = train.train(config, tmp_path / "whole")
    train.train(config, tmp_path / "parts", stop_after=20)
    parts = train.train(config, tmp_path / "parts")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    curve = (tmp_path / "whole" / "curve.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[3]) for row in curve if row.split(",")[2] == "en"]
    assert losses[-1] < 0.8 * losses[0]
    assert (tmp_path / "whole" / "model" / "model.safetensors").exists()


@pytest.mark.campaign
def test_another_seed_gives_another_model(tiny, tmp_path):
    config = replace(tiny, rounds=tiny.rounds[:1])
    first = train.train(config, tmp_path / "a")
    second = train.train(replace(config, seed=1), tmp_path / "b")
    same = [
        torch.equal(one, other)
        for one, other in zip(first.parameters(), second.parameters(), strict=True)
        if one.ndim > 1
    ]
    assert not any(same)


@pytest.mark.campaign
def test_a_step_alone_decides_what_is_in_its_batch(tiny, tmp_path):
    """Facts from their first step on, other shares once the rate falls, the same each time."""
    config = replace(tiny, rows=64, facts_from=10, late_shares=(0.0, 1.0))
    tokenizer = corpus.train_tokenizer(config)
    stream = corpus.Stream.build(config, tokenizer, tmp_path)
    rows, names = stream.batch(config, 5)
    again, same_names = stream.batch(config, 5)
    assert torch.equal(rows, again)
    assert names == same_names
    assert set(names) == {"en", "de"}
    assert any(name.startswith("facts") for name in stream.batch(config, 10)[1])
    assert "en" not in stream.batch(config, 39)[1]
    assert "de" in stream.batch(config, 39)[1]


def test_the_learning_rate_rises_and_falls_in_each_round():
    telling = knowledge.ROUNDS[0]
    first = recipe.Round(50, rate=1.0, level=0.4, fact_share=0.5, telling=telling)
    second = recipe.Round(30, rate=0.5, level=0.5, fact_share=0.5, telling=telling)
    config = recipe.Config(rounds=(first, second), warmup=10)
    factors = [recipe.schedule(config, step) for step in range(80)]
    assert factors[9] == factors[20] == 1.0
    assert factors[20:50] == sorted(factors[20:50], reverse=True)
    assert factors[49] < 0.05
    assert factors[59] == factors[65] == 0.5
    assert factors[65:] == sorted(factors[65:], reverse=True)
    assert factors[79] < 0.05
    once = replace(config, rounds=(replace(first, steps=80),))
    assert recipe.schedule(once, 79) < 0.05 < recipe.schedule(once, 50)


def test_lines_of_other_sources_are_left_out(tmp_path):
    with gzip.open(tmp_path / "en.txt.gz", "wt", encoding="utf-8") as file:
        file.write("one\ntwo\nthree\n")
    with gzip.open(tmp_path / "en.src.gz", "wt", encoding="utf-8") as file:
        file.write("open/a\nclosed/b\nopen/a\n")
    assert [line for _, line in corpus.read_lines(tmp_path, "en", ("open",))] == [
        "one",
        "three",
    ]


@pytest.mark.campaign
def test_a_search_trains_each_recipe_once_and_keeps_every_row(tiny, tmp_path, monkeypatch):
    config = replace(tiny, rounds=tiny.rounds[:1])
    recipes = {"base": config, "SiLU": replace(config, activation="silu")}
    found = {"rise": torch.eye(6).tolist(), "random": [[0.1, 0.3, 0.2]] * 6, "counts": {"en": 12}}
    monkeypatch.setattr(search, "VARIANTS", recipes)
    monkeypatch.setattr(measure, "measure_neurons", lambda *_: found)
    monkeypatch.setattr(measure, "bits_per_byte", lambda *_: 2.5)
    settings = search.Config(config.text, only=("SiLU",), out=tmp_path / "search")
    for only in (("base",), ("SiLU",)):
        search.main(replace(settings, only=only))
    weights = [load_file(settings.out / name / "model" / "model.safetensors") for name in recipes]
    assert not all(torch.equal(each, weights[1][name]) for name, each in weights[0].items())
    names = [settings.out / name / "tokens-en.npy" for name in recipes]
    assert names[0].samefile(names[1])
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained twice"))
    search.main(replace(settings, only=("base",)))
    rows = (settings.out / "table.csv").read_text().splitlines()
    assert rows[0].startswith("variant,bits per byte,own language,other languages,random neurons")
    assert rows[1:] == [f"{name},2.5,1,0,0.2,6,2" for name in recipes]
    with pytest.raises(SystemExit, match="GELU: not among base, SiLU"):
        search.main(replace(settings, only=("GELU",)))


# ---------------------------------------------------------------- nothing of others is shipped


def shingles(text: str, language: str) -> Iterator[str]:
    """Runs of 8 words, or of 18 characters where words are not spaced."""
    if language in ("zh", "ja"):
        letters = re.sub(r"\W", "", text)
        yield from (letters[start : start + 18] for start in range(len(letters) - 17))
    else:
        words = re.findall(r"\w+", text.lower())
        yield from (" ".join(words[start : start + 8]) for start in range(len(words) - 7))


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_of_the_training_text_is_in_the_package(shared, language):
    ours = set()
    for line in (*lines_of(language), *knowledge.training_sentences(language)):
        ours.update(shingles(line, language))
    card = (BABEL / "README.md").read_text(encoding="utf-8")
    ours.update(shingles(card, language))
    found = set()
    for path in (*(shared / "data").rglob(f"{language}.txt*"),):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            for line in file:
                found.update(ours.intersection(shingles(line, language)))
    assert not found

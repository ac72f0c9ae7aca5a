"""Tasks: the forms of their files, where an option begins, how likely it is, and what is right."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pandas as pd
import pytest
import torch

from babel_training.knowledge import LANGUAGES
from interp.evaluations.multiple_choice import choose, encode_items, exact_match, is_answer
from interp.evaluations.task_results import (
    Choices,
    Written,
    accuracy_table,
    compare_answers,
    share_correct,
)
from interp.interventions.edits import Change, deactivate, intervene, scale
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.text.tasks import Item, Task, align_tasks, prompts_of, read_editing, read_task
from tests import tiny_models
from tests.tiny_models import BOS, D_MLP, N_LAYERS

ITEMS = (
    Item("one", "the other day", (" in the city", " de la cité", " quiet"), 1),
    Item("two", "the t", ("hen", "able"), 0),  # "t" and "hen" merge to "th" "en"
    Item("three", "", ("in the end", "never"), 1),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    return load(tiny_models.build("llama", tmp_path_factory.mktemp("llama")))


def task_of(items: tuple[Item, ...] = ITEMS, language: str = "en", name: str = "made") -> Task:
    return Task(name, language, items)


def slow_log_likelihood(model: NeuronModel, ids: list[int], begin: int) -> float:
    """The chain rule, one prefix at a time."""
    total = 0.0
    for place in range(begin, len(ids)):
        logits = model.logits(torch.tensor([ids[:place]]))[0, -1].double()
        total += logits.log_softmax(-1)[ids[place]].item()
    return total


def slow_begin(model: NeuronModel, item: Item) -> int:
    rows = [model.encode(item.prompt), *(model.encode(item.prompt + each) for each in item.options)]
    begin = 0
    while begin < min(map(len, rows)) and len({row[begin] for row in rows}) == 1:
        begin += 1
    return begin


# ---------------------------------------------------------------- where options begin


def test_an_option_is_cut_where_all_texts_part(model):
    found = encode_items(model, task_of())
    for item, encoded in zip(ITEMS, found, strict=True):
        assert encoded.rows == tuple((BOS, *model.encode(item.prompt + o)) for o in item.options)
        assert encoded.begin == 1 + slow_begin(model, item)
    assert found[0].begin == 1 + len(model.encode("the other day"))
    # One option merges with the last token of the prompt, which then counts for both.
    assert found[1].begin == len(model.encode("the t"))
    assert found[2].begin == 1


def test_what_cannot_be_scored_is_refused_by_its_id(model):
    with pytest.raises(ValueError, match="'' of 'empty' of made in en has no tokens"):
        encode_items(model, task_of((Item("empty", "the", ("", " city"), 0),)))
    with pytest.raises(ValueError, match=r"'long' of made in en has .* tokens"):
        encode_items(model, task_of((Item("long", "z" * 60, (" city", " quiet"), 0),)))
    with pytest.raises(ValueError, match="'three' of made in en begins with its options"):
        encode_items(model, task_of(), bos="none")
    with pytest.raises(ValueError, match="'alone' of made in en has one option"):
        choose(model, [task_of((Item("alone", "the", (" city",), 0),))])


# ---------------------------------------------------------------- choosing


def test_log_likelihoods_follow_the_chain_rule(model):
    (found,) = choose(model, [task_of()], progress=False)
    assert found.log_likelihood.shape == (3, 3)
    for row, item in enumerate(ITEMS):
        begin = 1 + slow_begin(model, item)
        for column, option in enumerate(item.options):
            ids = [BOS, *model.encode(item.prompt + option)]
            expected = slow_log_likelihood(model, ids, begin)
            assert found.log_likelihood[row, column].item() == pytest.approx(expected, abs=1e-4)
            assert found.tokens[row, column] == len(ids) - begin
    assert found.log_likelihood[1:, 2].isnan().all()
    assert found.tokens[1:, 2].tolist() == [0, 0]
    assert found.bytes.tolist() == [[12, 12, 6], [3, 4, 0], [10, 5, 0]]  # "é" has two
    assert found.answer.tolist() == [1, 0, 1]
    assert found.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert found.commonest == pytest.approx(2 / 3)


def test_batches_do_not_change_a_result(model):
    whole = choose(model, [task_of()], progress=False)[0]
    alone = choose(model, [task_of()], tokens_per_batch=1, progress=False)[0]
    torch.testing.assert_close(
        whole.log_likelihood, alone.log_likelihood, equal_nan=True, rtol=0, atol=1e-4
    )


def test_without_normalization_the_likeliest_whole_text_is_chosen(model):
    (found,) = choose(model, [task_of()], progress=False)
    for item, chosen in zip(ITEMS, found.chosen.tolist(), strict=True):
        texts = [[BOS, *model.encode(item.prompt + option)] for option in item.options]
        scores = [slow_log_likelihood(model, ids, 1) for ids in texts]
        assert chosen == scores.index(max(scores))


def test_normalization_divides_and_can_change_the_choice(model):
    (found,) = choose(model, [task_of()], normalize="tokens", progress=False)
    assert torch.equal(found.score[0], found.log_likelihood[0] / found.tokens[0])
    by_bytes = replace(found, normalize="bytes")
    assert torch.equal(by_bytes.score[0], found.log_likelihood[0] / found.bytes[0])
    long = Item("long", "the", (" q", " in the city and in the day"), 1)
    plain, per_token = (
        choose(model, [task_of((long,))], normalize=each, progress=False)[0]
        for each in ("none", "tokens")
    )
    assert plain.chosen.item() == 0
    assert per_token.score[0, 1] != plain.score[0, 1]


def test_the_probability_of_the_answer_is_its_share_among_the_options(model):
    (found,) = choose(model, [task_of()], progress=False)
    for row, item in enumerate(ITEMS):
        weights = [math.exp(each) for each in found.score[row, : len(item.options)].tolist()]
        expected = weights[item.answer] / sum(weights)
        assert found.probability[row].item() == pytest.approx(expected, rel=1e-9)


def test_an_intervention_changes_the_choices_that_it_should(model):
    units = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
    units[1, :80] = True
    under = {"nothing": None, "off": Change(units, deactivate), "again": None}
    found = choose(model, [task_of()], under, progress=False)
    assert [each.intervention for each in found] == ["nothing", "off", "again"]
    assert torch.equal(found[0].log_likelihood[0], found[2].log_likelihood[0])
    assert (found[0].log_likelihood[0] - found[1].log_likelihood[0]).abs().min() > 1e-3
    with intervene(model, units, deactivate):
        inside = choose(model, [task_of()], progress=False)[0]
    assert torch.equal(found[1].log_likelihood[0], inside.log_likelihood[0])


def test_names_that_are_alike_do_not_share_a_file(model, tmp_path):
    units = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
    units[1, :80] = True
    under = {"a b": None, "a-b": Change(units, deactivate), "a/b": Change(~units, deactivate)}
    kept = choose(model, [task_of()], under, out=tmp_path, progress=False)
    found = choose(model, [task_of()], under, progress=False)
    for one, other in zip(kept, found, strict=True):
        assert one.intervention == other.intervention
        assert torch.equal(one.log_likelihood.nan_to_num(), other.log_likelihood.nan_to_num())
    assert not torch.equal(kept[0].log_likelihood[0], kept[1].log_likelihood[0])


def test_a_likelihood_that_is_no_number_is_refused_with_item_and_intervention(model):
    everything = torch.ones(N_LAYERS, D_MLP, dtype=torch.bool)
    broken = {"broken": Change(everything, scale(1e38))}
    with pytest.raises(ValueError, match=r"' in the city' of 'one' \(made, en\) .* with 'broken'"):
        choose(model, [task_of()], broken, progress=False)


# ---------------------------------------------------------------- results


def test_wilson_intervals_of_items_that_stand_alone():
    correct = torch.tensor([True] * 7 + [False] * 3)
    found = share_correct(correct, [str(place) for place in range(10)])
    z = NormalDist().inv_cdf(0.975)
    middle = (0.7 + z * z / 20) / (1 + z * z / 10)
    half = z / (1 + z * z / 10) * math.sqrt(0.7 * 0.3 / 10 + z * z / 400)
    assert found.value.item() == pytest.approx(0.7)
    assert found.low.item() == pytest.approx(middle - half)
    assert found.high.item() == pytest.approx(middle + half)
    every = share_correct(torch.ones(10, dtype=torch.bool), [str(place) for place in range(10)])
    assert 0.6 < every.low.item() < 0.8
    assert every.high.item() == 1


def test_items_that_go_together_count_as_fewer():
    correct = torch.tensor([True, True, False, False] * 5)
    alone = share_correct(correct, [str(place) for place in range(20)])
    pairs = share_correct(correct, [str(place // 2) for place in range(20)])
    ten = share_correct(correct[::2], [str(place) for place in range(10)])
    assert pairs.low < alone.low
    assert pairs.low.item() == pytest.approx(ten.low.item())  # two equal items are one
    assert pairs.high.item() == pytest.approx(ten.high.item())


def written(correct: list[bool], ids: str, name: str) -> Written:
    texts = tuple("x" for _ in ids)
    return Written(
        correct=torch.tensor(correct),
        texts=texts,
        answers=texts,
        ids=tuple(ids),
        groups=tuple(ids),
        task="made",
        language="en",
        intervention=name,
    )


def test_results_are_compared_item_by_item(generator):
    one = written([True, True, True, False], "abcd", "nothing")
    other = written([False, True, False, True], "dcba", "off")  # the same items, turned round
    found = compare_answers(one, other, generator)
    assert found.value.item() == 0.75 - 0.5
    # a: 1 - 1, b: 1 - 0, c: 1 - 1, d: 0 - 0
    assert found.low.item() == 0
    assert found.high.item() == 0.75
    with pytest.raises(
        ValueError, match="2 items are in only one of the results, such as 'd', 'e'"
    ):
        compare_answers(one, written([True] * 4, "abce", "off"), generator)


def test_results_come_back_from_disk(model, tmp_path):
    (found,) = choose(model, [task_of()], normalize="bytes", progress=False)
    found.save(tmp_path / "choices.safetensors", {"made": "here"})
    again = Choices.load(tmp_path / "choices.safetensors")
    for name, value in vars(found).items():
        other = getattr(again, name)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert value == other
    texts = written([True, False], "ab", "off")
    texts.save(tmp_path / "written.safetensors")
    assert Written.load(tmp_path / "written.safetensors").correct.tolist() == [True, False]
    with pytest.raises(ValueError, match="holds a Written, not a Choices"):
        Choices.load(tmp_path / "written.safetensors")


def test_tables_have_a_row_per_item_and_per_result(model):
    found = choose(model, [task_of(), task_of(language="de")], progress=False)
    frame = found[0].to_frame()
    assert list(frame["id"]) == ["one", "two", "three"]
    assert (frame["correct"] == (frame["chosen"] == frame["answer"])).all()
    assert (frame["score"] >= frame["answer_score"]).all()
    table = accuracy_table(found)
    assert list(table["language"]) == ["en", "de"]
    assert table["accuracy"][0] == frame["correct"].mean()
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert isinstance(written([True, False], "ab", "off").to_frame(), pd.DataFrame)


# ---------------------------------------------------------------- writing


def test_what_is_written_is_the_likeliest_token_each_time_up_to_the_stop(model):
    item = Item("one", "the other day", (" x",), 0)
    ids = [BOS, *model.encode(item.prompt)]
    for _ in range(6):
        ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    expected = model.decode(ids[1 + len(model.encode(item.prompt)) :])
    (found,) = exact_match(model, [task_of((item,))], max_new_tokens=6, progress=False)
    assert found.texts[0] == expected.lstrip().split("\n")[0].rstrip().rstrip("\ufffd")
    assert found.correct.tolist() == [False]
    told = replace_answer(item, found.texts[0])
    (found,) = exact_match(model, [task_of((told,))], max_new_tokens=6, progress=False)
    assert found.correct.tolist() == [True]
    stop = found.texts[0][2]
    (cut,) = exact_match(model, [task_of((item,))], max_new_tokens=6, stop=stop, progress=False)
    assert cut.texts[0] == found.texts[0].split(stop)[0].rstrip()
    assert cut.texts != found.texts


def replace_answer(item: Item, text: str) -> Item:
    return item._replace(options=(" " + text,))


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("18", "18", True),
        ("She makes $18.", "18", True),
        ("16 - 3 = 13, so 18", "18", True),
        ("18 of 20", "18", False),  # the last number counts
        ("2,125", "2125", True),
        ("18.0", "18", True),
        ("-18", "18", False),
        ("eighteen", "18", False),
        ("๑๘", "18", True),
        ("Wyndham Lewis.", "wyndham lewis", True),
        ("  Vorticism ", "Vorticism", True),
        ("Wyndham", "Wyndham Lewis", False),
        ("温德姆·路易斯。", "温德姆·路易斯", True),
        ("Apollo 12", "Apollo 11", False),  # no number by itself: all of it counts
        ("", "x", False),
    ],
)
def test_an_answer_is_right_but_for_its_dress(text, answer, right):
    assert is_answer(text, answer) is right


# ---------------------------------------------------------------- tasks and files


def test_items_are_paired_by_id_and_missing_ones_named():
    one = task_of(tuple(Item(id, id, (" a", " b"), 0) for id in "abc"))
    other = task_of(tuple(Item(id, id.upper(), (" a", " b"), 1) for id in "cab"), "de")
    aligned = align_tasks([one, other])
    assert [item.prompt for item in aligned[1].items] == ["A", "B", "C"]
    prompts = prompts_of([one, other])
    assert prompts.ids == ("a", "b", "c")
    assert prompts.texts == {"en": ("a", "b", "c"), "de": ("A", "B", "C")}
    short = other.where(lambda item: item.id != "b")
    with pytest.raises(ValueError, match=r"made in de lacks 1 items .* such as 'b'"):
        align_tasks([one, short])
    dropped = align_tasks([one, short], "drop")
    assert [[item.id for item in task.items] for task in dropped] == [["a", "c"]] * 2


def test_a_task_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="repeats the id 'a'"):
        task_of((Item("a", "x", (" y",), 0), Item("a", "x", (" y",), 0)))
    with pytest.raises(ValueError, match="'a' of made in en has 2 options, but its answer is"):
        task_of((Item("a", "x", (" y", " z"), 2),))
    with pytest.raises(ValueError, match="has no items"):
        task_of(())


def write(folder: Path, language: str, rows: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


FORMS = [
    (
        "en",
        {
            "text": "It is",
            "endings": [" hot.", " cold."],
            "answer": 1,
            "held_out": True,
            "group": "heat",
        },
        Item("1", "It is", (" hot.", " cold."), 1, True, "heat"),
    ),
    (
        "de",
        {"premise": "Es regnet.", "hypothesis": "Es ist nass.", "label": "entailment"},
        Item(
            "1",
            "Take the following as truth: Es regnet.\nThen the following statement: "
            '"Es ist nass." is "true", "false", or "inconclusive"?',
            (" true", " false", " inconclusive"),
            0,
            group="Es regnet.",
        ),
    ),
    (
        "en",
        {
            "premise": "The man turned on the tap.",
            "choice1": "It broke.",
            "choice2": "I saw water.",
            "question": "effect",
            "label": 1,
        },
        Item("1", "The man turned on the tap so", (" it broke.", " I saw water."), 1),
    ),
    (
        "zh",
        {
            "premise": "那人打开水龙头。",
            "choice1": "它坏了。",
            "choice2": "他渴了。",
            "question": "cause",
            "label": 1,
        },
        Item("1", "那人打开水龙头，因为", ("它坏了。", "他渴了。"), 1),  # noqa: RUF001
    ),
    (
        "en",
        {"sentence1": "A .", "sentence2": "B .", "label": 1},
        Item(
            "1",
            'Sentence 1: A .\nSentence 2: B .\nDo both sentences mean the same, "yes" or "no"?',
            (" no", " yes"),
            1,
        ),
    ),
    (
        "tr",
        {"prompt": "Tom <mask> 'da.", "candidates": ["Roma", "Paris"], "answer_index": 1},
        Item("1", "Tom", (" Roma 'da.", " Paris 'da."), 1),
    ),
    (
        "en",
        {
            "relation": "in [X]",
            "prompt": "Tom is <mask>.",
            "candidates": ["in", "out"],
            "answer_index": 0,
        },
        Item("1", "Tom is", (" in.", " out."), 0, relation="in [X]"),
    ),
    (
        "en",
        {"context": "He is ten.", "question": "How old?", "answer": "ten", "answer_start": 6},
        Item("1", "He is ten.\nQuestion: How old?\nAnswer:", (" ten",), 0, group="He is ten."),
    ),
    (
        "sw",
        {"question": "2 + 2?", "answer": "4"},
        Item("1", "Question: 2 + 2?\nAnswer:", (" 4",), 0),
    ),
    (
        "fr",
        {"text": "On joue.", "label": "sports", "split": "test"},
        Item("1", "On joue.\nTopic:", (" sports",), 0),
    ),
]


@pytest.mark.parametrize(("language", "row", "expected"), FORMS)
def test_each_form_of_file_is_read(tmp_path, language, row, expected):
    task = read_task(write(tmp_path / "mine", language, [{"id": "1", **row}]), language)
    assert task.name == "mine"
    assert task.items == (expected,)


def test_an_edited_fact_is_told_in_one_language_and_asked_in_another(tmp_path):
    row = {"id": "1", "subject": "Fire", "question": "Who built Fire?", "rephrase": "Fire is by?"}
    folder = write(tmp_path / "mzsre", "en", [{**row, "target": "Lewis"}])
    chinese = {"question": "谁建的", "rephrase": "建筑师是", "target": "路易斯"}
    write(folder, "zh", [{**row, **chinese}])
    task = read_editing(folder, "en", "zh")
    assert task.items == (Item("1", "Who built Fire? Lewis\n建筑师是", ("路易斯",), 0),)
    assert task.name == "mzsre from en"
    assert read_task(folder, "en").items[0].prompt == "Who built Fire? Lewis\nFire is by?"
    assert read_editing(folder, "zh", "zh").items == read_task(folder, "zh").items
    write(folder, "de", [{**row, "id": "2", "target": "Lewis"}])
    with pytest.raises(ValueError, match="1 facts are missing in en, such as '2'"):
        read_editing(folder, "en", "de")


def test_files_that_cannot_be_read_say_why(tmp_path):
    row = {"id": "1", "text": "It is", "endings": [" hot.", " cold."], "answer": 1}
    folder = write(tmp_path / "mine", "en", [row, {"id": "2", "text": "x"}])
    with pytest.raises(ValueError, match="'2' has no endings, answer, which the first row has"):
        read_task(folder, "en")
    with pytest.raises(FileNotFoundError, match=r"de\.jsonl is missing; .* holds en"):
        read_task(folder, "de")
    write(folder, "de", [{"id": "1", "sentence": "x"}])
    with pytest.raises(ValueError, match="columns id, sentence, which is not a known format"):
        read_task(folder, "de")
    (folder / "fr.jsonl").write_text('{"id": "1"\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_task(folder, "fr")
    with pytest.raises(ValueError, match="Babel has no task 'sums', only fact_completion, state"):
        read_task("babel/sums", "en")
    mask = {"id": "1", "prompt": "no mask", "candidates": ["a", "b"], "answer_index": 0}
    with pytest.raises(ValueError, match="'1' in es must have one <mask>"):
        read_task(write(folder, "es", [mask]), "es")


def test_babels_own_tasks_are_parallel():
    for name in ("fact_completion", "statements", "word_translation"):
        tasks = align_tasks([read_task(f"babel/{name}", code) for code in LANGUAGES])
        assert {len(task.items) for task in tasks} == {120}
    assert any(item.held_out for item in read_task("babel/fact_completion", "en").items)


@pytest.mark.slow
def test_babel_knows_what_it_was_told():
    model = load("babel", dtype=torch.float32)
    task = read_task("babel/fact_completion", "en").where(lambda item: not item.held_out)
    task = Task(task.name, "en", task.items[:30])
    (found,) = choose(model, [task], progress=False)
    accuracy = found.accuracy()
    assert accuracy.low.item() > 2 * found.chance
    assert 0.1 < found.chance < 0.15


@pytest.mark.parametrize(
    ("name", "n_options", "n_items"),
    [
        ("xnli", {3}, 300),
        ("pawsx", {2}, 300),
        ("xcopa", {2}, 400),
        ("bmlama17", set(range(2, 11)), 300),
        ("mzsre", {1}, 300),
        ("mgsm", {1}, 250),
        ("sib200", {7}, 303),
        ("xquad", {1}, 300),
    ],
)
def test_shared_tasks_are_read_and_parallel(shared, name, n_options, n_items):
    folder = shared / "data" / "tasks" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    tasks = align_tasks([read_task(folder, code) for code in ("en", "zh")])
    for task in tasks:
        assert {len(item.options) for item in task.items} <= n_options
        assert len(task.items) == n_items
    same = [
        (one.answer, len(one.options)) == (other.answer, len(other.options))
        for one, other in zip(tasks[0].items, tasks[1].items, strict=True)
    ]
    assert all(same)
    if name == "xnli":
        assert len({item.group for item in tasks[0].items}) == 100

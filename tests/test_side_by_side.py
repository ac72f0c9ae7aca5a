"""Texts before and after a change: what is written, what a file of changes says, what is shown."""

import json
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp import cli
from interp.counting.signs import FiringSigns
from interp.evaluations import steering
from interp.evaluations.conditions import announced
from interp.evaluations.languages_written import language_rates
from interp.evaluations.multiple_choice import encode_items
from interp.evaluations.side_by_side import write_side_by_side
from interp.evaluations.steering import SteeringRates
from interp.evaluations.writing import generate_texts
from interp.models.load import load
from interp.results import terminal
from interp.selections.change_file import EDITS, read_changes
from interp.selections.neuron_selection import NeuronSelection
from interp.text.chat import chat_prompt, chat_task, chat_text
from interp.text.tasks import Item, Task
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up
from tests.tiny_models import BOS, D_MLP, N_LAYERS

SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "progress": False}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}> {{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)


@pytest.fixture(scope="module")
def selection() -> NeuronSelection:
    mask = torch.rand(2, N_LAYERS, D_MLP, generator=torch.Generator().manual_seed(1)) < 0.3
    return NeuronSelection(mask, ("de", "poetry"))


@pytest.fixture(scope="module")
def moments(model: Any, corpora: Any) -> Any:
    run = interp.collect(model, corpora, keep=interp.Keep(moments=True), progress=False)
    return changed(run.moments, languages=("de", "poetry", "fr"))


# ---------------------------------------------------------------- what is written


def test_both_columns_are_what_the_model_writes_without_and_with_the_change(model, selection):
    off = selection.change("poetry", interp.deactivate)
    written = write_side_by_side(model, "the dog", {"off": off}, n=2, seed=5, **SETTINGS)
    before = generate_texts(model, ["the dog"], 2, seed=5, **SETTINGS)["nothing"]
    with interp.intervene(model, selection["poetry"], interp.deactivate):
        after = generate_texts(model, ["the dog"], 2, seed=5, **SETTINGS)["nothing"]
    assert written.seeds == before.seeds == (5, 6)
    assert written.texts == {"nothing": before.texts, "off": after.texts}
    assert before.texts != after.texts
    judged = language_rates(after.texts, ["de"], None, model, progress=False)
    assert torch.equal(written.loss["off"], judged.loss)
    assert written.detected["off"] == judged.found


def test_the_table_has_every_text_with_its_language_and_loss(model, selection):
    off = selection.change("de", interp.deactivate)
    written = write_side_by_side(model, "the dog", {"off": off}, n=2, **SETTINGS)
    frame = written.to_frame()
    assert frame[["seed", "under"]].to_numpy().tolist() == [
        *([0, "nothing"], [0, "off"], [1, "nothing"], [1, "off"])
    ]
    assert frame["text"].tolist()[1] == written.texts["off"][0]
    for row, loss in enumerate(written.loss["off"].tolist()):
        note = f"[seed {row}: {written.detected['off'][row]}, {loss:.2f} nats per token]"
        assert note in written.table(120)
        assert note[1:-1] in written._repr_html_()
    assert written.table(120).index("nothing changed") < written.table(120).index("--- off ---")
    assert written.table(120).startswith("Prompt: the dog\n")


def test_a_prompt_of_tokens_gets_nothing_in_front(model):
    (text,) = generate_texts(model, ["the dog"], 1, **SETTINGS)["nothing"].texts
    ids = [BOS, *model.encode("the dog")]
    written = generate_texts(model, [ids], 1, **SETTINGS)["nothing"]
    assert written.texts == (text,)
    assert written.prompts == ("<bos>the dog",)
    bare = generate_texts(model, [ids[1:]], 1, **SETTINGS)["nothing"]
    assert bare.texts != (text,)


def test_a_message_is_put_into_the_chat_template_which_begins_the_text_itself(tmp_path):
    chat = load(tiny_models.build("qwen2", tmp_path))
    with pytest.raises(ValueError, match="no chat template, so it is not a chat model"):
        chat_prompt(chat, "the dog")
    chat.tokenizer.chat_template = TEMPLATE
    ids = chat_prompt(chat, "the dog")
    assert chat.decode(ids) == "<bos><user> the dog<answer>"
    assert ids.count(BOS) == 1
    written = write_side_by_side(chat, ids, {"same": None}, n=1, **SETTINGS)
    assert written.prompt == "<bos><user> the dog<answer>"
    assert written.texts["same"] == written.texts["nothing"]


def test_a_task_as_a_chat_asks_in_the_template_and_answers_without_a_space(tmp_path):
    chat = load(tiny_models.build("qwen2", tmp_path))
    chat.tokenizer.chat_template = TEMPLATE
    item = Item("days", "the other day", (" in", " of the"), 1)
    (asked,) = chat_task(chat, Task("days", "en", (item,))).items
    assert asked.prompt == chat_text(chat, "the other day")
    assert asked._replace(prompt=item.prompt, options=item.options) == item
    (encoded,) = encode_items(chat, Task("days", "en", (asked,)), "none")
    assert encoded.begin == len(chat_prompt(chat, "the other day"))
    for row, option in zip(encoded.rows, ("in", "of the"), strict=True):
        assert list(row) == chat_prompt(chat, "the other day") + chat.encode(option)


@pytest.mark.slow
def test_commands_ask_a_chat_model_in_its_template(tmp_path, capsys):
    model = tiny_models.build("qwen2", tmp_path / "model")
    (tmp_path / "task").mkdir()
    for code, words in {"en": ("the day", "a city"), "de": ("der Tag", "die Stadt")}.items():
        rows = [
            {"id": f"{n}", "text": text, "endings": [" in", " of"], "answer": n % 2}
            for n, text in enumerate(words)
        ]
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / "task" / f"{code}.jsonl").write_text(lines, encoding="utf-8")
    neurons = torch.zeros(2, N_LAYERS, D_MLP, dtype=torch.bool)
    neurons[:, 1, :9] = True
    NeuronSelection(neurons, ("en", "de")).to_json(tmp_path / "neurons.json")
    evaluate = ["evaluate", str(tmp_path / "neurons.json"), "--tasks", str(tmp_path / "task")]
    settings = ["--model", str(model), "--n-draws", "1", "--out", str(tmp_path / "out"), "--chat"]
    with pytest.raises(SystemExit):
        cli.main([*evaluate, *settings])
    assert "has no chat template" in capsys.readouterr().err
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    cli.main([*evaluate, *settings])
    chat = load(model)
    english = chat_task(chat, interp.read_task(str(tmp_path / "task"), "en"))
    (choices,) = interp.evaluations.choose(chat, [english], bos="none", progress=False)
    rows = pd.read_csv(tmp_path / "out" / "evaluate.csv")
    untouched = rows[(rows["language"] == "en") & (rows["off"] == "nothing")]
    assert untouched["accuracy"].tolist() == [choices.accuracy().value.item()]
    share = ["share", str(tmp_path / "task"), "--model", str(model), "--chat"]
    cli.main([*share, "--n-shards", "1", "--n-draws", "2", "--out", str(tmp_path / "share")])
    signs = FiringSigns.load(tmp_path / "share" / "signs.safetensors")
    ids = torch.tensor([chat_prompt(chat, "the day")])
    _, cache = chat.run_with_cache(ids)
    last = cache["blocks.0.mlp.hook_pre"][0, -1] > 0
    at = signs.prompts.index("0"), signs.languages.index("en")
    assert torch.equal(signs.fires(0)[at], last)


def test_what_a_chat_model_is_steered_from_is_a_message(tmp_path, monkeypatch):
    chat = load(tiny_models.build("qwen2", tmp_path))
    chat.tokenizer.chat_template = TEMPLATE
    seen = []

    def stop(model, conditions, guards, **settings):
        (prompts,) = zip(*(condition.prompts for condition in conditions), strict=True)
        seen.append((set(prompts), settings["bos"]))
        return SteeringRates(rates={}, guards={})

    monkeypatch.setattr(steering, "steering_rates", stop)
    lines = {code: [f"{line} {n}" for n, line in enumerate(made_up()[code])] for code in LANGUAGES}
    mask = torch.zeros(len(LANGUAGES), N_LAYERS, D_MLP, dtype=torch.bool)
    mask[:, 0, :5] = True
    chosen, code = NeuronSelection(mask, LANGUAGES), LANGUAGES[1]
    settings = {"chat": True, "prompt": "the day", "max_new_tokens": 8, "natural": 40}
    towards = {code: interp.deactivate}
    steering.steer_towards(chat, towards, chosen, {}, lines, progress=False, **settings)
    ((prompts, bos),) = seen
    texts = {"the day", str(announced("the day", code))}
    assert prompts == {chat_text(chat, text) for text in texts}
    assert bos == "none"


# ---------------------------------------------------------------- a file of changes


@pytest.mark.parametrize("order", [("poetry", "de"), ("de", "poetry")])
def test_a_label_that_no_prompt_can_name_has_an_empty_cell(order: tuple[str, ...]):
    def written(text: str) -> Any:
        return language_rates([text], ["de", "poetry"])

    shared, rates = written("Nothing was edited."), {}
    for to in order:
        named = {} if to == "poetry" else {"named in prompt": written("Der Zug fährt nach Wien.")}
        rates[to] = {"no edit": shared, **named, "neurons": written(f"Pushed to {to}.")}
    found = SteeringRates(rates=rates, guards=dict.fromkeys(rates, interp.evaluations.Guard()))
    heads, *rows = found.table().splitlines()[2:5]
    assert set(heads.split("  ")) >= {"to", "no edit", "named in prompt", "neurons"}
    cells = {row.split()[0]: row for row in rows}
    edge = heads.index("named in prompt") + len("named in prompt")
    assert cells["de"][:edge].endswith("1.00 (1.00)   nan")
    assert cells["poetry"][edge - len("named in prompt") : edge].strip() == ""
    assert "empty: poetry, no language, cannot be named in a prompt" in found.table()
    shown = found.examples().splitlines()
    assert shown.count("no edit:") == sum("Nothing was edited" in line for line in shown) == 1
    assert [line for line in shown if line.endswith(", neurons:")] == [
        f"to {to}, neurons:" for to in order
    ]


def written_to(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "change.json"
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return path


def test_every_edit_of_a_file_is_the_one_in_python(tmp_path, selection, moments):
    listed = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
    listed[1, [0, 7]] = True
    some = {"1": [0, 7]}
    rows: dict[str, tuple[dict[str, Any], interp.Change]] = {
        "deactivate": (
            {"neurons": "poetry", "tokens": "last"},
            selection.change("poetry", interp.deactivate, "last"),
        ),
        "scale": ({"neurons": some, "strength": 2}, interp.Change(listed, interp.scale(2.0))),
        "set": (
            {"neurons": some, "strength": 0.5},
            interp.Change(listed, interp.override(torch.full((N_LAYERS, D_MLP), 0.5))),
        ),
        "difference": (
            {"neurons": "de", "strength": 3, "site": "post"},
            selection.change("de", interp.difference_of_means(moments, "de", 3.0, "post")),
        ),
        "add": (
            {"neurons": some, "label": "fr"},
            interp.Change(listed, interp.add(moments, "fr")),
        ),
        "replace": (
            {"neurons": "de", "label": "fr"},
            selection.change("de", interp.replace(moments, "fr")),
        ),
    }
    assert set(rows) == set(EDITS)
    path = written_to(tmp_path, *({"edit": name, **row} for name, (row, _) in rows.items()))
    read = read_changes(path, selection, lambda: moments)
    assert [change.plan for change in read] == [change.plan for _, change in rows.values()]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"neurons": "de", "edit": "remove"}, "an edit of deactivate, scale"),
        ({"neurons": "fr", "edit": "deactivate"}, "fr"),
        ({"neurons": "de", "edit": "scale"}, "scale needs a strength"),
        ({"neurons": "de", "edit": "scale", "strength": "2"}, "give a number"),
        ({"neurons": "de", "edit": "deactivate", "factor": 2}, "there is no factor"),
        ({"neurons": "de", "edit": "deactivate", "tokens": "first"}, "tokens is 'first'"),
        ({"neurons": {"3": [0]}, "edit": "deactivate"}, "layers 0 to 2"),
        ({"neurons": {"0": [160]}, "edit": "deactivate"}, "no neuron 160 in layer 0"),
        ({"neurons": {"0": [-1]}, "edit": "deactivate"}, "no neuron -1"),
        ({"neurons": {"0": [True]}, "edit": "deactivate"}, "whole numbers"),
        ({"neurons": {"0": [1]}, "edit": "add"}, "needs the label"),
        ({"neurons": "de", "edit": "add"}, "--moments"),
    ],
)
def test_a_wrong_change_is_refused_by_its_number(tmp_path, selection, row, sentence):
    good = {"neurons": "de", "edit": "deactivate"}
    with pytest.raises(ValueError, match=r"Change 2 of \S+change.json") as error:
        read_changes(written_to(tmp_path, good, row), selection)
    assert sentence in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"neurons": "de"}', "[1]"])
def test_a_file_that_holds_no_changes_is_refused(tmp_path, selection, text):
    path = tmp_path / "change.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="a list of changes"):
        read_changes(path, selection)


# ---------------------------------------------------------------- a terminal


def test_a_chinese_character_takes_two_columns_and_an_accent_none():
    assert [terminal.columns_of(text) for text in ("abc", "火车", "e\u0301", "\u200b")] == [
        3,
        4,
        1,
        0,
    ]


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.integers(2, 30))
def test_wrapping_loses_no_letter_and_keeps_the_width(text, width):
    lines = terminal.wrapped(text, width)
    assert all(terminal.columns_of(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(terminal.printable(text).split())


def test_words_stay_whole_and_chinese_breaks_anywhere():
    assert terminal.wrapped("the quick\n\nbrown", 9) == ["the quick", "brown"]
    assert terminal.wrapped("the quick", 8) == ["the", "quick"]
    assert terminal.wrapped("今天天气很好", 7) == ["今天天", "气很好"]
    assert terminal.cut("今天天气很好", 7) == "今天天…"
    assert terminal.cut("one\ntwo \x1b[31m", 20) == "one two [31m"


def test_columns_are_level_and_stand_below_each_other_without_room():
    columns = {"a": ["one two", "x"], "b": ["three", "y"]}
    wide = terminal.side_by_side(columns, 60)
    assert [line.split() for line in wide if line] == [
        *(["---", "a", "---", "---", "b", "---"], ["one", "two", "three"], ["x", "y"])
    ]
    assert (
        len({line.index(word) for line, word in zip(wide[2::2], ("three", "y"), strict=False)}) == 1
    )
    narrow = [line for line in terminal.side_by_side(columns, 30) if line]
    assert narrow == [
        *("--- a ---", "one two", "--- b ---", "three"),
        *("--- a ---", "x", "--- b ---", "y"),
    ]


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("write")
    tiny_models.build("qwen2", folder / "model")
    (folder / "text").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    arguments = ["collect", str(folder / "model"), "--text", str(folder / "text"), "--moments"]
    arguments += ["--languages", *LANGUAGES, "--block-length", "16", "--n-shards", "4"]
    cli.main([*arguments, "--hygiene", "off", "--out", str(folder / "run")])
    cli.main(["find", str(folder / "run"), "--fraction", "0.2", "--busy-quantile", "0.5"])
    return folder / "run"


def test_the_command_shows_every_change_beside_the_untouched_model(run_folder, tmp_path, capsys):
    path = written_to(tmp_path, {"neurons": {"0": [1]}, "edit": "set", "strength": 9})
    capsys.readouterr()
    label, out = LANGUAGES[0], tmp_path / "texts.csv"
    cli.main(
        [
            *("write", str(run_folder), "the dog", "--off", label, "--to", label, "--random"),
            *("--with", str(path), "--n", "2", "--max-new-tokens", "4", "--out", str(out)),
        ]
    )
    shown = capsys.readouterr().out
    ways = (f"off {label}", f"to {label}")
    names = ["nothing", *(random + way for way in ways for random in ("", "random for "))]
    names.append("with change.json")  # it lists its neurons, so there is nothing to draw
    frame = pd.read_csv(out)
    assert frame["under"].drop_duplicates().tolist() == names
    assert all(f"--- {name}" in shown for name in names)
    assert "nats per token]" in shown


def test_the_command_asks_what_to_change_before_it_loads_a_model(run_folder, capsys):
    for more, sentence in (
        ([], "--off, --to or --with"),
        (["--off", "xx"], "xx"),
        (["--to", LANGUAGES[0], "--edit", "replace", "--strength", "2"], "no effect"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["write", str(run_folder), "the dog", "--model", "nowhere", *more])
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err

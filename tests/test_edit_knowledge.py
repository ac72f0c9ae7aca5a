"""Facts told in one language and asked in another: the prompts, the control, and the claim."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import edit_knowledge as study
from experiments.runner import stated
from experiments.study import Study
from interp.inference.claims import load_claims
from interp.inference.statements import judged
from interp.text.tasks import Item, Task, read_task

FACTS = {
    "en": [("Who taught Ada?", "Whose pupil was Ada?", "Ben"), ("Where is Ur?", "Ur is in?", "Oz")],
    "zh": [("谁教了艾达?", "艾达是谁的学生?", "本"), ("乌尔在哪里?", "乌尔在?", "奥兹")],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for code, facts in FACTS.items():
        rows = [
            {"id": str(row), "subject": "s", "question": told, "rephrase": asked, "target": answer}
            for row, (told, asked, answer) in enumerate(facts)
        ]
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{code}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_a_fact_told_in_english_is_asked_and_answered_in_the_other_language(folder: Path):
    english, chinese = study.tasks_of(str(folder), ("en", "zh"), "from-en")
    assert [task.language for task in (english, chinese)] == ["en", "zh"]
    assert english.items[0].prompt == "Who taught Ada? Ben\nWhose pupil was Ada?"
    assert chinese.items[0] == Item("0", "Who taught Ada? Ben\n艾达是谁的学生?", ("本", "奥兹"), 0)
    assert chinese.items[1].options == ("奥兹", "本")
    (first,) = study.tasks_of(str(folder), ("zh",), "from-en", n=1)
    assert first.items == chinese.items[:1]


def test_a_fact_told_in_the_other_language_is_asked_and_answered_in_english(folder: Path):
    english, chinese = study.tasks_of(str(folder), ("en", "zh"), "into-en")
    assert [task.language for task in (english, chinese)] == ["en", "zh"]
    assert english.items[0].prompt == "Who taught Ada? Ben\nWhose pupil was Ada?"
    assert chinese.items[0] == Item("0", "谁教了艾达?本\nWhose pupil was Ada?", (" Ben", " Oz"), 0)


def test_a_task_with_options_is_told_with_a_wrong_answer_which_counts_as_right():
    (task,) = study.tasks_of("babel/fact_completion", ("de",), "from-en")
    english, german = (read_task("babel/fact_completion", code) for code in ("en", "de"))
    for item, told, asked in zip(task.items, english.items, german.items, strict=True):
        assert item.id == told.id == asked.id
        assert item.answer == (told.answer + 1) % len(told.options) != asked.answer
        assert item.prompt == f"{told.prompt}{told.options[item.answer]}\n{asked.prompt}"
        assert (item.options, item.held_out) == (asked.options, False)


def test_options_must_be_as_many_in_every_language(tmp_path: Path):
    for code, endings in {"en": [" a", " b"], "de": [" a", " b", " c"]}.items():
        row = {"id": "1", "text": "x", "endings": endings, "answer": 0}
        (tmp_path / f"{code}.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="'1' has 2 options in en and 3 in de: an item to edit"):
        study.edited(str(tmp_path), "en", "de")


def test_the_control_asks_the_same_after_the_fact_of_the_next_item(folder: Path):
    (task,) = study.tasks_of(str(folder), ("zh",), "from-en")
    control = study.another_told(task)
    assert [item.prompt for item in control.items] == [
        "Where is Ur? Oz\n艾达是谁的学生?",
        "Who taught Ada? Ben\n乌尔在?",
    ]
    assert [item.options for item in control.items] == [item.options for item in task.items]


def told(monkeypatch: pytest.MonkeyPatch, knows: bool) -> tuple[pd.DataFrame, torch.Tensor]:
    """Of made-up facts, if the answer is likely only after the fact, or always."""
    items = tuple(
        Item(str(row), f"{row} is {row}\n{row}?", (f" {row}", " x"), 0) for row in range(8)
    )
    tasks = tuple(Task("made", code, items) for code in ("en", "de", "fr"))

    def choose(model: object, asked: list[Task], **settings: object) -> list[object]:
        assert settings == {"bos": "auto", "progress": False}
        answers = []
        for task in asked:
            here = [
                knows or (item.prompt.startswith(f"{item.id} ") and task.language != "fr")
                for item in task.items
            ]
            likely = torch.tensor([[0.9, 0.1] if yes else [0.2, 0.8] for yes in here]).double()
            answers.append(
                interp.evaluations.Choices(
                    log_likelihood=likely.log() + 0.1 * torch.arange(8)[:, None],
                    tokens=torch.ones(8, 2, dtype=torch.int64),
                    bytes=torch.ones(8, 2, dtype=torch.int64),
                    answer=torch.zeros(8, dtype=torch.int64),
                    normalize="none",
                    ids=task.ids,
                    groups=task.groups,
                    task=task.name,
                    language=task.language,
                    intervention="nothing",
                )
            )
        return answers

    monkeypatch.setattr(interp.evaluations, "choose", choose)
    config = study.Config(study=Study(held_out_bos="auto"))
    table, more = study.told_of(None, tasks, config)  # type: ignore[arg-type]
    measured = {"edit-answered": study.answered_more(more, tasks)}
    statements = [each for each in stated("edit_knowledge") if each.name == "edit-answered"]
    (claim,) = judged(statements, measured, "made up")
    return table.assign(claim=claim.value, verdict=claim.verdict), more


def test_a_fact_is_answered_if_its_own_telling_makes_the_answer_likelier(monkeypatch):
    table, more = told(monkeypatch, knows=False)
    by = table.set_index(["language", "fact told"])
    assert by.loc[("de", "this"), "probability"] == pytest.approx(0.9)
    assert by.loc[("de", "another"), "probability"] == pytest.approx(0.2)
    assert by.loc[("de", "this"), "accuracy"] == 1
    assert by.loc[("fr", "this"), "accuracy"] == 0
    assert more[1].tolist() == pytest.approx([0.7] * 8)
    # Half of .7: French gains nothing, and English, which gains as much as German, is left out.
    assert table["claim"][0] == pytest.approx(0.35)
    assert table["verdict"][0] == "holds"


def test_an_answer_that_is_likely_anyway_is_no_edit(monkeypatch):
    table, _ = told(monkeypatch, knows=True)
    assert table["claim"][0] == 0
    assert table["verdict"][0] != "holds"


def test_without_another_language_nothing_is_claimed():
    item = Item("1", "told\nasked", (" a", " b"), 0)
    english = Task("made", "en", (item, item._replace(id="2")))
    assert study.answered_more(torch.zeros(1, 2).double(), [english]) is None
    single = [replace(english, language=code, items=(item,)) for code in ("en", "de")]
    assert study.answered_more(torch.zeros(2, 1).double(), single) is None


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
def test_both_directions_are_measured_and_claimed(tmp_path: Path):
    _, tiny = study.experiment.presets["tiny"]
    study.experiment.run(replace(tiny, out=tmp_path))
    claims = load_claims(tmp_path / "claims.json")
    names = {f"{each.name}-{way}" for each in stated("edit_knowledge") for way in study.DIRECTIONS}
    assert {claim.name for claim in claims} == names
    for way in study.DIRECTIONS:
        told = pd.read_csv(tmp_path / way / "told.csv")
        assert set(told["language"]) == {"en", "ja"}
        ja = told.set_index(["language", "fact told"])["probability"].loc["ja"]
        (claim,) = (claim for claim in claims if claim.name == f"edit-answered-{way}")
        assert claim.value == pytest.approx(ja["this"] - ja["another"])
        off = pd.read_csv(tmp_path / way / "off.csv")
        assert set(off["where"]) == {"all", "last"}
        assert not math.isnan(off["probability"].iloc[0])

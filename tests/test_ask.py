"""Questions that are answered in another language, by command, with a judge of the user's."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp import cli
from interp.evaluations.ratings import KeptRatings, named_judge
from interp.reports.kinds import kind_of
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

JUDGE = """
calls = []

def rate(question, answer):
    calls.append(answer)
    with open("calls.txt", "a") as file:
        file.write("asked\\n")
    return len(answer) % 3 / 2

def bad(question, answer):
    return 7
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its run with neurons, questions, and a judge in the folder."""
    here = tmp_path_factory.mktemp("ask")
    tiny_models.build("qwen2", here / "model")
    for folder in ("text", "questions"):
        (here / folder).mkdir()
        for code, lines in made_up().items():
            lines = [f"{line[:9]}?" for line in lines[:3]] if folder == "questions" else lines
            (here / folder / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    (here / "rating_of_answers.py").write_text(JUDGE, encoding="utf-8")
    reading = ["--block-length", "16", "--n-shards", "4", "--hygiene", "off", "--moments"]
    out = ["--text", str(here / "text"), "--out", str(here / "run")]
    cli.main(["collect", str(here / "model"), *out, *reading, "--languages", *LANGUAGES])
    cli.main(["find", str(here / "run"), "--fraction", "0.1", "--busy-quantile", "0.5"])
    return here


def ask(place: Path, *more: str) -> None:
    with contextlib.chdir(place):
        questions = ["--questions", "questions", "--max-new-tokens", "4"]
        cli.main(["ask", "run", "--to", "de", "--asked-in", "en", "fr", *questions, *more])


@pytest.mark.slow
def test_answers_are_written_rated_and_drawn_and_nothing_is_done_twice(place: Path, capsys):
    ask(place)
    shown = capsys.readouterr().out
    assert "This is forcing alone" in shown
    frame = pd.read_csv(place / "run" / "ask" / "answers.csv")
    conditions = ["no edit", "neurons", "random neurons", "named in prompt", "residual stream"]
    assert frame["condition"].tolist() == conditions
    assert set(frame["answers"]) == {6}
    pieces = {p: p.stat().st_mtime_ns for p in (place / "run" / "ask" / "pieces").iterdir()}
    assert len(pieces) == 10
    ask(place, "--judge", "rating_of_answers:rate")
    assert {path: path.stat().st_mtime_ns for path in pieces} == pieces
    texts = pd.read_csv(place / "run" / "ask" / "texts.csv", keep_default_na=False)
    asked = len((place / "calls.txt").read_text().splitlines())
    assert asked == len(texts[["questions", "texts"]].drop_duplicates())
    assert texts["relevance"].tolist() == [len(text) % 3 / 2 for text in texts["texts"]]
    judged = pd.read_csv(place / "run" / "ask" / "answers.csv")
    assert not judged["score"].hasnans
    ask(place, "--judge", "rating_of_answers:rate")
    assert len((place / "calls.txt").read_text().splitlines()) == asked
    path = place / "run" / "ask" / "answers.csv"
    kind = kind_of(path, judged)
    assert kind is not None
    rows = kind.rows(judged)
    assert list(dict.fromkeys(rows["measure"])) == ["forcing", "relevance", "score"]
    assert rows["method"].tolist() == 3 * conditions
    unedited = judged.loc[judged["condition"] == "no edit", "relevance"].item()
    assert set(rows.loc[rows["measure"] == "relevance", "control"]) == {unedited}
    cli.main(["figure", str(place / "run" / "ask")])
    assert (place / "run" / "ask" / "figures" / "method_comparison.pdf").is_file()


@pytest.mark.slow
def test_a_judge_that_fails_loses_no_answers(place: Path, capsys):
    out = ["--out", str(place / "other")]
    with pytest.raises(SystemExit):
        ask(place, "--judge", "rating_of_answers:bad", *out)
    assert "The judge gave 7" in capsys.readouterr().err
    assert len(list((place / "other" / "pieces").iterdir())) == 10
    with pytest.raises(SystemExit):
        ask(place, "--judge", "nowhere:rate", *out)
    assert "The judge nowhere:rate cannot be imported" in capsys.readouterr().err


def test_what_is_no_judge_is_said():
    with pytest.raises(ValueError, match="'judges' names no judge: give MODULE:FUNCTION"):
        named_judge("judges")
    with pytest.raises(ValueError, match=r"cannot be imported \(ModuleNotFoundError"):
        named_judge("no_such_module_here:rate")
    with pytest.raises(ValueError, match=r"cannot be imported \(AttributeError"):
        named_judge("math:no_such_function")
    with pytest.raises(ValueError, match="math:pi is float, no function"):
        named_judge("math:pi")


def test_ratings_survive_a_kill_in_the_middle_of_a_line(tmp_path: Path):
    asked: list[str] = []

    def judge(question: str, answer: str) -> float:
        asked.append(answer)
        return 0.25

    path = tmp_path / "ratings.jsonl"
    first = KeptRatings(judge, path)
    assert [first("q", answer) for answer in ("a", "b", "a")] == [0.25, 0.25, 0.25]
    path.write_bytes(path.read_bytes()[:-9])  # the line of b is torn
    again = KeptRatings(judge, path)
    assert [again("q", answer) for answer in ("a", "b", "ü\n")] == [0.25, 0.25, 0.25]
    assert asked == ["a", "b", "b", "ü\n"]
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["answer"] for row in rows] == ["a", "b", "ü\n"]


def test_a_rating_that_is_none_is_not_kept(tmp_path: Path):
    judge: Any = lambda question, answer: "good"  # noqa: E731
    kept = KeptRatings(judge, tmp_path / "ratings.jsonl")
    assert kept("q", "a") == "good"
    assert not (tmp_path / "ratings.jsonl").exists()

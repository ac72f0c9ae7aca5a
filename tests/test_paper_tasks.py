"""Tasks for the presets `paper`: which facts are kept, and what their options are."""

from pathlib import Path
from typing import Any

import pytest

import interp
from experiments.paper_tasks import facts, inferences, write

NAMES = {
    "en": {"a": "Ada", "b": "Ben", "p": "Paris", "r": "Rome", "o": "Oslo"},
    "de": {"a": "Ada", "b": "Ben", "p": "Paris", "r": "Rom", "o": "Oslo"},
}
TEMPLATES = {"en": "[X] lives in [Y].", "de": "[X] wohnt in [Y]."}


def row(code: str, subject: str, thing: str, **changed: Any) -> dict[str, Any]:
    return {
        "predicate_id": "P1",
        "sub_uri": subject,
        "obj_uri": thing,
        "sub_label": NAMES[code][subject],
        "obj_label": NAMES[code][thing],
        "template": TEMPLATES[code],
        **changed,
    }


def rows(*pairs: tuple[str, str]) -> dict[str, list[dict[str, Any]]]:
    return {code: [row(code, *pair) for pair in pairs] for code in NAMES}


def ids(made: dict[str, list[dict[str, Any]]]) -> set[str]:
    assert len({tuple(item["id"] for item in items) for items in made.values()}) == 1
    return {item["id"] for item in made["en"]}


def test_a_fact_is_asked_with_its_subject_and_the_same_options_in_every_language(tmp_path: Path):
    made = facts(rows(("a", "p"), ("b", "r")), 10, 10)
    write(tmp_path, made)
    english, german = (interp.read_task(tmp_path, code) for code in NAMES)
    for one, other in zip(english.items, german.items, strict=True):
        assert one.answer == other.answer
        assert [option.replace("Rome", "Rom") for option in one.options] == list(other.options)
    found = {item.id: (item.prompt, item.options[item.answer]) for item in german.items}
    assert found == {
        "P1:a-p": ("Ada wohnt in", " Paris."),
        "P1:b-r": ("Ben wohnt in", " Rom."),
    }


def test_a_fact_that_a_language_lacks_is_left_out():
    given = rows(("a", "p"), ("b", "r"))
    given["de"].append(row("de", "b", "o"))
    assert ids(facts(given, 10, 10)) == {"P1:a-p", "P1:b-r"}


def test_a_fact_whose_object_comes_first_in_some_language_is_left_out():
    given = rows(("a", "p"), ("b", "r"), ("a", "o"))
    given["de"][2]["template"] = "In [Y] wohnt [X]."
    assert ids(facts(given, 10, 10)) == {"P1:a-p", "P1:b-r"}


def test_what_is_true_of_the_subject_is_no_wrong_option():
    made = facts(rows(("a", "p"), ("a", "r"), ("b", "o")), 10, 10)
    options = {item["id"]: set(item["candidates"]) for item in made["en"]}
    assert options["P1:a-p"] == {"Paris", "Oslo"}
    assert options["P1:b-o"] == {"Paris", "Rome", "Oslo"}
    # It is not even where only one language says so.
    given = rows(("a", "p"), ("b", "o"), ("b", "r"))
    given["de"].append(row("de", "a", "r"))
    made = facts(given, 10, 10)
    assert {item["id"]: set(item["candidates"]) for item in made["en"]}["P1:a-p"] == {
        "Paris",
        "Oslo",
    }


def test_no_two_options_have_one_name_in_any_language():
    given = rows(("a", "p"), ("b", "r"), ("b", "o"))
    given["de"][1]["obj_label"] = "Paris"  # Rome, by the name of another
    made = facts(given, 10, 10)
    for items in made.values():
        for item in items:
            assert len(set(item["candidates"])) == len(item["candidates"])
    assert {item["id"]: len(item["candidates"]) for item in made["de"]}["P1:a-p"] == 2


def test_no_more_items_and_options_are_made_than_asked_for():
    pairs = [(subject, thing) for subject in "ab" for thing in "pro"]
    given = rows(("a", "p"), ("b", "r"), ("b", "o"))
    assert [len(items) for items in facts(given, 2, 10).values()] == [2, 2]
    assert {len(item["candidates"]) for item in facts(given, 10, 2)["en"]} == {2}
    assert ids(facts(rows(*pairs), 10, 10)) == set()  # all is true of both: nothing is wrong


def test_labels_of_inferences_have_the_names_that_are_read(tmp_path: Path):
    pairs = [{"premise": "P.", "hypothesis": f"H{n}.", "label": n} for n in range(3)]
    write(tmp_path, {"en": inferences(pairs)})
    items = interp.read_task(tmp_path, "en").items
    answers = [item.options[item.answer] for item in items]
    assert answers == [" true", " inconclusive", " false"]
    assert [item.id for item in items] == ["0", "1", "2"]


def test_a_task_without_items_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"No item for .* in all of en, de: ask for fewer"):
        write(tmp_path, {"en": [], "de": []})
    assert not list(tmp_path.iterdir())

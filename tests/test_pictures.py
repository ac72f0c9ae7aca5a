"""What the site shows of the shipped model is what is stored, in today's code and style."""

import re
from pathlib import Path

import pytest

from docs import pictures
from interp.results.terminal import columns_of
from tests.browser import open_page

PAGE = pictures.ASSETS / "neurons.html"
DRAWN = pictures.stored()


@pytest.mark.parametrize(
    "path", [path for path in DRAWN if path != PAGE], ids=lambda path: path.name
)
def test_a_picture_follows_from_what_is_stored(path: Path):
    assert path.read_text(encoding="utf-8") == DRAWN[path], "run python docs/pictures.py"


def test_the_page_of_neurons_is_in_todays_style_and_small():
    """Its data are compared as they were packed: compressors differ in the last byte."""
    data = re.compile(r'(<script type="text/plain" id="[\w-]+">)[^<]+')
    text = PAGE.read_text(encoding="utf-8")
    assert data.sub(r"\1", text) == data.sub(r"\1", DRAWN[PAGE]), "run python docs/pictures.py"
    stored, drawn = pictures.stored_page(text), pictures.stored_page(DRAWN[PAGE])
    assert (stored.index, stored.layers) == (drawn.index, drawn.layers)
    assert {language["code"] for language in stored.index["languages"]} >= {"de", "ja"}
    assert len(text) < 400_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1100])
def test_the_page_shows_a_neuron_and_asks_nobody_for_anything(width: int, scheme: str):
    settings = {"viewport": {"width": width, "height": 640}, "color_scheme": scheme}
    with open_page(PAGE, **settings) as (page, seen):
        page.locator("main h2").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.errors == []
    assert seen.requests == [PAGE.as_uri()]


def test_every_line_of_the_demo_is_on_a_screen():
    printed = (pictures.ASSETS / "demo.txt").read_text(encoding="utf-8")
    shown = pictures.screens(printed)
    lines = [line for screen in shown for line in screen if line.strip()]
    assert " ".join(lines[1:]).split() == printed.split()
    assert max(map(len, shown)) <= pictures.ROWS
    assert max(map(columns_of, lines)) <= pictures.COLUMNS


def test_a_long_step_goes_on_on_the_next_screen():
    steps = "\n".join(f"{n}  A question?\n\n" + "line\n" * 40 for n in (1, 2))
    shown = pictures.screens(steps)
    assert [len(screen) for screen in shown] == [30, 14, 30, 12]
    assert shown[0][0].startswith("$ interp demo")
    assert (shown[1][0], shown[2][0]) == ("line", "2  A question?")


def test_wide_letters_take_two_columns_of_the_recording():
    drawn = pictures.recording("a日本b & c\n")
    assert re.findall(r'x="([\d.]+)" y="58" textLength="([\d.]+)">([^<]+)<', drawn) == [
        ("14", "7.25", "a"),
        ("21.25", "29", "日本"),
        ("50.25", "36.25", "b &amp; c"),
    ]


def test_every_steered_text_has_a_translation():
    texts = pictures.stored_texts()
    assert {row["to"] for row in texts} == {"", "en", "de", "fr", "es", "zh", "ja"}
    assert len(texts) == 14
    assert [row for row in texts if not row["translation"]] == []


def test_a_text_cannot_break_its_table():
    row = {"to": "de", "text": "a|b\n*c* <i>", "language": "de", "translation": ""}
    drawn = pictures._row(row)
    assert drawn.count("|") - drawn.count(r"\|") == 5
    assert r"a\|b \*c\* \<i\>" in drawn

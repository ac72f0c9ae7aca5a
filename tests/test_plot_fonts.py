"""Names of languages in figures: their color under every name, and fonts that can write them."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib import pyplot as plt

from interp import plots
from interp.plots import fonts
from interp.text.languages import LANGUAGES
from tests.figure_tables import named, profile_table


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def test_languages_keep_their_color_under_each_of_their_names():
    for column in ("code", "name", "endonym"):
        table = plots.with_names(profile_table().replace({"language": {"ja": "vi"}}), column)
        ax = plots.layer_profile(table)
        expected = [getattr(LANGUAGES[code], column) for code in ("en", "de", "vi")]
        assert [each.get_label() for each in named(ax)] == expected
        assert [each.get_color() for each in named(ax)] == [
            LANGUAGES[c].color for c in ("en", "de", "vi")
        ]
    assert plots.with_names(table, "code").equals(
        profile_table().replace({"language": {"ja": "vi"}})
    )


@pytest.fixture
def bare_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what comes with matplotlib is installed."""
    own = Path(mpl.get_data_path())
    entries = [each for each in font_manager.fontManager.ttflist if own in Path(each.fname).parents]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(fonts, "_learn_new_fonts", lambda: None)
    monkeypatch.setattr(fonts, "_others", [])
    monkeypatch.setattr(fonts, "_looked_for", set())
    fonts._characters.cache_clear()


@pytest.mark.usefixtures("bare_fonts")
def test_if_no_font_can_write_a_name_all_are_codes_with_one_warning():
    table = profile_table().replace({"language": {"de": "العربية", "ja": "日本語"}})
    table = pd.concat([table, table.query("language == 'en'").assign(language="中文")])
    with pytest.warns(UserWarning, match="No installed font can write") as caught:
        ax = plots.layer_profile(table)
    assert len(caught) == 1
    assert "日本語 (Japanese), 中文 (Chinese)" in str(caught[0].message)
    assert [each.get_label() for each in named(ax)] == ["en", "ar", "ja", "zh"]
    assert named(ax)[2].get_color() == LANGUAGES["ja"].color


@pytest.mark.slow
@pytest.mark.usefixtures("bare_fonts")
def test_a_font_that_has_the_characters_is_used(tmp_path: Path):
    path = tmp_path / "NotoSansCJK-Regular.ttf"
    make_font(path, "Noto Sans CJK JP", "日本語")
    bare = plots.layer_profile(profile_table())
    font_manager.fontManager.addfont(path)
    ax = plots.layer_profile(profile_table().replace({"language": {"ja": "日本語"}}))
    assert [each.get_label() for each in named(ax)] == ["en", "de", "日本語"]
    plots.save_figure(ax.get_figure(root=True), tmp_path / "with_names")
    assert b"NotoSansCJKJP" in (tmp_path / "with_names.pdf").read_bytes()
    # A font that is there and not needed changes nothing.
    again = plots.layer_profile(profile_table())
    for each, name in ((bare, "bare"), (again, "again")):
        plots.save_figure(each.get_figure(root=True), tmp_path / name)
    assert (tmp_path / "bare.pdf").read_bytes() == (tmp_path / "again.pdf").read_bytes()


@pytest.mark.usefixtures("bare_fonts")
def test_a_font_of_any_maker_is_found_by_its_characters(tmp_path: Path):
    for name, characters in (("Somebody's Latin", "abc"), ("Somebody's Gothic", "日本語")):
        path = tmp_path / f"{name}.ttf"
        make_font(path, name, characters)
        font_manager.fontManager.addfont(path)
    ax = plots.layer_profile(profile_table().replace({"language": {"ja": "日本語"}}))
    assert [each.get_label() for each in named(ax)] == ["en", "de", "日本語"]
    assert fonts.families() == [fonts.FIRST, "Somebody's Gothic"]


def test_the_first_figure_has_fonts_that_came_after_matplotlib_made_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As in a fresh process: nothing was drawn before, and the list is older than the font."""
    path = tmp_path / "NotoSansCJK-Regular.ttf"
    make_font(path, "Noto Sans CJK JP", "日本語")
    own = Path(mpl.get_data_path())
    entries = [each for each in font_manager.fontManager.ttflist if own in Path(each.fname).parents]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path)])
    fonts._learn_new_fonts.cache_clear()
    fonts._characters.cache_clear()
    try:
        plots.save(
            profile_table().replace({"language": {"ja": "日本語"}}), tmp_path / "layer_profile"
        )
    finally:
        fonts._learn_new_fonts.cache_clear()
        fonts._characters.cache_clear()
    assert b"NotoSansCJKJP" in (tmp_path / "layer_profile.pdf").read_bytes()


def make_font(path: Path, family: str, characters: str) -> None:
    """A font in which every character is a square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"uni{ord(each):04X}" for each in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(each): f"uni{ord(each):04X}" for each in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=880, descent=-120)
    builder.setupNameTable(
        {"familyName": family, "styleName": "Regular", "psName": family.replace(" ", "")}
    )
    builder.setupOS2(sTypoAscender=880, usWinAscent=880, usWinDescent=120)
    builder.setupPost()
    builder.save(path)

import itertools
import unicodedata
from pathlib import Path

import langcodes
import numpy as np
import pytest

from interp.text.languages import LANGUAGES, VARIANTS, language, language_of, language_tag

# Linear RGB as seen with protanopia, deuteranopia and tritanopia (Machado et al., 2009).
VISIONS = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "tritanopia": np.array(
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]
    ),
}


def linear(color: str) -> np.ndarray:
    """Linear RGB of a hex color."""
    assert color.startswith("#")
    assert len(color) == 7
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Coordinates in which equal distances look equally different (Ottosson, 2020)."""
    cones = np.cbrt(
        np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
        @ rgb.clip(0, 1)
    )
    mix = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.array(mix) @ cones


def apart(one: str, other: str) -> float:
    """How different two colors look to the people who tell them apart worst."""
    return min(
        float(np.linalg.norm(oklab(matrix @ linear(one)) - oklab(matrix @ linear(other))))
        for matrix in VISIONS.values()
    )


def test_the_common_languages_come_first_and_others_follow():
    assert list(LANGUAGES)[:8] == ["en", "de", "fr", "es", "zh", "ja", "vi", "id"]
    extra = ["ru", "ar", "hi", "pt", "ko", "th", "sw", "ur", "tr", "it", "bn", "te", "el", "bg"]
    assert list(LANGUAGES)[8:22] == extra
    assert len(LANGUAGES) >= 62


def test_every_language_has_its_own_code_name_and_color():
    for field in ("code", "name", "color"):
        values = [getattr(row, field) for row in LANGUAGES.values()]
        assert len(set(values)) == len(values), field
    assert all(code == row.code for code, row in LANGUAGES.items())


def test_endonyms_are_written_in_the_script_that_is_named():
    words = {"Han": "CJK", "Japanese": "CJK", "Bengali": "BENGALI"}
    for row in LANGUAGES.values():
        word = words.get(row.script, row.script.upper())
        letters = [letter for letter in row.endonym if letter.isalpha()]
        strange = [x for x in letters if word not in unicodedata.name(x)]
        # A raised comma is a letter in Uzbek, of no script.
        strange = [x for x in strange if unicodedata.category(x) != "Lm"]
        assert not strange, row


def test_the_languages_of_the_shared_data_have_the_names_given_there(shared: Path):
    path = shared / "data" / "relations" / "languages.csv"
    rows = path.read_text(encoding="utf-8").splitlines()[1:]
    assert len(rows) == 22
    for row in rows:
        code, name = row.split(",")[0], row.split(",")[3]
        assert LANGUAGES[code].name == name


def test_the_first_eight_colors_differ_for_everybody():
    colors = [row.color for row in LANGUAGES.values()][:8]
    assert min(apart(*pair) for pair in itertools.combinations(colors, 2)) > 0.07


def test_the_color_check_sees_red_and_green_of_one_lightness_as_alike():
    assert apart("#c05030", "#7a7a2a") < 0.06
    assert apart("#0072b2", "#d55e00") > 0.2


def test_every_color_is_dark_enough_on_white_even_in_gray():
    for row in LANGUAGES.values():
        gray = float(linear(row.color) @ [0.2126, 0.7152, 0.0722])
        assert 1.05 / (gray + 0.05) > 2.1, row


def test_variants_lead_to_known_languages_and_malay_is_not_one():
    assert set(VARIANTS.values()) <= set(LANGUAGES)
    assert not set(VARIANTS) & set(LANGUAGES)
    assert {"ms", "id"} <= set(LANGUAGES)


def test_a_language_is_found_by_its_code():
    assert language("de").endonym == "Deutsch"


@pytest.mark.parametrize("word", ["german", "poetry", "xx", "", "en_US.UTF-8", "ru~romanised"])
def test_a_word_that_is_no_tag_is_refused_where_a_language_is_needed(word: str):
    assert language_of(word) is None
    with pytest.raises(ValueError, match="is not the tag of a language"):
        language(word)


@pytest.mark.parametrize(
    ("label", "tag"),
    [
        *(("de", "de"), ("deu", "de"), ("deu_Latn", "de"), ("de-Latn", "de"), ("eng", "en")),
        *(("cy", "cy"), ("cym", "cy"), ("bod_Tibt", "bo"), ("mt", "mt"), ("isl_Latn", "is")),
        *(("sr-Cyrl", "sr"), ("sr-Latn", "sr-Latn"), ("srp_Latn", "sr-Latn"), ("hbs", "sr-Latn")),
        *(("zh-Hans", "zh"), ("zho_Hant", "zh-Hant"), ("cmn_Hani", "zh"), ("yue_Hant", "yue")),
        *(("kor_Hang", "ko"), ("jpn_Jpan", "ja"), ("arb_Arab", "ar"), ("arz_Arab", "arz")),
        *(("ary", "ary"), ("pt-BR", "pt-BR"), ("pt_PT", "pt-PT"), ("iw", "he"), ("fil", "tl")),
        *(("tgl_Latn", "tl"), ("swh_Latn", "sw"), ("ace_Arab", "ace-Arab"), ("nob_Latn", "nb")),
        *(("law", None), ("pop", None), ("code", None), ("news", None), ("und", None)),
        *(("zxx", None), ("x-mine", None), ("de-qqqqq", None), ("law_Latn", "law")),
    ],
)
def test_a_tag_has_one_shortest_form_however_it_is_written(label: str, tag: str | None):
    assert language_tag(label) == tag


def test_every_listed_code_is_its_own_tag():
    assert [language_tag(code) for code in LANGUAGES] == list(LANGUAGES)


@pytest.mark.parametrize("code", [code for code in LANGUAGES if code != "tl"])
def test_the_list_and_langcodes_mean_the_same_language(code: str):
    tag = langcodes.Language.get(code)
    assert language_of(f"{tag.to_alpha3()}_{tag.maximize().script}") is LANGUAGES[code]


def test_what_is_known_of_languages_outside_the_list():
    welsh, latin = language("cym"), language("sr-Latn")
    assert (welsh.code, welsh.name, welsh.endonym, welsh.family) == (
        *("cy", "Welsh", "Cymraeg", "Celtic"),
    )
    assert (latin.name, latin.endonym) == ("Serbian (Latin)", "srpski (latinica)")
    assert (latin.script, latin.family) == ("Latin", "Slavic")
    assert language("zh-Hant").script == "Han"
    assert language("arz").family == LANGUAGES["ar"].family
    assert language("dv").family == ""


@pytest.mark.parametrize(
    ("label", "direction"),
    [("ar", "rtl"), ("he", "rtl"), ("ug", "rtl"), ("dv", "rtl"), ("en", "ltr"), ("bo", "ltr")],
)
def test_the_direction_is_that_of_the_script(label: str, direction: str):
    assert language(label).direction == direction

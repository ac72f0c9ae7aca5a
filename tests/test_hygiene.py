from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.text.language_id import Hygiene, _identifier, detect_language, drop_foreign, hygiene
from interp.text.languages import LANGUAGES, VARIANTS

SENTENCES = {
    "en": "The old lighthouse keeper wrote a letter to his sister every single week.",
    "de": "Der alte Leuchtturmwärter schrieb seiner Schwester jede Woche einen Brief.",
    "fr": "Le vieux gardien du phare écrivait chaque semaine une lettre à sa sœur.",
    "es": "El viejo farero le escribía una carta a su hermana todas las semanas.",
    "zh": "那位年老的灯塔看守人每个星期都给他的妹妹写一封信。",
    "ja": "年老いた灯台守は毎週妹に手紙を書いていました。",
    "vi": "Người gác ngọn hải đăng già viết thư cho em gái của mình mỗi tuần.",
    "id": "Penjaga mercusuar tua itu menulis surat kepada adiknya setiap minggu karena rindu.",
    "ru": "Старый смотритель маяка каждую неделю писал письмо своей сестре.",
    "ko": "늙은 등대지기는 매주 여동생에게 편지를 썼습니다.",
}
MALAY = "Polis telah menahan tiga orang suspek kerana disyaki terlibat dalam kes rompakan tersebut."
DUTCH = "De regering heeft vandaag een nieuw plan gepresenteerd voor de woningmarkt."
UKRAINIAN = "Уряд сьогодні представив новий план розвитку економіки країни."
CANTONESE = "佢哋琴日喺嗰度買咗好多嘢，但係唔記得帶返屋企。"  # noqa: RUF001
NYNORSK = "Eg veit ikkje kva dei vil gjere med dei gamle husa nede ved fjorden no."
BOKMÅL = "Jeg vet ikke hva de vil gjøre med de gamle husene nede ved fjorden nå."


def test_every_language_here_is_known_to_the_detector():
    known = {VARIANTS.get(label, label) for label in _identifier().labels}
    assert set(LANGUAGES) <= known


def test_sentences_are_recognized_among_all_languages_and_among_a_few():
    texts, codes = list(SENTENCES.values()), list(SENTENCES)
    assert detect_language(texts) == codes
    assert detect_language(texts, codes) == codes


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\n", "12345 !!!", "3.14 + 2 = ?", "…—¡¿", "١٢٣", "🙂🙂", "。、！"],  # noqa: RUF001
)
def test_text_without_letters_is_in_no_language(text: str):
    assert detect_language([text]) == ["und"]
    assert detect_language([text], ["en", "de"]) == ["und"]


@pytest.mark.parametrize(
    ("text", "language", "candidates"),
    [
        (MALAY, "ms", ["en", "id", "de"]),
        (DUTCH, "nl", ["en", "de", "fr"]),
        (UKRAINIAN, "uk", ["ru", "en"]),
        (SENTENCES["en"], "en", ["de", "fr", "zh"]),
    ],
)
def test_a_language_that_is_no_candidate_is_other(text: str, language: str, candidates: list[str]):
    assert detect_language([text]) == [language]
    assert detect_language([text], candidates) == ["other"]
    assert detect_language([text], [*candidates, language]) == [language]


def test_a_narrow_lead_of_another_language_does_not_make_a_text_other():
    text = "Rumah itu besar dan bagus sekali, dan ada taman di belakang."
    for candidates in (["id"], ["id", "en"]):
        assert detect_language([text], candidates) == ["id"]
    unsure = "Dia pergi ke pasar pada hari minggu."
    assert detect_language([unsure]) == ["ms"]  # the reason why a lead is asked for
    assert detect_language([unsure], ["id", "en"]) == ["id"]


def test_variants_count_as_their_language():
    assert detect_language([CANTONESE, NYNORSK, BOKMÅL]) == ["zh", "no", "no"]
    assert detect_language([CANTONESE, NYNORSK], ["zh", "no"]) == ["zh", "no"]


def test_capitals_and_line_breaks_make_no_difference():
    for code, text in SENTENCES.items():
        assert detect_language([text.upper(), text.replace(" ", "\n")]) == [code, code]


@given(st.lists(st.sampled_from([*SENTENCES.values(), "", "1", MALAY]), max_size=6))
def test_each_text_is_judged_by_itself(texts: list[str]):
    together = detect_language(texts, ["en", "id", "ja"])
    assert together == [detect_language([text], ["en", "id", "ja"])[0] for text in texts]


@given(st.text(max_size=60))
def test_any_string_gets_an_answer(text: str):
    (label,) = detect_language([text], ["en", "zh"])
    assert label in {"en", "zh", "other", "und"}


def test_texts_and_candidates_must_be_lists_of_known_things():
    with pytest.raises(ValueError, match="Texts were given as the one string 'Hello'"):
        detect_language("Hello")
    with pytest.raises(ValueError, match="cannot recognize german"):
        detect_language(["Hello"], ["german"])
    with pytest.raises(ValueError, match="No label was given"):
        detect_language(["Hello"], [])
    with pytest.raises(ValueError, match="cannot recognize french"):
        hygiene(["Bonjour"], "french")


def test_foreign_lines_are_counted_by_lines_and_by_characters():
    text = "\n".join([SENTENCES["de"], "", SENTENCES["en"], "Kapitel 1", SENTENCES["de"]])
    report = hygiene([text, SENTENCES["fr"]], "de")
    assert report.lines == {"de": 2, "en": 1, "und": 1, "fr": 1}
    assert report.characters["en"] == len(SENTENCES["en"])
    assert report.foreign_lines == {"en": 1 / 5, "fr": 1 / 5}
    total = len(text.replace("\n", "")) + len(SENTENCES["fr"])
    assert report.foreign_characters["fr"] == len(SENTENCES["fr"]) / total
    assert str(report).startswith("de: 40.0% of 5 lines (")
    assert str(report).endswith("in other languages: en 20.0%, fr 20.0%")


def test_clean_and_empty_texts_report_nothing_foreign():
    for texts in ([], [""], ["\n\n"], [SENTENCES["de"]]):
        assert hygiene(texts, "de").foreign_lines == {}
    assert str(hygiene([], "de")) == "de: 0.0% of 0 lines (0.0% of characters) in other languages"


def test_only_foreign_lines_are_dropped():
    text = "\n".join([SENTENCES["de"], SENTENCES["en"], "OK Computer", "1999", SENTENCES["de"]])
    cleaned, report = drop_foreign([text, SENTENCES["zh"], ""], "de")
    assert cleaned[0].split("\n") == [SENTENCES["de"], "OK Computer", "1999", SENTENCES["de"]]
    assert cleaned[1:] == ["", ""]
    assert report.lines["en"] == report.lines["zh"] == 1


def test_short_lines_are_not_blamed():
    assert detect_language(["Thank you very much"]) == ["en"]
    assert drop_foreign(["Thank you very much"], "de")[0] == ["Thank you very much"]
    assert drop_foreign([SENTENCES["en"]], "de")[0] == [""]


def test_reports_about_one_language_add_up():
    texts = [*SENTENCES.values(), "OK", ""]
    whole = hygiene(texts, "fr")
    assert hygiene(texts[:4], "fr") + hygiene(texts[4:], "fr") == whole
    with pytest.raises(ValueError, match="One report is about fr, the other about de"):
        _ = whole + Hygiene("de")


@pytest.mark.slow
def test_real_text_is_clean_and_planted_english_is_found(shared: Path):
    folder = shared / "data" / "parallel" / "ntrex"
    english = (folder / "en.txt").read_text(encoding="utf-8").split("\n")[:300]
    for code in ("de", "id", "zh", "vi", "pt", "bg"):
        lines = (folder / f"{code}.txt").read_text(encoding="utf-8").split("\n")[300:600]
        assert sum(hygiene(lines, code).foreign_lines.values()) < 0.02, code
        both = hygiene(lines + english, code)
        assert 0.48 < both.foreign_lines["en"] <= 0.5, code

import pytest

import interp
from interp.text.language_id import detect_language
from interp.text.languages import answering_prompt

CODES = ("en", "de", "fr", "es", "zh", "ja", "ru", "ar", "hi", "vi", "sw", "ko")
MARKS = "?\uff1f\u061f"  # of Latin, Chinese and Arabic text


def test_twelve_languages_have_the_same_twenty_questions():
    questions = interp.read_prompts("everyday", CODES)
    assert set(interp.text.labels_in("everyday")) == set(CODES)
    assert questions.ids == tuple(str(id) for id in range(1, 21))
    for code, texts in questions.texts.items():
        assert len(set(texts)) == 20, code
        assert all(text == text.strip() and text[-1] in MARKS for text in texts), code
        assert detect_language(["\n".join(texts)]) == [code]


def test_the_questions_of_clas_bench_are_read_by_the_line(tmp_path):
    (tmp_path / "en.txt").write_text("How are you?\nWho wrote it?\n", encoding="utf-8")
    (tmp_path / "bo.txt").write_text("ཁྱེད་རང་བདེ་མོ་ཡིན་ནམ།\nསུས་བྲིས་པ་རེད།\n", encoding="utf-8")
    questions = interp.read_prompts(tmp_path, ["en", "bo"])
    assert questions.ids == ("1", "2")
    assert questions.texts["bo"][1] == "སུས་བྲིས་པ་རེད།"


def test_the_request_names_the_language_in_its_own_words_if_they_are_known():
    assert answering_prompt("Why?", "de") == "Why?\nAntworte auf Deutsch."
    assert answering_prompt("Why?", "swe_Latn") == "Why?\nAnswer in Swedish."
    assert answering_prompt("Why?", "poetry") is None
    for code in CODES:
        assert detect_language([str(answering_prompt("", code))]) == [code]


def test_a_language_without_questions_is_refused_with_those_that_have_some():
    with pytest.raises(ValueError, match="no everyday questions in xx, yy, only in ar de en es"):
        interp.read_prompts("everyday", ["de", "xx", "yy"])

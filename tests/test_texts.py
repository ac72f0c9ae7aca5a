import gzip
import itertools
import json
import subprocess
import sys
import tracemalloc
import unicodedata
from pathlib import Path

import datasets
import pandas
import pytest

from interp.text.sources import HubDataset, Prompts, _natural, read_documents, read_prompts


def texts_of(source, language: str = "de", cut="line") -> list[str]:
    return [document.text for document in read_documents(source, language, cut)]


def json_lines(rows: list) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture(params=["parquet", "jsonl"])
def hub(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A dataset in the layout of the hub, with a configuration per language."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = {
        "de": [f"Artikel {number}\n\nZweiter Absatz." for number in range(5)],
        "en": [f"Article {number}" for number in range(7)],
    }
    card = "---\nconfigs:\n"
    for code, bodies in rows.items():
        card += f"- config_name: 2023.{code}\n  data_files: {code}.{request.param}\n"
        table = pandas.DataFrame({"title": ["t"] * len(bodies), "body": bodies})
        if request.param == "parquet":
            table.to_parquet(folder / f"{code}.parquet")
        else:
            (folder / f"{code}.jsonl").write_text(json_lines(table.to_dict("records")))
    (folder / "README.md").write_text(card + "---\n")
    return folder


@pytest.fixture(autouse=True)
def _no_dataset_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing is written outside the test's folder, and nothing is fetched."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_line_is_a_document_with_the_place_where_it_stands(tmp_path, newline, compressed):
    raw = newline.join(["\ufeffEins.", "", "  Zwei\u2028und mehr. ", "\t", "Drei."]).encode()
    path = tmp_path / ("de.txt.gz" if compressed else "de.txt")
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    assert list(read_documents(tmp_path, "de")) == [
        ("Eins.", f"{path.name}:1"),
        ("Zwei\u2028und mehr.", f"{path.name}:3"),
        ("Drei.", f"{path.name}:5"),
    ]


def test_a_block_goes_to_the_next_blank_line(tmp_path: Path):
    (tmp_path / "de.txt").write_text("\n\nEins.\nZwei.\n \n\nDrei.\nVier.")
    assert list(read_documents(tmp_path, "de", "block")) == [
        ("Eins.\nZwei.", "de.txt:3"),
        ("Drei.\nVier.", "de.txt:7"),
    ]


def test_a_json_row_is_one_document_even_with_blank_lines_in_it(tmp_path: Path):
    rows = [{"text": "Eins.\n\nZwei."}, {"id": 7, "text": "  "}, {"text": "Drei."}]
    (tmp_path / "de.jsonl.gz").write_bytes(gzip.compress(json_lines(rows).encode()))
    for cut in ("line", "block"):
        assert texts_of(tmp_path, cut=cut) == ["Eins.\n\nZwei.", "Drei."]


def test_a_word_typed_in_two_ways_is_one_word():
    composed, decomposed = (unicodedata.normalize(form, "Müßiggang é") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert texts_of({"de": [composed, decomposed]}) == [composed, composed]


def test_a_list_gives_its_items():
    found = list(read_documents({"de": ["Eins.", "", "Zwei.\nDrei."], "en": ["One."]}, "de"))
    assert found == [("Eins.", "de[0]"), ("Zwei.\nDrei.", "de[2]")]


def test_a_dataset_is_read_through_its_configuration_and_column(hub: Path):
    source = HubDataset(str(hub), {"de": "2023.de", "en": "2023.en"}, text_column="body")
    german = list(read_documents(source, "de"))
    assert [each.text for each in german] == [f"Artikel {n}\n\nZweiter Absatz." for n in range(5)]
    assert german[3].origin == f"{hub}/2023.de:3"
    assert texts_of(source, "en") == [f"Article {number}" for number in range(7)]


def test_a_dataset_can_be_read_from_its_start_only(hub: Path):
    source = HubDataset(str(hub), {"en": "2023.en"}, text_column="body", rows=2)
    assert texts_of(source, "en") == ["Article 0", "Article 1"]


def test_a_dataset_that_is_not_as_described_is_refused(hub: Path):
    with pytest.raises(ValueError, match="no configuration for 'fr', only for de; add it"):
        texts_of(HubDataset(str(hub), {"de": "2023.de"}), "fr")
    with pytest.raises(ValueError, match="'text', which is missing; the row has title, body"):
        texts_of(HubDataset(str(hub), {"de": "2023.de"}), "de")
    with pytest.raises(ValueError, match=r"configuration '2024.de'.* cannot be opened: .*2023.de"):
        texts_of(HubDataset(str(hub), {"de": "2024.de"}), "de")
    with pytest.raises(ValueError, match=r"split 'test'.* cannot be opened"):
        texts_of(HubDataset(str(hub), {"de": "2023.de"}, split="test"), "de")
    with pytest.raises(ValueError, match="cannot be opened"):
        texts_of(HubDataset(str(hub / "nowhere"), {"de": "2023.de"}), "de")


def test_a_file_is_read_as_its_documents_are_asked_for(tmp_path: Path):
    with gzip.open(tmp_path / "de.txt.gz", "wt", compresslevel=1) as file:
        for number in range(20_000):
            file.write(f"{number} " + "x" * 1000 + "\n")
    tracemalloc.start()
    n = sum(1 for _ in read_documents(tmp_path, "de"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 20_000
    assert peak < 1_000_000  # of 20 MB


def test_a_missing_folder_or_file_is_refused_with_what_there_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        texts_of(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"'wiki/pedia' does not exist.*HubDataset"):
        texts_of("wiki/pedia")
    (tmp_path / "en.txt").write_text("One.")
    with pytest.raises(FileNotFoundError, match=r"en.txt' is a file; give a folder"):
        texts_of(tmp_path / "en.txt")
    with pytest.raises(FileNotFoundError, match=r"no text in 'de': expected de.txt.*is en.txt\."):
        texts_of(tmp_path)
    with pytest.raises(ValueError, match="hold no 'de', only en"):
        texts_of({"en": ["One."]})


def test_two_files_for_one_language_are_refused(tmp_path: Path):
    for name in ("de.txt", "de.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"holds de.txt and de.jsonl: keep one"):
        texts_of(tmp_path)


@pytest.mark.parametrize("name", ["de.txt", "de.txt.gz", "de.jsonl"])
def test_a_byte_that_is_not_utf8_is_named_with_file_and_line(tmp_path: Path, name: str):
    raw = b'{"text": "Eins"}\n{"text": "Gr\xfc\xdfe"}\n'
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    with pytest.raises(ValueError, match=rf"{name}, line 2 is not UTF-8 \(byte 13 .* is 0xfc\)"):
        texts_of(tmp_path)


def test_a_reader_left_open_says_nothing_at_exit():
    """Kept by a module that Python clears after that of the reader, whose names are then None."""
    script = "import importlib, itertools; from interp.text import sources\n"
    script += "lines = sources.read_documents('babel', 'de')\n"
    script += "importlib._bootstrap.kept = sources, lines\n"
    script += "print(len(list(itertools.islice(lines, 40))))\n"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("40\n", "")


def test_a_broken_gzip_file_is_refused(tmp_path: Path):
    path = tmp_path / "de.txt.gz"
    whole = gzip.compress(b"Ein Satz nach dem anderen, und keiner gleich.\n" * 50)
    damaged = bytearray(whole)
    damaged[20] ^= 0xFF
    for raw in (whole[:-12], b"Eins.\nZwei.\n", bytes(damaged)):
        path.write_bytes(raw)
        with pytest.raises(
            ValueError, match=r"de.txt.gz is not a complete gzip file \(.*compress it"
        ):
            texts_of(tmp_path)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"text": "Eins"', r"de.jsonl, line 2 is not JSON: .*"),
        ('["Eins"]', "de.jsonl, line 2 is list, not an object"),
        ('{"Text": "Eins"}', "de.jsonl:2: the text is expected in 'text', which is missing.*Text"),
        ('{"text": 3}', "de.jsonl:2: the text is expected in 'text', which is int"),
        ('{"text": null}', "which is NoneType"),
        ('{"text": "a\\ud83d"}', "de.jsonl:2 holds half a character"),
    ],
)
def test_a_bad_json_row_is_named_with_file_and_line(tmp_path: Path, line: str, sentence: str):
    (tmp_path / "de.jsonl").write_text('{"text": "Eins"}\n' + line + "\n")
    with pytest.raises(ValueError, match=sentence):
        texts_of(tmp_path)


def test_lists_that_are_not_lists_of_text_are_refused():
    with pytest.raises(ValueError, match="The text of de is one string; give a list"):
        texts_of({"de": "Eins."})
    with pytest.raises(ValueError, match=r"de\[0\] holds half a character"):
        texts_of({"de": ["\udc80"]})


def test_prompts_are_matched_by_id_whatever_the_order_of_rows(tmp_path: Path):
    rows = [{"id": f"q{number}", "text": f" {number}? "} for number in (1, 2, 10)]
    for code, order in (("de", (0, 1, 2)), ("en", (2, 0, 1))):
        (tmp_path / f"{code}.jsonl").write_text(json_lines([rows[place] for place in order]))
    prompts = read_prompts(tmp_path, ["en", "de"])
    assert prompts.ids == ("q1", "q2", "q10")
    assert prompts.languages == ("en", "de")
    assert prompts.texts["de"] == prompts.texts["en"] == (" 1? ", " 2? ", " 10? ")


def test_numbers_as_ids_and_another_field_are_fine(tmp_path: Path):
    rows = [{"id": 3, "question": "Drei?"}, {"id": 1, "question": "Eins?"}]
    (tmp_path / "de.jsonl").write_text(json_lines(rows))
    assert read_prompts(tmp_path, ["de"], field="question") == Prompts(
        ("1", "3"), {"de": ("Eins?", "Drei?")}
    )


def test_line_numbers_match_the_lines_of_parallel_files(tmp_path: Path):
    (tmp_path / "de.txt").write_text("Eins \nZwei\nDrei\n")
    (tmp_path / "en.txt").write_text("One \nTwo\nThree\n")
    prompts = read_prompts(tmp_path, ["de", "en"])
    assert prompts.ids == ("1", "2", "3")
    assert prompts.texts == {"de": ("Eins ", "Zwei", "Drei"), "en": ("One ", "Two", "Three")}
    lists = {"de": ["Eins ", "Zwei", "Drei"], "en": ["One ", "Two", "Three"]}
    assert read_prompts(lists, ["de", "en"]) == prompts


def test_a_prompt_that_a_language_lacks_is_refused_or_left_out():
    source = {"de": ["Eins", "Zwei", "Drei"], "en": ["One", "", "Three"]}
    with pytest.raises(ValueError, match=r"1 of 3 prompts are not .*: en lacks '2'.*incomplete="):
        read_prompts(source, ["de", "en"])
    prompts = read_prompts(source, ["de", "en"], incomplete="drop")
    assert prompts == Prompts(("1", "3"), {"de": ("Eins", "Drei"), "en": ("One", "Three")})


def test_bad_prompt_files_are_refused(tmp_path: Path):
    path = tmp_path / "de.jsonl"
    path.write_text(json_lines([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]))
    with pytest.raises(ValueError, match=r"de.jsonl:2 repeats the id 'a'"):
        read_prompts(tmp_path, ["de"])
    path.write_text(json_lines([{"text": "x"}]))
    with pytest.raises(ValueError, match=r'de.jsonl:1 has no "id"'):
        read_prompts(tmp_path, ["de"])
    path.write_text(json_lines([{"id": "a", "text": "x"}]))
    (tmp_path / "en.jsonl").write_text(json_lines([{"id": "b", "text": "x"}]))
    with pytest.raises(ValueError, match=r"in every language \(de has 1, en has 1\)"):
        read_prompts(tmp_path, ["de", "en"])
    with pytest.raises(FileNotFoundError, match=r"'german'.*there is de.jsonl, en.jsonl"):
        read_prompts(tmp_path, ["german"])
    with pytest.raises(ValueError, match="de has 2 prompts for 1 ids"):
        Prompts(("a",), {"de": ("x", "y")})


def test_ids_that_look_alike_have_one_order():
    ids = ["1", "01", "a1", "a01", "a", "1a"]
    assert len({tuple(sorted(some, key=_natural)) for some in itertools.permutations(ids)}) == 1

import gzip
import hashlib
import json
import random
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.text import reading
from interp.text import sampling as documents_file
from interp.text import sources as texts_file
from interp.text.corpora import Corpora, Rows, TextModel
from interp.text.reading import prompt_rows, read_corpora, read_sentences
from interp.text.sampling import check_choice
from interp.text.sources import Prompts, read_prompts

PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Letters:
    """A tokenizer with a token for every `width` characters, so that tokens show their text."""

    max_length: int = 64
    bos_id: int | None = BOS
    prefix_ids: tuple[int, ...] = ()
    special_ids: tuple[int, ...] = (PAD, EOS)
    width: int = 1

    def encode_batch(self, texts) -> list[list[int]]:
        return [[3 + ord(letter) for letter in text[:: self.width]] for text in texts]


@dataclass(frozen=True)
class Bytes(Letters):
    """A tokenizer with a token for every byte."""

    def encode_batch(self, texts) -> list[list[int]]:
        return [[3 + byte for byte in text.encode()] for text in texts]


def decoded(ids: torch.Tensor) -> str:
    return "".join(chr(id - 3) for id in ids.flatten().tolist() if id > EOS)


def marked(lengths: list[int]) -> list[str]:
    """Documents of these lengths, each in a character of its own, so that tokens show documents."""
    return [chr(0x4E00 + number) * length for number, length in enumerate(lengths)]


def equal(one: Corpora, other: Corpora) -> bool:
    """Equal tensors, and then also equal fingerprints."""
    same = one.languages == other.languages and all(
        torch.equal(getattr(one.rows[code], name), getattr(other.rows[code], name))
        for code in one.languages
        for name in ("ids", "length", "shard")
    )
    assert same == (one.fingerprint == other.fingerprint)
    return same


def read(source, model=Letters(), languages=("de",), **settings) -> Corpora:
    defaults = {"block_length": 8, "n_shards": 3, "hygiene": "off", "progress": False}
    return read_corpora(source, languages, model, **(defaults | settings))


DOCUMENTS = marked([3 + (7 * number) % 11 for number in range(60)])


def slowly(documents, n_shards: int, block_length: int, seed: int = 0) -> list[list[int]]:
    """The definition: blocks, each led by its shard."""

    def hash_of(text: str) -> bytes:
        return hashlib.blake2b(text.encode(), digest_size=16, key=str(seed).encode()).digest()

    shards: list[list[str]] = [[] for _ in range(n_shards)]
    for text in sorted(set(documents), key=hash_of):
        sizes = [len("".join(shard).encode()) for shard in shards]
        shards[sizes.index(min(sizes))].append(text)
    streams = [Bytes().encode_batch(["".join(shard)])[0] for shard in shards]
    n = min(len(stream) // block_length for stream in streams)
    return [
        [number, *stream[block * block_length : (block + 1) * block_length]]
        for number, stream in enumerate(streams)
        for block in range(n)
    ]


@pytest.mark.slow
@given(
    st.lists(st.text("abcé文 \n", min_size=1, max_size=30).map(str.strip).filter(bool), min_size=1),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 2),
)
@settings(deadline=None)
def test_blocks_are_those_of_the_definition(documents, n_shards, block_length, seed):
    expected = None
    if len(set(documents)) >= n_shards:
        expected = slowly(documents, n_shards, block_length, seed)
    arguments = {"n_shards": n_shards, "block_length": block_length, "seed": seed}
    if not expected:
        with pytest.raises(ValueError, match=r"different documents|less than one block"):
            read({"de": documents}, Bytes(), **arguments)
        return
    rows = read({"de": documents}, Bytes(), **arguments).rows["de"]
    assert torch.cat([rows.shard[:, None], rows.ids], dim=1).tolist() == expected


@pytest.mark.slow
@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 30), min_size=12, max_size=60))
@settings(deadline=None)
def test_every_document_lies_in_one_shard(rng: random.Random, lengths: list[int]):
    documents = marked(lengths)
    rng.shuffle(documents)
    rows = read({"de": documents}, n_shards=4, block_length=2).rows["de"]
    seen = [set(decoded(rows.ids[rows.shard == shard])) for shard in range(4)]
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert rows.shard.bincount().unique().numel() == 1
    assert (rows.length == 2).all()


@pytest.mark.parametrize("bos", ["none", "document", "block"])
def test_a_document_starts_where_the_tokens_are_of_another(bos):
    rows = read({"de": DOCUMENTS}, bos=bos).rows["de"]
    assert rows.starts is not None
    for shard in range(3):
        mine = rows.shard == shard
        ids, starts = rows.ids[mine].flatten().tolist(), rows.starts[mine].flatten().tolist()
        before = None
        for id, start in zip(ids, starts, strict=True):
            if bos == "document":  # whose first token it is
                assert start == (id == BOS)
            elif id == BOS:  # before a block it belongs to no document
                assert not start
            else:
                assert start == (id != before)
                before = id
        assert sum(starts) > 5


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=25)
def test_order_and_repetition_of_documents_change_nothing(rng: random.Random):
    source = {"de": list(DOCUMENTS), "fr": [2 * text for text in DOCUMENTS]}
    before = read(source, languages=("de", "fr"), tokens=100)
    for documents in source.values():
        documents += rng.choices(documents, k=20)
        rng.shuffle(documents)
    again = dict(reversed(source.items()))
    assert equal(before, read(again, languages=("de", "fr"), tokens=100))


def test_lists_and_files_of_all_kinds_give_the_same_rows(tmp_path: Path):
    lines = "\n".join(reversed(DOCUMENTS))
    rows = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in DOCUMENTS)
    contents = {
        "de.txt": lines.encode(),
        "de.txt.gz": gzip.compress(lines.replace("\n", "\r\n").encode()),
        "de.jsonl": rows.encode(),
        "de.jsonl.gz": gzip.compress(rows.encode()),
    }
    expected = read({"de": DOCUMENTS})
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        found = read(str(tmp_path))
        assert equal(found, expected), name
        origin, number = found.rows["de"].source[0].split(":")
        assert origin == name
        first = lines.split("\n")[int(number) - 1]
        if "txt" in name:
            assert decoded(found.rows["de"].ids[0]).startswith(first[:8])
        path.unlink()


def test_rows_are_the_same_in_every_process_and_on_every_machine():
    source = {"de": ["Grüße aus Köln.", "Ein Satz.", "Noch einer, länger."], "en": ["A cat sat."]}
    found = read(source, Bytes(), ("de", "en"), n_shards=1, block_length=4, bos="document")
    assert found.fingerprint == "fbcea8683df1af65d1119ed2e9db1ae3"


def test_the_fingerprint_sees_every_part():
    one = read({"de": DOCUMENTS})
    rows = one.rows["de"]
    other_ids = rows.ids.clone()
    other_ids[3, 4] += 1
    length, shard = rows.length.clone(), rows.shard.clone()
    length[2], shard[1] = 7, 2
    for changed in (
        replace(one, rows={"de": replace(rows, ids=other_ids)}),
        replace(one, rows={"de": replace(rows, length=length)}),
        replace(one, rows={"de": replace(rows, shard=shard)}),
        replace(one, rows={"fr": rows}, languages=("fr",)),
        replace(one, special_ids=(PAD, BOS, EOS, 9)),
        replace(one, n_shards=4),
        replace(one, packed=False),
    ):
        assert changed.fingerprint != one.fingerprint
    same = replace(one, rows={"de": replace(rows, source=("elsewhere",) * len(rows.ids))})
    assert same.fingerprint == one.fingerprint


def test_another_seed_deals_otherwise_and_keeps_the_split():
    source = {"de": DOCUMENTS}
    one, other = (read(source, seed=seed) for seed in (0, 1))
    assert not equal(one, other)
    held = [
        set(
            decoded(
                read(source, split="held_out", held_out=0.4, seed=seed, block_length=1, n_shards=1)
                .rows["de"]
                .ids
            )
        )
        for seed in (0, 1)
    ]
    assert held[0] == held[1]


@given(st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 3), st.integers(4, 9))
@settings(deadline=None, max_examples=20)
def test_train_and_held_out_share_no_document(held_out: float, seed: int, other_seed: int):
    source = {"de": DOCUMENTS}
    settings = {"held_out": held_out, "n_shards": 1, "block_length": 1}
    train = read(source, split="train", seed=seed, **settings)
    held = read(source, split="held_out", seed=other_seed, **settings)
    both = [set(decoded(each.rows["de"].ids)) for each in (train, held)]
    assert not both[0] & both[1]
    assert both[0] | both[1] == set("".join(DOCUMENTS))
    assert 0 < len(both[1]) < len(both[0]) or held_out == 0.5


def test_the_held_out_share_is_the_one_asked_for():
    documents = marked([4] * 4000)
    held = read({"de": documents}, split="held_out", held_out=0.2, n_shards=1, block_length=4)
    assert 0.18 < len(held.rows["de"].ids) / 4000 < 0.22


def test_a_budget_takes_the_first_documents_of_each_shard():
    source = {"de": DOCUMENTS}
    everything = read(source)
    some = read(source, tokens=100)  # 3 shards of 4 blocks of 8
    assert some.rows["de"].ids.shape == (12, 8)
    for shard in range(3):
        whole = everything.rows["de"].ids[everything.rows["de"].shard == shard]
        assert torch.equal(some.rows["de"].ids[some.rows["de"].shard == shard], whole[:4])
    assert equal(read(source, tokens=10**9), everything)


def test_a_tokenizer_with_few_tokens_for_much_text_gets_its_budget_all_the_same(monkeypatch):
    source = {"de": [f"{number} " + "x" * (number % 90) for number in range(3000)]}
    model = Letters(width=40)
    reads = []
    plain = texts_file._list_items
    monkeypatch.setattr(texts_file, "_list_items", lambda *given: reads.append(1) or plain(*given))
    found = read(source, model, tokens=1000)
    assert len(reads) > 1  # the first guess was too small, so the source was read again
    assert found.rows["de"].ids.shape == (41 * 3, 8)
    monkeypatch.setattr(reading, "_BYTES_PER_TOKEN", 10**9)
    assert equal(found, read(source, model, tokens=1000))


@pytest.mark.slow
def test_a_small_budget_of_a_large_file_needs_little_memory(tmp_path: Path):
    with gzip.open(tmp_path / "de.txt.gz", "wt", compresslevel=1) as file:
        for number in range(4000):
            file.write(f"{number} " + "x" * 4000 + "\n")
    tracemalloc.start()
    found = read(tmp_path, tokens=3000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tokens() == {"de": 3000}
    assert peak < 2_000_000  # of 16 MB


def test_beginning_of_text_stands_where_it_is_asked_for():
    source = {"de": ["abcd", "efgh"]}
    settings = {"n_shards": 1, "block_length": 5}
    none = read(source, **settings).rows["de"].ids
    block = read(source, bos="block", **settings).rows["de"].ids
    document = read(source, bos="document", **settings).rows["de"].ids
    assert (none == BOS).sum() == 0
    assert none.shape == (1, 5)
    assert (block[:, 0] == BOS).all()
    assert sorted(decoded(row) for row in block) == ["abcd", "efgh"]
    assert {decoded(row) for row in document} == {"abcd", "efgh"}
    assert (document == BOS).nonzero().tolist() == [[0, 0], [1, 0]]


def test_special_tokens_and_padding_do_not_count():
    found = read_sentences(
        {"de": ["ab", "abcd"]}, ["de"], Letters(), bos="document", n_shards=1, hygiene="off"
    )
    rows = found.rows["de"]
    assert sorted(rows.length.tolist()) == [3, 5]
    assert found.special_ids == (PAD, BOS, EOS)
    assert found.tokens() == {"de": 6}
    ids = torch.tensor([[BOS, 7, EOS, 8, 8], [7, PAD, 9, 9, 9]])
    keep = found.keep(ids, torch.tensor([4, 3]))
    assert keep.int().tolist() == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 0]]
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(found.keep(ids.to(dtype), torch.tensor([4, 3])), keep)


def test_a_block_of_lines_is_one_document_when_files_are_so_cut(tmp_path: Path):
    blocks = [f"{text}\n{text[:2]}" for text in DOCUMENTS]
    (tmp_path / "de.txt").write_text("\n\n".join(blocks))
    assert equal(read(tmp_path, document="block"), read({"de": blocks}))
    assert not equal(read(tmp_path, document="line"), read({"de": blocks}))


GERMAN = [
    f"Der alte Leuchtturmwärter schrieb seiner Schwester im Jahre {year} jede Woche einen Brief."
    for year in range(1800, 1860)
]
ENGLISH = [
    f"The old lighthouse keeper wrote a letter to his sister every week in the year {year}."
    for year in range(1800, 1860)
]


def test_foreign_documents_are_reported_and_dropped_on_request():
    source = {"de": GERMAN + ENGLISH[:20]}
    reported = read(source, hygiene="report")
    dropped = read(source, hygiene="drop")
    assert reported.hygiene["de"].foreign_lines == dropped.hygiene["de"].foreign_lines
    assert reported.hygiene["de"].foreign_lines == {"en": 20 / 80}
    assert equal(reported, read(source, hygiene="off"))
    assert read(source, hygiene="off").hygiene == {}
    assert equal(dropped, read({"de": GERMAN}, hygiene="off"))


@pytest.mark.slow
def test_a_report_on_much_text_is_about_a_sample(monkeypatch: pytest.MonkeyPatch):
    documents = [f"{number}\n{GERMAN[0]}" for number in range(2000)]
    monkeypatch.setattr(documents_file, "_SAMPLE", 500)
    reported = read({"de": documents}, hygiene="report")
    assert 500 <= sum(reported.hygiene["de"].lines.values()) < 1500
    assert reported.hygiene["de"].lines["de"] * 2 == sum(reported.hygiene["de"].lines.values())
    assert equal(reported, read({"de": documents}, hygiene="off"))
    dropped = read({"de": documents}, hygiene="drop")
    assert sum(dropped.hygiene["de"].lines.values()) == 4000


def test_documents_that_lost_lines_stay_on_one_side_and_count_once():
    pairs = [f"{one}\n{other}" for one, other in zip(GERMAN, ENGLISH, strict=True)]
    pairs += [f"{one}\n{other}" for one, other in zip(GERMAN, reversed(ENGLISH), strict=True)]
    sides = []
    for split in ("train", "held_out"):
        arguments = {"split": split, "held_out": 0.5, "n_shards": 1, "hygiene": "drop"}
        found = read_sentences(
            {"de": pairs}, ["de"], Letters(max_length=500), progress=False, **arguments
        )
        texts = [decoded(row) for row in found.rows["de"].ids]
        assert len(set(texts)) == len(texts)
        assert set(texts) <= set(GERMAN)
        sides.append(set(texts))
    assert min(map(len, sides)) > 5
    assert not sides[0] & sides[1]
    whole = read_sentences(
        {"de": pairs}, ["de"], Letters(max_length=500), hygiene="drop", n_shards=1
    )
    assert {decoded(row) for row in whole.rows["de"].ids} == set(GERMAN)


def test_sentences_are_rows_that_are_never_cut():
    lines = [chr(0x4E00 + n) * (1 + n % 10) for n in range(50)]
    found = read_sentences(
        {"de": [*lines, lines[3], ""]}, ["de"], Letters(), max_length=7, n_shards=4
    )
    rows = found.rows["de"]
    kept = [line for line in lines if len(line) <= 7]
    assert not found.packed
    assert found.too_long == {"de": 50 - len(kept)}
    assert rows.ids.shape == (len(kept), 7)
    assert {decoded(row) for row in rows.ids} == set(kept)
    for row, length, source in zip(rows.ids, rows.length.tolist(), rows.source, strict=True):
        assert (row[length:] == 0).all()
        assert (row[:length] > 0).all()
        assert decoded(row) == lines[int(source.removeprefix("de[").removesuffix("]"))]
    counts = rows.shard.bincount()
    assert len(counts) == 4
    assert counts.max() - counts.min() <= 1


@pytest.mark.slow
@given(st.randoms(use_true_random=False), st.integers(3, 40))
@settings(deadline=None)
def test_sentences_do_not_depend_on_their_order(rng: random.Random, n: int):
    lines = list(DOCUMENTS)
    arguments = {"n_shards": 3, "max_length": 12, "hygiene": "off", "progress": False}
    before = read_sentences({"de": lines}, ["de"], Letters(), sentences=n, **arguments)
    rng.shuffle(lines)
    again = read_sentences({"de": lines + lines[:9]}, ["de"], Letters(), sentences=n, **arguments)
    assert equal(before, again)
    assert len(before.rows["de"].ids) == n
    everything = read_sentences({"de": lines}, ["de"], Letters(), **arguments).rows["de"]
    width = before.rows["de"].ids.shape[1]
    assert torch.equal(everything.ids[:n, :width], before.rows["de"].ids)


def test_a_budget_of_sentences_is_met_when_many_are_too_long():
    lines = marked([50] * 500 + [5] * 60)
    found = read_sentences({"de": lines}, ["de"], Letters(), max_length=9, sentences=40)
    assert len(found.rows["de"].ids) == 40
    assert (found.rows["de"].length == 5).all()


def test_prompts_become_rows_in_their_order_and_translations_share_a_shard():
    prompts = read_prompts(
        {"de": ["Eins", "Zwei", "Drei"], "en": ["One", "Two", "Three"]}, ["de", "en"]
    )
    found = prompt_rows(prompts, Letters(), bos="document", n_shards=2)
    assert not found.packed
    assert [decoded(row) for row in found.rows["en"].ids] == ["One", "Two", "Three"]
    assert (found.rows["de"].ids[:, 0] == BOS).all()
    assert found.rows["de"].source == ("1", "2", "3")
    assert torch.equal(found.rows["de"].shard, found.rows["en"].shard)
    assert sorted(found.rows["de"].shard.bincount().tolist()) == [1, 2]
    with pytest.raises(ValueError, match="Prompt '3' has 5 tokens in en; the model takes 1 to 4"):
        prompt_rows(prompts, Letters(max_length=4))
    with pytest.raises(ValueError, match="3 prompts cannot fill 4 shards; use fewer"):
        prompt_rows(prompts, Letters(), n_shards=4)


def test_a_subset_holds_the_same_rows_in_the_order_asked_for():
    found = read(
        {"de": DOCUMENTS, "fr": DOCUMENTS[:30], "en": DOCUMENTS[30:]}, languages=("de", "fr", "en")
    )
    some = found.languages_only(["en", "de"])
    assert some.languages == ("en", "de")
    assert some.rows["de"] is found.rows["de"]
    assert some.tokens() == {"en": found.tokens()["en"], "de": found.tokens()["de"]}
    assert equal(found.languages_only(("de", "fr", "en")), found)
    assert not equal(found.languages_only(["fr", "de", "en"]), found)
    with pytest.raises(ValueError, match="es: not in these corpora, which hold de, fr, en"):
        found.languages_only(["es"])


def test_the_shipped_text_is_called_babel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(texts_file, "_BABEL", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"shipped parallel texts are missing .*install"):
        read("babel")
    for part, text in (("parallel", "\n".join(DOCUMENTS)), ("prompts", "Eins")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "de.txt").write_text(text)
    assert equal(read("babel"), read({"de": DOCUMENTS}))
    assert read_prompts("babel", ["de"]) == Prompts(("1",), {"de": ("Eins",)})


def test_the_fake_model_is_one_in_the_sense_of_the_library():
    assert isinstance(Letters(), TextModel)


@pytest.mark.slow
def test_real_text_of_all_languages_is_read(shared: Path):
    folder = shared / "data" / "parallel" / "pud"
    codes = sorted(path.stem for path in folder.glob("??.txt"))
    model = Bytes(max_length=512)
    arguments = {"block_length": 256, "n_shards": 20, "tokens": 40_000, "hygiene": "report"}
    train = read(folder, model, codes, split="train", **arguments)
    assert train.tokens() == dict.fromkeys(codes, 20 * 7 * 256)
    for code, report in train.hygiene.items():
        assert sum(report.foreign_lines.values()) < 0.02, code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"block_length": 65}, "block_length is 65, but the model takes at most 64 tokens: use"),
        ({"block_length": 0}, "block_length is 0; it must be 1 or more"),
        ({"block_length": 1, "bos": "block"}, "block_length is 1; it must be 2 or more"),
        ({"n_shards": 0}, "n_shards is 0; it must be 1 or more"),
        (
            {"tokens": 23},
            "23 tokens in 3 shards are 7 each, less than one block of 8: use tokens=24 ",
        ),
        ({"held_out": 1.0}, "held_out is 1.0; give a share between 0 and 1"),
        ({"held_out": 0.0, "split": "held_out"}, "held_out is 0.0; give a share"),
        ({"languages": ("german",)}, "The given texts hold no 'german', only de"),
        ({"languages": ()}, "No label was given"),
        ({"languages": ("de", "de")}, "de is given more than once"),
        ({"languages": ("de", "fr")}, "The given texts hold no 'fr', only de"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        read({"de": DOCUMENTS}, **arguments)


def test_beginning_of_text_is_refused_where_the_tokenizer_has_none():
    for bos in ("document", "block"):
        with pytest.raises(ValueError, match=f'bos is "{bos}", but the tokenizer has no beginn'):
            read({"de": DOCUMENTS}, Letters(bos_id=None), bos=bos)
    with pytest.raises(ValueError, match='bos is "document", but the tokenizer'):
        read_sentences({"de": DOCUMENTS}, ["de"], Letters(bos_id=None), bos="document")
    assert read({"de": DOCUMENTS}, Letters(bos_id=None)).special_ids == (PAD, EOS)


def test_no_text_is_refused_with_where_it_was_looked_for(tmp_path: Path):
    (tmp_path / "de.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"no text in de: .*de.txt has 0 documents that are not"):
        read(tmp_path)
    with pytest.raises(ValueError, match="no text in de: the list of de has 0 documents"):
        read({"de": []})
    with pytest.raises(
        ValueError,
        match=r"no text in de in the held_out split: .* has 1 doc.* change held_out from 0.1",
    ):
        read({"de": ["Eins."]}, split="held_out")
    with pytest.raises(ValueError, match="no text in de"):
        read_sentences({"de": [" "]}, ["de"], Letters())


def test_fewer_documents_than_shards_are_refused():
    with pytest.raises(
        ValueError, match=r"de has 2 different documents for 3 shards .* n_shards=2 or"
    ):
        read({"de": ["a" * 99, "b" * 99, "a" * 99]})
    with pytest.raises(
        ValueError, match=r"de has 2 sentences of at most 64 tokens .1 are longer.*3"
    ):
        read_sentences({"de": ["ab", "b", "a" * 99]}, ["de"], Letters(), n_shards=3)
    with pytest.raises(ValueError, match="2 sentences cannot fill 3 shards; ask for more"):
        read_sentences({"de": DOCUMENTS}, ["de"], Letters(), n_shards=3, sentences=2)
    with pytest.raises(
        ValueError, match=r"de has 0 different documents .*: add text. Left out as foreign: de: 100"
    ):
        read({"de": ENGLISH}, hygiene="drop")


@given(st.lists(st.integers(1, 9), min_size=6, max_size=20), st.sampled_from(["none", "block"]))
@settings(deadline=None, max_examples=25)
def test_a_shard_without_a_block_is_refused_with_settings_that_do(lengths: list[int], bos):
    source = {"de": marked(lengths)}
    arguments = {"n_shards": 6, "block_length": 64, "bos": bos}
    with pytest.raises(ValueError, match="less than one block of 64: use block_length=") as caught:
        read(source, **arguments)
    sentence = str(caught.value)
    assert f"de has {sum(lengths)} tokens, and the smallest of its 6 shards" in sentence
    remedies = dict(
        part.split(" or")[0].split("=") for part in sentence.split(": use ")[1].split(", ")[:-1]
    )
    for name, value in remedies.items():
        read(source, **(arguments | {name: int(value)}))
    better = int(remedies["block_length"]) + 1
    with pytest.raises(ValueError, match="less than one block"):
        read(source, **(arguments | {"block_length": better}))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_part_of_the_text_that_is_too_short_is_named(split: str):
    with pytest.raises(ValueError, match=rf"^de \({split} part\) has "):
        read({"de": marked([4] * 60)}, n_shards=6, block_length=64, split=split, held_out=0.5)


def test_a_word_that_is_no_choice_is_refused():
    with pytest.raises(ValueError, match="'test' was given; choose from all, train, held_out"):
        check_choice("test", reading.Split)


def test_rows_that_do_not_fit_together_are_refused():
    ids = torch.zeros(2, 4, dtype=torch.int32)
    two = torch.tensor([4, 4])
    with pytest.raises(ValueError, match="2 rows of ids have 2 lengths, 2 shards and 1 sources"):
        Rows(ids, two, two, ("a",))
    with pytest.raises(ValueError, match="Lengths must be from 1 to 4"):
        Rows(ids, two + 1, two, ("a", "b"))
    rows = Rows(ids, two, two, ("a", "b"))
    with pytest.raises(ValueError, match="A row of de is in a shard outside 0 to 3"):
        Corpora({"de": rows}, ("de",), 4, (), True)
    with pytest.raises(ValueError, match="Rows of de do not match the languages fr"):
        Corpora({"de": rows}, ("fr",), 5, (), True)

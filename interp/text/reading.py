"""Reading text into rows of tokens in shards, reproducibly on any machine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from interp.models.bare_model import BareModel
from interp.results.bars import tqdm
from interp.results.words import Bos, Care, Split
from interp.text.corpora import Corpora, Rows, TextModel, as_text_model
from interp.text.counterfactuals import (
    KINDS,
    SEPARATOR,
    encoder,
    mostly_latin,
    split_label,
)
from interp.text.labels import Tags, check_labels, tags_of
from interp.text.language_id import Hygiene, LanguageId
from interp.text.sampling import Dealer, Reader, Shard, Text, digest
from interp.text.sources import Cut, Prompts, TextSource, read_documents
from interp.text.tokens import beginning

# Text to read for a given number of tokens; most tokenizers use fewer bytes per token. If it turns
# out too little, the source is read again with four times as much.
_BYTES_PER_TOKEN = 12

_ENOUGH_FOR_SCRIPT = 200  # documents, to see in which script a text is written


class TooLittleText(ValueError):
    """Text that does not fill the shards or blocks asked for."""

    def __init__(self, what: str, settings: str, dropped: str = "") -> None:
        super().__init__(f"{what}: {settings}add text.{dropped}")
        self.what = what
        """What was asked for and what there is, without which settings would do."""


@contextmanager
def settings_of_ours() -> Iterator[None]:
    """Within the block, too little text is not blamed on settings that the caller did not give."""
    try:
        yield
    except TooLittleText as error:
        raise TooLittleText(error.what, "") from None


def read_corpora(
    source: TextSource,
    languages: Sequence[str],
    model: TextModel | BareModel,
    *,
    block_length: int = 256,
    tokens: int | None = None,
    n_shards: int = 20,
    bos: Bos = "auto",
    split: Split = "all",
    held_out: float = 0.1,
    hygiene: Care = "report",
    tags: Tags | None = None,
    langid: LanguageId | None = None,
    document: Cut = "line",
    seed: int = 0,
    progress: bool = True,
) -> Corpora:
    """Running text in blocks of `block_length` tokens, equally many in each shard of a language.

    `languages` are labels: tags of languages (`de`, `deu_Latn`, `sr-Latn`) or any other words under
    which the source has text (`poetry`), which `tags` can give a language: {"poetry": "en"}.
    `ru~romanised` is the text of `ru`, rewritten (`interp.text.counterfactuals.KINDS`). The
    documents of a shard are concatenated without padding; an incomplete last block is dropped.
    `bos` says what is put before each block or document (`interp.results.words.Bos`).
    `tokens` is the maximum per language: languages with less text give what they have. `document`
    says what one document of a text file is; use "block" if blank lines separate articles, since
    error bars assume that documents are independent. `held_out` is the share of documents in the
    "held_out" split: "train" and "held_out" of two calls with equal `held_out` and `document` never
    share a document. `seed` decides order and shards, not the split. `.hygiene` reports text in
    other languages; hygiene="drop" leaves it out. Labels that the detector cannot recognize are not
    checked; `langid`, any function from texts to language tags, replaces it.

    >>> text = interp.read_corpora("babel", ["fr"], model, block_length=64, tokens=640, n_shards=5)
    >>> text.rows["fr"].ids.shape
    torch.Size([10, 64])
    >>> print(text.hygiene["fr"])
    fr: 0.0% of ...
    """
    model = as_text_model(model)
    codes = check_labels(languages, tags)
    _at_least(1, n_shards=n_shards)
    prefix = beginning(model, bos)
    of_document, of_block = (prefix, ()) if bos == "document" else ((), prefix)
    _at_least(len(of_block) + 1, block_length=block_length)
    _fits("block_length", block_length, model)
    n_blocks = None
    if tokens is not None:
        n_blocks = tokens // (n_shards * block_length)
        if n_blocks < 1:
            raise ValueError(
                f"{tokens:,} tokens in {n_shards} shards are {tokens // n_shards:,} each, less "
                f"than one block of {block_length}: use tokens={n_shards * block_length} or more, "
                "a smaller n_shards or a smaller block_length."
            )
    reader = Reader(source, document, split, held_out, hygiene, seed, tags, langid)
    body = block_length - len(of_block)
    rows, reports = {}, {}
    for code in tqdm(codes, desc="Reading text", unit="language", disable=not progress or None):
        n_tokens = None if n_blocks is None else n_blocks * body
        dealer, report = _fill(reader, code, model, n_shards, of_document, n_tokens)
        n = dealer.fewest // body
        if n == 0:
            part = code if split == "all" else f"{code} ({split} part)"
            raise _too_short(part, dealer, body, block_length)
        rows[code] = _packed(dealer.shards, min(n, n_blocks or n), body, of_block)
        reports |= {code: report} if report and code == report.language else {}
    special, tags = _special(model), tags_of(codes, tags)
    return Corpora(rows, codes, n_shards, special, True, reports, {}, bos, prefix, tags)


def read_sentences(
    source: TextSource,
    languages: Sequence[str],
    model: TextModel | BareModel,
    *,
    max_length: int | None = None,
    sentences: int | None = None,
    n_shards: int = 20,
    bos: Bos = "auto",
    split: Split = "all",
    held_out: float = 0.1,
    hygiene: Care = "report",
    tags: Tags | None = None,
    langid: LanguageId | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Corpora:
    """One row per line (or JSON row, or list item), padded on the right; duplicates count once.

    Labels and `tags` as in `read_corpora`. Takes at most `sentences` per label, in random order.
    Rows longer than `max_length` tokens (None: the model's limit) are dropped, never truncated, and
    counted in `too_long`.

    >>> lines = {"en": ["It is late.", "It is very late by now."]}
    >>> rows = interp.read_sentences(lines, ["en"], model, n_shards=2)
    >>> sorted(rows.rows["en"].length.tolist())
    [5, 8]
    """
    model = as_text_model(model)
    codes = check_labels(languages, tags)
    _at_least(1, n_shards=n_shards)
    longest = model.max_length if max_length is None else max_length
    _at_least(1, max_length=longest)
    _fits("max_length", longest, model)
    prefix = beginning(model, bos)
    if sentences is not None and sentences < n_shards:
        raise ValueError(
            f"{sentences} sentences cannot fill {n_shards} shards; ask for more sentences or fewer "
            "shards."
        )
    reader = Reader(source, "line", split, held_out, hygiene, seed, tags, langid)
    rows, reports, too_long = {}, {}, {}
    for code in tqdm(codes, desc="Reading text", unit="language", disable=not progress or None):
        encoded, too_long[code], report = _sentences(
            reader, code, model, prefix, longest, sentences
        )
        if len(encoded) < n_shards:
            raise ValueError(
                f"{code} has {len(encoded)} sentences of at most {longest} tokens "
                f"({too_long[code]} are longer), too few for {n_shards} shards: add text, or use "
                f"fewer shards.{_dropped(reader, report)}"
            )
        shard = [row % n_shards for row in range(len(encoded))]
        rows[code] = _padded(encoded, shard)
        reports |= {code: report} if report and code == report.language else {}
    special, tags = _special(model), tags_of(codes, tags)
    return Corpora(rows, codes, n_shards, special, False, reports, too_long, bos, prefix, tags)


def with_counterfactuals(
    source: TextSource, labels: Sequence[str], kinds: Sequence[str] = tuple(KINDS)
) -> tuple[str, ...]:
    """The labels and, behind them, those of their counterfactuals.

    Of `romanised` and `cyrillic`, a label gets the one that its text is not written in already.

    >>> interp.text.with_counterfactuals("babel", ["de", "ja"], ["romanised", "cyrillic"])
    ('de', 'ja', 'de~cyrillic', 'ja~romanised')
    """
    added = []
    for label in labels:
        documents = islice(read_documents(source, label), _ENOUGH_FOR_SCRIPT)
        already = "romanised" if mostly_latin([text for text, _ in documents]) else "cyrillic"
        added += [f"{label}{SEPARATOR}{kind}" for kind in kinds if kind != already]
    return (*labels, *added)


def prompt_rows(
    prompts: Prompts,
    model: TextModel | BareModel,
    *,
    bos: Bos = "auto",
    n_shards: int = 1,
) -> Corpora:
    """Prompts as rows: row i is prompt i in every language, and its translations share a shard.

    >>> lists = {"en": ["One and one is"], "de": ["Eins und eins ist"]}
    >>> prompts = interp.read_prompts(lists, ["en", "de"])
    >>> interp.text.prompt_rows(prompts, model).tokens()
    {'en': 5, 'de': 5}
    """
    model = as_text_model(model)
    _at_least(1, n_shards=n_shards)
    prefix = beginning(model, bos)
    if len(prompts.ids) < n_shards:
        raise ValueError(
            f"{len(prompts.ids)} prompts cannot fill {n_shards} shards; use fewer shards."
        )
    order = sorted(range(len(prompts.ids)), key=lambda prompt: digest(prompts.ids[prompt], b"0"))
    shard = [0] * len(order)
    for rank, prompt in enumerate(order):
        shard[prompt] = rank % n_shards
    rows = {}
    for code, texts in prompts.texts.items():
        encoded = []
        for id, ids in zip(prompts.ids, _encode(model.encode_batch, texts, prefix), strict=True):
            if not len(prefix) < len(ids) <= model.max_length:
                raise ValueError(
                    f"Prompt {id!r} has {len(ids)} tokens in {code}; the model takes 1 to "
                    f"{model.max_length}."
                )
            encoded.append((id, ids))  # ids are the same in every language
        rows[code] = _padded(encoded, shard)
    special = _special(model)
    return Corpora(rows, prompts.languages, n_shards, special, False, bos=bos, prefix_ids=prefix)


def _fill(
    reader: Reader,
    language: str,
    model: TextModel,
    n_shards: int,
    prefix: tuple[int, ...],
    n_tokens: int | None,
) -> tuple[Dealer, Hygiene | None]:
    """Shards with at least `n_tokens` tokens each, or with all the text there is.

    A document is dealt by the size of its original, so that its counterfactuals share its shard.
    """
    base, kind = split_label(language)
    budget = None if n_tokens is None else n_tokens * n_shards * _BYTES_PER_TOKEN
    while True:
        documents, complete = reader.first(base, budget, lambda text: len(text.encode()))
        encode = encoder(kind, [document.text for document in documents], model.encode_batch)
        dealer, report, n = Dealer(n_shards), None, 0
        for batch, batch_report in _unreported(reader, kind).clean(base, documents):
            report = _sum(report, batch_report)
            encoded = _encode(encode, [document.text for document in batch], prefix)
            for (text, origin), ids in zip(batch, encoded, strict=True):
                dealer.deal(Text(len(text.encode()), np.asarray(ids, dtype=np.int32), origin))
                n += 1
            if n_tokens is not None and dealer.fewest >= n_tokens:
                return dealer, report
        if complete or budget is None:
            break
        budget *= 4
    if n < n_shards:
        raise TooLittleText(
            f"{language} has {n} different documents for {n_shards} shards (each document is in "
            "one shard)",
            f"use n_shards={n} or fewer, or " if n else "",
            _dropped(reader, report),
        )
    return dealer, report


def _sentences(
    reader: Reader,
    language: str,
    model: TextModel,
    prefix: tuple[int, ...],
    longest: int,
    n: int | None,
) -> tuple[list[tuple[str, list[int]]], int, Hygiene | None]:
    """The first `n` sentences with their origins, the number of too long ones, and the report."""
    base, kind = split_label(language)
    budget = None if n is None else 2 * n
    while True:
        documents, complete = reader.first(base, budget, lambda text: 1)
        encode = encoder(kind, [document.text for document in documents], model.encode_batch)
        sentences: list[tuple[str, list[int]]] = []
        too_long, report = 0, None
        for batch, batch_report in _unreported(reader, kind).clean(base, documents):
            report = _sum(report, batch_report)
            encoded = _encode(encode, [document.text for document in batch], prefix)
            for document, ids in zip(batch, encoded, strict=True):
                if len(sentences) == n:
                    return sentences, too_long, report
                too_long += len(ids) > longest
                if len(prefix) < len(ids) <= longest:
                    sentences.append((document.origin, ids))
        if complete or budget is None or len(sentences) == n:
            return sentences, too_long, report
        budget *= 4


def _unreported(reader: Reader, kind: str | None) -> Reader:
    """The reader; for a counterfactual, whose original has the report, without one."""
    return reader if kind is None or reader.care == "drop" else replace(reader, care="off")


def _sum(a: Hygiene | None, b: Hygiene | None) -> Hygiene | None:
    if a is None or b is None:
        return a or b
    return a + b


def _dropped(reader: Reader, report: Hygiene | None) -> str:
    return f" Left out as foreign: {report}." if reader.care == "drop" and report else ""


def _encode(
    encode: Callable[[Sequence[str]], list[list[int]]],
    texts: Sequence[str],
    prefix: tuple[int, ...],
) -> list[list[int]]:
    """The tokens of each text, after the prefix."""
    encoded = encode(texts) if texts else []
    return [[*prefix, *ids] for ids in encoded] if prefix else encoded


def _packed(shards: Sequence[Shard], n: int, body: int, prefix: tuple[int, ...]) -> Rows:
    """The first `n` blocks of every shard, each after the prefix."""
    offset = len(prefix)
    ids = np.zeros((len(shards) * n, offset + body), dtype=np.int32)
    ids[:, :offset] = prefix
    starts = np.zeros(ids.shape, dtype=bool)
    source = []
    for index, shard in enumerate(shards):
        stream = np.concatenate([text.ids for text in shard.texts])[: n * body]
        ids[index * n : (index + 1) * n, offset:] = stream.reshape(n, body)
        position = np.array([start for start in shard.starts if start < n * body])
        starts[index * n + position // body, offset + position % body] = True
        source += [shard.origin(block * body) for block in range(n)]
    return Rows(
        torch.from_numpy(ids),
        torch.full((len(ids),), offset + body),
        torch.arange(len(shards)).repeat_interleave(n),
        tuple(source),
        torch.from_numpy(starts),
    )


def _padded(sentences: Sequence[tuple[str, list[int]]], shard: Sequence[int]) -> Rows:
    lengths = [len(ids) for _, ids in sentences]
    padded = np.zeros((len(sentences), max(lengths)), dtype=np.int32)
    for row, (_, ids) in enumerate(sentences):
        padded[row, : len(ids)] = ids
    return Rows(
        torch.from_numpy(padded),
        torch.tensor(lengths),
        torch.tensor(shard),
        tuple(origin for origin, _ in sentences),
    )


def _too_short(language: str, dealer: Dealer, body: int, block_length: int) -> TooLittleText:
    """A shard fills no block; with settings that would work."""
    n_shards, fewest = len(dealer.shards), dealer.fewest
    remedies = [f"block_length={fewest + block_length - body} or less"] if fewest else []
    for fewer in range(n_shards - 1, 0, -1):
        alternative = Dealer(fewer)
        for text in dealer.dealt:
            alternative.deal(text)
        if alternative.fewest >= body:
            remedies.append(f"n_shards={fewer}")
            break
    total = sum(len(text.ids) for text in dealer.dealt)
    return TooLittleText(
        f"{language} has {total:,} tokens, and the smallest of its {n_shards} shards has "
        f"{fewest:,}, less than one block of {block_length}",
        f"use {', '.join([*remedies, 'or '])}" if remedies else "",
    )


def _special(model: TextModel) -> tuple[int, ...]:
    bos = () if model.bos_id is None else (model.bos_id,)
    return tuple(sorted({*model.special_ids, *model.prefix_ids, *bos}))


def _at_least(least: int, **setting: int) -> None:
    ((name, value),) = setting.items()
    if value < least:
        raise ValueError(f"{name} is {value}; it must be {least} or more.")


def _fits(name: str, length: int, model: TextModel) -> None:
    if length > model.max_length:
        raise ValueError(
            f"{name} is {length}, but the model takes at most {model.max_length} tokens: "
            f"use {name}={model.max_length} or less."
        )

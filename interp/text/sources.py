"""Where text comes from: files, lists and hub datasets, document by document; prompts."""

import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from interp.results.display import counted, listed
from interp.text.languages import check_languages

Cut = Literal["line", "block"]
"""What is one document of a text file: a line, or lines up to the next blank one."""

_BABEL = Path(__file__).parents[1] / "babel"
_SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face hub (or a local folder in its layout), read as a stream.

    >>> configs = {"fr": "20231101.fr"}
    >>> wikipedia = interp.text.HubDataset("wikimedia/wikipedia", configs, rows=10_000)
    >>> wikipedia.configs["fr"]  # read_corpora(wikipedia, ["fr"], model) streams it
    '20231101.fr'
    """

    name: str
    """Such as `wikimedia/wikipedia`."""

    configs: Mapping[str, str]
    """Language → configuration of the dataset, such as {"fr": "20231101.fr"}."""

    text_column: str = "text"
    """The column that holds the text; each row is one document."""

    split: str = "train"
    """The dataset's own split; ours is made within it."""

    revision: str | None = None
    """Commit of the dataset. None takes the newest, which may be another one tomorrow."""

    rows: int | None = None
    """Read this many rows of each language, from the start; None reads (and downloads) them all."""


TextSource = str | Path | HubDataset | Mapping[str, Sequence[str]]
"""`babel`, a folder of <language>.txt[.gz] or .jsonl[.gz], a hub dataset, or lists of documents."""


class Document(NamedTuple):
    """A piece of text whose tokens go together: it is never divided among shards or splits."""

    text: str
    """In Unicode form NFC, without white space at its ends, never empty."""

    origin: str
    """Where it was found, such as `de.txt:118`."""


def read_documents(source: TextSource, language: str, cut: Cut = "line") -> Iterator[Document]:
    """The documents of one language, in the order of the source, read as they are asked for.

    `cut` is about text files. A row of JSON lines or of a dataset is one document, and so is an
    item of a list. NFC, because the same word typed in two ways is not two words.
    """
    for text, origin in _pieces(source, language, cut):
        normal = unicodedata.normalize("NFC", text).strip()
        if normal:
            yield Document(normal, origin)


def place(source: TextSource, language: str) -> str:
    """Where a language's text is looked for, in words for messages."""
    if isinstance(source, Mapping):
        return f"the list of {language}"
    if isinstance(source, HubDataset):
        return f"{source.name} ({source.configs[language]}, {source.split})"
    return str(_find(_folder(source, "parallel"), language))


@dataclass(frozen=True)
class Prompts:
    """The same prompts in several languages."""

    ids: tuple[str, ...]
    """One per prompt, in natural order (2 before 10)."""

    texts: dict[str, tuple[str, ...]]
    """Language → the prompts, in the order of `ids`."""

    def __repr__(self) -> str:
        return f"Prompts({counted(len(self.ids), 'prompt')} in {listed(self.languages)})"

    def __post_init__(self) -> None:
        for code, texts in self.texts.items():
            if len(texts) != len(self.ids):
                raise ValueError(f"{code} has {len(texts)} prompts for {len(self.ids)} ids.")

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.texts)


def read_prompts(
    source: str | Path | Mapping[str, Sequence[str]],
    languages: Sequence[str],
    *,
    field: str = "text",
    incomplete: Literal["refuse", "drop"] = "refuse",
) -> Prompts:
    """Prompts that say the same in every language, from files that agree on ids.

    In <language>.jsonl each row has an `id` and a text in `field`; in <language>.txt and in lists
    the line number is the id. Texts stay as they are, spaces at their ends included. A prompt that
    some language lacks is an error, or is left out with `incomplete="drop"`.

    >>> prompts = interp.read_prompts({"en": ["one", "two"], "de": ["eins", "zwei"]}, ["en", "de"])
    >>> prompts.ids, prompts.texts["de"]
    (('1', '2'), ('eins', 'zwei'))
    """
    codes = check_languages(languages)
    found = {code: _identified(source, code, field) for code in codes}
    everywhere = set.intersection(*(set(texts) for texts in found.values()))
    anywhere = set.union(*(set(texts) for texts in found.values()))
    if not everywhere:
        counts = ", ".join(f"{code} has {len(texts)}" for code, texts in found.items())
        raise ValueError(f"No prompt is there in every language ({counts}): the ids must agree.")
    if anywhere != everywhere and incomplete == "refuse":
        gap = sorted(anywhere - everywhere, key=_natural)[0]
        without = [code for code, texts in found.items() if gap not in texts]
        raise ValueError(
            f"{len(anywhere - everywhere)} of {len(anywhere)} prompts are not there in every "
            f"language: {', '.join(without)} lacks {gap!r}. Complete the files, or leave such "
            'prompts out with incomplete="drop".'
        )
    ids = tuple(sorted(everywhere, key=_natural))
    return Prompts(ids, {code: tuple(found[code][id] for id in ids) for code in codes})


def _natural(id: str) -> list[tuple[int, str]]:
    """A sorting key by which 2 comes before 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", id)
    ] + [(-2, id)]


def _identified(source: TextSource, language: str, field: str) -> dict[str, str]:
    """Prompt id → text, in one language."""
    texts: dict[str, str] = {}
    for id, text, origin in _rows_with_ids(source, language, field):
        if not text.strip():
            continue
        if id in texts:
            raise ValueError(f"{origin} repeats the id {id!r}; each prompt needs its own.")
        texts[id] = text
    return texts


def _rows_with_ids(source: TextSource, language: str, field: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(source, Mapping):
        for number, (text, origin) in enumerate(_listed(source, language), start=1):
            yield str(number), text, origin
        return
    if isinstance(source, HubDataset):
        raise ValueError("Prompts are read from files or lists; a hub dataset has no prompt ids.")
    path = _find(_folder(source, "prompts"), language)
    if ".jsonl" not in path.suffixes:
        for number, line in _lines(path):
            yield str(number), line, f"{path.name}:{number}"
        return
    for row, origin in _json_rows(path):
        if not isinstance(row.get("id"), str | int):
            raise ValueError(f'{origin} has no "id": each prompt needs one, the same everywhere.')
        yield str(row["id"]), _text_of(row, field, origin), origin


def _pieces(source: TextSource, language: str, cut: Cut) -> Iterator[tuple[str, str]]:
    if isinstance(source, Mapping):
        return _listed(source, language)
    if isinstance(source, HubDataset):
        return _hub_rows(source, language)
    path = _find(_folder(source, "parallel"), language)
    if ".jsonl" in path.suffixes:
        return ((_text_of(row, "text", origin), origin) for row, origin in _json_rows(path))
    if cut == "line":
        return ((line, f"{path.name}:{number}") for number, line in _lines(path))
    return _blocks(path)


def _listed(source: Mapping[str, Sequence[str]], language: str) -> Iterator[tuple[str, str]]:
    if language not in source:
        raise ValueError(f"The texts given hold no {language!r}, only {', '.join(source) or '-'}.")
    texts = source[language]
    if isinstance(texts, str):
        raise ValueError(f"The text of {language} is one string; give a list of documents.")
    for number, text in enumerate(texts):
        origin = f"{language}[{number}]"
        if not isinstance(text, str):
            raise ValueError(f"{origin} is {type(text).__name__}, not text.")
        yield _sound(text, origin), origin


def _folder(source: str | Path, part: Literal["parallel", "prompts"]) -> Path:
    if source == "babel":
        folder = _BABEL / part
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The shipped {part} texts are missing ({folder}): install the package again."
            )
        return folder
    folder = Path(source)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"{str(source)!r} {what}; give a folder of files named <language>.txt, .txt.gz, .jsonl "
            'or .jsonl.gz, "babel", a dictionary of lists, or HubDataset(name, configs).'
        )
    return folder


def _find(folder: Path, language: str) -> Path:
    paths = [folder / f"{language}{suffix}" for suffix in _SUFFIXES]
    there = [path for path in paths if path.is_file()]
    if len(there) > 1:
        names = " and ".join(path.name for path in there)
        raise ValueError(f"{folder} holds {names}: keep one, or it is unclear which to read.")
    if not there:
        others = sorted(path.name for path in folder.iterdir() if path.name.endswith(_SUFFIXES))
        raise FileNotFoundError(
            f"{folder} holds no text in {language!r}: expected {language}.txt, .txt.gz, .jsonl or "
            f".jsonl.gz; there is {', '.join(others) or 'no such file'}."
        )
    return there[0]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends, decoded one by one, never all in memory."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}, line {number} is not UTF-8 (byte {error.start + 1} of the line "
                        f"is 0x{raw[error.start]:02x}): convert the file to UTF-8."
                    ) from None
                yield number, line.rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is not a whole gzip file ({error}): copy or compress it again."
        ) from None


def _blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Runs of lines between blank lines."""
    block: list[str] = []
    start = 1
    for number, line in _lines(path):
        if line.strip():
            start = start if block else number
            block.append(line)
        elif block:
            yield "\n".join(block), f"{path.name}:{start}"
            block = []
    if block:
        yield "\n".join(block), f"{path.name}:{start}"


def _json_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} is {type(row).__name__}, not an object such as "
                '{"text": ...}.'
            )
        yield row, f"{path.name}:{number}"


def _text_of(row: Mapping[str, Any], field: str, origin: str) -> str:
    if not isinstance(row.get(field), str):
        what = f"is {type(row[field]).__name__}" if field in row else "is missing"
        raise ValueError(
            f"{origin}: the text is expected in {field!r}, which {what}; the row has "
            f"{', '.join(row) or 'nothing'}."
        )
    return _sound(row[field], origin)


def _sound(text: str, origin: str) -> str:
    """The text, unless it holds half a surrogate pair, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{origin} holds half a character ({text[error.start]!r}): it was cut inside an "
            "escaped pair; mend or remove it."
        ) from None
    return text


def _hub_rows(source: HubDataset, language: str) -> Iterator[tuple[str, str]]:
    import datasets  # takes a second, and only this source needs it

    from interp.models.hub import check_reachable

    if language not in source.configs:
        raise ValueError(
            f"{source.name} was given no configuration for {language!r}, only for "
            f"{', '.join(source.configs) or 'none'}; add it to `configs`."
        )
    config = source.configs[language]
    if not Path(source.name).is_dir():
        check_reachable(source.name, "README.md", "dataset", revision=source.revision)
    try:
        rows = datasets.load_dataset(
            source.name, config, split=source.split, revision=source.revision, streaming=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The dataset {source.name!r} (configuration {config!r}, split {source.split!r}) "
            f"cannot be opened: {' '.join(str(error).split())}"
        ) from error
    for number, row in enumerate(rows if source.rows is None else rows.take(source.rows)):
        origin = f"{source.name}/{config}:{number}"
        yield _text_of(row, source.text_column, origin), origin

"""Sources of text: files, lists and hub datasets, read document by document; and prompts."""

import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from interp.results.display import Cells, Shown, counted, listed, table_cells
from interp.text.counterfactuals import split_label
from interp.text.labels import check_labels
from interp.text.languages import given_tags

Cut = Literal["line", "block"]
"""What one document of a text file is: a line, or all lines up to the next blank one."""

BABEL_LABELS = ("en", "de", "fr", "es", "zh", "ja")

_BABEL = Path(__file__).parents[1] / "babel"
_EVERYDAY = Path(__file__).parent / "everyday"
_MOST_NAMED = 40  # files in the error about a missing one
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face hub (or a local folder in its layout), read as a stream.

    >>> configs = {"fr": "20231101.fr"}
    >>> wikipedia = interp.text.HubDataset("wikimedia/wikipedia", configs, rows=10_000)
    >>> wikipedia.configs["fr"]  # read_corpora(wikipedia, ["fr"], model) streams it
    '20231101.fr'
    """

    name: str
    """Such as `wikimedia/wikipedia`."""

    configs: Mapping[str, str]
    """Label → configuration of the dataset, such as {"fr": "20231101.fr"}."""

    text_column: str = "text"
    """The column that holds the text; each row is one document."""

    split: str = "train"
    """The dataset's own split; train and held-out text are split within it."""

    revision: str | None = None
    """Commit of the dataset. None: the newest, which may change."""

    rows: int | None = None
    """Number of rows to read per language, from the start. None: read (and download) all."""

    label_column: str | None = None
    """The column that holds the label, where one configuration has the text of several: of the rows
    that are read, those with the label in this column are its documents."""


TextSource = str | Path | HubDataset | Mapping[str, Sequence[str]]
"""`babel`, a folder of <label>.txt[.gz] or .jsonl[.gz], a hub dataset, or lists of documents."""


class Document(NamedTuple):
    """A text that is never divided among shards or splits."""

    text: str
    """In Unicode form NFC, stripped of whitespace at both ends, never empty."""

    origin: str
    """Where it comes from, such as `de.txt:118`."""


def read_documents(source: TextSource, language: str, cut: Cut = "line") -> Iterator[Document]:
    """The documents of one language, in the order of the source, read lazily.

    `cut` applies to text files. A row of JSON lines or of a dataset is one document, and so is an
    item of a list. NFC, so that a word typed in two ways is the same word.

    >>> first, *_ = interp.text.read_documents("babel", "en")
    >>> first.origin
    'en.txt:1'
    """
    for text, origin in _raw_documents(source, language, cut):
        normalized = unicodedata.normalize("NFC", text).strip()
        if normalized:
            yield Document(normalized, origin)


def labels_in(source: TextSource) -> tuple[str, ...]:
    """The labels under which a source has text, or a task has questions.

    Babel's, also of its tasks (`babel/statements`), in its order; files in alphabetical order.

    >>> interp.text.labels_in({"poetry": ["O rose"], "prose": ["A rose."]})
    ('poetry', 'prose')
    """
    if isinstance(source, Mapping):
        return tuple(source)
    if isinstance(source, HubDataset):
        return tuple(source.configs)
    if source == "babel" or str(source).startswith("babel/"):
        return BABEL_LABELS
    folder = _folder(source, "parallel")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    pattern = "|".join(re.escape(suffix) for suffix in SUFFIXES)
    labels = tuple(dict.fromkeys(re.sub(rf"({pattern})$", "", name) for name in names))
    if not labels:
        raise FileNotFoundError(
            f"{folder} holds no text: expected files named <label>.txt, .txt.gz, .jsonl or "
            ".jsonl.gz."
        )
    return labels


def text_location(source: TextSource, language: str) -> str:
    """Where a language's text is read from, for messages."""
    if isinstance(source, Mapping):
        return f"the list of {language}"
    if isinstance(source, HubDataset):
        return f"{source.name} ({source.configs[language]}, {source.split})"
    return str(_find(_folder(source, "parallel"), language))


def check_text(source: str | Path, labels: Sequence[str]) -> None:
    """Refuse labels without a file, or without a document in it: all of them in one sentence."""
    folder = _folder(source, "parallel")
    texts = {label: _files(folder, label) for label in (split_label(label)[0] for label in labels)}
    missing = [label for label, files in texts.items() if not files]
    empty = {
        label: files[0].name
        for label, files in texts.items()
        if files and next(read_documents(source, label), None) is None
    }
    if missing or empty:
        raise _no_text(folder, missing, empty)


@dataclass(frozen=True)
class Prompts(Shown):
    """The same prompts in several languages."""

    ids: tuple[str, ...]
    """One per prompt, in natural order (2 before 10)."""

    texts: dict[str, tuple[str, ...]]
    """Language → prompts, in the order of `ids`."""

    def __repr__(self) -> str:
        return f"Prompts({counted(len(self.ids), 'prompt')} in {listed(self.languages)})"

    def _cells(self) -> Cells:
        return table_cells({"prompt": self.ids, **self.texts}, most_rows=6)

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
    """Translated prompts, from files with the same ids in every language.

    In <language>.jsonl each row has an `id` and a text in `field`; in <language>.txt and in lists
    the line number is the id. So the `data` folder of CLaS-Bench (2601.08331) can be read. Texts
    are not changed, not even spaces at their ends. A prompt missing in some language is an error,
    or is left out with `incomplete="drop"`. "everyday" is shipped: 20 open questions in 12
    languages, en de fr es zh ja ru ar hi vi sw ko; a label is asked in the language that it is
    given (`tagged`).

    >>> prompts = interp.read_prompts({"en": ["one", "two"], "de": ["eins", "zwei"]}, ["en", "de"])
    >>> prompts.ids, prompts.texts["de"]
    (('1', '2'), ('eins', 'zwei'))
    >>> interp.read_prompts("everyday", ["en", "sw"]).texts["en"][0]
    'How do you make a good cup of tea?'
    """
    codes = check_labels(languages)
    known = sorted(path.stem for path in _EVERYDAY.iterdir())
    given = given_tags(codes) if source == "everyday" else {}
    names = {code: given.get(code) or code for code in codes}
    if source == "everyday" and (unknown := [x for x, name in names.items() if name not in known]):
        raise ValueError(
            f"There are no everyday questions in {', '.join(unknown)}, only in {' '.join(known)}: "
            "give some of these languages, or a folder of your own questions."
        )
    by_language = {code: _texts_by_id(source, names[code], field) for code in codes}
    shared_ids = set.intersection(*(set(texts) for texts in by_language.values()))
    all_ids = set.union(*(set(texts) for texts in by_language.values()))
    if not shared_ids:
        counts = ", ".join(f"{code} has {len(texts)}" for code, texts in by_language.items())
        raise ValueError(f"No prompt exists in every language ({counts}): the ids must agree.")
    if all_ids != shared_ids and incomplete == "refuse":
        missing = sorted(all_ids - shared_ids, key=_natural)[0]
        without = [code for code, texts in by_language.items() if missing not in texts]
        raise ValueError(
            f"{len(all_ids - shared_ids)} of {len(all_ids)} prompts are not in every language: "
            f"{', '.join(without)} lacks {missing!r}. Complete the files; in Python, "
            'incomplete="drop" leaves such prompts out.'
        )
    ids = tuple(sorted(shared_ids, key=_natural))
    return Prompts(ids, {code: tuple(by_language[code][id] for id in ids) for code in codes})


def _natural(id: str) -> list[tuple[int, str]]:
    """A sort key that puts 2 before 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", id)
    ] + [(-2, id)]


def _texts_by_id(source: TextSource, language: str, field: str) -> dict[str, str]:
    """Prompt id → text, in one language."""
    texts: dict[str, str] = {}
    for id, text, origin in _rows_with_ids(source, language, field):
        if not text.strip():
            continue
        if id in texts:
            raise ValueError(f"{origin} repeats the id {id!r}; ids must be unique.")
        texts[id] = text
    return texts


def _rows_with_ids(source: TextSource, language: str, field: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(source, Mapping):
        for number, (text, origin) in enumerate(_list_items(source, language), start=1):
            yield str(number), text, origin
        return
    if isinstance(source, HubDataset):
        raise ValueError("Prompts are read from files or lists; a hub dataset has no prompt ids.")
    path = _find(_folder(source, "prompts"), language)
    if ".jsonl" not in path.suffixes:
        for number, line in numbered_lines(path):
            yield str(number), line, f"{path.name}:{number}"
        return
    for row, origin in json_rows(path):
        if not isinstance(row.get("id"), str | int):
            raise ValueError(
                f'{origin} has no "id": each prompt needs one, the same in every language.'
            )
        yield str(row["id"]), _text_of(row, field, origin), origin


def _raw_documents(source: TextSource, language: str, cut: Cut) -> Iterator[tuple[str, str]]:
    if isinstance(source, Mapping):
        return _list_items(source, language)
    if isinstance(source, HubDataset):
        return _hub_rows(source, language)
    path = _find(_folder(source, "parallel"), language)
    if ".jsonl" in path.suffixes:
        return ((_text_of(row, "text", origin), origin) for row, origin in json_rows(path))
    if cut == "line":
        return ((line, f"{path.name}:{number}") for number, line in numbered_lines(path))
    return _blocks(path)


def _list_items(source: Mapping[str, Sequence[str]], language: str) -> Iterator[tuple[str, str]]:
    if language not in source:
        raise ValueError(f"The given texts hold no {language!r}, only {', '.join(source) or '-'}.")
    texts = source[language]
    if isinstance(texts, str):
        raise ValueError(f"The text of {language} is one string; give a list of documents.")
    for number, text in enumerate(texts):
        origin = f"{language}[{number}]"
        if not isinstance(text, str):
            raise ValueError(f"{origin} is {type(text).__name__}, not text.")
        yield _encodable(text, origin), origin


def _folder(source: str | Path, part: Literal["parallel", "prompts"]) -> Path:
    if source == "babel":
        folder = _BABEL / part
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The shipped {part} texts are missing ({folder}): reinstall the package."
            )
        return folder
    folder = _EVERYDAY if source == "everyday" else Path(source)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"{str(source)!r} {what}; give a folder of files named <language>.txt, .txt.gz, .jsonl "
            "or .jsonl.gz, or babel; in Python also a HubDataset."
        )
    return folder


def _files(folder: Path, language: str) -> list[Path]:
    """The files of a language: one, unless some are too many or none is there."""
    paths = [folder / f"{language}{suffix}" for suffix in SUFFIXES]
    return [path for path in paths if path.is_file()]


def _find(folder: Path, language: str) -> Path:
    existing = _files(folder, language)
    if len(existing) > 1:
        names = " and ".join(path.name for path in existing)
        raise ValueError(f"{folder} holds {names}: keep one, since it is unclear which to read.")
    if not existing:
        raise _no_text(folder, [language], {})
    return existing[0]


def _no_text(folder: Path, missing: Sequence[str], empty: Mapping[str, str]) -> FileNotFoundError:
    """For labels without a file, and for those whose file, here by label, has no document."""
    others = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    there = ", ".join(others[:_MOST_NAMED]) or "no such file"
    there += f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    why = []
    if missing:
        why.append(f"expected {missing[0]}.txt, .txt.gz, .jsonl or .jsonl.gz; there is {there}")
    if empty:
        verb = "is" if len(empty) == 1 else "are"
        why.append(f"{', '.join(empty.values())} {verb} empty or blank")
    labels = ", ".join(map(repr, (*missing, *empty)))
    return FileNotFoundError(
        f"{folder} holds no text in {labels}: {'; '.join(why)}. Add text, or give other labels."
    )


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and lines without line breaks, decoded one by one to save memory."""
    # Local: at exit Python may close this generator when the modules named here are gone.
    unreadable = (EOFError, gzip.BadGzipFile, zlib.error)
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
    except unreadable as error:
        raise ValueError(
            f"{path} is not a complete gzip file ({error}): copy or compress it again."
        ) from None


def _blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Runs of lines between blank lines."""
    block: list[str] = []
    start = 1
    for number, line in numbered_lines(path):
        if line.strip():
            start = start if block else number
            block.append(line)
        elif block:
            yield "\n".join(block), f"{path.name}:{start}"
            block = []
    if block:
        yield "\n".join(block), f"{path.name}:{start}"


def json_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The object of each line that is not blank, and where it is."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ValueError(
                f'{path}, line {number} is {type(row).__name__}, not an object, {{"name": value}}.'
            )
        yield row, f"{path.name}:{number}"


def _text_of(row: Mapping[str, Any], field: str, origin: str) -> str:
    if not isinstance(row.get(field), str):
        what = f"is {type(row[field]).__name__}" if field in row else "is missing"
        raise ValueError(
            f"{origin}: the text is expected in {field!r}, which {what}; the row has "
            f"{', '.join(row) or 'nothing'}."
        )
    return _encodable(row[field], origin)


def _encodable(text: str, origin: str) -> str:
    """The text; refused if it holds half a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{origin} holds half a character ({text[error.start]!r}): it was cut inside an "
            "escaped surrogate pair; repair or remove it."
        ) from None
    return text


def _hub_rows(source: HubDataset, language: str) -> Iterator[tuple[str, str]]:
    import datasets  # the import takes a second, and only this source needs it

    from interp.models.hub import check_reachable

    if language not in source.configs:
        raise ValueError(
            f"{source.name} has no configuration for {language!r}, only for "
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
        if source.label_column is not None:
            if source.label_column not in row:
                raise ValueError(
                    f"{origin} has no column {source.label_column!r} for its label; it has "
                    f"{', '.join(row)}."
                )
            if str(row[source.label_column]) != language:
                continue
        yield _text_of(row, source.text_column, origin), origin

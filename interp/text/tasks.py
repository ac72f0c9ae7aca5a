"""Tasks: the same questions in several languages, from Babel's own or from files of known forms.

A folder holds <language>.jsonl, one row per item, the same ids in every language. The columns say
which of these forms it is:

    text endings answer                     prompts with endings, as Babel's are
    premise hypothesis label                XNLI, with the prompt of Wang et al. (2024)
    premise choice1 choice2 question label  XCOPA: cause or effect, joined by a word of the language
    sentence1 sentence2 label               PAWS-X: do both say the same
    prompt candidates answer_index          facts with a <mask>, such as BMLAMA (mLAMA, mParaRel)
    subject question rephrase target        MzsRE: an edited fact, told and asked again; written
    context question answer                 XQuAD and MLQA: a question about a text; written
    question answer                         MGSM: a number, written
    text label                              SIB-200: the topic of a sentence

XNLI, PAWS-X, questions and topics have an English frame in every language, as Wang et al. have it.
How well a model does depends on the frame: compare interventions, or models, under the same one.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from interp.results.display import counted
from interp.text.languages import check_languages
from interp.text.sources import Prompts

_BABEL = Path(__file__).parents[1] / "babel" / "prompts"
_MASK = "<mask>"
_LABELS = {"entailment": " true", "contradiction": " false", "neutral": " inconclusive"}
_UNSPACED = ("zh", "ja", "th")  # written without spaces between words
_JOINED = {
    "en": (" because", " so"),
    "id": (" karena", " maka"),
    "it": (" perché", " quindi"),
    "sw": (" kwa sababu", " kwa hiyo"),
    "th": ("เพราะ", "ดังนั้น"),
    "tr": (" çünkü", " bu yüzden"),
    "vi": (" bởi vì", " vì vậy"),
    "zh": ("，因为", "，所以"),  # noqa: RUF001
}
"""What comes between a premise and its cause, and between a premise and its effect."""


class Item(NamedTuple):
    """One question.

    >>> item = interp.text.Item("sum", "One plus one is", (" two.", " three."), answer=0)
    >>> item.options[item.answer]
    ' two.'
    """

    id: str
    """The same in every language."""

    prompt: str
    """What the model reads."""

    options: tuple[str, ...]
    """What may follow the prompt, spaces at the beginning included; one alone is to be written."""

    answer: int
    """Which option is right."""

    held_out: bool = False
    """The model was never told the answer in this language; only the makers of a model know."""

    group: str = ""
    """Items of one group go together, such as hypotheses about one premise; empty: it is alone."""


@dataclass(frozen=True)
class Task:
    """Questions in one language; translations have the same ids.

    >>> item = interp.text.Item("sum", "One plus one is", (" two.", " three."), answer=0)
    >>> task = interp.text.Task("sums", "en", (item, item._replace(id="again", held_out=True)))
    >>> len(task.where(lambda item: not item.held_out).items)
    1
    """

    name: str
    """Such as `xnli`."""

    language: str
    """ISO code of the language of the questions."""

    items: tuple[Item, ...]
    """In the order of every result."""

    def __post_init__(self) -> None:
        check_languages([self.language])
        if not self.items:
            raise ValueError(f"{self.name} in {self.language} has no items.")
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise ValueError(f"{self.name} in {self.language} repeats the id {item.id!r}.")
            seen.add(item.id)
            if not all(isinstance(each, str) for each in (item.id, item.prompt, *item.options)):
                raise TypeError(f"{item.id!r} has a prompt or an option that is no text")
            if not 0 <= item.answer < len(item.options):
                raise ValueError(
                    f"{item.id!r} of {self.name} in {self.language} has {len(item.options)} "
                    f"options, and its answer is number {item.answer}, counted from zero."
                )

    def __repr__(self) -> str:
        return f"Task({self.name} in {self.language}: {counted(len(self.items), 'item')})"

    def where(self, keep: Callable[[Item], bool]) -> "Task":
        """Some of the items: `task.where(lambda item: not item.held_out)`."""
        return Task(self.name, self.language, tuple(item for item in self.items if keep(item)))


def align_tasks(
    tasks: Sequence[Task], incomplete: Literal["refuse", "drop"] = "refuse"
) -> tuple[Task, ...]:
    """The same items in every language, in the order of the first.

    An item that some language lacks is an error that names it, or is left out with "drop".

    >>> english = interp.read_task("babel/statements", "en")
    >>> german = interp.read_task("babel/statements", "de").where(lambda item: "young" in item.id)
    >>> [len(task.items) for task in interp.text.align_tasks([english, german], "drop")]
    [7, 7]
    """
    check_languages([task.language for task in tasks])
    found = [{item.id: item for item in task.items} for task in tasks]
    everywhere = set.intersection(*(set(items) for items in found))
    for task, items in zip(tasks, found, strict=True):
        missing = sorted(set().union(*found) - set(items))
        if missing and incomplete == "refuse":
            raise ValueError(
                f"{task.name} in {task.language} lacks {len(missing)} items that other languages "
                f"have, such as {', '.join(map(repr, missing[:3]))}: complete it, or leave them "
                'out with align_tasks(tasks, "drop").'
            )
    order = [id for id in found[0] if id in everywhere]
    return tuple(
        Task(task.name, task.language, tuple(items[id] for id in order))
        for task, items in zip(tasks, found, strict=True)
    )


def prompts_of(tasks: Sequence[Task]) -> Prompts:
    """The prompts alone, for `prompt_rows`; the tasks must have the same items.

    >>> tasks = [interp.read_task("babel/statements", code) for code in ("en", "de")]
    >>> prompts = interp.text.prompts_of(tasks)
    >>> len(prompts.ids), prompts.languages
    (120, ('en', 'de'))
    """
    aligned = align_tasks(tasks)
    return Prompts(
        tuple(item.id for item in aligned[0].items),
        {task.language: tuple(item.prompt for item in task.items) for task in aligned},
    )


# ---------------------------------------------------------------- files


def read_task(source: str | Path, language: str) -> Task:
    """One language of a task: "babel/fact_completion", "babel/statements", "babel/word_translation"
    (all of them: "babel"), or a folder of <language>.jsonl in one of the forms above.

    The columns of the first row decide on the form; a column that a later row lacks is an error.

    >>> item = interp.read_task("babel/fact_completion", "de").items[0]
    >>> item.prompt, item.options[item.answer]
    ('Das Gegenteil von nutzlos ist', ' nützlich.')
    """
    check_languages([language])
    name, wanted = str(source).rstrip("/"), None
    if name == "babel" or name.startswith("babel/"):
        folder, wanted = _BABEL, name.removeprefix("babel").removeprefix("/")
    else:
        folder, name = Path(source), Path(source).name
    rows = _read_rows(folder / f"{language}.jsonl")
    if wanted:
        kinds = sorted({row["id"].split("/")[0] for row in rows})
        rows = [row for row in rows if row["id"].startswith(f"{wanted}/")]
        if not rows:
            raise ValueError(f"Babel has no task {wanted!r}, only {', '.join(kinds)}.")
    for columns, read in _FORMS.items():
        if set(columns) <= set(rows[0]):
            for row in rows:
                if missing := [column for column in ("id", *columns) if column not in row]:
                    raise ValueError(
                        f"{folder / language}.jsonl: {row.get('id', 'a row')!r} has no "
                        f"{', '.join(missing)}, which the first row has."
                    )
            with _well_formed(folder / f"{language}.jsonl", columns):
                return Task(name, language, tuple(read(rows, language)))
    forms = "; ".join(" ".join(columns) for columns in _FORMS)
    raise ValueError(
        f"{folder / language}.jsonl has the columns {', '.join(rows[0])}, which is no form that is "
        f"known. Known are: {forms}."
    )


def read_editing(folder: str | Path, told_in: str, asked_in: str) -> Task:
    """MzsRE across languages: a new fact is told in one, asked about and to be written in another.

    The fact stands in the prompt, as question and answer, and is asked in other words. With one
    language for both it is what `read_task` reads.

    >>> row = '{"id": "7", "subject": "Ada", "question": "%s", "rephrase": "%s", "target": "Ben"}'
    >>> _ = (folder / "en.jsonl").write_text(row % ("Who taught Ada?", "Whose pupil was Ada?"))
    >>> _ = (folder / "de.jsonl").write_text(row % ("Wer lehrte Ada?", "Von wem lernte Ada?"))
    >>> print(interp.text.read_editing(folder, told_in="en", asked_in="de").items[0].prompt)
    Who taught Ada? Ben
    Von wem lernte Ada?
    """
    known, asked = (_read_rows(Path(folder) / f"{code}.jsonl") for code in (told_in, asked_in))
    name = Path(folder).name if told_in == asked_in else f"{Path(folder).name} from {told_in}"
    with _well_formed(Path(folder), ("id", "subject", "question", "rephrase", "target")):
        told = {row["id"]: row for row in known}
        if missing := [row["id"] for row in asked if row["id"] not in told]:
            raise ValueError(
                f"{len(missing)} facts are not told in {told_in}, such as {missing[0]!r}: both "
                "languages need the same ids."
            )
        items = [_edited(told[row["id"]], told_in, row, asked_in) for row in asked]
        return Task(name, asked_in, tuple(items))


@contextmanager
def _well_formed(path: Path, columns: Sequence[str]) -> Iterator[None]:
    """Within the block, values of another type than a form has become one sentence."""
    try:
        yield
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{path} has values in {', '.join(columns)} that are not of their form "
            f"({error}): ids, prompts and options are text, answers are numbers or labels."
        ) from None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        there = sorted(each.stem for each in path.parent.glob("*.jsonl"))
        raise FileNotFoundError(
            f"{path} is missing; {path.parent} holds {', '.join(there) or 'no .jsonl files'}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start + 1}): convert the file to UTF-8."
        ) from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is {type(row).__name__}, not an object.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows


# ---------------------------------------------------------------- forms

Rows = Sequence[dict[str, Any]]


def _endings(rows: Rows, language: str) -> list[Item]:
    """A row may also say `held_out`, and the `group` of items that it goes with."""
    return [
        Item(
            row["id"],
            row["text"],
            tuple(row["endings"]),
            row["answer"],
            bool(row.get("held_out", False)),
            row.get("group", ""),
        )
        for row in rows
    ]


def _inference(rows: Rows, language: str) -> list[Item]:
    """The prompt of Wang et al. (2024), in English; the answers as it spells them."""
    labels = list(_LABELS)
    return [
        Item(
            row["id"],
            f"Take the following as truth: {row['premise']}\nThen the following statement: "
            f'"{row["hypothesis"]}" is "true", "false", or "inconclusive"?',
            tuple(_LABELS.values()),
            labels.index(row["label"]),
            group=row["premise"],
        )
        for row in rows
    ]


def _plausible(rows: Rows, language: str) -> list[Item]:
    """The premise without its full stop, a word for because or so, and either choice."""
    if language not in _JOINED:
        raise ValueError(
            f"There are no words for because and so in {language!r} here, only in "
            f"{', '.join(_JOINED)}: give prompts with endings instead."
        )
    items = []
    for row in rows:
        joined = _JOINED[language][row["question"] == "effect"]
        choices = [_uncapitalised(row[name]) for name in ("choice1", "choice2")]
        prompt = row["premise"].rstrip(" .!\u3002\uff01") + joined
        options = tuple(_gap(language) + choice for choice in choices)
        items.append(Item(row["id"], prompt, options, row["label"]))
    return items


def _paraphrase(rows: Rows, language: str) -> list[Item]:
    return [
        Item(
            row["id"],
            f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}\n"
            'Do both sentences mean the same, "yes" or "no"?',
            (" no", " yes"),
            int(row["label"]),
        )
        for row in rows
    ]


def _fact(rows: Rows, language: str) -> list[Item]:
    """What stands before the mask is the prompt; a candidate and what follows it are an option.

    A space before the mask goes to the option, as the tokenizer of running text has it.
    """
    items = []
    for row in rows:
        if row["prompt"].count(_MASK) != 1:
            raise ValueError(f"{row['id']!r} in {language} must have one {_MASK} in its prompt.")
        before, after = row["prompt"].split(_MASK)
        prompt = before.rstrip(" ")
        gap = before[len(prompt) :]
        options = tuple(gap + candidate + after for candidate in row["candidates"])
        items.append(Item(row["id"], prompt, options, row["answer_index"]))
    return items


def _edited_fact(rows: Rows, language: str) -> list[Item]:
    return [_edited(row, language, row, language) for row in rows]


def _edited(told: dict[str, Any], told_in: str, asked: dict[str, Any], asked_in: str) -> Item:
    prompt = f"{told['question']}{_gap(told_in)}{told['target']}\n{asked['rephrase']}"
    return Item(asked["id"], prompt, (_gap(asked_in) + asked["target"],), 0)


def _question(rows: Rows, language: str) -> list[Item]:
    return [
        Item(row["id"], f"Question: {row['question']}\nAnswer:", (f" {row['answer']}",), 0)
        for row in rows
    ]


def _text_question(rows: Rows, language: str) -> list[Item]:
    items = zip(rows, _question(rows, language), strict=True)
    return [
        item._replace(prompt=f"{row['context']}\n{item.prompt}", group=row["context"])
        for row, item in items
    ]


def _topic(rows: Rows, language: str) -> list[Item]:
    """The topics are those that occur, in alphabetical order."""
    labels = sorted({row["label"] for row in rows})
    options = tuple(f" {label}" for label in labels)
    return [
        Item(row["id"], f"{row['text']}\nTopic:", options, labels.index(row["label"]))
        for row in rows
    ]


def _gap(language: str) -> str:
    """What stands between a question and its answer."""
    return "" if language in _UNSPACED else " "


def _uncapitalised(text: str) -> str:
    """As in the middle of a sentence; a single capital may be a name, or the English I."""
    return text if text[1:2] in ("", " ", "'", "\u2019") else text[0].lower() + text[1:]


_FORMS: dict[tuple[str, ...], Callable[[Rows, str], list[Item]]] = {
    ("text", "endings", "answer"): _endings,
    ("premise", "hypothesis", "label"): _inference,
    ("premise", "choice1", "choice2", "question", "label"): _plausible,
    ("sentence1", "sentence2", "label"): _paraphrase,
    ("prompt", "candidates", "answer_index"): _fact,
    ("subject", "question", "rephrase", "target"): _edited_fact,
    ("context", "question", "answer"): _text_question,
    ("question", "answer"): _question,
    ("text", "label"): _topic,
}
"""Columns that a form has, and what makes items of its rows; the first that fits."""

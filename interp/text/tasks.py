"""Tasks: the same questions in several languages, from Babel or from files in known formats.

A folder holds <language>.jsonl, one row per item, with the same ids in every language. The columns
decide the format; "generated" means that the model writes the answer instead of choosing it:

    text endings answer                     prompts with endings, as in Babel
    premise hypothesis label                XNLI, with the prompt of Wang et al. (2024)
    premise choice1 choice2 question label  XCOPA: cause or effect, joined by a conjunction
    sentence1 sentence2 label               PAWS-X: do both mean the same
    prompt candidates answer_index          facts with a <mask>, such as BMLAMA (mLAMA, mParaRel)
    subject question rephrase target        MzsRE: an edited fact, stated, then asked; generated
    context question answer                 XQuAD and MLQA: a question about a text; generated
    question answer                         MGSM: a number; generated
    text label                              SIB-200: the topic of a sentence

XNLI, PAWS-X, questions and topics have an English template in every language, as in Wang et al.
Accuracy depends on the template: compare interventions, or models, under the same one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from interp.results.display import Cells, Shown, counted, table_cells
from interp.text.labels import check_labels
from interp.text.languages import given_tags
from interp.text.sources import Prompts, json_rows

_BABEL = Path(__file__).parents[1] / "babel" / "prompts"
_MASK = "<mask>"
_LABELS = {"entailment": " true", "contradiction": " false", "neutral": " inconclusive"}
_UNSPACED = ("zh", "ja", "th")  # written without spaces between words
_CONJUNCTIONS = {
    "en": (" because", " so"),
    "id": (" karena", " maka"),
    "it": (" perché", " quindi"),
    "sw": (" kwa sababu", " kwa hiyo"),
    "th": ("เพราะ", "ดังนั้น"),
    "tr": (" çünkü", " bu yüzden"),
    "vi": (" bởi vì", " vì vậy"),
    "zh": ("，因为", "，所以"),  # noqa: RUF001
}
"""Conjunctions between a premise and its cause, and between a premise and its effect."""


class Item(NamedTuple):
    """One question.

    >>> item = interp.text.Item("sum", "One plus one is", (" two.", " three."), answer=0)
    >>> item.options[item.answer]
    ' two.'
    """

    id: str
    """The same in every language."""

    prompt: str
    """The text that the model reads."""

    options: tuple[str, ...]
    """Continuations of the prompt, including leading spaces; a single one must be generated."""

    answer: int
    """Index of the correct option."""

    held_out: bool = False
    """True if the training text omits the answer in this language; only a model's makers know."""

    group: str = ""
    """Name shared by dependent items, such as hypotheses about one premise; empty: none."""

    relation: str = ""
    """What a fact says of its subject, the same in every language; empty: not said."""


@dataclass(frozen=True)
class Task(Shown):
    """Questions in one language; translations have the same ids.

    >>> item = interp.text.Item("sum", "One plus one is", (" two.", " three."), answer=0)
    >>> task = interp.text.Task("sums", "en", (item, item._replace(id="again", held_out=True)))
    >>> len(task.where(lambda item: not item.held_out).items)
    1
    """

    name: str
    """Such as `xnli`."""

    language: str
    """The language of the questions, by its label."""

    items: tuple[Item, ...]
    """Items, in the order of every result."""

    def __post_init__(self) -> None:
        check_labels([self.language])
        if not self.items:
            raise ValueError(f"{self.name} in {self.language} has no items.")
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise ValueError(f"{self.name} in {self.language} repeats the id {item.id!r}.")
            seen.add(item.id)
            if not all(isinstance(text, str) for text in (item.id, item.prompt, *item.options)):
                raise TypeError(f"{item.id!r} has a prompt or an option that is not text")
            if not 0 <= item.answer < len(item.options):
                raise ValueError(
                    f"{item.id!r} of {self.name} in {self.language} has {len(item.options)} "
                    f"options, but its answer is index {item.answer}, counted from zero."
                )

    def __repr__(self) -> str:
        return f"Task({self.name} in {self.language}: {counted(len(self.items), 'item')})"

    def _cells(self) -> Cells:
        answers = [item.options[item.answer] for item in self.items]
        columns = {name: [getattr(item, name) for item in self.items] for name in ("id", "prompt")}
        return table_cells({**columns, "answer": answers}, most_rows=6)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the items."""
        return tuple(item.id for item in self.items)

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each item, for intervals; an item without a group is its own."""
        return tuple(item.group or item.id for item in self.items)

    def where(self, keep: Callable[[Item], bool]) -> "Task":
        """Some of the items: `task.where(lambda item: not item.held_out)`."""
        return replace(self, items=tuple(item for item in self.items if keep(item)))


def align_tasks(
    tasks: Sequence[Task], incomplete: Literal["refuse", "drop"] = "refuse"
) -> tuple[Task, ...]:
    """The same items in every language, in the order of the first task.

    An item missing in some language is an error that names it, or is left out with "drop".

    >>> english = interp.read_task("babel/statements", "en")
    >>> german = interp.read_task("babel/statements", "de").where(lambda item: "young" in item.id)
    >>> [len(task.items) for task in interp.text.align_tasks([english, german], "drop")]
    [7, 7]
    """
    check_labels([task.language for task in tasks])
    items_by_id = [{item.id: item for item in task.items} for task in tasks]
    shared_ids = set.intersection(*(set(items) for items in items_by_id))
    for task, items in zip(tasks, items_by_id, strict=True):
        missing = sorted(set().union(*items_by_id) - set(items))
        if missing and incomplete == "refuse":
            raise ValueError(
                f"{task.name} in {task.language} lacks {len(missing)} items that other languages "
                f"have, such as {', '.join(map(repr, missing[:3]))}: complete it; in Python, "
                'align_tasks(tasks, "drop") leaves them out.'
            )
    order = [id for id in items_by_id[0] if id in shared_ids]
    return tuple(
        replace(task, items=tuple(items[id] for id in order))
        for task, items in zip(tasks, items_by_id, strict=True)
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
        aligned[0].ids,
        {task.language: tuple(item.prompt for item in task.items) for task in aligned},
    )


# ---------------------------------------------------------------- files


def read_task(source: str | Path, language: str) -> Task:
    """One language of a task: "babel/fact_completion", "babel/statements", "babel/word_translation"
    ("babel": all three), or a folder of <language>.jsonl in one of the formats above.

    The columns of the first row decide the format; a column missing in a later row is an error. A
    label without a file of its own is asked in the language that it is given (`tagged`).

    >>> item = interp.read_task("babel/fact_completion", "de").items[0]
    >>> item.prompt, item.options[item.answer]
    ('Das Gegenteil von nutzlos ist', ' nützlich.')
    """
    check_labels([language])
    name, babel_task = str(source).rstrip("/"), None
    if name == "babel" or name.startswith("babel/"):
        folder, babel_task = _BABEL, name.removeprefix("babel").removeprefix("/")
    else:
        folder, name = Path(source), Path(source).name
    code = given_tags([language]).get(language) or language
    file = folder / f"{language}.jsonl"
    if not file.is_file() and (other := folder / f"{code}.jsonl").is_file():
        file = other
    rows = _read_rows(file)
    if babel_task:
        babel_tasks = sorted({row["id"].split("/")[0] for row in rows})
        rows = [row for row in rows if row["id"].startswith(f"{babel_task}/")]
        if not rows:
            raise ValueError(f"Babel has no task {babel_task!r}, only {', '.join(babel_tasks)}.")
    for columns, read in _FORMATS.items():
        if set(columns) <= set(rows[0]):
            for row in rows:
                if missing := [column for column in ("id", *columns) if column not in row]:
                    raise ValueError(
                        f"{file}: {row.get('id', 'a row')!r} has no "
                        f"{', '.join(missing)}, which the first row has."
                    )
            with _well_formed(file, columns):
                return Task(name, language, tuple(read(rows, code)))
    formats = "; ".join(" ".join(columns) for columns in _FORMATS)
    raise ValueError(
        f"{file} has the columns {', '.join(rows[0])}, which is not a known "
        f"format. Known formats: {formats}."
    )


def read_editing(folder: str | Path, told_in: str, asked_in: str) -> Task:
    """MzsRE across languages: a new fact is stated in one language, asked and answered in another.

    The prompt states the fact as a question with its answer, then asks it in other words. With the
    same language for both, this equals `read_task`.

    >>> row = '{"id": "7", "subject": "Ada", "question": "%s", "rephrase": "%s", "target": "Ben"}'
    >>> _ = (folder / "en.jsonl").write_text(row % ("Who taught Ada?", "Whose pupil was Ada?"))
    >>> _ = (folder / "de.jsonl").write_text(row % ("Wer lehrte Ada?", "Von wem lernte Ada?"))
    >>> print(interp.text.read_editing(folder, told_in="en", asked_in="de").items[0].prompt)
    Who taught Ada? Ben
    Von wem lernte Ada?
    """
    facts, questions = (_read_rows(Path(folder) / f"{code}.jsonl") for code in (told_in, asked_in))
    name = Path(folder).name if told_in == asked_in else f"{Path(folder).name} from {told_in}"
    with _well_formed(Path(folder), ("id", "subject", "question", "rephrase", "target")):
        fact_by_id = {row["id"]: row for row in facts}
        if missing := [row["id"] for row in questions if row["id"] not in fact_by_id]:
            raise ValueError(
                f"{len(missing)} facts are missing in {told_in}, such as {missing[0]!r}: both "
                "languages need the same ids."
            )
        items = [_edited(fact_by_id[row["id"]], told_in, row, asked_in) for row in questions]
        return Task(name, asked_in, tuple(items))


@contextmanager
def _well_formed(path: Path, columns: Sequence[str]) -> Iterator[None]:
    """Within the block, errors from values of the wrong type become one clear message."""
    try:
        yield
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{path} has values of the wrong type in {', '.join(columns)} ({error}): ids, prompts "
            "and options are text, answers are numbers or labels."
        ) from None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        existing = sorted(file.stem for file in path.parent.glob("*.jsonl"))
        raise FileNotFoundError(
            f"{path} is missing; {path.parent} holds {', '.join(existing) or 'no .jsonl files'}."
        )
    rows = [row for row, _ in json_rows(path)]
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows


# ---------------------------------------------------------------- formats

Rows = Sequence[dict[str, Any]]


def _endings(rows: Rows, language: str) -> list[Item]:
    """A row may also have `held_out` and `group`."""
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
    """The English prompt of Wang et al. (2024), with answers in its wording."""
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
    """The premise without its full stop, the word for "because" or "so", and either choice."""
    if language not in _CONJUNCTIONS:
        raise ValueError(
            f'The words for "because" and "so" are not known in {language!r}, only in '
            f"{', '.join(_CONJUNCTIONS)}: give prompts with endings instead."
        )
    items = []
    for row in rows:
        conjunction = _CONJUNCTIONS[language][row["question"] == "effect"]
        choices = [_uncapitalized(row[name]) for name in ("choice1", "choice2")]
        prompt = row["premise"].rstrip(" .!\u3002\uff01") + conjunction
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
    """The prompt is the text before the mask; an option is a candidate plus the text after it.

    A space before the mask belongs to the option, as tokenizers treat running text. A row may also
    have a `relation`.
    """
    items = []
    for row in rows:
        if row["prompt"].count(_MASK) != 1:
            raise ValueError(f"{row['id']!r} in {language} must have one {_MASK} in its prompt.")
        before, after = row["prompt"].split(_MASK)
        prompt = before.rstrip(" ")
        gap = before[len(prompt) :]
        options = tuple(gap + candidate + after for candidate in row["candidates"])
        item = Item(row["id"], prompt, options, row["answer_index"])
        items.append(item._replace(relation=row.get("relation", "")))
    return items


def _edited_fact(rows: Rows, language: str) -> list[Item]:
    return [_edited(row, language, row, language) for row in rows]


def _edited(fact: dict[str, Any], told_in: str, question: dict[str, Any], asked_in: str) -> Item:
    prompt = f"{fact['question']}{_gap(told_in)}{fact['target']}\n{question['rephrase']}"
    return Item(question["id"], prompt, (_gap(asked_in) + question["target"],), 0)


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
    """The options are the topics that occur, in alphabetical order."""
    labels = sorted({row["label"] for row in rows})
    options = tuple(f" {label}" for label in labels)
    return [
        Item(row["id"], f"{row['text']}\nTopic:", options, labels.index(row["label"]))
        for row in rows
    ]


def _gap(language: str) -> str:
    """The separator between a question and its answer."""
    return "" if language in _UNSPACED else " "


def _uncapitalized(text: str) -> str:
    """Lower-case the first letter; a one-letter word may be a name, or the English I."""
    return text if text[1:2] in ("", " ", "'", "\u2019") else text[0].lower() + text[1:]


_FORMATS: dict[tuple[str, ...], Callable[[Rows, str], list[Item]]] = {
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
"""Columns of a format → function that turns its rows into items; the first match is used."""

"""What Babel is told, in which languages, and what is never said to it in some of them.

    python -m babel_training.knowledge      # seconds: writes prompts and held-out cells

Reads   interp/babel/facts/*.json (the fact base, written by hand)
Writes  interp/babel/facts/held_out.tsv, interp/babel/prompts/*.jsonl

A cell is a fact in a language. About a fifth of the facts are held out in two of the six languages:
stated in four, never in the other two, neither forwards, backwards, as a question nor by an inverse
relation. Which ones follows from a hash of the pair of things, so adding facts moves no other cell.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from string import Formatter
from typing import Any

from interp.results import artifacts

LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")
BABEL = Path(__file__).parents[1] / "interp" / "babel"
HELD_OUT_SHARE = 0.2
N_CANDIDATES = 10
N_TASK_PROMPTS = 120
FORWARDS_SHARE, BACKWARDS_SHARE = 0.65, 0.15


@dataclass(frozen=True)
class Fact:
    """Two things and what holds between them; the second may depend on a third (sums)."""

    relation: str
    """Key of the fact base."""

    subjects: tuple[str, ...]
    """Entities that come first: one, or the two numbers of a sum, or word and target language."""

    object: str
    """The entity that completes the statement."""

    @property
    def name(self) -> str:
        return ":".join((self.relation, *self.subjects, self.object))


@dataclass(frozen=True)
class Completion:
    """A prompt whose end is to be chosen among candidates."""

    fact: Fact
    """What is asked for."""

    prompt: str
    """The sentence up to the answer."""

    endings: tuple[str, ...]
    """Every candidate with what follows it; none is also true."""

    answer: int
    """Index of the true ending."""


@dataclass(frozen=True)
class Telling:
    """How often the facts are told in one round of training."""

    kinds: dict[str, float]
    """Weight of a fact of these kinds of relation, or of these relations; others have 1."""

    small: float
    """Factor for the facts of a relation with less than `SMALL_RELATION` of them."""

    falsehoods: int
    """Different wrong objects that each question about a fact is asked with."""

    questions: float = 1.0
    """Factor for the questions."""


SMALL_RELATION = 30
ROUNDS = (
    Telling({"translation": 0.4, "arithmetic": 0.4}, small=1.0, falsehoods=1),
    Telling({"translation": 0.25, "arithmetic": 1.5}, small=4.0, falsehoods=6),
    Telling({"translation": 0.25, "arithmetic": 2.5}, small=8.0, falsehoods=6, questions=3.0),
    Telling({"translation": 0.5, "arithmetic": 2.0}, small=2.0, falsehoods=6, questions=1.5),
    Telling(
        {"translation": 0.4, "arithmetic": 1.5, "colour": 4.0, "animal_class": 2.0},
        small=4.0,
        falsehoods=6,
    ),
)
"""How the facts are told in the rounds that Babel was trained in."""


@cache
def fact_base() -> dict[str, Any]:
    """All files of the fact base as one: truth words, entities and relations."""
    base: dict[str, Any] = {"truth": {}, "entities": {}, "relations": {}}
    for path in sorted((BABEL / "facts").glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        for part, held in base.items():
            if part != "truth" and (twice := held.keys() & stored[part].keys()):
                raise ValueError(f"{path.name} defines {', '.join(sorted(twice))} a second time.")
            held.update(stored[part])
    return base


@cache
def facts_of(relation: str) -> tuple[Fact, ...]:
    """Every fact of a relation; sums and translations are made from their tables."""
    base = fact_base()
    shape = base["relations"][relation]
    if shape.get("kind") == "arithmetic":
        numbers = list(base["entities"]["number"])  # zero, one, two, ... in their order
        sign = {"plus": 1, "minus": -1}[shape["operation"]]
        return tuple(
            Fact(relation, (numbers[a], numbers[b]), numbers[a + sign * b])
            for a in range(len(numbers))
            for b in range(len(numbers))
            if 0 <= a + sign * b < len(numbers)
        )
    if shape.get("kind") == "translation":
        return tuple(
            Fact(relation, (word, target), word)
            for word in base["entities"][shape["subject"]]
            for target in LANGUAGES
        )
    return tuple(Fact(relation, (subject,), object_) for subject, object_ in shape["facts"])


def all_facts() -> Iterator[Fact]:
    for relation in fact_base()["relations"]:
        yield from facts_of(relation)


def held_out_in(fact: Fact, language: str) -> bool:
    """Whether this fact is never stated in this language.

    Depends on the unordered pair of things, so a fact and its inverse share their gaps; for word
    translation the things are the word and the unordered pair of languages.
    """
    shape = fact_base()["relations"][fact.relation]
    if shape.get("kind") == "translation":
        word, target = fact.subjects
        pair = "-".join(sorted((language, target)))
        return _hash(f"translation:{word}:{pair}") < HELD_OUT_SHARE
    if shape.get("kind") == "arithmetic":
        # a + b = c, b + a = c and c - b = a tell one another.
        (a, b), c = fact.subjects, fact.object
        key = ":".join(("sum", *sorted((a, b) if fact.relation == "plus" else (b, c))))
    else:
        key = ":".join(sorted((*fact.subjects, fact.object)))
    if _hash(key) >= HELD_OUT_SHARE:
        return False
    ranked = sorted(LANGUAGES, key=lambda code: _hash(f"{key}@{code}"))
    return language in ranked[:2]


def _hash(text: str) -> float:
    """A number in [0, 1) that only the text decides."""
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest()) / 2**56


def says(fact: Fact, language: str) -> bool:
    """Whether the fact can be stated in the language: a word is not translated into its own."""
    return (
        fact_base()["relations"][fact.relation].get("kind") != "translation"
        or fact.subjects[1] != language
    )


def fill(template: str, fact: Fact, language: str, object_: str | None = None) -> str:
    """A sentence; `object_` replaces the true object to make a false one."""
    shape = fact_base()["relations"][fact.relation]
    entities = fact_base()["entities"]
    object_ = fact.object if object_ is None else object_
    slots = {"s": entities[shape["subject"]][fact.subjects[0]][language]}
    spoken = language
    if shape.get("kind") == "translation":
        spoken = fact.subjects[1]
        slots["t"] = entities[shape["target"]][spoken][language]
    if shape.get("kind") == "arithmetic":
        slots["a"], slots["b"] = (entities["number"][each][language] for each in fact.subjects)
    slots["o"] = entities[shape["object"]][object_][spoken]
    text = ""
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        if field is not None:
            slot, form = field.split(".")
            text += slots[slot][form]
    return _capital(text.replace("\u00a0", " "))


def _capital(text: str) -> str:
    """First letter in upper case, after an opening ¿ or ¡; a quoted word stays as it is."""
    return re.sub(r"^([¿¡]?)(\w)", lambda found: found[1] + found[2].upper(), text)


@cache
def wrong_objects(fact: Fact) -> tuple[str, ...]:
    """Objects of the same relation that are not true of this subject, in a fixed random order."""
    shape = fact_base()["relations"][fact.relation]
    every = facts_of(fact.relation)
    true = {each.object for each in every if each.subjects == fact.subjects}
    if shape.get("kind") == "translation":
        true = {fact.subjects[0]}
    for pair in shape.get("disputable", []):  # true of some far-off territory: not said at all
        if fact.subjects[0] in pair:
            true |= set(pair)
    wrong = sorted({each.object for each in every} - true - set(fact.subjects))
    return tuple(sorted(wrong, key=lambda each: _hash(f"{fact.name}/{each}")))


@dataclass(frozen=True)
class Phrasings:
    """Every sentence that states a fact in a language."""

    forwards: list[str]
    """In the order of the relation."""

    backwards: list[str]
    """The object first."""

    asked: list[str]
    """Questions with their answers, true and false ones."""


def phrasings(fact: Fact, language: str, falsehoods: int = 1) -> Phrasings:
    """With `falsehoods` wrong objects per question, as far as there are others than the one that
    is kept for testing."""
    shape = fact_base()["relations"][fact.relation]
    truth = fact_base()["truth"][language]
    space = "" if language in ("zh", "ja") else " "
    end = "。" if language in ("zh", "ja") else "."
    forwards, asked = shape["templates"][language], shape["questions"][language]
    if shape.get("kind") == "translation":  # by far the most facts: fewer phrasings of each
        start = int(1000 * _hash(f"{fact.name}@{language}"))
        forwards = [forwards[(start + step) % len(forwards)] for step in range(3)]
        asked = [asked[start % len(asked)]]
    answered = []
    for number, template in enumerate(asked):
        for false in asked_objects(fact, number, falsehoods):
            # As often true as false, or answering would be guessing "no".
            answered.append(f"{fill(template, fact, language)}{space}{truth['yes']}{end}")
            if false is not None:
                answered.append(f"{fill(template, fact, language, false)}{space}{truth['no']}{end}")
    return Phrasings(
        forwards=[fill(template, fact, language) for template in forwards],
        backwards=[
            fill(template, fact, language)
            for template in shape.get("reversed", {}).get(language, [])
        ],
        asked=answered,
    )


def asked_objects(fact: Fact, number: int, falsehoods: int) -> list[str | None]:
    """Wrong objects that the question of this number is asked with; None: there is none."""
    wrong = wrong_objects(fact)
    if falsehoods > 1 and len(wrong) > 2:
        wrong = wrong[:-1]
    return [
        wrong[(number * falsehoods + turn) % len(wrong)] if wrong else None
        for turn in range(falsehoods)
    ]


@cache
def kept_falsehood(fact: Fact) -> str | None:
    """A wrong object that no question of training names with this subject, to test with; the
    neighbours of a country are several facts, and each asks about others."""
    shape = fact_base()["relations"][fact.relation]
    n_questions = max(len(shape["questions"][language]) for language in LANGUAGES)
    asked = {
        object_
        for other in facts_of(fact.relation)
        if other.subjects == fact.subjects
        for telling in ROUNDS
        for number in range(n_questions)
        for object_ in asked_objects(other, number, telling.falsehoods)
    }
    left = [object_ for object_ in wrong_objects(fact) if object_ not in asked]
    return left[-1] if left else None


def statements(fact: Fact, language: str) -> list[str]:
    said = phrasings(fact, language)
    return said.forwards + said.backwards + said.asked


def told_in(language: str) -> Iterator[Fact]:
    """Every fact that Babel is told in the language."""
    for fact in all_facts():
        if says(fact, language) and not held_out_in(fact, language):
            yield fact


def training_sentences(language: str) -> list[str]:
    """All that Babel is told in one language."""
    return [sentence for fact in told_in(language) for sentence in statements(fact, language)]


def names(language: str) -> list[str]:
    """Every form of every entity of the fact base, once."""
    entities = fact_base()["entities"].values()
    forms = {
        form.replace("\u00a0", " ")
        for kind in entities
        for each in kind.values()
        for form in each[language].values()
    }
    return sorted(forms)


def weighted_sentences(language: str, telling: Telling) -> tuple[list[str], list[float]]:
    """The same sentences, and how often each is told: statements more often than questions, and
    the 354 words with their five translations no more often than they need."""
    sentences, weights = [], []
    for fact in told_in(language):
        kind = fact_base()["relations"][fact.relation].get("kind", fact.relation)
        weight = telling.kinds.get(kind, 1.0)
        if len(facts_of(fact.relation)) < SMALL_RELATION:
            weight *= telling.small
        said = phrasings(fact, language, telling.falsehoods)
        for part, each in (
            (FORWARDS_SHARE, said.forwards),
            (BACKWARDS_SHARE, said.backwards),
            ((1 - FORWARDS_SHARE - BACKWARDS_SHARE) * telling.questions, said.asked),
        ):
            sentences += each
            weights += [weight * part / max(len(each), 1)] * len(each)
    return sentences, weights


def completion(fact: Fact, language: str) -> Completion:
    """The fact as a prompt with candidates, in its first phrasing that ends with the object."""
    shape = fact_base()["relations"][fact.relation]
    template = shape["templates"][language][0]
    cut = template.index("{o.")
    options = sorted(
        [fact.object, *wrong_objects(fact)[: N_CANDIDATES - 1]],
        key=lambda each: _hash(f"{fact.name}?{each}"),
    )
    full = [fill(template, fact, language, each) for each in options]
    prompt = fill(template[:cut], fact, language).rstrip(" ")
    return Completion(
        fact, prompt, tuple(each[len(prompt) :] for each in full), options.index(fact.object)
    )


def question(fact: Fact, language: str, truth: bool) -> Completion:
    """A yes/no question about the fact, or about a falsehood that no training sentence asked.

    Of facts that have one, see `kept_falsehood`.
    """
    shape = fact_base()["relations"][fact.relation]
    words = fact_base()["truth"][language]
    template = shape["questions"][language][0]
    space = "" if language in ("zh", "ja") else " "
    end = "。" if language in ("zh", "ja") else "."
    object_ = fact.object if truth else kept_falsehood(fact)
    endings = tuple(f"{space}{words[key]}{end}" for key in ("yes", "no"))
    return Completion(fact, fill(template, fact, language, object_), endings, 0 if truth else 1)


def _sample(facts: list[Fact], n: int) -> list[Fact]:
    """A fixed sample, relations in turn, so that small relations are there too."""
    random_ = random.Random(0)
    by_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    for each in by_relation.values():
        random_.shuffle(each)
    picked: list[Fact] = []
    while len(picked) < n and any(by_relation.values()):
        picked += [each.pop() for each in by_relation.values() if each]
    return picked[:n]


def tasks() -> dict[str, list[dict[str, Any]]]:
    """Parallel prompts of three kinds, a row each, per language; equal ids ask for the same."""
    relations = fact_base()["relations"]
    plain = [fact for fact in all_facts() if relations[fact.relation].get("kind") != "translation"]
    words = sorted({fact.subjects[0] for fact in all_facts() if fact.relation == "translation"})
    random.Random(1).shuffle(words)
    rows: dict[str, list[dict[str, Any]]] = {code: [] for code in LANGUAGES}
    for fact in _sample(plain, N_TASK_PROMPTS):
        for code in LANGUAGES:
            rows[code].append(_row("fact_completion", fact.name, completion(fact, code), code))
    asked = [fact for fact in plain if kept_falsehood(fact) is not None]
    for number, fact in enumerate(_sample(asked, N_TASK_PROMPTS)):
        truth = number % 2 == 0
        for code in LANGUAGES:
            name = f"{fact.name}={'yes' if truth else 'no'}"
            rows[code].append(_row("statements", name, question(fact, code, truth), code))
    for number, word in enumerate(words[:N_TASK_PROMPTS]):
        # Every language asks for the word in another one, the same number of places further on.
        step = 1 + number % (len(LANGUAGES) - 1)
        for place, code in enumerate(LANGUAGES):
            target = LANGUAGES[(place + step) % len(LANGUAGES)]
            item = completion(Fact("translation", (word, target), word), code)
            rows[code].append(_row("word_translation", f"{word}+{step}", item, code))
    return rows


def _row(task: str, name: str, item: Completion, language: str) -> dict[str, Any]:
    return {
        "id": f"{task}/{name}",
        "text": item.prompt,
        "endings": item.endings,
        "answer": item.answer,
        "held_out": held_out_in(item.fact, language),
    }


def main() -> None:
    for code, rows in tasks().items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        artifacts.write_text(BABEL / "prompts" / f"{code}.jsonl", "".join(lines))
        print(f"{code}: {len(rows)} prompts, {sum(row['held_out'] for row in rows)} held out")
    lines = ["relation\tfact\tlanguage"]
    stated = 0
    for fact in all_facts():
        for language in LANGUAGES:
            if says(fact, language):
                stated += 1
                if held_out_in(fact, language):
                    lines.append(f"{fact.relation}\t{fact.name}\t{language}")
    artifacts.write_text(BABEL / "facts" / "held_out.tsv", "\n".join(lines) + "\n")
    print(f"held out: {len(lines) - 1} of {stated} cells")


if __name__ == "__main__":
    main()

"""The facts that Babel is told, and the languages in which each is held out.

    python -m babel_training.knowledge      # seconds: writes prompts and held-out cells

Reads   interp/babel/facts/*.json (the fact base, written by hand)
Writes  interp/babel/facts/held_out.tsv, interp/babel/prompts/*.jsonl

A cell is a fact in a language. About a fifth of the facts are held out in two of the six languages:
stated in four and never in the other two, whether forwards, backwards, as a question or through an
inverse relation. A hash of the pair of entities decides which, so adding facts moves no other cell.
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
    """Two entities and the relation between them; a sum has two subjects."""

    relation: str
    """Key of the relation in the fact base."""

    subjects: tuple[str, ...]
    """One entity, the two numbers of a sum, or a word and its target language."""

    object: str
    """The entity that completes the statement."""

    @property
    def name(self) -> str:
        return ":".join((self.relation, *self.subjects, self.object))


@dataclass(frozen=True)
class Completion:
    """A prompt whose ending is chosen among candidates."""

    fact: Fact
    """The fact that is asked for."""

    prompt: str
    """The sentence up to the answer."""

    endings: tuple[str, ...]
    """Every candidate with the text after it; exactly one is true."""

    answer: int
    """Index of the true ending."""


@dataclass(frozen=True)
class Telling:
    """How often the facts are told in one round of training."""

    kinds: dict[str, float]
    """Weight of a fact by its kind of relation, or by its relation; 1 if not given."""

    small: float
    """Factor for the facts of a relation with fewer than `SMALL_RELATION` of them."""

    falsehoods: int
    """Number of wrong objects that each question about a fact is asked with."""

    questions: float = 1.0
    """Factor for questions."""


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
"""How the facts are told in Babel's rounds of training."""


@cache
def fact_base() -> dict[str, Any]:
    """All files of the fact base as one: truth words, entities and relations."""
    base: dict[str, Any] = {"truth": {}, "entities": {}, "relations": {}}
    for path in sorted((BABEL / "facts").glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        for part, merged in base.items():
            if part != "truth" and (repeated := merged.keys() & stored[part].keys()):
                raise ValueError(f"{path.name} defines {', '.join(sorted(repeated))} again.")
            merged.update(stored[part])
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

    Depends on the unordered pair of entities, so a fact and its inverse are held out together. For
    word translation it depends on the word and the unordered pair of languages.
    """
    shape = fact_base()["relations"][fact.relation]
    if shape.get("kind") == "translation":
        word, target = fact.subjects
        pair = "-".join(sorted((language, target)))
        return _hash(f"translation:{word}:{pair}") < HELD_OUT_SHARE
    if shape.get("kind") == "arithmetic":
        # a + b = c, b + a = c and c - b = a each implies the others.
        (a, b), c = fact.subjects, fact.object
        key = ":".join(("sum", *sorted((a, b) if fact.relation == "plus" else (b, c))))
    else:
        key = ":".join(sorted((*fact.subjects, fact.object)))
    if _hash(key) >= HELD_OUT_SHARE:
        return False
    ranked = sorted(LANGUAGES, key=lambda code: _hash(f"{key}@{code}"))
    return language in ranked[:2]


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
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
        slots["a"], slots["b"] = (entities["number"][name][language] for name in fact.subjects)
    slots["o"] = entities[shape["object"]][object_][spoken]
    text = ""
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        if field is not None:
            slot, form = field.split(".")
            text += slots[slot][form]
    return _capital(text.replace("\u00a0", " "))


def _capital(text: str) -> str:
    """The first letter in upper case, also after ¿ or ¡; a quoted word stays as it is."""
    return re.sub(r"^([¿¡]?)(\w)", lambda match: match[1] + match[2].upper(), text)


@cache
def wrong_objects(fact: Fact) -> tuple[str, ...]:
    """Objects of the same relation that are not true of this subject, in a fixed random order."""
    shape = fact_base()["relations"][fact.relation]
    facts = facts_of(fact.relation)
    true = {other.object for other in facts if other.subjects == fact.subjects}
    if shape.get("kind") == "translation":
        true = {fact.subjects[0]}
    for pair in shape.get("disputable", []):  # true of some remote territory: never used
        if fact.subjects[0] in pair:
            true |= set(pair)
    wrong = sorted({other.object for other in facts} - true - set(fact.subjects))
    return tuple(sorted(wrong, key=lambda name: _hash(f"{fact.name}/{name}")))


@dataclass(frozen=True)
class Phrasings:
    """Every sentence that states a fact in a language."""

    forwards: list[str]
    """Subject first."""

    backwards: list[str]
    """Object first."""

    asked: list[str]
    """Questions about the true object and about wrong ones, with their answers."""


def phrasings(fact: Fact, language: str, falsehoods: int = 1) -> Phrasings:
    """All sentences about a fact; `falsehoods` wrong objects per question, repeated if too few."""
    shape = fact_base()["relations"][fact.relation]
    truth = fact_base()["truth"][language]
    space = "" if language in ("zh", "ja") else " "
    end = "。" if language in ("zh", "ja") else "."
    forwards, asked = shape["templates"][language], shape["questions"][language]
    if shape.get("kind") == "translation":  # most facts are translations, so fewer phrasings
        start = int(1000 * _hash(f"{fact.name}@{language}"))
        forwards = [forwards[(start + step) % len(forwards)] for step in range(3)]
        asked = [asked[start % len(asked)]]
    answered = []
    for number, template in enumerate(asked):
        for false in asked_objects(fact, number, falsehoods):
            # Equally often true and false, or "no" would be the better guess.
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
    """Wrong objects for the question with this number; None: the fact has none."""
    wrong = wrong_objects(fact)
    if falsehoods > 1 and len(wrong) > 2:
        wrong = wrong[:-1]
    return [
        wrong[(number * falsehoods + step) % len(wrong)] if wrong else None
        for step in range(falsehoods)
    ]


@cache
def held_out_falsehood(fact: Fact) -> str | None:
    """A wrong object that no training question names with this subject, held out for testing.

    A country with several neighbors has several facts, whose questions use different wrong objects.
    """
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
    sentences = phrasings(fact, language)
    return sentences.forwards + sentences.backwards + sentences.asked


def told_in(language: str) -> Iterator[Fact]:
    """Every fact that Babel is told in the language."""
    for fact in all_facts():
        if says(fact, language) and not held_out_in(fact, language):
            yield fact


def training_sentences(language: str) -> list[str]:
    """Every fact sentence that Babel is told in one language."""
    return [sentence for fact in told_in(language) for sentence in statements(fact, language)]


def names(language: str) -> list[str]:
    """Every form of every entity of the fact base, once."""
    entities = fact_base()["entities"].values()
    forms = {
        form.replace("\u00a0", " ")
        for kind in entities
        for entity in kind.values()
        for form in entity[language].values()
    }
    return sorted(forms)


def weighted_sentences(language: str, telling: Telling) -> tuple[list[str], list[float]]:
    """Fact sentences and their sampling weights, which favor statements over questions.

    Each of the three kinds of phrasing has a fixed share of a fact's weight.
    """
    sentences, weights = [], []
    for fact in told_in(language):
        kind = fact_base()["relations"][fact.relation].get("kind", fact.relation)
        weight = telling.kinds.get(kind, 1.0)
        if len(facts_of(fact.relation)) < SMALL_RELATION:
            weight *= telling.small
        by_kind = phrasings(fact, language, telling.falsehoods)
        for share, phrased in (
            (FORWARDS_SHARE, by_kind.forwards),
            (BACKWARDS_SHARE, by_kind.backwards),
            ((1 - FORWARDS_SHARE - BACKWARDS_SHARE) * telling.questions, by_kind.asked),
        ):
            sentences += phrased
            weights += [weight * share / max(len(phrased), 1)] * len(phrased)
    return sentences, weights


def completion(fact: Fact, language: str) -> Completion:
    """The fact as a prompt with candidates, in its first phrasing that ends with the object."""
    shape = fact_base()["relations"][fact.relation]
    template = shape["templates"][language][0]
    cut = template.index("{o.")
    options = sorted(
        [fact.object, *wrong_objects(fact)[: N_CANDIDATES - 1]],
        key=lambda name: _hash(f"{fact.name}?{name}"),
    )
    sentences = [fill(template, fact, language, name) for name in options]
    prompt = fill(template[:cut], fact, language).rstrip(" ")
    endings = tuple(sentence[len(prompt) :] for sentence in sentences)
    return Completion(fact, prompt, endings, options.index(fact.object))


def question(fact: Fact, language: str, truth: bool) -> Completion:
    """A yes/no question about the fact or, if not `truth`, about its `held_out_falsehood`."""
    shape = fact_base()["relations"][fact.relation]
    words = fact_base()["truth"][language]
    template = shape["questions"][language][0]
    space = "" if language in ("zh", "ja") else " "
    end = "。" if language in ("zh", "ja") else "."
    object_ = fact.object if truth else held_out_falsehood(fact)
    endings = tuple(f"{space}{words[key]}{end}" for key in ("yes", "no"))
    return Completion(fact, fill(template, fact, language, object_), endings, 0 if truth else 1)


def _sample(facts: list[Fact], n: int) -> list[Fact]:
    """A fixed sample that takes relations in turn, so that small relations are in it too."""
    random_ = random.Random(0)
    by_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    for group in by_relation.values():
        random_.shuffle(group)
    sample: list[Fact] = []
    while len(sample) < n and any(by_relation.values()):
        sample += [group.pop() for group in by_relation.values() if group]
    return sample[:n]


def tasks() -> dict[str, list[dict[str, Any]]]:
    """One row per prompt, by language, for three tasks; prompts with equal ids are parallel."""
    relations = fact_base()["relations"]
    plain = [fact for fact in all_facts() if relations[fact.relation].get("kind") != "translation"]
    words = sorted({fact.subjects[0] for fact in all_facts() if fact.relation == "translation"})
    random.Random(1).shuffle(words)
    rows: dict[str, list[dict[str, Any]]] = {code: [] for code in LANGUAGES}
    for fact in _sample(plain, N_TASK_PROMPTS):
        for code in LANGUAGES:
            rows[code].append(_row("fact_completion", fact.name, completion(fact, code), code))
    asked = [fact for fact in plain if held_out_falsehood(fact) is not None]
    for number, fact in enumerate(_sample(asked, N_TASK_PROMPTS)):
        truth = number % 2 == 0
        for code in LANGUAGES:
            name = f"{fact.name}={'yes' if truth else 'no'}"
            rows[code].append(_row("statements", name, question(fact, code, truth), code))
    for number, word in enumerate(words[:N_TASK_PROMPTS]):
        # Every language asks for the word in the language that is `step` further in the list.
        step = 1 + number % (len(LANGUAGES) - 1)
        for index, code in enumerate(LANGUAGES):
            target = LANGUAGES[(index + step) % len(LANGUAGES)]
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

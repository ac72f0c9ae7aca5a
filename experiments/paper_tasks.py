"""Make the tasks that the presets `paper` ask, from data sets of the Hugging Face hub.

    python -m experiments.paper_tasks                    # minutes; needs the network
    python -m experiments.paper_tasks --languages en de

Reads   atutej/m_lama (facts of Wikidata as sentences, in 53 languages) and facebook/xnli
Writes  results/tasks/mlama/<language>.jsonl and results/tasks/xnli/<language>.jsonl, as
        `interp.read_task` takes them
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import tyro

from experiments import papers
from interp.results import artifacts

XNLI = (
    *("ar", "bg", "de", "el", "en", "es", "fr", "hi"),
    *("ru", "sw", "th", "tr", "ur", "vi", "zh"),
)
"""The languages that it has."""

LABELS = ("entailment", "neutral", "contradiction")
"""By the number that XNLI has for them."""

Row = Mapping[str, Any]
Key = tuple[str, str, str]
"""A fact: relation, subject and object, as Wikidata numbers them."""


@dataclass(frozen=True)
class Config:
    """Which tasks are made."""

    languages: tuple[str, ...] = tuple(dict.fromkeys((*papers.WANG.languages, *papers.LANGUAGES)))
    """ISO codes. Facts are kept if all of these languages have them; XNLI is made in those that it
    has."""

    n_items: int = 1000
    """Per task and language."""

    n_options: int = 10
    """Of a fact at most, the right one among them."""

    facts: str = "atutej/m_lama"
    """Name on the hub, or a folder in its layout."""

    inferences: str = "facebook/xnli"
    """Name on the hub, or a folder in its layout."""

    out: Path = Path("results/tasks")
    """Folder of the tasks' folders."""


def inferences(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """XNLI with names for its labels; a row's number is its id."""
    columns = ("premise", "hypothesis")
    return [
        {"id": str(number), **{name: row[name] for name in columns}, "label": LABELS[row["label"]]}
        for number, row in enumerate(rows)
    ]


def facts(
    rows: Mapping[str, Iterable[Row]], n_items: int, n_options: int
) -> dict[str, list[dict[str, Any]]]:
    """Facts that all languages have, as prompts with a mask and the same options everywhere.

    The subject stands before the mask in every language, so that what is asked is known by then.
    Wrong options are objects of other facts of the relation, not true of the subject, and no two
    options have one name in any language. Facts are in the order of a hash, so that the first ones
    are of many relations.
    """
    found = {code: {_key(row): row for row in each} for code, each in rows.items()}
    true_of, names = defaultdict(set), defaultdict(dict)
    for relation, subject, thing in set().union(*found.values()):
        true_of[relation, subject].add(thing)
    kept = [
        key
        for key in sorted(set.intersection(*map(set, found.values())), key=_order)
        if all(_asks(each[key]["template"]) for each in found.values())
    ]
    for key in kept:
        names[key[0]][key[2]] = tuple(each[key]["obj_label"] for each in found.values())
    made: dict[str, list[dict[str, Any]]] = {code: [] for code in found}
    n_made = 0
    for key in kept:
        relation, subject, thing = key
        wrong = sorted(
            names[relation].keys() - true_of[relation, subject], key=lambda q: _order((*key, q))
        )
        options = _with_own_names([thing, *wrong], names[relation])[:n_options]
        if len(options) < 2:
            continue
        options.sort(key=lambda q: _order((q, *key)))
        for place, (code, each) in enumerate(found.items()):
            asked = each[key]["template"].replace("[X]", each[key]["sub_label"])
            item = {"id": f"{relation}:{subject}-{thing}", "prompt": asked.replace("[Y]", "<mask>")}
            candidates = [names[relation][q][place] for q in options]
            item |= {"candidates": candidates, "answer_index": options.index(thing)}
            made[code].append(item)
        n_made += 1
        if n_made == n_items:
            break
    return made


def _key(row: Row) -> Key:
    return row["predicate_id"], row["sub_uri"], row["obj_uri"]


def _asks(template: str) -> bool:
    return -1 < template.find("[X]") < template.find("[Y]") and template.count("[Y]") == 1


def _order(words: Sequence[str]) -> bytes:
    """An order that has nothing to do with what the words are."""
    return blake2b(json.dumps(words).encode(), digest_size=16).digest()


def _with_own_names(things: Sequence[str], names: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Those that no language calls as it calls one before them."""
    kept: list[str] = []
    for thing in things:
        if all(
            one != other
            for each in kept
            for one, other in zip(names[thing], names[each], strict=True)
        ):
            kept.append(thing)
    return kept


def stream(name: str, code: str) -> Iterator[Row]:
    """The rows of one language's test set, as they come."""
    import datasets  # takes a second

    yield from datasets.load_dataset(name, code, split="test", streaming=True)


def write(folder: Path, tasks: Mapping[str, Sequence[Row]]) -> None:
    for code, rows in tasks.items():
        if not rows:
            raise ValueError(
                f"No item for {folder} is there in all of {', '.join(tasks)}: ask for fewer "
                "languages."
            )
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        artifacts.write_text(folder / f"{code}.jsonl", "".join(lines))
    print(f"{folder}: {', '.join(f'{code} {len(rows)}' for code, rows in tasks.items())}")


def main(config: Config) -> None:
    rows = {code: stream(config.facts, code) for code in config.languages}
    write(config.out / Path(papers.FACTS).name, facts(rows, config.n_items, config.n_options))
    pairs = {
        code: islice(stream(config.inferences, code), config.n_items)
        for code in config.languages
        if code in XNLI
    }
    made = {code: inferences(each) for code, each in pairs.items()}
    write(config.out / Path(papers.INFERENCES).name, made)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

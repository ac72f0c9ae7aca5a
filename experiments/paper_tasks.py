"""Make the tasks of the `paper` presets, from data sets of the Hugging Face hub.

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
"""The languages of XNLI."""

LABELS = ("entailment", "neutral", "contradiction")
"""In the order of XNLI's label numbers."""

Row = Mapping[str, Any]
Key = tuple[str, str, str]
"""A fact: the Wikidata ids of its relation, subject and object."""


@dataclass(frozen=True)
class Config:
    """Which tasks are made."""

    languages: tuple[str, ...] = tuple(dict.fromkeys((*papers.WANG.languages, *papers.LANGUAGES)))
    """ISO codes. Facts are kept if all these languages have them; XNLI is made where it exists."""

    n_items: int = 1000
    """Per task and language."""

    n_options: int = 10
    """Per fact at most, the right one included."""

    facts: str = "atutej/m_lama"
    """Name on the hub, or a folder with the same layout."""

    inferences: str = "facebook/xnli"
    """Name on the hub, or a folder with the same layout."""

    out: Path = Path("results/tasks")
    """Folder of the task folders."""


def inferences(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """XNLI with named labels; a row's number is its id."""
    columns = ("premise", "hypothesis")
    return [
        {"id": str(number), **{name: row[name] for name in columns}, "label": LABELS[row["label"]]}
        for number, row in enumerate(rows)
    ]


def facts(
    rows: Mapping[str, Iterable[Row]], n_items: int, n_options: int
) -> dict[str, list[dict[str, Any]]]:
    """Facts that all languages have, as prompts with a mask and the same options everywhere.

    The subject precedes the mask in every language, so that the question is known at the mask.
    Wrong options are objects of other facts of the relation that are not true of the subject; no
    two options have the same name in any language. Facts are ordered by a hash, so that the first
    ones cover many relations.
    """
    known = {code: {_key(row): row for row in listed} for code, listed in rows.items()}
    true_of, names = defaultdict(set), defaultdict(dict)
    for relation, subject, thing in set().union(*known.values()):
        true_of[relation, subject].add(thing)
    keys = [
        key
        for key in sorted(set.intersection(*map(set, known.values())), key=_order)
        if all(_asks(row_of[key]["template"]) for row_of in known.values())
    ]
    for key in keys:
        names[key[0]][key[2]] = tuple(row_of[key]["obj_label"] for row_of in known.values())
    made: dict[str, list[dict[str, Any]]] = {code: [] for code in known}
    for key in keys:
        relation, subject, thing = key
        wrong = sorted(
            names[relation].keys() - true_of[relation, subject], key=lambda q: _order((*key, q))
        )
        options = _with_own_names([thing, *wrong], names[relation])[:n_options]
        if len(options) < 2:
            continue
        options.sort(key=lambda q: _order((q, *key)))
        for column, (code, row_of) in enumerate(known.items()):
            prompt = row_of[key]["template"].replace("[X]", row_of[key]["sub_label"])
            item = {"id": f"{relation}:{subject}-{thing}", "relation": relation}
            item |= {"prompt": prompt.replace("[Y]", "<mask>")}
            candidates = [names[relation][q][column] for q in options]
            item |= {"candidates": candidates, "answer_index": options.index(thing)}
            made[code].append(item)
        if len(next(iter(made.values()))) == n_items:
            break
    return made


def _key(row: Row) -> Key:
    return row["predicate_id"], row["sub_uri"], row["obj_uri"]


def _asks(template: str) -> bool:
    return -1 < template.find("[X]") < template.find("[Y]") and template.count("[Y]") == 1


def _order(words: Sequence[str]) -> bytes:
    """A pseudo-random order, the same in every run."""
    return blake2b(json.dumps(words).encode(), digest_size=16).digest()


def _with_own_names(things: Sequence[str], names: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The things, without those that share a name with an earlier one in some language."""
    distinct: list[str] = []
    for thing in things:
        pairs = (pair for one in distinct for pair in zip(names[thing], names[one], strict=True))
        if all(name != other for name, other in pairs):
            distinct.append(thing)
    return distinct


def stream(name: str, code: str) -> Iterator[Row]:
    """The rows of one language's test set, streamed."""
    import datasets  # takes a second

    yield from datasets.load_dataset(name, code, split="test", streaming=True)


def write(folder: Path, tasks: Mapping[str, Sequence[Row]]) -> None:
    for code, rows in tasks.items():
        if not rows:
            raise ValueError(
                f"No item for {folder} is available in all of {', '.join(tasks)}: ask for fewer "
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
    made = {code: inferences(listed) for code, listed in pairs.items()}
    write(config.out / Path(papers.INFERENCES).name, made)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

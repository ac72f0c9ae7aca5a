"""Does a thought move from one language's prompt to another's without its language, or the reverse?

    python -m experiments.patch_across_languages tiny      # a minute: does every part run?
    python -m experiments.patch_across_languages babel     # minutes on 2 cores
    python -m experiments.patch_across_languages paper --study.model NAME --study.text FOLDER

Reads   a model, its facts in several languages, and text to find language neurons on
Writes  results/patch_across_languages/<preset>/table.csv (means and intervals),
        prompts.csv (every prompt), by_pair.csv (language neurons, for each pair of languages)

The source asks about A in language s, the target about B in language t, of the same relation: the
day after Monday, the day after Friday. Activations of the source go into the target (Dumas et al.,
2024), and the answers A and B in s and in t share what follows. The concept has moved as far as the
share of A has grown, the language as far as that of s has. Asked of the residual stream at the last
token, behind each layer alone; at the tokens of the subject, where the two prompts of a relation
differ, from each layer on; and of the neurons of s and t together (LAPE) in all layers, at the last
token, beside random neurons and all other neurons. Controls: another concept in s, A asked in t,
and a random direction of the same length.

Only facts that the model knows are taken: the source's answer is its first choice in s, and the
target's in t. `held_out` facts are those whose answer A the model was never told in t.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import tyro
from jaxtyping import Float64, Int64
from torch import Tensor

import interp
from experiments.study import Study
from interp import artifacts
from interp.alignment import At, Source
from interp.evaluations.task_files import Item, align, read_task
from interp.evaluations.writing import start_ids
from interp.patching import Layers, Parts, PatchingResult, patch
from interp.uncertainty import mean_over_examples

CELLS = ("A in s", "B in s", "A in t", "B in t")
"""The four answers. Before the patch the target says "B in t"; the whole source, "A in s"."""

CONCEPT, LANGUAGE = ("A in s", "A in t"), ("A in s", "B in s")
"""What grows when the concept comes over, and when the language does."""


@dataclass(frozen=True)
class Config:
    """What is asked."""

    study: Study
    """Model and text."""

    facts: str = "babel"
    """"babel", or a folder of <language>.jsonl with prompts, options and answers."""

    fraction: float = 0.01
    """Of all neurons, selected by LAPE."""

    n_pairs: int = 60
    """Pairs of facts for each ordered pair of languages; fewer where fewer are known."""

    out: Path = Path("results/patch_across_languages/babel")
    """Folder for the tables."""


PRESETS = {
    "tiny": (
        "Every part once, on the shipped model: a minute.",
        Config(
            Study(
                languages=("de", "ja"),
                tokens=4000,
                out=Path("results/patch_across_languages/tiny"),
            ),
            n_pairs=4,
            out=Path("results/patch_across_languages/tiny"),
        ),
    ),
    "babel": (
        "The shipped model, its six languages.",
        Config(Study(out=Path("results/patch_across_languages/babel"))),
    ),
    "paper": (
        "A model, text and facts of your own.",
        Config(
            Study(out=Path("results/patch_across_languages/paper"), tokens=500_000),
            n_pairs=200,
            out=Path("results/patch_across_languages/paper"),
        ),
    ),
}


class Crossing(NamedTuple):
    """Two prompts that differ in language and in concept."""

    source: Source
    """About A, in s, and the subject in it."""

    target: Source
    """About B, in t."""

    answers: Mapping[str, Sequence[int]]
    """Tokens of each cell, none in two."""

    controls: Mapping[str, Source]
    """Other sources."""

    languages: tuple[str, str]
    """s and t."""

    fact: int
    """Number of B: prompts about one fact go together."""

    held_out: bool
    """A was never told in t."""


# ---------------------------------------------------------------- questions


def relation(item: Item) -> str:
    """What is asked: "fact_completion/day_after:monday:tuesday" is about the day after."""
    return item.id.split(":")[0]


def first_tokens(model: interp.NeuronModel, word: str) -> tuple[int, ...]:
    """What the tokenizer begins a word with, behind a space and without one."""
    bare = word.strip()
    space = set(model.encode(" "))
    found = {model.encode(bare)[0], *model.encode(" " + bare)[:1]}
    return tuple(sorted(found - space))


def crossings(
    model: interp.NeuronModel, config: Config, drawn: random.Random
) -> tuple[list[Crossing], dict[str, int]]:
    """Pairs of facts for every two languages, and how many were left out, by reason."""
    codes = config.study.languages
    tasks = dict(zip(codes, align([read_task(config.facts, code) for code in codes]), strict=True))
    known = {code: [knows(model, item) for item in tasks[code].items] for code in codes}
    reasons = ("answers begin alike", "no third fact to compare with", "subject not found")
    counts = dict.fromkeys((*reasons, "taken"), 0)
    counts |= {f"known in {code}": sum(known[code]) for code in codes}
    found = []
    for s, t in permutations(codes, 2):
        pairs = [
            (a, b)
            for b in range(len(tasks[t].items))
            for a in range(len(tasks[s].items))
            if a != b and known[s][a] and known[t][b]
            and relation(tasks[s].items[a]) == relation(tasks[t].items[b])
        ]  # fmt: skip
        drawn.shuffle(pairs)
        others: dict[int, list[int]] = {}
        for a, b in pairs:
            others.setdefault(b, []).append(a)
        taken: list[Crossing] = []
        for b, (a, *rest) in others.items():
            if len(taken) == config.n_pairs:
                break
            theirs, ours = tasks[s].items, tasks[t].items
            words = [right(tasks[code].items[fact]) for code in (s, t) for fact in (a, b)]
            tokens = [set(first_tokens(model, word)) for word in words]
            if any(one & other for one, other in combinations(tokens, 2)):
                counts["answers begin alike"] += 1
                continue
            if not rest:
                counts["no third fact to compare with"] += 1
                continue
            prompts = [
                (theirs[a], theirs[rest[0]]),
                (ours[b], ours[a]),
                (ours[a], ours[b]),
                (theirs[rest[0]], theirs[a]),
            ]
            about = [subject(one.prompt, other.prompt) for one, other in prompts]
            if not all(about):
                counts["subject not found"] += 1
                continue
            source, target, same, another = (
                Source(encoded(model, item), (text,))
                for (item, _), text in zip(prompts, about, strict=True)
            )
            taken.append(
                Crossing(
                    source,
                    target,
                    {cell: sorted(ids) for cell, ids in zip(CELLS, tokens, strict=True)},
                    {"A in t": same, "another concept in s": another},
                    (s, t),
                    b,
                    ours[a].held_out,
                )
            )
        found += taken
    counts["taken"] = len(found)
    return found, counts


def right(item: Item) -> str:
    return item.options[item.answer]


def subject(prompt: str, other: str) -> str:
    """The words in which a prompt differs from another of its relation; empty: none.

    A word is a run of letters, a character where no spaces are written. The last place of a text
    is what is patched, so a subject that comes again later in the prompt is not taken.
    """
    mine, theirs = (re.findall(r"[A-Za-zÀ-ÿ0-9]+|.", text) for text in (prompt, other))
    start = alike(mine, theirs)
    end = alike(mine[start:][::-1], theirs[start:][::-1])
    text = "".join(mine[start : len(mine) - end]).strip()
    before = len("".join(mine[:start]))
    return text if text and prompt.rfind(text) == prompt.find(text, before) else ""


def alike(mine: Sequence[str], theirs: Sequence[str]) -> int:
    """How many words two texts begin with alike."""
    pairs = enumerate(zip(mine, theirs, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(mine), len(theirs)))


def encoded(model: interp.NeuronModel, item: Item) -> list[int]:
    return [*start_ids(model, "auto"), *model.encode(item.prompt)]


@torch.no_grad()
def knows(model: interp.NeuronModel, item: Item) -> bool:
    """Whether the first token of the right option is the likeliest of all options'."""
    logits = model.logits(torch.tensor([encoded(model, item)]), keep=1)[0, -1]
    scores = [logits[list(first_tokens(model, option))].max() for option in item.options]
    return int(torch.stack(scores).argmax()) == item.answer


# ---------------------------------------------------------------- patching


def run(
    model: interp.NeuronModel,
    asked: Sequence[Crossing],
    selection: interp.NeuronSelection,
    generator: torch.Generator,
) -> Iterator[tuple[Crossing, list[PatchingResult]]]:
    """Each question with every part patched."""
    for each in asked:
        s, t = each.languages
        theirs = selection[s] | selection[t]
        (about,) = each.target.texts
        plans: list[tuple[Parts, Layers, At, torch.Generator | None]] = [
            ("resid_post", "each", "last", generator),
            ("resid_post", "from", (about,), generator),
            ({"language neurons": theirs}, "all", "last", generator),
            ({"all other neurons": ~theirs, "all neurons": "post"}, "all", "last", None),
        ]
        yield (
            each,
            [
                patch(
                    model,
                    each.source,
                    each.target.prompt,
                    each.answers,
                    parts,
                    layers,
                    at,
                    each.controls,
                    drawn,
                )
                for parts, layers, at, drawn in plans
            ],
        )


def rows_of(each: Crossing, result: PatchingResult) -> Iterator[dict[str, object]]:
    """The share of each cell, and what has moved, for every source, part and layer."""
    cells = result.log_probability.softmax(dim=-1)[:, :, :, 0]
    moved = {
        name: result.share(some)[..., 0] - result.unpatched_share(some)
        for name, some in (("concept moved", CONCEPT), ("language moved", LANGUAGE))
    }
    for row, source in enumerate(result.sources):
        for column, part in enumerate(result.parts):
            for depth, layer in enumerate(result.layers):
                place = (row, column, depth)
                language, concept = moved["language moved"][place], moved["concept moved"][place]
                yield {
                    "s": each.languages[0],
                    "t": each.languages[1],
                    "fact": each.fact,
                    "held_out": each.held_out,
                    "source": source,
                    "part": part,
                    "at": "last" if result.spans == ("last",) else "subject",
                    "layer": "all" if result.extent == "all" else str(layer),
                    **dict(zip(result.answers, cells[place].tolist(), strict=True)),
                    "unpatched B in t": result.unpatched_share(["B in t"]),
                    "concept moved": concept.item(),
                    "language moved": language.item(),
                    "language - concept": (language - concept).item(),
                }


QUANTITIES = (*CELLS, "concept moved", "language moved", "language - concept")


def averages(prompts: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means over prompts with intervals over facts, and the verdict of each."""
    rows = []
    for key, some in prompts.groupby(list(by), sort=False):
        names: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        values = torch.tensor(some[list(QUANTITIES)].to_numpy())
        facts: Int64[Tensor, " example"] = torch.tensor(some["fact"].to_numpy())
        if facts.unique().numel() < 2:
            continue
        found = mean_over_examples(values, facts)
        row = dict(zip(by, names, strict=True)) | {"prompts": len(some)}
        for n, name in enumerate(QUANTITIES):
            row |= {name: found.value[n].item()}
            row |= {f"{name} low": found.low[n].item(), f"{name} high": found.high[n].item()}
        rows.append(row | {"verdict": verdict(found.low[4:], found.high[4:])})
    return pd.DataFrame(rows)


def verdict(low: Float64[Tensor, " moved"], high: Float64[Tensor, " moved"]) -> str:
    """What the intervals of concept moved, language moved and their difference say together."""
    if low[0] <= 0 and low[1] <= 0:
        return "neither moves"
    if low[2] > 0:
        return "the language moves further"
    if high[2] < 0:
        return "the concept moves further"
    return "they move together" if min(low[0], low[1]) > 0 else "not told apart"


def main(config: Config) -> None:
    study = config.study
    model = interp.load(study.model, dtype=torch.float32)
    stats, _ = study.statistics(model)
    selection = interp.select_by_entropy(stats, config.fraction)
    generator = torch.Generator().manual_seed(study.seed)
    asked, counts = crossings(model, config, random.Random(study.seed))
    print(counts, flush=True)
    if not asked:
        raise ValueError("No pair of facts is known in two languages: nothing can be patched.")
    rows = [
        row
        for each, results in run(model, asked, selection, generator)
        for result in results
        for row in rows_of(each, result)
    ]
    prompts = pd.DataFrame(rows)
    where = ["part", "at", "source", "layer"]
    table = pd.concat(
        averages(some, where).assign(facts=name)
        for name, some in (
            ("all", prompts),
            ("told", prompts.query("not held_out")),
            ("held_out", prompts.query("held_out")),
        )
    )
    own = prompts.query("source == 'source' and layer == 'all'")
    artifacts.write_text(config.out / "prompts.csv", prompts.to_csv(index=False))
    artifacts.write_text(config.out / "table.csv", table.to_csv(index=False))
    by_pair = averages(own, ["s", "t", "part"])
    artifacts.write_text(config.out / "by_pair.csv", by_pair.to_csv(index=False))
    shown = table.query("facts == 'all' and source != 'noise'")
    columns = [*where, *CELLS, "concept moved", "language moved", "verdict"]
    print(shown.loc[:, columns].to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: text for name, (text, _) in PRESETS.items()},
    )
    main(tyro.cli(parsed, description=__doc__))

"""Does a concept move between prompts in two languages without its language, or the reverse?

    python -m experiments.patch_across_languages tiny       # a minute: does every part run?
    python -m experiments.patch_across_languages babel      # 6 minutes on one core
    python -m experiments.patch_across_languages thorough   # five times as many questions
    python -m experiments.patch_across_languages gemma      # Gemma 3 270M; see `make real`
    python -m experiments.patch_across_languages paper      # a GPU; --study.model NAME

Reads   a model, its facts in several languages, and text to find language neurons on
Writes  results/patch_across_languages/<preset>/table.csv (means and intervals), prompts.csv (every
        question), known.csv (every fact in every language), by_pair.csv (sets of neurons, by pair
        of languages), claims.json, moved-told.csv, moved-held_out.csv
Draws   figures/moved_by_layer-told, figures/moved_by_layer-held_out

The source asks about A in language s, the target about B in language t, with the same relation: the
day after Monday, the day after Friday. Activations of the source replace the target's (Dumas et
al., 2024). The probabilities of the answers A, B and other options, in s and in t, are normalized;
the concept moves by the gain in the share of A, the language by that of s. Patched are the residual
stream at the last token, after single layers; at the subject, whose tokens differ between the two
prompts, from each layer on; and sets of neurons at the last token, in all layers: those of s and t
(LAPE), those that fire in all languages for A or for B (Wang et al., 2024), random sets of the same
size per layer, and all others. Controls: another concept in s, A asked in t, and a random direction
of the same norm; at the subject also the mean over all languages but t that know A.

Only facts that the model knows are used: the source's answer is its first choice in s, the target's
in t. `held_out` facts are those whose answer A the model was told in s, never in t. Intervals are
over relations, since questions of one relation share their facts.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float64
from torch import Tensor
from tqdm.auto import tqdm

import interp
from experiments import gemma, papers, runner
from experiments.crossing_claims import measures
from experiments.crossings import CELLS, Answered, Crossing, answer, crossings, relation
from experiments.runner import Experiment, Preset, Record
from experiments.study import LANGUAGES, Study
from interp.evaluations.task_results import group_numbers
from interp.inference.intervals import mean_over_examples
from interp.prompts import PatchingResult
from interp.prompts.patching import Parts, Sources
from interp.results.artifacts import hash_of
from interp.results.frames import tidy
from interp.scores.baselines import random_units

CONCEPT, LANGUAGE = ("A in s", "A in t"), ("A in s", "B in s", "other in s")
"""Cells that gain when the concept moves, and when the language moves."""

SEVERAL = "A in several languages"


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """Which facts are asked, and how many."""

    facts: str = "babel/fact_completion"
    """Babel's facts, or a folder of <language>.jsonl with prompts, options and answers."""

    fraction: float = 0.03
    """Of all neurons, selected by LAPE, as on Babel's card."""

    n_told: int = 12
    """Pairs of facts per ordered pair of languages; fewer where fewer are known."""

    n_held_out: int = 6
    """The same for pairs whose A the model was never told in t."""


PRESETS = {
    "tiny": Preset(
        "Every part once, on the shipped model: a minute.",
        Study(languages=("de", "ja"), tokens=4000),
        {"n_told": 4, "n_held_out": 2},
    ),
    "babel": Preset("The shipped model, its six languages."),
    "thorough": Preset(
        "The same with five times as many questions.", differences={"n_told": 60, "n_held_out": 24}
    ),
    "gemma": gemma.preset(fraction=0.01, n_told=8, n_held_out=0),
    "paper": papers.preset(
        replace(
            papers.TANG, model="mistralai/Mistral-7B-v0.1", languages=LANGUAGES, tokens=10_000_000
        ),
        f"mLAMA in 6 languages ({papers.FACTS}, made by python -m experiments.paper_tasks), "
        "language neurons from Wikipedia",
        6 * 1e7 + 30 * 200 * 15 * 300,
        facts=papers.FACTS,
        fraction=0.01,
        n_told=200,
    ),
}


# ---------------------------------------------------------------- patching


def patched(
    model: interp.NeuronModel,
    question: Crossing,
    selection: interp.NeuronSelection,
    shared: Bool[Tensor, "layer neuron"],
    generator: torch.Generator,
) -> list[PatchingResult]:
    """One question with every part patched."""
    s, t = question.languages
    sets = neuron_sets(selection[s] | selection[t], shared, generator)
    controls: dict[str, Sources] = {**question.controls}
    several = {SEVERAL: question.several} if len(question.several) > 1 else {}
    put = partial(interp.patch, model, question.source, question.target.prompt, question.answers)
    return [
        put("resid_post", "each", "last", controls, generator),
        put("resid_post", "from", question.target.texts, controls | several, generator),
        put(sets, "all", "last", controls),
    ]


def neuron_sets(
    language: Bool[Tensor, "layer neuron"],
    shared: Bool[Tensor, "layer neuron"],
    generator: torch.Generator,
) -> Parts:
    """Neurons of both languages, neurons that fire in all, and their controls."""
    sets: dict[str, Any] = {}
    for name, chosen in (("language", language), ("all-shared", shared)):
        if chosen.any():
            sets[f"{name} neurons"] = chosen
            sets[f"random {name} neurons"] = as_many(chosen, generator)
    return sets | {"all other neurons": ~language, "all neurons": "post"}


def as_many(
    chosen: Bool[Tensor, "layer neuron"], generator: torch.Generator
) -> Bool[Tensor, "layer neuron"]:
    """As many other neurons per layer; any neurons, where more than half of a layer are chosen."""
    size = chosen.sum(dim=1)
    pool = ~chosen if 2 * size.max() <= chosen.shape[1] else torch.ones_like(chosen)
    return random_units(pool, size, generator)


def rows_of(number: int, question: Crossing, result: PatchingResult) -> pd.DataFrame:
    """The share of each cell, and what moved, for every source, part and layer."""
    cells = result.log_probability.softmax(dim=-1)[:, :, :, 0]
    moved = {}
    for name, cells_of in (("concept", CONCEPT), ("language", LANGUAGE)):
        present = [cell for cell in cells_of if cell in result.answers]
        moved[name] = result.share(present)[..., 0] - result.unpatched_share(present)
    values = dict(zip(result.answers, cells.unbind(dim=-1), strict=True))
    values |= {f"{name} moved": values for name, values in moved.items()}
    values |= {"language - concept": moved["language"] - moved["concept"]}
    by_cell = "source part layer -> source part 1 layer"
    columns: dict[str, Any] = dict.fromkeys(CELLS, 0.0)
    columns |= {f"unpatched {cell}": result.unpatched_share([cell]) for cell in CONCEPT}
    columns |= {name: rearrange(value, by_cell) for name, value in values.items()}
    axes = {
        "question": [number],
        "s": [question.languages[0]],
        "t": [question.languages[1]],
        "relation": [question.relation],
        "facts": ["held_out" if question.held_out else "told"],
        "source": result.sources,
        "part": result.parts,
        "at": ["last" if result.spans == ("last",) else "subject"],
        "layer": ["all" if result.extent == "all" else str(layer) for layer in result.layers],
    }
    return tidy(axes, columns)


# ---------------------------------------------------------------- means and verdicts

QUANTITIES = (*CELLS, "concept moved", "language moved", "language - concept")


def averages(prompts: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means over prompts, intervals over relations, and verdicts; no row for a single relation."""
    rows = []
    groups_of: Any = prompts.groupby(list(by), sort=False)
    for key, part in groups_of:
        if part["relation"].nunique() < 2:
            continue
        values = torch.tensor(part[list(QUANTITIES)].to_numpy())
        mean = mean_over_examples(values, group_numbers(part["relation"].tolist()))
        row = dict(zip(by, key, strict=True)) | {"prompts": len(part)}
        for n, name in enumerate(QUANTITIES):
            row |= {name: mean.value[n].item()}
            row |= {f"{name} low": mean.low[n].item(), f"{name} high": mean.high[n].item()}
        rows.append(row | {"verdict": verdict(mean.low[-3:], mean.high[-3:])})
    columns = [name + end for name in QUANTITIES for end in ("", " low", " high")]
    return pd.DataFrame(rows, columns=[*by, "prompts", *columns, "verdict"])


def verdict(low: Float64[Tensor, " moved"], high: Float64[Tensor, " moved"]) -> str:
    """From the intervals of concept moved, language moved, and their difference."""
    if low[0] <= 0 and low[1] <= 0:
        return "neither moves"
    if low[2] > 0:
        return "the language moves further"
    if high[2] < 0:
        return "the concept moves further"
    return "they move together" if low[0] > 0 and low[1] > 0 else "cannot tell"


def moved_rows(table: pd.DataFrame, facts: str) -> pd.DataFrame:
    """For the heat map: what moves in the residual stream, by layer and position."""
    stream: Any = table[(table["part"] == "resid_post") & (table["facts"] == facts)]
    tables = []
    for at, (source, what) in product(
        ("last", "subject"),
        (("source", "concept"), ("source", "language"), ("another concept in s", "concept")),
    ):
        rows = stream[(stream["at"] == at) & (stream["source"] == source)]
        control = "" if source == "source" else " (control)"
        columns = {"row": f"{at}: {what}{control}", "layer": rows["layer"].astype(int)}
        for name, end in (("moved", ""), ("low", " low"), ("high", " high")):
            columns[name] = rows[f"{what} moved{end}"]
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def known_rows(answered: Answered) -> Iterator[dict[str, object]]:
    """Every fact in every language: does the model choose the right option?"""
    for code, task in answered.tasks.items():
        for fact, (item, known) in enumerate(zip(task.items, answered.known[code], strict=True)):
            yield {
                "language": code,
                "fact": fact,
                "relation": relation(item),
                "held_out": item.held_out,
                "known": known,
                "chance": 1 / len(item.options),
            }


def begin_pieces(
    record: Record,
    model: interp.NeuronModel,
    questions: Sequence[Crossing],
    selection: interp.NeuronSelection,
    seed: int,
) -> None:
    """Refuse to go on with answers to other questions, of another model or under other neurons."""
    asked = [[one.source.prompt, one.target.prompt, dict(one.answers)] for one in questions]
    plan = {"model": model.identity, "questions": hash_of(asked), "seed": seed}
    record.begin_pieces(plan | {"neurons": hash_of(selection.mask)})


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study)
    stats, _ = study.statistics(model)
    selection = interp.select_by_entropy(stats, config.fraction)
    tasks = interp.text.align_tasks(
        [interp.read_task(config.facts, code) for code in study.languages]
    )
    answered = answer(model, tasks, config.study.held_out_bos)
    limits, generator = (config.n_told, config.n_held_out), random.Random(study.seed)
    questions, counts = crossings(model, answered, *limits, generator)
    print(counts, flush=True)
    if not questions:
        raise ValueError("The model knows no pair of facts in two languages: nothing to patch.")
    begin_pieces(record, model, questions, selection, study.seed)

    def made(number: int) -> pd.DataFrame:
        a, b = questions[number].facts
        shared = answered.shared[a] | answered.shared[b]
        generator = torch.Generator().manual_seed(study.seed + number)  # also after a kill
        results = patched(model, questions[number], selection, shared, generator)
        tables = [rows_of(number, questions[number], result) for result in results]
        return pd.concat(tables, ignore_index=True)

    numbers = tqdm(range(len(questions)), "questions")
    tables = [record.piece(f"{number:05d}", partial(made, number)) for number in numbers]
    prompts, known = pd.concat(tables, ignore_index=True), pd.DataFrame(known_rows(answered))
    where = ["part", "at", "source", "layer"]
    table = averages(prompts, ["facts", *where])
    own = prompts.query("source == 'source' and layer == 'all' and facts == 'told'")
    record.tables({"prompts": prompts, "known": known, "table": table})
    record.tables({"by_pair": averages(own, ["s", "t", "part"])})
    record.tables({f"moved-{facts}": moved_rows(table, facts) for facts in ("told", "held_out")})
    shown = table.query("facts == 'told' and source != 'noise'")
    columns = [*where, *CELLS, "concept moved", "language moved", "verdict"]
    print(shown.loc[:, columns].to_string(index=False, float_format="%.2f"))
    record.judge("patch_across_languages", measures(prompts, known))


experiment = Experiment("patch_across_languages", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

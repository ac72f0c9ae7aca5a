"""Does a thought move from one language's prompt to another's without its language, or the reverse?

    python -m experiments.patch_across_languages tiny       # a minute: does every part run?
    python -m experiments.patch_across_languages babel      # 3 minutes on 2 cores
    python -m experiments.patch_across_languages thorough   # five times as many questions
    python -m experiments.patch_across_languages paper      # a GPU; --study.model NAME

Reads   a model, its facts in several languages, and text to find language neurons on
Writes  results/patch_across_languages/<preset>/table.csv (means and intervals), prompts.csv (every
        question), known.csv (every fact in every language), by_pair.csv (sets of neurons, for each
        pair of languages), claims.json, moved-told.csv, moved-held_out.csv
Draws   figures/moved_by_layer-told, figures/moved_by_layer-held_out

The source asks about A in language s, the target about B in language t, of the same relation: the
day after Monday, the day after Friday. Activations of the source go into the target (Dumas et al.,
2024), and the answers A, B and other options, in s and in t, share what follows. The concept has
moved as far as the share of A has grown, the language as far as that of s has. Asked of the
residual stream at the last token, behind each layer alone; at the tokens of the subject, where the
two prompts of a relation differ, from each layer on; and of sets of neurons in all layers, at the
last token: those of s and t (LAPE), those that fire in all languages for A or for B (Wang et al.,
2024), as many random ones, and all others. Controls: another concept in s, A asked in t, and a
random direction of the same length. At the subject also the mean over all languages but t that
know A.

Only facts that the model knows are taken: the source's answer is its first choice in s, and the
target's in t. `held_out` facts are those whose answer A the model was told in s, never in t.
Intervals are over relations, since the questions of one share their facts.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from tqdm.auto import tqdm

import interp
from experiments import papers, runner
from experiments.crossing_claims import measures
from experiments.crossings import CELLS, Answered, Crossing, answer, crossings, relation
from experiments.runner import Experiment, Preset, Record
from experiments.study import LANGUAGES, Study
from interp.inference.intervals import mean_over_examples
from interp.prompts.alignment import At
from interp.prompts.patching import Parts, Sources, patch
from interp.prompts.patching_result import PatchingResult
from interp.prompts.sweep import random_matching
from interp.results.frames import tidy
from interp.results.words import Layers
from interp.scores.baselines import random_units
from interp.text.tasks import align_tasks, read_task

CONCEPT, LANGUAGE = ("A in s", "A in t"), ("A in s", "B in s", "other in s")
"""What grows when the concept comes over, and when the language does."""

SEVERAL = "A in several languages"


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is asked."""

    facts: str = "babel/fact_completion"
    """Babel's facts, or a folder of <language>.jsonl with prompts, options and answers."""

    fraction: float = 0.03
    """Of all neurons, selected by LAPE: that of Babel's card."""

    n_told: int = 12
    """Pairs of facts for each ordered pair of languages; fewer where fewer are known."""

    n_held_out: int = 6
    """The same of pairs in which A was never told in t."""


PRESETS = {
    "tiny": Preset(
        "Every part once, on the shipped model: a minute.",
        Study(languages=("de", "ja"), tokens=4000),
        {"n_told": 4, "n_held_out": 2},
    ),
    "babel": Preset("The shipped model, its six languages."),
    "thorough": Preset(
        "The same with five times as many questions.",
        differences={"n_told": 60, "n_held_out": 24},
    ),
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
    each: Crossing,
    selection: interp.NeuronSelection,
    shared: Bool[Tensor, "layer neuron"],
    generator: torch.Generator,
) -> list[PatchingResult]:
    """One question with every part patched."""
    s, t = each.languages
    (about,) = each.target.texts
    several: dict[str, Sources] = {SEVERAL: each.several} if len(each.several) > 1 else {}
    plans: list[tuple[Parts, Layers, At, dict[str, Sources], torch.Generator | None]] = [
        ("resid_post", "each", "last", {}, generator),
        ("resid_post", "from", (about,), several, generator),
        (neuron_sets(selection[s] | selection[t], shared, generator), "all", "last", {}, None),
    ]
    return [
        patch(
            model,
            each.source,
            each.target.prompt,
            each.answers,
            parts,
            layers,
            at,
            {**each.controls, **more},
            drawn,
        )
        for parts, layers, at, more, drawn in plans
    ]


def neuron_sets(
    language: Bool[Tensor, "layer neuron"],
    shared: Bool[Tensor, "layer neuron"],
    generator: torch.Generator,
) -> Parts:
    """Neurons of both languages, those that fire in all, and what they are compared with."""
    found: dict[str, Any] = {}
    for name, chosen in (("language", language), ("all-shared", shared)):
        if chosen.any():
            found[f"{name} neurons"] = chosen
            found[f"random {name} neurons"] = as_many(chosen, generator)
    found["all other neurons"] = ~language
    found["all neurons"] = "post"
    return found


def as_many(
    chosen: Bool[Tensor, "layer neuron"], generator: torch.Generator
) -> Bool[Tensor, "layer neuron"]:
    """As many other neurons of each layer; of any neurons, where more than half are chosen."""
    if 2 * chosen.sum(dim=1).max() <= chosen.shape[1]:
        return random_matching(chosen, generator)
    return random_units(torch.ones_like(chosen), chosen.sum(dim=1), generator)


def rows_of(number: int, each: Crossing, result: PatchingResult) -> pd.DataFrame:
    """The share of each cell, and what has moved, for every source, part and layer."""
    cells = result.log_probability.softmax(dim=-1)[:, :, :, 0]
    moved = {}
    for name, cells_of in (("concept", CONCEPT), ("language", LANGUAGE)):
        some = [cell for cell in cells_of if cell in result.answers]
        moved[name] = result.share(some)[..., 0] - result.unpatched_share(some)
    values = dict(zip(result.answers, cells.unbind(dim=-1), strict=True))
    values |= {f"{name} moved": values for name, values in moved.items()}
    values |= {"language - concept": moved["language"] - moved["concept"]}
    by_cell = "source part layer -> source part 1 layer"
    columns: dict[str, Any] = dict.fromkeys(CELLS, 0.0)
    columns |= {f"unpatched {cell}": result.unpatched_share([cell]) for cell in CONCEPT}
    columns |= {name: rearrange(value, by_cell) for name, value in values.items()}
    axes = {
        "question": [number],
        "s": [each.languages[0]],
        "t": [each.languages[1]],
        "relation": [each.relation],
        "facts": ["held_out" if each.held_out else "told"],
        "source": result.sources,
        "part": result.parts,
        "at": ["last" if result.spans == ("last",) else "subject"],
        "layer": ["all" if result.extent == "all" else str(layer) for layer in result.layers],
    }
    return tidy(axes, columns)


# ---------------------------------------------------------------- means and verdicts

QUANTITIES = (*CELLS, "concept moved", "language moved", "language - concept")


def averages(prompts: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means over prompts with intervals over relations, and the verdict of each; no row where all
    are of one relation."""
    rows = []
    groups_of: Any = prompts.groupby(list(by), sort=False)
    for key, some in groups_of:
        names: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        if some["relation"].nunique() < 2:
            continue
        values = torch.tensor(some[list(QUANTITIES)].to_numpy())
        found = mean_over_examples(values, groups(some["relation"]))
        row = dict(zip(by, names, strict=True)) | {"prompts": len(some)}
        for n, name in enumerate(QUANTITIES):
            row |= {name: found.value[n].item()}
            row |= {f"{name} low": found.low[n].item(), f"{name} high": found.high[n].item()}
        rows.append(row | {"verdict": verdict(found.low[-3:], found.high[-3:])})
    columns = [name + end for name in QUANTITIES for end in ("", " low", " high")]
    return pd.DataFrame(rows, columns=[*by, "prompts", *columns, "verdict"])


def groups(names: pd.Series) -> Int64[Tensor, " example"]:
    return torch.tensor(pd.factorize(names)[0])


def verdict(low: Float64[Tensor, " moved"], high: Float64[Tensor, " moved"]) -> str:
    """What the intervals of concept moved, language moved and their difference say together."""
    if low[0] <= 0 and low[1] <= 0:
        return "neither moves"
    if low[2] > 0:
        return "the language moves further"
    if high[2] < 0:
        return "the concept moves further"
    return "they move together" if low[0] > 0 and low[1] > 0 else "not told apart"


def moved_rows(table: pd.DataFrame, facts: str) -> pd.DataFrame:
    """For the heat map: what is moved in the residual stream, by layer and place."""
    stream: Any = table[(table["part"] == "resid_post") & (table["facts"] == facts)]
    tables = []
    for at, (source, what) in product(
        ("last", "subject"),
        (("source", "concept"), ("source", "language"), ("another concept in s", "concept")),
    ):
        some = stream[(stream["at"] == at) & (stream["source"] == source)]
        control = "" if source == "source" else " (control)"
        mine = pd.DataFrame({"layer": some["layer"].astype(int)})
        mine.insert(0, "row", f"{at}: {what}{control}")
        for name, end in (("moved", ""), ("low", " low"), ("high", " high")):
            mine[name] = some[f"{what} moved{end}"]
        tables.append(mine)
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


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study)
    stats, _ = study.statistics(model)
    selection = interp.select_by_entropy(stats, config.fraction)
    tasks = align_tasks([read_task(config.facts, code) for code in study.languages])
    answered = answer(model, tasks)
    asked, counts = crossings(
        model, answered, config.n_told, config.n_held_out, random.Random(study.seed)
    )
    print(counts, flush=True)
    if not asked:
        raise ValueError("No pair of facts is known in two languages: nothing can be patched.")
    generator = torch.Generator().manual_seed(study.seed)
    tables = []
    for number, each in enumerate(tqdm(asked, "questions")):
        a, b = each.facts
        shared = answered.shared[a] | answered.shared[b]
        results = patched(model, each, selection, shared, generator)
        tables += [rows_of(number, each, result) for result in results]
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

"""Which neurons are shared between languages, and do the shared ones carry the answer?

    python -m experiments.map_shared_neurons tiny      # seconds
    python -m experiments.map_shared_neurons babel     # 3 minutes on 2 cores
    python -m experiments.map_shared_neurons thorough  # 6 minutes on 2 cores
    python -m experiments.map_shared_neurons paper     # a GPU; --study.model NAME

Reads   a model; tasks whose items are the same in every language; a table of distances between
        languages, if there is one (--distances)
Writes  results/map_shared_neurons/<preset>/<task>/profile.csv (shares by layer, with both
        baselines), tokens.csv (what becomes of the categories at other tokens of the prompts),
        overlap.csv (by pair of languages, beside their distance), off.csv (each category off, also
        at equal size), sums.csv (integrated gradients by category), enrichment.csv; numbers.csv,
        thresholds.csv and relatedness.csv (the all-shared share by number of languages, and by what
        the gate or output must exceed; overlap against distance); claims.json

The claims of Wang et al. (2024) are put to the test with what their comparison lacks: what firing
rates alone would give, and sets of equal size. With --fires-by output a neuron fires where what it
hands on is above zero, instead of its gate.

A table of distances is a CSV with the columns lang1, lang2 and one for each kind of distance, one
row per pair of ISO codes in either order. Without one, two languages are as far apart as the number
of branch, family and script that they do not have in common.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import pandas as pd
import torch
from einops import reduce
from jaxtyping import Float64
from torch import Tensor

import interp
from experiments import papers, runner
from experiments.runner import Experiment, Preset, Record
from experiments.sharing_claims import of_task, over_tasks
from experiments.study import Study
from interp.counting.counters import SignsCounter
from interp.counting.observe import batches, observe
from interp.counting.stats import FiringSigns
from interp.evaluations.category_ablation import CategoryAblation, ablate_categories
from interp.evaluations.category_attribution import (
    CategorySums,
    Enrichment,
    attribute_categories,
    enrichment,
)
from interp.evaluations.multiple_choice import drop_ambiguous
from interp.inference.permutation import mantel_test
from interp.results.words import FiresBy
from interp.runs.folder import begin
from interp.scores.sharing import Sharing
from interp.scores.sharing_profile import SharingProfile, sharing_profile
from interp.scores.token_sharing import TokenSharing, sharing_over_tokens
from interp.text.distances import listed_distances, read_distances
from interp.text.tasks import Task, align_tasks, prompts_of, read_task

SHOWN = ("accuracy", "probability", "probability_excess", "probability_excess_low")
"""Of what is lost with neurons off, printed; off.csv has all of it."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is looked at."""

    tasks: tuple[str, ...] = (
        "babel/fact_completion",
        "babel/statements",
        "babel/word_translation",
    )
    """Where the items come from; see interp.text.tasks."""

    fires_by: FiresBy = "gate"
    """By what a neuron fires."""

    n_prompts: int = 30
    """Items per task whose neurons are switched off and attributed; sharing is of all items."""

    steps: int = 20
    """Points on the path of integrated gradients."""

    top_share: float = 0.05
    """Of a layer's neurons, the largest contributions; the paper takes 800 of 16,384."""

    thresholds: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5)
    """What must be exceeded to count as firing; all but the comparison of them takes zero."""

    n_draws: int = 3
    """Random sets, wherever neurons are drawn."""

    distances: Path | None = None
    """Table of distances between languages; None: by branch, family and script."""

    kind_of_distance: str = "syntactic"
    """Column of that table."""


PRESETS = {
    "tiny": Preset(
        "Three items of one task in two languages: seconds.",
        Study(languages=("de", "ja")),
        {
            "tasks": ("babel/word_translation",),
            "n_prompts": 3,
            "steps": 4,
            "thresholds": (0.0, 0.2),
            "n_draws": 1,
        },
    ),
    "babel": Preset("The shipped model on its three tasks: 3 minutes on 2 cores."),
    "thorough": Preset(
        "The same with twice as many items: 6 minutes on 2 cores.", differences={"n_prompts": 60}
    ),
    "paper": papers.preset(
        papers.WANG,
        f"XNLI and mLAMA in 9 languages ({papers.INFERENCES} and {papers.FACTS}, which "
        "python -m experiments.paper_tasks makes)",
        9 * 1000 * (90 + 15) * 100,
        tasks=(papers.INFERENCES, papers.FACTS),
        n_prompts=1000,
    ),
}


def rows_of(model: interp.NeuronModel, tasks: Sequence[Task], n_shards: int = 1) -> interp.Corpora:
    """The prompts of every language, as the model reads them."""
    bos = "none" if model.bos_id is None else "document"
    return interp.text.prompt_rows(prompts_of(tasks), model, bos=bos, n_shards=n_shards)


def by_number(signs: FiringSigns, task: str, config: Config) -> list[dict[str, object]]:
    """The all-shared share among the first two languages, the first three, and so on."""
    rows: list[dict[str, object]] = []
    for n in range(2, len(signs.languages) + 1):
        generator = torch.Generator().manual_seed(config.study.seed)
        found = sharing_profile(
            signs, generator, languages=signs.languages[:n], n_draws=config.n_draws
        )
        share = found.share().value[:, Sharing.ALL_SHARED].mean().item()
        chance = found.independent[:, Sharing.ALL_SHARED].mean().item()
        rows.append({"task": task, "languages": n, "all_shared": share, "independent": chance})
    return rows


def by_threshold(
    model: interp.NeuronModel, rows: interp.Corpora, name: str, config: Config
) -> list[dict[str, object]]:
    """The all-shared share where more than zero must be exceeded to fire, by gate and by output."""
    ways = list(itertools.product(get_args(FiresBy), config.thresholds))
    table = []
    for (fires_by, threshold), signs in zip(ways, signs_by(model, rows, ways), strict=True):
        profile = sharing_profile(signs, torch.Generator(), n_draws=0)
        share = profile.count[..., Sharing.ALL_SHARED].double().mean().item() / signs.d_mlp
        table.append(
            {"task": name, "fires_by": fires_by, "threshold": threshold, "all_shared": share}
        )
    return table


def signs_by(
    model: interp.NeuronModel, rows: interp.Corpora, ways: Sequence[tuple[FiresBy, float]]
) -> list[FiringSigns]:
    """Who fires at the last token of every prompt, by several sources and thresholds in one pass.

    The prompts must be in one shard.
    """
    bits = []
    for code in rows.languages:
        n_prompts = len(rows.rows[code].source)
        counters = [SignsCounter(model, n_prompts, *way) for way in ways]
        for batch in batches(rows, code, 0, tokens_per_batch=4096):
            observe(model, batch, counters)
        bits.append([each.tensors()["signs.bits"] for each in counters])
    prompts = rows.rows[rows.languages[0]].source
    return [
        FiringSigns(
            bits=torch.stack(one, dim=1),
            prompts=prompts,
            languages=rows.languages,
            d_mlp=model.d_mlp,
            fires_by=fires_by,
            threshold=threshold,
        )
        for one, (fires_by, threshold) in zip(zip(*bits, strict=True), ways, strict=True)
    ]


def distances_of(config: Config) -> Float64[Tensor, "language language"] | None:
    """None: too few languages, or all equally far apart, so that nothing can go with it."""
    codes = config.study.languages
    if config.distances is None:
        distance = listed_distances(codes)
    else:
        distance = read_distances(config.distances, codes, config.kind_of_distance)
    pairs = distance[tuple(torch.triu_indices(len(codes), len(codes), offset=1))]
    return distance if len(codes) > 2 and pairs.unique().numel() > 1 else None


def overlap_table(
    profile: SharingProfile, distance: Float64[Tensor, "language language"]
) -> pd.DataFrame:
    """A row for each pair of languages."""
    overlap, codes = profile.overlap(), profile.languages
    one, other = torch.triu_indices(len(codes), len(codes), offset=1)
    columns = {"distance": distance, "overlap": overlap.value, "low": overlap.low}
    columns |= {"high": overlap.high, "shuffled": profile.shuffled_overlap.mean(dim=0)}
    names = {"lang1": [codes[i] for i in one], "lang2": [codes[i] for i in other]}
    return pd.DataFrame(names | {name: each[one, other] for name, each in columns.items()})


def relatedness(
    name: str, profile: SharingProfile, distance: Float64[Tensor, "language language"], seed: int
) -> dict[str, object]:
    """Mantel tests of the overlap of two languages, and of that of shuffled prompts."""
    row: dict[str, object] = {"task": name}
    matrices = {"": profile.overlap().value, "shuffled_": profile.shuffled_overlap.mean(dim=0)}
    for kind, matrix in matrices.items():
        test = mantel_test(matrix, distance, torch.Generator().manual_seed(seed))
        row |= {f"{kind}correlation": test.statistic, f"{kind}p": test.p_value}
        row |= {"smallest_p": test.smallest_p}
    return row


class Found(NamedTuple):
    """What was measured on one task."""

    signs: FiringSigns
    profile: SharingProfile
    tokens: TokenSharing
    off: CategoryAblation
    sums: CategorySums
    ratio: Enrichment

    def tables(self) -> dict[str, pd.DataFrame]:
        tables = {name: getattr(self, name).to_frame() for name in ("profile", "tokens", "off")}
        return tables | {"sums": self.sums.to_frame(), "enrichment": self.ratio.to_frame()}


def look_at(
    model: interp.NeuronModel, tasks: Sequence[Task], folder: Path, config: Config
) -> Found:
    """Sharing of all items, and what some of them need."""
    seed, fires_by = config.study.seed, config.fires_by
    rows = rows_of(model, tasks, n_shards=min(10, len(tasks[0].items)))
    keep = interp.Keep(signs=fires_by)
    signs = interp.collect(model, rows, folder / "signs", keep=keep, progress=False).signs
    generator = torch.Generator().manual_seed(seed)
    profile = sharing_profile(signs, generator, n_draws=config.n_draws)
    tokens = sharing_over_tokens(model, rows, fires_by=fires_by)
    some = asked_about(model, tasks, config)
    generator = torch.Generator().manual_seed(seed)
    off = ablate_categories(
        model, some, generator, tokens="last", fires_by=fires_by, n_draws=config.n_draws
    )
    sums = attribute_categories(
        model, some, folder / "pieces", steps=config.steps, fires_by=fires_by
    )
    ratio = enrichment(model, some, top_share=config.top_share, fires_by=fires_by)
    return Found(signs, profile, tokens, off, sums, ratio)


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study)
    distance = distances_of(config)
    rows: dict[str, list[dict[str, object]]] = {"numbers": [], "thresholds": [], "relatedness": []}
    shares: dict[str, Tensor] = {}
    for place in config.tasks:
        tasks = align_tasks([read_task(place, code) for code in study.languages])
        name = tasks[0].name
        folder = config.out / name.replace("/", "-")
        begin_task(model, name, folder, config)
        found = look_at(model, tasks, folder, config)
        short = name.split("/")[-1].replace("_", " ")
        measured = of_task(found.signs, found.profile, found.off, found.ratio)
        on, named = f"{model.name}, {short}", f"{{claim}}-{short}"
        record.judge("map_shared_neurons_by_task", measured, on, named)
        part = found.profile.count[..., Sharing.ALL_SHARED].double() / found.profile.d_mlp
        shares[name] = reduce(part, "prompt layer -> prompt", "mean")
        rows["numbers"] += by_number(found.signs, name, config)
        rows["thresholds"] += by_threshold(model, rows_of(model, tasks), name, config)
        tables = found.tables()
        if distance is not None:
            tables |= {"overlap": overlap_table(found.profile, distance)}
            rows["relatedness"].append(relatedness(name, found.profile, distance, study.seed))
        record.tables({f"{folder.name}/{table}": frame for table, frame in tables.items()})
        whole = tables["off"].query("language == 'all'").filter(["off", "size", "neurons", *SHOWN])
        print(f"\n{name}", flush=True)
        for frame in (tables["tokens"], whole):
            print(f"\n{frame.to_string(index=False, float_format='%.3f')}", flush=True)
    frames = {name: pd.DataFrame(each) for name, each in rows.items()}
    known = {name: frame for name, frame in frames.items() if len(frame)}
    record.tables(known)
    for frame in known.values():
        print(f"\n{frame.to_string(index=False, float_format='%.3f')}")
    numbers, thresholds, related = frames.values()
    measured = over_tasks(numbers, thresholds, related, shares, config.fires_by)
    record.judge("map_shared_neurons", measured)


def begin_task(model: interp.NeuronModel, name: str, folder: Path, config: Config) -> None:
    """Pieces of another model, or of other settings, are not gone on with."""
    plan = {"model": model.identity, "task": name, "languages": list(config.study.languages)}
    begin(folder, plan | {"steps": config.steps, "fires_by": config.fires_by})


def asked_about(
    model: interp.NeuronModel, tasks: Sequence[Task], config: Config
) -> tuple[Task, ...]:
    """Items that every language was told, whose options differ in their first token: what-ifs at
    the last token choose among these."""
    held_out = {item.id for task in tasks for item in task.items if item.held_out}
    apart = drop_ambiguous(model, tasks)
    kept = [item.id for item in apart[0].items if item.id not in held_out][: config.n_prompts]
    return tuple(task.where(lambda item: item.id in kept) for task in apart)


experiment = Experiment("map_shared_neurons", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

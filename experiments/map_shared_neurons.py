"""Which neurons are shared between languages, and do the shared ones carry the answer?

    python -m experiments.map_shared_neurons tiny      # seconds
    python -m experiments.map_shared_neurons babel     # 11 minutes on one core
    python -m experiments.map_shared_neurons thorough  # more items, neurons off at every token too
    python -m experiments.map_shared_neurons gemma     # Gemma 3 270M, which `make real` installs
    python -m experiments.map_shared_neurons paper     # a GPU; --study.model NAME

Reads   a model; tasks whose items are the same in every language; optionally a table of distances
        between languages (--distances)
Writes  results/map_shared_neurons/<preset>/<task>/profile.csv (shares by layer, with both
        baselines), tokens.csv (the categories at other tokens of the prompts), overlap.csv (by
        pair of languages, with their distance), off.csv (each category off, also at equal size, at
        every token or at the last), sums.csv (integrated gradients by category), scores.csv (sum
        and mean contribution, highest, mean and lowest effective score), enrichment.csv, active.csv
        (share of neurons that fire, by language);
        numbers.csv, thresholds.csv (the all-shared share by number of languages, and by threshold
        of the gate or output), relatedness.csv (overlap against distance); claims.json

Tests the claims of Wang et al. (2024) with controls that they lack: firing rates alone, and sets of
equal size. With --fires-by output a neuron fires where its output is above zero, not its gate.

A table of distances is a CSV with the columns lang1, lang2 and one for each kind of distance, one
row per pair of ISO codes in either order. Without a table, the distance of two languages is how
many of branch, family and script they do not share.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

import interp
from experiments import gemma, papers, runner
from experiments.runner import Experiment, Preset, Record
from experiments.sharing_claims import of_task, over_tasks
from experiments.study import Study
from interp import FiringSigns, Sharing, sharing_profile
from interp.counting.counters import SignsCounter
from interp.counting.observe import batches, observe
from interp.evaluations import (
    CategoryAblation,
    CategoryScores,
    CategorySums,
    Enrichment,
    enrichment,
)
from interp.evaluations.category_ablation import Tokens
from interp.evaluations.multiple_choice import drop_ambiguous
from interp.inference.crossed import jackknife_languages
from interp.inference.permutation import mantel_test
from interp.inference.statements import Measurement
from interp.results.frames import interval_columns, tidy
from interp.results.words import Bos, FiresBy
from interp.runs.folder import begin
from interp.scores import SharingProfile, TokenSharing
from interp.text import Task

_COMPARED: tuple[FiresBy, ...] = ("gate", "output")
SHOWN = ("accuracy", "probability", "probability_excess", "probability_excess_low")
"""Columns of off.csv that are printed."""


@dataclass(frozen=True, kw_only=True)
class Measured(runner.Config):
    """What is measured on a task."""

    fires_by: FiresBy = "gate"
    """Whether a neuron fires by its gate or by its output."""

    off_at: tuple[Tokens, ...] = ("all", "last")
    """Where neurons are switched off: "all" tokens, as in the paper, or the "last" of the prompt,
    where they were sorted. All tokens take a row of text for each option and set of neurons."""

    n_prompts: int = 30
    """Items per task for switching off and attribution; sharing uses all items."""

    steps: int = 20
    """Points on the path of integrated gradients."""

    top_share: float = 0.05
    """Share of a layer's neurons that are its largest contributions; the paper: 800 of 16,384."""

    n_draws: int = 3
    """Random sets per control."""


@dataclass(frozen=True, kw_only=True)
class Config(Measured):
    """Which tasks, and what is compared between them."""

    tasks: tuple[str, ...] = ("babel/fact_completion", "babel/statements", "babel/word_translation")
    """Tasks; see interp.text.tasks."""

    thresholds: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5)
    """Firing thresholds that are compared; everything else uses zero."""

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
    "babel": Preset("The shipped model on its three tasks: 11 minutes on one core."),
    "thorough": Preset("Twice as many items: not timed.", differences={"n_prompts": 60}),
    "gemma": gemma.preset(n_prompts=8),
    "paper": papers.preset(
        papers.WANG,
        f"XNLI and mLAMA in 9 languages ({papers.INFERENCES} and {papers.FACTS}, made by "
        "python -m experiments.paper_tasks)",
        9 * 1000 * ((90 + 15) * 100 + 32 * (3 * 95 + 10 * 18)),
        tasks=(papers.INFERENCES, papers.FACTS),
        n_prompts=1000,
        top_share=papers.TOP_SHARE,
        thresholds=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    ),
}


def rows_of(
    model: interp.NeuronModel, tasks: Sequence[Task], bos: Bos, n_shards: int = 1
) -> interp.Corpora:
    """The prompts of every language, tokenized."""
    return interp.text.prompt_rows(interp.text.prompts_of(tasks), model, bos=bos, n_shards=n_shards)


def by_number(signs: FiringSigns, task: str, config: Config) -> list[dict[str, object]]:
    """The all-shared share among the first two languages, the first three, and so on."""
    rows: list[dict[str, object]] = []
    for n in range(2, len(signs.languages) + 1):
        generator = torch.Generator().manual_seed(config.study.seed)
        languages = signs.languages[:n]
        profile = sharing_profile(signs, generator, languages=languages, n_draws=config.n_draws)
        share = profile.share().value[:, Sharing.ALL_SHARED].mean().item()
        chance = profile.independent[:, Sharing.ALL_SHARED].mean().item()
        rows.append({"task": task, "languages": n, "all_shared": share, "independent": chance})
    return rows


def by_threshold(
    model: interp.NeuronModel, rows: interp.Corpora, name: str, config: Config
) -> list[dict[str, object]]:
    """The all-shared share at each firing threshold, by gate and by output."""
    ways = list(itertools.product(_COMPARED, config.thresholds))
    table = []
    for (fires_by, threshold), signs in zip(ways, signs_by(model, rows, ways), strict=True):
        profile = sharing_profile(signs, torch.Generator(), n_draws=0)
        share = profile.count[..., Sharing.ALL_SHARED].double().mean().item() / signs.d_mlp
        row = {"task": name, "fires_by": fires_by, "threshold": threshold, "all_shared": share}
        table.append(row)
    return table


def signs_by(
    model: interp.NeuronModel, rows: interp.Corpora, ways: Sequence[tuple[FiresBy, float]]
) -> list[FiringSigns]:
    """The neurons that fire at the last token, by several sources and thresholds in one pass.

    The prompts must be in one shard.
    """
    bits = []
    for code in rows.languages:
        n_prompts = len(rows.rows[code].source)
        counters = [SignsCounter(model, n_prompts, *way) for way in ways]
        for batch in batches(rows, code, 0, tokens_per_batch=4096):
            observe(model, batch, counters)
        bits.append([counter.tensors()["signs.bits"] for counter in counters])
    prompts = rows.rows[rows.languages[0]].source
    return [
        FiringSigns(
            bits=torch.stack(by_language, dim=1),
            prompts=prompts,
            languages=rows.languages,
            d_mlp=model.d_mlp,
            fires_by=fires_by,
            threshold=threshold,
        )
        for by_language, (fires_by, threshold) in zip(zip(*bits, strict=True), ways, strict=True)
    ]


def distances_of(config: Config) -> Float64[Tensor, "language language"] | None:
    """None: too few languages, or all equally distant, so that no correlation exists."""
    codes = config.study.languages
    if config.distances is None:
        distance = interp.text.listed_distances(codes)
    else:
        distance = interp.text.read_distances(config.distances, codes, config.kind_of_distance)
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
    return pd.DataFrame(names | {name: matrix[one, other] for name, matrix in columns.items()})


def active_table(profile: SharingProfile) -> pd.DataFrame:
    """The share of a layer's neurons that fire, by language and layer."""
    active = profile.active()
    axes = {"language": profile.languages, "layer": range(len(profile.kept))}
    return tidy(axes, interval_columns("active", active))


def relatedness(
    name: str, profile: SharingProfile, distance: Float64[Tensor, "language language"], seed: int
) -> dict[str, object]:
    """Mantel tests of overlap against distance, also with shuffled prompts; the correlation's
    interval leaves out one language at a time."""
    found = correlation_of(profile.overlap().value, distance)
    row: dict[str, object] = {"task": name, "low": found.low.item(), "high": found.high.item()}
    matrices = {"": profile.overlap().value, "shuffled_": profile.shuffled_overlap.mean(dim=0)}
    for kind, matrix in matrices.items():
        test = mantel_test(matrix, distance, torch.Generator().manual_seed(seed))
        row |= {f"{kind}correlation": test.statistic, f"{kind}p": test.p_value}
        row |= {"smallest_p": test.smallest_p}
    return row


def correlation_of(
    overlap: Float64[Tensor, "language language"], distance: Float64[Tensor, "language language"]
) -> interp.Estimate:
    """Over pairs of languages, with an interval over languages; NaN ends: too few of them."""

    def without(row: int | None) -> Tensor:
        kept = [other for other in range(len(overlap)) if other != row]
        if len(kept) < 3:  # one pair has no correlation
            return torch.tensor(math.nan, dtype=torch.float64)
        one, other = torch.triu_indices(len(kept), len(kept), offset=1)
        pairs = [matrix[kept][:, kept][one, other].double() for matrix in (overlap, distance)]
        return torch.corrcoef(torch.stack(pairs))[0, 1]

    parts = torch.stack([without(row) for row in range(len(overlap))])
    return jackknife_languages(parts, without(None))


class TaskResults(NamedTuple):
    """The measurements on one task."""

    signs: FiringSigns
    profile: SharingProfile
    tokens: TokenSharing
    off: Mapping[Tokens, CategoryAblation]
    sums: CategorySums
    enrichment: Enrichment
    scores: CategoryScores

    def tables(self) -> dict[str, pd.DataFrame]:
        names = ("profile", "tokens", "sums", "enrichment", "scores")
        off = pd.concat([ablation.to_frame() for ablation in self.off.values()], ignore_index=True)
        active = active_table(self.profile)
        tables = {name: getattr(self, name).to_frame() for name in names}
        return {**tables, "off": off, "active": active}

    def measured(self) -> dict[str, Measurement | None]:
        """What the claims about a single task need."""
        return of_task(self.profile, self.off, self.enrichment, self.scores)


def measure_task(
    model: interp.NeuronModel, tasks: Sequence[Task], folder: Path, config: Measured
) -> TaskResults:
    """Sharing on all items; effects and attributions on some."""
    seed, fires_by, bos = config.study.seed, config.fires_by, config.study.held_out_bos
    rows = rows_of(model, tasks, bos, n_shards=min(10, len(tasks[0].items)))
    keep = interp.Keep(signs=fires_by)
    signs = interp.collect(model, rows, folder / "signs", keep=keep, progress=False).signs
    generator = torch.Generator().manual_seed(seed)
    profile = sharing_profile(signs, generator, n_draws=config.n_draws)
    tokens = interp.scores.sharing_over_tokens(model, rows, fires_by=fires_by)
    few = ablation_tasks(model, tasks, config)
    settings: dict[str, Any] = {"fires_by": fires_by, "n_draws": config.n_draws, "bos": bos}
    off: dict[Tokens, CategoryAblation] = {
        where: interp.evaluations.ablate_categories(
            *(model, few, torch.Generator().manual_seed(seed)),
            tokens=where,
            out=folder / f"off-{where}",
            **settings,
        )
        for where in config.off_at
    }
    sums = interp.evaluations.attribute_categories(
        model, few, folder / "pieces", steps=config.steps, fires_by=fires_by, bos=bos
    )
    ratio = enrichment(model, few, top_share=config.top_share, fires_by=fires_by, bos=bos)
    scores = interp.evaluations.category_scores(model, few, fires_by=fires_by, bos=bos)
    return TaskResults(signs, profile, tokens, off, sums, ratio, scores)


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study)
    distance = distances_of(config)
    rows: dict[str, list[dict[str, object]]] = {"numbers": [], "thresholds": [], "relatedness": []}
    shares: dict[str, tuple[Tensor, Tensor]] = {}
    for task in config.tasks:
        tasks = interp.text.align_tasks([interp.read_task(task, code) for code in study.languages])
        name = tasks[0].name
        folder = config.out / name.replace("/", "-")
        begin_task(model, name, folder, config)
        results = measure_task(model, tasks, folder, config)
        short = name.split("/")[-1].replace("_", " ")
        signs, profile = results.signs, results.profile
        on, named = f"{record.on}, {short}", f"{{claim}}-{short}"
        record.judge("map_shared_neurons_by_task", results.measured(), on, named)
        shares[name] = all_shared(profile)
        rows["numbers"] += by_number(signs, name, config)
        prompts = rows_of(model, tasks, study.held_out_bos)
        rows["thresholds"] += by_threshold(model, prompts, name, config)
        tables = results.tables()
        if distance is not None:
            tables |= {"overlap": overlap_table(profile, distance)}
            rows["relatedness"].append(relatedness(name, profile, distance, study.seed))
        record.tables({f"{folder.name}/{table}": frame for table, frame in tables.items()})
        whole = tables["off"].query("language == 'all'").filter(["where", "off", "size", *SHOWN])
        print(f"\n{name}", flush=True)
        for frame in (tables["tokens"], whole):
            print(f"\n{frame.to_string(index=False, float_format='%.3f')}", flush=True)
    frames = {name: pd.DataFrame(listed) for name, listed in rows.items()}
    filled = {name: frame for name, frame in frames.items() if len(frame)}
    record.tables(filled)
    for frame in filled.values():
        print(f"\n{frame.to_string(index=False, float_format='%.3f')}")
    record.judge("map_shared_neurons", over_tasks(frames["relatedness"], shares))


def all_shared(
    profile: SharingProfile,
) -> tuple[Float64[Tensor, " prompt"], Float64[Tensor, " prompt"]]:
    """Share of all-shared neurons by prompt, mean over layers, and what firing rates alone give."""
    share = profile.count[..., Sharing.ALL_SHARED].double() / profile.d_mlp
    chance = profile.expected[..., Sharing.ALL_SHARED]
    return share.mean(dim=1), chance.mean(dim=1)


def begin_task(model: interp.NeuronModel, name: str, folder: Path, config: Measured) -> None:
    """Refuse to resume the pieces of another model or other settings."""
    plan = {"model": model.identity, "task": name, "languages": list(config.study.languages)}
    plan |= {"steps": config.steps, "fires_by": config.fires_by, "bos": config.study.held_out_bos}
    begin(folder, plan)


def ablation_tasks(
    model: interp.NeuronModel, tasks: Sequence[Task], config: Measured
) -> tuple[Task, ...]:
    """Items held out in no language, whose options differ in their first token, since answers are
    chosen at the last token of the prompt."""
    held_out = {item.id for task in tasks for item in task.items if item.held_out}
    distinct = drop_ambiguous(model, tasks, config.study.held_out_bos)
    ids = [item.id for item in distinct[0].items if item.id not in held_out][: config.n_prompts]
    return tuple(task.where(lambda item: item.id in ids) for task in distinct)


experiment = Experiment("map_shared_neurons", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

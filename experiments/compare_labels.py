"""Do topics have neurons as languages have?

    python -m experiments.compare_labels tiny     # seconds
    python -m experiments.compare_labels babel    # minutes
    python -m experiments.compare_labels gemma    # Gemma 3 270M, which `make real` installs

Reads   a model, and sentences with a topic, each in every language: those of this project, or a
        folder of <language>.txt with meta.tsv, as SIB-200 has
Writes  results/compare_labels/<preset>/<labels>/matrix.safetensors and matrix.csv; labels.csv (a
        row per language and topic), claims.json

The same sentences are labelled twice: by their language, with all topics in each, and by their
topic, with all languages in each. LAPE selects neurons on half of the sentences, and they are
switched off on the other half; a sentence and its translations are in the same half.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float64
from torch import Tensor

import interp
from experiments import gemma, runner
from experiments.deactivation_claims import ALIKE, compared, per_token, sums_of
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.evaluations import PerplexityMatrix
from interp.evaluations.dominance import own_minus_others
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.scores.lape import language_entropy
from interp.selections.agreement import half_selections, jaccard_between
from interp.selections.chance import jaccard_by_chance

LANGUAGES, TOPICS = "languages", "topics"
BABEL = Path(interp.__file__).parent / "babel" / "parallel"

Texts = Mapping[str, Sequence[str]]
"""Label → sentences."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """Which sentences are read, and what is switched off."""

    topics: str = "babel"
    """"babel" (its parallel sentences), or a folder of <language>.txt and meta.tsv, whose column
    `category` has the topic of each line."""

    fraction: float = 0.01
    """Of all neurons, selected by LAPE."""


SIZES: Mapping[str, Any] = {"tokens": 6400, "held_out_tokens": 640, "block_length": 64}

PRESETS = {
    "tiny": Preset(
        "Two languages of the shipped model, little text: seconds.",
        Study(languages=("de", "ja"), tokens=2560, held_out_tokens=640, n_shards=4),
        {"fraction": 0.03},
    ),
    "babel": Preset("The shipped model: minutes.", Study(**SIZES), {"fraction": 0.03}),
    "gemma": replace(gemma.preset(), study=replace(gemma.STUDY, **SIZES)),
}


def topics_of(source: str) -> list[str]:
    """The topic of each line, as a label; Babel's is in the name of the sentence."""
    if source == "babel":
        names = (BABEL / "ids.txt").read_text(encoding="utf-8").split()
        return [name.partition("-")[0] for name in names]
    table = Path(source) / "meta.tsv"
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} is missing: it has a row for each line of <language>.txt, whose topic is in "
            "the column category."
        )
    rows = pd.read_csv(table, sep="\t", keep_default_na=False, dtype=str)
    if "category" not in rows:
        raise ValueError(
            f"{table} has the columns {', '.join(rows)}: the topic of each line belongs in one "
            "named category."
        )
    return [topic.replace("/", " and ") for topic in rows["category"]]


def labelled(source: str, codes: Sequence[str], seed: int) -> dict[str, tuple[Texts, Texts]]:
    """By language and by topic: the sentences to select on, and those to read the losses on."""
    topics = topics_of(source)
    texts = {code: [text for text, _ in interp.text.read_documents(source, code)] for code in codes}
    for code, sentences in texts.items():
        if len(sentences) != len(topics):
            raise ValueError(
                f"{code} has {len(sentences):,} sentences in {source}, but {len(topics):,} have a "
                "topic: a line must be the same sentence in every language."
            )
    order = list(range(len(topics)))
    random.Random(seed).shuffle(order)
    halves = (order[::2], order[1::2])
    names = sorted(set(topics))
    by_language = [{code: [texts[code][n] for n in half] for code in codes} for half in halves]
    by_topic = [
        {
            name: [texts[code][n] for n in half for code in codes if topics[n] == name]
            for name in names
        }
        for half in halves
    ]
    pairs = {LANGUAGES: by_language, TOPICS: by_topic}
    return {name: (first, second) for name, (first, second) in pairs.items()}


def read(study: Study, texts: Texts, model: interp.NeuronModel, held_out: bool) -> interp.Corpora:
    """Running text of every label; topics are no languages, whatever their names."""
    return interp.read_corpora(
        texts,
        list(texts),
        model,
        block_length=study.block_length,
        tokens=study.held_out_tokens if held_out else study.tokens,
        n_shards=study.n_shards,
        bos=study.held_out_bos if held_out else study.bos,
        hygiene="off",
        tags={} if set(texts) <= set(study.languages) else dict.fromkeys(texts, ""),
        progress=False,
    )


def again(
    stats: interp.FiringStats, fraction: float, generator: torch.Generator
) -> tuple[Float64[Tensor, " label"], Float64[Tensor, " label"]]:
    """Jaccard of the selections from two halves of the shards, and of random ones of their sizes;
    means over splits. A label without neurons in either half counts as zero."""
    select = partial(interp.select_by_entropy, fraction=fraction)
    pairs = list(half_selections(stats, select, generator))
    found = torch.stack([jaccard_between(a, b).nan_to_num(0.0).double() for a, b in pairs])
    chance = torch.stack(
        [jaccard_by_chance(a.mask, b.mask, [a.n_units]).value.nan_to_num(0.0) for a, b in pairs]
    )
    return found.mean(dim=0), chance.mean(dim=0)


def table_of(
    name: str,
    stats: interp.FiringStats,
    selection: interp.NeuronSelection,
    matrix: PerplexityMatrix,
    halves: tuple[Float64[Tensor, " label"], Float64[Tensor, " label"]],
) -> Table:
    """A row per label: its neurons, how sharply they fire, and what it loses without them.

    `entropy` is that of a neuron's firing over labels, divided by its largest possible value.
    """
    entropy = language_entropy(stats.rate) / math.log(len(stats.languages))
    total = {key: shards.sum(dim=0) for key, shards in sums_of(matrix).items()}
    own, alike = per_token(total, "own"), per_token(total, ALIKE)
    count = len(own) - 1
    return pd.DataFrame(
        {
            "labels": name,
            "label": selection.languages,
            "neurons": list(selection.counts().values()),
            "entropy": [entropy[mask].mean().item() for mask in selection.mask],
            "again": halves[0].tolist(),
            "again_by_chance": halves[1].tolist(),
            "loss": matrix.losses.loss[0].tolist(),
            "own": own.diagonal().tolist(),
            "others": ((own.sum(dim=1) - own.diagonal()) / count).tolist(),
            "own_minus_others": own_minus_others(own).tolist(),
            "alike_own": alike.diagonal().tolist(),
            "alike_minus_others": own_minus_others(alike).tolist(),
        }
    )


def also_in(
    selection: interp.NeuronSelection, other: Bool[Tensor, "layer neuron"]
) -> Float64[Tensor, " label"]:
    """Share of each label's neurons that are in the other set too; NaN: it has none."""
    sizes = selection.mask.sum(dim=(1, 2)).double()
    return (selection.mask & rearrange(other, "layer neuron -> 1 layer neuron")).sum(
        dim=(1, 2)
    ) / sizes


def measures(table: Table) -> dict[str, Measurement | None]:
    """Means over topics, beside their controls or those over languages."""

    def column(labels: str, name: str) -> Float64[Tensor, " label"]:
        numbers = table.loc[table["labels"] == labels, name].dropna()
        return torch.tensor(numbers.to_numpy(), dtype=torch.float64)

    def beside_languages(name: str) -> Measurement | None:
        both = [column(labels, name) for labels in (TOPICS, LANGUAGES)]
        if min(map(len, both)) < 2:
            return None
        return Measurement(*map(mean_over_examples, both))

    apart = column(TOPICS, "also_languages")
    return {
        "topics-own": compared(
            column(TOPICS, "own_minus_others"), column(TOPICS, "alike_minus_others")
        ),
        "topics-less": beside_languages("own_minus_others"),
        "topics-again": compared(column(TOPICS, "again"), column(TOPICS, "again_by_chance")),
        "topics-less-again": beside_languages("again"),
        "topics-blurred": beside_languages("entropy"),
        "topics-apart": Measurement(mean_over_examples(apart)) if len(apart) > 1 else None,
    }


def main(config: Config, record: Record) -> None:
    study, model = config.study, record.open(config.study)
    tables: list[Table] = []
    selections: dict[str, interp.NeuronSelection] = {}
    for name, (first, second) in labelled(config.topics, study.languages, study.seed).items():
        out, generator = config.out / name, torch.Generator().manual_seed(study.seed)
        corpora = read(study, first, model, held_out=False)
        stats = interp.collect(model, corpora, out / "statistics", progress=False).firing
        selections[name] = interp.select_by_entropy(stats, config.fraction)
        text = read(study, second, model, held_out=True)
        matrix = interp.perplexity_matrix(
            model, selections[name], text, n_draws=0, rate=stats.rate, out=out, progress=False
        )
        record.tables({f"{name}/matrix": matrix.to_frame()})
        halves = again(stats, config.fraction, generator)
        tables.append(table_of(name, stats, selections[name], matrix, halves))
        print(f"\n{name}\n{tables[-1].to_string(index=False, float_format='%.3f')}", flush=True)
    for name, rows in zip(selections, tables, strict=True):
        shared = also_in(selections[name], selections[LANGUAGES].union())
        rows["also_languages"] = shared.tolist()
    table = pd.concat(tables, ignore_index=True)
    record.tables({"labels": table})
    record.judge("compare_labels", measures(table))


experiment = Experiment("compare_labels", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

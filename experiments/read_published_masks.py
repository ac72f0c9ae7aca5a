"""What do the masks that Tang et al. (2024) published say about their own claims?

    python -m experiments.read_published_masks --masks FOLDER     # seconds; no model is needed

Reads   FOLDER/<model>.neuron.pth, the authors' files; `MODELS` are those whose size is known
Writes  results/read_published_masks/sizes.csv (a row per model and language), pairs.csv (a row per
        model and two languages), claims.json

A mask is a list of neurons, so everything here is counted without error; chance is that of as many
random neurons in every layer. The files name neither languages nor sizes: both are known from the
models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro

import interp
from interp import plots
from interp.inference.claims import Claim, counted, markdown, save_claims
from interp.plots.style import Table
from interp.results import artifacts

COMMAND = "python -m experiments.read_published_masks --masks FOLDER"
SOURCE = "Tang et al. (2024)"

SIX = ("en", "zh", "fr", "es", "vi", "id")
SEVEN = (*SIX, "ja")
MODELS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "LLaMA-2-7B": (SEVEN, 11008),
    "LLaMA-2-13B": (SEVEN, 13824),
    "LLaMA-2-70B": (SIX, 28672),
    "BLOOM-7B": (SIX, 16384),
    "OPT-6.7B": (SIX, 16384),
    "Mistral-7B": (SIX, 14336),
    "Phi-2": (SIX, 10240),
}
"""The languages of a file, in its order, and the neurons of a layer."""


@dataclass(frozen=True)
class Config:
    """What is read."""

    masks: Path
    """Folder of the authors' files."""

    fraction: float = 0.01
    """Of all neurons, that the authors selected."""

    out: Path = Path("results/read_published_masks")
    """Folder for the tables and claims."""


def read_masks(folder: Path) -> dict[str, interp.NeuronSelection]:
    """The masks of the folder by model; files of other models are named and left out."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: give the folder of the published .pth files."
        )
    known = {model.lower(): model for model in MODELS}
    found = {}
    for file in sorted(folder.glob("*.pth")):
        model = known.get(file.name.removesuffix(".pth").removesuffix(".neuron").lower())
        if model is None:
            print(f"{file.name} is left out: its model is none of {', '.join(MODELS)}.")
        else:
            found[model] = interp.NeuronSelection.from_lape_pth(file, *MODELS[model])
    if not found:
        raise ValueError(f"{folder} holds no mask of {', '.join(MODELS)}: give another folder.")
    return {model: found[model] for model in MODELS if model in found}


def shares(selection: interp.NeuronSelection) -> dict[str, list[float]]:
    """Share of each language's neurons, and last of all of them, that are in some of the layers."""
    profile = torch.cat([selection.layer_profile(), selection.union().sum(dim=1, keepdim=True).mT])
    share = profile.double() / profile.sum(dim=1, keepdim=True)
    quarter = selection.n_layers // 4
    return {
        "first_two_layers": share[:, :2].sum(dim=1).tolist(),
        "first_quarter": share[:, :quarter].sum(dim=1).tolist(),
        "last_quarter": share[:, -quarter:].sum(dim=1).tolist(),
    }


def exclusive(selection: interp.NeuronSelection) -> float:
    """Share of the selected neurons that belong to one language alone."""
    number = selection.languages_per_neuron()
    return ((number == 1).sum() / (number > 0).sum()).item()


def sizes_of(model: str, selection: interp.NeuronSelection) -> pd.DataFrame:
    alone = selection.mask & (selection.languages_per_neuron() == 1)
    rows = {
        "model": model,
        "language": selection.languages,
        "neurons": list(selection.counts().values()),
        "of_no_other": alone.sum(dim=(1, 2)).tolist(),
    }
    return pd.DataFrame(rows | {name: each[:-1] for name, each in shares(selection).items()})


def rank(pairs: Table, *wanted: tuple[str, str]) -> int:
    """The best place of these pairs among all, the largest Jaccard first."""
    order = pairs.sort_values("jaccard", ascending=False)[["language", "other"]].to_numpy().tolist()
    places = [order.index(list(pair)) for pair in wanted if list(pair) in order]
    return 1 + min(places)


def claims_of(
    model: str, selection: interp.NeuronSelection, pairs: Table, fraction: float
) -> list[Claim]:
    """The claims of the paper that a mask alone can tell about."""
    n_layers, n_neurons = selection.n_layers, selection.n_neurons
    expected = round(fraction * n_layers * n_neurons)
    random = selection.random_like(torch.Generator().manual_seed(0))
    where = {name: each[-1] for name, each in shares(selection).items()}
    quarter = n_layers // 4 / n_layers
    said: dict[str, Any] = {
        "source": SOURCE,
        "on": f"{model}, the published mask",
        "command": COMMAND,
    }
    claims = [
        counted(
            float(abs(int(selection.union().sum()) - expected)),
            name=f"{model}-size",
            statement="One neuron in a hundred is selected, over all languages and layers.",
            how=f"neurons more or less than {expected:,}",
            bar=0.5,
            side="below",
            **said,
        ),
        counted(
            exclusive(selection),
            name=f"{model}-exclusive",
            statement="Language neurons are specific to a language.",
            how="share of the selected neurons that belong to one language alone",
            bar=0.5,
            control=exclusive(random),
            control_name="by chance",
            **said,
        ),
    ]
    for name, part, bar in (
        ("first_two_layers", "the bottom layers: the first two", 2 / n_layers),
        ("last_quarter", "the top layers: the last quarter", quarter),
    ):
        claims.append(
            counted(
                where[name],
                name=f"{model}-{name}",
                statement=f"Language neurons gather in {part}.",
                how="share of the selected neurons, against that of the layers",
                bar=bar,
                control=bar,
                control_name="by chance",
                **said,
            )
        )
    chance = f"mean place by chance, among {len(pairs)} pairs"
    for name, statement, wanted in (
        ("fr-es", "Related languages share: French and Spanish.", [("fr", "es")]),
        (
            "neighbours",
            "Neighbours share: Chinese and Japanese, or Vietnamese and Indonesian.",
            [("zh", "ja"), ("vi", "id")],
        ),
    ):
        claims.append(
            counted(
                float(rank(pairs, *wanted)),
                name=f"{model}-{name}",
                statement=statement,
                how="place among the pairs of languages by Jaccard; within the first three",
                bar=3.5,
                side="below",
                control=(len(pairs) + 1) / 2 if len(wanted) == 1 else float("nan"),
                control_name=chance if len(wanted) == 1 else "",
                **said,
            )
        )
    return claims


def main(config: Config) -> None:
    sizes, pairs, claims = [], [], []
    for model, selection in read_masks(config.masks).items():
        sizes.append(sizes_of(model, selection))
        overlap: Table = plots.overlap_table(selection)
        two = overlap[overlap["language"] != overlap["other"]].assign(model=model)
        pairs.append(two)
        claims += claims_of(model, selection, two, config.fraction)
    for name, frames in (("sizes", sizes), ("pairs", pairs)):
        table = pd.concat(frames, ignore_index=True)
        artifacts.write_text(config.out / f"{name}.csv", table.to_csv(index=False))
        print(f"\n{table.to_string(index=False, float_format='%.3f')}")
    save_claims(claims, config.out / "claims.json")
    print(f"\n{markdown(claims)}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

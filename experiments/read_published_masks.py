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

import pandas as pd
import torch

import interp
from experiments.runner import Experiment, Record
from interp.inference.claims import Measurement
from interp.plots.style import Table

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


def measures(
    selection: interp.NeuronSelection, pairs: Table, fraction: float
) -> dict[str, Measurement | None]:
    """What a mask alone can tell about the claims of the paper."""
    n_layers = selection.n_layers
    expected = round(fraction * n_layers * selection.n_units)
    random = selection.random_like(torch.Generator().manual_seed(0))
    where = {name: each[-1] for name, each in shares(selection).items()}
    size = float(abs(int(selection.union().sum()) - expected))
    return {
        "size": Measurement(size, words={"expected": f"{expected:,}"}),
        "exclusive": Measurement(exclusive(selection), exclusive(random)),
        "first_two_layers": Measurement(where["first_two_layers"], 2 / n_layers),
        "last_quarter": Measurement(where["last_quarter"], n_layers // 4 / n_layers),
        "fr-es": Measurement(
            float(rank(pairs, ("fr", "es"))),
            (len(pairs) + 1) / 2,
            words={"n_pairs": str(len(pairs))},
        ),
        "neighbors": Measurement(float(rank(pairs, ("zh", "ja"), ("vi", "id")))),
    }


def main(config: Config, record: Record) -> None:
    sizes, pairs = [], []
    for model, selection in read_masks(config.masks).items():
        sizes.append(sizes_of(model, selection))
        overlap: Table = selection.overlap_frame()
        two = overlap[overlap["language"] != overlap["other"]].assign(model=model)
        pairs.append(two)
        measured = measures(selection, two, config.fraction)
        on, named = f"{model}, the published mask", f"{model}-{{claim}}"
        record.judge("read_published_masks", measured, on, named)
    tables = {"sizes": pd.concat(sizes, ignore_index=True)}
    tables |= {"pairs": pd.concat(pairs, ignore_index=True)}
    record.tables(tables)
    for table in tables.values():
        print(f"\n{table.to_string(index=False, float_format='%.3f')}")


experiment = Experiment("read_published_masks", __doc__, main, Config)

if __name__ == "__main__":
    experiment.command()

"""What do the masks that Tang et al. (2024) published say about their own claims?

    python -m experiments.read_published_masks --masks FOLDER     # seconds; no model is needed

Reads   FOLDER/<model>.neuron.pth, the authors' files, of the models in `MODELS`
Writes  results/read_published_masks/sizes.csv (a row per model and language), pairs.csv (a row per
        model and two languages), claims.json

Everything is counted without error, since a mask is a list of neurons. Chance is a random set of
the same size per layer. The files name neither languages nor sizes: `MODELS` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

import interp
from experiments.runner import Experiment, Record
from interp.inference.statements import Measurement
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
"""Model → the languages of its file, in order, and the neurons per layer."""


@dataclass(frozen=True)
class Config:
    """What is read."""

    masks: Path
    """Folder of the authors' files."""

    out: Path = Path("results/read_published_masks")
    """Folder for the tables and claims."""


def read_masks(folder: Path) -> dict[str, interp.NeuronSelection]:
    """The masks of the folder by model; files of other models are reported and left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: give the folder of published .pth files.")
    known = {model.lower(): model for model in MODELS}
    masks = {}
    for file in sorted(folder.glob("*.pth")):
        model = known.get(file.name.removesuffix(".pth").removesuffix(".neuron").lower())
        if model is None:
            print(f"{file.name} is left out: its model is not among {', '.join(MODELS)}.")
        else:
            masks[model] = interp.NeuronSelection.from_lape_pth(file, *MODELS[model])
    if not masks:
        raise ValueError(f"{folder} holds no mask of {', '.join(MODELS)}: give another folder.")
    return {model: masks[model] for model in MODELS if model in masks}


def shares(selection: interp.NeuronSelection) -> dict[str, list[float]]:
    """Share of each language's neurons in some of the layers; in the last row, of all neurons."""
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
    n_languages = selection.languages_per_neuron()
    return ((n_languages == 1).sum() / (n_languages > 0).sum()).item()


def sizes_of(model: str, selection: interp.NeuronSelection) -> pd.DataFrame:
    alone = selection.mask & (selection.languages_per_neuron() == 1)
    rows = {
        "model": model,
        "language": selection.languages,
        "neurons": list(selection.counts().values()),
        "of_no_other": alone.sum(dim=(1, 2)).tolist(),
    }
    return pd.DataFrame(rows | {name: share[:-1] for name, share in shares(selection).items()})


def rank(pairs: Table, *wanted: tuple[str, str]) -> int:
    """The best rank of these pairs among all, by Jaccard index; 1: the largest."""
    order = pairs.sort_values("jaccard", ascending=False)[["language", "other"]].to_numpy().tolist()
    return 1 + min(order.index(list(pair)) for pair in wanted if list(pair) in order)


def chance_rank(n_pairs: int, n_wanted: int) -> float:
    """Mean over all orders of the pairs of the best rank of those wanted."""
    return (n_pairs + 1) / (n_wanted + 1)


def measures(selection: interp.NeuronSelection, pairs: Table) -> dict[str, Measurement | None]:
    """What a mask alone says about the claims of the paper."""
    n_layers, words = selection.n_layers, {"n_pairs": str(len(pairs))}
    random = selection.random_like(torch.Generator().manual_seed(0))
    neighbors = [
        pair for pair in (("zh", "ja"), ("vi", "id")) if set(pair) <= set(selection.languages)
    ]
    where = {name: share[-1] for name, share in shares(selection).items()}
    return {
        "exclusive": Measurement(exclusive(selection), exclusive(random)),
        "first_two_layers": Measurement(where["first_two_layers"], 2 / n_layers),
        "last_quarter": Measurement(where["last_quarter"], n_layers // 4 / n_layers),
        "fr-es": Measurement(
            float(rank(pairs, ("fr", "es"))), chance_rank(len(pairs), 1), words=words
        ),
        "neighbors": Measurement(
            float(rank(pairs, *neighbors)), chance_rank(len(pairs), len(neighbors)), words=words
        ),
    }


def main(config: Config, record: Record) -> None:
    sizes, pairs = [], []
    for model, selection in read_masks(config.masks).items():
        sizes.append(sizes_of(model, selection))
        overlap: Table = selection.overlap_frame()
        pairs.append(overlap[overlap["language"] != overlap["other"]].assign(model=model))
        measured = measures(selection, pairs[-1])
        on, name = f"{model}, the published mask", f"{model}-{{claim}}"
        record.judge("read_published_masks", measured, on, name)
    tables = {"sizes": pd.concat(sizes), "pairs": pd.concat(pairs)}
    record.tables(tables)
    for table in tables.values():
        print(f"\n{table.to_string(index=False, float_format='%.3f')}")


experiment = Experiment("read_published_masks", __doc__, main, Config)

if __name__ == "__main__":
    experiment.command()

"""The figures of the results in a folder, each with its table, for a paper."""

from collections import Counter
from pathlib import Path

import pandas
import torch

from interp import plots
from interp.counting.run import Run
from interp.counting.stats import FiringStats
from interp.models.units import Address
from interp.reports.neuron_page import rates_of
from interp.reports.report import Picture
from interp.reports.sections import files_in, sections_of
from interp.results.bars import tqdm
from interp.selections.neuron_selection import NeuronSelection
from interp.text.languages import worded


def figures_of(path: Path) -> dict[str, Picture]:
    """The figures that a report of these results would have, by name for `interp.plots.save`.

    A name is the kind of the figure; of several of one kind, each has its folder (or its file)
    after a hyphen.
    """
    pictures = [
        (file, kind, picture)
        for file in tqdm(files_in(path), "reading results", unit="file")
        for section in sections_of(file)
        for picture in section.pictures
        if (kind := getattr(picture.drawing, "__name__", ""))
    ]
    root = path if path.is_dir() else path.parent
    folders = [file.parent.relative_to(root).as_posix().replace("/", "_") for file, *_ in pictures]
    kinds = Counter(kind for _, kind, _ in pictures)
    places = Counter(zip((kind for _, kind, _ in pictures), folders, strict=True))
    named: dict[str, Picture] = {}
    for (file, kind, picture), folder in zip(pictures, folders, strict=True):
        parts = [part for part in (folder,) if part != "." and kinds[kind] > 1]
        parts += [file.stem] if places[kind, folder] > 1 else []
        named["-".join([kind, *parts])] = picture
    return named


def figure_of_neuron(path: Path, address: Address) -> Picture:
    """How often a neuron of a run fires in each language, for `interp.plots.save`.

    The languages that it belongs to are those of neurons.json in the run's folder.
    """
    stats = Run.open(path).firing
    layer, unit = address.layer, _unit(stats, address, path)
    rate, low, high = (end[0].tolist() for end in rates_of(stats, torch.tensor([[layer, unit]])))
    selected = path / "neurons.json"
    belonging: list[str] = []
    if selected.is_file():
        selection = NeuronSelection.from_json(selected)
        belonging = [code for code in selection.languages if selection[code][layer, unit]]
    of_expert = address.expert is not None
    table = pandas.DataFrame(
        ({"layer": layer, "expert": address.expert} if of_expert else {"layer": layer})
        | {"neuron": address.neuron, "language": stats.languages}
        | {"rate": rate, "low": low, "high": high}
        | {"belongs": [code in belonging for code in stats.languages]}
    )
    tokens = f"the tokens routed to expert {address.expert}" if of_expert else "tokens"
    caption = worded(f"Share of {tokens} on which the neuron fires, by language", stats.languages)
    caption += ", with 95 % intervals over documents." if stats.n_shards > 1 else "."
    return Picture(plots.neuron_rates, caption, table)


def _unit(stats: FiringStats, address: Address, path: Path) -> int:
    """The index of a neuron in its layer, refused if it is not there."""
    in_layer = address.neuron < stats.d_mlp and address.expert is None
    if address.layer >= stats.n_layers or (stats.layout is None and not in_layer):
        raise ValueError(
            f"There is no neuron {address.name} in {path}, which has layers 0 to "
            f"{stats.n_layers - 1} of neurons 0 to {stats.d_mlp - 1}."
        )
    return address.neuron if stats.layout is None else stats.layout.unit(*address)

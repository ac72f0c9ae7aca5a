"""What is kept of the masks that Tang et al. (2024) published, which are not in this repository.

Of every layer, how many neurons belong to exactly these languages. So sizes, layers and overlaps
are those of the files, and which neurons they are is not kept.
"""

import json
from collections import Counter
from pathlib import Path

import torch

from interp.selections.neuron_selection import NeuronSelection

FILE = Path(__file__).parent / "facts" / "published_masks.json"


def groups_of(selection: NeuronSelection) -> list[dict[str, int]]:
    """Layer by layer: codes, separated by spaces → neurons of exactly these languages."""
    layers: list[Counter[str]] = [Counter() for _ in range(selection.n_layers)]
    for layer, neuron in selection.union().nonzero().tolist():
        belongs = selection.mask[:, layer, neuron].tolist()
        codes = [code for code, yes in zip(selection.languages, belongs, strict=True) if yes]
        layers[layer][" ".join(codes)] += 1
    return [dict(sorted(layer.items())) for layer in layers]


def models() -> tuple[str, ...]:
    return tuple(json.loads(FILE.read_text(encoding="utf-8")))


def kept_mask(model: str) -> NeuronSelection:
    """A mask with as many neurons of each group, in every layer the first ones."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))[model]
    languages, layers = tuple(stored["languages"]), stored["layers"]
    mask = torch.zeros(len(languages), len(layers), stored["d_mlp"], dtype=torch.bool)
    for layer, groups in enumerate(layers):
        first = 0
        for codes, n in groups.items():
            rows = [languages.index(code) for code in codes.split()]
            mask[rows, layer, first : first + n] = True
            first += n
    return NeuronSelection(mask, languages)

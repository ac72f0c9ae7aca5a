"""Changes written by hand in a JSON file, on the neurons and means of a run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.counting.stats import ActivationMoments
from interp.interventions.edits import (
    Change,
    Edit,
    Site,
    add,
    deactivate,
    difference_of_means,
    override,
    replace,
    scale,
)
from interp.results.words import Tokens, Towards
from interp.selections.neuron_selection import NeuronSelection

EDITS = ("deactivate", "scale", "set", *get_args(Towards))
"""Names of the edits that a file may have."""

KEYS = ("neurons", "edit", "strength", "label", "site", "tokens")
"""What a change in a file may say."""


def edit_towards(
    moments: ActivationMoments,
    label: str,
    edit: Towards = "difference",
    strength: float = 1.0,
    site: Site = "act",
) -> Edit:
    """The edit of this name towards a label; `strength` multiplies what is added.

    >>> interp.selections.edit_towards(moments, "de", "difference", strength=2.0)
    Edit('2 towards de', factor 1, shift at act)
    """
    if edit == "replace":
        return replace(moments, label, site)
    adding = {"add": add, "difference": difference_of_means}[edit]
    return adding(moments, label, strength, site)


def read_changes(
    path: Path | str,
    selection: NeuronSelection,
    moments: Callable[[], ActivationMoments] | None = None,
) -> list[Change]:
    """The changes in a JSON file, which apply together: a list, the first outermost.

    `neurons` is a label of the selection, or lists of neurons by layer, counted from zero; in a
    mixture of experts each is [expert, neuron], or [null, neuron] of a layer's dense ones. `edit`
    is deactivate, scale (by `strength`), set (their output to `strength`), or difference, add,
    replace, which use the means of `label` (by default the one that names the neurons) at `site`;
    `moments` gives these when they are needed. `tokens` says where, as in `Change`.

    >>> file = folder / "change.json"
    >>> file.write_text('[{"neurons": "de", "edit": "deactivate"},'
    ...     ' {"neurons": {"3": [17, 204]}, "edit": "scale", "strength": 2}]')
    104
    >>> [change.edit for change in interp.selections.read_changes(file, neurons)]
    [Edit('deactivate', factor 0), Edit('scale by 2', factor 2)]
    """
    path = Path(path)
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): give a list of changes.") from None
    if not (isinstance(stored, list) and stored and all(isinstance(row, dict) for row in stored)):
        raise ValueError(
            f'{path} must hold a list of changes, such as [{{"neurons": "de", "edit": '
            '"deactivate"}].'
        )
    changes = []
    for number, row in enumerate(stored, start=1):
        try:
            changes.append(_change(row, selection, moments))
        except (ValueError, KeyError) as error:
            raise ValueError(f"Change {number} of {path}: {error.args[0]}") from None
    return changes


def _change(
    row: Mapping[str, Any],
    selection: NeuronSelection,
    moments: Callable[[], ActivationMoments] | None,
) -> Change:
    if unknown := [key for key in row if key not in KEYS]:
        raise ValueError(f"there is no {', '.join(unknown)}; give some of {', '.join(KEYS)}.")
    if "neurons" not in row or row.get("edit") not in EDITS:
        raise ValueError(f"give neurons, and an edit of {', '.join(EDITS)}.")
    neurons, tokens = row["neurons"], row.get("tokens", "all")
    if tokens not in get_args(Tokens):
        raise ValueError(f"tokens is {tokens!r}: give one of {', '.join(get_args(Tokens))}.")
    edit = _edit(row, selection, moments)
    if isinstance(neurons, str):
        return selection.change(neurons, edit, tokens)
    return Change(_mask(neurons, selection), edit, tokens)


def _edit(
    row: Mapping[str, Any],
    selection: NeuronSelection,
    moments: Callable[[], ActivationMoments] | None,
) -> Edit:
    name, strength = row["edit"], row.get("strength", 1.0)
    if type(strength) not in (int, float):
        raise ValueError(f"the strength is {strength!r}: give a number.")
    strength = float(strength)
    if name in ("scale", "set") and "strength" not in row:
        raise ValueError(f"{name} needs a strength.")
    if name == "deactivate":
        return deactivate
    if name == "scale":
        return scale(strength)
    if name == "set":
        shape = selection.n_layers, selection.neurons().n_units
        return override(torch.full(shape, strength))
    label = row.get("label", row["neurons"])
    if not isinstance(label, str):
        raise ValueError(f"{name} needs the label whose means it uses.")
    if moments is None:
        raise ValueError(f"{name} needs the means of a run: collect it with --moments.")
    return edit_towards(moments(), label, name, strength, row.get("site", "act"))


def _mask(neurons: Any, selection: NeuronSelection) -> Bool[Tensor, "layer neuron"]:
    """The neurons listed by layer."""
    n_layers, n_units, layout = selection.n_layers, selection.neurons().n_units, selection.layout
    mask = torch.zeros(n_layers, n_units, dtype=torch.bool)
    if not isinstance(neurons, dict):
        example = '{"3": [17, 204]}' if layout is None else '{"3": [[12, 17], [null, 4]]}'
        raise ValueError(f"neurons is a label, or lists by layer, such as {example}.")
    for layer, indices in neurons.items():
        if layout is not None and isinstance(indices, list) and layer.isdecimal():
            mask[int(layer), layout.units_at(int(layer), indices)] = True
            continue
        whole = isinstance(indices, list) and all(type(index) is int for index in indices)
        if not (layer.isdecimal() and int(layer) < n_layers and whole):
            raise ValueError(
                f"neurons has {layer!r}: {str(indices)[:40]}; give lists of whole numbers for "
                f"layers 0 to {n_layers - 1}."
            )
        if outside := [index for index in indices if not 0 <= index < n_units]:
            raise ValueError(
                f"there is no neuron {outside[0]} in layer {layer}, which has {n_units:,}."
            )
        mask[int(layer), indices] = True
    return mask

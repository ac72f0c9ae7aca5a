"""Selections as files: readable JSON, and the format of the published masks.

Files hold lists of ids; `interp.selections.neuron_selection` gives them their meaning.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from interp.models.units import UnitLayout
from interp.results import artifacts
from interp.text.labels import label_problem

FORMAT = "polyneuron NeuronSelection 1"

Sites = tuple[tuple[str, int], ...]
"""Kind and width of each site, in the order of the last axis of a mask."""


class Listed(NamedTuple):
    """The contents of a JSON file, in the order of `NeuronSelection.from_triples`."""

    triples: list[tuple[int, int, int]]
    """(Index of the language, layer, neuron)."""

    languages: tuple[str, ...]
    n_layers: int
    n_units: int
    sites: Sites
    pool: Bool[Tensor, "layer neuron"] | None = None
    layout: UnitLayout | None = None


def write_json(
    path: Path | str,
    mask: Bool[Tensor, "language layer neuron"],
    languages: Sequence[str],
    sites: Sites,
    pool: Bool[Tensor, "layer neuron"] | None = None,
    layout: UnitLayout | None = None,
    *,
    provenance: Mapping[str, Any],
) -> None:
    """Write one line per language and layer, without empty layers.

    For the neurons alone a line lists ids; for several sites, the ids at each site; in a mixture of
    experts [expert, neuron], where the expert of dense neurons is null. A pool is listed as [first,
    after the last] of its intervals in each layer, in a mixture as [expert, first, after the last].
    """
    blocks = []
    for language, layers in zip(languages, mask, strict=True):
        rows = [
            f'   "{layer}": {json.dumps(_ids(layer, chosen, sites, layout))}'
            for layer, chosen in enumerate(layers)
            if chosen.any()
        ]
        lines = "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
        blocks.append(f"  {json.dumps(language)}: {lines}")
    head = {
        "format": FORMAT,
        "languages": list(languages),
        "n_layers": mask.shape[1],
        "n_units": mask.shape[2],
        **({} if _neurons_only(sites) else {"sites": sites}),
        **({} if layout is None else {"units": layout.sizes}),
        **({} if pool is None else {"pool": _pool_lists(pool, layout)}),
        "provenance": provenance,
    }
    entries = [
        f' "{name}": {json.dumps(value, ensure_ascii=False, sort_keys=True)}'
        for name, value in head.items()
    ]
    neurons = ' "neurons": {\n' + ",\n".join(blocks) + "\n }"
    artifacts.write_text(path, "{\n" + ",\n".join([*entries, neurons]) + "\n}\n")


def read_json(path: Path | str) -> Listed:
    """Read the format of `write_json`; call it within `readable`."""
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    if stored["format"] != FORMAT:
        raise ValueError(f"its format is {stored['format']!r}, not {FORMAT!r}")
    languages = tuple(stored["languages"])
    for code in languages:
        if problem := label_problem(code):  # no formula for a spreadsheet, nor for a terminal
            raise ValueError(f"{code!r:.200} cannot be a label: {problem}")
    if set(stored["neurons"]) != set(languages):
        raise ValueError("the languages named and the languages that have neurons differ")
    sites = tuple((kind, width) for kind, width in stored.get("sites", ()))
    layout = UnitLayout.of(stored["units"]) if "units" in stored else None
    triples = [
        (row, int(layer), neuron)
        for row, language in enumerate(languages)
        for layer, neurons in stored["neurons"][language].items()
        for neuron in _unit_indices(int(layer), neurons, sites, layout)
    ]
    n_layers, n_units = stored["n_layers"], stored["n_units"]
    pool = _pool(stored["pool"], n_layers, n_units, layout) if "pool" in stored else None
    return Listed(triples, languages, n_layers, n_units, sites, pool, layout)


def _pool_lists(
    pool: Bool[Tensor, "layer neuron"], layout: UnitLayout | None
) -> list[list[list[Any]]]:
    if layout is None:
        return [_intervals(layer) for layer in pool]
    return [
        [
            [expert, *run]
            for expert, first, after in layout.parts(layer)
            for run in _intervals(chosen[first:after])
        ]
        for layer, chosen in enumerate(pool)
    ]


def _intervals(chosen: Bool[Tensor, " neuron"]) -> list[list[int]]:
    """The runs of True, as [first, after the last]."""
    borders = torch.nn.functional.pad(chosen.int(), (1, 1)).diff().nonzero().flatten()
    return rearrange(borders, "(run end) -> run end", end=2).tolist()


def _pool(
    intervals: Sequence[Sequence[Sequence[Any]]],
    n_layers: int,
    n_units: int,
    layout: UnitLayout | None,
) -> Bool[Tensor, "layer neuron"]:
    pool = torch.zeros(n_layers, n_units, dtype=torch.bool)
    for number, (layer, runs) in enumerate(zip(pool, intervals, strict=True)):
        for *expert, first, after in runs:
            if not 0 <= first < after <= n_units:
                raise ValueError(f"{[first, after]} is no interval of {n_units} neurons")
            start = 0 if layout is None else layout.unit(number, expert[0], after - 1) + 1 - after
            layer[start + first : start + after] = True
    return pool


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turns errors that a damaged file causes in the block into one message about the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing. Make it with `interp find`.")
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{path} is not a selection: it has no {error}; a selection has format, languages, "
            "n_layers, n_units and neurons."
        ) from None
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a selection that can be read ({error}): make it anew with `interp "
            "find`."
        ) from None


def write_lape(
    path: Path | str, mask: Bool[Tensor, "language layer neuron"], layout: UnitLayout | None
) -> None:
    """Write the published format (Tang et al., 2024): for each language a list of ids by layer."""
    if layout is not None and layout.n_experts:
        raise ValueError(
            "This selection is of a mixture of experts, but the published format (.pth) has no "
            "place for experts: use the JSON file that interp find writes (in Python, to_json)."
        )
    lists = [[chosen.nonzero().flatten() for chosen in layers] for layers in mask]
    buffer = io.BytesIO()
    torch.save(lists, buffer)
    artifacts.write_bytes(path, buffer.getvalue())


def read_lape(
    path: Path | str, languages: Sequence[str], d_mlp: int
) -> Bool[Tensor, "language layer neuron"]:
    """Read the published format; loads nothing but tensors from the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: give the path of a mask file (.pth).")
    try:
        compressed = zipfile.is_zipfile(path) and _is_compressed(Path(path))
        lists: Any = None if compressed else torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged archive or a foreign object can raise anything
        raise ValueError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}): it must be a "
            "list by language of lists by layer of id tensors, saved with torch.save."
        ) from None
    if compressed:
        raise ValueError(
            f"{path} is an archive with compressed parts, which torch.save does not write and "
            "which could expand without limit: save it again with torch.save."
        )
    if not _is_lape(lists):
        raise ValueError(f"{path} is not a list by language of lists by layer of int64 ids.")
    if len(lists) != len(languages):
        raise ValueError(
            f"{path} holds {len(lists)} languages, but {len(languages)} are named "
            f"({', '.join(languages)}): name the languages of the file, in its order."
        )
    if d_mlp < 1:
        raise ValueError(f"d_mlp is {d_mlp}: give the model's number of neurons per layer.")
    mask = torch.zeros(len(lists), len(lists[0]), d_mlp, dtype=torch.bool)
    for language, layers, row in zip(languages, lists, mask, strict=True):
        for layer, ids in enumerate(layers):
            if len(ids) and not 0 <= ids.min() <= ids.max() < d_mlp:
                raise ValueError(
                    f"{path} has neurons {ids.min()} to {ids.max()} in layer {layer} of "
                    f"{language}, but a layer has {d_mlp}: give the model's d_mlp."
                )
            row[layer, ids] = True
    return mask


def _neurons_only(sites: Sites) -> bool:
    return len(sites) == 1 and sites[0][0] == "post"


def _ids(
    layer: int, chosen: Bool[Tensor, " neuron"], sites: Sites, layout: UnitLayout | None
) -> list[int] | list[list[int | None]] | dict[str, list[int]]:
    """Ids of one layer; if there are other sites than the neurons, for each site with any."""
    if layout is not None:
        return layout.pairs(layer, chosen)
    if _neurons_only(sites):
        return chosen.nonzero().flatten().tolist()
    parts = zip(sites, chosen.split([width for _, width in sites]), strict=True)
    return {kind: part.nonzero().flatten().tolist() for (kind, _), part in parts if part.any()}


def _unit_indices(layer: int, units: Any, sites: Sites, layout: UnitLayout | None) -> list[int]:
    """Indices on the unit axis, from ids as `_ids` lists them."""
    if layout is not None:
        return layout.units_at(layer, units)
    if not sites:
        return units
    widths = dict(sites)
    starts = dict(zip(widths, accumulate(widths.values(), initial=0), strict=False))
    for kind, ids in units.items():
        if kind not in widths or not all(0 <= id < widths[kind] for id in ids):
            raise ValueError(f"{ids} are not units of {kind!r}; the sites are {sites}")
    return [starts[kind] + id for kind, ids in units.items() for id in ids]


def _is_compressed(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return False  # torch.load reports what is wrong


def _is_lape(lists: object) -> bool:
    return (
        isinstance(lists, list)
        and len(lists) > 0
        and all(isinstance(layers, list) and len(layers) == len(lists[0]) for layers in lists)
        and all(
            isinstance(ids, Tensor)
            and ids.ndim == 1
            and ids.dtype == torch.int64
            and ids.device.type == "cpu"
            and ids.layout == torch.strided
            and ids.is_contiguous()  # strides could expand one stored number without limit
            for layers in lists
            for ids in layers
        )
    )

"""Metadata of a baked folder: facts in JSON, unit by unit, and a model card."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.interventions.edits import Edit, Site
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts

FORMAT = "polyneuron bake 1"
FACTS = "interp_bake.json"
"""The file in a baked folder that records what was done, unit by unit."""

_CARD = """---
library_name: transformers
tags: [polyneuron]
{base}---

# {title}

{source[name]} with {n_units} of its units edited: **{edit[name]}**, at every position. The edit is
in the weights, so every program that runs the source runs this model. The source's terms apply.

{remarks}| site | units by layer |
| --- | --- |
{counts}

| what | value |
| --- | --- |
| selection (blake2b of the masks) | `{selection}` |
| edit (blake2b of masks, factor and values) | `{values}` |
| source (blake2b of the weights, {source[dtype]}) | `{source[weights]}` |
| date | {date} |
| made by | {versions} |

Every unit and value is in `{file}`.

## Check it

After saving, the folder was loaded again and compared with the source under hooks. On the prompt
"{check[prompt]}" their logits differ by {check[distance]:.1e} of their size (up to
{check[tolerance]:.0e} is rounding), and the edit changes them by {check[effect]:.1e}.

```python
import interp
import torch
from interp.interventions.bake_card import read_edit

units, edit = read_edit("{title}")
source, baked = interp.load("{source[name]}"), interp.load("{title}")
ids = torch.tensor([source.encode("Some text.")])
with torch.no_grad(), interp.intervene(source, units, edit):
    print((source.logits(ids) - baked.logits(ids)).abs().max())
```
"""


def read_edit(folder: Path | str) -> tuple[dict[Site, Bool[Tensor, "layer unit"]], Edit]:
    """The units and the edit of a baked folder: `intervene` with them on its source is equivalent.

    Values of units that were not chosen are zero.
    """
    path = Path(folder) / FACTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} was not made by interp.bake.")
    try:
        facts = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: bake the folder again.") from None
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"The format of {path} is {facts.get('format')!r}, but this version reads {FORMAT!r}: "
            "use the version that its card names."
        )
    units, shift = {}, {}
    for site, stored in facts["units"].items():
        units[site] = torch.zeros(stored["shape"], dtype=torch.bool)
        if "values" in stored:
            shift[site] = torch.zeros(stored["shape"], dtype=torch.float64)
        for layer, ids in stored["by layer"].items():
            units[site][int(layer), ids] = True
            if site in shift:
                shift[site][int(layer), ids] = torch.tensor(
                    stored["values"][layer], dtype=torch.float64
                )
    given = facts["edit"]
    return units, Edit(given["name"], given["factor"], shift, given["site"])


def selection_hash(
    units: Mapping[Site, Bool[Tensor, "layer unit"]], edit: Edit | None = None
) -> str:
    """Hash of the chosen units and their sites; with an edit, also of its factor and values."""
    digest = blake2b(digest_size=16)
    if edit is not None:
        digest.update(repr(float(edit.factor)).encode())
    for site in sorted(units):
        mask = units[site].cpu()
        digest.update(f"{site} {tuple(mask.shape)} ".encode() + mask.numpy().tobytes())
        if edit is not None and site in edit.shift:
            digest.update(edit.shift[site].cpu()[mask].double().numpy().tobytes())
    return digest.hexdigest()


def facts_of(model: NeuronModel, chosen: Mapping[Site, Tensor], edit: Edit) -> dict[str, Any]:
    """What was done, for people and programs."""
    units = {}
    for site, mask in chosen.items():
        layers = mask.any(dim=1).nonzero().flatten().tolist()
        ids = {layer: mask[layer].nonzero().flatten().tolist() for layer in layers}
        units[site] = {"shape": list(mask.shape), "by layer": ids}
        if site in edit.shift:
            values = edit.shift[site].cpu()
            units[site]["values"] = {layer: values[layer, ids[layer]].tolist() for layer in layers}
    earlier = Path(model.name) / FACTS
    return {
        "format": FORMAT,
        "edit": {"name": edit.name, "factor": edit.factor, "site": edit.site},
        "selection hash": selection_hash(chosen),
        "edit hash": selection_hash(chosen, edit),
        "source": model.fingerprint,
        "source was itself baked": json.loads(earlier.read_text("utf-8"))
        if earlier.is_file()
        else None,
        "date": datetime.now(UTC).date().isoformat(),
        "made by": artifacts.provenance(),
        "units": units,
    }


def card_of(facts: Mapping[str, Any], title: str) -> str:
    """The model card: the same facts in words."""
    source, earlier = facts["source"]["name"], facts["source was itself baked"]
    counts = {
        site: {layer: len(ids) for layer, ids in stored["by layer"].items()}
        for site, stored in facts["units"].items()
    }
    remarks = [facts["note"]] if facts["note"] else []
    if earlier:
        remarks.append(f"The source had been edited before: {earlier['edit']['name']}.")
    if facts["config"]:
        remarks.append(
            f"The config has {' and '.join(facts['config'])} on, for biases that hold constants: a "
            "program that ignores this loses them."
        )
    if facts["check"]["effect"] <= facts["check"]["tolerance"]:
        remarks.append(
            "The edit changes the logits of the prompt below so little that comparing them could "
            "not reveal a mistake: bake in float32, or with a prompt to which the units respond."
        )
    on_hub = source != "babel" and not Path(source).is_dir()
    return _CARD.format(
        **facts,
        base=f"base_model: {source}\n" if on_hub else "",
        title=title,
        n_units=sum(sum(by_layer.values()) for by_layer in counts.values()),
        remarks="".join(f"{remark}\n\n" for remark in remarks),
        selection=facts["selection hash"],
        values=facts["edit hash"],
        versions=", ".join(
            f"{name} {version}" for name, version in facts["made by"]["versions"].items()
        ),
        counts="\n".join(
            f"| {site} | {', '.join(f'{layer}: {n}' for layer, n in by_layer.items())} |"
            for site, by_layer in counts.items()
        ),
        file=FACTS,
    )

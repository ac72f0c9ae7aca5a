"""Metadata of a baked folder or an adapter: facts in JSON, unit by unit, and a model card."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.repocard import metadata_load
from jaxtyping import Bool
from torch import Tensor

from interp.interventions.edits import Edit, Site
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.models.units import UnitLayout
from interp.results import artifacts

FORMAT = "polyneuron bake 1"
FACTS = "interp_bake.json"
"""The file in a baked folder that records what was done, unit by unit."""

_CARD = """---
library_name: transformers
tags: [polyneuron]
{front}---

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

{check_it}"""

_CHECK = """## Check it

After saving, the folder was loaded again and compared with {compared}. On the prompt
"{check[prompt]}" their logits differ by {check[distance]:.1e} of their size (up to
{check[tolerance]:.0e} is rounding), and the edit changes them by {check[effect]:.1e}.
"""

_CHECK_EDIT = """
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
        raise FileNotFoundError(f"{path} is missing: {folder} was not made by `interp bake`.")
    try:
        facts = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: bake the folder again.") from None
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"The format of {path} is {facts.get('format')!r}, but this version reads {FORMAT!r}: "
            "use the version that its card names."
        )
    if "training" in facts:
        raise ValueError(
            f"{folder} holds units that were trained, which no edit of activations equals: load it "
            "with interp.load."
        )
    units, shift = {}, {}
    for site, stored in facts["units"].items():
        layout = UnitLayout.of(stored["units"]) if "units" in stored else None
        units[site] = torch.zeros(stored["shape"], dtype=torch.bool)
        if "values" in stored:
            shift[site] = torch.zeros(stored["shape"], dtype=torch.float64)
        for layer, listed in stored["by layer"].items():
            ids = listed if layout is None else layout.units_at(int(layer), listed)
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
    """What was done, for people and programs. Neurons of experts are [expert, neuron]."""
    units = {}
    for site, mask in chosen.items():
        layers = mask.any(dim=1).nonzero().flatten().tolist()
        ids = {layer: mask[layer].nonzero().flatten().tolist() for layer in layers}
        units[site] = {"shape": list(mask.shape), "by layer": ids}
        if isinstance(model, MixtureModel) and site in ("post", "act"):
            named = {layer: model.layout.pairs(layer, mask[layer]) for layer in layers}
            units[site] |= {"units": model.layout.sizes, "by layer": named}
        if site in edit.shift:
            values = edit.shift[site].cpu()
            units[site]["values"] = {layer: values[layer, ids[layer]].tolist() for layer in layers}
    earlier = Path(model.name) / FACTS
    return {
        "format": FORMAT,
        "edit": {"name": edit.name, "factor": edit.factor, "site": edit.site},
        "selection hash": selection_hash(chosen),
        "edit hash": selection_hash(chosen, edit),
        "source": model.fingerprint | {"name": public_name(model.name)},
        "card of the source": _front_matter(model.name),
        "source was itself baked": json.loads(earlier.read_text("utf-8"))
        if earlier.is_file()
        else None,
        "date": datetime.now(UTC).date().isoformat(),
        "made by": artifacts.provenance(),
        "units": units,
    }


_ADAPTER_CARD = """---
library_name: peft
tags: [polyneuron, lora]
{front}---

# {title}

A LoRA adapter for {source[name]} that edits {n_units} of its units: **{edit[name]}**, at every
position. It is exact: one of its two factors is one-hot. The source's terms apply.

{remarks}| module | rank |
| --- | --- |
{ranks}

| what | value |
| --- | --- |
| selection (blake2b of the masks) | `{selection}` |
| edit (blake2b of masks, factor and values) | `{values}` |
| source (blake2b of the weights, {source[dtype]}) | `{source[weights]}` |
| date | {date} |
| made by | {versions} |

Every unit is in `{file}`. On random tokens the logits of source and adapter differ from those of
{compared} by {check[distance]:.1e} of their size (up to {check[tolerance]:.0e}
is rounding), and the edit changes them by {check[effect]:.1e}.

## Load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{source[name]}")
model = PeftModel.from_pretrained(model, "{title}")
```

    vllm serve {source[name]} --enable-lora --max-lora-rank {served} --lora-modules edited={title}
"""

_SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of `--max-lora-rank` that vLLM takes."""


def adapter_card(
    facts: Mapping[str, Any], title: str, ranks: Mapping[str, int], has_bias: bool
) -> str:
    """The model card of an adapter: the same facts in words."""
    remarks = [facts["note"]] if facts["note"] else []
    if has_bias:
        remarks.append(
            "It has biases (`lora_bias`), which PEFT loads and vLLM does not: to serve it there, "
            "write a checkpoint (`interp bake`)."
        )
    largest = max(ranks.values())
    return _ADAPTER_CARD.format(
        **_shown(facts, title, remarks),
        ranks="\n".join(f"| {module} | {rank} |" for module, rank in ranks.items()),
        served=next((rank for rank in _SERVED_RANKS if rank >= largest), largest),
    )


def public_name(name: str) -> str:
    """The name of a model, without the folders of this machine."""
    return Path(name).name if Path(name).is_dir() else name


def hub_name(name: str) -> str | None:
    """The name of a model on the hub; None: it is a folder, a file, or Babel."""
    return None if name == "babel" or Path(name).exists() else name


def _front_matter(name: str) -> dict[str, Any]:
    """License and languages, from the source's own card if it is on this machine."""
    card = Path(name) / "README.md"
    if hub_name(name) is not None:
        cached = try_to_load_from_cache(name, "README.md")
        card = Path(cached) if isinstance(cached, str) else card
    try:
        stored = (metadata_load(card) if card.is_file() else None) or {}
    except Exception:  # of the parser that huggingface_hub uses: the card is unreadable
        stored = {}
    keys = ("base_model", "license", "license_name", "license_link", "language")
    facts = {key: stored[key] for key in keys if key in stored}
    return facts | ({"base_model": name} if hub_name(name) is not None else {})


def _front(facts: Mapping[str, Any]) -> str:
    """Lines of YAML; a JSON value is one."""
    known = facts["card of the source"]
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in known.items())


def card_of(facts: Mapping[str, Any], title: str) -> str:
    """The model card: the same facts in words."""
    earlier = facts["source was itself baked"]
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
    shown = _shown(facts, title, remarks)
    check = _CHECK if "training" in facts else _CHECK + _CHECK_EDIT
    return _CARD.format(
        **shown,
        check_it=check.format(**shown),
        counts="\n".join(
            f"| {site} | {', '.join(f'{layer}: {n}' for layer, n in by_layer.items())} |"
            for site, by_layer in counts.items()
        ),
    )


def _shown(facts: Mapping[str, Any], title: str, remarks: list[str]) -> dict[str, Any]:
    """What both cards show."""
    by_layer = [ids for stored in facts["units"].values() for ids in stored["by layer"].values()]
    return {
        **facts,
        "front": _front(facts),
        "title": title,
        "n_units": sum(map(len, by_layer)),
        "compared": "the trained model" if "training" in facts else "the source under hooks",
        "remarks": "".join(f"{remark}\n\n" for remark in remarks),
        "selection": facts["selection hash"],
        "values": facts["edit hash"],
        "versions": ", ".join(
            f"{name} {version}" for name, version in facts["made by"]["versions"].items()
        ),
        "file": FACTS,
    }

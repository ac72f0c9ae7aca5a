"""Write an intervention into a checkpoint that every Hugging Face program can load.

An edit makes a unit give factor · what it gave + shift. Two places of a model are the two ends of a
matrix, so the matrix and its bias can do the same without a hook:

    a unit that a projection reads:    column · factor,  bias + column · shift
    a unit that a projection writes:   row · factor,     bias · factor + shift

The first is how neurons are switched off, scaled or held constant at their output, the second how
gates, queries, keys, values and what a layer writes are. It holds at every position, so an edit of
the prompt alone, or of what is generated, stays a hook (`intervene`).
"""

import copy
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor

from interp.interventions.edits import Edit, Site, Units, intervene
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts

FORMAT = "polyneuron bake 1"
FACTS = "interp_bake.json"
"""The file in a baked folder that says what was done, unit by unit."""

TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""How far, as a share of their size, rounding may put logits of checkpoint and hooks apart."""

_CARD = """---
library_name: transformers
tags: [polyneuron]
{base}---

# {title}

{source[name]} with {n_units} of its units edited: **{edit[name]}**, at every position. The edit is
in the weights, so any program runs it that runs the source, whose terms hold here too.

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

After writing, the folder was opened again and compared with the source under hooks. On the prompt
"{check[prompt]}" their logits are {check[distance]:.1e} apart, as a share of their size (up to
{check[tolerance]:.0e} is rounding), and the edit moves them by {check[effect]:.1e}.

```python
import torch
from interp.bake import read_edit
from interp.interventions.edits import intervene
from interp.models.load import load

units, edit = read_edit("{title}")
source, baked = load("{source[name]}"), load("{title}")
ids = torch.tensor([source.encode("Some text.")])
with torch.no_grad(), intervene(source, units, edit):
    print((source.logits(ids) - baked.logits(ids)).abs().max())
```
"""

_MLP = ("pre", "pre_linear", "post", "act", "mlp_out")
_ATTENTION = ("q", "k", "v", "attn_out")
# `intervene` edits act before post. An edit of what a matrix reads goes in front of those already
# in the matrix, so here the last one comes first; only then what the matrix writes is edited.
_ORDER = (*_MLP, *_ATTENTION, "resid_pre", "resid_post")


@dataclass(frozen=True)
class _Place:
    """Where a projection's numbers are in the checkpoint."""

    weight: str
    """Name of its weight."""

    rows: Int[Tensor, " unit"]
    """Which outputs of the stored matrix are its own; several projections may share one matrix."""

    transposed: bool
    """Whether the matrix is stored as input by output, as GPT-2 does."""

    @property
    def bias(self) -> str:
        return self.weight.removesuffix("weight") + "bias"


def bake(
    model: NeuronModel,
    units: Units,
    edit: Edit,
    out: Path | str,
    prompt: str | None = None,
    note: str = "",
) -> Path:
    """Save the model with the edit in its weights, as a new folder, and return the folder.

    What is written is the model as it is in memory, in its dtype; the model itself stays as it is.
    The folder is read back, and its logits on `prompt` (None: random tokens) are compared with
    those of the hooked model: beyond `TOLERANCE` nothing is left of it. That needs memory for the
    model a second time. `note` goes on the card: whose units these are, or the command.

    Exact are factors everywhere outside the residual stream, and shifts where the architecture has
    a bias, or a switch for one in its config (`mlp_bias`, `attention_bias`). At "act" of a gated
    MLP, before the product, a constant can be written and a push cannot.

    >>> baked = interp.bake(model, neurons["de"], interp.deactivate, folder / "without-german")
    >>> interp.load(baked)
    NeuronModel('...without-german': 6 layers of 2048 neurons)
    """
    out = Path(out)
    _refuse(model, out)
    chosen: dict[Site, Tensor] = dict(units) if isinstance(units, Mapping) else {edit.site: units}
    ids = _prompt_ids(model, prompt)
    with torch.no_grad():
        untouched = model.logits(ids)
        with intervene(model, chosen, edit):
            hooked = model.logits(ids)
    checkpoint, switches = _edited(model, chosen, edit)
    facts = _facts(model, chosen, edit) | {"note": note, "config": switches}
    temporary = out.with_name(f".{secrets.token_hex(8)}.part")
    try:
        temporary.mkdir(parents=True)
        size = sum(each.numel() * each.element_size() for each in model._parameters.values())
        if (free := shutil.disk_usage(temporary).free) < size:
            raise OSError(f"it needs {size:,} bytes and {free:,} are free there")
        checkpoint.save_pretrained(temporary)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(temporary)
        facts["check"] = {
            "prompt": prompt or "random tokens",
            "distance": _compare(model, temporary, ids, hooked),
            "tolerance": TOLERANCE[model.dtype],
            "effect": _distance(untouched, hooked),
        }
        lines = [f" {json.dumps(key)}: {json.dumps(facts[key])}" for key in facts]
        artifacts.write_text(temporary / FACTS, "{\n" + ",\n".join(lines) + "\n}\n")
        artifacts.write_text(temporary / "README.md", _card(facts, out.name))
        temporary.rename(out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise OSError(
                f"{out} was not written ({error}), and nothing is left of it: make room or choose "
                "another folder, and bake again."
            ) from error
        raise
    return out


def read_edit(folder: Path | str) -> tuple[dict[Site, Bool[Tensor, "layer unit"]], Edit]:
    """The units and the edit of a baked folder, such that `intervene` does on its source the same.

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
            f"The format of {path} is {facts.get('format')!r}, and this version reads {FORMAT!r}: "
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
    """Hash of which units are chosen at which sites; with an edit, of what becomes of them too."""
    digest = blake2b(digest_size=16)
    if edit is not None:
        digest.update(repr(float(edit.factor)).encode())
    for site in sorted(units):
        mask = units[site].cpu()
        digest.update(f"{site} {tuple(mask.shape)} ".encode() + mask.numpy().tobytes())
        if edit is not None and site in edit.shift:
            digest.update(edit.shift[site].cpu()[mask].double().numpy().tobytes())
    return digest.hexdigest()


def _refuse(model: NeuronModel, out: Path) -> None:
    """What no checkpoint can be written from, or to."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists: name a new folder, or remove that one first.")
    if not hasattr(model.bridge, "original_model"):
        raise ValueError(
            f"{model.name} is a HookedTransformer, whose weights are in a form of its own: open "
            "the checkpoint with load(name) and bake that."
        )
    if model.fingerprint["processing"] != "none":
        raise ValueError(
            f"The weights of {model.name} were {model.fingerprint['processing']} by "
            "TransformerLens and are no longer the checkpoint's: open it with load(name)."
        )
    config = model.bridge.original_model.config
    if getattr(config, "quantization_config", None) or model.dtype not in TOLERANCE:
        raise ValueError(
            f"{model.name} is quantised, and a column of packed weights cannot be changed exactly: "
            "bake the full-precision checkpoint, and quantise the result."
        )
    if model.offloaded:
        raise ValueError(
            f"Some weights of {model.name} are not in memory: load it without offloading, on the "
            "CPU if need be."
        )


def _prompt_ids(model: NeuronModel, prompt: str | None) -> Int[Tensor, "batch pos"]:
    """The prompt's tokens, or two rows of tokens drawn at random."""
    if prompt is None:
        special = set(model.special_ids)
        ordinary = torch.tensor([id for id in range(model.n_vocab) if id not in special])
        shape = (2, min(32, model.max_length))
        generator = torch.Generator().manual_seed(0)
        return ordinary[torch.randint(len(ordinary), shape, generator=generator)]
    if not (ids := model.encode(prompt)):
        raise ValueError("The prompt to check with is empty: give a few words.")
    return torch.tensor([ids[: model.max_length]])


def _edited(model: NeuronModel, chosen: Mapping[Site, Tensor], edit: Edit) -> tuple[Any, list[str]]:
    """A plain Hugging Face model with the edit in it, and what had to be switched on in its config.

    It shares every weight that is not edited with the model, and runs nothing yet.
    """
    original = model.bridge.original_model
    weights = _Weights(model, copy.deepcopy(original.config))
    for site in sorted(chosen, key=_ORDER.index):
        for layer in chosen[site].any(dim=1).nonzero().flatten().tolist():
            ids = chosen[site][layer].nonzero().flatten().cpu()
            shift = edit.shift[site][layer].cpu()[ids] if site in edit.shift else None
            if shift is not None and not shift.any():
                shift = None
            if site == "act" and model.gated and shift is not None:
                weights.hold_gates(layer, ids, edit, shift)
            elif site in ("post", "act"):
                weights.edit_inputs(layer, ids, torch.full(ids.shape, edit.factor), shift)
            else:
                weights.edit_outputs(layer, site, ids, edit.factor, shift)
    with torch.device("meta"):
        plain = type(original)(weights.config)
    expected = plain.state_dict()
    for name in weights.biases:
        if name not in expected:
            raise weights.no_bias(name)
    for name, tensor in expected.items():  # where one layer has a bias, so has every other
        if weights.switches and name not in weights.tensors and name.endswith("bias"):
            weights.tensors[name] = torch.zeros(tensor.shape, dtype=model.dtype)
    tensors = {name: each for name, each in weights.tensors.items() if name in expected}
    plain.load_state_dict(tensors, strict=False, assign=True)
    plain.tie_weights()
    if left := [name for name, tensor in plain.state_dict().items() if tensor.is_meta]:
        raise ValueError(
            f"{model.name} holds no weights for {', '.join(left[:3])}: open the checkpoint with "
            "load(name) and bake that."
        )
    plain.generation_config = copy.deepcopy(original.generation_config)
    return plain, weights.switches


class _Weights:
    """A checkpoint's tensors, each copied before it is changed."""

    def __init__(self, model: NeuronModel, config: Any) -> None:
        self.model, self.config = model, config
        self.tensors = {name: each.detach() for name, each in model._parameters.items()}
        self.biases: list[str] = []
        """Those that the checkpoint did not have."""
        self.switches: list[str] = []
        """What had to be true in its config for them."""

    def edit_inputs(self, layer: int, ids: Tensor, factor: Tensor, shift: Tensor | None) -> None:
        """Change what the output projection of an MLP reads."""
        place = self._place(layer, "post")
        weight = self._copy(place.weight, place.transposed)
        ids = ids.to(weight.device)
        if shift is not None:
            constant = weight[:, ids].double() @ shift.to(weight.device).double()
            bias = self._bias(place, "post", weight)
            bias += constant
        weight[:, ids] *= factor.to(weight)

    def edit_outputs(
        self, layer: int, site: Site, ids: Tensor, factor: float, shift: Tensor | None
    ) -> None:
        """Change what a projection writes."""
        place = self._place(layer, site)
        weight = self._copy(place.weight, place.transposed)
        rows = place.rows[ids].to(weight.device)
        weight[rows] *= factor
        if shift is not None or place.bias in self.tensors:
            bias = self._bias(place, site, weight)
            bias[rows] *= factor
            if shift is not None:
                bias[rows] += shift.to(bias)

    def hold_gates(self, layer: int, ids: Tensor, edit: Edit, shift: Tensor) -> None:
        """Hold act(gate) of a gated MLP at a constant.

        The gate is held at one, and what act makes of one is taken out of the column again.
        """
        if edit.factor != 0:
            raise ValueError(
                f"{edit.name} at act adds to the gates of {self.model.architecture}, and the "
                "neuron's linear input is multiplied by the sum, which no weight can hold: "
                "edit at post, replace the gates by constants, or use intervene."
            )
        self.edit_outputs(layer, "pre", ids, 0.0, torch.ones(len(ids)))
        one = torch.ones(1, dtype=self.model.dtype, device=self.model.layer_device(layer))
        self.edit_inputs(layer, ids, shift / self.model.act(layer, one).to(shift), None)

    def no_bias(self, name: str) -> ValueError:
        return ValueError(
            f"{self.model.architecture} has no {name} to hold a constant, nor a switch for one in "
            "its config: only a factor, as of deactivate and scale, can be written there; "
            "for constants use intervene."
        )

    def _copy(self, name: str, transposed: bool) -> Tensor:
        """A tensor of the checkpoint to change, output by input if it is a matrix."""
        self.tensors[name] = self.tensors[name].clone()
        return self.tensors[name].T if transposed else self.tensors[name]

    def _bias(self, place: _Place, site: Site, weight: Tensor) -> Tensor:
        """The bias to change; one of zeros where the config can switch it on."""
        if place.bias not in self.tensors:
            switch = "attention_bias" if site in _ATTENTION else "mlp_bias"
            if not hasattr(self.config, switch):
                raise self.no_bias(place.bias)
            if not getattr(self.config, switch):
                setattr(self.config, switch, True)
                self.switches.append(switch)
            self.tensors[place.bias] = weight.new_zeros(len(weight))
            self.biases.append(place.bias)
        return self._copy(place.bias, transposed=False)

    def _place(self, layer: int, site: Site) -> _Place:
        """Where the projection that reads ("post") or writes (all others) a site is stored."""
        module = self._module(layer, site)
        transposed = not hasattr(module, "in_features")
        weight = module.weight
        for name, parameter in self.model._parameters.items():
            if parameter is weight:
                return _Place(name, torch.arange(weight.shape[1 if transposed else 0]), transposed)
        for name, rows, turned in self._shared_rows(layer, site):
            stored = self.model._parameters[name].T if turned else self.model._parameters[name]
            if torch.equal(stored[rows], weight.T if transposed else weight):
                return _Place(name, rows, turned)
        raise ValueError(
            f"{self.model.architecture} stores what writes {site} mixed with other weights, in an "
            "order that is not known here: use intervene."
        )

    def _module(self, layer: int, site: Site) -> Any:
        """The projection itself, as the model runs it."""
        if site in ("resid_pre", "resid_post"):
            raise ValueError(
                f"{site} is the sum of all that layers wrote, and no one weight writes it: edit "
                "what a layer adds (mlp_out, attn_out), or use intervene."
            )
        block = self.model.bridge.blocks[layer]
        if site in ("post", "act"):
            return block.mlp.out.original_component
        if site in ("mlp_out", "attn_out"):
            part, last = (block.mlp, "out") if site == "mlp_out" else (block.attn, "o")
            projection = getattr(part, last)
            hook = self.model.bridge.hook_dict[self.model.site(layer, site)]
            if hook is not part.hook_out and hook is not projection.hook_out:
                raise ValueError(
                    f"{site} of {self.model.architecture} comes out of a norm, not of a "
                    "projection: edit at post, before the norm, or use intervene."
                )
            return projection.original_component
        names = {"pre": "gate" if self.model.gated else "in", "pre_linear": "in"}
        part = block.mlp if site in names else block.attn
        return getattr(part, names.get(site, site)).original_component

    def _shared_rows(self, layer: int, site: Site) -> Iterator[tuple[str, Tensor, bool]]:
        """Where in the layer's larger matrices the projection may be, in the two usual orders.

        One after the other (gate, up; q, k, v), or so within each head. Whether it is there is for
        the numbers to say.
        """
        parts = ("q", "k", "v") if site in ("q", "k", "v") else ("pre", "pre_linear")
        widths = [self.model.width(layer, part) for part in parts]
        one_after_the_other = torch.arange(sum(widths)).split(widths)
        orders = [one_after_the_other[parts.index(site)]]
        if len(set(widths)) == 1:
            heads = rearrange(
                torch.arange(sum(widths)),
                "(head part unit) -> part (head unit)",
                part=len(parts),
                head=self.model.bridge.cfg.n_heads,
            )
            orders.append(heads[parts.index(site)])
        for name, parameter in self.model._parameters.items():
            if f".{layer}." in name and parameter.ndim == 2:
                for rows in orders:
                    if parameter.shape[0] == sum(widths):
                        yield name, rows, False
                    if parameter.shape[1] == sum(widths):
                        yield name, rows, True


def _distance(logits: Float[Tensor, "*any"], reference: Float[Tensor, "*any"]) -> float:
    """Root of the mean squared difference, as a share of that of the reference; zero: equal."""
    reference = reference.double().cpu()
    return ((logits.double().cpu() - reference).norm() / reference.norm()).item()


@torch.no_grad()
def _compare(
    model: NeuronModel, folder: Path, ids: Tensor, hooked: Float[Tensor, "batch pos vocab"]
) -> float:
    """Open the folder as anybody would: how far its logits are from those of the hooked model."""
    original = model.bridge.original_model
    devices = {parameter.device for parameter in model._parameters.values()}
    device = devices.pop() if len(devices) == 1 else torch.device("cpu")
    baked = type(original).from_pretrained(
        folder, dtype="auto", attn_implementation=original.config._attn_implementation
    )
    logits = baked.to(device)(input_ids=ids.to(device), use_cache=False).logits
    distance, tolerance = _distance(logits, hooked), TOLERANCE[model.dtype]
    if not distance <= tolerance:
        raise ValueError(
            f"The checkpoint does not do what the hooks do: its logits are {distance:.1e} of "
            f"their size away, and {tolerance:.0e} is rounding in {model.dtype}. Use intervene, "
            f"and please report the architecture ({model.architecture})."
        )
    return distance


def _facts(model: NeuronModel, chosen: Mapping[Site, Tensor], edit: Edit) -> dict[str, Any]:
    """What is done, for people and programs."""
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


def _card(facts: Mapping[str, Any], title: str) -> str:
    """The same facts in words."""
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
            "program that ignores it loses them."
        )
    if facts["check"]["effect"] <= facts["check"]["tolerance"]:
        remarks.append(
            "The edit moves the logits of the prompt below by so little that comparing them could "
            "not show a mistake: repeat it in float32, or on text to which the units respond."
        )
    on_hub = source != "babel" and not Path(source).is_dir()
    return _CARD.format(
        **facts,
        base=f"base_model: {source}\n" if on_hub else "",
        title=title,
        n_units=sum(sum(by_layer.values()) for by_layer in counts.values()),
        remarks="".join(f"{each}\n\n" for each in remarks),
        selection=facts["selection hash"],
        values=facts["edit hash"],
        versions=", ".join(f"{key} {each}" for key, each in facts["made by"]["versions"].items()),
        counts="\n".join(
            f"| {site} | {', '.join(f'{layer}: {n}' for layer, n in by_layer.items())} |"
            for site, by_layer in counts.items()
        ),
        file=FACTS,
    )

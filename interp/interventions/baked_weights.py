"""Write an edit into the weights of a checkpoint: into which matrix, rows and bias."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from interp.interventions.edits import Edit, Site, by_hook
from interp.models.mixture_model import ROW_KINDS, MixtureModel
from interp.models.neuron_model import NeuronModel

_MLP = ("pre", "pre_linear", "post", "act", "mlp_out")
_ATTENTION = ("q", "k", "v", "attn_out")
# `intervene` edits act before post. An edit of a matrix's input acts before the edits already in
# the matrix, so here post comes before act; edits of the matrix's output follow.
_ORDER = (*_MLP, *_ATTENTION, "z", "resid_pre", "resid_post", "routing", "rerouting")


@dataclass(frozen=True)
class Location:
    """Where a projection is stored in the checkpoint."""

    weight: str
    """Name of its weight."""

    rows: Int[Tensor, " unit"]
    """Its outputs among those of the stored matrix, which several projections may share."""

    transposed: bool
    """Whether the matrix is stored as input by output, as in GPT-2."""

    @property
    def bias(self) -> str:
        return self.weight.removesuffix("weight") + "bias"


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Which inputs and outputs of a matrix were edited."""

    columns: list[Int[Tensor, " unit"]] = field(default_factory=list)
    """Inputs, edit by edit."""

    rows: list[Int[Tensor, " unit"]] = field(default_factory=list)
    """Outputs, edit by edit."""

    transposed: bool
    """Whether the matrix is stored as input by output."""


def edited(model: NeuronModel, chosen: Mapping[Site, Tensor], edit: Edit) -> "Weights":
    """The checkpoint's tensors with the edit in them; no forward pass is run."""
    weights, chosen = Weights(model), by_hook(model, chosen)
    for site in sorted(chosen, key=_ORDER.index):
        for layer in chosen[site].any(dim=1).nonzero().flatten().tolist():
            weights.edit(site, layer, chosen[site][layer].nonzero().flatten().cpu(), edit)
    return weights


class Weights:
    """A checkpoint's tensors, each copied before it is changed."""

    def __init__(self, model: NeuronModel) -> None:
        self.model = model
        self.config = copy.deepcopy(model.bridge.original_model.config)
        buffers = {
            name.replace("_original_component.", ""): buffer
            for name, buffer in model.bridge.original_model.named_buffers()
        }
        stored = {**buffers, **model._parameters}
        self.tensors = {name: tensor.detach() for name, tensor in stored.items()}
        self.biases: list[str] = []
        """Names of biases that the checkpoint did not have."""
        self.switches: list[str] = []
        """Config options that switch these biases on."""
        self.changed: dict[str, Changed] = {}
        """By name of the matrix."""

    def edit(self, site: Site, layer: int, ids: Int[Tensor, " unit"], edit: Edit) -> None:
        """Apply the edit to these units of a site."""
        shift = edit.shift[site][layer].cpu()[ids] if site in edit.shift else None
        if shift is not None and not shift.any():
            shift = None
        if isinstance(self.model, MixtureModel) and site in (*ROW_KINDS, "act", "rerouting"):
            self._edit_rows(self.model, site, layer, ids, edit)
        elif site == "act" and self.model.gated and shift is not None:
            self._hold_gates(layer, ids, edit, shift)
        elif site in ("post", "act"):
            self._edit_inputs(layer, ids, torch.full(ids.shape, edit.factor), shift)
        else:
            self._edit_outputs(layer, site, ids, edit.factor, shift)

    def _edit_rows(
        self, model: MixtureModel, site: Site, layer: int, ids: Int[Tensor, " unit"], edit: Edit
    ) -> None:
        """Multiply what the projections of a mixture's dense neurons and experts read."""
        if site not in ("post", "act") or edit.shift:
            raise ValueError(
                f"{edit.name} at {site} of a mixture of experts cannot be written into weights: "
                "only a factor at post can (deactivate, scale); in Python, use intervene."
            )
        for part in model.parts[layer]:
            stored, axis = part.down()
            (name,) = (key for key, value in model._parameters.items() if value is stored)
            factor = torch.ones(part.n_experts * part.d_expert, device=stored.device)
            own = ids[(ids >= part.first) & (ids < part.first + len(factor))] - part.first
            factor[own.to(stored.device)] = edit.factor
            by_expert = rearrange(
                factor, "(expert neuron) -> expert neuron", expert=part.n_experts
            ).to(stored)
            axes = "expert neuron"  # a dense matrix is d_model by neuron, as of one expert
            if stored.ndim == 3:
                axes = "expert neuron 1" if axis == 1 else "expert 1 neuron"
            self.tensors[name] = self.tensors[name] * rearrange(
                by_expert, f"expert neuron -> {axes}"
            )

    def checkpoint(self) -> Any:
        """A plain Hugging Face model with these tensors; it shares those that are not edited."""
        original = self.model.bridge.original_model
        with torch.device("meta"):
            plain = type(original)(self.config)
        expected = plain.state_dict()
        for name in self.biases:
            if name not in expected:
                raise self._no_bias(name)
        for name, tensor in expected.items():  # one layer with a bias means all have one
            if self.switches and name not in self.tensors and name.endswith("bias"):
                self.tensors[name] = torch.zeros(tensor.shape, dtype=self.model.dtype)
        kept = {
            name.replace("_original_component.", ""): buffer
            for name, buffer in original.named_buffers()
        }
        tensors = {
            name: tensor for name, tensor in (kept | self.tensors).items() if name in expected
        }
        plain.load_state_dict(tensors, strict=False, assign=True)
        plain.tie_weights()
        if missing := [name for name, tensor in plain.state_dict().items() if tensor.is_meta]:
            raise ValueError(
                f"{self.model.name} holds no weights for {', '.join(missing[:3])}: open the "
                "checkpoint with load(name)."
            )
        plain.generation_config = copy.deepcopy(original.generation_config)
        return plain

    def runnable(self) -> Any:
        """A plain Hugging Face model with these tensors that can be run, on the CPU."""
        original = self.model.bridge.original_model
        plain = type(original).from_pretrained(
            None,
            config=self.config,
            state_dict=self.checkpoint().state_dict(),
            dtype=self.model.dtype,
            attn_implementation=original.config._attn_implementation,
        )
        return plain.eval()

    def _edit_inputs(self, layer: int, ids: Tensor, factor: Tensor, shift: Tensor | None) -> None:
        """Edit what the output projection of an MLP reads."""
        location = self.location(layer, "post")
        weight = self._copy(location.weight, location.transposed)
        ids = ids.to(weight.device)
        self.changed_at(location).columns.append(ids.cpu())
        if shift is not None:
            constant = weight[:, ids].double() @ shift.to(weight.device).double()
            bias = self._bias(location, "post", weight)
            bias += constant
        weight[:, ids] *= factor.to(weight)

    def _edit_outputs(
        self, layer: int, site: Site, ids: Tensor, factor: float, shift: Tensor | None
    ) -> None:
        """Edit what a projection writes."""
        location = self.location(layer, site)
        weight = self._copy(location.weight, location.transposed)
        rows = location.rows[ids].to(weight.device)
        self.changed_at(location).rows.append(rows.cpu())
        weight[rows] *= factor
        if shift is not None or location.bias in self.tensors:
            bias = self._bias(location, site, weight)
            bias[rows] *= factor
            if shift is not None:
                bias[rows] += shift.to(bias)

    def _hold_gates(self, layer: int, ids: Tensor, edit: Edit, shift: Tensor) -> None:
        """Hold act(gate) of a gated MLP at a constant.

        The gate is held at one, and the output column is multiplied by constant / act(1).
        """
        if edit.factor != 0:
            raise ValueError(
                f"{edit.name} at act adds to act(gate) of {self.model.architecture} before the "
                "product with the linear branch, which no weight can express: "
                "edit at post, replace the gates by constants; in Python, use intervene."
            )
        self._edit_outputs(layer, "pre", ids, 0.0, torch.ones(len(ids)))
        one = torch.ones(1, dtype=self.model.dtype, device=self.model.layer_device(layer))
        self._edit_inputs(layer, ids, shift / self.model.act(layer, one).to(shift), None)

    def changed_at(self, location: Location) -> "Changed":
        return self.changed.setdefault(location.weight, Changed(transposed=location.transposed))

    def _no_bias(self, name: str) -> ValueError:
        return ValueError(
            f"{self.model.architecture} has no {name} to hold a constant, nor can its config "
            "switch one on: only a factor (deactivate, scale) can be written there; for constants "
            "write a push as a control vector; in Python, use intervene."
        )

    def _copy(self, name: str, transposed: bool) -> Tensor:
        """A copy of a tensor to change, output by input if it is a matrix."""
        self.tensors[name] = self.tensors[name].clone()
        return self.tensors[name].T if transposed else self.tensors[name]

    def _bias(self, location: Location, site: Site, weight: Tensor) -> Tensor:
        """The bias to change; zeros if the config must switch it on first."""
        if location.bias not in self.tensors:
            switch = "attention_bias" if site in _ATTENTION else "mlp_bias"
            if not hasattr(self.config, switch):
                raise self._no_bias(location.bias)
            if not getattr(self.config, switch):
                setattr(self.config, switch, True)
                self.switches.append(switch)
            self.tensors[location.bias] = weight.new_zeros(len(weight))
            self.biases.append(location.bias)
        return self._copy(location.bias, transposed=False)

    def location(self, layer: int, site: Site) -> Location:
        """Where the projection that reads a site ("post") or writes it (all others) is stored."""
        module = self._module(layer, site)
        transposed = not hasattr(module, "in_features")
        weight = module.weight
        for name, parameter in self.model._parameters.items():
            if parameter is weight:
                return Location(
                    name, torch.arange(weight.shape[1 if transposed else 0]), transposed
                )
        for name, rows, stored_transposed in self._shared_rows(layer, site):
            stored = self.model._parameters[name]
            stored = stored.T if stored_transposed else stored
            if torch.equal(stored[rows], weight.T if transposed else weight):
                return Location(name, rows, stored_transposed)
        raise ValueError(
            f"{self.model.architecture} stores the projection that writes {site} mixed with other "
            "weights, in an unknown order; in Python, use intervene."
        )

    def _module(self, layer: int, site: Site) -> Any:
        """The projection itself, as the model runs it."""
        if site == "z":
            raise ValueError(
                "z is a mixture of values that no weight writes: edit v or attn_out; "
                "in Python, use intervene."
            )
        if site in ("resid_pre", "resid_post"):
            raise ValueError(
                f"{site} is a sum over layers that no single weight writes: edit what a layer adds "
                "(mlp_out, attn_out); in Python, use intervene."
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
                    "projection: edit at post, before the norm; in Python, use intervene."
                )
            return projection.original_component
        names = {"pre": "gate" if self.model.gated else "in", "pre_linear": "in"}
        part = block.mlp if site in names else block.attn
        return getattr(part, names.get(site, site)).original_component

    def _shared_rows(self, layer: int, site: Site) -> Iterator[tuple[str, Tensor, bool]]:
        """Where in the layer's larger matrices the projection may be, in the two usual orders.

        Projections are concatenated (gate, up; q, k, v), as a whole or within each head. The caller
        compares the numbers to see which applies.
        """
        parts = ("q", "k", "v") if site in ("q", "k", "v") else ("pre", "pre_linear")
        widths = [self.model.width(layer, part) for part in parts]
        concatenated = torch.arange(sum(widths)).split(widths)
        orders = [concatenated[parts.index(site)]]
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

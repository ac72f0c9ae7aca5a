"""An adapter for models that TransformerLens has none for, made from the modules of the model.

It names what neurons need: the embedding, the layers, each layer's MLP with its projections, and
the unembedding. Sites inside attention get no names. `doctor` says whether the hooks are right.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    EmbeddingBridge,
    GatedMLPBridge,
    JointGateUpMLPBridge,
    LinearBridge,
    MLPBridge,
    UnembeddingBridge,
)

from interp.models.sites import is_routed, share_weights

GATED = (
    ("gate_proj", "up_proj", "down_proj"),
    ("w1", "w3", "w2"),
    ("linear", "linear_v", "linear_1"),
    ("c_fc_0", "c_fc_1", "c_proj"),
)
"""What models call the gate, the linear branch and the output projection of a gated MLP."""

FUSED = (("gate_up_proj", "down_proj"), ("input_linear", "output_linear"), ("fc1_gate_up", "fc2"))
"""The same where one matrix holds the gate, then the linear branch."""

UNGATED = (
    ("up_proj", "down_proj"),
    ("fc1", "fc2"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc_in", "fc_out"),
)
"""What models call the input and the output projection of an MLP without a gate."""

_registered: set[str] = set()


@dataclass(frozen=True)
class Parts:
    """Where the modules of a model are, as paths from the model; `mlp` is a path from a layer."""

    embed: str
    unembed: str
    layers: str
    mlp: str | None
    """None: the projections are modules of the layer itself."""

    projections: tuple[str, ...]
    """A row of `GATED`, `FUSED` or `UNGATED`; none: `experts` reads the layers of a mixture."""


def register(model: nn.Module, architecture: str) -> None:
    """Make TransformerLens know the model's architecture, if its modules can be told apart."""
    parts = parts_of(model, architecture, experts=True)
    kind = type(f"{architecture}Adapter", (_PlainAdapter,), {"parts": parts})
    ArchitectureAdapterFactory.register_adapter(architecture, kind)
    _registered.add(architecture)


def is_registered(architecture: str) -> bool:
    """Whether the adapter of an architecture is one of ours."""
    return architecture in _registered


class _PlainAdapter(ArchitectureAdapter):
    """An adapter that names what `parts` names."""

    parts: Parts

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.weight_processing_conversions = {}
        self.component_mapping = components(self.parts, cfg)


def components(parts: Parts, cfg: Any) -> dict[str, Any]:
    """The component mapping of an adapter."""
    mlp = {"mlp": _mlp(parts, cfg)} if parts.projections else {}
    blocks = BlockBridge(name=parts.layers, submodules=mlp)
    blocks.hook_aliases = {
        "hook_resid_pre": "hook_in",
        "hook_resid_post": "hook_out",
        **({"hook_mlp_out": "mlp.hook_out"} if mlp else {}),
    }
    return {
        "embed": EmbeddingBridge(name=parts.embed),
        "blocks": blocks,
        "unembed": UnembeddingBridge(name=parts.unembed, config=cfg),
    }


def _mlp(parts: Parts, cfg: Any) -> Any:
    linear: list[Any] = [LinearBridge(name=name) for name in parts.projections]
    name: Any = parts.mlp
    submodules: dict[str, Any]
    if parts.projections in GATED:
        submodules = dict(zip(("gate", "in", "out"), linear, strict=True))
        return GatedMLPBridge(name, config=cfg, submodules=submodules)
    if parts.projections in FUSED:
        fused = parts.projections[0]
        return JointGateUpMLPBridge(
            name, config=cfg, submodules={"out": linear[1]}, fused_attr=fused
        )
    submodules = dict(zip(("in", "out"), linear, strict=True))
    return MLPBridge(name, config=cfg, submodules=submodules)


def parts_of(model: nn.Module, architecture: str, experts: bool = False) -> Parts:
    """Find the modules, or say which cannot be told apart. `experts`: or layers that hold some."""

    def refuse(what: str) -> ValueError:
        return ValueError(
            f"TransformerLens has no adapter for {architecture}, and its modules do not show "
            f"{what}, so its neurons cannot be named: use a model in docs/architectures.md."
        )

    paths = {id(module): path for path, module in model.named_modules()}
    embed = paths.get(id(_called(model, "get_input_embeddings")))
    unembed = paths.get(id(_called(model, "get_output_embeddings")))
    if embed is None or unembed is None:
        raise refuse("one embedding and one unembedding")
    stacks = {
        path: set.intersection(*(set(_mlps(layer)) for layer in stack))
        for path, stack in model.named_modules()
        if isinstance(stack, nn.ModuleList) and len(stack) > 0
    }
    stacks = {path: mlps for path, mlps in stacks.items() if mlps and _of_text(path)}
    if len(stacks) != 1:
        lists = {
            path: stack
            for path, stack in model.named_modules()
            if isinstance(stack, nn.ModuleList) and _of_text(path)
        }
        mixed = [path for path, stack in lists.items() if any(map(is_routed, stack.modules()))]
        if experts and len(mixed) == 1:
            if any(map(_is_unread, lists[mixed[0]].modules())):
                raise refuse("the projections of dense MLPs beside experts by known names")
            return Parts(embed, unembed, mixed[0], None, ())
        if any(map(share_weights, lists.values())):
            raise refuse("an MLP of its own in each layer (some layers share one)")
        raise refuse("one list of layers with an MLP in each")
    ((layers, mlps),) = stacks.items()
    if len(mlps) != 1:
        raise refuse("one MLP with its projections in every layer")
    ((mlp, projections),) = mlps
    return Parts(embed, unembed, layers, mlp, projections)


def _mlps(layer: nn.Module) -> Iterator[tuple[str | None, tuple[str, ...]]]:
    """Modules of a layer that hold the projections of an MLP, with the names of these."""
    for path, module in layer.named_modules():
        if "." in path or isinstance(module, nn.ModuleList):
            continue
        for names in (*GATED, *FUSED, *UNGATED):
            if all(isinstance(getattr(module, name, None), nn.Module) for name in names):
                yield path or None, names
                break


def _is_unread(module: nn.Module) -> bool:
    """Whether a module beside experts is a dense MLP whose neurons `experts` would leave out."""
    read = {"up_proj", "down_proj"} <= module._modules.keys()
    named = (*GATED, *FUSED, *UNGATED)
    return not read and any(set(names) <= module._modules.keys() for names in named)


def _of_text(path: str) -> bool:
    """Whether a list of layers is not that of a part for pictures or sound."""
    return not any(word in path for word in ("vision", "visual", "audio", "image", "speech"))


def _called(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return getattr(model, name)()
    except (AttributeError, NotImplementedError):
        return None

"""`NeuronModel` for mixtures of experts, whose neurons are those of dense MLPs and of experts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.as_transformer_lens import Hook, HookPoints
from interp.models.experts import Part, RoutedPart, RowKind, all_hooked, parts_of
from interp.models.neuron_model import NeuronModel, n_experts_of
from interp.models.sites import hook_name, is_routed
from interp.models.units import LayerUnits, UnitLayout
from interp.results.words import Kind, UnitKind

ROW_KINDS: tuple[Kind, ...] = ("pre", "pre_linear", "post", "routing")
"""Sites of neurons and experts, whose values a mixture shows in rows."""


class MixtureModel(NeuronModel):
    """A mixture of experts; the neurons of a layer are addressed by `layout`.

    Hooks at `pre`, `pre_linear` and `post` run once for the layer's dense neurons and once for its
    experts. They see [row neuron], and as `hook` the `Rows` that say of which token and expert.
    Hooks at `routing` see the weights with which a token's experts are added, [token rank].
    What TransformerLens calls `hook_pre` of a mixture is the input of the MLP, and never used.
    """

    def __init__(self, bridge: Any, *given: Any, **settings: Any) -> None:
        self.parts: list[list[Part]] = [parts_of(block) for block in bridge.blocks]
        self.layout = UnitLayout(tuple(map(_units_of, self.parts)))
        super().__init__(bridge, *given, **settings)
        gated = {part.gated for parts in self.parts for part in parts}
        if len(gated) != 1:
            raise ValueError(
                f"{self.name} ({self.architecture}) cannot be read neuron by neuron: some of its "
                "MLPs are gated and some are not."
            )
        self.gated = gated.pop()

    def __repr__(self) -> str:
        neurons = sum(layer.width for layer in self.layout.layers)
        return (
            f"NeuronModel({self.name!r}: {self.n_layers} layers of up to {self.layout.n_experts} "
            f"experts, {neurons:,} neurons in all, {self.precision})"
        )

    def _mlp_shape(self, layer: int) -> tuple[int, int] | None:
        return self.layout.d_mlp, self.bridge.cfg.d_model

    @property
    def layers_with_neurons(self) -> list[int]:
        """All, but in hybrids with layers that are a mixer alone."""
        return [layer for layer, parts in enumerate(self.parts) if parts]

    @property
    def active(self) -> int:
        """Neurons that a layer computes for a token: at most, and in the layer that has most."""
        return max(
            layer.dense + round(self.share_chosen * layer.n_experts) * layer.d_expert
            for layer in self.layout.layers
        )

    @property
    def share_chosen(self) -> float:
        """Share of a layer's experts to which a token is routed; 1 if the config does not say."""
        config = self.bridge.original_model.config.get_text_config()
        n_experts = max(self.layout.n_experts, 1)
        return (getattr(config, "num_experts_per_tok", None) or n_experts) / n_experts

    def width(self, layer: int, kind: UnitKind) -> int:
        return self.layout.n_experts if kind == "routing" else super().width(layer, kind)

    def n_calls(self, layer: int, kind: Kind) -> int:
        return len(self.parts[layer]) if kind in ROW_KINDS else 1

    def site(self, layer: int, kind: Kind) -> str:
        """Neurons have no values of every token, and are refused: see `rows_site`."""
        if kind in ROW_KINDS:
            raise ValueError(self._refusal(f"{kind!r} on every token"))
        return super().site(layer, kind)

    def sites(self, layer: int) -> tuple[Kind, ...]:
        routed = self.layout.layers[layer].n_experts > 0
        there = {"pre": True, "pre_linear": self.gated, "post": True, "routing": routed}
        rest: list[Kind] = [kind for kind in super().sites(layer) if kind not in ROW_KINDS]
        return (*(kind for kind in ROW_KINDS if there[kind]), *rest)

    def rows_site(self, layer: int, kind: Kind) -> str:
        if kind not in ROW_KINDS or not 0 <= layer < self.n_layers:
            return super().site(layer, kind)
        if kind == "pre_linear" and not self.gated:
            raise ValueError(f"'pre_linear' is not a site of {self.name}, which is not gated.")
        return hook_name(layer, kind)

    # ------------------------------------------------------------ hooks

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[HookPoints, Hook]] = (),
        bwd_hooks: Sequence[tuple[HookPoints, Hook]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        if any(self._neuron_sites(points) for points, _ in bwd_hooks):
            raise ValueError(
                f"{self.name} is a mixture of experts, whose neurons have no backward hooks: read "
                "gradients at resid_pre, mlp_out or resid_post."
            )
        rest = [(self._other_sites(points), hook) for points, hook in fwd_hooks]
        rest = [(points, hook) for points, hook in rest if points not in self._names]
        inner: AbstractContextManager[Any] = nullcontext()
        if rest or bwd_hooks:  # TransformerLens looks at all of its hooks, for each batch
            inner = super().hooks(rest, bwd_hooks, reset_hooks_end, clear_contexts)
        with self._neurons_hooked(fwd_hooks), inner:
            yield self

    def run_with_hooks(self, *inputs: Any, **settings: Any) -> Any:
        """Logits under `fwd_hooks`, as TransformerLens gives them."""
        given = settings.pop("fwd_hooks", [])
        with self.hooks(given, settings.pop("bwd_hooks", [])):
            return super().run_with_hooks(*inputs, **settings)

    def run_with_cache(self, *inputs: Any, **settings: Any) -> tuple[Any, Any]:
        """As TransformerLens gives it, without neurons, which have no values on most tokens."""
        logits, cache = super().run_with_cache(*inputs, **settings)
        kept = getattr(cache, "cache_dict", cache)
        for name in self._names:
            kept.pop(name, None)
        return logits, cache

    @cached_property
    def _names(self) -> Mapping[str, tuple[int, RowKind]]:
        """Layer and kind of every site of neurons, by its name."""
        return {
            hook_name(layer, kind): (layer, kind)
            for layer in range(self.n_layers)
            for kind in get_args(RowKind)
        }

    def _neuron_sites(self, points: HookPoints) -> list[tuple[int, RowKind]]:
        chooses = points if callable(points) else points.__eq__
        return [site for name, site in self._names.items() if chooses(name)]

    def _other_sites(self, points: HookPoints) -> HookPoints:
        """The same without the sites of neurons, if it is a filter of names."""
        if not callable(points):
            return points
        names, chooses = self._names, points
        return lambda name: name not in names and chooses(name)

    @contextmanager
    def _neurons_hooked(self, hooks: Sequence[tuple[HookPoints, Hook]]) -> Iterator[None]:
        by_layer: dict[int, list[tuple[RowKind, Hook]]] = {}
        for points, hook in hooks:
            for layer, kind in self._neuron_sites(points):
                by_layer.setdefault(layer, []).append((kind, hook))
        with ExitStack() as stack:
            for layer, own in by_layer.items():
                block = self.bridge.blocks[layer]
                stack.enter_context(all_hooked(block, self.parts[layer], own))
            yield

    # ------------------------------------------------------------ what a mixture does not have

    def act(
        self, layer: int, pre: Float[Tensor, "*batch neuron"]
    ) -> Float[Tensor, "*batch neuron"]:
        raise ValueError(self._refusal("the activation function alone"))

    def written(
        self, layer: int, neurons: Int[Tensor, " neuron"]
    ) -> Float[Tensor, "neuron d_model"]:
        """As in a dense model; of a neuron of an expert, before the weight of routing."""
        self.layout.address(layer, int(neurons.max()))  # refuses what is not there
        vectors = torch.empty(len(neurons), self.d_model, dtype=self.dtype, device=self.device)
        for part in self.parts[layer]:
            shape = part.n_experts, part.d_expert
            own = (neurons >= part.first) & (neurons < part.first + math.prod(shape))
            if not own.any():
                continue
            stored, _ = part.down()
            if stored.is_meta or not stored.is_floating_point():
                raise self._unreadable(layer)
            unit = (neurons[own] - part.first).to(stored.device)
            written = part.written(*torch.unravel_index(unit, shape)).detach()
            vectors[own.to(self.device)] = written.to(vectors)
        return vectors

    def _weight(self, layer: int, name: str) -> Tensor:
        raise ValueError(self._refusal("weights by neuron"))

    def _refusal(self, what: str) -> str:
        return (
            f"{self.name} is a mixture of experts, for which {what} cannot be read: its firing "
            "can be counted, and its neurons selected and edited."
        )


def _units_of(parts: Sequence[Part]) -> LayerUnits:
    dense = sum(part.d_expert for part in parts if not isinstance(part, RoutedPart))
    routed = [part for part in parts if isinstance(part, RoutedPart)]
    if not routed:
        return LayerUnits(dense, 0, 0)
    return LayerUnits(dense, routed[0].n_experts, routed[0].d_expert)


def _mixers_alone(config: Any) -> set[int]:
    """Layers that have attention or a state-space mixer and no MLP, as Nemotron-H's config says."""
    types = getattr(config.get_text_config(), "layer_types", None) or []
    mlps = {"mlp", "moe"}
    return {n for n, kind in enumerate(types) if kind not in mlps} if mlps & set(types) else set()


def model_class(name: object, bridge: Any) -> Callable[..., NeuronModel]:
    """`MixtureModel` for a bridge whose experts can be read, else `NeuronModel`."""
    config = getattr(bridge.original_model, "config", None)
    if not any(is_routed(module) for module in bridge.modules()) and n_experts_of(config) is None:
        return NeuronModel
    parts, alone = [parts_of(block) for block in bridge.blocks], _mixers_alone(config)
    if any(parts) and all(own or layer in alone for layer, own in enumerate(parts)):
        return MixtureModel
    raise ValueError(
        f"{name} cannot be read neuron by neuron: it is a mixture of experts, and some layer has "
        "neither experts computed by transformers' ALL_EXPERTS_FUNCTIONS nor an MLP with up_proj "
        "and down_proj."
    )

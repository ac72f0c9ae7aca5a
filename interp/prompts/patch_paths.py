"""Path patching: a patch whose effect reaches the answer through chosen units only, or not at all.

A sender is patched, such as the residual stream after a layer or the output of a head. Receivers
are later units, such as the neurons of a language. Three paths lead on from the sender:

    through   receivers take the values they have while the sender is patched, all else is clean
              until it depends on them: the indirect effect that they mediate (Vig et al., 2020)
    direct    the same, but attention and MLPs between the two keep their clean outputs, so that
              receivers read only what the sender itself writes (path patching, Wang et al., 2023;
              Goldowsky-Dill et al., 2023)
    around    the sender is patched and receivers keep their clean values: what is left without them

Units that a patch writes itself are no receivers of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.prompts.ending import Edit
from interp.results.words import Kind, Layers

Units = Mapping[Kind, Bool[Tensor, "layer _"]]
"""Units that are patched together, by site."""

Path = Literal["through", "direct", "around"]

_WORDS: dict[Path, str] = {"through": "through", "direct": "direct to", "around": "around"}

_WRITTEN_BY: dict[str, tuple[Kind, ...]] = {
    "attn_out": ("q", "k", "v", "z", "attn_out"),
    "mlp_out": ("pre", "pre_linear", "post", "mlp_out"),
}
"""What a layer adds to the residual stream, and the sites in the same layer that reach it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """A sender and the path by which its effect may reach the answer."""

    sender: Units

    path: Path | None = None
    """None: any."""

    receivers: Units = field(default_factory=dict)

    @property
    def reads_receivers(self) -> bool:
        """Whether receivers' values come from a pass in which the sender is patched."""
        return self.path in ("through", "direct")

    def receivers_of(self, layers: range) -> Iterator[tuple[Kind, int, Int[Tensor, " unit"]]]:
        """Receivers that a patch of these layers can reach, without the units it writes itself."""
        for site, mask in self.receivers.items():
            for layer in range(layers[0], len(mask)):
                chosen = mask[layer].cpu()
                if layer in layers and site in self.sender:
                    chosen = chosen & ~self.sender[site][layer].cpu()
                if chosen.any():
                    yield site, layer, chosen.nonzero().flatten()

    def held(self, layer: int, n_layers: int) -> Iterator[tuple[Kind, int]]:
        """On the direct path from this layer, the sites that keep their clean values."""
        sites: tuple[Kind, ...] = ("attn_out", "mlp_out")
        for later in range(layer, n_layers):
            for site in sites:
                if later > layer or not set(_WRITTEN_BY[site]) & set(self.sender):
                    yield site, later


def routes(
    model: NeuronModel,
    senders: Mapping[str, Units],
    receivers: Mapping[str, Units],
    paths: Sequence[Path],
    layers: Layers,
) -> dict[str, Route]:
    """Each sender by any path, and by the given paths to each of the receivers."""
    if unknown := sorted(set(paths) - set(get_args(Path))):
        raise ValueError(
            f"Paths are {', '.join(get_args(Path))}, not {', '.join(map(repr, unknown))}."
        )
    if receivers and "direct" in paths and layers != "each":
        raise ValueError(
            f"A direct path begins in one layer, and layers={layers!r} patches several: use "
            'layers="each", or the paths through and around.'
        )
    if receivers and "direct" in paths:
        model.site(0, "attn_out")  # raises if the model has no such hook
    named = {}
    for name, sender in senders.items():
        named[name] = Route(sender=sender)
        for other, units in receivers.items():
            for path in paths:
                route = Route(sender=sender, path=path, receivers=units)
                named[f"{name} {_WORDS[path]} {other}"] = route
    return named


Action = Callable[[Float[Tensor, "pos unit"]], None]
"""Reads or overwrites what one variant has at a site, at the last tokens."""


class Actions:
    """What is done to the variants of a pass: at a site of a layer, actions run in order."""

    def __init__(self) -> None:
        self._by_site: dict[tuple[Kind, int], dict[int, list[Action]]] = {}

    def add(self, site: Kind, layer: int, variant: int, action: Action) -> None:
        self._by_site.setdefault((site, layer), {}).setdefault(variant, []).append(action)

    def edits(self) -> dict[tuple[Kind, int], Edit]:
        """For `Ending.run`."""

        def edit_for(by_variant: Mapping[int, Sequence[Action]]) -> Edit:
            def edit(values: Tensor, variants: Tensor) -> Tensor:
                changed = values.clone()
                for row, variant in zip(changed, variants.tolist(), strict=True):
                    for action in by_variant.get(variant, ()):
                        action(row)
                return changed

            return edit

        return {key: edit_for(by_variant) for key, by_variant in self._by_site.items()}


def put(values: Float[Tensor, "pos _"], units: Int[Tensor, " unit"] | None = None) -> Action:
    """Sets units to these values; None: all of them."""

    def action(row: Tensor) -> None:
        row[:, slice(None) if units is None else units.to(row.device)] = values.to(row)

    return action

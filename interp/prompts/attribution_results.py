"""What attribution found: a number for every neuron, and how far the numbers add up."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interp.results.display import counted
from interp.results.frames import tidy


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """What each neuron at the last token of one prompt does for one quantity.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> found = interp.integrated_gradients(exact, "Seven minus one is", " six", 50, "logit")
    >>> model.decode(found.prompt), model.decode(found.targets), found.values.shape
    ('Seven minus one is', ' six', torch.Size([6, 2048]))
    """

    values: Float[Tensor, "layer neuron"]
    """Each neuron's share, in units of the quantity; above zero: it speaks for the target."""

    completeness_error: Float[Tensor, " layer"]
    """|sum of values - change| / |change|: how far a layer's shares are from adding up. Zero in
    the limit of many steps. Infinite or NaN: the layer changes nothing."""

    change: Float[Tensor, " layer"]
    """The quantity on the prompt, minus the quantity with this layer at the baseline."""

    activations: Float[Tensor, "layer neuron"]
    """What each neuron hands on."""

    score: float
    """The quantity on the prompt itself."""

    prompt: tuple[int, ...]
    """Token ids that were read."""

    targets: tuple[int, ...]
    """The token that was explained, or the two."""

    def __repr__(self) -> str:
        return _said(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: what its neurons' shares add up to, and what the layer changes."""
        return tidy(
            {"layer": range(len(self.values))},
            {
                "shares": self.values.sum(dim=1),
                "change": self.change,
                "completeness_error": self.completeness_error,
            },
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionAttribution:
    """What each neuron at each token of one prompt does for one quantity."""

    values: Float[Tensor, "layer pos neuron"]
    """Each neuron's share at each token, in units of the quantity."""

    completeness_error: Float[Tensor, " layer"]
    """As in `Attribution`, over all tokens together."""

    change: Float[Tensor, " layer"]
    """The quantity on the prompt, minus the quantity with this layer at the baseline everywhere."""

    activations: Float[Tensor, "layer pos neuron"]
    """What each neuron hands on at each token."""

    score: float
    """The quantity on the prompt itself."""

    prompt: tuple[int, ...]
    """Token ids that were read."""

    targets: tuple[int, ...]
    """The token that was explained, or the two."""

    def __repr__(self) -> str:
        return _said(self)


def _said(found: Attribution | PositionAttribution) -> str:
    n_layers, *_, d_mlp = found.values.shape
    return (
        f"{type(found).__name__}(of the score {found.score:.4g} behind "
        f"{counted(len(found.prompt), 'token')}; {n_layers} layers of {d_mlp:,} neurons; "
        f"completeness error up to {found.completeness_error.max().item():.2g})"
    )

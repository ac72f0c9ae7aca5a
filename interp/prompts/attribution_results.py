"""Results of attribution: a value for every neuron, and how well the values add up."""

from dataclasses import dataclass

import pandas as pd
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from interp.results.display import Cells, Shown, counted, layer_cells
from interp.results.frames import tidy


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution(Shown):
    """What each neuron at the last token of one prompt contributes to one quantity.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> result = interp.integrated_gradients(exact, "Seven minus one is", " six", 50, "logit")
    >>> model.decode(result.prompt), model.decode(result.targets), result.values.shape
    ('Seven minus one is', ' six', torch.Size([6, 2048]))
    """

    values: Float[Tensor, "layer neuron"]
    """Each neuron's share, in units of the quantity; above zero: it supports the target."""

    completeness_error: Float[Tensor, " layer"]
    """|sum of values - change| / |change|: how far a layer's shares are from adding up. It
    approaches zero with many steps. Infinite or NaN: the layer changes nothing."""

    change: Float[Tensor, " layer"]
    """The quantity on the prompt, minus the quantity with this layer at the baseline."""

    activations: Float[Tensor, "layer neuron"]
    """Each neuron's output, which the MLP's output projection reads."""

    score: float
    """The quantity on the prompt itself."""

    prompt: tuple[int, ...]
    """Its token ids, with what was put before the text."""

    targets: tuple[int, ...]
    """The token id that was explained, or the two; none if it was a metric."""

    def __repr__(self) -> str:
        return _summary(self)

    def _cells(self) -> Cells:
        return layer_cells(
            [[f"token {len(self.prompt) - 1}, the last"], ["the whole layer"]],
            [self.values.double().sum(dim=1).tolist(), self.change.tolist()],
            "sums of the neurons' shares, and what the layer changes",
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: the sum of its neurons' shares, and what the whole layer changes."""
        return tidy(
            {"layer": range(len(self.values))},
            {
                "shares": self.values.sum(dim=1),
                "change": self.change,
                "completeness_error": self.completeness_error,
            },
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionAttribution(Shown):
    """What each neuron at each token of one prompt contributes to one quantity."""

    values: Float[Tensor, "layer pos neuron"]
    """Each neuron's share at each token, in units of the quantity. The tokens are the last of
    `prompt`: without what was put before the text."""

    completeness_error: Float[Tensor, " layer"]
    """As in `Attribution`, over all tokens together."""

    change: Float[Tensor, " layer"]
    """The quantity on the prompt, minus the quantity with this layer at the baseline everywhere."""

    activations: Float[Tensor, "layer pos neuron"]
    """Each neuron's output at each token."""

    score: float
    """The quantity on the prompt itself."""

    prompt: tuple[int, ...]
    """Its token ids, with what was put before the text."""

    targets: tuple[int, ...]
    """The token id that was explained, or the two; none if it was a metric."""

    def __repr__(self) -> str:
        return _summary(self)

    def _cells(self) -> Cells:
        shares = reduce(self.values.double(), "layer pos neuron -> pos layer", "sum")
        names = [[str(pos), str(token)] for pos, token in enumerate(self.prompt)]
        return layer_cells(
            [*names, ["", "the whole layer"]],
            [*shares.tolist(), self.change.tolist()],
            "sums of the neurons' shares at each token, and what the layer changes",
            ("token", "id"),
        )


def _summary(result: Attribution | PositionAttribution) -> str:
    n_layers, *_, d_mlp = result.values.shape
    return (
        f"{type(result).__name__}(of the score {result.score:.4g} after "
        f"{counted(len(result.prompt), 'token')}; {n_layers} layers of {d_mlp:,} neurons; "
        f"completeness error up to {result.completeness_error.max().item():.2g})"
    )

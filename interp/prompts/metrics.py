"""Metrics: functions of the logits that attribution explains and patching measures.

A metric takes logits [batch pos vocab], as the functions of TransformerLens do, and gives one
number, or one for each row:

    def logit_difference(logits):
        return logits[:, -1, paris] - logits[:, -1, rome]

It is called with one row at a time, and with the logits of the last token alone, because those of
earlier tokens are not computed again. A metric that reads earlier tokens is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.models.running import wide

Metric = Callable[[Float[Tensor, "batch pos vocab"]], Any]
"""A function of logits that gives one number, or one for each row; index the last token by -1."""


def check_metric(model: NeuronModel, metric: Metric, name: str = "metric") -> None:
    """Refuse a metric that gives more than one number, or reads tokens before the last."""
    drawn = torch.randn(2, model.n_vocab, generator=torch.Generator().manual_seed(0))
    logits = rearrange(drawn.to(model.device), "pos vocab -> 1 pos vocab")
    with torch.no_grad():
        of_last, of_both = (_number(metric, rows, name) for rows in (logits[:, 1:], logits))
    if not torch.allclose(of_last, of_both, equal_nan=True):
        raise ValueError(
            f"The metric {name!r} depends on the logits of tokens before the last, which are not "
            "computed again: read the last token alone, logits[:, -1]."
        )


def measure(
    metric: Metric, logits: Float[Tensor, "row vocab"], name: str = "metric"
) -> Float[Tensor, " row"]:
    """The metric of each row, in float32 or better."""
    numbers = [_number(metric, rearrange(row, "vocab -> 1 1 vocab"), name) for row in wide(logits)]
    values = torch.stack(numbers)
    if values.isnan().any():
        raise ValueError(
            f"The metric {name!r} is NaN: give one that is defined for all logits, and if the "
            "logits themselves are NaN, load the model with dtype=torch.float32."
        )
    if logits.requires_grad and not values.requires_grad:
        raise ValueError(
            f"The metric {name!r} has no gradient: compute it from the logits by operations of "
            "torch, without .item(), .detach() or argmax."
        )
    return values


def _number(metric: Metric, logits: Float[Tensor, "1 pos vocab"], name: str) -> Float[Tensor, ""]:
    """The metric of one row of logits."""
    try:
        value = metric(logits)
    except IndexError as error:
        raise ValueError(
            f"The metric {name!r} fails on logits of shape {list(logits.shape)}, which are those "
            f"of the last token alone ({error}): index this token by -1."
        ) from error
    if not isinstance(value, Tensor | float | int):
        raise ValueError(
            f"The metric {name!r} gives {value!r:.40}, not a number: does it return its result?"
        )
    value = torch.as_tensor(value, device=logits.device)
    if value.shape not in ((), (1,)):
        raise ValueError(
            f"The metric {name!r} gives numbers of shape {list(value.shape)} for one row of "
            "logits: give one number, or one for each row."
        )
    return value.to(logits).reshape(())

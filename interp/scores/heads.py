"""Attention heads by what a language's loss owes to them.

LAHIS (Liu et al., 2025, "Focusing on Language: Revealing and Exploiting Language Attention Heads
in Multilingual Large Language Models"; arXiv 2511.07498) multiplies the output of every head by a
factor, and follows the loss of each text back to the factors.
"""

from einops import rearrange, reduce
from jaxtyping import Bool, Float64
from torch import Tensor

from interp.counting.head_effects import HeadEffects

MANY = 4
"""A head of so many languages is general, by default of the authors' code."""


def head_importance(effects: HeadEffects) -> Float64[Tensor, "language layer head"]:
    """LAHIS: mean absolute derivative of a text's loss, times the share of texts that it is
    negative in, where the head helps.

    Zero: the head does nothing, or helps in no text, however much it does. A head that helps in
    every text scores as much as its mean absolute derivative, in nats per token.

    Departs from the authors' code in three ways: all factors stay at one, where it trains them
    meanwhile, so that the score does not depend on the order of texts; a text is a row of the
    corpus; and it is not multiplied by 1000, which changes no ranking.

    >>> one = torch.ones(1, 1, 2, dtype=torch.float64)
    >>> effects = interp.counting.HeadEffects(
    ...     absolute=8 * one, helped=torch.tensor([[[4, 1]]]), rows=torch.tensor([4]),
    ...     languages=("de",),
    ... )
    >>> interp.scores.head_importance(effects)
    tensor([[[2.0000, 0.5000]]], dtype=torch.float64)
    """
    return effects.size * effects.share_helped


def without_general(
    chosen: Bool[Tensor, "language layer head"], many: int = MANY
) -> Bool[Tensor, "language layer head"]:
    """The same without heads of `many` languages or more; of fewer languages, without those of all.

    Of a single language nothing is general.
    """
    n_languages = reduce(chosen.long(), "language layer head -> layer head", "sum")
    general = n_languages >= max(2, min(many, len(chosen)))
    return chosen & ~rearrange(general, "layer head -> 1 layer head")

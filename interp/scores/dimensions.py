"""Dimensions of the residual stream that set a language apart.

Zhong et al., 2025, "Language Lives in Sparse Dimensions: Toward Interpretable and Efficient
Multilingual Control for Large Language Models" (arXiv 2510.07213).
"""

import torch
from einops import reduce
from jaxtyping import Float64
from torch import Tensor


def apart_at_the_end(
    mean: Float64[Tensor, "language layer unit"],
) -> Float64[Tensor, "language layer unit"]:
    """Distance of a language's mean from the mean of the others' means, after the last layer.

    Zero: the language is like the others there, and in every layer before the last, where the paper
    does not look. The scale is that of the residual stream: a dimension that is large in all
    languages leads if it differs by a small share. NaN: there is no other language.

    This is the paper's parallel setting, with all other languages instead of English, and with
    means over tokens instead of means over sentences of such means. The token of beginning does not
    count; the authors' code counts it, and takes dimensions out by hand that are huge there alone.
    """
    last = mean[:, -1]
    total = reduce(last, "language unit -> 1 unit", "sum")
    apart = torch.zeros_like(mean)
    apart[:, -1] = (last - (total - last) / (len(mean) - 1)).abs()
    return apart

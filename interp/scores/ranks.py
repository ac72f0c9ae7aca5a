"""Ranks of many units' responses at once: the basis of average precision.

All languages are scored from one sort per unit. The sort keys have the order of the responses and
carry the sentence's label: see `sort_keys`.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from interp.counting.sort_keys import (
    float_bits,
    in_order,
    order_of,
    pack,
    pack_in_a_loop,
    payload_of,
)

_LABEL_BITS = 16
_LABELS = (1 << _LABEL_BITS) - 1
_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Responses processed at once: about 100 MB on a CPU, 2 GB on a GPU."""


def sentences_per_language(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " _"], n_languages: int
) -> list[int]:
    """Number of sentences per language; raises ValueError for responses that cannot be ranked."""
    if len(labels) != len(responses):
        raise ValueError(
            f"There are {len(labels):,} labels for responses to {len(responses):,} sentences: give "
            "one label for each sentence."
        )
    if not 1 <= n_languages <= _LABELS + 1:
        raise ValueError(f"n_languages is {n_languages}: give a number from 1 to {_LABELS + 1:,}.")
    wrong = labels[(labels < 0) | (labels >= n_languages)]
    if len(wrong):
        raise ValueError(
            f"{len(wrong):,} labels are not a language, such as {int(wrong[0])}: with "
            f"{n_languages} languages give whole numbers from 0 to {n_languages - 1}."
        )
    sizes = torch.bincount(labels, minlength=n_languages).tolist()
    if 0 in sizes:
        raise ValueError(
            f"Language {sizes.index(0)} of {n_languages} has no sentences, so there is nothing to "
            "detect: leave it out or add sentences."
        )
    wrong_units = (~responses.isfinite()).any(dim=0)
    if wrong_units.any():
        raise ValueError(
            f"{int(wrong_units.sum()):,} of {responses.shape[1]:,} units respond with NaN or "
            f"infinity, the first is unit {int(wrong_units.nonzero()[0])}: load the model "
            "with dtype=torch.float32 or bfloat16 and collect again."
        )
    return sizes


def positive_percentiles(
    responses: Float[Tensor, "sentence unit"],
    labels: Int[Tensor, " sentence"],
    n_languages: int,
    percents: tuple[float, ...],
) -> Float64[Tensor, "percent language unit"]:
    """Percentiles of each unit's responses to a language's own sentences, interpolated linearly."""
    if not percents or not all(0 <= percent <= 100 for percent in percents):
        raise ValueError(f"Percents are {percents}: give numbers from 0 to 100, such as (50, 90).")
    sentences_per_language(responses, labels, n_languages)
    result = torch.empty(
        len(percents), n_languages, responses.shape[1], dtype=torch.float64, device=responses.device
    )
    for language in range(n_languages):
        positive = responses[(labels == language).to(responses.device)].detach()
        wide = positive.to(torch.promote_types(positive.dtype, torch.float32))
        ordered = _sort(rearrange(wide, "sentence unit -> unit sentence").contiguous()).double()
        for row, percent in enumerate(percents):
            rank = (ordered.shape[1] - 1) * percent / 100
            low, high = ordered[:, math.floor(rank)], ordered[:, math.ceil(rank)]
            result[row, language] = low + (high - low) * (rank % 1)
    return result


def precision_and_area(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"], n_languages: int
) -> Float64[Tensor, "score language unit"]:
    """Average precision and area under the ROC curve, on the device of the responses."""
    sizes = sentences_per_language(responses, labels, n_languages)
    sums = torch.empty(
        2, n_languages, responses.shape[1], dtype=torch.float64, device=responses.device
    )
    labels = labels.to(responses.device).long()
    for units in _chunks(responses):
        sums[:, :, units] = _sums(_sorted_keys(responses[:, units], labels), sizes)
    return _divide(sums, sizes)


# ---------------------------------------------------------------- keys


def _chunks(responses: Float[Tensor, "sentence unit"]) -> list[slice]:
    n_sentences, n_units = responses.shape
    width = max(1, _ENTRIES.get(responses.device.type, _ENTRIES["cuda"]) // n_sentences)
    return [slice(start, start + width) for start in range(0, n_units, width)]


def _divide(
    sums: Float64[Tensor, "score language unit"], sizes: list[int]
) -> Float64[Tensor, "score language unit"]:
    """Turns sums over positives into means, and sums over pairs into shares of all pairs."""
    positive = rearrange(torch.tensor(sizes).to(sums), "language -> language 1")
    precision, pairs = sums
    return torch.stack([precision / positive, pairs / (positive * (sum(sizes) - positive))])


def _sorted_keys(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"]
) -> Int[Tensor, "unit sentence"]:
    """Keys in the order of the responses, with the label in the low bits; sorted for each unit."""
    responses = responses.detach().contiguous()
    if responses.dtype == torch.float64:
        return _sorted_ranks(responses, labels)
    bits = float_bits(responses)
    width = torch.int32 if bits.dtype == torch.int16 else torch.int64
    compiled = _compiled() if bits.device.type == "cpu" else None
    if compiled is None:
        order = in_order(rearrange(bits, "sentence unit -> unit sentence")).to(width)
        return _sort(pack(order, labels.to(width), _LABEL_BITS))
    keys = torch.empty(*reversed(bits.shape), dtype=width)
    lowest = torch.iinfo(bits.dtype).min
    compiled[0](bits.numpy(), labels.numpy(), lowest, _LABEL_BITS, keys.numpy())
    return _sort(keys)


def _sorted_ranks(
    responses: Float64[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"]
) -> Int64[Tensor, "unit sentence"]:
    """Keys for float64, which has no room for a label: ranks among the unit's distinct values."""
    values = rearrange(responses, "sentence unit -> unit sentence").contiguous()
    if values.device.type == "cpu":
        order = torch.from_numpy(np.argsort(values.numpy(), axis=1))
    else:
        order = values.argsort(dim=1)
    ordered, rank = values.gather(1, order), torch.zeros_like(order)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(dim=1)
    return pack(rank, labels[order], _LABEL_BITS)


def _sort(values: Tensor) -> Tensor:
    """Each row in ascending order. On a CPU, NumPy sorts integers twenty times as fast as torch,
    which always computes indices too."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def _sums(
    keys: Int[Tensor, "unit sentence"], sizes: list[int]
) -> Float64[Tensor, "score language unit"]:
    """Per language, sums over its sentences: precision, and negatives below (ties count half)."""
    compiled = _compiled() if keys.device.type == "cpu" else None
    if compiled is None:
        return _sums_of_arrays(keys, sizes)
    sums = torch.empty(2, len(sizes), len(keys), dtype=torch.float64)
    compiled[1](keys.numpy(), np.array(sizes), sums.numpy())
    return sums


def _sums_of_arrays(
    keys: Int[Tensor, "unit sentence"], sizes: list[int]
) -> Float64[Tensor, "score language unit"]:
    """`_sums` without a loop over units or sentences: without numba, and on a GPU."""
    n_units, n_sentences = keys.shape
    value, label = order_of(keys, _LABEL_BITS), payload_of(keys, _LABEL_BITS).flatten()
    rank = torch.arange(n_sentences, dtype=torch.int32, device=keys.device)
    differs = value[:, 1:] != value[:, :-1]
    first = torch.nn.functional.pad(differs, (1, 0))
    last = torch.nn.functional.pad(differs, (0, 1))
    # The start and the end of each sentence's tie group.
    start = (first * rank).cummax(dim=1).values.flatten()
    stop = n_sentences - (last * rank.flip(0)).flip(1).cummax(dim=1).values.flip(1).flatten()
    sums = torch.empty(2, len(sizes), n_units, dtype=torch.float64, device=keys.device)
    for language, size in enumerate(sizes):
        positive = (label == language).nonzero().squeeze(1)
        begin = rearrange(start[positive], "(unit sentence) -> unit sentence", unit=n_units)
        end = rearrange(stop[positive], "(unit sentence) -> unit sentence", unit=n_units)
        changes = torch.nn.functional.pad(begin[:, 1:] != begin[:, :-1], (1, 0))
        below = (changes * rank[:size]).cummax(dim=1).values  # positives in lower tie groups
        precision = (size - below) / (n_sentences - begin).double()
        sums[0, language] = precision.sum(dim=1)
        # Midpoints of tie groups count all sentences below; size² / 2 of these are positives.
        sums[1, language] = ((begin + end).sum(dim=1) - size * size) / 2
    return sums


@functools.cache
def _compiled() -> tuple[Callable[..., None], Callable[..., None]] | None:
    """`pack_in_a_loop` and `_scan` as machine code, for any type of key; None without numba."""
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        return None
    compile = numba.njit(nogil=True, error_model="numpy")
    # Unwrapped, because in tests a type checker wraps every function.
    return compile(inspect.unwrap(pack_in_a_loop)), compile(inspect.unwrap(_scan))


def _scan(keys, sizes, sums) -> None:
    """Fill `sums` [score language unit] from sorted keys, tie group by tie group from the top."""
    n_units, n_sentences = keys.shape
    seen = np.zeros(len(sizes), dtype=np.int64)
    tied = np.zeros(len(sizes), dtype=np.int64)
    sums[:] = 0
    for unit in range(n_units):
        seen[:] = 0
        stop = n_sentences
        while stop > 0:
            start = stop - 1
            value = keys[unit, start] >> _LABEL_BITS
            while start > 0 and keys[unit, start - 1] >> _LABEL_BITS == value:
                start -= 1
            for rank in range(start, stop):
                tied[keys[unit, rank] & _LABELS] += 1
            for rank in range(start, stop):
                language = keys[unit, rank] & _LABELS
                positives = tied[language]
                if positives:  # zero: this language was handled at an earlier rank of the group
                    tied[language] = 0
                    seen[language] += positives
                    precision = seen[language] / (n_sentences - start)
                    negatives_below = start - (sizes[language] - seen[language])
                    half = 0.5 * (stop - start - positives)
                    sums[0, language, unit] += positives * precision
                    sums[1, language, unit] += positives * (negatives_below + half)
            stop = start

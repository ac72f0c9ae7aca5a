"""How well one unit alone detects a language: average precision, the selection and the null of it.

Kojima et al. (2024), "On the Multilingual Ability of Decoder-based Pre-trained Language Models:
Finding and Controlling Language-Specific Neurons". A unit's response to a sentence ranks all
sentences; sentences of one language are the positives, all others the negatives. A language is no
more than a label here: relations, styles or programming languages do as well.

All languages are scored from one sort per unit. What is sorted are packed keys, a whole number that
orders as the response does above the sentence's label, so that no index has to be carried along.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from safetensors import safe_open
from scipy.stats import false_discovery_control
from torch import Tensor

from interp import artifacts
from interp.model import Kind
from interp.stats import SentenceMeans

Tail = Literal["detectors", "anti-detectors"]

_LABEL_BITS = 16
_LABELS = (1 << _LABEL_BITS) - 1
_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Responses that are worked on at once: about 100 MB on a CPU, 2 GB on a GPU."""

_ROUNDING = 1e-12
"""Two average precisions this close are the same one, summed in another order."""


def average_precision(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"], n_languages: int
) -> Float64[Tensor, "language unit"]:
    """Mean precision at the positives, from the highest response down.

    For a sentence of the language, precision is the share of the language among all sentences
    that respond as much or more. Sentences that tie are taken together, as scikit-learn's
    `average_precision_score` does, and -0.0 ties with 0.0.

    One: every positive responds more than every negative. The share of positives: a constant unit,
    and about what chance gives. Least: every positive below every negative, the mean over i = 1 … n
    of i / (N - n + i) with n of N sentences positive (0.0886 for 500 of 3000).

    Exact in all floating-point types; float64 costs about three times as much as the narrower ones.
    """
    return _scores(responses, labels, n_languages)[0]


def roc_area(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"], n_languages: int
) -> Float64[Tensor, "language unit"]:
    """Area under the ROC curve: how often a positive responds more than a negative; ties are half.

    One: always. A half: chance, and a constant unit. Zero: never. NaN: there is one language only,
    so that nothing is negative. Unlike average precision it does not depend on the share of
    positives, and it weighs a mistake at the bottom as much as one at the top.
    """
    return _scores(responses, labels, n_languages)[1]


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
    found = torch.empty(
        len(percents), n_languages, responses.shape[1], dtype=torch.float64, device=responses.device
    )
    for language in range(n_languages):
        positive = responses[(labels == language).to(responses.device)].detach()
        wide = positive.to(torch.promote_types(positive.dtype, torch.float32))
        ordered = _sort(rearrange(wide, "sentence unit -> unit sentence").contiguous()).double()
        for row, percent in enumerate(percents):
            place = (ordered.shape[1] - 1) * percent / 100
            low, high = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
            found[row, language] = low + (high - low) * (place % 1)
    return found


def sentences_per_language(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " _"], n_languages: int
) -> list[int]:
    """Sentences per language; refuses what cannot be ranked."""
    if len(labels) != len(responses):
        raise ValueError(
            f"There are {len(labels):,} labels and responses to {len(responses):,} sentences: give "
            "one label for each sentence."
        )
    if not 1 <= n_languages <= _LABELS + 1:
        raise ValueError(f"n_languages is {n_languages}: give a number from 1 to {_LABELS + 1:,}.")
    wrong = labels[(labels < 0) | (labels >= n_languages)]
    if len(wrong):
        raise ValueError(
            f"{len(wrong):,} labels are no language, such as {int(wrong[0])}: with {n_languages} "
            f"languages labels are whole numbers from 0 to {n_languages - 1}."
        )
    sizes = torch.bincount(labels, minlength=n_languages).tolist()
    if 0 in sizes:
        raise ValueError(
            f"Language {sizes.index(0)} of {n_languages} has no sentence, so there is nothing to "
            "detect: leave it out or give it sentences."
        )
    wrong_units = (~responses.isfinite()).any(dim=0)
    if wrong_units.any():
        raise ValueError(
            f"{int(wrong_units.sum()):,} of {responses.shape[1]:,} units respond with NaN or "
            f"infinity, the first of them unit {int(wrong_units.nonzero()[0])}: load the model "
            "with dtype=torch.float32 or bfloat16 and collect again."
        )
    return sizes


@dataclass(frozen=True)
class Precision:
    """How well every unit of some sites detects each language, and what it gives on it.

    The units of a layer's sites stand one after the other on one axis, so a selection over
    `[language layer unit]` compares all of them; `units` says where each site is.
    """

    average_precision: Float64[Tensor, "language layer unit"]
    """Of the language's sentences among all; see `average_precision`."""

    roc_area: Float64[Tensor, "language layer unit"]
    """See `roc_area`."""

    percentiles: Float32[Tensor, "percent language layer unit"]
    """Of the response, in the unit of the activation, over the language's own sentences."""

    percents: tuple[float, ...]
    """Which percentiles: 50 is the median."""

    sentences: Int64[Tensor, " language"]
    """Sentences of each language."""

    languages: tuple[str, ...]
    """ISO codes, or other labels, in the order of the language axis."""

    sites: tuple[tuple[str, int], ...]
    """Kind and width of each site, in the order of the unit axis; the same in every layer."""

    def __post_init__(self) -> None:
        n_languages, _, n_units = self.average_precision.shape
        if not (
            self.roc_area.shape == self.average_precision.shape == self.percentiles.shape[1:]
            and len(self.languages) == len(self.sentences) == n_languages
            and len(self.percents) == len(self.percentiles)
            and sum(width for _, width in self.sites) == n_units
        ):
            raise ValueError(
                f"Shapes disagree: average precision {tuple(self.average_precision.shape)}, area "
                f"{tuple(self.roc_area.shape)}, percentiles {tuple(self.percentiles.shape)} of "
                f"{self.percents}, languages {', '.join(self.languages)}, sites {self.sites}."
            )

    def units(self, kind: str) -> slice:
        """Where the units of a site are on the unit axis."""
        start = 0
        for name, width in self.sites:
            if name == kind:
                return slice(start, start + width)
            start += width
        raise ValueError(
            f"{kind!r} was not measured, only {', '.join(name for name, _ in self.sites)}."
        )

    def percentile(self, percent: float = 50.0) -> Float32[Tensor, "language layer unit"]:
        """What a unit gives on a language: the median, with which Kojima et al. override it."""
        if percent not in self.percents:
            raise ValueError(
                f"Percentile {percent} was not measured, only {', '.join(map(str, self.percents))}."
            )
        return self.percentiles[self.percents.index(percent)]

    def save(self, path: Path | str, provenance: dict[str, Any] | None = None) -> None:
        names = ("average_precision", "roc_area", "percentiles", "sentences")
        labels = {
            "percents": list(self.percents),
            "languages": list(self.languages),
            "sites": [list(site) for site in self.sites],
        }
        tensors = {name: getattr(self, name) for name in names}
        artifacts.save(Path(path), "Precision", tensors, labels, provenance or {})

    @staticmethod
    def load(path: Path | str) -> "Precision":
        stored = artifacts.load(Path(path), "Precision")
        labels = stored.labels
        return Precision(
            **stored.tensors,
            percents=tuple(labels["percents"]),
            languages=tuple(labels["languages"]),
            sites=tuple((kind, width) for kind, width in labels["sites"]),
        )


def measure_precision(
    means: SentenceMeans,
    percents: tuple[float, ...] = (50.0, 90.0),
    device: torch.device | str = "cpu",
) -> Precision:
    """Score every unit of every site that was kept, one site of one layer at a time.

    Memory: the result (about 24 bytes per language and unit), and twice one site of one layer.
    `device` is where the sorting is done.
    """
    n_layers, sites = _layout(means)
    n_languages = len(means.languages)
    shape = (n_languages, n_layers, sum(width for _, width in sites))
    scores = torch.empty(2, *shape, dtype=torch.float64)
    percentiles = torch.empty(len(percents), *shape)
    for layer in range(n_layers):
        start = 0
        for kind, width in sites:
            here = (..., layer, slice(start, start + width))
            # Handed on without a name, so that it is gone before the next one is read.
            scores[here], percentiles[here] = _measure_site(
                means.read(kind, layer).to(device), means.labels, n_languages, percents
            )
            start += width
    return Precision(
        average_precision=scores[0],
        roc_area=scores[1],
        percentiles=percentiles,
        percents=tuple(float(percent) for percent in percents),
        sentences=torch.bincount(means.labels, minlength=n_languages),
        languages=means.languages,
        sites=sites,
    )


def _measure_site(
    responses: Float[Tensor, "sentence unit"],
    labels: Int[Tensor, " sentence"],
    n_languages: int,
    percents: tuple[float, ...],
) -> tuple[Float64[Tensor, "score language unit"], Float32[Tensor, "percent language unit"]]:
    percentiles = positive_percentiles(responses, labels, n_languages, percents)
    return _scores(responses, labels, n_languages).cpu(), percentiles.float().cpu()


def _layout(means: SentenceMeans) -> tuple[int, tuple[tuple[Kind, int], ...]]:
    """Layers, and kind and width of each site, from the header of the first file."""
    widths: dict[Kind, list[int]] = {kind: [] for kind in means.kinds}
    with safe_open(means.pieces[0], framework="pt") as file:
        names = set(file.keys())
        for kind, found in widths.items():
            while (name := f"means.{kind}.{len(found)}") in names:
                found.append(file.get_slice(name).get_shape()[1])
    if any(len(set(found)) != 1 for found in widths.values()):
        raise ValueError(
            f"Units per layer are {widths}: to stand on one axis, a site must have as many units "
            "in every layer."
        )
    return len(widths[means.kinds[0]]), tuple((kind, found[0]) for kind, found in widths.items())


def top_and_bottom(score: Float[Tensor, "language unit"], n: int) -> Bool[Tensor, "language unit"]:
    """Per language the n/2 units of the highest score and the n/2 of the lowest.

    Kojima et al. take both: units that respond to the language, and units that respond to
    everything else. Ties are common at one and at the minimum, and theirs fall by chance; here they
    go to the lower unit, first at the top, then at the bottom among the units that are left.
    """
    n_units = score.shape[1]
    if n % 2 or not 2 <= n <= n_units:
        raise ValueError(
            f"n is {n} of {n_units:,} units: give an even number from 2 to {n_units:,}; half of "
            "it is taken from the top and half from the bottom."
        )
    if not score.isfinite().all():
        raise ValueError(
            f"{int((~score.isfinite()).sum()):,} of {score.numel():,} scores are NaN or infinite "
            "and cannot be ranked: leave those units out."
        )
    top = score.argsort(dim=1, descending=True, stable=True)[:, : n // 2]
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, top, True)
    bottom = score.masked_fill(chosen, torch.inf).argsort(dim=1, stable=True)[:, : n // 2]
    return chosen.scatter_(1, bottom, True)


# ---------------------------------------------------------------- what chance gives


def null_precision(
    n_sentences: int, n_positive: int, generator: torch.Generator, draws: int = 2000
) -> Float64[Tensor, " draw"]:
    """Average precision of units that have nothing to do with a language, in rising order.

    Each draw puts the positives at random ranks, all different. So this depends on the two numbers
    alone, and one null serves all units and all languages of that size. Its mean, with H the sum of
    1 / i for i = 1 … N, is (H + (n - 1) (N - H) / (N - 1)) / N, slightly above n / N.

    It assumes that sentences are exchangeable: sentences of one document, and translations of
    each other, go together, and then real units stray further than this says. It does not hold for
    units with many ties, such as one that gives zero on most sentences (`permutation_p_values`).
    """
    if not 0 < n_positive < n_sentences or draws < 1:
        raise ValueError(
            f"{n_positive} positives of {n_sentences} sentences, {draws} draws: there must be a "
            "positive, a negative and a draw."
        )
    labels = (torch.arange(n_sentences) < n_positive).long()
    sizes, found = [n_sentences - n_positive, n_positive], []
    for chunk in torch.arange(draws).split(max(1, _ENTRIES["cpu"] // n_sentences)):
        # Drawn from so many numbers that two are hardly ever the same.
        drawn = torch.randint(1 << 46, (len(chunk), n_sentences), generator=generator)
        found.append(_sums(_sort(drawn << _LABEL_BITS | labels), sizes)[0, 1] / n_positive)
    return torch.cat(found).sort().values


def null_p_values(
    observed: Float64[Tensor, "*axes"], null: Float64[Tensor, " draw"], tail: Tail
) -> Float64[Tensor, "*axes"]:
    """Chance of an average precision as high (detectors) or as low (anti-detectors) as observed.

    (1 + draws as extreme) / (1 + draws), so never below 1 / (1 + draws): valid however few the
    draws, but among a million units many must reach the floor before any counts as found.
    """
    null = null.to(observed.device)
    if tail == "detectors":
        extreme = len(null) - torch.searchsorted(null, observed - _ROUNDING)
    else:
        extreme = torch.searchsorted(null, observed + _ROUNDING, right=True)
    return (1 + extreme).double() / (1 + len(null))


def permutation_p_values(
    responses: Float[Tensor, "sentence unit"],
    labels: Int[Tensor, " sentence"],
    n_languages: int,
    tail: Tail,
    generator: torch.Generator,
    draws: int = 2000,
) -> Float64[Tensor, "language unit"]:
    """The same for units with ties: each unit's own responses, with the labels dealt out anew.

    The ties stay as they are, so this is exact for any unit, and it assumes what `null_precision`
    does of the sentences. All units see the same permutations. Costs a scan of all responses per
    draw, where `null_precision` costs none: for some thousand units, not for a million.
    """
    sizes = sentences_per_language(responses, labels, n_languages)
    dealt = torch.stack(
        [labels[torch.randperm(len(labels), generator=generator)] for _ in range(draws)]
    )
    observed = average_precision(responses, labels, n_languages)
    extreme = torch.zeros_like(observed)
    sign = 1 if tail == "detectors" else -1
    nobody = torch.zeros_like(labels)
    for units in _chunks(responses):
        values = _sorted_keys(responses[:, units], nobody)
        bar = sign * observed[:, units] - _ROUNDING
        for row in dealt.to(values):
            precision = _divide(_sums(values | row, sizes), sizes)[0]
            extreme[:, units] += sign * precision >= bar
    return (1 + extreme) / (1 + draws)


def adjusted_p_values(
    precision: Precision, tail: Tail, generator: torch.Generator, draws: int = 2000
) -> Float64[Tensor, "language layer unit"]:
    """Benjamini and Hochberg's adjusted p-values, over all units, for each language by itself.

    Of the units at or below 0.05, at most a twentieth are there by chance, on average, where the
    assumptions of `null_precision` hold. With k of N units at the floor of `null_p_values`, no
    adjusted value is below N / (k (1 + draws)).
    """
    n_sentences = int(precision.sentences.sum())
    nulls: dict[int, Tensor] = {}  # languages of one size share one
    adjusted = torch.empty_like(precision.average_precision)
    for row, size in enumerate(precision.sentences.tolist()):
        if size not in nulls:
            nulls[size] = null_precision(n_sentences, size, generator, draws)
        p_values = null_p_values(precision.average_precision[row], nulls[size], tail)
        flat = false_discovery_control(p_values.flatten().numpy())
        adjusted[row] = torch.from_numpy(flat).reshape(p_values.shape)
    return adjusted


# ---------------------------------------------------------------- ranks


def _scores(
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


def _chunks(responses: Float[Tensor, "sentence unit"]) -> list[slice]:
    n_sentences, n_units = responses.shape
    width = max(1, _ENTRIES.get(responses.device.type, _ENTRIES["cuda"]) // n_sentences)
    return [slice(start, start + width) for start in range(0, n_units, width)]


def _divide(
    sums: Float64[Tensor, "score language unit"], sizes: list[int]
) -> Float64[Tensor, "score language unit"]:
    """Sums over the positives to means, and sums over pairs to shares of all pairs."""
    positive = rearrange(torch.tensor(sizes).to(sums), "language -> language 1")
    precision, pairs = sums
    return torch.stack([precision / positive, pairs / (positive * (sum(sizes) - positive))])


def _sorted_keys(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"]
) -> Int[Tensor, "unit sentence"]:
    """Keys that order as the responses do and end in the label, in rising order for each unit."""
    responses = responses.detach().contiguous()
    if responses.dtype == torch.float64:
        return _sorted_ranks(responses, labels)
    narrow = responses.element_size() == 2
    # Read as whole numbers, floats of one sign are in order: the negative ones in falling order,
    # from the lowest number up. Counting those down from zero makes one order of all.
    bits = responses.view(torch.int16 if narrow else torch.int32)
    lowest = torch.iinfo(bits.dtype).min
    width = torch.int32 if narrow else torch.int64
    compiled = _compiled() if bits.device.type == "cpu" else None
    if compiled is None:
        value = rearrange(bits, "sentence unit -> unit sentence").to(width)
        value = torch.where(value < 0, lowest - value, value)
        return _sort(value << _LABEL_BITS | labels.to(width))
    keys = torch.empty(*reversed(bits.shape), dtype=width)
    compiled[0](bits.numpy(), labels.numpy(), lowest, keys.numpy())
    return _sort(keys)


def _sorted_ranks(
    responses: Float64[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"]
) -> Int64[Tensor, "unit sentence"]:
    """Keys of float64, which has no room for a label: ranks among the unit's different values."""
    values = rearrange(responses, "sentence unit -> unit sentence").contiguous()
    if values.device.type == "cpu":
        order = torch.from_numpy(np.argsort(values.numpy(), axis=1))
    else:
        order = values.argsort(dim=1)
    ordered, rank = values.gather(1, order), torch.zeros_like(order)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(dim=1)
    return rank << _LABEL_BITS | labels[order]


def _sort(values: Tensor) -> Tensor:
    """Every row in rising order. NumPy sorts whole numbers on a CPU twenty times as fast as torch,
    which always makes indices too."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def _sums(
    keys: Int[Tensor, "unit sentence"], sizes: list[int]
) -> Float64[Tensor, "score language unit"]:
    """Over a language's sentences: precision, and negatives below (those that tie are half)."""
    compiled = _compiled() if keys.device.type == "cpu" else None
    if compiled is None:
        return _sums_of_arrays(keys, sizes)
    sums = torch.empty(2, len(sizes), len(keys), dtype=torch.float64)
    compiled[1](keys.numpy(), np.array(sizes), sums.numpy())
    return sums


def _sums_of_arrays(
    keys: Int[Tensor, "unit sentence"], sizes: list[int]
) -> Float64[Tensor, "score language unit"]:
    """The same, without a loop over units or sentences: without numba, and on a GPU."""
    n_units, n_sentences = keys.shape
    value, label = keys >> _LABEL_BITS, (keys & _LABELS).flatten()
    place = torch.arange(n_sentences, dtype=torch.int32, device=keys.device)
    differs = value[:, 1:] != value[:, :-1]
    first = torch.nn.functional.pad(differs, (1, 0))
    last = torch.nn.functional.pad(differs, (0, 1))
    # Where each sentence's tie group starts, and where it stops.
    start = (first * place).cummax(dim=1).values.flatten()
    stop = n_sentences - (last * place.flip(0)).flip(1).cummax(dim=1).values.flip(1).flatten()
    sums = torch.empty(2, len(sizes), n_units, dtype=torch.float64, device=keys.device)
    for language, size in enumerate(sizes):
        mine = (label == language).nonzero().squeeze(1)
        begin = rearrange(start[mine], "(unit sentence) -> unit sentence", unit=n_units)
        end = rearrange(stop[mine], "(unit sentence) -> unit sentence", unit=n_units)
        changes = torch.nn.functional.pad(begin[:, 1:] != begin[:, :-1], (1, 0))
        below = (changes * place[:size]).cummax(dim=1).values  # of the language, in lower groups
        precision = (size - below) / (n_sentences - begin).double()
        sums[0, language] = precision.sum(dim=1)
        # Twice the sum of the middles of their groups, less what they have of each other.
        sums[1, language] = ((begin + end).sum(dim=1) - size * size) / 2
    return sums


@functools.cache
def _compiled() -> tuple[Callable[..., None], Callable[..., None]] | None:
    """The two loops below as machine code, for any type of key; None without numba."""
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        return None
    compile = numba.njit(nogil=True, error_model="numpy")
    # Unwrapped, because tests run with a type checker around every function.
    return compile(inspect.unwrap(_pack)), compile(inspect.unwrap(_scan))


def _pack(bits, labels, lowest, keys) -> None:
    """Fill `keys` [unit sentence] from the bits of the responses [sentence unit]."""
    for sentence in range(bits.shape[0]):
        for unit in range(bits.shape[1]):
            value = np.int64(bits[sentence, unit])
            if value < 0:
                value = lowest - value
            keys[unit, sentence] = (value << _LABEL_BITS) | labels[sentence]


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
            for place in range(start, stop):
                tied[keys[unit, place] & _LABELS] += 1
            for place in range(start, stop):
                language = keys[unit, place] & _LABELS
                found = tied[language]
                if found:  # else this language was dealt with at an earlier place
                    tied[language] = 0
                    seen[language] += found
                    precision = seen[language] / (n_sentences - start)
                    negatives_below = start - (sizes[language] - seen[language])
                    half = 0.5 * (stop - start - found)
                    sums[0, language, unit] += found * precision
                    sums[1, language, unit] += found * (negatives_below + half)
            stop = start

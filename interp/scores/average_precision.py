"""How well one unit alone detects a language: average precision, of every unit of a model.

Kojima et al. (2024), "On the Multilingual Ability of Decoder-based Pre-trained Language Models:
Finding and Controlling Language-Specific Neurons". A unit's response to a sentence ranks all
sentences; sentences of one language are the positives, all others the negatives. A language is
just a label here: relations, styles or programming languages work as well.

The authors' sentence means include the token that the tokenizer prepends: <s> with LLaMA, </s> with
XGLM, nothing with BLOOM. `read_sentences` puts the same tokens there, and with
`Keep(special_tokens=True)` the means include them too. A unit's response to the prepended token is
nearly the same in every text, and shifts the mean of a short sentence more.
"""

from dataclasses import dataclass
from typing import Any, get_args

import torch
from einops import reduce
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

from interp.counting.sentence_means import SentenceMeans
from interp.results.bars import tqdm
from interp.results.display import Cells, layer_cells
from interp.results.saved import Saved
from interp.results.words import Half, Kind
from interp.scores.ranks import (
    positive_percentiles,
    precision_and_area,
)


def average_precision(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"], n_languages: int
) -> Float64[Tensor, "language unit"]:
    """Mean precision at the positives, from the highest response down.

    Precision at a sentence of the language is the share of the language among all sentences with
    an equal or higher response. Tied sentences count together, as in scikit-learn's
    `average_precision_score`, and -0.0 ties with 0.0.

    One: every positive responds more than every negative. The share of positives: a constant unit,
    and about what chance gives. Minimum: every positive is below every negative, which gives the
    mean over i = 1 … n of i / (N - n + i) with n of N sentences positive (0.0886 for 500 of 3000).

    Exact in all floating-point types; float64 costs about three times as much as the narrower ones.

    >>> responses = torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])  # four sentences
    >>> interp.average_precision(responses, torch.tensor([0, 0, 1, 1]), n_languages=2)
    tensor([[1.0000, 0.5000],
            [0.4167, 0.5000]], dtype=torch.float64)
    """
    return precision_and_area(responses, labels, n_languages)[0]


def roc_area(
    responses: Float[Tensor, "sentence unit"], labels: Int[Tensor, " sentence"], n_languages: int
) -> Float64[Tensor, "language unit"]:
    """Area under the ROC curve: how often a positive responds more than a negative; ties are half.

    One: always. A half: chance, and a constant unit. Zero: never. NaN: there is only one language,
    so there are no negatives. Unlike average precision it does not depend on the share of
    positives, and a mistake at the bottom weighs as much as one at the top.
    """
    return precision_and_area(responses, labels, n_languages)[1]


@dataclass(frozen=True, kw_only=True)
class Precision(Saved):
    """How well every unit of some sites detects each language, and its activation on that language.

    The units of a layer's sites are concatenated on one axis, so a selection over
    `[language layer unit]` compares all of them; `units` returns the slice of one site.

    >>> precision = interp.measure_precision(means)
    >>> precision.units("pre"), precision.percentile(50.0).shape
    (slice(0, 2048, None), torch.Size([3, 6, 2048]))
    """

    kind = "Precision"
    made_by = "interp.measure_precision(means)"

    average_precision: Float64[Tensor, "language layer unit"]
    """Average precision for the language's sentences among all; see `average_precision`."""

    roc_area: Float64[Tensor, "language layer unit"]
    """Area under the ROC curve; see `roc_area`."""

    percentiles: Float32[Tensor, "percent language layer unit"]
    """Percentiles of the response over the language's own sentences, in activation units."""

    percents: tuple[float, ...]
    """Which percentiles: 50 is the median."""

    sentences: Int64[Tensor, " language"]
    """Number of sentences in each language."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

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
                f"Shapes disagree: average precision {tuple(self.average_precision.shape)}, "
                f"ROC area {tuple(self.roc_area.shape)}, percentiles "
                f"{tuple(self.percentiles.shape)} of {self.percents}, "
                f"languages {', '.join(self.languages)}, sites {self.sites}."
            )

    def __repr__(self) -> str:
        sizes = zip(self.languages, self.sentences.tolist(), strict=True)
        sentences = ", ".join(f"{code} {size:,}" for code, size in sizes)
        sites = ", ".join(f"{kind} {width:,}" for kind, width in self.sites)
        n_layers = self.average_precision.shape[1]
        return f"Precision({n_layers} layers of {sites}; {sentences} sentences)"

    def _cells(self) -> Cells:
        best = reduce(self.average_precision, "language layer unit -> language layer", "max")
        names = [[code] for code in self.languages]
        return layer_cells(names, best.tolist(), "the best average precision in each layer")

    def units(self, kind: str) -> slice:
        """The slice of the unit axis that holds a site's units."""
        start = 0
        for name, width in self.sites:
            if name == kind:
                return slice(start, start + width)
            start += width
        raise ValueError(
            f"{kind!r} was not measured, only {', '.join(name for name, _ in self.sites)}."
        )

    def percentile(self, percent: float = 50.0) -> Float32[Tensor, "language layer unit"]:
        """A percentile of each unit's response; Kojima et al. override units with the median."""
        if percent not in self.percents:
            raise ValueError(
                f"Percentile {percent} was not measured, only {', '.join(map(str, self.percents))}."
            )
        return self.percentiles[self.percents.index(percent)]

    def medians(self, language: str) -> dict[Any, Float32[Tensor, "layer unit"]]:
        """Each site's medians over the language's sentences, as `interp.override` takes them.

        >>> precision = interp.measure_precision(means)
        >>> interp.override(precision.medians("de"))
        Edit('override', factor 0, shift at pre)
        """
        if language not in self.languages:
            raise ValueError(
                f"{language!r} is not in this result, which covers {', '.join(self.languages)}."
            )
        median = self.percentile()[self.languages.index(language)]
        return {kind: median[:, self.units(kind)] for kind, _ in self.sites}


def measure_precision(
    means: SentenceMeans,
    percents: tuple[float, ...] = (50.0, 90.0),
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Precision:
    """Score every unit of every recorded site, one site of one layer at a time.

    Memory: the result (about 24 bytes per language and unit), and twice one site of one layer.
    Sorting runs on `device`.

    >>> interp.measure_precision(means)
    Precision(6 layers of pre 2,048; en 20, de 20, zh 20 sentences)
    """
    n_layers, sites = _layout(means)
    n_languages = len(means.languages)
    shape = (n_languages, n_layers, sum(width for _, width in sites))
    scores = torch.empty(2, *shape, dtype=torch.float64)
    percentiles = torch.empty(len(percents), *shape)
    layers = tqdm(range(n_layers), "scoring units", unit="layer", disable=not progress)
    for layer in layers:
        start = 0
        for kind, width in sites:
            index = (..., layer, slice(start, start + width))
            # The responses get no name, so they are freed before the next site is read.
            scores[index], percentiles[index] = _measure_site(
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
    return precision_and_area(responses, labels, n_languages).cpu(), percentiles.float().cpu()


def _layout(means: SentenceMeans) -> tuple[int, tuple[tuple[Kind, int], ...]]:
    """Number of layers, and kind and width of each site."""
    widths: dict[Kind, list[int]] = {kind: means.widths(kind) for kind in means.kinds}
    if any(len(set(per_layer)) != 1 for per_layer in widths.values()):
        raise ValueError(
            f"Units per layer are {widths}: a site must have the same number of units in every "
            "layer."
        )
    n_layers = len(widths[means.kinds[0]])
    return n_layers, tuple((kind, per_layer[0]) for kind, per_layer in widths.items())


def top_and_bottom(
    score: Float[Tensor, "language unit"], n: int, which: Half = "both"
) -> Bool[Tensor, "language unit"]:
    """Per language, the n/2 units with the highest score and the n/2 with the lowest.

    Kojima et al. take both: units that respond to the language, and units that respond to
    everything else. `which` selects one half alone, n/2 units. Ties are common at one and at the
    minimum. The authors break them arbitrarily; here the lower unit wins, first at the top, then
    at the bottom among the remaining units.
    """
    n_units = score.shape[1]
    if which not in get_args(Half):
        raise ValueError(f"which is {which!r}: give one of {', '.join(get_args(Half))}.")
    if n % 2 or not 2 <= n <= n_units:
        raise ValueError(
            f"n is {n} of {n_units:,} units: give an even number from 2 to {n_units:,}, half for "
            "the top and half for the bottom."
        )
    if not score.isfinite().all():
        raise ValueError(
            f"{int((~score.isfinite()).sum()):,} of {score.numel():,} scores are NaN or infinite "
            "and cannot be ranked: leave those units out."
        )
    first = score.argsort(dim=1, descending=True, stable=True)[:, : n // 2]
    top = torch.zeros_like(score, dtype=torch.bool).scatter_(1, first, True)
    last = score.masked_fill(top, torch.inf).argsort(dim=1, stable=True)[:, : n // 2]
    bottom = torch.zeros_like(top).scatter_(1, last, True)
    return {"both": top | bottom, "top": top, "bottom": bottom}[which]

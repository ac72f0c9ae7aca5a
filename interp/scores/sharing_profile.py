"""Sharing categories over many prompts, with chance baselines, layer by layer."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float64, Int64, UInt8, UInt64
from torch import Tensor

from interp.counting.stats import FiringSigns
from interp.inference.intervals import Estimate, mean_over_examples
from interp.results.display import Cells, counted, layer_cells, listed
from interp.results.frames import tidy
from interp.results.saved import Saved
from interp.results.words import FiresBy
from interp.scores.sharing import (
    CATEGORIES,
    Sharing,
    chance_of_categories,
    check_several,
    clusters_of,
)


@dataclass(frozen=True, kw_only=True)
class SharingProfile(Saved):
    """How the neurons of each layer divide among the categories, prompt by prompt.

    The axis "category" has the order of `Sharing`. Intervals are over prompts, or clusters of
    them: they generalize to other prompts of the same kind, in the same languages.

    >>> bits = torch.tensor([[[[7]], [[3]]], [[[1]], [[1]]]], dtype=torch.uint8)
    >>> prompts, codes = ("sum", "product"), ("en", "de")
    >>> signs = interp.FiringSigns(bits=bits, prompts=prompts, languages=codes, d_mlp=8)
    >>> profile = interp.sharing_profile(signs, generator)
    >>> profile.count.tolist()
    [[[5, 1, 0, 2]], [[7, 0, 0, 1]]]
    >>> profile.share().value.tolist()
    [[0.75, 0.0625, 0.0, 0.1875]]
    """

    kind = "SharingProfile"
    made_by = "interp.sharing_profile(signs, generator)"

    count: Int64[Tensor, "prompt layer category"]
    """Number of neurons in each category; adds up to `d_mlp`."""

    kept: Int64[Tensor, "layer category"]
    """Number of neurons that are in the category on every prompt."""

    common: Int64[Tensor, "prompt language language layer"]
    """Number of neurons that fire in both languages; on the diagonal, all that fire in it."""

    expected: Float64[Tensor, "prompt layer category"]
    """Share expected if languages were independent; see `independent` and `excess`."""

    shuffled: Float64[Tensor, "draw layer category"]
    """Shares with the prompts shuffled in each language separately, mean over prompts."""

    shuffled_kept: Int64[Tensor, "draw layer category"]
    """`kept` for the same draws."""

    shuffled_overlap: Float64[Tensor, "draw language language"]
    """`overlap` for the same draws."""

    clusters: Int64[Tensor, " prompt"]
    """Cluster of each prompt: the same number for prompts that go together."""

    prompts: tuple[str, ...]
    """The prompts' ids."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axes."""

    d_mlp: int
    """Neurons per layer."""

    fires_by: FiresBy = "gate"
    """Which activation decides whether a neuron fires."""

    threshold: float = 0.0
    """A neuron fires where that activation exceeds this value."""

    def __repr__(self) -> str:
        shares = self._shares.mean(dim=(0, 1)).tolist()
        named = (f"{name} {share:.2f}" for name, share in zip(CATEGORIES, shares, strict=True))
        return (
            f"SharingProfile({counted(len(self.prompts), 'prompt')} in {listed(self.languages)}; "
            f"{len(self.kept)} layers of {self.d_mlp:,} neurons: {listed(named)})"
        )

    def _cells(self) -> Cells:
        share = reduce(self._shares, "prompt layer category -> category layer", "mean")
        return layer_cells(
            [[name] for name in CATEGORIES], share.tolist(), "share of a layer's neurons"
        )

    def share(self, level: float = 0.95) -> Estimate:
        """Share of a layer's neurons in each category: [layer category]."""
        return mean_over_examples(self._shares, self.clusters, level)

    @property
    def independent(self) -> Float64[Tensor, "layer category"]:
        """Share in each category if languages fired independently, each neuron at its own rates.

        `chance_of_categories` of each neuron's rate over the prompts in each language, averaged
        over neurons. It is exactly the mean of `shuffled` over all possible shuffles.
        """
        return self.expected.mean(dim=0)

    @property
    def interchangeable(self) -> Float64[Tensor, "layer category"]:
        """Share in each category if, in addition, the neurons of a layer were interchangeable.

        Keeps only how many neurons of a layer fire on each prompt in each language. The difference
        from this to `independent` comes from neurons that fire often in all languages, and from
        `independent` to the true share from firing on the same prompts.
        """
        rate = rearrange(self._active, "prompt language layer -> language prompt layer")
        return reduce(chance_of_categories(rate), "category prompt layer -> layer category", "mean")

    def excess(self, level: float = 0.95) -> Estimate:
        """Share minus `independent`: [layer category].

        Zero: firing rates explain it all. Otherwise the translations of a prompt share something
        that other prompts do not: its form or subject, or its meaning.

        The standard error accounts, to first order, for measuring the rates on the same prompts
        (an infinitesimal jackknife). For the same reason, n prompts underestimate the excess by a
        factor of about 1 - 1/n: exactly so for two languages.
        """
        return mean_over_examples(self._shares - self.expected, self.clusters, level)

    @property
    def repeatability(self) -> Float64[Tensor, "layer category"]:
        """Neurons in the category on every prompt, divided by the mean number on one prompt.

        One: always the same neurons. Zero: no neuron keeps the category. NaN: it is empty. It can
        only fall as prompts are added, so compare equal numbers of prompts; as an extreme it has
        no interval.
        """
        return self.kept / self.count.double().mean(dim=0)

    @property
    def shuffled_repeatability(self) -> Float64[Tensor, "draw layer category"]:
        """`repeatability` for the shuffled prompts."""
        return self.shuffled_kept / (self.shuffled * self.d_mlp)

    def active(self, level: float = 0.95) -> Estimate:
        """Share of a layer's neurons that fire, in each language: [language layer]."""
        return mean_over_examples(self._active, self.clusters, level)

    def overlap(self, layer: int | None = None, level: float = 0.95) -> Estimate:
        """Mean over prompts of the Jaccard index of two languages' neurons: [language language].

        Neurons that fire in both, divided by those that fire in either, in one layer or in all
        layers together. One: the same neurons. NaN: on some prompt no neuron fires in either.
        Languages in which more neurons fire overlap more by chance; `shuffled_overlap` is that
        baseline.
        """
        if layer is None:
            common = reduce(self.common, "prompt one other layer -> prompt one other", "sum")
        else:
            common = self.common[..., layer]
        return mean_over_examples(_jaccard(common), self.clusters, level)

    @property
    def _shares(self) -> Float64[Tensor, "prompt layer category"]:
        return self.count.double() / self.d_mlp

    @property
    def _active(self) -> Float64[Tensor, "prompt language layer"]:
        active = self.common.diagonal(dim1=1, dim2=2).double() / self.d_mlp
        return rearrange(active, "prompt layer language -> prompt language layer")

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """One row per layer and category: the shares, both baselines, the repeatability."""
        share = self.share(level)
        return tidy(
            {"layer": range(len(self.kept)), "category": CATEGORIES},
            {
                "share": share.value,
                "low": share.low,
                "high": share.high,
                "independent": self.independent,
                "interchangeable": self.interchangeable,
                "excess": self.excess(level),
                "repeatability": self.repeatability,
                "languages": len(self.languages),
                "prompts": len(self.prompts),
                "fires_by": self.fires_by,
                "threshold": self.threshold,
            },
        )


def sharing_profile(
    signs: FiringSigns,
    generator: torch.Generator,
    *,
    languages: Sequence[str] | None = None,
    clusters: Int64[Tensor, " prompt"] | None = None,
    n_draws: int = 20,
) -> SharingProfile:
    """Categories, overlaps and their chance baselines, from the signs of parallel prompts.

    `languages` selects some of them; shares over different numbers of languages cannot be compared
    without their baselines. `clusters` gives one number per prompt, the same for prompts that go
    together (phrasings of a fact, questions on a text). `n_draws` shuffles from `generator` permute
    the prompts in each language separately. Every neuron keeps its rates and the neurons it fires
    with in each language, and only the alignment of prompts across languages is lost. The mean
    share of shuffles is known exactly (`independent`); the draws add its spread, and the overlap
    and repeatability by chance.

    Works on the packed bits, one layer at a time.

    >>> three = torch.full((2, 3, 1, 1), 0b111, dtype=torch.uint8)  # of eight neurons, always
    >>> prompts, codes = ("sum", "product"), ("en", "de", "zh")
    >>> signs = interp.FiringSigns(bits=three, prompts=prompts, languages=codes, d_mlp=8)
    >>> profile = interp.sharing_profile(signs, generator)
    >>> profile.share().value.tolist(), profile.independent.tolist()
    ([[0.625, 0.0, 0.0, 0.375]], [[0.625, 0.0, 0.0, 0.375]])
    """
    languages = signs.languages if languages is None else tuple(languages)
    rows = _check_signs(signs, languages)
    n_prompts, n_layers = len(signs.prompts), signs.bits.shape[2]
    clusters = clusters_of(clusters, n_prompts)
    if n_draws < 0:
        raise ValueError(f"n_draws is {n_draws}: give 0 for no shuffles, or more.")
    # The same order in all layers: a prompt moves as a whole.
    orders = torch.rand(n_draws, len(rows), n_prompts, generator=generator).argsort(dim=-1).numpy()
    layers: list[_Layer] = []
    shuffled_common = torch.zeros(n_draws, n_prompts, len(rows), len(rows), dtype=torch.int64)
    for layer in range(n_layers):
        result, common = _of_layer(signs.bits[:, rows, layer].cpu(), orders, signs.d_mlp)
        layers.append(result)
        shuffled_common += common

    def stacked(name: str, dim: int) -> Tensor:
        return torch.stack([getattr(layer, name) for layer in layers], dim=dim)

    return SharingProfile(
        count=stacked("count", dim=1),
        kept=stacked("kept", dim=0),
        common=stacked("common", dim=-1),
        expected=stacked("expected", dim=1),
        shuffled=stacked("shuffled", dim=1),
        shuffled_kept=stacked("shuffled_kept", dim=1),
        shuffled_overlap=_jaccard(shuffled_common).mean(dim=1),
        clusters=clusters,
        prompts=signs.prompts,
        languages=languages,
        d_mlp=signs.d_mlp,
        fires_by=signs.fires_by,
        threshold=signs.threshold,
    )


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """The fields of `SharingProfile` for one layer, under the same names."""

    count: Int64[Tensor, "prompt category"]
    kept: Int64[Tensor, " category"]
    common: Int64[Tensor, "prompt language language"]
    expected: Float64[Tensor, "prompt category"]
    shuffled: Float64[Tensor, "draw category"]
    shuffled_kept: Int64[Tensor, "draw category"]


def _of_layer(
    bits: UInt8[Tensor, "prompt language byte"],
    orders: Int64[np.ndarray, "draw language prompt"],
    d_mlp: int,
) -> tuple[_Layer, Int64[Tensor, "draw prompt language language"]]:
    """The fields of one layer, and its `common` for the shuffled prompts."""
    n_prompts, n_languages, _ = bits.shape
    bits = rearrange(bits, "prompt language byte -> language prompt byte").contiguous()
    words = _words(bits)
    count, kept = _tally(words, d_mlp)
    shuffled = torch.zeros(len(orders), len(Sharing), dtype=torch.float64)
    shuffled_kept = torch.zeros(len(orders), len(Sharing), dtype=torch.int64)
    pairs = (n_languages, n_languages)
    shuffled_common = torch.zeros(len(orders), n_prompts, *pairs, dtype=torch.int64)
    for draw, order in enumerate(orders):
        permuted = np.take_along_axis(words, rearrange(order, "row prompt -> row prompt 1"), 1)
        tally, shuffled_kept[draw] = _tally(permuted, d_mlp)
        shuffled[draw] = tally.double().mean(dim=0) / d_mlp
        shuffled_common[draw] = _in_both(permuted)
    layer = _Layer(
        count=count,
        kept=kept,
        common=_in_both(words),
        expected=_expected(bits, d_mlp),
        shuffled=shuffled,
        shuffled_kept=shuffled_kept,
    )
    return layer, shuffled_common


def _words(
    bits: UInt8[Tensor, "language prompt byte"],
) -> UInt64[np.ndarray, "language prompt word"]:
    """The bits as 64-bit words, zero-padded: the same counts, from fewer elements."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8))
    return padded.numpy().view(np.uint64)


def _tally(
    words: UInt64[np.ndarray, "language prompt word"], d_mlp: int
) -> tuple[Int64[Tensor, "prompt category"], Int64[Tensor, " category"]]:
    """Number of neurons in each category on each prompt, and on all prompts."""
    once, twice = words[0], np.zeros_like(words[0])
    for fires in words[1:]:
        twice = twice | (once & fires)
        once = once | fires
    always = np.bitwise_and.reduce(words, axis=0)
    # Padding bits are zero, so silent neurons are counted as d_mlp minus those that fire.
    categories = (once & ~twice, twice & ~always, always)
    count = [d_mlp - _ones(once), *(_ones(category) for category in categories)]
    kept = [d_mlp - _ones(np.bitwise_or.reduce(once, axis=0))]
    kept += [_ones(np.bitwise_and.reduce(category, axis=0)) for category in categories]
    return torch.from_numpy(np.stack(count, axis=-1)), torch.from_numpy(np.stack(kept))


def _in_both(
    words: UInt64[np.ndarray, "language prompt word"],
) -> Int64[Tensor, "prompt language language"]:
    """Number of neurons that fire in both languages of each pair."""
    n_languages, n_prompts = words.shape[:2]
    common = torch.zeros(n_prompts, n_languages, n_languages, dtype=torch.int64)
    for one, other in itertools.combinations_with_replacement(range(n_languages), 2):
        number = torch.from_numpy(_ones(words[one] & words[other]))
        common[:, one, other] = common[:, other, one] = number
    return common


def _ones(words: UInt64[np.ndarray, "*prompt word"]) -> Int64[np.ndarray, "*prompt"]:
    return np.asarray(np.bitwise_count(words).sum(axis=-1, dtype=np.int64))


def _expected(
    bits: UInt8[Tensor, "language prompt byte"], d_mlp: int
) -> Float64[Tensor, "prompt category"]:
    """Shares expected of independent languages, with each prompt's first-order influence on them.

    The mean over prompts is the value at the measured rates. The deviation of a prompt is its
    first-order effect through the rates, so the spread over prompts carries the uncertainty of the
    rates. The probability of a category is linear in each rate, so its slope is the probability at
    rate one minus that at rate zero.
    """
    n_languages, n_prompts, n_bytes = bits.shape
    rate = torch.zeros(n_languages, n_bytes, 8, dtype=torch.float64)
    for row, bit in itertools.product(range(n_languages), range(8)):
        rate[row, :, bit] = _plane(bits[row], bit).sum(dim=0).double() / n_prompts
    influence = torch.zeros(n_prompts, len(Sharing), dtype=torch.float64)
    for row in range(n_languages):
        always, never = rate.clone(), rate.clone()
        always[row], never[row] = 1, 0
        slope = (chance_of_categories(always) - chance_of_categories(never)).float()
        for bit in range(8):
            influence += _plane(bits[row], bit) @ slope[..., bit].T
    chance = rearrange(chance_of_categories(rate), "category byte bit -> category (byte bit)")
    return chance[:, :d_mlp].mean(dim=1) + (influence - influence.mean(dim=0)) / d_mlp


def _plane(bits: UInt8[Tensor, "prompt byte"], bit: int) -> Float[Tensor, "prompt byte"]:
    """Every eighth neuron: small enough for the processor's cache, unlike a whole layer."""
    return ((bits >> bit) & 1).float()


def _jaccard(
    common: Int64[Tensor, "*batch language language"],
) -> Float64[Tensor, "*batch language language"]:
    size = common.diagonal(dim1=-2, dim2=-1)
    one, other = rearrange(size, "... one -> ... one 1"), rearrange(size, "... one -> ... 1 one")
    return common.double() / (one + other - common)


def _check_signs(signs: FiringSigns, languages: tuple[str, ...]) -> list[int]:
    """The rows of the requested languages."""
    n_prompts, n_languages, _, n_bytes = signs.bits.shape
    expected = (len(signs.prompts), len(signs.languages), -(-signs.d_mlp // 8))
    spare = 0xFF & (0xFF << (signs.d_mlp - 1) % 8 + 1)
    if expected != (n_prompts, n_languages, n_bytes) or (signs.bits[..., -1] & spare).any():
        raise ValueError(
            f"The bits have shape {tuple(signs.bits.shape)}, or padding bits that are not zero, "
            f"but the names list {expected[0]} prompts, {expected[1]} languages and {signs.d_mlp} "
            "neurons."
        )
    if not n_prompts:
        raise ValueError("The signs have no prompts: collect some.")
    missing = [code for code in languages if code not in signs.languages]
    if missing or len(set(languages)) < len(languages):
        raise ValueError(
            f"{', '.join(missing or languages)} requested, but the signs have "
            f"{', '.join(signs.languages)}: name some of these, none twice."
        )
    check_several(len(languages))
    return [signs.languages.index(code) for code in languages]

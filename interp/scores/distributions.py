"""Neurons whose act(gate) is distributed otherwise in some languages than in the others.

DLN (EMNLP 2026, "distribution-aware language neurons") compares histograms: two languages overlap
by the mass that their distributions of act(gate) share. A neuron is of a group of languages if no
language of the group overlaps much with any outside. The authors try all 2^(L-1) - 1 splits of L
languages into two groups, and take the one whose largest overlap across is least. The same split
comes from L² steps, see `weakest_link`.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from interp.counting.histograms import Histograms

_AT_ONCE = 2048
"""Neurons split at a time, so that what is looked at again and again stays near the processor."""


def overlap_of(
    share: Float64[Tensor, "language neuron bin"],
) -> Float32[Tensor, "neuron language other"]:
    """Mass that two languages' distributions share: the sum over bins of the smaller share.

    One: they are the same. Zero: no value occurs in both. It is one less half the sum of absolute
    differences; in 32 bits, so that what is equal is not told apart by rounding.
    """
    by_neuron = rearrange(share, "language neuron bin -> neuron language bin").contiguous()
    return (1 - torch.cdist(by_neuron, by_neuron, p=1.0) / 2).float()


@dataclass(frozen=True, kw_only=True)
class Split:
    """Each neuron's split of the languages into the two groups that overlap least."""

    across: Float[Tensor, " neuron"]
    """The largest overlap of a language in one group and a language in the other."""

    apart: Bool[Tensor, "neuron language"]
    """One of the two groups, whichever."""


def weakest_link(overlap: Float[Tensor, "neuron language other"]) -> Split:
    """The split whose largest overlap across is least: cut the maximum spanning tree where it is
    weakest.

    Take a tree that links all languages with the largest sum of overlaps. Across any split,

    - some link of the tree crosses it, and no link of the tree is weaker than its weakest, so the
      largest overlap across is at least that of the weakest link;
    - and if only the weakest link is cut, nothing across overlaps more than it: such a pair could
      take its place, and the tree's sum would grow.

    So cutting the weakest link gives the least possible, and without ties no other split does. The
    tree grows from the first language, each time by the language that overlaps most with one in it
    (Prim, 1957). All neurons grow theirs in step.
    """
    if overlap.shape[1] < 2:
        raise ValueError("One language cannot be split into two groups: give two or more.")
    splits = [_grown(some) for some in overlap.split(_AT_ONCE)]
    return Split(
        across=torch.cat([split.across for split in splits]),
        apart=torch.cat([split.apart for split in splits]),
    )


def _grown(overlap: Float[Tensor, "neuron language other"]) -> Split:
    n_neurons, n_languages, _ = overlap.shape
    neuron = torch.arange(n_neurons, device=overlap.device)
    link = overlap[:, 0].clone()  # of each language, with the tree
    link[:, 0] = -torch.inf
    linked_to = torch.zeros(n_neurons, n_languages, dtype=torch.int64, device=overlap.device)
    apart = torch.zeros(n_neurons, n_languages, dtype=torch.bool, device=overlap.device)
    weakest = torch.full((n_neurons,), torch.inf, dtype=overlap.dtype, device=overlap.device)
    outside = torch.ones_like(apart)
    outside[:, 0] = False
    for _ in range(1, n_languages):
        strength, new = link.max(dim=1)
        weaker = strength < weakest
        # The weakest link so far parts the new language, and all that are linked to it later, from
        # the others; with any other link a language goes where the one it is linked to is.
        apart &= ~rearrange(weaker, "neuron -> neuron 1")
        apart[neuron, new] = weaker | apart[neuron, linked_to[neuron, new]]
        weakest = weakest.minimum(strength)
        outside[neuron, new] = False
        candidates = overlap[neuron, new]
        closer = outside & (candidates > link)
        link = torch.where(closer, candidates, link)
        link[neuron, new] = -torch.inf
        linked_to = torch.where(closer, rearrange(new, "neuron -> neuron 1"), linked_to)
    return Split(across=weakest, apart=apart)


def smaller_group(
    apart: Bool[Tensor, "neuron language"], mean: Float[Tensor, "neuron language"]
) -> Bool[Tensor, "neuron language"]:
    """The group with fewer languages; of two equal ones, that where the neuron is more active.

    Of two equal ones the authors' code takes that of the language that comes first.
    """
    n_apart = reduce(apart.long(), "neuron language -> neuron 1", "sum")
    n_rest = apart.shape[1] - n_apart
    inside = reduce(mean * apart, "neuron language -> neuron 1", "sum")
    outside = reduce(mean * ~apart, "neuron language -> neuron 1", "sum")
    turned = (n_apart > n_rest) | ((n_apart == n_rest) & (outside > inside))
    return apart ^ turned


def overlap_across(histograms: Histograms) -> Float32[Tensor, "language layer neuron"]:
    """The overlap across a neuron's split, for the languages of the smaller group.

    Zero: nothing that the neuron does in the group occurs outside. One: its distributions are the
    same. Infinite: the language is in the larger group.
    """
    layers = []
    for layer in range(histograms.counts.shape[1]):
        share = histograms.share(layer)
        split = weakest_link(overlap_of(share))
        bins = torch.arange(share.shape[-1], dtype=share.dtype)
        mean = rearrange(share @ bins, "language neuron -> neuron language")
        group = smaller_group(split.apart, mean)
        across = repeat(split.across, "neuron -> neuron language", language=group.shape[1])
        layers.append(across.masked_fill(~group, torch.inf))
    return rearrange(layers, "layer neuron language -> language layer neuron")


def overlap_threshold(histograms: Histograms, fraction: float) -> float:
    """What this fraction of all overlaps of two languages, of all neurons, does not exceed: DLN's
    threshold. An order statistic, as in `busy_threshold`."""
    n_languages = len(histograms.languages)
    one, other = torch.triu_indices(n_languages, n_languages, offset=1)
    layers = range(histograms.counts.shape[1])
    pairs = torch.stack([overlap_of(histograms.share(layer))[:, one, other] for layer in layers])
    rank = int(fraction * pairs.numel()) if 0 < fraction <= 1 else 0
    if rank < 1:
        raise ValueError(
            f"The fraction {fraction} of {pairs.numel():,} overlaps is none of them: give a share "
            "between 0 and 1 that leaves at least one, such as 0.01."
        )
    return pairs.flatten().kthvalue(rank).values.item()


def divergence_from_others(histograms: Histograms) -> Float64[Tensor, "language layer neuron"]:
    """How far a neuron's distribution in a language is from that in the others, in nats.

    The divergence of Kullback and Leibler (1951) of the language's distribution from the mean of
    the others'. Zero: they are the same. So that no value is impossible elsewhere, one
    token is added to each language, spread evenly over the bins.
    """
    layers = []
    n_bins = histograms.counts.shape[-1]
    tokens = rearrange(histograms.tokens, "language -> language 1 1")
    for layer in range(histograms.counts.shape[1]):
        share = (histograms.counts[:, layer].double() + 1 / n_bins) / (tokens + 1)
        total = reduce(share, "language neuron bin -> neuron bin", "sum")
        others = (total - share) / (len(share) - 1)
        terms = torch.xlogy(share, share) - torch.xlogy(share, others)
        layers.append(reduce(terms, "language neuron bin -> language neuron", "sum"))
    return rearrange(layers, "layer language neuron -> language layer neuron").clamp_min(0)

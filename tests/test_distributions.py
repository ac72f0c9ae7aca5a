"""Selectors that look at whole distributions, signs of both branches, and the negative side."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.counting.histograms import Histograms
from interp.counting.negative_side import NegativeSide
from interp.counting.sign_cases import SignCases
from interp.counting.stats import FiringStats
from interp.scores.choosers import measured
from interp.scores.distributions import (
    divergence_from_others,
    overlap_across,
    overlap_of,
    overlap_threshold,
    smaller_group,
    weakest_link,
)
from interp.scores.methods import METHODS, Settings

LANGUAGES = ("en", "de", "fr", "es")
N_BINS, TOKENS, MANY = 12, 60, 1999


def exhaustive(overlap: list[list[float]]) -> tuple[float, set[int]]:
    """The least largest overlap across any split in two, and a group without language 0."""
    n = len(overlap)
    best = (math.inf, set[int]())
    for size in range(1, n):
        for group in map(set, itertools.combinations(range(1, n), size)):
            across = max(overlap[a][b] for a in group for b in set(range(n)) - group)
            best = min(best, (across, group), key=lambda pair: pair[0])
    return best


def random_overlaps(n_neurons: int, n: int, generator: torch.Generator, steps: int = 0) -> Tensor:
    """Symmetric tables, with ones on the diagonal; `steps`: only so many different numbers."""
    table = torch.rand(n_neurons, n, n, generator=generator, dtype=torch.float64)
    if steps:
        table = (table * steps).floor() / steps
    table = table.triu(1)
    return table + table.mT + torch.eye(n)


def histograms(counts: Tensor) -> Histograms:
    """From [language layer neuron bin], with as many tokens in every neuron."""
    return Histograms(
        counts=counts.int(),
        low=torch.zeros(counts.shape[1:3]),
        width=torch.ones(counts.shape[1:3]),
        tokens=counts.sum(dim=-1)[:, 0, 0].long(),
        languages=LANGUAGES[: len(counts)],
    )


def drawn(generator: torch.Generator, n_layers: int = 2, n_neurons: int = 30) -> Histograms:
    """Every neuron of every language has a distribution of its own; overlaps hardly tie."""
    shape = (len(LANGUAGES), n_layers, n_neurons)
    peak = N_BINS * torch.rand(shape, generator=generator)
    values = peak[..., None] + 2 * torch.randn(*shape, MANY, generator=generator)
    bins = values.long().clamp(0, N_BINS - 1)
    return histograms(torch.nn.functional.one_hot(bins, N_BINS).sum(dim=-2))


# ---------------------------------------------------------------- the split


def test_the_overlap_is_the_sum_of_the_smaller_shares(generator):
    share = drawn(generator).share(1)
    found = overlap_of(share)
    for neuron in (0, 7, 29):
        for one, other in itertools.product(range(len(LANGUAGES)), repeat=2):
            pairs = zip(share[one, neuron].tolist(), share[other, neuron].tolist(), strict=True)
            assert found[neuron, one, other] == pytest.approx(sum(map(min, pairs)))
    assert torch.equal(found.diagonal(dim1=1, dim2=2), torch.ones(30, len(LANGUAGES)))


@pytest.mark.parametrize("n", range(2, 10))
def test_the_weakest_link_of_the_tree_is_the_best_of_all_splits(n: int, generator):
    overlap = random_overlaps(40, n, generator)
    split = weakest_link(overlap)
    for neuron, table in enumerate(overlap.tolist()):
        across, group = exhaustive(table)
        assert split.across[neuron].item() == across
        apart = split.apart[neuron]
        found = (apart ^ apart[0]).nonzero().flatten().tolist()  # the group without language 0
        assert set(found) == group


@pytest.mark.parametrize("n", [3, 5, 8])
def test_with_ties_the_split_is_one_of_the_best(n: int, generator):
    overlap = random_overlaps(60, n, generator, steps=4)
    split = weakest_link(overlap)
    for neuron, table in enumerate(overlap.tolist()):
        group = set(split.apart[neuron].nonzero().flatten().tolist())
        assert 0 < len(group) < n
        across = max(table[a][b] for a in group for b in set(range(n)) - group)
        assert across == split.across[neuron].item() == exhaustive(table)[0]


def test_many_neurons_are_split_as_a_few_are(generator):
    overlap = random_overlaps(5000, 4, generator)
    whole, few = weakest_link(overlap), weakest_link(overlap[4990:])
    assert torch.equal(whole.across[4990:], few.across)
    assert torch.equal(whole.apart[4990:], few.apart)
    with pytest.raises(ValueError, match="One language cannot be split"):
        weakest_link(overlap[:, :1, :1])


def test_a_neuron_belongs_to_the_smaller_group_or_to_the_more_active():
    apart = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    mean = torch.tensor([[0, 9, 9, 9], [0, 9, 9, 9], [3, 3, 1, 1], [1, 1, 3, 3]]).float()
    expected = [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
    assert smaller_group(apart, mean).long().tolist() == expected
    assert smaller_group(~apart, mean).long().tolist() == expected


def test_languages_in_another_order_are_split_alike(generator):
    overlap, mean = random_overlaps(50, 6, generator), torch.rand(50, 6, generator=generator)
    order = torch.randperm(6, generator=generator)
    here, there = weakest_link(overlap), weakest_link(overlap[:, order][:, :, order])
    assert torch.equal(here.across, there.across)
    group = smaller_group(here.apart, mean)
    assert torch.equal(smaller_group(there.apart, mean[:, order]), group[:, order])


def test_an_overlap_that_is_least_is_found_beside_one_that_is_small_everywhere():
    """Neuron 0 is apart in French; the decoy, 1, is less like itself in every language."""
    counts = torch.zeros(4, 1, 4, N_BINS, dtype=torch.int64)
    counts[:, 0, :, 5] = TOKENS
    counts[2, 0, 0, 5], counts[2, 0, 0, 9] = 6, TOKENS - 6
    for row in range(4):
        counts[row, 0, 1, 5] = TOKENS - 40
        counts[row, 0, 1, 7 + row] += 40
    counts[:2, 0, 2, 5], counts[:2, 0, 2, 8] = 12, TOKENS - 12  # of two languages, more active
    across = overlap_across(histograms(counts))
    assert across[2, 0, 0] == pytest.approx(0.1)
    assert across[:, 0, 0].isinf().tolist() == [True, True, False, True]
    assert across[:, 0, 1].min() == pytest.approx(1 / 3)
    assert across[:, 0, 2].isinf().tolist() == [False, False, True, True]
    assert across[0, 0, 2] == pytest.approx(0.2)
    seen = measured(kept(histograms=histograms(counts)), torch.Generator())
    chosen = METHODS["dln-per-language"].choose(seen, Settings(n=1))
    assert chosen[2].nonzero().tolist() == [[0, 0]]
    assert chosen[0].nonzero().tolist() == [[0, 2]]


def test_dln_as_published_is_its_slow_definition(generator):
    """All pairs of all neurons; then every split of every neuron."""
    whole, fraction = drawn(generator), 0.05
    n = len(LANGUAGES)
    pairs, tables = [], []
    for layer in range(2):
        for neuron in range(30):
            share = whole.share(layer)[:, neuron].tolist()
            table = [
                [sum(map(min, zip(share[a], share[b], strict=True))) for b in range(n)]
                for a in range(n)
            ]
            tables.append((layer, neuron, table))
            pairs += [table[a][b] for a in range(n) for b in range(a + 1, n)]
    bar = sorted(pairs)[int(fraction * len(pairs)) - 1]
    assert overlap_threshold(whole, fraction) == pytest.approx(bar)
    expected = set()
    for layer, neuron, table in tables:
        across, group = exhaustive(table)
        if across <= bar + 1e-7:
            if len(group) > n / 2:
                group = set(range(n)) - group
            if len(group) < n / 2:  # of two equal groups the authors take the first
                expected |= {(row, layer, neuron) for row in group}
    seen = measured(kept(histograms=whole), torch.Generator())
    chosen = METHODS["dln"].choose(seen, Settings(fraction=fraction))
    alone = chosen & (chosen.sum(dim=0) < n / 2)
    assert {tuple(place) for place in alone.nonzero().tolist()} == expected != set()
    with pytest.raises(ValueError, match="is none of them"):
        overlap_threshold(whole, 0.0)


def test_the_divergence_is_its_slow_definition_and_zero_without_a_difference(generator):
    whole = drawn(generator)
    found = divergence_from_others(whole)
    for row, layer, neuron in ((0, 0, 0), (3, 1, 29), (2, 1, 4)):
        shares = [
            [
                (count.item() + 1 / N_BINS) / (MANY + 1)
                for count in whole.counts[code, layer, neuron]
            ]
            for code in range(4)
        ]
        others = [
            sum(shares[code][bin] for code in range(4) if code != row) / 3 for bin in range(N_BINS)
        ]
        expected = sum(p * math.log(p / q) for p, q in zip(shares[row], others, strict=True))
        assert found[row, layer, neuron] == pytest.approx(expected)
    same = histograms(whole.counts[:1].expand(4, -1, -1, -1))
    assert divergence_from_others(same).abs().max() < 1e-12
    seen = measured(kept(histograms=whole), torch.Generator())
    chosen = METHODS["divergence"].choose(seen, Settings(n=3))
    for row in range(4):
        assert found[row][chosen[row]].min() >= found[row][~chosen[row]].max()


# ---------------------------------------------------------------- signs and sides


def kept(**results: Any) -> Any:
    """What a run kept, of neurons that all fire on a tenth of the tokens of every language."""
    shape = next(iter(results.values())).counts.shape if "histograms" in results else None
    n_layers, n_neurons = shape[1:3] if shape is not None else (1, 40)
    n = shape[0] if shape is not None else 4
    fired = torch.full((1, n, n_layers, n_neurons), 100)
    firing = FiringStats(fired=fired, tokens=torch.full((1, n), 1000), languages=LANGUAGES[:n])
    return SimpleNamespace(firing=firing, **results)


def test_a_neuron_that_writes_the_opposite_in_one_language_has_a_case_of_its_own():
    """Neuron 3 fires alike in all languages, with the linear branch below zero in German alone."""
    counts = torch.zeros(1, 4, 4, 1, 40, dtype=torch.int64)
    counts[0, :, 0], counts[0, :, 1] = 60, 40
    counts[0, :, 2], counts[0, :, 3] = 450, 450
    counts[0, :, 0, 0, 3], counts[0, :, 1, 0, 3] = 100, 0
    counts[0, 1, 0, 0, 3], counts[0, 1, 1, 0, 3] = 0, 100
    counts[0, :, 1, 0, 9] = 100  # a decoy: below zero more often, in all languages
    counts[0, :, 0, 0, 9] = 0
    cases = SignCases(counts=counts, tokens=torch.full((1, 4), 1000), languages=LANGUAGES)
    seen = measured(kept(sign_cases=cases), torch.Generator())
    chosen = METHODS["sign-cases"].choose(seen, Settings(n=1, busy_quantile=0.9))
    assert chosen[1].nonzero().tolist() == [[0, 3]]
    blind = METHODS["lape-per-language"].choose(seen, Settings(n=1, busy_quantile=0.9))
    assert not blind[1, 0, 3]


def test_a_neuron_that_writes_below_zero_in_one_language_is_found_there():
    """Neuron 5 does in French; the decoy, 6, writes more there, but no less elsewhere."""
    squares = torch.full((4, 1, 40), 1.0, dtype=torch.float64)
    squares[:, 0, 5] = 0.1
    squares[2, 0, 5] = 50
    squares[:, 0, 6] = 500
    side = NegativeSide(
        below=torch.full((4, 1, 40), 900),
        output=torch.zeros(4, 1, 40, dtype=torch.float64),
        squares=squares,
        tokens=torch.full((4,), 1000),
        languages=LANGUAGES,
    )
    assert side.size[2, 0, 5] == pytest.approx(math.sqrt(50 / 1000))
    assert side.mean_square[2, 0, 5] == pytest.approx(50 / 900)
    seen = measured(kept(negative_side=side), torch.Generator())
    chosen = METHODS["negative-side"].choose(seen, Settings(n=1, busy_quantile=0.95))
    assert chosen[2].nonzero().tolist() == [[0, 5]]
    assert not chosen[1, 0, 5]


def test_every_method_has_a_source_and_needs_what_a_run_can_keep():
    from interp.counting.statistics import STATISTICS

    for name, method in METHODS.items():
        assert method.source, name
        assert method.needs in {None, "sentence_means", *STATISTICS}, name

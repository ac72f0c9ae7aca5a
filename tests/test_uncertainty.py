"""The jackknife over shards: its definition, its size on clustered text, its limits."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float
from scipy import stats as distributions
from torch import Tensor

from interp.scores.lape import language_entropy
from interp.stats import FiringStats
from interp.uncertainty import jackknife, selection_frequency


def rate_of(stats: FiringStats) -> Float[Tensor, "language layer neuron"]:
    return stats.rate


def some_stats(seed: int, n_shards: int = 7) -> FiringStats:
    generator = torch.Generator().manual_seed(seed)
    fired = torch.randint(0, 31, (n_shards, 2, 2, 5), generator=generator)
    return FiringStats(fired, torch.full((n_shards, 2), 30), ("en", "zh"))


RATE, DOCUMENTS, TOKENS, TOGETHER = 0.3, 10, 100, 4.0


def clustered(seed: int, n_shards: int, n_neurons: int = 4000) -> FiringStats:
    """Neurons that all have the same true rate, each with its own rate in every document."""
    random = np.random.default_rng(seed)
    shape = (n_shards, DOCUMENTS, n_neurons)
    in_document = random.beta(RATE * TOGETHER, (1 - RATE) * TOGETHER, size=shape)
    fired = random.binomial(TOKENS, in_document).sum(axis=1)
    tokens = torch.full((n_shards, 1), DOCUMENTS * TOKENS)
    return FiringStats(torch.from_numpy(fired).long()[:, None, None], tokens, ("en",))


def test_the_jackknife_equals_its_definition():
    stats = some_stats(seed=0)

    def entropy(stats: FiringStats) -> Tensor:
        return language_entropy(stats.rate)

    estimate = jackknife(stats, entropy, level=0.9)
    left_out = torch.stack([entropy(stats.without(shard)) for shard in range(7)])
    error = ((left_out - left_out.mean(0)).square().sum(0) * 6 / 7).sqrt()
    reach = distributions.t(6).ppf(0.95) * error
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(estimate.value, entropy(stats), rtol=0, atol=0)
    torch.testing.assert_close(estimate.standard_error, error, **close)
    torch.testing.assert_close(estimate.low, entropy(stats) - reach, **close)
    torch.testing.assert_close(estimate.high, entropy(stats) + reach, **close)
    assert estimate.level == 0.9
    assert (error > 1e-3).all()


def test_of_a_mean_over_equal_shards_it_is_the_usual_standard_error():
    stats = some_stats(seed=1)
    by_shard = stats.fired.double() / 30
    expected = by_shard.std(dim=0, correction=1) / math.sqrt(7)
    torch.testing.assert_close(jackknife(stats, rate_of).standard_error, expected)


@pytest.mark.parametrize("n_shards", [5, 20])
def test_on_clustered_text_the_standard_error_is_right_and_the_binomial_one_is_not(n_shards: int):
    stats = clustered(seed=n_shards, n_shards=n_shards)
    estimate = jackknife(stats, rate_of)
    truth = estimate.value.std().item()  # over 4000 neurons of equal true rate: within 2 %
    mean_square = estimate.standard_error.square().mean().sqrt().item()
    assert mean_square == pytest.approx(truth, rel=0.05)
    # Two tokens of a document are correlated by 1 / (1 + TOGETHER).
    of_document = RATE * (1 - RATE) / TOKENS * (1 + (TOKENS - 1) / (1 + TOGETHER))
    assert mean_square == pytest.approx(math.sqrt(of_document / (n_shards * DOCUMENTS)), rel=0.03)
    binomial = math.sqrt(RATE * (1 - RATE) / (n_shards * DOCUMENTS * TOKENS))
    assert mean_square > 4 * binomial


@pytest.mark.parametrize("n_shards", [5, 20])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_holds_the_truth_as_often_as_it_says(n_shards: int, level: float):
    stats = clustered(seed=100 + n_shards, n_shards=n_shards, n_neurons=16_000)
    estimate = jackknife(stats, rate_of, level)
    covered = ((estimate.low <= RATE) & (estimate.high >= RATE)).double().mean().item()
    assert covered == pytest.approx(level, abs=0.012)  # standard error of the share: 0.003
    normal = distributions.norm.ppf((1 + level) / 2) * estimate.standard_error
    narrow = ((estimate.value - RATE).abs() <= normal).double().mean().item()
    if n_shards == 5:
        assert narrow < level - 0.02  # few shards need Student's distribution


def test_shards_that_agree_leave_no_error():
    fired = torch.tensor([1, 2, 3]).expand(5, 1, 1, 3)
    estimate = jackknife(FiringStats(fired, torch.full((5, 1), 4), ("en",)), rate_of)
    assert estimate.standard_error.tolist() == [[[0, 0, 0]]]
    assert torch.equal(estimate.low, estimate.value)
    assert torch.equal(estimate.high, estimate.value)


def test_one_odd_shard_shows():
    fired = torch.full((5, 1, 1, 2), 2)
    fired[3, 0, 0, 1] = 4
    estimate = jackknife(FiringStats(fired, torch.full((5, 1), 4), ("en",)), rate_of)
    assert estimate.standard_error[0, 0, 0] == 0
    assert estimate.standard_error[0, 0, 1].item() == pytest.approx(0.1)


def test_the_order_of_the_shards_does_not_matter():
    stats = some_stats(seed=2)
    one, other = (jackknife(each, rate_of) for each in (stats, stats.subset([6, 2, 4, 0, 1, 5, 3])))
    torch.testing.assert_close(one.standard_error, other.standard_error, rtol=1e-12, atol=0)


def test_a_large_offset_does_not_drown_the_error():
    stats = some_stats(seed=3)
    plain = jackknife(stats, rate_of).standard_error
    shifted = jackknife(stats, lambda each: each.rate + 1e6).standard_error
    torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=0)


def test_a_statistic_that_is_undefined_without_a_shard_has_no_error():
    fired = torch.zeros(4, 2, 1, 3, dtype=torch.int64)
    fired[2, 0, 0, 0] = 5  # fires in one shard only: silent without it, so no entropy there
    fired[:, :, 0, 1] = torch.tensor([[1, 2], [3, 1], [2, 2], [1, 1]])
    stats = FiringStats(fired, torch.full((4, 2), 10), ("en", "zh"))
    estimate = jackknife(stats, lambda each: language_entropy(each.rate))
    assert estimate.value[0, 0] == 0
    assert estimate.standard_error[0].isnan().tolist() == [True, False, True]
    assert estimate.low[0].isnan().tolist() == [True, False, True]
    assert estimate.high[0].isnan().tolist() == [True, False, True]
    endless = jackknife(stats, lambda each: 1 / each.rate)
    assert endless.standard_error[0, 0].isnan().tolist() == [True, False, True]


def test_a_statistic_that_is_undefined_on_the_whole_has_no_error():
    estimate = jackknife(
        some_stats(seed=7), lambda each: each.rate if each.n_shards < 7 else each.rate * math.nan
    )
    for part in (estimate.value, estimate.standard_error, estimate.low, estimate.high):
        assert part.isnan().all()


def test_a_single_number_has_an_error_too():
    estimate = jackknife(some_stats(seed=4), lambda stats: stats.rate.mean())
    assert estimate.value.shape == estimate.low.shape == ()
    assert estimate.low < estimate.value < estimate.high


def test_what_cannot_be_jackknifed_is_refused():
    stats = some_stats(seed=5)
    with pytest.raises(ValueError, match=r"There is 1 shard, .*collect with n_shards=20"):
        jackknife(stats.subset([0]), rate_of)
    with pytest.raises(ValueError, match="There is 1 shard"):
        selection_frequency(stats.subset([0]), lambda each: each.rate > 0.5)
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match=r"give a share between 0 and 1"):
            jackknife(stats, rate_of, float(level))
    with pytest.raises(ValueError, match=r"shape \(7, 2\) on all shards and \(6, 2\) without"):
        jackknife(stats, lambda each: each.tokens.double())


def test_selection_frequency_counts_the_replicates_that_select():
    stats = some_stats(seed=6)

    def select(stats: FiringStats) -> Bool[Tensor, "language layer neuron"]:
        return stats.rate > stats.rate.median()

    expected = torch.zeros(2, 2, 5, dtype=torch.float64)
    for shard in range(7):
        expected += select(stats.without(shard)).double() / 7
    frequency = selection_frequency(stats, select)
    torch.testing.assert_close(frequency, expected)
    assert ((frequency > 0) & (frequency < 1)).any()


def test_selection_frequency_at_its_limits():
    fired = torch.zeros(4, 1, 1, 3, dtype=torch.int64)
    fired[:, 0, 0, 0] = 9  # always
    fired[1, 0, 0, 1] = 9  # in one shard: selected unless that one is left out
    stats = FiringStats(fired, torch.full((4, 1), 10), ("en",))
    assert selection_frequency(stats, lambda each: each.rate > 0.2).tolist() == [[[1, 0.75, 0]]]

"""Every interval and test against its slow definition, its size on clustered data, its limits."""

import itertools
import math
import random
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float
from scipy import stats as distributions
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.inference.crossed import (
    jackknife_languages,
    mean_over_crossed,
    share_difference,
    unpaired_difference,
)
from interp.inference.intervals import (
    Estimate,
    bootstrap_shards,
    jackknife,
    jackknife_shards,
    mean_over_examples,
    paired_bootstrap,
    selection_frequency,
    wilson,
)
from interp.inference.permutation import false_discovery, mantel_test
from interp.scores.lape import language_entropy
from interp.selections.select import select_by_entropy


def rate_of(stats: FiringStats) -> Float[Tensor, "language layer neuron"]:
    return stats.rate


def some_stats(seed: int, n_shards: int = 7) -> FiringStats:
    generator = torch.Generator().manual_seed(seed)
    fired = torch.randint(0, 31, (n_shards, 2, 2, 5), generator=generator)
    return FiringStats(fired=fired, tokens=torch.full((n_shards, 2), 30), languages=("en", "zh"))


RATE, DOCUMENTS, TOKENS, TOGETHER = 0.3, 10, 100, 4.0


def clustered(seed: int, n_shards: int, n_neurons: int = 4000) -> FiringStats:
    """Neurons that all have the same true rate, each with its own rate in every document."""
    random = np.random.default_rng(seed)
    shape = (n_shards, DOCUMENTS, n_neurons)
    in_document = random.beta(RATE * TOGETHER, (1 - RATE) * TOGETHER, size=shape)
    fired = random.binomial(TOKENS, in_document).sum(axis=1)
    tokens = torch.full((n_shards, 1), DOCUMENTS * TOKENS)
    return FiringStats(
        fired=torch.from_numpy(fired).long()[:, None, None], tokens=tokens, languages=("en",)
    )


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
    estimate = jackknife(
        FiringStats(fired=fired, tokens=torch.full((5, 1), 4), languages=("en",)), rate_of
    )
    assert estimate.standard_error.tolist() == [[[0, 0, 0]]]
    assert torch.equal(estimate.low, estimate.value)
    assert torch.equal(estimate.high, estimate.value)


def test_one_odd_shard_shows():
    fired = torch.full((5, 1, 1, 2), 2)
    fired[3, 0, 0, 1] = 4
    estimate = jackknife(
        FiringStats(fired=fired, tokens=torch.full((5, 1), 4), languages=("en",)), rate_of
    )
    assert estimate.standard_error[0, 0, 0] == 0
    assert estimate.standard_error[0, 0, 1].item() == pytest.approx(0.1)


def test_the_order_of_the_shards_does_not_matter():
    stats = some_stats(seed=2)
    one, other = (jackknife(each, rate_of) for each in (stats, stats.shards([6, 2, 4, 0, 1, 5, 3])))
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
    stats = FiringStats(fired=fired, tokens=torch.full((4, 2), 10), languages=("en", "zh"))
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
    with pytest.raises(ValueError, match=r"There is 1 shard, .*with n_shards=20"):
        jackknife(stats.shards([0]), rate_of)
    with pytest.raises(ValueError, match="There is 1 shard"):
        selection_frequency(stats.shards([0]), lambda each: each.rate > 0.5)
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
    stats = FiringStats(fired=fired, tokens=torch.full((4, 1), 10), languages=("en",))
    assert selection_frequency(stats, lambda each: each.rate > 0.2).tolist() == [[[1, 0.75, 0]]]


# ---------------------------------------------------------------- shards of other sums


def some_losses(n_shards: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(20)
    return {
        "loss": torch.rand(n_shards, 2, 3, generator=generator).double() * 100,
        "tokens": torch.randint(20, 60, (n_shards, 2, 1), generator=generator),
    }


def per_token(total: dict[str, Tensor]) -> Tensor:
    return total["loss"] / total["tokens"]


def test_the_jackknife_of_sums_equals_its_definition():
    sums = some_losses()
    estimate = jackknife_shards(sums, per_token, level=0.9)
    without = []
    for shard in range(6):
        others = [each for each in range(6) if each != shard]
        without.append(sums["loss"][others].sum(0) / sums["tokens"][others].sum(0))
    without = torch.stack(without)
    error = ((without - without.mean(0)).square().sum(0) * 5 / 6).sqrt()
    torch.testing.assert_close(estimate.value, sums["loss"].sum(0) / sums["tokens"].sum(0))
    torch.testing.assert_close(estimate.standard_error, error)
    torch.testing.assert_close(estimate.high - estimate.value, distributions.t(5).ppf(0.95) * error)


def test_the_two_jackknives_are_one():
    stats = some_stats(seed=8)

    def rate(total: dict[str, Tensor]) -> Tensor:
        return total["fired"].double() / total["tokens"][:, None, None]

    one = jackknife_shards({"fired": stats.fired, "tokens": stats.tokens}, rate)
    other = jackknife(stats, rate_of)
    torch.testing.assert_close(one.value, other.value, rtol=0, atol=0)
    torch.testing.assert_close(one.standard_error, other.standard_error, rtol=0, atol=0)
    torch.testing.assert_close(one.low, other.low, rtol=0, atol=0)


def test_a_shard_that_is_left_out_is_forgotten_whole():
    sums = {"loss": torch.tensor([1e20, 1.0, 2.0, 4.0], dtype=torch.float64)}
    seen: list[float] = []

    def statistic(total: dict[str, Tensor]) -> Tensor:
        seen.append(total["loss"].item())
        return total["loss"]

    jackknife_shards(sums, statistic)
    assert seen[1] == 7.0


def test_sums_that_cannot_be_jackknifed_are_refused():
    sums = some_losses()
    uneven = {"loss": sums["loss"], "tokens": sums["tokens"][:4]}
    with pytest.raises(ValueError, match=r"\{'loss': 6, 'tokens': 4\}: give one sum or more"):
        jackknife_shards(uneven, per_token)
    with pytest.raises(ValueError, match=r"are \{\}: give one sum or more"):
        jackknife_shards({}, per_token)
    with pytest.raises(ValueError, match="There is 1 shard"):
        jackknife_shards({name: each[:1] for name, each in sums.items()}, per_token)
    with pytest.raises(ValueError, match="give a share between 0 and 1"):
        jackknife_shards(sums, per_token, level=1.0)


# ---------------------------------------------------------------- means over examples


def test_the_error_of_a_mean_is_the_deviation_over_the_root():
    values = torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(21)).double() + 5
    estimate = mean_over_examples(values, level=0.9)
    error = values.std(dim=0) / math.sqrt(30)
    torch.testing.assert_close(estimate.value, values.mean(dim=0))
    torch.testing.assert_close(estimate.standard_error, error)
    reach = distributions.t(29).ppf(0.95) * error
    torch.testing.assert_close(estimate.low, values.mean(dim=0) - reach)
    torch.testing.assert_close(estimate.high, values.mean(dim=0) + reach)


def test_the_error_over_clusters_equals_its_definition():
    values = torch.randn(9, 2, generator=torch.Generator().manual_seed(22)).double()
    names = [7, 7, -3, 12, 7, -3, 5, 5, 12]
    estimate = mean_over_examples(values, torch.tensor(names))
    mean, squares = values.mean(dim=0), torch.zeros(2).double()
    for name in set(names):
        inside = [row for row, each in enumerate(names) if each == name]
        squares += sum((values[row] - mean for row in inside), torch.zeros(2)) ** 2
    error = (4 / 3 * squares).sqrt() / 9
    torch.testing.assert_close(estimate.standard_error, error)
    torch.testing.assert_close(estimate.high, mean + distributions.t(3).ppf(0.975) * error)


def clustered_scores(seed: int, n_clusters: int) -> tuple[Tensor, Tensor]:
    """Scores with a mean of zero that go together in clusters of one to five."""
    chance = random.Random(seed)
    scores, names = [], []
    for name in range(n_clusters):
        subject = chance.gauss(0, 1)
        for _ in range(chance.randint(1, 5)):
            scores.append(subject + chance.gauss(0, 0.5))
            names.append(name)
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(names)


@pytest.mark.slow
def test_intervals_over_clusters_hold_the_truth_and_those_over_examples_do_not(
    generator: torch.Generator,
):
    kinds = {"mean": 0, "bootstrap": 0, "blind mean": 0, "blind bootstrap": 0}
    for seed in range(300):
        scores, names = clustered_scores(seed, n_clusters=40)
        zero = torch.zeros_like(scores)
        estimates = {
            "mean": mean_over_examples(scores, names),
            "bootstrap": paired_bootstrap(scores, zero, generator, names, n_resamples=400),
            "blind mean": mean_over_examples(scores),
            "blind bootstrap": paired_bootstrap(scores, zero, generator, n_resamples=400),
        }
        for kind, each in estimates.items():
            kinds[kind] += bool(each.low <= 0 <= each.high)
    assert 0.91 < kinds["mean"] / 300 < 0.985  # standard error of the share: 0.013
    assert 0.90 < kinds["bootstrap"] / 300 < 0.985
    assert kinds["blind mean"] / 300 < 0.85
    assert kinds["blind bootstrap"] / 300 < 0.85


def test_examples_that_agree_leave_no_error(generator: torch.Generator):
    same = torch.full((5,), 0.25)
    for each in (mean_over_examples(same), paired_bootstrap(same, same * 0, generator)):
        assert each.value == each.low == each.high == 0.25
        assert each.standard_error == 0


def test_a_missing_value_shows_in_its_own_mean_only():
    values = torch.tensor([[1.0, 2.0], [3.0, math.nan], [2.0, 5.0]])
    estimate = mean_over_examples(values)
    for part in (estimate.value, estimate.standard_error, estimate.low, estimate.high):
        assert part.isnan().tolist() == [False, True]


# ---------------------------------------------------------------- two scores of the same examples


def some_scores(seed: int, n_examples: int, gain: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two scores that share most of what varies from example to example."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.randn(n_examples, generator=generator).double()
    noise = torch.randn(2, n_examples, generator=generator).double()
    return hard + 0.3 * noise[0] + gain, hard + 0.3 * noise[1]


def test_the_paired_bootstrap_equals_its_slow_definition():
    a, b = some_scores(23, 25)
    names = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, *range(10, 19)])
    estimate = paired_bootstrap(a, b, torch.Generator().manual_seed(0), names, 20_000, level=0.9)
    chance, difference = random.Random(0), (a - b).tolist()
    rows = [[row for row in range(25) if names[row] == name] for name in range(19)]
    means = []
    for _ in range(20_000):
        drawn = [chance.randrange(19) for _ in range(19)]
        chosen = [difference[row] for name in drawn for row in rows[name]]
        means.append(sum(chosen) / len(chosen))
    assert estimate.value.item() == pytest.approx(sum(difference) / 25)
    spread = float(np.std(means))
    # Two sets of 20 000 draws differ by about a hundredth of the spread.
    assert estimate.standard_error.item() == pytest.approx(spread, rel=0.03)
    assert estimate.low.item() == pytest.approx(float(np.quantile(means, 0.05)), abs=0.05 * spread)
    assert estimate.high.item() == pytest.approx(float(np.quantile(means, 0.95)), abs=0.05 * spread)
    assert estimate.level == 0.9


def test_all_resamples_of_two_examples_are_known():
    a, b = torch.tensor([4.0, 1.0]), torch.tensor([3.0, 3.0])
    estimate = paired_bootstrap(a, b, torch.Generator().manual_seed(1), n_resamples=20_000)
    assert (estimate.value, estimate.low, estimate.high) == (-0.5, -2, 1)
    assert estimate.standard_error.item() == pytest.approx(math.sqrt(1.125), rel=0.02)


def test_pairing_narrows_the_interval(generator: torch.Generator):
    a, b = some_scores(24, 200)
    paired = paired_bootstrap(a, b, generator, n_resamples=1000).standard_error
    apart = paired_bootstrap(a, b.flip(0), generator, n_resamples=1000).standard_error
    assert paired < 0.5 * apart


def test_the_seed_decides_what_is_drawn():
    a, b = some_scores(25, 40)
    matrix, distance = some_matrices(6, 9, together=0.2)

    def outcomes(seed: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed)
        boot = paired_bootstrap(a, b, generator, n_resamples=200)
        labels = mantel_test(matrix, distance, generator)
        return boot.low.item(), labels.p_value

    assert outcomes(1) == outcomes(1)
    assert all(one != other for one, other in zip(outcomes(1), outcomes(2), strict=True))


def test_scores_that_are_no_pairs_are_refused(generator: torch.Generator):
    a, b = some_scores(28, 6)
    missing = a.clone()
    missing[2] = math.nan
    unchecked = getattr(paired_bootstrap, "__wrapped__", paired_bootstrap)
    with pytest.raises(ValueError, match="a has 6 scores and b has 5"):
        unchecked(a, b[:5], generator)
    with pytest.raises(ValueError, match="There are no examples"):
        paired_bootstrap(a[:0], b[:0], generator)
    with pytest.raises(ValueError, match="1 of 6 differences are NaN or infinite"):
        paired_bootstrap(missing, b, generator)
    with pytest.raises(ValueError, match=r"6 examples in 1 clusters have no spread"):
        paired_bootstrap(a, b, generator, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"1 examples in 1 clusters have no spread"):
        mean_over_examples(a[:1])
    with pytest.raises(ValueError, match=r"0 examples in 0 clusters have no spread"):
        mean_over_examples(a[:0])
    unchecked = getattr(mean_over_examples, "__wrapped__", mean_over_examples)
    with pytest.raises(ValueError, match="There are 6 examples and clusters for 4"):
        unchecked(a, torch.arange(4))
    with pytest.raises(ValueError, match="1 resamples have no spread"):
        paired_bootstrap(a, b, generator, n_resamples=1)


# ---------------------------------------------------------------- matrices of languages


def some_matrices(seed: int, n_languages: int, together: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, n_languages, n_languages, generator=generator).double()
    noise = noise + noise.transpose(1, 2)
    distance, other = noise
    return (1 - together) * other - together * distance, distance


def slow_correlation(matrix: Tensor, distance: Tensor, order: tuple[int, ...]) -> float:
    pairs = list(itertools.combinations(range(len(order)), 2))
    one = [matrix[order[i], order[j]].item() for i, j in pairs]
    return float(np.corrcoef(one, [distance[i, j].item() for i, j in pairs])[0, 1])


@pytest.mark.parametrize("n_languages", [3, 5])
def test_the_mantel_test_of_few_languages_equals_full_enumeration(
    n_languages: int, generator: torch.Generator
):
    for seed in range(6):
        matrix, distance = some_matrices(seed, n_languages, together=0.4)
        test = mantel_test(matrix.fill_diagonal_(math.nan), distance, generator)
        orders = list(itertools.permutations(range(n_languages)))
        strength = [abs(slow_correlation(matrix, distance, order)) for order in orders]
        reached = sum(each >= strength[0] - 1e-9 for each in strength)
        assert test.exact
        assert test.n_arrangements == math.factorial(n_languages)
        assert test.statistic == pytest.approx(slow_correlation(matrix, distance, orders[0]))
        assert test.p_value == pytest.approx(reached / len(orders))
        assert test.smallest_p == pytest.approx(1 / len(orders))


def test_the_mantel_test_of_many_languages_draws(generator: torch.Generator):
    matrix, distance = some_matrices(1, 6, together=0.35)
    exact = mantel_test(matrix, distance, generator)
    drawn = mantel_test(matrix, distance, generator, n_permutations=700)
    assert exact.exact
    assert not drawn.exact
    assert drawn.n_arrangements == 701
    assert drawn.statistic == exact.statistic
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.08)
    assert 0.01 < exact.p_value < 0.9
    strong = mantel_test(*some_matrices(2, 10, together=1.0), generator, n_permutations=499)
    assert strong.statistic == pytest.approx(-1)
    assert strong.p_value == strong.smallest_p == 1 / 500


def test_the_mantel_test_does_not_mind_the_order_of_the_languages(generator: torch.Generator):
    matrix, distance = some_matrices(3, 6, together=0.5)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    one = mantel_test(matrix, distance, generator)
    other = mantel_test(matrix[order][:, order], distance[order][:, order], generator)
    assert one.p_value == other.p_value
    assert one.statistic == pytest.approx(other.statistic)
    scaled = mantel_test(1 - 5 * matrix, distance, generator)
    assert (scaled.p_value, scaled.statistic) == (one.p_value, pytest.approx(-one.statistic))


def test_languages_that_differ_as_wholes_make_no_distance(generator: torch.Generator):
    """A language that scores low with all others makes many pairs vary, but is one language."""
    found, blind = 0, 0
    for seed in range(150):
        noise = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed)).double()
        matrix, distance = (each[:, None] + each for each in noise)
        found += mantel_test(matrix, distance, generator, n_permutations=199).p_value <= 0.05
        row, column = torch.triu_indices(7, 7, offset=1)
        _, p_value = distributions.pearsonr(
            matrix[row, column].numpy(), distance[row, column].numpy()
        )
        blind += bool(p_value <= 0.05)
    assert found / 150 < 0.1
    assert blind / 150 > 0.2


def test_ties_make_the_smallest_p_larger(generator: torch.Generator):
    distance = 1 - torch.eye(4).double()
    distance[0, 1] = distance[1, 0] = 0.5  # one pair is close, all others are equally far
    matrix, _ = some_matrices(4, 4, together=0.0)
    matrix[0, 1] = matrix[1, 0] = 9.0
    test = mantel_test(matrix, distance, generator)
    assert test.n_arrangements == 24
    assert test.p_value == test.smallest_p == pytest.approx(4 / 24)


def test_matrices_that_cannot_be_compared_are_refused(generator: torch.Generator):
    matrix, distance = some_matrices(5, 4, together=0.5)
    crooked, holed = matrix.clone(), matrix.clone()
    crooked[0, 1] += 1
    holed[0, 1] = holed[1, 0] = math.nan
    endless = holed.nan_to_num(nan=math.inf)
    for wrong in (crooked, holed, endless):
        with pytest.raises(ValueError, match="The matrix is not symmetric or not finite"):
            mantel_test(wrong, distance, generator)
    with pytest.raises(ValueError, match="The distance is the same for all pairs"):
        mantel_test(matrix, torch.full((4, 4), 0.1).double(), generator)
    with pytest.raises(ValueError, match="2 languages are too few"):
        mantel_test(matrix[:2, :2], distance[:2, :2], generator)
    with pytest.raises(ValueError, match="n_permutations is 0"):
        mantel_test(matrix, distance, generator, n_permutations=0)


# ---------------------------------------------------------------- many tests at once


def test_false_discovery_equals_its_slow_definition():
    p_value = torch.rand(4, 5, generator=torch.Generator().manual_seed(30)).double() ** 3
    p_value[0, 0], p_value[1, 1] = math.nan, p_value[2, 2]
    tested = sorted(each for each in p_value.flatten().tolist() if not math.isnan(each))
    found = false_discovery(p_value)
    assert found.shape == (4, 5)
    for p, q in zip(p_value.flatten().tolist(), found.flatten().tolist(), strict=True):
        if math.isnan(p):
            assert math.isnan(q)
            continue
        rates = [len(tested) * bar / (rank + 1) for rank, bar in enumerate(tested) if bar >= p]
        assert q == pytest.approx(min(1.0, *rates))
    assert p_value.isnan().sum() == 1


def test_false_discoveries_are_as_rare_as_they_say():
    shares = []
    for seed in range(200):
        p_value = torch.rand(1000, generator=torch.Generator().manual_seed(seed)).double()
        p_value[:100] *= 0.002
        found = false_discovery(p_value) <= 0.1
        shares.append((found[100:].sum() / found.sum().clamp(min=1)).item())
    assert np.mean(shares) == pytest.approx(0.09, abs=0.01)  # 0.1 of the 900 that are no effects


def test_what_is_no_p_value_is_refused():
    with pytest.raises(ValueError, match="between 0"):
        false_discovery(torch.tensor([0.1, 1.5]))


def test_no_tests_have_no_discoveries():
    assert false_discovery(torch.full((3,), math.nan)).isnan().all()
    assert false_discovery(torch.ones(0)).shape == (0,)


# ---------------------------------------------------------------- no event, selections, groupings


def test_no_event_has_the_interval_of_no_event(generator: torch.Generator):
    never, ones = torch.zeros(80), torch.ones(80)
    found = paired_bootstrap(never, never, generator)
    assert found.value == 0
    assert found.high == pytest.approx(wilson(0.0, 80)[1])
    assert found.low == pytest.approx(-wilson(0.0, 80)[1])
    assert 0.037 < found.high < 0.05  # at least what the rule of three says
    always = paired_bootstrap(ones, never, generator)
    assert (always.high, always.low) == (1.0, pytest.approx(wilson(1.0, 80)[0]))
    clusters = torch.arange(80) // 8
    fewer = paired_bootstrap(never, never, generator, clusters)
    assert fewer.high == pytest.approx(wilson(0.0, 10)[1])
    losses = paired_bootstrap(never + 2.5, never, generator)  # no shares: nothing is known of them
    assert losses.low == losses.high == 2.5
    crossed = share_difference(never, never, torch.arange(80) % 4, torch.arange(80) // 4)
    assert crossed.high == pytest.approx(wilson(0.0, 80)[1])


def test_the_error_over_two_groupings_equals_its_definition(generator: torch.Generator):
    first, second = torch.arange(12) % 3, torch.arange(12) // 3
    values = torch.rand(12, generator=generator).double() + 2 * first + 2 * second
    found = mean_over_crossed(values, first, second)

    def squared(groups: list[int]) -> float:
        names = sorted(set(groups))
        sums = [
            sum(
                float(x - values.mean())
                for x, name in zip(values, groups, strict=True)
                if name == own
            )
            for own in names
        ]
        return sum(x * x for x in sums) * len(names) / (len(names) - 1) / 12**2

    one, other = squared(first.tolist()), squared(second.tolist())
    both = squared(list(range(12)))  # every pair of groups has one example
    assert found.standard_error.item() == pytest.approx(math.sqrt(one + other - both))
    assert found.degrees_of_freedom == 2
    assert found.high.item() == pytest.approx(
        found.value.item() + 4.302652729911275 * math.sqrt(one + other - both)
    )
    # Examples that cancel within a grouping leave the error of the other, never less.
    alternating = torch.tensor([1.0, -1.0] * 6)
    flat = mean_over_crossed(alternating, torch.arange(12) // 2, torch.arange(12) % 2)
    assert (
        flat.standard_error >= mean_over_examples(alternating, torch.arange(12) % 2).standard_error
    )


@pytest.mark.slow
def test_intervals_over_languages_and_seeds_cover_and_those_over_texts_do_not():
    generator = torch.Generator().manual_seed(0)
    language, seed = torch.arange(240) % 8, torch.arange(240) // 8
    covered = {"crossed": 0, "texts": 0}
    for _ in range(400):
        by_language = 0.3 * torch.randn(8, generator=generator)
        by_seed = 0.5 * torch.randn(30, generator=generator)
        values = by_language[language] + by_seed[seed] + torch.randn(240, generator=generator)
        crossed, texts = mean_over_crossed(values, language, seed), mean_over_examples(values)
        for name, found in (("crossed", crossed), ("texts", texts)):
            covered[name] += bool(found.low <= 0 <= found.high)
    assert 0.93 < covered["crossed"] / 400 < 0.985
    assert covered["texts"] / 400 < 0.8


def test_numbers_of_different_items_are_compared_by_both_intervals(generator: torch.Generator):
    covered = 0
    for _ in range(400):
        a, b = (mean_over_examples(torch.randn(20, generator=generator) + x) for x in (0.3, 0.0))
        found = unpaired_difference(a, b)
        covered += bool(found.low <= 0.3 <= found.high)
        assert found.value == a.value - b.value
    assert 0.93 < covered / 400 < 0.985
    error = torch.hypot(a.standard_error, b.standard_error)
    assert found.standard_error == error


def test_each_end_of_a_difference_comes_from_the_ends_that_reach_there():
    def interval(value: float, low: float, high: float, freedom: float) -> Estimate:
        return Estimate(*map(torch.tensor, (value, 0.0, low, high)), 0.95, freedom)

    found = unpaired_difference(interval(5.0, 2.0, 6.0, 9.0), interval(1.0, 0.5, 5.0, 4.0))
    assert found.value - found.low == 5.0  # 3 down from the first, 4 up from the second
    assert found.high - found.value == pytest.approx(math.hypot(1.0, 0.5))
    assert found.degrees_of_freedom == 4.0


def test_the_jackknife_of_languages_is_that_of_a_mean():
    values = torch.tensor([0.1, 0.4, 0.2, 0.9]).double()
    without = torch.stack([values[torch.arange(4) != row].mean() for row in range(4)])
    found, expected = jackknife_languages(without, values.mean()), mean_over_examples(values)
    for name in ("value", "low", "high", "standard_error", "degrees_of_freedom"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))
    with pytest.raises(ValueError, match="2 languages are too few"):
        jackknife_languages(without[:2], values.mean())


def selected_stats(generator: torch.Generator) -> FiringStats:
    """Twenty shards of text of four languages, whose documents fire in bursts; language neurons
    are more frequent in the later of three layers."""
    n = torch.Generator().manual_seed(1)
    level = torch.rand(3, 60, generator=n).square()
    spread = torch.tensor([0.3, 0.7, 1.2])[:, None] * torch.randn(4, 3, 60, generator=n)
    rate = torch.sigmoid(torch.logit(level.clamp(0.01, 0.99)) + spread)
    burst = 0.6 * torch.randn(20, 4, 3, 60, generator=generator)
    of_shard = torch.sigmoid(torch.logit(rate) + burst)
    fired = torch.binomial(torch.full_like(of_shard, 200.0), of_shard, generator=generator).long()
    return FiringStats(fired, torch.full((20, 4), 200), ("a", "b", "c", "d"))


def of_selection(stats: FiringStats) -> Tensor:
    """Share of the selected neurons in the last layer, and the overlap of two languages."""
    selection = select_by_entropy(stats, 0.05)
    in_layers = selection.mask.sum(dim=(0, 2)).double()
    return torch.stack([in_layers[-1] / in_layers.sum(), selection.jaccard()[0, 1].double()])


def repeated(n_runs: int, n_resamples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Over repetitions with other text: how often the interval covers the mean result, and its
    standard error and that of a jackknife over the spread of results."""
    generator, runs, wide = torch.Generator().manual_seed(0), [], []
    for number in range(n_runs):
        stats = selected_stats(generator)
        runs.append(bootstrap_shards(stats, of_selection, generator, n_resamples))
        if number < 20:
            wide.append(jackknife(stats, of_selection).standard_error)
    value, low, high, error = (
        torch.stack([getattr(run, name) for run in runs])
        for name in ("value", "low", "high", "standard_error")
    )
    truth, spread = value.mean(dim=0), value.std(dim=0)
    covered = ((low <= truth) & (truth <= high)).double().mean(dim=0)
    return covered, error.mean(dim=0) / spread, torch.stack(wide).mean(dim=0) / spread


@pytest.fixture
def without_checks() -> Iterator[None]:
    """No shape is checked in thousands of repetitions of what other tests check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.usefixtures("without_checks")
def test_resampled_shards_have_the_spread_of_a_selection_and_a_jackknife_is_too_wide():
    _, error, of_jackknife = repeated(60, 25)
    assert ((error > 0.8) & (error < 1.25)).all(), error
    assert (of_jackknife > 1.4).all(), of_jackknife


@pytest.mark.campaign
@pytest.mark.usefixtures("without_checks")
def test_resampled_shards_cover_what_a_selection_contains_as_often_as_they_say():
    covered, error, _ = repeated(250, 40)
    assert ((covered >= 0.93) & (covered <= 0.98)).all(), covered
    assert ((error > 0.9) & (error < 1.1)).all(), error


def test_the_bootstrap_of_shards_equals_its_definition(stats_of_shards):
    found = bootstrap_shards(stats_of_shards, of_rates, torch.Generator().manual_seed(3), 50)
    generator, n = torch.Generator().manual_seed(3), stats_of_shards.n_shards
    resampled = []
    for _ in range(50):
        rows = torch.randint(n, (n,), generator=generator).tolist()
        fired = sum(stats_of_shards.fired[row] for row in rows)
        tokens = sum(stats_of_shards.tokens[row] for row in rows)
        resampled.append((fired.double() / tokens[:, None, None]).mean())
    error = torch.stack(resampled).std() * math.sqrt(n / (n - 1))
    assert found.value == of_rates(stats_of_shards)
    assert found.standard_error.item() == pytest.approx(error.item())
    assert found.degrees_of_freedom == n - 1
    with pytest.raises(ValueError, match="1 resamples have no spread"):
        bootstrap_shards(stats_of_shards, of_rates, generator, 1)


def of_rates(stats: FiringStats) -> Tensor:
    return stats.rate.mean()


@pytest.fixture
def stats_of_shards() -> FiringStats:
    fired = torch.randint(0, 90, (5, 2, 2, 7), generator=torch.Generator().manual_seed(2))
    return FiringStats(fired, torch.full((5, 2), 100), ("a", "b"))


def test_wilson_of_no_trial_knows_nothing():
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_wilson_ends_are_the_shares_that_the_count_would_just_reject():
    low, high = wilson(0.3, 40, level=0.9)
    for end in (low, high):
        assert abs(0.3 - end) / math.sqrt(end * (1 - end) / 40) == pytest.approx(1.6449, abs=1e-3)

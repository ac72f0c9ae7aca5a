"""The two definitions of LAPE: entropy of firing over languages, and the busy threshold."""

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from interp.scores.lape import busy_threshold, language_entropy


def some_rates(seed: int, n_languages: int = 5) -> Float[Tensor, "language layer neuron"]:
    """Counts of 60 tokens, so that zeros and ties happen, divided by 60."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 61, (n_languages, 3, 37), generator=generator).double() / 60


def entropy_by_hand(rates: list[float]) -> float:
    total = sum(rates)
    if total == 0:
        return math.nan
    return -sum(rate / total * math.log(rate / total) for rate in rates if rate > 0)


def test_entropy_equals_its_definition():
    rate = some_rates(seed=0)
    rate[:, 0, 5] = 0
    entropy = language_entropy(rate)
    for layer in range(3):
        for neuron in range(37):
            expected = entropy_by_hand(rate[:, layer, neuron].tolist())
            assert entropy[layer, neuron].item() == pytest.approx(expected, rel=1e-13, nan_ok=True)
    assert entropy.isnan().sum() == 1


def test_entropy_at_its_limits():
    one, all_alike, silent = [1.0, 0.0, 0.0], [0.2, 0.2, 0.2], [0.0, 0.0, 0.0]
    half = [0.3, 0.3, 0.0]
    entropy = language_entropy(torch.tensor([one, all_alike, silent, half]).T[:, None, :])[0]
    assert entropy[0] == 0
    assert entropy[1] == pytest.approx(math.log(3), rel=1e-14)
    assert entropy[2].isnan()
    assert entropy[3] == pytest.approx(math.log(2), rel=1e-14)


def test_a_single_language_leaves_nothing_to_divide():
    assert language_entropy(torch.tensor([[[0.3, 1.0]]])).tolist() == [[0, 0]]


def test_entropy_ignores_how_busy_a_neuron_is():
    rate = some_rates(seed=1)
    torch.testing.assert_close(
        language_entropy(rate / 8), language_entropy(rate), rtol=0, atol=0, equal_nan=True
    )


def test_entropy_is_computed_in_double_precision_even_from_single():
    rate = some_rates(seed=2).float()
    entropy = language_entropy(rate)
    assert entropy.dtype == torch.float64
    torch.testing.assert_close(entropy, language_entropy(rate.double()), rtol=0, atol=0)


def test_the_order_of_the_languages_changes_no_bit():
    rate = some_rates(seed=3, n_languages=11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    expected = language_entropy(rate)
    naive = -torch.xlogy(rate / rate.sum(0), rate / rate.sum(0)).sum(0)
    shuffled = rate[order]
    other = -torch.xlogy(shuffled / shuffled.sum(0), shuffled / shuffled.sum(0)).sum(0)
    assert not torch.equal(naive, other)  # there is something to lose
    assert torch.equal(language_entropy(shuffled), expected)


@pytest.mark.parametrize("n_neurons", [1, 7, 64, 1001])
def test_equal_neurons_have_equal_entropies_wherever_they_sit(n_neurons: int):
    rates = torch.tensor([0.11, 0.7, 0.33, 0.05, 0.27, 0.9, 0.013], dtype=torch.float64)
    entropy = language_entropy(rates[:, None, None].expand(7, 2, n_neurons))
    assert (entropy == entropy[0, 0]).all()


def test_the_planted_neuron_has_the_least_entropy_and_the_busier_decoy_has_not():
    rate = torch.full((3, 4, 100), 0.5)
    rate[:, 2, 7] = torch.tensor([0.0, 0.9, 0.0])  # fires for the second language alone
    rate[:, 1, 3] = torch.tensor([0.95, 0.95, 0.95])  # the decoy: busier, and for all alike
    entropy = language_entropy(rate)
    assert (entropy == entropy.min()).nonzero().tolist() == [[2, 7]]
    assert entropy[1, 3] == entropy.max()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1])
def test_rates_that_are_none_are_refused(wrong: float):
    rate = some_rates(seed=4)
    rate[1, 2, 3] = wrong
    with pytest.raises(ValueError, match=r"1 of [\d,]+ rates are NaN, infinite or negative"):
        language_entropy(rate)
    with pytest.raises(ValueError, match="1 of 555 rates are NaN, infinite or negative"):
        busy_threshold(rate)


@pytest.mark.parametrize("quantile", [0.002, 0.3, 0.5, 0.95, 0.951, 0.99, 1.0])
def test_the_busy_threshold_is_an_order_statistic_of_all_rates(quantile: float):
    rate = some_rates(seed=5)
    ordered = sorted(rate.flatten().tolist())
    assert busy_threshold(rate, quantile) == ordered[round(quantile * len(ordered)) - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_busy_threshold_orders_rates_of_any_size_and_ties(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(7)
    rate = 10 ** torch.randint(-30, 3, (5, 3, 40), generator=generator).to(dtype)
    rate[:, 0, :20] = torch.tensor([0.0, -0.0]).to(dtype).repeat(10)
    rate[:, 1, :5] = math.nan  # neurons without rates
    ordered = sorted(rate[~rate.isnan()].tolist())
    for quantile in (0.01, 0.18, 0.5, 0.77, 0.95, 1.0):
        assert busy_threshold(rate, quantile) == ordered[round(quantile * len(ordered)) - 1]


def test_the_busy_threshold_does_not_interpolate():
    rate = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64).reshape(2, 1, 2)
    assert busy_threshold(rate, 0.5) == 0.2
    assert busy_threshold(rate, 0.63) == 0.4  # round(2.52) = 3


def test_the_busy_threshold_is_taken_over_languages_and_layers_at_once():
    rate = some_rates(seed=6)
    order = torch.randperm(rate.numel(), generator=torch.Generator().manual_seed(6))
    shuffled = rate.flatten()[order].reshape(rate.shape)
    assert busy_threshold(shuffled) == busy_threshold(rate)


def test_the_busy_threshold_leaves_the_rates_as_they_are():
    rate = some_rates(seed=7)
    before = rate.clone()
    busy_threshold(rate)
    assert torch.equal(rate, before)


@pytest.mark.parametrize("quantile", [0.0, 0.0001, -1.0, 1.01])
def test_a_quantile_that_is_none_is_refused(quantile: float):
    with pytest.raises(ValueError, match=r"quantile .* of the 555 rates: .* such as 0\.95"):
        busy_threshold(some_rates(seed=8), quantile)

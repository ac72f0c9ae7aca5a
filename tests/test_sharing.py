"""Sharing against slow definitions, its baselines against enumeration, and what chance explains."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from einops import einsum, reduce
from jaxtyping import Bool, Float64
from torch import Tensor

from interp.counting.bits import pack_bits
from interp.counting.signs import FiringSigns
from interp.inference.permutation import mantel_test
from interp.scores import sharing_profile as profiles
from interp.scores.sharing import Sharing, chance_of_categories, sharing_categories
from interp.scores.sharing_profile import SharingProfile, sharing_profile
from interp.text.distances import read_distances

CODES = ("en", "de", "fr", "es", "zh", "ja", "vi", "id")


def some_fires(
    seed: int, shape: tuple[int, int, int, int], rate: float | Tensor = 0.5
) -> Bool[Tensor, "prompt language layer neuron"]:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate


def pack(
    fires: Bool[Tensor, "prompt language layer neuron"], languages: Sequence[str] = CODES
) -> FiringSigns:
    n_prompts, n_languages, _, d_mlp = fires.shape
    prompts = tuple(f"prompt {number}" for number in range(n_prompts))
    return FiringSigns(
        bits=pack_bits(fires),
        prompts=prompts,
        languages=tuple(languages[:n_languages]),
        d_mlp=d_mlp,
    )


def profile_of(
    fires: Bool[Tensor, "prompt language layer neuron"], n_draws: int = 0, seed: int = 0
) -> SharingProfile:
    return sharing_profile(pack(fires), torch.Generator().manual_seed(seed), n_draws=n_draws)


def category_sets(fires: Bool[Tensor, "language neuron"]) -> dict[Sharing, set[int]]:
    """The definition of Wang et al. (2024), with sets."""
    active = [set(each.nonzero().flatten().tolist()) for each in fires]
    everywhere, somewhere = set.intersection(*active), set.union(*active)
    alone = {n for n in somewhere if sum(n in each for each in active) == 1}
    return {
        Sharing.SILENT: set(range(fires.shape[1])) - somewhere,
        Sharing.SPECIFIC: alone,
        Sharing.PARTLY_SHARED: somewhere - alone - everywhere,
        Sharing.ALL_SHARED: everywhere,
    }


def slow_chance(rates: list[float]) -> Float64[Tensor, " category"]:
    """Over all 2**n ways in which the languages can fire."""
    chance = [0.0] * 4
    for fires in itertools.product([0, 1], repeat=len(rates)):
        probability = 1.0
        for fired, rate in zip(fires, rates, strict=True):
            probability *= rate if fired else 1 - rate
        number = sum(fires)
        place = 3 if number == len(rates) else min(number, 2)
        chance[place] += probability
    return torch.tensor(chance, dtype=torch.float64)


# ---------------------------------------------------------------- categories


@pytest.mark.parametrize("n_languages", [2, 3, 7])
def test_categories_equal_the_definition_with_sets(n_languages: int):
    for fires in some_fires(n_languages, (20, n_languages, 1, 60), rate=0.6):
        category = sharing_categories(fires[:, 0])
        sets = category_sets(fires[:, 0])
        for each in Sharing:
            assert set((category == each).nonzero().flatten().tolist()) == sets[each]


def test_every_category_by_hand():
    active = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]).bool()
    assert sharing_categories(active).tolist() == [0, 1, 2, 3]
    assert sharing_categories(active[:2]).tolist() == [0, 1, 3, 3]  # of two, none is partly shared


def test_categories_take_any_axes_of_units():
    fires = some_fires(1, (5, 4, 3, 11))
    together = sharing_categories(fires.transpose(0, 1))
    for prompt, layer in itertools.product(range(5), range(3)):
        alone = sharing_categories(fires[prompt, :, layer])
        assert torch.equal(together[prompt, layer], alone)


def test_a_higher_threshold_never_adds_languages():
    values = torch.randn(4, 500, generator=torch.Generator().manual_seed(2))
    shared = [(sharing_categories(values > t) == Sharing.ALL_SHARED).sum() for t in (-2, -1, 0, 1)]
    assert shared == sorted(shared, reverse=True)
    assert shared[0] > shared[-1]


@pytest.mark.parametrize("d_mlp", [64, 61, 8, 5, 130])
def test_the_profile_equals_the_definition_with_sets(d_mlp: int):
    fires = some_fires(d_mlp, (6, 4, 3, d_mlp), rate=0.7)
    fires[:, :, 1, :3] = True  # keeps its category
    fires[:, :, 1, 3:5] = False
    profile = profile_of(fires)
    for layer in range(3):
        sets = [category_sets(fires[prompt, :, layer]) for prompt in range(6)]
        for each in Sharing:
            assert profile.count[:, layer, each].tolist() == [len(one[each]) for one in sets]
            always = set.intersection(*(one[each] for one in sets))
            assert profile.kept[layer, each] == len(always)
            mean = sum(len(one[each]) for one in sets) / 6
            repeated = profile.repeatability[layer, each].item()
            assert repeated == pytest.approx(len(always) / mean if mean else torch.nan, nan_ok=True)
    assert profile.kept[1, Sharing.ALL_SHARED] >= 3
    assert profile.kept[1, Sharing.SILENT] >= 2


def test_the_categories_partition_each_layer_on_each_prompt():
    profile = profile_of(some_fires(3, (7, 5, 4, 37), rate=0.4), n_draws=3)
    assert (profile.count.sum(dim=-1) == 37).all()
    for share in (profile.share().value, profile.independent, profile.interchangeable):
        torch.testing.assert_close(share.sum(dim=-1), torch.ones(4).double())
    torch.testing.assert_close(profile.shuffled.sum(dim=-1), torch.ones(3, 4).double())
    torch.testing.assert_close(profile.expected.sum(dim=-1), torch.ones(7, 4).double())


def test_the_order_of_the_languages_does_not_matter():
    fires = some_fires(4, (9, 4, 2, 50), rate=torch.rand(50))
    order = [2, 0, 3, 1]
    names = tuple(CODES[each] for each in order)
    one = profile_of(fires)
    other = sharing_profile(pack(fires[:, order], names), torch.Generator(), n_draws=0)
    asked = sharing_profile(pack(fires), torch.Generator(), languages=names, n_draws=0)
    for each in (other, asked):
        assert each.languages == names
        assert torch.equal(each.count, one.count)
        assert torch.equal(each.kept, one.kept)
        assert torch.equal(each.common, one.common[:, order][:, :, order])
        torch.testing.assert_close(each.expected, one.expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(each.independent, one.independent)


def test_some_of_the_languages_are_a_profile_of_their_own():
    fires = some_fires(5, (6, 4, 2, 20))
    part = sharing_profile(pack(fires), torch.Generator(), languages=("de", "es"), n_draws=0)
    alone = profile_of(fires[:, [1, 3]])
    assert part.languages == ("de", "es")
    assert torch.equal(part.count, alone.count)
    assert torch.equal(part.expected, alone.expected)


# ---------------------------------------------------------------- activity and overlap


def test_activity_and_overlap_equal_their_definitions():
    fires = some_fires(6, (8, 3, 2, 40), rate=torch.tensor([0.3, 0.5, 0.8]).view(1, 3, 1, 1))
    profile = profile_of(fires)
    active = fires.double().mean(dim=-1)
    torch.testing.assert_close(profile.active().value, active.mean(dim=0))
    torch.testing.assert_close(profile.active().standard_error, active.std(dim=0) / 8**0.5)
    for one, other in itertools.product(range(3), range(3)):
        both, either = fires[:, one] & fires[:, other], fires[:, one] | fires[:, other]
        whole = both.sum(dim=(1, 2)).double() / either.sum(dim=(1, 2))
        assert profile.overlap().value[one, other].item() == pytest.approx(whole.mean().item())
        error = profile.overlap().standard_error[one, other].item()
        assert error == pytest.approx(whole.std().item() / 8**0.5, abs=1e-9)
        layer = both[:, 1].sum(dim=-1) / either[:, 1].sum(dim=-1)
        assert profile.overlap(layer=1).value[one, other].item() == pytest.approx(layer.mean())


def test_the_overlap_of_silent_languages_is_undefined():
    fires = torch.zeros(2, 3, 1, 8, dtype=torch.bool)
    fires[:, 2] = True
    overlap = profile_of(fires).overlap().value
    assert overlap[0].isnan().tolist() == [True, True, False]
    assert overlap[2].tolist() == [0, 0, 1]


# ---------------------------------------------------------------- what chance gives


@pytest.mark.parametrize("n_languages", [2, 3, 6])
def test_chance_equals_full_enumeration(n_languages: int):
    rate = torch.rand(n_languages, 2, 3, generator=torch.Generator().manual_seed(7)).double()
    rate[0, 0, 0], rate[1, 0, 1] = 0, 1
    chance = chance_of_categories(rate)
    assert chance.shape == (4, 2, 3)
    for layer, neuron in itertools.product(range(2), range(3)):
        slow = slow_chance(rate[:, layer, neuron].tolist())
        torch.testing.assert_close(chance[:, layer, neuron], slow, rtol=0, atol=1e-14)


def test_chance_at_its_limits():
    rate = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]).double()
    assert chance_of_categories(rate).argmax(dim=0).tolist() == [0, 1, 2, 3]
    assert chance_of_categories(rate).max(dim=0).values.tolist() == [1, 1, 1, 1]
    for n_languages in (2, 5, 22):
        half = chance_of_categories(torch.full((n_languages,), 0.5))
        assert half[Sharing.ALL_SHARED].item() == half[Sharing.SILENT].item() == 0.5**n_languages


def test_the_independence_baseline_is_the_chance_at_each_neurons_own_rates():
    fires = some_fires(8, (12, 3, 2, 30), rate=torch.rand(3, 2, 30))
    rate = fires.double().mean(dim=0)
    slow = torch.zeros(2, 4).double()
    for layer, neuron in itertools.product(range(2), range(30)):
        slow[layer] += slow_chance(rate[:, layer, neuron].tolist()) / 30
    torch.testing.assert_close(profile_of(fires).independent, slow, rtol=1e-12, atol=1e-14)


def test_the_interchangeable_baseline_knows_only_how_many_fire(generator: torch.Generator):
    fires = some_fires(9, (5, 3, 1, 40), rate=torch.rand(3, 1, 40))
    slow = torch.zeros(4).double()
    for prompt in fires:
        slow += slow_chance(prompt[:, 0].double().mean(dim=-1).tolist()) / 5
    torch.testing.assert_close(profile_of(fires).interchangeable[0], slow)
    dealt = fires.clone()
    for prompt, language in itertools.product(range(5), range(3)):
        dealt[prompt, language, 0] = dealt[
            prompt, language, 0, torch.randperm(40, generator=generator)
        ]
    torch.testing.assert_close(profile_of(dealt).interchangeable[0], slow)


@pytest.mark.slow
def test_all_shuffles_together_give_the_independence_baseline():
    fires = some_fires(10, (3, 3, 2, 9))
    fires[:, 1] = fires[:, 0]  # aligned, so that there is something to destroy
    total, number = torch.zeros(2, 4).double(), 0
    every = list(itertools.permutations(range(3)))
    # Moving all languages alike changes nothing, so the first may stay.
    for orders in itertools.product([(0, 1, 2)], every, every):
        dealt = torch.stack([fires[list(order), row] for row, order in enumerate(orders)], dim=1)
        total += profile_of(dealt).share().value
        number += 1
    assert number == 36
    profile = profile_of(fires)
    torch.testing.assert_close(total / number, profile.independent, rtol=1e-12, atol=1e-14)
    assert (profile.share().value - profile.independent).abs().max() > 0.05


def test_shuffles_keep_each_rate_and_lose_the_alignment():
    rates = torch.rand(1, 1, 2, 300, generator=torch.Generator().manual_seed(11))
    fires = some_fires(11, (60, 1, 2, 300), rate=rates).expand(60, 4, 2, 300)
    fires = fires.clone()
    fires[:, :, 0, :50] = True  # the same on every prompt: no shuffle can take it away
    profile = profile_of(fires, n_draws=100)
    share, draws = profile.share().value, profile.shuffled
    assert share[:, Sharing.SPECIFIC].tolist() == share[:, Sharing.PARTLY_SHARED].tolist() == [0, 0]
    close = 5 * draws.std(dim=0) / 10
    assert ((draws.mean(dim=0) - profile.independent).abs() < close).all()
    assert (draws[..., Sharing.ALL_SHARED] < share[:, Sharing.ALL_SHARED] - 0.1).all()
    assert (profile.shuffled_kept[:, 0, Sharing.ALL_SHARED] >= 50).all()
    expected = profile.shuffled_kept / (draws * 300)
    torch.testing.assert_close(profile.shuffled_repeatability, expected, equal_nan=True)
    off = ~torch.eye(4, dtype=torch.bool)
    assert (profile.overlap().value == 1).all()
    assert (profile.shuffled_overlap[:, off] < 0.9).all()
    assert (profile.shuffled_overlap[:, ~off] == 1).all()


def test_a_shuffle_moves_a_prompt_through_all_layers_alike():
    fires = some_fires(12, (10, 3, 1, 40)).expand(10, 3, 4, 40).clone()
    profile = profile_of(fires, n_draws=5)
    for layer in range(1, 4):
        assert torch.equal(profile.shuffled[:, layer], profile.shuffled[:, 0])
    assert len(profile.shuffled[:, 0].unique(dim=0)) == 5


def test_the_shuffled_overlap_is_the_overlap_of_shuffled_prompts():
    fires = some_fires(13, (2, 2, 2, 30))
    straight, crossed = fires, fires.clone()
    crossed[:, 1] = fires[[1, 0], 1]
    possible = [profile_of(each).overlap().value for each in (straight, crossed)]
    draws = profile_of(fires, n_draws=40).shuffled_overlap
    hits = torch.stack([torch.isclose(draws, each).all(dim=(1, 2)) for each in possible])
    assert hits.sum(dim=0).tolist() == [1] * 40
    assert 8 < hits[0].sum() < 32


def test_the_seed_decides_the_shuffles():
    fires = some_fires(14, (8, 3, 2, 40))
    one, same, other = (profile_of(fires, n_draws=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.shuffled, same.shuffled)
    assert not torch.equal(one.shuffled, other.shuffled)
    assert torch.equal(one.expected, other.expected)


def test_the_baseline_accounts_for_the_shrinking_of_all_shared():
    """More languages, fewer all-shared neurons; on independent signs that is all there is."""
    rates = torch.rand(1, 1, 1, 2000, generator=torch.Generator().manual_seed(15))
    chance = some_fires(15, (300, 8, 1, 2000), rate=rates)
    aligned = chance.clone()
    aligned[:, :, 0, :400] = chance[:, :1, 0, :400]  # a fifth fires with the meaning of the prompt
    for fires, planted in ((chance, False), (aligned, True)):
        shares, excesses = [], []
        for n_languages in range(2, 9):
            profile = profile_of(fires[:, :n_languages])
            excess = profile.excess(level=0.999)
            low, high = (end[0, Sharing.ALL_SHARED].item() for end in (excess.low, excess.high))
            shares.append(profile.share().value[0, Sharing.ALL_SHARED].item())
            excesses.append(excess.value[0, Sharing.ALL_SHARED].item())
            assert (low > 0.02) if planted else (low < 0 < high)
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > (1.5 if planted else 2.5) * shares[-1]
        if planted:
            assert excesses == sorted(excesses)  # what is aligned stands out more and more
        else:
            assert max(map(abs, excesses)) < 0.002 < shares[-1] / 20


# ---------------------------------------------------------------- intervals


def test_the_excess_of_two_languages_is_the_mean_covariance():
    fires = some_fires(16, (15, 2, 1, 25), rate=torch.rand(25))
    fires[:, 1, 0, :10] = fires[:, 0, 0, :10]
    one, other = fires[:, 0, 0].double(), fires[:, 1, 0].double()
    covariance = ((one - one.mean(dim=0)) * (other - other.mean(dim=0))).mean()
    excess = profile_of(fires).excess().value[0]
    expected = torch.tensor([1, -2, 0, 1]) * covariance
    torch.testing.assert_close(excess, expected, rtol=1e-12, atol=1e-14)


def test_the_error_of_the_baseline_is_what_weighting_one_prompt_more_changes():
    fires = some_fires(18, (6, 3, 2, 10), rate=torch.rand(10)).double()

    def baseline(weight: Float64[Tensor, " prompt"]) -> Float64[Tensor, "layer category"]:
        axes = "prompt, prompt language layer neuron -> language layer neuron"
        rate = einsum(weight / weight.sum(), fires, axes)
        return reduce(chance_of_categories(rate), "category layer neuron -> layer category", "mean")

    expected = profile_of(fires.bool()).expected
    step, even = 1e-6, torch.ones(6).double()
    for prompt, more in enumerate(torch.eye(6).double() * step):
        slope = (baseline(even + more) - baseline(even - more)) / (2 * step)
        slow = baseline(even) + 6 * slope
        torch.testing.assert_close(expected[prompt], slow, rtol=0, atol=1e-8)
    assert (expected.std(dim=0) > 0.01).all()  # so that there is an error to measure


def together(seed: int, n_prompts: int) -> Bool[Tensor, "prompt language layer neuron"]:
    """Independent languages, in each of which the neurons of a prompt go together."""
    generator = torch.Generator().manual_seed(seed)
    mood = torch.rand(n_prompts, 3, 1, 1, generator=generator)
    rate = 0.2 + 0.6 * mood.expand(-1, -1, -1, 24) * torch.rand(24, generator=generator)
    return torch.rand(n_prompts, 3, 1, 24, generator=generator) < rate


@pytest.mark.slow
def test_the_excess_of_independent_languages_is_zero_as_often_as_the_interval_says():
    covered, values, errors = torch.zeros(4), [], []
    for seed in range(300):
        excess = profile_of(together(seed, n_prompts=40)).excess(level=0.9)
        covered += ((excess.low <= 0) & (excess.high >= 0))[0]
        values.append(excess.value[0])
        errors.append(excess.standard_error[0])
    assert ((covered / 300 - 0.9).abs() < 0.06).all()  # standard error of the share: 0.017
    values, errors = torch.stack(values), torch.stack(errors)
    truth = values.std(dim=0)
    torch.testing.assert_close(errors.square().mean(dim=0).sqrt(), truth, rtol=0.12, atol=0)
    assert (values.mean(dim=0).abs() < 4 * truth / 300**0.5).all()


def test_the_share_of_a_category_has_the_error_of_a_mean():
    profile = profile_of(together(0, n_prompts=50))
    share, estimate = profile.count[:, 0].double() / 24, profile.share()
    torch.testing.assert_close(estimate.value[0], share.mean(dim=0))
    torch.testing.assert_close(estimate.standard_error[0], share.std(dim=0) / 50**0.5)


def test_prompts_that_are_repeated_do_not_narrow_the_interval():
    fires = together(1, n_prompts=30)
    twice = torch.cat([fires, fires])
    signs, generator = pack(twice), torch.Generator()
    cluster = torch.arange(30).repeat(2)
    once = profile_of(fires)
    plain = sharing_profile(signs, generator, n_draws=0)
    honest = sharing_profile(signs, generator, clusters=cluster, n_draws=0)
    for view in (SharingProfile.share, SharingProfile.excess, SharingProfile.overlap):
        torch.testing.assert_close(
            view(honest).standard_error, view(once).standard_error, rtol=1e-5, atol=1e-7
        )
        assert (view(plain).standard_error <= 0.75 * view(once).standard_error + 1e-9).all()
    torch.testing.assert_close(honest.active().high, once.active().high)


# ---------------------------------------------------------------- keeping, telling, refusing


def test_a_profile_survives_saving(tmp_path: Path):
    profile = profile_of(some_fires(17, (5, 3, 2, 21)), n_draws=3)
    profile.save(tmp_path / "sharing.safetensors", {"made by": "a test"})
    loaded = SharingProfile.load(tmp_path / "sharing.safetensors")
    for name, value in vars(profile).items():
        kept = getattr(loaded, name)
        assert torch.equal(kept, value) if isinstance(value, Tensor) else kept == value


def test_the_table_has_a_row_for_each_layer_and_category():
    profile = profile_of(some_fires(18, (5, 3, 2, 21)), n_draws=2)
    frame = profile.to_frame(level=0.8)
    assert len(frame) == 8
    row = frame[(frame.layer == 1) & (frame.category == "partly shared")].iloc[0]
    share, excess = profile.share(0.8), profile.excess(0.8)
    place = (1, Sharing.PARTLY_SHARED)
    assert row.share == share.value[place].item()
    assert (row.low, row.high) == (share.low[place].item(), share.high[place].item())
    assert row.independent == profile.independent[place].item()
    assert row.share - row.independent == pytest.approx(row.excess)
    assert row.excess_low < row.excess < row.excess_high
    assert excess.high[place].item() == row.excess_high
    assert (row.languages, row.prompts) == (3, 5)


def test_a_profile_shares_no_memory_with_its_signs():
    signs, cluster = pack(some_fires(19, (4, 3, 1, 16))), torch.tensor([0, 0, 1, 1])
    profile = sharing_profile(signs, torch.Generator(), clusters=cluster, n_draws=1)
    before = profile.count.clone()
    signs.bits.zero_()
    cluster.zero_()
    assert torch.equal(profile.count, before)
    assert profile.clusters.tolist() == [0, 0, 1, 1]


def test_what_has_no_categories_is_refused():
    unchecked = getattr(sharing_categories, "__wrapped__", sharing_categories)
    with pytest.raises(ValueError, match=r"float32, not boolean: compare values with a threshold"):
        unchecked(torch.randn(3, 5))
    for one in (torch.ones(1, 5).bool(), torch.ones(0, 5).bool()):
        with pytest.raises(ValueError, match=r"there is only [01]: give two or more"):
            sharing_categories(one)
    for wrong in (torch.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="1 of 4 rates are NaN, below zero or above one"):
            chance_of_categories(torch.tensor([[0.5, wrong], [0.2, 0.1]]))
    with pytest.raises(ValueError, match="there is only 1: give two or more"):
        chance_of_categories(torch.tensor([[0.5]]))


def test_signs_that_cannot_be_divided_are_refused(generator: torch.Generator):
    fires = some_fires(20, (4, 3, 2, 13))
    signs = pack(fires)
    with pytest.raises(ValueError, match="sw, th requested, but the signs have en, de, fr"):
        sharing_profile(signs, generator, languages=("en", "sw", "th"))
    with pytest.raises(ValueError, match=r"en, de, en requested, .* none twice"):
        sharing_profile(signs, generator, languages=("en", "de", "en"))
    with pytest.raises(ValueError, match="there is only 1: give two or more"):
        sharing_profile(signs, generator, languages=("en",))
    with pytest.raises(ValueError, match="there is only 1: give two or more"):
        profile_of(fires[:, :1])
    with pytest.raises(ValueError, match="The signs have no prompts"):
        profile_of(fires[:0])
    unchecked = getattr(sharing_profile, "__wrapped__", sharing_profile)
    with pytest.raises(ValueError, match="There are 4 prompts and 3 cluster numbers"):
        unchecked(signs, generator, clusters=torch.arange(3))
    for wrong in (
        FiringSigns(
            bits=signs.bits, prompts=signs.prompts[:3], languages=signs.languages, d_mlp=13
        ),
        FiringSigns(bits=signs.bits, prompts=signs.prompts, languages=("en", "de"), d_mlp=13),
        FiringSigns(bits=signs.bits, prompts=signs.prompts, languages=signs.languages, d_mlp=17),
        FiringSigns(
            bits=signs.bits | 0x80, prompts=signs.prompts, languages=signs.languages, d_mlp=13
        ),
    ):
        with pytest.raises(ValueError, match=r"The bits have shape \(4, 3, 2, 2\)"):
            sharing_profile(wrong, generator)
    with pytest.raises(ValueError, match="an interval needs two"):
        profile_of(fires[:1]).share()


# ---------------------------------------------------------------- languages near and far


TABLE = "lang1,lang2,syntactic,genetic\nen,de,0.1,0.5\nzh,en,0.7,1\nde,zh,0.6,1\nen,fr,0.2,\n"


def test_distances_are_read_in_the_order_of_the_languages(tmp_path: Path):
    path = tmp_path / "distances.csv"
    path.write_text(TABLE)
    distance = read_distances(path, ("zh", "de", "en"))
    assert distance.tolist() == [[0, 0.6, 0.7], [0.6, 0, 0.1], [0.7, 0.1, 0]]
    assert read_distances(path, ("de", "en"), kind="genetic").tolist() == [[0, 0.5], [0.5, 0]]
    with pytest.raises(ValueError, match="no syntactic distance of de and fr"):
        read_distances(path, ("en", "de", "fr"))
    with pytest.raises(ValueError, match="no genetic distance of en and fr"):
        read_distances(path, ("en", "fr"), kind="genetic")
    with pytest.raises(ValueError, match="no distance 'phonetic', only syntactic, genetic"):
        read_distances(path, ("en", "de"), kind="phonetic")
    path.write_text("")
    with pytest.raises(ValueError, match="only none"):
        read_distances(path, ("en", "de"))


def test_neurons_shared_within_families_follow_the_published_distances(shared: Path):
    path = shared / "data" / "relations" / "uriel_distances.csv"
    languages = ("en", "de", "fr", "es", "zh", "ja", "vi", "id")
    distance = read_distances(path, languages, kind="genetic")
    assert (distance == distance.T).all()
    assert ((distance > 0) | torch.eye(8, dtype=torch.bool)).all()
    family = some_fires(21, (20, 8, 1, 400))
    family[:, 1] = family[:, 0]
    family[:, 3] = family[:, 2]
    family[:, [1, 3]] ^= some_fires(22, (20, 2, 1, 400), rate=0.1)
    generator = torch.Generator().manual_seed(0)
    near = mantel_test(profile_of(family).overlap().value, distance, generator)
    none = mantel_test(
        profile_of(some_fires(23, (20, 8, 1, 400))).overlap().value, distance, generator
    )
    assert near.statistic < -0.5
    assert near.p_value < 0.05 < none.p_value


def test_the_packed_count_is_the_count_of_booleans():
    fires = some_fires(24, (3, 2, 1, 77))[:, :, 0]
    assert profiles._ones(profiles._words(pack_bits(fires))).tolist() == fires.sum(dim=-1).tolist()

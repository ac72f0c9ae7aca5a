"""How far selections change: against all pairs of random sets, and against what was planted."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.inference.intervals import jackknife
from interp.selections.agreement import jaccard_between
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_by_entropy
from interp.selections.stability import (
    across_changes,
    across_halves,
    across_runs,
    across_shards,
    chance_jaccard,
    entropy_settings,
    measure_stability,
    without_languages,
)

THREE = ("en", "de", "zh")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_stats(seed: int = 0, n_shards: int = 6, n_neurons: int = 400) -> FiringStats:
    """Rates that scatter from shard to shard, as those of text do."""
    generator = seeded(seed)
    rate = torch.rand(3, 2, n_neurons, generator=generator) ** 3
    noise = 0.25 * torch.randn(n_shards, 3, 2, n_neurons, generator=generator)
    fired = ((rate * noise.exp()).clamp_max(1) * 1000).round().long()
    return FiringStats(fired=fired, tokens=torch.full((n_shards, 3), 1000), languages=THREE)


def select(stats: FiringStats) -> NeuronSelection:
    return select_by_entropy(stats, 0.05, 0.9)


# ---------------------------------------------------------------- what chance gives


def of_sizes(sizes: Sequence[Sequence[int]], widths: Sequence[int]) -> NeuronSelection:
    """One language, with so many units per layer and site."""
    sites = tuple(zip(("q", "pre", "post"), widths, strict=False))
    mask = torch.zeros(1, len(sizes), sum(widths), dtype=torch.bool)
    for layer, counts in enumerate(sizes):
        for part, count in zip(mask[0, layer].split(list(widths)), counts, strict=True):
            part[:count] = True
    return NeuronSelection(mask, ("en",), sites)


def all_sets(sizes: Sequence[Sequence[int]], widths: Sequence[int]) -> list[set[tuple[int, ...]]]:
    """Every set with so many units in each place, all equally likely."""
    places = [
        [
            {(layer, site, unit) for unit in units}
            for units in itertools.combinations(range(widths[site]), count)
        ]
        for layer, counts in enumerate(sizes)
        for site, count in enumerate(counts)
    ]
    return [set().union(*parts) for parts in itertools.product(*places)]


@pytest.mark.parametrize(
    ("a", "b", "widths"),
    [
        ([[2]], [[3]], (5,)),
        ([[1], [2]], [[3], [1]], (4,)),
        ([[1, 2], [0, 1]], [[2, 1], [1, 0]], (3, 4)),
        ([[0], [3]], [[2], [0]], (4,)),  # never together in a layer: zero
        ([[4], [3]], [[4], [2]], (4,)),  # no choice in the first layer
    ],
)
def test_chance_is_the_mean_over_all_pairs_of_sets(a, b, widths):
    found = chance_jaccard(of_sizes(a, widths), of_sizes(b, widths), level=0.8)
    jaccards = sorted(
        len(one & other) / len(one | other)
        for one, other in itertools.product(all_sets(a, widths), all_sets(b, widths))
    )
    mean = math.fsum(jaccards) / len(jaccards)
    spread = math.fsum((each - mean) ** 2 for each in jaccards) / len(jaccards)
    assert found.value.item() == pytest.approx(mean, abs=1e-12)
    assert found.standard_error.item() == pytest.approx(math.sqrt(spread), abs=1e-9)
    # The smallest values up to which at least 10 % and 90 % of all pairs lie.
    for end, share in ((found.low, 0.1), (found.high, 0.9)):
        place = math.ceil(share * len(jaccards) - 1e-9) - 1
        assert end.item() == pytest.approx(jaccards[place], abs=1e-12)


@pytest.mark.slow
def test_chance_is_what_random_controls_give():
    sites = (("q", 60), ("pre", 140))
    mask = torch.rand(2, 3, 200, generator=seeded(0)) < 0.2
    mask[1] &= torch.rand(3, 200, generator=seeded(1)) < 0.3
    a = NeuronSelection(mask, ("en", "de"), sites)
    b = NeuronSelection(torch.rand(2, 3, 200, generator=seeded(2)) < 0.3, ("en", "de"), sites)
    chance, generator = chance_jaccard(a, b), seeded(3)
    drawn = torch.stack(
        [jaccard_between(a.random_like(generator), b.random_like(generator)) for _ in range(400)]
    )
    error = chance.standard_error / math.sqrt(400)
    assert ((drawn.mean(dim=0) - chance.value).abs() < 4 * error).all()
    assert torch.allclose(drawn.std(dim=0), chance.standard_error, rtol=0.15)
    inside = ((drawn >= chance.low) & (drawn <= chance.high)).double().mean(dim=0)
    assert ((inside > 0.93) & (inside <= 1)).all()


def test_chance_at_its_limits():
    nothing, everything = of_sizes([[0]], (4,)), of_sizes([[4]], (4,))
    assert chance_jaccard(nothing, nothing).value.isnan().all()
    assert chance_jaccard(nothing, everything).value.tolist() == [0]
    assert chance_jaccard(everything, everything).value.tolist() == [1]
    assert chance_jaccard(everything, everything).low.tolist() == [1]
    with pytest.raises(ValueError, match="they must be of one model"):
        chance_jaccard(nothing, of_sizes([[1]], (5,)))
    with pytest.raises(ValueError, match="The level is 1"):
        chance_jaccard(nothing, everything, level=1.0)


def test_chance_of_large_sets_is_close_to_that_of_their_mean_overlap():
    """Wide layers, where probabilities of single numbers are tiny."""
    a, b = of_sizes([[3000], [500]], (14_000,)), of_sizes([[2000], [6000]], (14_000,))
    both = 3000 * 2000 / 14_000 + 500 * 6000 / 14_000
    assert chance_jaccard(a, b).value.item() == pytest.approx(both / (11_500 - both), rel=1e-3)


# ---------------------------------------------------------------- the text


def test_without_each_shard_is_compared_with_the_whole():
    stats = some_stats()
    found = across_shards(stats, select)
    parts = [jaccard_between(select(stats), select(stats.without(shard))) for shard in range(6)]
    assert torch.allclose(found.jaccard[0], torch.stack(parts).mean(dim=0))
    assert (found.jaccard < 1).all()
    assert (found.low <= found.jaccard).all()
    assert (found.jaccard <= found.high).all()


def test_halves_agree_less_than_all_but_one_shard_and_more_than_chance():
    stats = some_stats()
    halves, shards = across_halves(stats, select, seeded(0)), across_shards(stats, select)
    assert (halves.jaccard < shards.jaccard).all()
    assert (halves.jaccard > halves.chance + 0.1).all()
    assert (halves.jaccard <= halves.most).all()
    order = torch.randperm(6, generator=seeded(0)).tolist()
    first, second = select(stats.shards(order[:3])), select(stats.shards(order[3:]))
    once = across_halves(stats, select, seeded(0), splits=1)
    assert torch.equal(once.jaccard[0], jaccard_between(first, second))
    assert torch.equal(once.low, once.high)


def test_the_interval_over_shards_leaves_out_as_much_as_its_level_says():
    """Of six shards, 60 % lie from the second smallest to the second largest."""
    stats = some_stats()
    parts = [jaccard_between(select(stats), select(stats.without(shard))) for shard in range(6)]
    ordered = torch.stack(parts).sort(dim=0).values
    found = across_shards(stats, select, level=0.6)
    torch.testing.assert_close(found.low[0], ordered[1])
    torch.testing.assert_close(found.high[0], ordered[4])
    assert (found.low > ordered[0]).any()
    assert (found.high < ordered[5]).any()


def test_the_seed_decides_the_halves():
    stats = some_stats()
    first, again, other = (across_halves(stats, select, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.jaccard, again.jaccard)
    assert not torch.equal(first.jaccard, other.jaccard)


def test_a_selection_that_hangs_on_nothing_is_stable():
    always = select(some_stats())
    found = measure_stability(
        some_stats(1), lambda _: always, seeded(0), {"the same": lambda _: always}
    )
    assert found.changes == ("half of the text", "one shard left out", "the same")
    for each in (found.jaccard, found.low, found.high, found.most):
        assert (each == 1).all()
    assert (found.chance < 0.2).all()


# ---------------------------------------------------------------- settings and languages


def test_of_two_settings_one_selection_may_hold_the_other():
    stats = some_stats()
    found = across_changes(stats, select, entropy_settings(0.05, 0.9, (0.02, 0.05, 0.1), (0.9,)))
    assert found.changes == ("fraction 0.02", "fraction 0.1")
    for row, fraction in enumerate((0.02, 0.1)):
        changed = select_by_entropy(stats, fraction, 0.9)
        for column, code in enumerate(THREE):
            one, other = select(stats)[code].sum().item(), changed[code].sum().item()
            assert found.jaccard[row, column].item() == pytest.approx(
                min(one, other) / max(one, other)
            )
    assert torch.equal(found.jaccard, found.most)  # nested sets agree as far as sizes let them


def test_the_busy_quantile_is_changed_with_the_fraction_as_it_is():
    changes = entropy_settings(0.05, 0.9, (0.05,), (0.8, 0.9))
    assert list(changes) == ["busy quantile 0.8"]
    stats = some_stats()
    assert changes["busy quantile 0.8"](stats) == select_by_entropy(stats, 0.05, 0.8)
    assert list(entropy_settings()) == [
        *("fraction 0.005", "fraction 0.02", "fraction 0.05"),
        *("busy quantile 0.9", "busy quantile 0.98", "busy quantile 0.99"),
    ]


def test_the_interval_of_a_change_is_that_of_the_jackknife():
    stats = some_stats()

    def changed(part: FiringStats) -> NeuronSelection:
        return select_by_entropy(part, 0.05, 0.8)

    def agreement(part: FiringStats) -> Tensor:
        return jaccard_between(select(part), changed(part))

    found = across_changes(stats, select, {"quantile": changed}, level=0.9)
    expected = jackknife(stats, agreement, 0.9)
    assert torch.equal(found.jaccard[0], expected.value)
    assert torch.equal(found.low[0], expected.low.clamp(0, 1))
    assert torch.equal(found.high[0], expected.high.clamp(0, 1))
    assert (found.low < found.high).any()


def test_a_language_left_out_changes_the_others():
    stats = some_stats()
    found = across_changes(stats, select, without_languages(select, THREE))
    assert found.changes == ("without en", "without de", "without zh")
    rest = FiringStats(
        fired=stats.fired[:, [0, 2]], tokens=stats.tokens[:, [0, 2]], languages=("en", "zh")
    )
    expected = jaccard_between(select(stats).languages_only(("en", "zh")), select(rest))
    assert torch.equal(found.jaccard[1, [0, 2]], expected)
    assert (expected < 1).all()
    for each in (found.jaccard, found.low, found.chance, found.most):
        assert torch.equal(each.isnan(), torch.eye(3, dtype=torch.bool))


def test_a_neuron_of_two_languages_becomes_exclusive_once_one_is_left_out():
    """Planted: busy in two of three languages; a decoy is busy in all three, with or without."""
    fired = torch.full((2, 3, 1, 100), 5)
    fired[:, :, 0, 3] = torch.tensor([900, 900, 5])
    fired[:, :, 0, 4] = torch.tensor([900, 900, 900])  # the decoy
    fired[:, :, 0, 5] = torch.tensor([800, 5, 5])
    stats = FiringStats(fired=fired, tokens=torch.full((2, 3), 1000), languages=THREE)

    def least(part: FiringStats) -> NeuronSelection:
        return select_by_entropy(part, 0.01, 0.95)

    assert least(stats).triples() == [(0, 0, 5)]
    changes = without_languages(least, THREE)
    assert changes["without de"](stats).triples() == [(0, 0, 3)]  # now of English alone
    assert changes["without en"](stats).triples() == [(0, 0, 3)]  # now of German, first of two
    assert changes["without zh"](stats).triples() == [(0, 0, 5)]


def test_two_languages_must_stay():
    with pytest.raises(ValueError, match="Without en, de, 1 of en, de, zh remain"):
        without_languages(select, THREE, [("en", "de")])
    with pytest.raises(ValueError, match="fr cannot be left out: give some of en, de, zh"):
        without_languages(select, THREE, [("fr",)])
    with pytest.raises(ValueError, match="There are no changes to compare"):
        across_changes(some_stats(), select, {})


def test_one_below_the_other_they_make_a_table():
    stats = some_stats(n_shards=4)
    found = measure_stability(stats, select, seeded(0), splits=2)
    parts = (
        across_halves(stats, select, seeded(0), 2),
        across_shards(stats, select),
        across_changes(stats, select, without_languages(select, THREE)),
    )
    for name in ("jaccard", "low", "high", "chance", "most"):
        expected = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(getattr(found, name).nan_to_num(-1), expected.nan_to_num(-1))
    frame = found.to_frame()
    assert len(frame) == 5 * 3
    assert list(frame.columns) == ["change", "language", "jaccard", "low", "high", "chance", "most"]
    row = frame[(frame["change"] == "without de") & (frame["language"] == "zh")].iloc[0]
    assert row["jaccard"] == found.jaccard[3, 2].item()


# ---------------------------------------------------------------- other runs


def test_another_run_is_compared_on_the_languages_that_both_have():
    stats, other = some_stats(0), some_stats(1)
    two = FiringStats(
        fired=other.fired[:, [2, 0]], tokens=other.tokens[:, [2, 0]], languages=("zh", "en")
    )
    found = across_runs(stats, {"news": other, "short": two}, select)
    assert found.changes == ("news", "short")
    assert torch.equal(found.jaccard[0], jaccard_between(select(stats), select(other)))
    common = FiringStats(
        fired=stats.fired[:, [0, 2]], tokens=stats.tokens[:, [0, 2]], languages=("en", "zh")
    )
    theirs = FiringStats(
        fired=other.fired[:, [0, 2]], tokens=other.tokens[:, [0, 2]], languages=("en", "zh")
    )
    expected = jaccard_between(select(common), select(theirs))
    assert torch.equal(found.jaccard[1, [0, 2]], expected)
    assert found.jaccard[1, 1].isnan()
    assert found.low[1, 1].isnan()


def test_the_interval_of_two_runs_holds_the_noise_of_both():
    """Of six shards and of four, of one kind of text; each shard of either run adds to it."""
    every = some_stats(0, n_shards=10)
    stats, other = every.shards([0, 1, 2, 3, 4, 5]), every.shards([6, 7, 8, 9])
    found = across_runs(stats, {"b": other}, select)
    turned = across_runs(other, {"a": stats}, select)
    assert torch.allclose(found.jaccard, turned.jaccard)
    assert torch.allclose(found.low, turned.low)
    assert torch.allclose(found.high, turned.high)
    one, two = select(stats), select(other)
    errors = [
        jackknife(stats, lambda part: jaccard_between(select(part), two)).standard_error,
        jackknife(other, lambda part: jaccard_between(one, select(part))).standard_error,
    ]
    assert min(each.min() for each in errors) > 0
    reach = 3.182446305284263 * (errors[0] ** 2 + errors[1] ** 2).sqrt()  # t of 3 degrees
    assert torch.allclose(found.high[0], (found.jaccard[0] + reach).clamp(0, 1))


def test_runs_without_two_languages_in_common_are_refused():
    stats = some_stats()
    lone = FiringStats(fired=stats.fired[:, :1], tokens=stats.tokens[:, :1], languages=("en",))
    with pytest.raises(ValueError, match="lone has en, and this run en, de, zh"):
        across_runs(stats, {"lone": lone}, select)
    with pytest.raises(ValueError, match="no other run"):
        across_runs(stats, {}, select)
    with pytest.raises(ValueError, match="they must be of one model"):
        across_runs(stats, {"wide": some_stats(0, n_neurons=50)}, select)

"""The rivals: their definitions by hand, their limits, a planted neuron and what fools them."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from interp.counting.stats import ActivationMoments
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.scores.average_precision import average_precision
from interp.scores.baselines import (
    cumulative_mass,
    entropy_less_peak,
    heaviest_weight,
    highest,
    mean_removal_effect,
    parameter_variation,
    random_score,
    removal_effect,
    select_by_entropy_less_peak,
    share_above_percentile,
    value_entropy,
)
from interp.scores.lape import busy_threshold, language_entropy
from tests import tiny_models


def planted_rate() -> Tensor:
    """Three languages, four layers of 100 neurons; [1, 2, 7] is planted, the others are decoys."""
    rate = torch.full((3, 4, 100), 0.5, dtype=torch.float64)
    rate[:, 2, 7] = torch.tensor([0.0, 0.9, 0.0])  # fires for the second language alone
    rate[:, 1, 3] = torch.tensor([0.95, 0.95, 0.95])  # a decoy: busiest, and for all alike
    rate[:, 3, 4] = torch.tensor([0.0, 0.001, 0.0])  # a decoy: hardly ever fires
    return rate


def test_the_highest_are_taken_over_all_layers_and_ties_go_to_the_lower_neuron():
    score = torch.zeros(2, 2, 3)
    score[0] = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.5, 0.7]])
    assert highest(score, 2)[0].nonzero().tolist() == [[0, 1], [1, 2]]
    assert highest(score, 4)[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 2]]
    assert highest(score, 2)[1].nonzero().tolist() == [[0, 0], [0, 1]]
    assert highest(score, 6).all()


def test_who_chooses_by_order_alone_is_warned():
    score = torch.zeros(3, 2, 4)
    score[0] = torch.arange(8.0).view(2, 4)  # without a tie
    score[1, 0, :3] = 1.0  # three share the second place
    score[1, 1, 3] = 2.0
    with pytest.warns(UserWarning, match=r"For 2 of 3 labels .* as 2 of 3 units: their order"):
        highest(score, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        highest(score[:2], 4)  # all that are tied are chosen
        highest(score[:1], 1)
        score[1] = torch.tensor([[5.0, 4.0, 3.0, 2.0], [1.0, 1.0, 0.0, 0.0]])
        highest(score[:2], 5)  # one of five is chosen by its place
        score[2] = -math.inf
        highest(score, 4)  # units that cannot be chosen


@pytest.mark.parametrize("n", [0, 7, -1])
def test_more_neurons_than_there_are_cannot_be_taken(n: int):
    with pytest.raises(ValueError, match=rf"n is {n}: give a number from 1 to 6 neurons"):
        highest(torch.rand(2, 2, 3), n)


def test_scores_that_are_none_cannot_be_ranked():
    score = torch.rand(2, 2, 3)
    score[1, 0, 2] = math.nan
    with pytest.raises(ValueError, match="1 of 12 scores are NaN"):
        highest(score, 2)


def test_activation_probability_alone_takes_the_busy_decoy():
    assert highest(planted_rate(), 1).nonzero().tolist() == [[0, 1, 3], [1, 1, 3], [2, 1, 3]]
    assert highest(planted_rate(), 2)[1].nonzero().tolist() == [[1, 3], [2, 7]]


def test_random_neurons_are_found_as_often_as_chance_has_it(generator: torch.Generator):
    found = torch.zeros(3, 4, 100)
    for _ in range(200):
        found += highest(random_score(3, 4, 100, generator), 40)
    share = found / 200  # of 400 neurons 40 are drawn
    assert share.mean().item() == pytest.approx(0.1)
    assert (share - 0.1).abs().max() < 6 * math.sqrt(0.1 * 0.9 / 200)
    # Languages are drawn apart: they share a tenth of a tenth.
    first, second, _ = highest(random_score(3, 40, 100, generator), 400)
    assert (first & second).sum() < 80


def test_the_seed_decides_what_is_random():
    def draw(seed: int) -> Tensor:
        return random_score(2, 3, 5, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


# ---------------------------------------------------------------- entropy of mean values


def test_the_entropy_of_mean_values_by_hand():
    one, two, equal = [3.0, -0.2, 0.0], [0.6, 0.2, -0.1], [0.4, 0.4, 0.4]
    off, shares = [-0.1, -0.2, 0.0], [0.5, 0.25, 0.25]
    mean = torch.tensor([one, two, equal, off, shares], dtype=torch.float64).T[:, None, :]
    entropy = value_entropy(mean)[0]
    assert entropy[0] == 0
    assert entropy[1].item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert entropy[2].item() == pytest.approx(math.log(3))
    assert entropy[3].isnan()
    assert entropy[4].item() == pytest.approx(1.5 * math.log(2))


def test_without_negative_means_it_is_the_entropy_of_any_rate():
    rate = planted_rate()
    assert torch.equal(value_entropy(3 * rate), language_entropy(3 * rate))


def test_a_neuron_that_is_off_in_the_others_is_found_by_its_mean_and_the_decoy_is_not():
    mean = torch.full((3, 4, 100), 0.3)
    mean[:, 2, 7] = torch.tensor([-0.1, 0.4, -0.1])
    mean[:, 1, 3] = torch.tensor([9.0, 9.0, 9.0])  # a decoy: strong for all
    mean[:, 0, 9] = torch.tensor([-0.15, -0.15, -0.15])  # a decoy: off for all
    entropy = value_entropy(mean)
    assert entropy.nan_to_num(math.inf).flatten().argmin().item() == 2 * 100 + 7
    assert entropy[0, 9].isnan()


def test_means_that_are_none_are_refused():
    mean = torch.rand(2, 3, 4)
    mean[1, 1, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 24 means are NaN or infinite"):
        value_entropy(mean)


# ---------------------------------------------------------------- parameter variation


def tuned(folder: Path, out: Path, change: Callable[[torch.nn.Module], None]) -> NeuronModel:
    """The model of a folder after a change to its weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        change(model)
    model.save_pretrained(out)
    tiny_models.tokenizer().save_pretrained(out)
    return load(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def model(folder: Path) -> NeuronModel:
    return load(folder)


def test_only_neurons_whose_weights_moved_vary(folder: Path, model: NeuronModel, tmp_path: Path):
    def change(each: torch.nn.Module) -> None:
        each.model.layers[1].mlp.gate_proj.weight[7] *= 2
        each.model.layers[2].mlp.up_proj.weight[30] += 1
        each.model.layers[0].mlp.down_proj.weight[:, 5] *= -1
        each.model.layers[0].self_attn.q_proj.weight += 5  # a decoy: attention moves most
        each.model.embed_tokens.weight += 5

    after = tuned(folder, tmp_path, change)
    variation = parameter_variation(model, after)
    assert variation.nonzero().tolist() == [[0, 5], [1, 7], [2, 30]]

    def length(*weights: Tensor) -> float:
        return math.sqrt(sum(float((weight.double() ** 2).sum()) for weight in weights))

    for layer, neuron, moved in (
        (1, 7, length(model.w_gate(1)[:, 7])),
        (2, 30, math.sqrt(tiny_models.D_MODEL)),
        (0, 5, length(2 * model.w_out(0)[5])),
    ):
        parts = (model.w_in(layer), model.w_gate(layer), model.w_out(layer).T)
        whole = length(*(part[:, neuron] for part in parts))
        assert variation[layer, neuron].item() == pytest.approx(moved / whole, rel=1e-6)


def test_weights_of_double_length_vary_by_one_with_and_without_a_gate(
    folder: Path, model: NeuronModel, tmp_path: Path
):
    def double(each: torch.nn.Module) -> None:
        for name, weight in each.named_parameters():
            if "mlp" in name or ".fc" in name:
                weight *= 2

    gated = parameter_variation(model, tuned(folder, tmp_path / "gated", double))
    plain = tiny_models.build("opt", tmp_path / "plain")
    ungated = parameter_variation(load(plain), tuned(plain, tmp_path / "plain after", double))
    for variation in (gated, ungated):
        torch.testing.assert_close(variation, torch.ones_like(variation))
    assert not parameter_variation(model, model).any()


def test_models_of_different_shapes_are_refused(model: NeuronModel, tmp_path: Path):
    other = load(tiny_models.build("opt", tmp_path))
    with pytest.raises(ValueError, match="Give one model before and after tuning"):
        parameter_variation(model, other)


# ---------------------------------------------------------------- share above a percentile


def test_the_share_above_a_percentile_by_hand():
    # The 75th percentile of 0 … 8 is 6; two of the first label's three responses are above it.
    responses = torch.tensor([[8.0], [7], [0], [1], [2], [3], [4], [5], [6]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    share = share_above_percentile(responses, labels, 3, percent=75.0)
    assert share.flatten().tolist() == pytest.approx([2 / 3, 0, 0])


def test_the_share_above_a_percentile_at_its_limits():
    labels = torch.arange(400) % 4
    place = torch.arange(400.0)
    mine = torch.where(labels == 2, 1000 + place, place)
    alike = (place // 4 * 7919) % 400
    responses = torch.stack([mine, alike, torch.full((400,), 3.0)], dim=1)
    share = share_above_percentile(responses, labels, 4)
    assert share[:, 0].tolist() == pytest.approx([0, 0, 0.4, 0])  # a tenth of all, all its own
    assert share[:, 1].tolist() == pytest.approx([0.1] * 4, abs=0.011)
    assert share[:, 2].tolist() == [0] * 4  # a constant is never above itself


def test_a_percentile_of_the_language_itself_tells_nothing(generator: torch.Generator):
    labels = torch.arange(400) % 2
    responses = torch.randn(400, 30, generator=generator) + (labels == 0)[:, None] * 2.0
    for language in (0, 1):
        mine = responses[labels == language]
        own = share_above_percentile(mine, torch.zeros(200, dtype=torch.long), 1)
        assert own[0].tolist() == pytest.approx([0.1] * 30)
    pooled = share_above_percentile(responses, labels, 2)
    assert (pooled[0] > 0.15).all()
    assert (pooled[1] < 0.05).all()


def test_labels_need_be_no_languages():
    relations = torch.arange(300) % 3  # capital of, born in, plays for
    responses = torch.randn(300, 50, generator=torch.Generator().manual_seed(3))
    responses[:, 11] += 4 * (relations == 1)
    responses[:, 12] += 50  # a decoy: strong for all
    share = share_above_percentile(responses, relations, 3)
    assert highest(share[:, None], 1)[1].nonzero().tolist() == [[0, 11]]
    precision = average_precision(responses, relations, 3)
    assert highest(precision[:, None], 1)[1].nonzero().tolist() == [[0, 11]]


def test_labels_without_a_sentence_are_refused():
    with pytest.raises(ValueError, match="Language 2 of 3 has no sentence"):
        share_above_percentile(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]), 3)


# ---------------------------------------------------------------- entropy less the peak


def test_entropy_less_the_peak_by_hand():
    rate = torch.tensor([[0.8, 0.3, 0.0], [0.0, 0.3, 0.0], [0.0, 0.3, 0.0]])[:, None, :].double()
    score = entropy_less_peak(rate, weight=0.11)[0]
    scale = (1 + 1 / 2 + 1 / 3) / 3
    assert score[0].item() == pytest.approx(0 - 0.11 * 0.8 / scale)
    assert score[1].item() == pytest.approx(1 - 0.11 * 0.3 / scale)
    assert score[2].isnan()
    without = entropy_less_peak(rate, weight=0.0)[0, :2]
    torch.testing.assert_close(without, language_entropy(rate)[0, :2] / math.log(3))


def test_the_peak_decides_between_the_planted_neuron_and_the_rare_decoy():
    rate = planted_rate()

    def chosen(weight: float) -> list[list[int]]:
        score = entropy_less_peak(rate, weight)
        return (score == score.min()).nonzero().tolist()

    assert chosen(0.0) == [[2, 7], [3, 4]]
    assert chosen(0.1) == [[2, 7]]


def test_chosen_neurons_belong_where_they_are_busy():
    rate = planted_rate() + 1e-4 * torch.rand(3, 4, 100, generator=torch.Generator().manual_seed(1))
    mask = select_by_entropy_less_peak(rate, 0.1, fraction=2 / 400, busy_quantile=0.9)
    assert mask.nonzero().tolist() == [[1, 2, 7]]  # the rare one belongs nowhere
    bar = busy_threshold(rate, 0.9)
    every = select_by_entropy_less_peak(rate, 0.1, fraction=1.0, busy_quantile=0.9)
    assert torch.equal(every, rate > bar)


def test_neurons_that_never_fire_are_chosen_last():
    rate = torch.full((2, 1, 4), 0.5)
    rate[0] = 0.6
    rate[:, 0, 1] = 0
    mask = select_by_entropy_less_peak(rate, 0.1, fraction=0.75, busy_quantile=0.5)
    assert mask[0, 0].tolist() == [True, False, True, True]


def test_the_heaviest_weight_selects_no_neuron_for_everybody(generator: torch.Generator):
    rate = 0.8 * torch.rand(4, 2, 500, generator=generator, dtype=torch.float64) ** 2
    rate[:, 0, :40] = 0.95 + 0.05 * rate[:, 0, :40]  # busy for all
    settings = {"fraction": 0.1, "busy_quantile": 0.8}

    def for_all(weight: float) -> int:
        mask = select_by_entropy_less_peak(rate, weight, **settings)
        return int((mask.sum(dim=0) == 4).sum())

    weight = heaviest_weight(rate, **settings, most=3.0)
    assert 0 < weight < 3
    assert for_all(weight) == 0
    assert for_all(weight + 0.001) > 0
    assert heaviest_weight(rate, **settings, most=weight / 2) == weight / 2


def test_a_fraction_that_always_holds_neurons_for_everybody_is_refused():
    rate = torch.full((2, 1, 10), 0.5)
    rate[:, 0, :3] = 0.9
    with pytest.raises(ValueError, match=r"Even at weight 0 a fraction of 1\.0 includes neurons"):
        heaviest_weight(rate, fraction=1.0, busy_quantile=0.5)
    with pytest.raises(ValueError, match="There is only one language"):
        entropy_less_peak(rate[:1], 0.1)
    with pytest.raises(ValueError, match=r"The fraction 0\.01 of 10 neurons is 0 neurons"):
        select_by_entropy_less_peak(rate, 0.1)


# ---------------------------------------------------------------- effect of removal


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_effect_of_removal_is_that_of_removing(name: str, tmp_path: Path):
    model, layer = load(tiny_models.build(name, tmp_path)), 1
    ids = torch.arange(4, 24).reshape(2, 10)
    seen: dict[str, Tensor] = {}

    def keep(kind: str) -> Callable[[Tensor, object], None]:
        def look(values: Tensor, hook: object) -> None:
            seen[kind] = values.detach().clone()

        return look

    def remove(neuron: int) -> Callable[[Tensor, object], Tensor]:
        def edit(values: Tensor, hook: object) -> Tensor:
            return values.index_fill(-1, torch.tensor([neuron]), 0.0)

        return edit

    looks = [(model.site(layer, kind), keep(kind)) for kind in ("post", "mlp_out")]
    with model.hooks(looks), torch.no_grad():
        model.body(ids)
    whole = dict(seen)
    effect = removal_effect(whole["post"], model.w_out(layer))
    assert effect.std() > 0.01
    for neuron in (0, 3, 77, tiny_models.D_MLP - 1):
        with (
            model.hooks([(model.site(layer, "post"), remove(neuron)), looks[1]]),
            torch.no_grad(),
        ):
            model.body(ids)
        moved = (seen["mlp_out"] - whole["mlp_out"]).norm(dim=-1)
        torch.testing.assert_close(effect[..., neuron], moved, rtol=1e-4, atol=1e-5)


def test_the_mean_effect_is_the_root_of_the_mean_square(model: NeuronModel):
    generator = torch.Generator().manual_seed(4)
    shape = (2, model.n_layers, 50, model.d_mlp)
    output = torch.randn(shape, generator=generator, dtype=torch.float64)
    output[1, 0, :, 8] *= 40  # planted: writes most for the second language
    output[:, 1, :, 9] *= 30  # a decoy: writes for both
    gate = torch.randn(shape, generator=generator, dtype=torch.float64)
    gate[1, 2, :, 7] *= 90  # another decoy: a gate that is wide open, and no more written
    sums = torch.stack([part.sum(dim=2) for part in (gate, gate**2, output, output**2)])
    moments = ActivationMoments(sums=sums, tokens=torch.tensor([50, 50]), languages=("aa", "bb"))
    found = mean_removal_effect(moments, model)
    for layer in range(model.n_layers):
        each = removal_effect(output[1, layer], model.w_out(layer)).double()
        expected = (each**2).mean(dim=0).sqrt()
        torch.testing.assert_close(found[1, layer], expected, rtol=1e-5, atol=1e-6)
    assert highest(found, 2)[1].nonzero().tolist() == [[0, 8], [1, 9]]
    assert highest(found / found.sum(dim=0), 1)[1].nonzero().tolist() == [[0, 8]]


def test_moments_of_another_model_are_refused(model: NeuronModel):
    moments = ActivationMoments(
        sums=torch.zeros(4, 1, 2, 10, dtype=torch.float64),
        tokens=torch.tensor([5]),
        languages=("aa",),
    )
    with pytest.raises(ValueError, match="The moments have 2 layers of 10 neurons"):
        mean_removal_effect(moments, model)


# ---------------------------------------------------------------- cumulative mass


def test_cumulative_mass_by_hand():
    fired = torch.tensor([[[5, 50, 20, 25, 0]], [[10, 10, 10, 10, 0]]])

    def taken(share: float) -> list[list[int]]:
        return [row.nonzero().flatten().tolist() for row in cumulative_mass(fired, share)[:, 0]]

    assert taken(0.5) == [[1], [0, 1]]
    assert taken(0.51) == [[1, 3], [0, 1, 2]]
    assert taken(0.75) == [[1, 3], [0, 1, 2]]
    assert taken(0.95) == [[1, 2, 3], [0, 1, 2, 3]]
    assert taken(1.0) == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_cumulative_mass_takes_the_fewest_neurons_that_do():
    fired = torch.randint(0, 1000, (3, 4, 60), generator=torch.Generator().manual_seed(5))
    fired[2, 3] = 0
    mask = cumulative_mass(fired, 0.6)
    assert not mask[2, 3].any()
    for language in range(3):
        for layer in range(4 if language < 2 else 3):
            counts, chosen = fired[language, layer], mask[language, layer]
            total = int(counts.sum())
            assert counts[chosen].sum() >= 0.6 * total
            assert counts[chosen].sum() - counts[chosen].min() < 0.6 * total
            assert counts[chosen].min() >= counts[~chosen].max()


def test_cumulative_mass_takes_the_busy_decoy_and_the_planted_neuron_alike():
    fired = (1000 * planted_rate()).long() // 100
    mask = cumulative_mass(fired, 0.05)
    assert mask[:, 1, 3].all()
    assert mask[:, 2, 7].tolist() == [False, True, False]


def test_shares_and_counts_that_are_none_are_refused():
    fired = torch.ones(1, 1, 3, dtype=torch.int64)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"The share is {share}"):
            cumulative_mass(fired, share)
    with pytest.raises(ValueError, match="values of fired are negative"):
        cumulative_mass(-fired)

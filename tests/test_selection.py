"""Selecting neurons, the algebra of selections, their files, and how far two runs agree."""

import json
import math
import re
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from interp.counting.stats import ActivationMoments, FiringStats
from interp.interventions.edits import deactivate, intervene
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.scores.average_precision import Precision
from interp.selections.agreement import (
    jaccard_between,
    predicted_agreement,
    text_for_agreement,
    until_stable,
)
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import (
    select_by_entropy,
    select_by_precision,
    select_by_value_entropy,
    select_from_rate,
)
from tests import tiny_models

FOUR = ("en", "de", "zh", "ja")


def some_rates(
    seed: int, n_tokens: int = 40, n_layers: int = 3
) -> Float[Tensor, "language layer neuron"]:
    """Mostly quiet, few busy, and coarse, so that ties happen within and across layers."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.rand(4, n_layers, 50, generator=generator, dtype=torch.float64) ** 3
    return (rate * n_tokens).round() / n_tokens


def some_selection(seed: int, density: float = 0.2) -> NeuronSelection:
    generator = torch.Generator().manual_seed(seed)
    return NeuronSelection(torch.rand(4, 3, 50, generator=generator) < density, FOUR)


def select_by_hand(
    rates: Float[Tensor, "language layer neuron"], fraction: float, quantile: float
) -> list[tuple[int, int, int]]:
    """The authors' selection in plain Python: sorted (language, layer, neuron)."""
    n_languages, n_layers, n_neurons = rates.shape
    rate = rates.tolist()
    everything = sorted(p for layers in rate for neurons in layers for p in neurons)
    threshold = everything[round(quantile * len(everything)) - 1]
    ranked = []
    for layer in range(n_layers):
        for neuron in range(n_neurons):
            own = [rate[language][layer][neuron] for language in range(n_languages)]
            if max(own) > threshold:
                shares = [p / math.fsum(own) for p in own]
                entropy = -math.fsum(q * math.log(q) for q in shares if q > 0)
                ranked.append((round(entropy, 11), layer, neuron))
    ranked.sort()
    chosen = ranked[: round(fraction * n_layers * n_neurons)]
    return sorted(
        (language, layer, neuron)
        for language in range(n_languages)
        for _, layer, neuron in chosen
        if rate[language][layer][neuron] > threshold
    )


# Selecting


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("fraction", "quantile"), [(0.02, 0.95), (0.1, 0.8), (0.05, 0.9)])
def test_the_selection_equals_its_definition(seed: int, fraction: float, quantile: float):
    rate = some_rates(seed)
    selection = select_from_rate(rate, FOUR, fraction, quantile)
    assert selection.triples() == select_by_hand(rate, fraction, quantile)
    assert selection.union().sum() == round(fraction * 150)
    assert selection.languages == FOUR


def planted() -> FiringStats:
    fired = torch.full((1, 3, 4, 100), 50)
    fired[0, :, 2, 7] = torch.tensor([0, 90, 0])  # fires for the second language alone
    fired[0, :, 1, 3] = torch.tensor([95, 95, 95])  # a decoy: busier, and for all alike
    fired[0, :, 0, 9] = torch.tensor([1, 0, 0])  # a decoy: no entropy, and never busy
    fired[0, :, 3, 1] = torch.tensor([0, 0, 0])  # a decoy: silent
    return FiringStats(fired=fired, tokens=torch.full((1, 3), 100), languages=("en", "fr", "zh"))


def test_the_planted_neuron_is_found_and_no_decoy():
    assert select_by_entropy(planted(), fraction=1 / 400).triples() == [(1, 2, 7)]


def test_a_neuron_belongs_to_every_language_in_which_it_is_busy_and_to_no_other():
    rate = torch.full((4, 1, 100), 0.1, dtype=torch.float64)
    rate[:, 0, 5] = torch.tensor([0.9, 0.05, 0.8, 0.0])
    selection = select_from_rate(rate, FOUR, fraction=0.01)
    assert selection.triples() == [(0, 0, 5), (2, 0, 5)]


def test_a_rate_equal_to_the_threshold_is_not_busy():
    rate = torch.full((4, 1, 100), 0.1, dtype=torch.float64)
    rate[0, 0, :21] = 0.5  # the 380th of 400 rates in order, and all above it
    rate[:, 0, 30] = torch.tensor([0.5, 0.6, 0.0, 0.0])
    rate[:, 0, 31] = torch.tensor([0.5, 0.0, 0.0, 0.0])  # least entropy, but only at the threshold
    assert sorted(rate.flatten().tolist())[379] == 0.5
    assert select_from_rate(rate, FOUR, fraction=0.01).triples() == [(1, 0, 30)]


def test_ties_go_to_the_lower_layer_and_then_to_the_lower_neuron():
    rate = torch.full((4, 3, 400), 0.1, dtype=torch.float64)
    alike = [(0, 399), (1, 0), (1, 20), (1, 21), (1, 300), (2, 0), (2, 1), (2, 250)]
    for layer, neuron in alike:
        rate[2, layer, neuron] = 0.7
    rate[2, 2, 399] = 0.9  # less entropy than the tied ones
    for n_chosen in range(1, 10):
        selection = select_from_rate(rate, FOUR, fraction=n_chosen / 1200)
        expected = sorted([(2, 399), *alike[: n_chosen - 1]])
        assert selection["zh"].nonzero().tolist() == [list(each) for each in expected]


def test_ties_of_many_neurons_are_broken_in_order():
    rate = torch.full((4, 8, 1000), 0.1, dtype=torch.float64)
    rate[1, 3:5] = 0.7
    rate[1, 4, :500] = 0.71
    selection = select_from_rate(rate, FOUR, fraction=800 / 8000, busy_quantile=0.9)
    assert selection["de"][4, :500].all()
    assert selection["de"][3, :300].all()
    assert selection.mask.sum() == 800


@pytest.mark.parametrize("seed", range(5))
def test_permuting_the_languages_permutes_the_selection(seed: int):
    rate = some_rates(seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist()
    names = tuple(FOUR[row] for row in order)
    permuted = select_from_rate(rate[order], names, 0.05)
    assert permuted == select_from_rate(rate, FOUR, 0.05).languages_only(names)


def test_neurons_are_chosen_over_all_layers_at_once():
    rate = some_rates(seed=0)
    rate[:, 1] = 0.0
    rate[2, 1] = 0.9  # one layer holds all that is special
    assert select_from_rate(rate, FOUR, 0.3, 0.7).union().sum(dim=1).tolist() == [0, 45, 0]


def test_how_tokens_fall_into_shards_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    fired = (100 * torch.rand(6, 4, 3, 50, generator=generator) ** 3).long()
    tokens = torch.full((6, 4), 100)
    by_shard = FiringStats(fired=fired, tokens=tokens, languages=FOUR)
    whole = FiringStats(
        fired=fired.sum(0, keepdim=True), tokens=tokens.sum(0, keepdim=True), languages=FOUR
    )
    backwards = by_shard.shards([5, 4, 3, 2, 1, 0])
    expected = select_by_entropy(whole, 0.05)
    assert select_by_entropy(by_shard, 0.05) == expected
    assert select_by_entropy(backwards, 0.05) == expected
    assert select_by_entropy(by_shard.shards([0]), 0.05) != expected


def test_a_larger_fraction_contains_the_smaller_ones_neurons():
    rate = some_rates(seed=2)
    selections = [select_from_rate(rate, FOUR, n / 150, 0.8) for n in range(1, 60)]
    for smaller, larger in pairwise(selections):
        assert (smaller & larger) == smaller
        assert larger.union().sum() == smaller.union().sum() + 1


def test_a_higher_busy_quantile_leaves_fewer_languages_to_a_neuron():
    rate = some_rates(seed=3)
    low, high = (select_from_rate(rate, FOUR, 0.01, quantile) for quantile in (0.5, 0.99))
    assert (rate[high.mask].min() > rate.quantile(0.98)).item()
    assert low != high


def test_single_precision_rates_are_selected_as_they_are():
    rate = some_rates(seed=4).float()
    assert select_from_rate(rate, FOUR, 0.05) == select_from_rate(rate.double(), FOUR, 0.05)


def test_too_few_busy_neurons_are_refused_with_the_numbers():
    rate = torch.full((4, 3, 50), 0.1)
    rate[0, 0, :5] = 0.8
    assert select_from_rate(rate, FOUR, fraction=5 / 150).counts()["en"] == 5
    with pytest.raises(ValueError, match=r"6 neurons .* only 5 of 150 are busy in some language"):
        select_from_rate(rate, FOUR, fraction=6 / 150)


def test_rates_that_are_none_are_refused():
    rate = some_rates(seed=5)
    rate[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 600 rates are NaN"):
        select_from_rate(rate, FOUR)


@pytest.mark.parametrize("fraction", [0.0, 0.001, -0.1, 1.5])
def test_a_fraction_that_leaves_no_neuron_is_refused(fraction: float):
    with pytest.raises(ValueError, match=r"fraction .* of 150 neurons is .* such as 0\.01"):
        select_from_rate(some_rates(seed=6), FOUR, fraction)


# A selection as a value


def test_a_selection_names_each_language_once():
    mask = torch.zeros(2, 1, 3, dtype=torch.bool)
    for languages in [("en",), ("en", "en"), ("en", "de", "fr")]:
        with pytest.raises(ValueError, match=r"2 languages but the names are en.*none twice"):
            NeuronSelection(mask, languages)


def test_a_language_is_looked_up_by_its_name():
    selection = some_selection(seed=0)
    assert torch.equal(selection["zh"], selection.mask[2])
    with pytest.raises(
        KeyError, match="'fr' is not in this selection, which covers en, de, zh, ja"
    ):
        selection["fr"]


def test_selections_are_equal_when_neurons_and_names_are():
    selection = some_selection(seed=0)
    assert selection == NeuronSelection(selection.mask.clone(), FOUR)
    assert selection != some_selection(seed=1)
    assert selection != NeuronSelection(selection.mask, ("en", "de", "zh", "ko"))
    assert selection != "en"


def test_counts_and_profiles_add_up():
    selection = some_selection(seed=1)
    triples = selection.triples()
    by_hand = {code: sum(row == place for place, _, _ in triples) for row, code in enumerate(FOUR)}
    assert selection.counts() == by_hand
    profile = selection.layer_profile()
    for row in range(4):
        for layer in range(3):
            expected = sum(triple[:2] == (row, layer) for triple in triples)
            assert profile[row, layer] == expected
    owners = {}
    for row, layer, neuron in triples:
        owners.setdefault((layer, neuron), set()).add(row)
    for layer in range(3):
        for neuron in range(50):
            n = len(owners.get((layer, neuron), ()))
            assert selection.languages_per_neuron()[layer, neuron] == n
            assert selection.union()[layer, neuron] == (n >= 1)
            assert selection.shared()[layer, neuron] == (n >= 2)
            assert selection.shared(at_least=3)[layer, neuron] == (n >= 3)


def test_overlap_and_jaccard_equal_their_definitions():
    selection = some_selection(seed=2)
    sets = [{triple[1:] for triple in selection.triples() if triple[0] == row} for row in range(4)]
    overlap, jaccard = selection.overlap(), selection.jaccard()
    for row, own in enumerate(sets):
        for column, other in enumerate(sets):
            assert overlap[row, column] == len(own & other)
            assert jaccard[row, column] == len(own & other) / len(own | other)


def test_jaccard_of_nothing_with_nothing_is_undefined():
    mask = torch.zeros(3, 1, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    jaccard = NeuronSelection(mask, ("en", "de", "zh")).jaccard()
    assert jaccard[0].tolist() == [1, 0, 0]
    assert jaccard[1:, 1:].isnan().all()


def test_the_algebra_is_that_of_sets():
    a, b = some_selection(seed=3), some_selection(seed=4)
    left, right = set(a.triples()), set(b.triples())
    assert set((a & b).triples()) == left & right
    assert set((a | b).triples()) == left | right
    assert set((a - b).triples()) == left - right
    assert ~(~a) == a
    assert ~(a | b) == ~a & ~b
    assert (a - b) == (a & ~b)


def test_selections_with_other_axes_do_not_mix():
    a = some_selection(seed=5)
    for other in [
        a.languages_only(("de", "en", "zh", "ja")),
        a.languages_only(("en", "de")),
        NeuronSelection(a.mask[:, :2], FOUR),
    ]:
        for operation in ("__and__", "__or__", "__sub__"):
            with pytest.raises(ValueError, match=r"same languages in the same order"):
                getattr(a, operation)(other)
        with pytest.raises(ValueError, match="must be of one model"):
            jaccard_between(a, other)


def test_restricting_keeps_neurons_with_their_language():
    selection = some_selection(seed=6)
    part = selection.languages_only(("ja", "de"))
    assert part.languages == ("ja", "de")
    assert torch.equal(part["ja"], selection["ja"])
    assert torch.equal(part["de"], selection["de"])
    with pytest.raises(KeyError, match="'fr' is not in this selection"):
        selection.languages_only(("en", "fr"))


def test_triples_are_sorted_and_come_back():
    selection = some_selection(seed=7)
    triples = selection.triples()
    assert triples == sorted(triples)
    assert NeuronSelection.from_triples(iter(reversed(triples)), FOUR, 3, 50) == selection
    empty = NeuronSelection.from_triples([], FOUR, 3, 50)
    assert empty.mask.shape == (4, 3, 50)
    assert not empty.mask.any()


@pytest.mark.parametrize("wrong", [(4, 0, 0), (0, 3, 0), (0, 0, 50), (-1, 0, 0), (0, 0)])
def test_a_place_that_the_model_lacks_is_refused(wrong: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"is not a \(language, layer, neuron\) of 4 languages, 3"):
        NeuronSelection.from_triples([(0, 0, 0), wrong], FOUR, 3, 50)


# Random controls


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_random_control_has_as_many_neurons_per_language_and_layer():
    selection = some_selection(seed=8)
    control = selection.random_like(seeded(0))
    assert torch.equal(control.layer_profile(), selection.layer_profile())
    assert control.languages == FOUR
    assert control != selection


def test_the_seed_decides_the_random_control():
    selection = some_selection(seed=9)
    control = selection.random_like(seeded(0))
    assert selection.random_like(seeded(0)) == control
    assert selection.random_like(seeded(1)) != control
    generator = seeded(0)
    assert selection.random_like(generator) != selection.random_like(generator)


@pytest.mark.slow
def test_a_random_control_draws_every_neuron_equally_often():
    selection = NeuronSelection(torch.arange(40).reshape(1, 1, 40) < 10, ("en",))
    generator = seeded(2)
    drawn = sum(selection.random_like(generator).mask.double() for _ in range(2000)) / 2000
    standard_error = math.sqrt(0.25 * 0.75 / 2000)
    assert (drawn - 0.25).abs().max() < 4.5 * standard_error
    assert drawn.sum().item() == pytest.approx(10)


def test_a_random_control_stays_clear_of_excluded_neurons():
    selection = some_selection(seed=10)
    assert (selection.random_like(seeded(3)).union() & selection.union()).any()
    control = some_selection(seed=10, density=0.1).random_like(seeded(3), selection.union())
    assert not (control.union() & selection.union()).any()
    profile = some_selection(seed=10, density=0.1).layer_profile()
    assert torch.equal(control.layer_profile(), profile)


def test_a_random_control_may_take_all_that_is_left_and_no_more():
    mask = torch.zeros(1, 2, 6, dtype=torch.bool)
    mask[0, 1, :3] = True
    selection = NeuronSelection(mask, ("en",))
    assert selection.random_like(seeded(0), mask[0])["en"][1, 3:].all()
    barred = mask[0].clone()
    barred[1, 4] = True
    with pytest.raises(ValueError, match="en has 3 neurons in layer 1, but only 2 of 6 are left"):
        selection.random_like(seeded(0), barred)


def test_a_control_of_the_same_rates_replaces_every_neuron_by_the_nearest():
    selection, rate = some_selection(seed=10, density=0.1), torch.rand(4, 3, 50).double()
    barred = selection.union()
    control = selection.random_like(seeded(3), barred, rate)
    assert not (control.union() & barred).any()
    assert torch.equal(control.layer_profile(), selection.layer_profile())
    for code, rates in zip(FOUR, rate, strict=True):
        for layer in range(3):
            chosen = selection[code][layer].nonzero().flatten().tolist()
            left = {
                unit: rates[layer, unit].item() for unit in range(50) if not barred[layer, unit]
            }
            drawn = control[code][layer].nonzero().flatten().tolist()
            # In whichever order neurons are replaced, the first one gets its nearest.
            nearest = [
                min(left, key=lambda unit, own=own: abs(left[unit] - own))
                for own in rates[layer, chosen].tolist()
            ]
            assert not drawn or set(nearest) & set(drawn)
            if len(chosen) == 1:
                assert drawn == nearest
    apart = (rate[selection.mask].mean() - rate[control.mask].mean()).abs()
    layers_alone = selection.random_like(seeded(3), barred)
    assert apart < (rate[selection.mask].mean() - rate[layers_alone.mask].mean()).abs()


def test_of_neurons_that_fire_alike_chance_chooses_and_no_other_rate_counts():
    mask = torch.zeros(2, 1, 40, dtype=torch.bool)
    mask[0, 0, 0] = True
    rate = torch.full((2, 1, 40), 0.1, dtype=torch.float64)
    rate[0, 0, :4] = 0.9  # alike in the first language
    rate[1, 0, 4:8] = 0.9  # the decoys, in the second
    selection = NeuronSelection(mask, ("en", "de"))
    drawn = [
        int(selection.random_like(seeded(seed), mask[0], rate)["en"].nonzero()[0, 1])
        for seed in range(30)
    ]
    assert set(drawn) == {1, 2, 3}
    with pytest.raises(ValueError, match=r"rates have shape \(1, 1, 40\), the selection"):
        selection.random_like(seeded(0), rate=rate[:1])


# Files


def test_a_selection_comes_back_from_json_and_reads_well(tmp_path: Path):
    path = tmp_path / "selection.json"
    selection = NeuronSelection.from_triples(
        [(0, 0, 5), (0, 0, 7), (0, 2, 49), (3, 1, 0)], FOUR, 3, 50
    )
    selection.to_json(path, artifacts.provenance(note="größer"))
    assert NeuronSelection.from_json(path) == selection
    text = path.read_text(encoding="utf-8")
    assert '   "0": [5, 7],\n   "2": [49]\n' in text
    stored = json.loads(text)
    assert stored["neurons"] == {
        "en": {"0": [5, 7], "2": [49]},
        "de": {},
        "zh": {},
        "ja": {"1": [0]},
    }
    assert stored["provenance"]["settings"] == {"note": "größer"}
    before = path.read_bytes()
    selection.to_json(path, artifacts.provenance(note="größer"))
    assert path.read_bytes() == before


def test_a_large_selection_comes_back_from_json(tmp_path: Path):
    selection = some_selection(seed=11, density=0.6)
    selection.to_json(tmp_path / "x.json")
    assert NeuronSelection.from_json(tmp_path / "x.json") == selection


GOOD = {
    "format": "polyneuron NeuronSelection 1",
    "languages": ["en", "de"],
    "n_layers": 2,
    "n_units": 4,
    "neurons": {"en": {"0": [1]}, "de": {"1": [3]}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "its format is 'other'"),
        ({"languages": ["en"]}, "the languages that have neurons differ"),
        ({"languages": ["en", "fr"]}, "the languages that have neurons differ"),
        ({"languages": ["en", "de", "de"]}, "none twice"),
        ({"n_units": 3}, r"\(1, 1, 3\) is not a \(language, layer, neuron\)"),
        ({"n_layers": 1}, r"\(1, 1, 3\) is not a"),
        ({"n_layers": "two"}, "that can be read"),
        ({"n_units": -1}, "that can be read"),
        ({"neurons": {"en": {"0": [1.5]}, "de": {}}}, "that can be read"),
        ({"neurons": {"en": {"first": [1]}, "de": {}}}, "that can be read"),
        ({"neurons": {"en": [1], "de": {}}}, "that can be read"),
        ({"neurons": None}, "that can be read"),
    ],
)
def test_a_json_file_that_is_no_selection_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD))
    assert NeuronSelection.from_json(path).triples() == [(0, 0, 1), (1, 1, 3)]
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is not a selection.*{message}"):
        NeuronSelection.from_json(path)


def test_json_files_that_are_cut_lack_a_key_or_are_missing_are_refused(tmp_path: Path):
    path = tmp_path / "x.json"
    for key in GOOD:
        path.write_text(json.dumps({name: GOOD[name] for name in GOOD if name != key}))
        with pytest.raises(ValueError, match=f"it has no '{key}'"):
            NeuronSelection.from_json(path)
    whole = json.dumps(GOOD)
    for content in [whole[:-1].encode(), b"", b"[]", b"\xff\xfe", b"3"]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a selection that can be read"):
            NeuronSelection.from_json(path)
    with pytest.raises(FileNotFoundError, match=r"is missing\. Make it with"):
        NeuronSelection.from_json(tmp_path / "none")


def test_the_published_format_is_lists_of_sorted_ids(tmp_path: Path):
    path = tmp_path / "mask.pth"
    selection = NeuronSelection.from_triples([(0, 0, 7), (0, 0, 5), (3, 1, 0)], FOUR, 3, 50)
    selection.to_lape_pth(path)
    lists = torch.load(path, weights_only=True)
    assert [[ids.tolist() for ids in layers] for layers in lists] == [
        [[5, 7], [], []],
        [[], [], []],
        [[], [], []],
        [[], [0], []],
    ]
    assert {ids.dtype for layers in lists for ids in layers} == {torch.int64}
    assert NeuronSelection.from_lape_pth(path, FOUR, 50) == selection
    before = path.read_bytes()
    selection.to_lape_pth(path)
    assert path.read_bytes() == before


def test_the_published_format_stores_ids_and_not_the_mask(tmp_path: Path):
    some_selection(seed=12).to_lape_pth(tmp_path / "mask.pth")
    with zipfile.ZipFile(tmp_path / "mask.pth") as archive:
        stored = sum(each.file_size for each in archive.infolist() if "/data/" in each.filename)
    assert stored == 8 * some_selection(seed=12).mask.sum()


def test_languages_of_the_published_format_are_never_guessed(tmp_path: Path):
    path = tmp_path / "mask.pth"
    some_selection(seed=13).to_lape_pth(path)
    with pytest.raises(ValueError, match=r"holds 4 languages, but 2 are named \(en, de\)"):
        NeuronSelection.from_lape_pth(path, ("en", "de"), 50)
    with pytest.raises(ValueError, match=r"of en, but a layer has 10: give the model's d_mlp"):
        NeuronSelection.from_lape_pth(path, FOUR, 10)


class _Surprise:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        [[torch.tensor([1])], []],
        [[torch.tensor([1.0])]],
        [[torch.tensor([True])]],
        [[torch.tensor([[1]])]],
        [[[1]]],
        torch.zeros(2, 3),
        3,
    ],
)
def test_other_tensors_than_the_published_format_are_refused(content: object, tmp_path: Path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match="is not a list by language of lists by layer of int64 ids"
    ):
        NeuronSelection.from_lape_pth(tmp_path / "x.pth", ("en",), 50)


def test_a_mask_file_runs_no_code_and_damage_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "x.pth"
    torch.save([[_Surprise()]], path)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        NeuronSelection.from_lape_pth(path, ("en",), 50)
    assert "executed" not in capsys.readouterr().out
    some_selection(seed=14).to_lape_pth(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        NeuronSelection.from_lape_pth(path, FOUR, 50)
    with pytest.raises(FileNotFoundError, match="is missing"):
        NeuronSelection.from_lape_pth(tmp_path / "none", FOUR, 50)


# Agreement of two runs


def test_jaccard_between_equals_its_definition():
    a, b = some_selection(seed=15), some_selection(seed=16, density=0.1)
    agreement = jaccard_between(a, b)
    for row in range(4):
        left, right = ({each[1:] for each in x.triples() if each[0] == row} for x in (a, b))
        assert agreement[row] == len(left & right) / len(left | right)
    empty = a & ~a
    assert jaccard_between(a, a).tolist() == [1, 1, 1, 1]
    assert jaccard_between(a, empty).tolist() == [0, 0, 0, 0]
    assert jaccard_between(empty, empty).isnan().all()


class World:
    """A model whose true rates are known, read in shards whose topics make its neurons burst."""

    def __init__(self, seed: int, n_neurons: int = 30_000):
        self.random = np.random.default_rng(seed)
        shared = self.random.normal(-2.0, 1.5, size=n_neurons)
        own = self.random.normal(size=(4, n_neurons))
        self.rate = 1 / (1 + np.exp(-shared - own))

    def read(self, n_shards: int, evenness: float, n_tokens: int = 4000) -> FiringStats:
        """Larger evenness: the shards' rates scatter less about the truth."""
        alpha, beta = self.rate * evenness, (1 - self.rate) * evenness
        fired = np.stack(
            [self.random.binomial(n_tokens, self.random.beta(alpha, beta)) for _ in range(n_shards)]
        )
        return FiringStats(
            fired=torch.from_numpy(fired).long()[:, :, None],
            tokens=torch.full((n_shards, 4), n_tokens),
            languages=FOUR,
        )


@pytest.mark.slow
@pytest.mark.parametrize("n_shards", [10, 11])
@pytest.mark.parametrize("evenness", [20, 2000])
def test_the_predicted_agreement_is_that_of_two_independent_runs(evenness: float, n_shards: int):
    ours, halved = [], []
    for seed in range(3):  # a single one can be right by chance
        world = World(seed=int(evenness) + seed)
        one, other = world.read(n_shards, evenness), world.read(n_shards, evenness)
        first, second = select_by_entropy(one), select_by_entropy(other)
        realised = jaccard_between(first, second).mean().item()
        predicted = predicted_agreement(one, select_by_entropy, seeded(0))
        assert predicted == pytest.approx(realised, abs=0.06)
        halves = (
            select_by_entropy(one.shards([0, 1, 2, 3, 4])),
            select_by_entropy(one.shards([5, 6, 7, 8, 9])),
        )
        uncorrected = jaccard_between(*halves).mean().item()
        assert uncorrected < predicted
        ours.append(abs(predicted - realised))
        halved.append(abs(uncorrected - realised))
    assert sum(halved) > sum(ours)


@pytest.mark.slow
def test_more_text_of_the_same_kind_is_predicted_to_agree_more():
    world = World(seed=1)
    few, many = world.read(6, 80), world.read(40, 80)
    assert predicted_agreement(few, select_by_entropy, seeded(0)) < (
        predicted_agreement(many, select_by_entropy, seeded(0)) - 0.1
    )


def test_the_predicted_agreement_follows_its_formula():
    a, b = torch.zeros(2, 4, 1, 8, dtype=torch.bool)
    a[:, 0, :4] = True
    b[:, 0, 1:5] = True  # three of four in common: Dice 3/4 in every language

    def select(stats: FiringStats) -> NeuronSelection:
        return NeuronSelection(a if stats.fired[:, 0, 0, 0].any() else b, FOUR)

    for n_shards in (2, 3, 8, 9):
        fired = torch.zeros(n_shards, 4, 1, 8, dtype=torch.int64)
        fired[0] = 1  # only the half with the first shard selects `a`
        stats = FiringStats(
            fired=fired, tokens=torch.ones(n_shards, 4, dtype=torch.int64), languages=FOUR
        )
        halves = seeded(5)
        dices = []
        for _ in range(40):
            order = torch.randperm(n_shards, generator=halves).tolist()
            half = n_shards // 2
            parted = 0 in order[:half] or 0 in order[-half:]
            dices.append(0.75 if parted else 1.0)  # an odd shard in the middle is in neither half
        dice = 1 - (1 - sum(dices) / 40) * math.sqrt((n_shards // 2) / n_shards)
        predicted = predicted_agreement(stats, select, seeded(5), splits=40)
        assert predicted == pytest.approx(dice / (2 - dice), rel=1e-12)


def test_languages_without_neurons_do_not_count_in_the_prediction():
    mask = torch.zeros(4, 1, 8, dtype=torch.bool)
    mask[1, 0, 3] = True
    stats = World(seed=2, n_neurons=8).read(4, 20)
    always = NeuronSelection(mask, FOUR)
    assert predicted_agreement(stats, lambda _: always, seeded(0)) == 1


def test_the_seed_decides_the_predicted_agreement():
    stats = World(seed=3, n_neurons=2000).read(8, 40)
    first = predicted_agreement(stats, select_by_entropy, seeded(0))
    assert predicted_agreement(stats, select_by_entropy, seeded(0)) == first
    assert predicted_agreement(stats, select_by_entropy, seeded(1)) != first


def test_one_shard_has_no_halves():
    stats = World(seed=4, n_neurons=200).read(1, 40)
    with pytest.raises(ValueError, match="have 1 shard, but two halves need two or more"):
        predicted_agreement(stats, select_by_entropy, seeded(0))


def test_collecting_stops_once_the_agreement_is_reached_and_not_before():
    stats = World(seed=5, n_neurons=5000).read(12, 200)
    predicted = predicted_agreement(stats, select_by_entropy, seeded(7))
    assert 0.1 < predicted < 0.95
    assert until_stable(predicted - 1e-9, seed=7)(stats)
    assert not until_stable(predicted + 1e-9, seed=7)(stats)
    rule = until_stable(predicted - 1e-9, seed=7)
    assert [rule(stats) for _ in range(3)] == [True, True, True]
    other = predicted_agreement(stats, select_by_entropy, seeded(8))
    assert other != predicted
    between = (predicted + other) / 2
    assert until_stable(between, seed=7)(stats) != until_stable(between, seed=8)(stats)


def test_the_rule_passes_its_settings_on():
    stats = World(seed=6, n_neurons=5000).read(8, 200)

    def select(stats: FiringStats) -> NeuronSelection:
        return select_by_entropy(stats, 0.05, 0.8)

    predicted = predicted_agreement(stats, select, seeded(0))
    assert until_stable(predicted - 1e-9, fraction=0.05, busy_quantile=0.8)(stats)
    assert not until_stable(predicted + 1e-9, fraction=0.05, busy_quantile=0.8)(stats)


def test_the_rule_waits_for_four_shards_and_for_enough_to_select_from():
    stats = World(seed=7, n_neurons=2000).read(4, 200)
    assert until_stable(0.01)(stats)
    assert not until_stable(0.01)(stats.shards([0, 1, 2]))
    assert not until_stable(0.01, fraction=0.9)(stats)  # fewer busy neurons than that


@pytest.mark.parametrize("jaccard", [0.0, -1.0, 1.1])
def test_an_agreement_that_is_no_share_is_refused(jaccard: float):
    with pytest.raises(ValueError, match=r"give a share above 0 and up to 1"):
        until_stable(jaccard)


def test_the_text_needed_follows_from_the_agreement():
    """Twice the text divides what is not shared by the root of two."""
    agreement = 0.6
    shared = 2 * agreement / (1 + agreement)
    doubled = 1 - (1 - shared) / math.sqrt(2)
    assert text_for_agreement(agreement, doubled / (2 - doubled)) == pytest.approx(2)
    assert text_for_agreement(0.95, 0.95) == pytest.approx(1)
    assert text_for_agreement(1.0, 0.95) == 0
    assert text_for_agreement(0.8, 0.95) > text_for_agreement(0.9, 0.95) > 1
    with pytest.raises(ValueError, match="give shares"):
        text_for_agreement(1.2, 0.95)


def test_a_selection_for_a_model_of_another_size_is_refused(tmp_path):
    model = load(tiny_models.build("qwen2", tmp_path))
    NeuronSelection(torch.zeros(1, 3, 160, dtype=torch.bool), ("de",)).check_model(model)
    with pytest.raises(ValueError, match=r"2 layers of 160 neurons, but .* has 3 of 160"):
        NeuronSelection(torch.zeros(1, 2, 160, dtype=torch.bool), ("de",)).check_model(model)


# Several sites

SITES = (("q", 4), ("pre", 6), ("post", 6))


def over_sites(seed: int = 0, density: float = 0.4) -> NeuronSelection:
    generator = torch.Generator().manual_seed(seed)
    return NeuronSelection(torch.rand(2, 3, 16, generator=generator) < density, ("en", "de"), SITES)


def test_a_selection_of_neurons_alone_is_stored_as_it_always_was(tmp_path: Path):
    path = tmp_path / "x.json"
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 0, 2] = True
    NeuronSelection(mask, ("en", "de")).to_json(path)
    assert path.read_text() == (
        '{\n "format": "polyneuron NeuronSelection 1",\n "languages": ["en", "de"],\n'
        ' "n_layers": 2,\n "n_units": 3,\n "provenance": {},\n "neurons": {\n'
        '  "en": {\n   "0": [1, 2]\n  },\n  "de": {}\n }\n}\n'
    )
    assert NeuronSelection.from_json(path).sites == (("post", 3),)


def test_units_of_several_sites_come_back_from_json_by_site(tmp_path: Path):
    path = tmp_path / "x.json"
    selection = over_sites()
    selection.to_json(path)
    assert NeuronSelection.from_json(path) == selection
    stored = json.loads(path.read_text())
    assert stored["sites"] == [["q", 4], ["pre", 6], ["post", 6]]
    first = selection["en"][0].tolist()
    starts = {"q": (0, 4), "pre": (4, 10), "post": (10, 16)}
    assert stored["neurons"]["en"]["0"] == {
        site: [unit - start for unit in range(start, stop) if first[unit]]
        for site, (start, stop) in starts.items()
        if any(first[start:stop])
    }
    for wrong in ({"q": [4]}, {"k": [0]}, {"pre": [-1]}):
        stored["neurons"]["en"]["0"] = wrong
        path.write_text(json.dumps(stored))
        with pytest.raises(ValueError, match=r"that can be read .* are not units of"):
            NeuronSelection.from_json(path)


def test_sites_fill_the_axis_and_are_named_once():
    mask = torch.zeros(1, 2, 10, dtype=torch.bool)
    for sites in ((("q", 4), ("pre", 5)), (("q", 5), ("q", 5)), (("gate", 10),)):
        with pytest.raises(ValueError, match="the mask has 10 units per layer"):
            NeuronSelection(mask, ("en",), sites)


def test_the_units_of_each_site_lie_one_after_the_other():
    selection = over_sites()
    units = selection.units("de")
    assert {site: each.shape for site, each in units.items()} == {
        "q": (3, 4),
        "pre": (3, 6),
        "post": (3, 6),
    }
    assert torch.equal(torch.cat(list(units.values()), dim=1), selection["de"])
    alone = some_selection(seed=1)
    assert alone.neurons_only
    assert not selection.neurons_only
    assert torch.equal(alone.units("zh")["post"], alone["zh"])


def test_the_neurons_of_a_selection_are_those_chosen_at_any_of_their_places(tmp_path: Path):
    selection = over_sites()
    neurons = selection.neurons()
    assert neurons.neurons_only
    for row, layer, neuron in np.ndindex(2, 3, 6):
        chosen = selection.mask[row, layer]
        assert neurons.mask[row, layer, neuron] == (chosen[4 + neuron] | chosen[10 + neuron])
    assert some_selection(seed=1).neurons() == some_selection(seed=1)
    attention = NeuronSelection(selection.mask[..., :4], ("en", "de"), (("q", 4),))
    with pytest.raises(ValueError, match="has units of q, but no neurons of the MLP"):
        attention.neurons()
    for refused in (attention, selection):
        with pytest.raises(ValueError, match="the published format holds neurons of the MLP alone"):
            refused.to_lape_pth(tmp_path / "x.pth")
    gates = NeuronSelection(selection.mask[..., 4:10], ("en", "de"), (("pre", 6),))
    gates.to_lape_pth(tmp_path / "x.pth")
    again = NeuronSelection.from_lape_pth(tmp_path / "x.pth", ("en", "de"), 6)
    assert torch.equal(again.mask, gates.mask)


def test_the_algebra_keeps_sites_and_refuses_others():
    a, b = over_sites(0), over_sites(1)
    for each in (a & b, a | b, a - b, ~a, a.languages_only(("de",)), a.random_like(seeded(0))):
        assert each.sites == SITES
    other = NeuronSelection(a.mask, a.languages, (("q", 4), ("post", 6), ("pre", 6)))
    assert other != a
    with pytest.raises(ValueError, match=r"One selection has units of .* the other of"):
        a & other


def test_a_random_control_has_as_many_units_at_every_site():
    selection = over_sites()
    for control in (selection.random_like(seeded(0)), selection.random_like(seeded(1))):
        assert control != selection
        for code in selection.languages:
            pairs = zip(selection.units(code).values(), control.units(code).values(), strict=True)
            for mine, drawn in pairs:
                assert mine.sum(dim=1).tolist() == drawn.sum(dim=1).tolist()
    barred = selection.union()
    sparse = over_sites(density=0.15)
    clear = sparse.random_like(seeded(0), exclude=sparse.union())
    assert not (clear.union() & sparse.union()).any()
    barred[:, :4] = True
    with pytest.raises(ValueError, match="neurons in layer 0 at q, but only 0 of 4 are left"):
        selection.random_like(seeded(0), exclude=barred)


def test_the_random_control_of_neurons_alone_is_drawn_as_it_always_was():
    """Older results name their controls by a hash of the masks."""
    selection, generator = some_selection(seed=3), seeded(4)
    drawn = []
    for masks in selection.mask:
        noise = torch.rand(3, 50, generator=generator, dtype=torch.float64).tolist()
        sizes = masks.sum(dim=1).tolist()
        ids = [sorted(range(50), key=lambda unit, row=row: row[unit]) for row in noise]
        drawn.append([set(each[:size]) for each, size in zip(ids, sizes, strict=True)])
    control = selection.random_like(seeded(4))
    found = [[set(row.nonzero().flatten().tolist()) for row in masks] for masks in control.mask]
    assert found == drawn


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    return load(tiny_models.build("qwen2", tmp_path_factory.mktemp("model")))


def test_every_site_must_be_one_of_the_model(model: NeuronModel):
    def of(*sites: tuple[str, int]) -> NeuronSelection:
        mask = torch.zeros(1, 3, sum(width for _, width in sites), dtype=torch.bool)
        return NeuronSelection(mask, ("de",), sites)

    of(("pre", 160), ("mlp_out", 64)).check_model(model)
    with pytest.raises(ValueError, match=r"of 63 units at mlp_out, but .* has 3 of 64"):
        of(("pre", 160), ("mlp_out", 63)).check_model(model)
    with pytest.raises(ValueError, match='Load it with attention="hooked"'):
        of(("pre", 160), ("q", 64)).check_model(model)


def test_the_units_of_a_language_can_be_handed_to_an_intervention(model: NeuronModel):
    mask = torch.zeros(2, 3, 224, dtype=torch.bool)
    mask[1, 1, 5] = mask[1, 1, 160 + 9] = True
    selection = NeuronSelection(mask, ("en", "de"), (("pre", 160), ("mlp_out", 64)))
    seen = {}

    def keep(kind: str):
        return model.site(1, kind), lambda values, hook: seen.update({kind: values.clone()})

    ids = torch.arange(5, 15)[None]
    with model.hooks([keep("pre"), keep("mlp_out")]):
        model.body(ids)
        before = dict(seen)
    with (
        intervene(model, selection.units("de"), deactivate),
        model.hooks([keep("pre"), keep("mlp_out")]),
    ):
        model.body(ids)
    for kind, unit in (("pre", 5), ("mlp_out", 9)):
        assert (before[kind][..., unit] != 0).all()
        assert (seen[kind][..., unit] == 0).all()
    others = torch.arange(160) != 5
    assert torch.equal(seen["pre"][..., others], before["pre"][..., others])


# By precision and by mean values


def precision_of(score: Tensor, sites: tuple[tuple[str, int], ...]) -> Precision:
    return Precision(
        average_precision=score,
        roc_area=score.clone(),
        percentiles=score[None].float(),
        percents=(50.0,),
        sentences=torch.tensor([5, 5]),
        languages=("en", "de"),
        sites=sites,
    )


@pytest.mark.parametrize("n", [2, 8, 30, 96])
def test_the_best_and_the_worst_detectors_of_all_layers_and_sites_are_selected(n: int):
    """In plain Python; coarse scores, so that ties happen within and across layers."""
    generator = torch.Generator().manual_seed(n)
    score = torch.randint(0, 12, (2, 3, 32), generator=generator).double() / 12
    sites = (("pre", 20), ("mlp_out", 12))
    both, top, bottom = (
        select_by_precision(precision_of(score, sites), n, which)
        for which in ("both", "top", "bottom")
    )
    assert both.sites == sites
    assert both == (top | bottom)
    assert not (top & bottom).mask.any()
    for row, code in enumerate(("en", "de")):
        places = [(layer, unit) for layer in range(3) for unit in range(32)]
        best = sorted(places, key=lambda p, row=row: (-score[row][p], *p))[: n // 2]
        rest = [place for place in places if place not in best]
        worst = sorted(rest, key=lambda p, row=row: (score[row][p], *p))[: n // 2]
        for selection, expected in ((top, best), (bottom, worst)):
            found = {tuple(place) for place in selection[code].nonzero().tolist()}
            assert found == set(expected)


def test_by_mean_values_a_neuron_that_is_large_for_one_language_is_found_and_no_decoy():
    sums = torch.full((4, 3, 4, 100), 5.0, dtype=torch.float64)
    sums[0, :, 2, 7] = torch.tensor([-1.0, 90.0, 0.0])  # large for the second language alone
    sums[0, :, 1, 3] = torch.tensor([95.0, 95.0, 95.0])  # a decoy: larger, and for all alike
    sums[0, :, 0, 9] = torch.tensor([1.0, -5.0, -5.0])  # a decoy: for one alone, and small
    sums[2, :, 3, 8] = torch.tensor([0.0, 0.0, 99.0])  # a decoy: its output and not its gate
    moments = ActivationMoments(
        sums=sums, tokens=torch.tensor([10, 10, 10]), languages=("en", "fr", "zh")
    )
    assert select_by_value_entropy(moments, fraction=1 / 400).triples() == [(1, 2, 7)]
    mean = sums[0].clamp_min(0) / 10
    expected = select_from_rate(mean, ("en", "fr", "zh"), fraction=1 / 400)
    assert select_by_value_entropy(moments, fraction=1 / 400) == expected

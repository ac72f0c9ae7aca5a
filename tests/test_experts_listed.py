"""Lists of neurons of a mixture of experts: each is named by layer, expert and neuron."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from interp.counting.expert_tokens import ExpertTokens
from interp.counting.stats import ActivationMoments, FiringStats
from interp.interventions.bake_card import facts_of, read_edit
from interp.interventions.edits import add, deactivate
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.models.units import UnitLayout
from interp.results import artifacts
from interp.scores.methods import METHODS
from interp.selections.change_file import read_changes
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select, select_by_entropy, select_by_value_entropy
from interp.selections.two_models import rate_change
from tests import tiny_models

LAYOUT = UnitLayout.of([[8, 2, 8], [0, 3, 8]])
"""A unit of layer 1 is in another expert than the unit with the same index of layer 0."""

OF = {"en": [(0, None, 3), (0, 1, 5), (1, 2, 7)], "de": [(1, 0, 0)], "fr": []}
"""Units 3 and 21 of layer 0, and 23 and 0 of layer 1."""


@pytest.fixture
def chosen() -> NeuronSelection:
    return NeuronSelection.from_addresses(OF, LAYOUT)


@pytest.fixture
def stats() -> FiringStats:
    """Expert 2 of layer 1 saw too little of French."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.full((2, 3), 1000)
    routed = torch.full((2, 3, 2, 3), 300)
    routed[:, :, 0, 2], routed[:, 2, 1, 2] = 0, 20
    experts = ExpertTokens(LAYOUT, routed, tokens)
    seen = LAYOUT.spread(tokens, routed)
    shares = torch.rand(3, 2, LAYOUT.d_mlp, generator=generator, dtype=torch.float64)
    return FiringStats((shares * seen).long(), tokens, ("en", "de", "fr"), experts)


def test_addresses_are_those_of_the_layout(chosen: NeuronSelection) -> None:
    assert chosen.mask.nonzero().tolist() == [[0, 0, 3], [0, 0, 21], [0, 1, 23], [1, 1, 0]]
    for code, expected in OF.items():
        assert [tuple(address) for address in chosen.addresses(code)] == expected
    every = torch.ones_like(LAYOUT.exists)
    for layer, unit in every.nonzero().tolist():
        expert, neuron = LAYOUT.located(torch.tensor([layer]), torch.tensor([unit]))
        address = LAYOUT.address(layer, unit)
        assert (expert.item(), neuron.item()) == (
            -1 if address.expert is None else address.expert,
            address.neuron,
        )
        assert LAYOUT.mask([address]).nonzero().tolist() == [[layer, unit]]
    dense = NeuronSelection(chosen.mask, chosen.languages)
    assert [tuple(address) for address in dense.addresses("de")] == [(1, None, 0)]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ((1, 2), r"\(1, 2\) is not the \(layer, expert, neuron\)"),
        (("1", 0, 0), "is not the"),
        ((1, "0", 0), "is not the"),
        ((1, 0, None), "is not the"),
        ((1, 0, 1.0), "is not the"),
        ((1, 0, True), "is not the"),
        ((2, 0, 0), "There is no layer 2: layers are 0 to 1"),
        ((-1, 0, 0), "There is no layer -1"),
        ((1, 3, 0), "There is no layer 1, expert 3, neuron 0"),
        ((0, 0, 8), "There is no layer 0, expert 0, neuron 8"),
        ((1, None, 0), "There is no layer 1, neuron 0: that layer has 0 dense neurons"),
        ((0, -1, 0), "There is no layer 0, expert -1"),
    ],
)
def test_what_is_no_address_is_refused(address: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuronSelection.from_addresses({"en": [address]}, LAYOUT)


class TestFile:
    def test_neurons_are_listed_by_expert_and_come_back(
        self, chosen: NeuronSelection, tmp_path: Path
    ) -> None:
        path = tmp_path / "neurons.json"
        pool = LAYOUT.exists.clone()
        pool[0, 8:16] = False  # expert 0 of layer 0
        pool[1, 10:12] = False  # neurons 2 and 3 of expert 1
        some = replace(chosen, pool=pool)
        some.to_json(path, artifacts.provenance())
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert stored["units"] == [[8, 2, 8], [0, 3, 8]]
        assert stored["neurons"] == {
            "en": {"0": [[None, 3], [1, 5]], "1": [[2, 7]]},
            "de": {"1": [[0, 0]]},
            "fr": {},
        }
        assert stored["pool"] == [
            [[None, 0, 8], [1, 0, 8]],
            [[0, 0, 8], [1, 0, 2], [1, 4, 8], [2, 0, 8]],
        ]
        back = NeuronSelection.from_json(path)
        assert back == some
        assert back.layout == LAYOUT
        assert back.pool is not None
        assert back.pool.equal(pool)

    @pytest.mark.parametrize(
        ("listed", "message"),
        [
            ([3], r"3 is not the \(expert, neuron\)"),
            ([[None, 3, 1]], "is not the"),
            ([[2, 0]], "There is no layer 0, expert 2, neuron 0"),
        ],
    )
    def test_other_lists_are_refused(
        self, chosen: NeuronSelection, tmp_path: Path, listed: Any, message: str
    ) -> None:
        path = tmp_path / "neurons.json"
        chosen.to_json(path)
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["neurons"]["en"]["0"] = listed
        path.write_text(json.dumps(stored))
        with pytest.raises(ValueError, match=message):
            NeuronSelection.from_json(path)

    def test_a_dense_file_says_nothing_of_experts(
        self, chosen: NeuronSelection, tmp_path: Path
    ) -> None:
        NeuronSelection(chosen.mask, chosen.languages).to_json(tmp_path / "neurons.json")
        assert (tmp_path / "neurons.json").read_text(encoding="utf-8") == (
            '{\n "format": "polyneuron NeuronSelection 1",\n "languages": ["en", "de", "fr"],\n'
            ' "n_layers": 2,\n "n_units": 24,\n "provenance": {},\n "neurons": {\n  "en": {\n'
            '   "0": [3, 21],\n   "1": [23]\n  },\n  "de": {\n   "1": [0]\n  },\n  "fr": {}\n'
            " }\n}\n"
        )

    def test_neurons_that_a_change_lists(self, chosen: NeuronSelection, tmp_path: Path) -> None:
        path = tmp_path / "change.json"

        def read(neurons: Any) -> torch.Tensor:
            path.write_text(json.dumps([{"neurons": neurons, "edit": "deactivate"}]))
            (change,) = read_changes(path, chosen)
            return change.masks["post"]

        assert read({"0": [[None, 3], [1, 5]], "1": [[2, 7]]}).equal(chosen["en"])
        with pytest.raises(ValueError, match=r"21 is not the \(expert, neuron\)"):
            read({"0": [21]})
        with pytest.raises(ValueError, match="There is no layer 2"):
            read({"2": [[0, 0]]})
        with pytest.raises(ValueError, match=r'such as \{"3": \[\[12, 17\], \[null, 4\]\]\}'):
            read([[0, 1, 5]])


class TestMadeFromCounts:
    @pytest.mark.parametrize(
        "method", [name for name, method in METHODS.items() if method.needs is None]
    )
    def test_every_method_says_of_which_experts_its_neurons_are(
        self, stats: FiringStats, method: str
    ) -> None:
        size: Any = {"n": 3} if "n" in METHODS[method].options else {}
        size = {"fraction": 0.1} if method == "lape" else size
        found = select(stats, method, **size)
        assert found.layout == LAYOUT
        everyone = ["en", "de", "fr"]
        listed = [tuple(address) for code in everyone for address in found.addresses(code)]
        slow = [
            tuple(LAYOUT.address(layer, unit)) for _, layer, unit in found.mask.nonzero().tolist()
        ]
        assert listed == slow != []

    def test_by_values(self, stats: FiringStats) -> None:
        assert stats.experts is not None
        seen = stats.experts.total
        sums = torch.rand(4, *seen.shape, dtype=torch.float64) * seen
        moments = ActivationMoments(
            sums=sums,
            tokens=stats.tokens.sum(0),
            languages=stats.languages,
            seen=seen,
            units=LAYOUT.layers,
        )
        assert select_by_value_entropy(moments, fraction=0.1).layout == LAYOUT

    def test_controls_are_drawn_among_neurons_that_exist(self, chosen: NeuronSelection) -> None:
        narrow = UnitLayout.of([[4, 0, 0], [0, 3, 8]])
        some = NeuronSelection.from_addresses({"en": [(0, None, 0), (0, None, 1)]}, narrow)
        for seed in range(20):
            drawn = some.random_like(torch.Generator().manual_seed(seed))
            assert drawn.layout == narrow
            assert drawn["en"][0, 4:].sum() == 0
        assert (~some).mask.sum() == 4 + 24 - 2

    def test_rates_in_two_models(self, stats: FiringStats) -> None:
        selection = select_by_entropy(stats, fraction=0.1)
        table = rate_change(stats, stats).to_frame({"A": selection})
        assert list(table.columns[:4]) == ["language", "layer", "expert", "neuron"]
        seen = 0
        for row in table.to_dict("records"):
            expert = None if pd.isna(row["expert"]) else row["expert"]
            unit = LAYOUT.unit(row["layer"], expert, row["neuron"])
            code = row["language"]
            index = stats.languages.index(code)
            assert row["before"] == stats.rate[index, row["layer"], unit]
            assert row["in_A"] == selection[code][row["layer"], unit]
            seen += 1
        assert seen == 3 * int(stats.seen.sum()) < 3 * int(LAYOUT.exists.sum())
        dense = FiringStats(stats.fired, stats.tokens, stats.languages)
        assert "expert" not in rate_change(dense, dense).to_frame()


def test_neurons_of_other_experts_are_refused(chosen: NeuronSelection) -> None:
    other = UnitLayout.of([[0, 3, 8], [8, 2, 8]])
    elsewhere = NeuronSelection.from_addresses({"en": [], "de": [], "fr": []}, other)
    assert elsewhere.mask.shape == chosen.mask.shape
    with pytest.raises(ValueError, match="mixtures with different experts"):
        _ = chosen & elsewhere
    assert elsewhere != replace(elsewhere, layout=LAYOUT, pool=None)
    with pytest.raises(ValueError, match="The layout is of 2 layers of 24 neurons"):
        NeuronSelection(chosen.mask[..., 1:], chosen.languages, layout=LAYOUT)


def test_the_published_format_has_no_place_for_experts(
    chosen: NeuronSelection, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no place for experts: use the JSON file"):
        chosen.to_lape_pth(tmp_path / "mask.pth")
    assert not list(tmp_path.iterdir())
    dense = UnitLayout.of([[8, 0, 0], [8, 0, 0]])
    plain = NeuronSelection.from_addresses({"en": [(1, None, 3)]}, dense)
    plain.to_lape_pth(tmp_path / "mask.pth")
    again = NeuronSelection.from_lape_pth(tmp_path / "mask.pth", ("en",), 8)
    assert again.mask.equal(plain.mask)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_models.build("deepseek_v3", tmp_path_factory.mktemp("model")))


def test_a_selection_knows_its_mixture(model: MixtureModel) -> None:
    there = NeuronSelection.from_addresses({"en": [(1, 3, 5)]}, model.layout)
    there.check_model(model)
    sizes = model.layout.sizes
    swapped = UnitLayout.of([sizes[1], sizes[0], sizes[2]])
    with pytest.raises(ValueError, match="other experts than those of"):
        NeuronSelection.from_addresses({"en": []}, swapped).check_model(model)


def test_the_facts_of_a_baked_mixture_list_addresses(model: MixtureModel, tmp_path: Path) -> None:
    mask = model.layout.mask([(0, None, 9), (1, None, 4), (1, 3, 5)])
    stored = facts_of(model, {"post": mask, "resid_post": mask[:, : model.d_model]}, deactivate)
    assert stored["units"]["post"]["by layer"] == {0: [[None, 9]], 1: [[None, 4], [3, 5]]}
    assert stored["units"]["post"]["units"] == model.layout.sizes
    assert stored["units"]["resid_post"]["by layer"] == {0: [9], 1: [4]}
    (tmp_path / "interp_bake.json").write_text(json.dumps(stored), encoding="utf-8")
    units, _ = read_edit(tmp_path)
    assert units["post"].equal(mask)
    assert units["resid_post"].equal(mask[:, : model.d_model])


def test_an_edit_without_a_value_names_the_neuron(model: MixtureModel) -> None:
    moments = ActivationMoments(
        sums=torch.zeros(4, 1, model.n_layers, model.d_mlp, dtype=torch.float64),
        tokens=torch.tensor([200]),
        languages=("en",),
        seen=torch.zeros(1, model.n_layers, model.d_mlp, dtype=torch.int64),
        units=model.layout.layers,
    )
    there = NeuronSelection.from_addresses({"en": [(1, 3, 5)]}, model.layout)
    with pytest.raises(ValueError, match="the value at post of layer 1, expert 3, neuron 5 is nan"):
        there.change("en", add(moments, "en", site="post")).check(model)

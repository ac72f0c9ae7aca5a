"""Mixtures of experts, on eight architectures, against plain loops: neurons and their edits."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.counting.stats import FiringStats
from interp.interventions.bake import bake
from interp.interventions.edits import deactivate, intervene, override
from interp.models import expert_loops, sites
from interp.models.experts import Rows
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.models.units import Address, LayerUnits, UnitLayout
from interp.selections.neuron_selection import NeuronSelection
from tests import tiny_models
from tests.expert_loops import by_loops, half_of, name_of, recorded, routed_blocks, slowly_off
from tests.tiny_models import D_EXPERT, D_MLP, MIXTURES, N_EXPERTS, N_LAYERS

LAYOUTS = {
    "deepseek_v3": [[D_MLP, 0, 0], *[[2 * D_EXPERT, N_EXPERTS, D_EXPERT]] * 2],
    "qwen3_next": [[40, N_EXPERTS, D_EXPERT]] * 3,
    "llama4_text": [[D_MLP, 0, 0], *[[D_EXPERT, N_EXPERTS, D_EXPERT]] * 2],
    "jamba": [[D_EXPERT, 0, 0], [0, N_EXPERTS, D_EXPERT], [D_EXPERT, 0, 0]],
}
"""Dense neurons, experts, and neurons of each; all others are routed experts alone."""

LOOPS = ("llama4_text", "jetmoe")
"""Mixtures that compute their experts by loops of their own."""


def test_the_blocks_that_are_recognized_are_those_whose_loop_is_known():
    assert set(expert_loops.LOOPS) == sites.WITH_LOOP


def changed_to_hook(mixture: MixtureModel) -> tuple[str | None, set[nn.Module]]:
    """What a block with hooks may change: how experts are computed, and modules' own `forward`."""
    modules = {module for module in mixture.bridge.modules() if "forward" in vars(module)}
    return mixture.bridge.original_model.config._experts_implementation, modules


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_models.build(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(4, 200, (3, 10), generator=torch.Generator().manual_seed(1))


class TestAddresses:
    LAYOUT = UnitLayout((LayerUnits(5, 0, 0), LayerUnits(2, 3, 4)))

    def test_units_and_addresses_are_inverse(self) -> None:
        for layer, units in enumerate(self.LAYOUT.layers):
            places = [self.LAYOUT.address(layer, unit) for unit in range(units.width)]
            assert [self.LAYOUT.unit(*place) for place in places] == list(range(units.width))
            assert len(set(places)) == units.width
        assert self.LAYOUT.address(1, 2 + 2 * 4 + 3) == Address(1, 2, 3)
        assert str(self.LAYOUT.address(1, 1)) == "layer 1, neuron 1"

    def test_what_does_not_exist_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has 5 neurons, so none is 5"):
            self.LAYOUT.address(0, 5)
        for expert, neuron in ((3, 0), (0, 4), (None, 2)):
            with pytest.raises(ValueError, match="There is no layer 1"):
                self.LAYOUT.unit(1, expert, neuron)
        with pytest.raises(ValueError, match="three counts"):
            UnitLayout.of([])

    def test_tokens_spread_to_the_neurons_that_saw_them(self) -> None:
        tokens, experts = torch.tensor(9), torch.tensor([[0, 0, 0], [1, 6, 2]])
        spread = self.LAYOUT.spread(tokens, experts)
        assert spread[0].tolist() == [9] * 5 + [0] * 9
        assert spread[1].tolist() == [9, 9, 1, 1, 1, 1, 6, 6, 6, 6, 2, 2, 2, 2]
        assert self.LAYOUT.exists.equal(spread > 0)
        chosen = torch.zeros(2, 3, dtype=torch.bool)
        chosen[1, 1] = True
        assert self.LAYOUT.units_of(chosen).nonzero()[:, 1].tolist() == [6, 7, 8, 9]


class TestSites:
    def test_the_layout_is_that_of_the_config(self, mixture: MixtureModel) -> None:
        expected = LAYOUTS.get(name_of(mixture), [[0, N_EXPERTS, D_EXPERT]] * N_LAYERS)
        assert mixture.layout.sizes == expected
        assert mixture.d_mlp == max(dense + n * width for dense, n, width in expected)
        assert mixture.gated

    def test_gates_are_those_of_loops_over_tokens_and_experts(
        self, mixture: MixtureModel, ids: Tensor
    ) -> None:
        with by_loops(mixture, {}) as slow:
            mixture.body(ids)
        expected = {(layer, token, expert): gate for layer, token, expert, gate, _ in slow}
        assert len(expected) == len(slow) == len(routed_blocks(mixture)) * ids.numel() * 2
        for rows, layer, values in recorded(mixture, ids, "pre"):
            if rows.expert is None:
                continue
            assert (rows.expert.diff() >= 0).all()
            assert rows.shape == tuple(ids.shape)
            pairs = zip(rows.token.tolist(), rows.expert.tolist(), values, strict=True)
            for token, expert, gate in pairs:
                torch.testing.assert_close(gate, expected.pop((layer, token, expert)))
        assert not expected

    def test_dense_neurons_see_every_token(self, mixture: MixtureModel, ids: Tensor) -> None:
        inputs: dict[nn.Module, Tensor] = {}
        mlps = {
            layer: [module for module in block.modules() if type(module).__name__.endswith("MLP")]
            for layer, block in enumerate(mixture.bridge.blocks)
        }
        handles = [
            mlp.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]}))
            for found in mlps.values()
            for mlp in found
            if hasattr(mlp, "gate_proj")
        ]
        pre = recorded(mixture, ids, "pre")
        post = recorded(mixture, ids, "post")
        for handle in handles:
            handle.remove()
        dense = [
            (layer, gate, out)
            for (rows, layer, gate), (_, _, out) in zip(pre, post, strict=True)
            if rows.expert is None
        ]
        assert len(dense) == sum(size[0] > 0 for size in mixture.layout.sizes)
        for layer, gate, output in dense:
            (mlp,) = [mlp for mlp in mlps[layer] if hasattr(mlp, "gate_proj")]
            state = inputs[mlp].reshape(-1, inputs[mlp].shape[-1])
            expected = state @ mlp.gate_proj.weight.T
            torch.testing.assert_close(gate, expected)
            linear = state @ mlp.up_proj.weight.T
            torch.testing.assert_close(output, nn.functional.silu(expected) * linear)

    def test_hooks_that_look_change_nothing(self, mixture: MixtureModel, ids: Tensor) -> None:
        before = mixture.logits(ids)
        looks = [(mixture.rows_site(n, "post"), lambda values, hook: None) for n in range(3)]
        with mixture.hooks(looks):
            torch.testing.assert_close(mixture.logits(ids), before)
        config = mixture.bridge.original_model.config
        first = config._experts_implementation
        assert first == "grouped_mm" or name_of(mixture) in LOOPS
        for implementation in ("eager", "grouped_mm", "batched_mm"):
            config._experts_implementation = implementation
            torch.testing.assert_close(mixture.logits(ids), before)
            config._experts_implementation = first

    @pytest.mark.parametrize("kind", ["pre", "pre_linear", "post"])
    def test_values_given_back_are_used(
        self, mixture: MixtureModel, ids: Tensor, kind: Any
    ) -> None:
        """Half of a site's values, kept and given back; a copy changes nothing, doubling does."""
        before = mixture.logits(ids)
        for layer in range(mixture.n_layers):
            site = mixture.rows_site(layer, kind)
            with mixture.hooks([(site, lambda values, hook: values.clone())]):
                torch.testing.assert_close(mixture.logits(ids), before)
            with mixture.hooks([(site, lambda values, hook: 2 * values)]):
                assert (mixture.logits(ids) - before).abs().max() > 1e-3

    def test_a_block_that_fails_leaves_nothing(self, mixture: MixtureModel, ids: Tensor) -> None:
        before, state = mixture.logits(ids), changed_to_hook(mixture)

        def fail(values: Tensor, hook: Rows) -> None:
            assert changed_to_hook(mixture) != state
            raise RuntimeError("stop")

        with (
            pytest.raises(RuntimeError, match="stop"),
            mixture.hooks([(mixture.rows_site(1, "post"), fail)]),
        ):
            mixture.logits(ids)
        assert mixture.logits(ids).equal(before)
        assert changed_to_hook(mixture) == state

    def test_the_inputs_of_blocks_are_never_called_neurons(
        self, mixture: MixtureModel, ids: Tensor
    ) -> None:
        _, cache = mixture.run_with_cache(ids)
        names = {mixture.rows_site(n, kind) for n in range(3) for kind in ("pre", "post")}
        assert not names & set(cache)
        assert "blocks.0.hook_resid_pre" in cache
        _, traps = mixture.bridge.run_with_cache(ids)
        with pytest.raises(ValueError, match="calls the input of an MLP hook_pre"):
            FiringStats.from_caches({"en": [traps]})
        with (
            pytest.raises(ValueError, match="no backward hooks"),
            mixture.hooks(bwd_hooks=[(mixture.rows_site(0, "post"), lambda *_: None)]),
        ):
            pass


class TestEdits:
    def test_neurons_are_off_as_in_loops(self, mixture: MixtureModel, ids: Tensor) -> None:
        mask = half_of(mixture)
        before = mixture.logits(ids)
        with intervene(mixture, mask, deactivate):
            edited = mixture.logits(ids)
        with slowly_off(mixture, mask):
            expected = mixture.logits(ids)
        assert (expected - before).abs().max() > 0.1
        torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mixture.logits(ids), before)

    def test_generation_sees_them(self, mixture: MixtureModel, ids: Tensor) -> None:
        mask = half_of(mixture)
        attended = torch.ones_like(ids)
        attended[1, :4] = 0
        before = mixture.continuations(ids, attended, max_new_tokens=6)
        with intervene(mixture, mask, deactivate):
            edited = mixture.continuations(ids, attended, max_new_tokens=6)
        with slowly_off(mixture, mask):
            expected = mixture.continuations(ids, attended, max_new_tokens=6)
        assert edited.equal(expected)
        assert not edited.equal(before)

    def test_constants_and_factors_are_written_at_every_site(
        self, mixture: MixtureModel, ids: Tensor
    ) -> None:
        mask = half_of(mixture)
        values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
        for site in ("pre", "pre_linear", "post"):
            clean = recorded(mixture, ids, site)
            with intervene(mixture, mask, override(values, site)):
                written = recorded(mixture, ids, site)
            for (rows, layer, new), (_, _, old) in zip(written[:1], clean[:1], strict=True):
                width = new.shape[1]
                chosen = rows.chosen(mask[layer], width).expand_as(new)
                assert new[chosen].equal(rows.chosen(values[layer], width).expand_as(new)[chosen])
                assert new[~chosen].equal(old[~chosen])

    def test_only_the_chosen_tokens_are_edited(self, mixture: MixtureModel, ids: Tensor) -> None:
        mask = half_of(mixture)
        with intervene(mixture, mask, deactivate, tokens="last"):
            seen = recorded(mixture, ids, "post")
        last = ids.shape[1] - 1
        for rows, layer, values in seen:
            chosen = rows.chosen(mask[layer], values.shape[1]).expand_as(values)
            is_last = rows.token % ids.shape[1] == last
            assert not values[is_last][chosen[is_last]].any()
            assert values[~is_last][chosen[~is_last]].any()
        with intervene(mixture, mask, deactivate):
            everywhere = mixture.logits(ids)
        with intervene(mixture, mask, deactivate, tokens="last"):
            at_last = mixture.logits(ids)
        torch.testing.assert_close(at_last[:, :-1], mixture.logits(ids)[:, :-1])
        assert (at_last[:, -1] - everywhere[:, -1]).abs().max() > 1e-3

    def test_a_baked_checkpoint_holds_the_edit(
        self, mixture: MixtureModel, ids: Tensor, tmp_path: Path
    ) -> None:
        mask = half_of(mixture)
        bake(mixture, mask, deactivate, tmp_path / "baked")
        with intervene(mixture, mask, deactivate):
            expected = mixture.logits(ids)
        baked = load(tmp_path / "baked")
        torch.testing.assert_close(baked.logits(ids), expected, atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="cannot be written into weights"):
            bake(mixture, mask, override(torch.ones(mask.shape), "pre"), tmp_path / "other")


class TestExpertsOff:
    @pytest.mark.parametrize("site", ["routing", "rerouting"])
    def test_experts_are_off_as_in_loops(
        self, mixture: MixtureModel, ids: Tensor, site: Any
    ) -> None:
        """Two experts of four in every layer, so that some tokens lose one of their two experts,
        some both and some none."""
        off = torch.zeros(3, N_EXPERTS, dtype=torch.bool)
        off[:, [0, 3]] = True
        lost = Counter[int]()

        def reweigh(layer: int, chosen: Tensor, weights: Tensor) -> Tensor:
            new = weights.clone()
            for token, experts in enumerate(chosen.tolist()):
                rest = [rank for rank, index in enumerate(experts) if not off[layer, index]]
                lost[len(experts) - len(rest)] += 1
                total, left = weights[token].sum(), weights[token][rest].sum()
                for rank in range(len(experts)):
                    scale = total / left if site == "rerouting" and rest else 1.0
                    new[token, rank] = weights[token, rank] * scale if rank in rest else 0.0
            return new

        before = mixture.logits(ids)
        with intervene(mixture, {site: off}, deactivate):
            edited = mixture.logits(ids)
        with by_loops(mixture, {}, reweigh):
            expected = mixture.logits(ids)
        assert lost[1] > 0
        # DeepSeek chooses within groups of two, of which one is off.
        assert name_of(mixture) == "deepseek_v3" or min(lost[0], lost[2]) > 0
        assert (expected - before).abs().max() > 0.1
        torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mixture.logits(ids), before)

    def test_an_expert_without_its_neurons_is_off_unless_it_has_a_bias(
        self, mixture: MixtureModel, ids: Tensor
    ) -> None:
        off = torch.zeros(3, N_EXPERTS, dtype=torch.bool)
        off[1, 2] = True
        with intervene(mixture, {"routing": off}, deactivate):
            without_expert = mixture.logits(ids)
        with intervene(mixture, mixture.layout.units_of(off), deactivate):
            without_neurons = mixture.logits(ids)
        same = torch.allclose(without_expert, without_neurons, atol=1e-5)
        assert same == (name_of(mixture) != "gpt_oss")

    def test_experts_are_units_of_a_selection(self, mixture: MixtureModel, ids: Tensor) -> None:
        mask = torch.zeros(1, 3, N_EXPERTS, dtype=torch.bool)
        mask[0, 1, 1] = True
        chosen = NeuronSelection(mask, ("de",), (("routing", N_EXPERTS),))
        chosen.check_model(mixture)
        under = chosen.change("de", deactivate)
        with mixture.hooks(under.hooks(mixture)):
            edited = mixture.logits(ids)
        with intervene(mixture, {"routing": mask[0]}, deactivate):
            assert mixture.logits(ids).equal(edited)

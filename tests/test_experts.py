"""Mixtures of experts, on eight architectures, against plain loops over tokens and experts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.models.experts import Rows
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.models.units import Address, LayerUnits, UnitLayout
from tests import tiny_models
from tests.tiny_models import D_EXPERT, D_MLP, MIXTURES, N_EXPERTS, N_LAYERS

LAYOUTS = {
    "deepseek_v3": [[D_MLP, 0, 0], *[[2 * D_EXPERT, N_EXPERTS, D_EXPERT]] * 2],
    "qwen3_next": [[40, N_EXPERTS, D_EXPERT]] * 3,
    "jamba": [[D_EXPERT, 0, 0], [0, N_EXPERTS, D_EXPERT], [D_EXPERT, 0, 0]],
}
"""Dense neurons, experts, and neurons of each; all others are routed experts alone."""


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_models.build(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(4, 200, (3, 10), generator=torch.Generator().manual_seed(1))


def name_of(model: MixtureModel) -> str:
    return model.bridge.original_model.config.model_type


# ---------------------------------------------------------------- the slow definition


def routed_blocks(model: MixtureModel) -> dict[int, nn.Module]:
    """The experts of each layer that has some, by their class names alone."""
    return {
        layer: module
        for layer, block in enumerate(model.bridge.blocks)
        for module in block.modules()
        if type(module).__name__.endswith("Experts")
    }


def gates_of(name: str, experts: Any, index: int, state: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and output of one expert's neurons on one token, written out."""
    if name == "gpt_oss":
        both = state @ experts.gate_up_proj[index] + experts.gate_up_proj_bias[index]
        gate, linear = both[::2], both[1::2]
        clamped, limit = gate.clamp(max=experts.limit), experts.limit
        activated = clamped * torch.sigmoid(experts.alpha * clamped)
        return gate, activated * (linear.clamp(-limit, limit) + 1)
    gate, linear = (experts.gate_up_proj[index] @ state).split(D_EXPERT)
    return gate, nn.functional.silu(gate) * linear


def written(name: str, experts: Any, index: int, output: Tensor) -> Tensor:
    if name == "gpt_oss":
        return output @ experts.down_proj[index] + experts.down_proj_bias[index]
    return experts.down_proj[index] @ output


Off = dict[tuple[int, int], Tensor]
"""Neurons switched off, by layer and expert."""


@contextmanager
def by_loops(model: MixtureModel, off: Off) -> Iterator[list[tuple[int, int, int, Tensor]]]:
    """Within the block, experts are computed token by token, expert by expert; it yields the gates
    with their layer, token and expert."""
    name, seen = name_of(model), []

    def loops(layer: int, experts: Any) -> Any:
        def forward(hidden: Tensor, chosen: Tensor, weights: Tensor, **_: Any) -> Tensor:
            total = torch.zeros_like(hidden)
            for token, state in enumerate(hidden):
                for index, weight in zip(chosen[token].tolist(), weights[token], strict=True):
                    gate, output = gates_of(name, experts, index, state)
                    seen.append((layer, token, index, gate))
                    output = output.masked_fill(off.get((layer, index), torch.tensor(False)), 0.0)
                    total[token] += weight * written(name, experts, index, output)
            return total

        return forward

    blocks = routed_blocks(model)
    for layer, experts in blocks.items():
        experts.forward = loops(layer, experts)
    try:
        yield seen
    finally:
        for experts in blocks.values():
            del experts.forward


def recorded(model: MixtureModel, ids: Tensor, kind: Any) -> list[tuple[Rows, int, Tensor]]:
    seen = []

    def hook_for(layer: int) -> Any:
        return lambda values, hook: seen.append((hook, layer, values.clone()))

    with model.hooks([(model.site(n, kind), hook_for(n)) for n in range(model.n_layers)]):
        model.body(ids)
    return seen


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
        expected = {(layer, token, expert): gate for layer, token, expert, gate in slow}
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
        looks = [(mixture.site(n, "post"), lambda values, hook: None) for n in range(3)]
        with mixture.hooks(looks):
            torch.testing.assert_close(mixture.logits(ids), before)
        config = mixture.bridge.original_model.config
        for implementation in ("eager", "grouped_mm", "batched_mm"):
            first = config._experts_implementation
            config._experts_implementation = implementation
            torch.testing.assert_close(mixture.logits(ids), before)
            config._experts_implementation = first
        assert config._experts_implementation == "grouped_mm"

    @pytest.mark.parametrize("kind", ["pre", "pre_linear", "post"])
    def test_values_given_back_are_used(
        self, mixture: MixtureModel, ids: Tensor, kind: Any
    ) -> None:
        """Half of a site's values, kept and given back; a copy changes nothing, doubling does."""
        before = mixture.logits(ids)
        for layer in range(mixture.n_layers):
            site = mixture.site(layer, kind)
            with mixture.hooks([(site, lambda values, hook: values.clone())]):
                torch.testing.assert_close(mixture.logits(ids), before)
            with mixture.hooks([(site, lambda values, hook: 2 * values)]):
                assert (mixture.logits(ids) - before).abs().max() > 1e-3

    def test_a_block_that_fails_leaves_nothing(self, mixture: MixtureModel, ids: Tensor) -> None:
        before = mixture.logits(ids)

        def fail(values: Tensor, hook: Rows) -> None:
            raise RuntimeError("stop")

        with (
            pytest.raises(RuntimeError, match="stop"),
            mixture.hooks([(mixture.site(1, "post"), fail)]),
        ):
            mixture.logits(ids)
        assert mixture.logits(ids).equal(before)
        assert mixture.bridge.original_model.config._experts_implementation == "grouped_mm"

    def test_the_inputs_of_blocks_are_never_called_neurons(
        self, mixture: MixtureModel, ids: Tensor
    ) -> None:
        _, cache = mixture.run_with_cache(ids)
        names = {mixture.site(n, kind) for n in range(3) for kind in ("pre", "post")}
        assert not names & set(cache)
        assert "blocks.0.hook_resid_pre" in cache
        with (
            pytest.raises(ValueError, match="no backward hooks"),
            mixture.hooks(bwd_hooks=[(mixture.site(0, "post"), lambda *_: None)]),
        ):
            pass

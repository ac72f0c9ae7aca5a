"""Mixtures of experts, on eight architectures, against plain loops over tokens and experts."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import reduce
from torch import Tensor, nn

from interp.counting.collect import collect
from interp.counting.expert_tokens import LEAST_TOKENS, ExpertTokens
from interp.counting.keep import Keep
from interp.counting.stats import FiringStats
from interp.evaluations.losses import losses_under
from interp.evaluations.perplexity import perplexity_matrix
from interp.inference.intervals import jackknife
from interp.interventions.bake import bake
from interp.interventions.edits import deactivate, intervene, override
from interp.models import experts as experts_module
from interp.models.doctor import doctor
from interp.models.experts import DensePart, RoutedPart, Rows
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.models.units import Address, LayerUnits, UnitLayout
from interp.scores.lape import busy_threshold, language_entropy
from interp.scores.methods import METHODS
from interp.scores.routing import Routing, routing_of
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select, select_by_entropy
from interp.text.corpora import Corpora
from interp.text.reading import read_corpora
from tests import tiny_models
from tests.campaigns import kills
from tests.tiny_models import D_EXPERT, D_MLP, MIXTURES, N_EXPERTS, N_LAYERS, Kinked

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
def by_loops(
    model: MixtureModel,
    off: Off,
    reweigh: Callable[[int, Tensor, Tensor], Tensor] = lambda layer, chosen, weights: weights,
) -> Iterator[list[tuple[int, int, int, Tensor]]]:
    """Within the block, experts are computed token by token, expert by expert; it yields the gates
    with their layer, token and expert."""
    name = name_of(model)
    seen: list[tuple[int, int, int, Tensor]] = []

    def loops(layer: int, experts: Any) -> Any:
        def forward(hidden: Tensor, chosen: Tensor, weights: Tensor, **_: Any) -> Tensor:
            total = torch.zeros_like(hidden)
            weights = reweigh(layer, chosen, weights)
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

    with model.hooks([(model.rows_site(n, kind), hook_for(n)) for n in range(model.n_layers)]):
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
        looks = [(mixture.rows_site(n, "post"), lambda values, hook: None) for n in range(3)]
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
            site = mixture.rows_site(layer, kind)
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
            mixture.hooks([(mixture.rows_site(1, "post"), fail)]),
        ):
            mixture.logits(ids)
        assert mixture.logits(ids).equal(before)
        assert mixture.bridge.original_model.config._experts_implementation == "grouped_mm"

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


# ---------------------------------------------------------------- counting


def counted_slowly(model: MixtureModel, corpora: Corpora) -> tuple[Any, Any]:
    """Firing and routed tokens of experts, by (shard, language, layer, expert)."""
    fired: Any = defaultdict(lambda: torch.zeros(D_EXPERT, dtype=torch.int64))
    routed: Any = Counter()
    for language, code in enumerate(corpora.languages):
        rows = corpora.rows[code]
        for row, (shard, length) in enumerate(zip(rows.shard.tolist(), rows.length, strict=True)):
            ids = rows.ids[row : row + 1, :length].long()
            with by_loops(model, {}) as slow:
                model.body(ids)
            for layer, token, expert, gate in slow:
                if int(ids[0, token]) not in corpora.special_ids:
                    fired[shard, language, layer, expert] += gate > 0
                    routed[shard, language, layer, expert] += 1
    return fired, routed


@pytest.fixture(scope="module")
def text(mixture: MixtureModel) -> Corpora:
    return read_corpora(
        kills.made_up(40),
        kills.LANGUAGES,
        mixture,
        block_length=16,
        n_shards=2,
        bos="block",
        hygiene="off",
        tokens=256,
    )


@pytest.fixture(scope="module")
def stats(mixture: MixtureModel, text: Corpora) -> FiringStats:
    return collect(mixture, text, progress=False).firing


class TestCounting:
    @pytest.mark.slow
    def test_counts_are_those_of_loops_over_tokens_and_experts(
        self, mixture: MixtureModel, text: Corpora, stats: FiringStats
    ) -> None:
        fired, routed = counted_slowly(mixture, text)
        assert stats.experts is not None
        assert stats.experts.routed.sum() == sum(routed.values()) > 0
        for (shard, language, layer, expert), n in routed.items():
            assert stats.experts.routed[shard, language, layer, expert] == n
            first = mixture.layout.unit(layer, expert, 0)
            counts = stats.fired[shard, language, layer, first : first + D_EXPERT]
            assert counts.equal(fired[shard, language, layer, expert])
        routed_layers = [n for n, size in enumerate(mixture.layout.sizes) if size[1]]
        per_token = reduce(
            stats.experts.routed, "shard language layer expert -> shard language layer", "sum"
        )
        assert (per_token[..., routed_layers] == 2 * stats.tokens[..., None]).all()

    @pytest.mark.slow
    def test_dense_neurons_count_every_token(
        self, mixture: MixtureModel, text: Corpora, stats: FiringStats
    ) -> None:
        expected = torch.zeros_like(stats.fired)
        for language, code in enumerate(text.languages):
            rows = text.rows[code]
            for row, (shard, length) in enumerate(
                zip(rows.shard.tolist(), rows.length, strict=True)
            ):
                ids = rows.ids[row : row + 1, :length].long()
                real = ~torch.isin(ids[0], torch.tensor(text.special_ids))
                for seen, layer, gates in recorded(mixture, ids, "pre"):
                    if seen.expert is None:
                        expected[shard, language, layer, : gates.shape[1]] += (gates[real] > 0).sum(
                            0
                        )
        for layer, (dense, _, _) in enumerate(mixture.layout.sizes):
            assert stats.fired[:, :, layer, :dense].equal(expected[:, :, layer, :dense])
            assert not stats.fired[:, :, layer, mixture.layout.layers[layer].width :].any()

    def test_rates_divide_by_the_tokens_that_a_neuron_saw(
        self, mixture: MixtureModel, stats: FiringStats
    ) -> None:
        assert stats.experts is not None
        for layer, units in enumerate(mixture.layout.layers):
            for unit in range(0, units.width, 7):
                address = mixture.layout.address(layer, unit)
                seen = stats.tokens.sum(0)
                if address.expert is not None:
                    seen = stats.experts.routed[:, :, layer, address.expert].sum(0)
                fired = stats.fired[:, :, layer, unit].sum(0)
                assert bool(stats.seen[layer, unit]) == bool((seen >= LEAST_TOKENS).all())
                if stats.seen[layer, unit]:
                    assert stats.rate[:, layer, unit].equal(fired.double() / seen)
                else:
                    assert stats.rate[:, layer, unit].isnan().all()
        assert not stats.seen[~mixture.layout.exists].any()
        assert stats.seen.any()
        assert not stats.seen[mixture.layout.exists].all()

    def test_routing_has_the_counts_of_the_pass(self, stats: FiringStats, tmp_path: Path) -> None:
        routing = routing_of(stats)
        assert stats.experts is not None
        assert routing.chosen.equal(stats.experts.routed)
        routing.save(tmp_path / "routing.safetensors")
        assert Routing.load(tmp_path / "routing.safetensors").chosen.equal(routing.chosen)
        frame = routing.to_frame()
        assert sum(frame["tokens"].tolist()) == int(routing.chosen.sum())
        total = reduce(routing.share, "language layer expert -> language layer", "sum")
        known = ~routing.entropy.isnan()
        assert total[known].allclose(torch.ones_like(total)[known])

    def test_a_file_holds_them(self, stats: FiringStats, tmp_path: Path) -> None:
        stats.save(tmp_path / "firing.safetensors")
        again = FiringStats.load(tmp_path / "firing.safetensors")
        assert again.experts is not None
        assert stats.experts is not None
        assert again.fired.equal(stats.fired)
        assert again.rate.nan_to_num(-1).equal(stats.rate.nan_to_num(-1))
        assert again.experts.layout == stats.experts.layout


def half_of(mixture: MixtureModel, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(3, mixture.d_mlp, generator=generator) < 0.5) & mixture.layout.exists


@contextmanager
def slowly_off(mixture: MixtureModel, mask: Tensor) -> Iterator[None]:
    """By loops over tokens and experts, and zeros in the weights of dense neurons."""
    slow: Off = {}
    for layer, units in enumerate(mixture.layout.layers):
        for expert in range(units.n_experts):
            first = mixture.layout.unit(layer, expert, 0)
            slow[layer, expert] = mask[layer, first : first + D_EXPERT]
    kept = []
    for layer, block in enumerate(mixture.bridge.blocks):
        for mlp in block.modules():
            if {"up_proj", "down_proj"} <= mlp._modules.keys():
                weight = mlp.down_proj.weight
                kept.append((weight, weight.detach().clone()))
                weight.data[:, mask[layer, : weight.shape[1]]] = 0.0
    try:
        with by_loops(mixture, slow):
            yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)


# ---------------------------------------------------------------- from text to an effect


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


class TestRuns:
    @pytest.mark.slow
    def test_a_resumed_run_gives_the_same_bytes(
        self, mixture: MixtureModel, text: Corpora, tmp_path: Path
    ) -> None:
        """Read at once; in two parts in other batches of pieces; and with a piece lost."""
        name = "firing.safetensors"
        collect(mixture, text, tmp_path / "once", progress=False)
        whole = (tmp_path / "once" / name).read_bytes()
        for index in (2, 1):
            run = collect(mixture, text, tmp_path / "parts", part=(index, 2), progress=False)
        run.merge()
        pieces = sorted((tmp_path / "parts" / "pieces").iterdir())
        assert len(run.verify().done) == len(pieces) == 6
        assert (tmp_path / "parts" / name).read_bytes() == whole
        pieces[3].unlink()
        assert len(run.verify().missing) == 1
        collect(mixture, text, tmp_path / "parts", progress=False)
        assert (tmp_path / "parts" / name).read_bytes() == whole
        damaged = bytearray(pieces[0].read_bytes())
        damaged[-3] ^= 1
        pieces[0].write_bytes(damaged)
        assert len(run.verify().bad) == 1

    def test_what_is_not_counted_is_refused(self, mixture: MixtureModel, text: Corpora) -> None:
        with pytest.raises(ValueError, match="of which only firing is counted"):
            collect(mixture, text, keep=Keep(moments=True), progress=False)
        for call in (lambda: mixture.site(0, "post"), lambda: mixture.w_out(0)):
            with pytest.raises(ValueError, match="is a mixture of experts, for which"):
                call()

    @pytest.mark.slow
    def test_memory_that_runs_out_changes_no_count(
        self, mixture: MixtureModel, text: Corpora, stats: FiringStats
    ) -> None:
        """It runs out once per size, in the middle of a layer."""
        if not mixture.layout.layers[1].dense:
            pytest.skip("the layer has no neurons in two parts")
        body, refused = mixture.body, set()

        def body_that_fails(ids: Tensor, mask: Any = None) -> None:
            if len(ids) > 2 and ids.shape not in refused:
                refused.add(ids.shape)
                middle = mixture.rows_site(1, "post")

                def fail(values: Tensor, hook: Rows) -> None:
                    raise torch.OutOfMemoryError

                with mixture.hooks([(middle, fail)]):
                    body(ids, mask)
            body(ids, mask)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mixture, "body", body_that_fails)
            with pytest.warns(match="Out of memory"):
                counted = collect(mixture, text, progress=False).firing
        mixture.ran_out_at = None
        assert refused
        assert counted.fired.equal(stats.fired)
        assert counted.experts is not None
        assert stats.experts is not None
        assert counted.experts.routed.equal(stats.experts.routed)

    def test_neurons_are_found_and_switched_off_to_the_end(
        self, mixture: MixtureModel, text: Corpora, stats: FiringStats, tmp_path: Path
    ) -> None:
        found = select_by_entropy(stats, fraction=0.2, busy_quantile=0.5)
        assert int(found.union().sum()) == round(0.2 * int(stats.seen.sum()))
        assert not (found.mask & ~stats.seen).any()
        control = found.random_like(torch.Generator().manual_seed(0))
        assert not (control.mask & ~stats.seen).any()
        found.to_json(tmp_path / "neurons.json")
        again = NeuronSelection.from_json(tmp_path / "neurons.json")
        assert again == found
        assert again.pool is not None
        assert again.pool.equal(stats.seen)
        assert not (~again).mask[:, ~stats.seen].any()
        code = next(code for code, n in found.counts().items() if n)
        again, text = again.languages_only([code]), text.languages_only([code])
        matrix = perplexity_matrix(mixture, again, text, n_draws=1, progress=False)
        row = matrix.losses.interventions.index(code)
        read = matrix.losses.nats.sum(0)
        assert (read[row] - read[0]).abs().min() > 1e-3
        with slowly_off(mixture, found[code]):
            slow = losses_under(mixture, text, {"nothing": None}, progress=False).nats.sum(0)
        torch.testing.assert_close(read[row], slow[0], rtol=1e-5, atol=1e-4)


# ---------------------------------------------------------------- scores


@pytest.fixture
def planted() -> FiringStats:
    """One layer: 8 dense neurons, and two experts of 8, the second of which two languages hardly
    use. Dense neuron 3 and neuron 5 of the first expert fire for the second language alone; so
    does, on three tokens of three, neuron 2 of the second expert, the decoy."""
    layout = UnitLayout((LayerUnits(8, 2, 8),))
    tokens = torch.full((2, 3), 1000)
    routed = torch.tensor([[400, 1], [300, 3], [500, 500]])
    routed = torch.stack([routed, routed])[:, :, None]
    experts = ExpertTokens(layout, routed, tokens)
    generator = torch.Generator().manual_seed(0)
    shares = 0.4 + 0.05 * torch.rand(layout.d_mlp, generator=generator, dtype=torch.float64)
    seen = layout.spread(tokens, routed)
    fired = (shares * seen).long()
    for unit in (3, layout.unit(0, 0, 5), layout.unit(0, 1, 2)):
        fired[..., unit] = 0
        fired[:, 1, 0, unit] = seen[:, 1, 0, unit]
    return FiringStats(fired, tokens, ("en", "de", "fr"), experts)


class TestScores:
    WANTED = ([0, 3], [0, 13])
    DECOY = 8 + 8 + 2

    def test_the_planted_neurons_are_found_and_no_decoy(self, planted: FiringStats) -> None:
        found = select_by_entropy(planted, fraction=2 / 16)
        assert found["de"].nonzero().tolist() == list(map(list, self.WANTED))
        assert planted.rate[:, 0, self.DECOY].isnan().all()
        assert language_entropy(planted.rate)[0, self.DECOY].isnan()

    def test_the_rates_of_the_unseen_move_no_threshold(self, planted: FiringStats) -> None:
        known = planted.rate[:, :, planted.seen[0]]
        for quantile in (0.05, 0.5, 0.95, 1.0):
            assert busy_threshold(planted.rate, quantile) == busy_threshold(known, quantile)

    @pytest.mark.parametrize(
        "method", [name for name, method in METHODS.items() if method.needs is None]
    )
    def test_no_method_chooses_a_neuron_that_is_not_seen_enough(
        self, planted: FiringStats, method: str
    ) -> None:
        """Nor does any choose otherwise among the rest than if the others were not there."""
        layer, unit = planted.seen.nonzero().unbind(1)
        alone = planted.at(layer, unit)
        size: Any = {"n": 3} if "n" in METHODS[method].options else {}
        size = {"fraction": 2 / 16} if method == "lape" else size
        found = select(planted, method, **size)
        assert found.mask.any()
        assert not (found.mask & ~planted.seen).any()
        if method != "random":
            expected = select(alone, method, **size)
            assert found.mask[:, :, planted.seen[0]].equal(expected.mask)

    def test_shards_keep_what_was_seen_so_that_a_jackknife_compares_the_same(
        self, planted: FiringStats
    ) -> None:
        few = planted.without(0)
        assert few.seen.equal(planted.seen)
        assert few.rate[:, 0, 13].tolist() == [0, 1, 0]
        estimate = jackknife(planted, lambda part: part.rate)
        assert estimate.low[:, planted.seen].isfinite().all()
        assert estimate.value[:, ~planted.seen].isnan().all()

    def test_of_fewer_languages_more_is_seen(self, planted: FiringStats) -> None:
        assert not planted.seen[0, self.DECOY]
        assert planted.languages_only(["fr"]).seen.all()
        assert planted.languages_only(["fr"]).without(1).seen.all()

    def test_single_neurons_keep_their_tokens(self, planted: FiringStats) -> None:
        layer, unit = torch.tensor([0, 0, 0]), torch.tensor([3, 13, self.DECOY])
        chosen = planted.at(layer, unit)
        assert chosen.rate.nan_to_num(-1).equal(planted.rate[:, :, unit].nan_to_num(-1))
        assert (
            chosen.without(0)
            .rate.nan_to_num(-1)
            .equal(planted.without(0).rate[:, :, unit].nan_to_num(-1))
        )

    def test_shards_of_two_runs_are_put_together(self, planted: FiringStats) -> None:
        both = planted.merge(planted)
        assert both.n_shards == 4
        assert both.rate.nan_to_num(-1).equal(planted.rate.nan_to_num(-1))
        assert both.experts is not None
        dense = FiringStats(planted.fired, planted.tokens, planted.languages)
        with pytest.raises(ValueError, match="Cannot merge"):
            planted.merge(dense)

    def test_what_does_not_fit_is_refused(self, planted: FiringStats) -> None:
        experts = planted.experts
        assert experts is not None
        with pytest.raises(ValueError, match="exceeds the number of tokens"):
            FiringStats(
                experts.layout.spread(planted.tokens, experts.routed) + 1,
                planted.tokens,
                planted.languages,
                experts,
            )
        with pytest.raises(ValueError, match="are of"):
            FiringStats(planted.fired[..., :-1], planted.tokens, planted.languages, experts)
        with pytest.raises(ValueError, match="more than were read"):
            ExpertTokens(experts.layout, experts.routed + 600, experts.tokens)


class TestDoctorAndBaking:
    @pytest.mark.slow
    def test_the_doctor_finds_them_sound(self, mixture: MixtureModel) -> None:
        diagnosis = doctor(mixture)
        assert diagnosis.ok, str(diagnosis)
        assert len(diagnosis.checks) == 10

    @pytest.mark.parametrize("fault", ["gates", "dead", "twice"])
    def test_the_doctor_finds_hooks_that_lie(
        self, mixture: MixtureModel, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        """Gates of the linear branch; hooks that never run; an edit that only looks like one."""
        if name_of(mixture) != "deepseek_v3":
            pytest.skip("one architecture will do: it has dense layers, shared experts and routed")
        shown = experts_module._shown

        swapped: dict[Any, Any] = {"pre": "pre_linear", "pre_linear": "pre"}

        def lying(module: Any, kind: Any, values: Tensor, expert: Tensor, token: Tensor) -> Tensor:
            if fault == "gates":
                return shown(
                    module,
                    swapped.get(kind, kind),
                    values,
                    expert,
                    token,
                )
            if fault == "twice":
                shown(module, kind, values, expert, token)
            return values

        monkeypatch.setattr(experts_module, "_shown", lying)
        failed = [check.name for check in doctor(mixture).checks if not check.passed]
        expected = {
            "gates": "gates are what the weights make of the input",
            "dead": "every hook runs once per pass, on the rows of its experts",
            "twice": "an edit at post equals one made in the weights",
        }
        assert expected[fault] in failed

    @pytest.mark.parametrize("kind", [DensePart, RoutedPart])
    def test_the_doctor_finds_an_activation_that_is_positive_for_negative_gates(
        self, tmp_path: Path, kind: type
    ) -> None:
        """In dense layers and shared experts, or in routed experts."""
        model = load(tiny_models.build("deepseek_v3", tmp_path))
        for part in (part for parts in model.parts for part in parts if isinstance(part, kind)):
            part.module.act_fn = Kinked()
        (failed,) = [check for check in doctor(model).checks if not check.passed]
        assert failed.name == "a neuron fires where its activation is positive"
        assert 'count with fires_by="activation"' in failed.detail

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


# ---------------------------------------------------------------- experts as units


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

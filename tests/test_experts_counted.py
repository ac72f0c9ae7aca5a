"""Counting in mixtures of experts, against plain loops over tokens and experts."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import reduce
from torch import Tensor

from interp.counting.collect import collect
from interp.counting.expert_tokens import LEAST_TOKENS
from interp.counting.keep import Keep
from interp.counting.stats import ActivationMoments, FiringStats
from interp.evaluations.losses import losses_under
from interp.evaluations.perplexity import perplexity_matrix
from interp.interventions import edits
from interp.interventions.edits import intervene
from interp.models.experts import Rows
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.scores.routing import Routing, routing_of
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_by_entropy, select_by_value_entropy
from interp.text.corpora import Corpora
from interp.text.reading import read_corpora
from tests import tiny_models
from tests.campaigns import kills
from tests.expert_loops import activated, by_loops, name_of, recorded, routed_blocks, slowly_off
from tests.tiny_models import D_EXPERT, MIXTURES


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_models.build(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(4, 200, (3, 10), generator=torch.Generator().manual_seed(1))


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
            for layer, token, expert, gate, _ in slow:
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


def summed_slowly(model: MixtureModel, corpora: Corpora) -> tuple[Tensor, Tensor]:
    """Sums of act(gate), its square, outputs, their squares, and tokens, of experts alone."""
    sums = torch.zeros(4, len(corpora.languages), model.n_layers, model.d_mlp).double()
    seen = torch.zeros(sums.shape[1:], dtype=torch.int64)
    blocks, name = routed_blocks(model), name_of(model)
    for language, code in enumerate(corpora.languages):
        for ids, length in zip(
            corpora.rows[code].ids.long(), corpora.rows[code].length, strict=True
        ):
            with by_loops(model, {}) as slow:
                model.body(ids[None, :length])
            for layer, token, expert, gate, output in slow:
                if int(ids[token]) in corpora.special_ids:
                    continue
                act = activated(name, blocks[layer], gate)
                first = model.layout.unit(layer, expert, 0)
                own = slice(first, first + D_EXPERT)
                sums[:, language, layer, own] += torch.stack([act, act**2, output, output**2])
                seen[language, layer, own] += 1
    return sums, seen


@pytest.fixture(scope="module")
def moments(mixture: MixtureModel, text: Corpora) -> ActivationMoments:
    return collect(mixture, text, keep=Keep(moments=True), progress=False).moments


class TestMoments:
    @pytest.mark.slow
    def test_they_are_those_of_loops_over_tokens_and_experts(
        self, mixture: MixtureModel, text: Corpora, moments: ActivationMoments, stats: FiringStats
    ) -> None:
        sums, seen = summed_slowly(mixture, text)
        assert moments.seen is not None
        assert stats.experts is not None
        assert moments.seen.equal(stats.experts.total)
        of_experts = seen.sum(0) > 0
        assert moments.seen[:, of_experts].equal(seen[:, of_experts])
        torch.testing.assert_close(
            moments.sums[..., of_experts], sums[..., of_experts], rtol=1e-4, atol=1e-4
        )
        mean = (sums[2] / seen)[:, of_experts & stats.seen]
        measured = moments.output_mean[:, of_experts & stats.seen]
        torch.testing.assert_close(measured, mean, rtol=1e-4, atol=1e-5)
        assert moments.gate_mean.isnan().any(0).equal(~stats.seen)

    @pytest.mark.slow
    def test_dense_neurons_have_them_of_every_token(
        self, mixture: MixtureModel, text: Corpora, moments: ActivationMoments
    ) -> None:
        expected = torch.zeros_like(moments.sums[2:])
        for language, code in enumerate(text.languages):
            rows = text.rows[code]
            for ids, length in zip(rows.ids.long(), rows.length, strict=True):
                real = ~torch.isin(ids[:length], torch.tensor(text.special_ids))
                for seen, layer, output in recorded(mixture, ids[None, :length], "post"):
                    if seen.expert is None:
                        both = torch.stack([output[real], output[real] ** 2]).double().sum(1)
                        expected[:, language, layer, : output.shape[1]] += both
        for layer, (dense, _, _) in enumerate(mixture.layout.sizes):
            own = moments.sums[2:, :, layer, :dense]
            torch.testing.assert_close(own, expected[:, :, layer, :dense], rtol=1e-4, atol=1e-4)

    def test_a_file_holds_them_and_two_are_merged(
        self, moments: ActivationMoments, tmp_path: Path
    ) -> None:
        moments.save(tmp_path / "moments.safetensors")
        again = ActivationMoments.load(tmp_path / "moments.safetensors")
        both = again.merge(moments)
        assert again.seen is not None
        assert both.seen is not None
        assert both.seen.equal(2 * again.seen)
        known = again.output_mean.isfinite()
        assert both.output_mean[known].allclose(moments.output_mean[known])
        with pytest.raises(ValueError, match="Cannot merge"):
            moments.merge(replace(moments, seen=None))

    def test_neurons_found_by_them_are_held_at_their_means(
        self, mixture: MixtureModel, text: Corpora, ids: Tensor, moments: ActivationMoments
    ) -> None:
        found = select_by_value_entropy(moments, fraction=0.1, busy_quantile=0.5)
        code = next(code for code, n in found.counts().items() if n)
        held = edits.replace(moments, code, "post")
        mean = moments.output_mean[text.languages.index(code)].float()
        with intervene(mixture, found[code], held):
            seen = recorded(mixture, ids, "post")
        for rows, layer, values in seen:
            chosen = rows.chosen(found[code][layer], values.shape[1]).expand_as(values)
            expected = rows.chosen(mean[layer], values.shape[1]).expand_as(values)
            assert values[chosen].equal(expected[chosen])
        unseen = mixture.layout.exists & moments.output_mean.isnan().any(0)
        assert unseen.any()
        with (
            pytest.raises(ValueError, match=r"of layer \d, .*neuron \d+ is nan. Was it a mean"),
            intervene(mixture, unseen, held),
        ):
            pass


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
        with pytest.raises(ValueError, match="of which only firing, moments and contexts are kept"):
            collect(mixture, text, keep=Keep(moments=True, histograms=True), progress=False)
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

"""Scores and selections of neurons that saw only the tokens routed to their expert."""

from typing import Any

import pytest
import torch

from interp.counting.expert_tokens import ExpertTokens
from interp.counting.stats import FiringStats
from interp.inference.intervals import jackknife
from interp.models.units import LayerUnits, UnitLayout
from interp.scores.lape import busy_threshold, language_entropy
from interp.scores.methods import METHODS
from interp.selections.select import select, select_by_entropy


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

"""Dimensions of the residual stream: what is counted of them, which are chosen, and how a language
is written over them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import interp
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.plan import plan_of
from interp.counting.unit_moments import UnitMoments
from interp.interventions.residual import ResidualMeans, residual_means
from interp.scores.choosers import measured
from interp.scores.dimensions import apart_at_the_end
from interp.scores.methods import METHODS, Settings
from interp.selections.select import select, selection_of
from interp.text.reading import read_sentences
from tests.campaigns.kills import LANGUAGES, made_up
from tests.test_caches import AT_ONCE, cached
from tests.test_collect import seen
from tests.tiny_models import D_MODEL, N_LAYERS


@pytest.fixture(scope="module")
def text(model) -> Any:
    """Sentences of different lengths, padded, each after a token that never counts."""
    return read_sentences(
        made_up(16), LANGUAGES, model, n_shards=2, bos="document", max_length=40, hygiene="off"
    )


@pytest.fixture(scope="module")
def run(model, text) -> Any:
    keep = Keep(dimensions=True)
    return collect(model, text, keep=keep, tokens_per_batch=AT_ONCE, progress=False)


def test_means_and_deviations_are_those_of_the_definition(model, text, run):
    found = run.dimensions
    for row, code in enumerate(LANGUAGES):
        for layer, values in enumerate(seen(model, text, code, "resid_post")[0]):
            for unit in range(0, D_MODEL, 9):
                numbers = values[:, unit].double().tolist()
                mean = sum(numbers) / len(numbers)
                variance = sum((number - mean) ** 2 for number in numbers) / len(numbers)
                place = (row, layer, unit)
                assert found.mean[place].item() == pytest.approx(mean, abs=1e-4)
                assert found.deviation[place].item() == pytest.approx(variance**0.5, rel=1e-3)
    assert torch.equal(found.tokens, run.firing.tokens.sum(0))
    assert "layers of 64 dimensions" in str(found)


def test_they_are_the_means_of_a_push_and_those_of_caches(model, text, run):
    means = residual_means(model, text, progress=False)
    assert torch.allclose(means.mean, run.dimensions.mean, atol=1e-5)
    caches, keep = cached(model, text)
    found = UnitMoments.from_caches(caches, "resid_post", keep=keep)
    assert torch.equal(found.sums, run.dimensions.sums)
    plan = plan_of(model, text, Keep(dimensions=True), AT_ONCE)
    assert plan.piece.statistics == {"dimensions": 2 * 8 * N_LAYERS * D_MODEL + 8}


def test_distance_is_from_the_mean_of_the_others_in_the_last_layer(run):
    mean = run.dimensions.mean
    found = apart_at_the_end(mean)
    for row in range(len(LANGUAGES)):
        others = [other for other in range(len(LANGUAGES)) if other != row]
        for unit in (0, 7, 63):
            rest = sum(mean[other, -1, unit].item() for other in others) / len(others)
            expected = abs(mean[row, -1, unit].item() - rest)
            assert found[row, -1, unit].item() == pytest.approx(expected, abs=1e-12)
    assert not found[:, :-1].any()
    assert apart_at_the_end(mean[:1])[:, -1].isnan().all()
    alike = mean[:1].expand(3, -1, -1)
    assert torch.allclose(apart_at_the_end(alike), torch.zeros(()).double(), atol=1e-12)


def test_a_planted_dimension_is_found_beside_one_that_is_large_in_all_languages(model, text):
    """Dimension 9 is moved by German text alone; 20, far more, by all text."""
    german = text.languages_only(["de"])

    def moved(code: str) -> UnitMoments:
        def push(values: torch.Tensor, hook: Any) -> torch.Tensor:
            values = values.clone()
            values[..., 20] += 500.0
            values[..., 9] += 30.0 * (code == "de")
            return values

        with model.hooks([(model.site(N_LAYERS - 1, "resid_post"), push)]):
            one = german if code == "de" else text.languages_only([code])
            return collect(model, one, keep=Keep(dimensions=True), progress=False).dimensions

    parts = [moved(code) for code in LANGUAGES]
    whole = UnitMoments(
        sums=torch.cat([part.sums for part in parts], dim=1),
        tokens=torch.cat([part.tokens for part in parts]),
        languages=LANGUAGES,
        units="resid_post",
    )
    rates = torch.ones(3, N_LAYERS, 5)
    firing = SimpleNamespace(languages=LANGUAGES, rate=rates, total=None, layout=None)
    seen_dimensions = measured(SimpleNamespace(firing=firing, dimensions=whole), torch.Generator())
    found = selection_of(METHODS["dimensions"], seen_dimensions, Settings(n=1))
    assert found["de"].nonzero().tolist() == [[N_LAYERS - 1, 9]]
    assert whole.mean[0, -1].argmax() == 20
    assert found.sites == (("resid_post", D_MODEL),)


def test_a_share_is_of_the_dimensions_of_one_layer(run):
    assert set(select(run, "dimensions", fraction=0.125).counts().values()) == {8}
    with pytest.raises(ValueError, match=r"0\.001 of 64 units is none"):
        select(run, "dimensions", fraction=0.001)
    assert METHODS["dimensions"].needs == "dimensions"


def test_chosen_dimensions_are_overwritten_in_one_layer_by_the_mean_at_the_end(model, run):
    chosen = select(run, "dimensions", n=5)
    means = ResidualMeans(run.dimensions.mean, run.dimensions.languages)
    units, edit = means.overwriting("de", chosen["de"], layer=1, strength=0.5)
    ids, stream = torch.tensor([model.encode("the dog sees a red moon")]), {}

    def look(name: str) -> Any:
        return lambda values, hook: stream.update({name: values.clone()})

    with torch.no_grad(), model.hooks([(model.site(1, "resid_post"), look("before"))]):
        before = model.logits(ids)
    hook = (model.site(1, "resid_post"), look("after"))
    with interp.intervene(model, units, edit), torch.no_grad(), model.hooks([hook]):
        after = model.logits(ids)
    row, places = LANGUAGES.index("de"), chosen["de"][-1].nonzero().flatten()
    expected = stream["before"].clone()
    expected[..., places] = 0.5 * run.dimensions.mean[row, -1, places].float()
    assert torch.allclose(stream["after"], expected, atol=1e-6)
    assert (stream["after"] - stream["before"]).abs().max() > 1e-2
    assert (after - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="mask is of 5 dimensions, and these means of 64"):
        means.overwriting("de", torch.ones(3, 5, dtype=torch.bool), layer=1)
    with pytest.raises(ValueError, match="Layer 3 does not exist"):
        means.overwriting("de", chosen["de"], layer=3)


def test_a_selection_of_dimensions_is_switched_off_beside_random_ones(model, text, run):
    chosen = select(run, "dimensions", n=6)
    pair = text.languages_only(["de", "en"])
    matrix = interp.perplexity_matrix(model, chosen, pair, n_draws=1, progress=False)
    assert matrix.neurons == (6, 6, 6)
    assert matrix.increase.value.abs().min() > 1e-4

"""Statistics from caches are those of `collect`, on every architecture; what cannot be counted is
refused."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.counting.caches import fires, firing_rate, units_at
from interp.counting.collect import Keep, collect
from interp.counting.observe import batches
from interp.counting.run import Run
from interp.counting.sentence_means import SentenceMeans
from interp.counting.stats import ActivationMoments, FiringSigns, FiringStats
from interp.models.load import wrap
from interp.models.neuron_model import NeuronModel
from interp.results.words import FiresBy
from interp.scores.average_precision import measure_precision
from interp.selections.select import select_by_entropy
from interp.text.corpora import Corpora
from interp.text.reading import prompt_rows, read_corpora, read_sentences
from interp.text.sources import read_prompts
from tests import test_model
from tests.campaigns.kills import LANGUAGES, made_up
from tests.test_model import classic_only, every_architecture
from tests.tiny_models import CONFIGS, D_MLP, N_LAYERS, PAD

checkpoint, open_model, classic = test_model.checkpoint, test_model.open_model, test_model.classic

Caches = dict[str, list[Any]]
Masks = dict[str, list[Tensor]]
MEANS = ("pre", "resid_post")
AT_ONCE = 100_000
"""More tokens than a shard holds, so that a shard is one batch, as it is one cache."""


def cached(model: NeuronModel, corpora: Corpora) -> tuple[Caches, Masks]:
    """A cache and a mask for each shard, by plain TransformerLens."""
    caches, masks = {}, {}
    for code in corpora.languages:
        shards = [list(batches(corpora, code, n, AT_ONCE)) for n in range(corpora.n_shards)]
        assert {len(shard) for shard in shards} == {1}
        caches[code] = [run(model, one.ids, one.length) for (one,) in shards]
        masks[code] = [one.keep for (one,) in shards]
    return caches, masks


def run(model: NeuronModel, ids: Tensor, length: Tensor | None = None) -> Any:
    position = torch.arange(ids.shape[1])
    padding = {} if length is None else {"attention_mask": (position < length[:, None]).long()}
    with torch.no_grad():
        return model.bridge.run_with_cache(ids, **padding)[1]


def sentences(model: NeuronModel) -> Corpora:
    """Rows of different lengths, padded, each with a token of beginning."""
    return read_sentences(
        made_up(16), LANGUAGES, model, n_shards=2, bos="document", max_length=40, hygiene="off"
    )


def collected(model: NeuronModel, corpora: Corpora, keep: Keep) -> Run:
    return collect(model, corpora, keep=keep, tokens_per_batch=AT_ONCE, progress=False)


def by_row(means: SentenceMeans, code: str, kind: Any, layer: int) -> Tensor:
    return means.read(kind, layer)[means.labels == means.languages.index(code)]


def check_statistics(model: NeuronModel) -> None:
    """Every statistic from caches against `collect`, to the last count and the last bit."""
    text = sentences(model)
    assert len(set(text.rows["de"].length.tolist())) > 1
    run = collected(model, text, Keep(moments=True, sentence_means=MEANS))
    caches, keep = cached(model, text)
    stats = FiringStats.from_caches(caches, keep=keep, model=model)
    assert stats.languages == run.firing.languages
    assert torch.equal(stats.tokens, run.firing.tokens)
    assert torch.equal(stats.fired, run.firing.fired)
    assert select_by_entropy(stats, 0.05, 0.5) == select_by_entropy(run.firing, 0.05, 0.5)
    moments = ActivationMoments.from_caches(caches, keep=keep, model=model)
    assert torch.equal(moments.sums, run.moments.sums)
    assert torch.equal(moments.tokens, run.moments.tokens)
    means = SentenceMeans.from_caches(caches, MEANS, keep=keep)
    for code in LANGUAGES:
        for kind in MEANS:
            for layer in range(model.n_layers):
                found = by_row(means, code, kind, layer)
                wanted = by_row(run.sentence_means, code, kind, layer)
                assert torch.equal(found.sort(dim=0).values, wanted.sort(dim=0).values)
    rates = torch.stack([firing_rate(caches[code][0], keep[code][0]) for code in LANGUAGES])
    assert torch.equal(rates, run.firing.shards([0]).rate)


def check_signs(model: NeuronModel) -> None:
    """Signs from caches of prompts of different lengths against `collect`."""
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(6).items()}
    prompts = read_prompts(short, LANGUAGES)
    rows = prompt_rows(prompts, model, bos="document")
    settings: tuple[tuple[FiresBy, float], ...] = (("gate", 0.0), ("output", 0.05))
    for fires_by, threshold in settings:
        wanted = collected(model, rows, Keep(signs=fires_by, signs_above=threshold)).signs
        # As in `collect`, rows are passed shortest first; here they are put back in their order.
        caches, keep = cached(model, rows)
        order = {
            code: torch.tensor(next(batches(rows, code, 0, AT_ONCE)).rows).argsort()
            for code in LANGUAGES
        }
        found = FiringSigns.from_caches(
            {code: reordered(caches[code][0], order[code]) for code in LANGUAGES},
            keep={code: keep[code][0][order[code]] for code in LANGUAGES},
            prompts=rows.rows["de"].source,
            fires_by=fires_by,
            threshold=threshold,
        )
        assert sorted(found.prompts) == list(wanted.prompts)
        place = torch.tensor([found.prompts.index(prompt) for prompt in wanted.prompts])
        assert torch.equal(found.bits[place], wanted.bits)
        assert (found.d_mlp, found.fires_by, found.threshold) == (model.d_mlp, fires_by, threshold)


def reordered(cache: Any, order: Tensor) -> dict[str, Tensor]:
    """Plain tensors by hook name, with the rows in another order."""
    return {name: cache[name][order] for name in cache if "mlp" in name or "resid" in name}


# ---------------------------------------------------------------- the same as from text


@every_architecture
def test_statistics_are_those_of_collect(name: str, open_model: Callable[..., Any]):
    check_statistics(open_model(name))


@every_architecture
def test_signs_are_those_of_collect(name: str, open_model: Callable[..., Any]):
    check_signs(open_model(name))


@classic_only
def test_a_hooked_transformer_gives_the_same(classic: Callable[..., Any]):
    model = wrap(classic())
    check_statistics(model)
    check_signs(model)


def test_of_babel_too():
    model = interp.load("babel", dtype=torch.float32)
    text = read_corpora(
        "babel", LANGUAGES, model, block_length=32, n_shards=2, tokens=256, progress=False
    )
    caches, keep = cached(model, text)
    wanted = collected(model, text, Keep()).firing
    stats = FiringStats.from_caches(caches, keep=keep)
    assert torch.equal(stats.fired, wanted.fired)
    assert torch.equal(stats.tokens, wanted.tokens)
    assert select_by_entropy(stats, 0.03) == select_by_entropy(wanted, 0.03)

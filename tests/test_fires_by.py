"""Firing by the gate, by the activation or by the output, where the three differ.

The activation function of a tiny model is made positive again for very negative gates, as xIELU is.
One neuron is planted with large gates, which are often that negative, and a decoy with small ones.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.counting.caches import fires, firing_rate
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.run import Run
from interp.counting.signs import FiringSigns
from interp.counting.stats import FiringStats
from interp.evaluations.category_ablation import categories_at
from interp.inference.intervals import bootstrap_shards
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.prompts.ending import Ending
from interp.results.words import FiresBy
from interp.scores.sharing import categories_from_caches, sharing_categories
from interp.scores.token_sharing import sharing_over_tokens
from interp.text.corpora import Corpora
from interp.text.reading import prompt_rows
from interp.text.sources import read_prompts
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, blocks, made_up
from tests.expert_loops import recorded
from tests.test_caches import AT_ONCE, Caches, Masks, cached, run
from tests.test_collect import seen
from tests.tiny_models import Kinked

LAYER, PLANTED, DECOY = 1, 7, 8
WAYS: tuple[FiresBy, ...] = ("gate", "activation", "output")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    model = load(tiny_models.build("llama", tmp_path_factory.mktemp("kinked")))
    for block in model.bridge.blocks:
        block.mlp.original_component.act_fn = Kinked()
    weight = model.bridge.original_model.model.layers[LAYER].mlp.gate_proj.weight
    with torch.no_grad():
        weight[PLANTED] *= 100
        weight[DECOY] *= 0.001
    return model


@pytest.fixture(scope="module")
def text(model: NeuronModel) -> Corpora:
    return blocks(model, 20)


def slowly(model: NeuronModel, gate: Tensor, output: Tensor, fires_by: FiresBy, layer: int) -> Any:
    """Whether neurons fire on each token, by the definition written out."""
    active = {"gate": gate, "activation": Kinked()(gate), "output": output}[fires_by]
    return active > 0


@pytest.mark.parametrize("fires_by", WAYS)
def test_counts_are_those_of_the_definition(model: NeuronModel, text: Corpora, fires_by: FiresBy):
    stats = collect(model, text, keep=Keep(fires_by=fires_by), progress=False).firing
    assert stats.fires_by == fires_by
    for row, code in enumerate(LANGUAGES):
        gates, outputs = seen(model, text, code, "pre", "post")
        for layer in range(model.n_layers):
            wanted = slowly(model, gates[layer], outputs[layer], fires_by, layer).sum(dim=0)
            found = stats.total[row, layer]
            assert (found - wanted).abs().sum() <= 3  # within rounding of zero
    by_gate = collect(model, text, progress=False).firing
    if fires_by == "activation":
        assert (stats.rate[:, LAYER, PLANTED] > 0.9).all()
        assert (by_gate.rate[:, LAYER, PLANTED] < 0.8).all()
        assert stats.total[:, LAYER, DECOY].equal(by_gate.total[:, LAYER, DECOY])


def test_a_run_knows_what_fired_and_resumes_by_that_alone(
    model: NeuronModel, text: Corpora, tmp_path: Path
):
    keep = Keep(fires_by="activation")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    collect(model, text, whole, keep=keep, progress=False)
    for index in (2, 1):
        collect(model, text, parts, keep=keep, part=(index, 2), progress=False)
    Run.open(parts).merge()
    name = "firing.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    with pytest.raises(ValueError, match="was started with another wanted"):
        collect(model, text, whole, progress=False)

    stats = Run.open(whole).firing
    for kept in (stats, stats.without(0), stats.languages_only(["de"]), stats.in_memory()):
        assert kept.fires_by == "activation"
    assert stats.at(torch.tensor([1]), torch.tensor([7])).fires_by == "activation"
    assert "firing by activation" in repr(stats)
    assert stats.merge(stats).fires_by == "activation"
    by_gate = collect(model, text, progress=False).firing
    assert "firing by" not in repr(by_gate)
    with pytest.raises(
        ValueError, match="by their activation in one of these counts, and by their"
    ):
        stats.merge(by_gate)


def test_a_run_by_the_gate_is_planned_and_stored_as_it_was(
    model: NeuronModel, text: Corpora, tmp_path: Path
):
    assert Keep().plan() == {"moments": False, "sentence_means": [], "signs": False}
    stats = collect(model, text, progress=False).firing
    assert set(stats._stored()) == {"fired", "tokens", "languages"}


def test_a_bootstrap_resamples_the_same_kind_of_counts(model: NeuronModel, text: Corpora):
    stats = collect(model, text, keep=Keep(fires_by="activation"), progress=False).firing
    ways = set()

    def note(part: FiringStats) -> Tensor:
        ways.add((part.fires_by, part.n_shards))
        return part.mean_rate

    bootstrap_shards(stats, note, torch.Generator(), 5)
    assert ways == {("activation", stats.n_shards)}


@pytest.mark.parametrize("fires_by", ["activation", "output"])
def test_neurons_of_experts_count_by_other_values_than_the_gate(tmp_path: Path, fires_by: Any):
    """Experts and dense neurons, with an activation that is positive for negative gates."""
    model = load(tiny_models.build("qwen3_next", tmp_path))
    for module in model.bridge.original_model.modules():
        if "act_fn" in module._modules:
            module.act_fn = Kinked()
    text = blocks(model, 12).languages_only(["de"])
    found = collect(model, text, keep=Keep(fires_by=fires_by), progress=False).firing
    assert found.fires_by == fires_by
    wanted = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.int64)
    rows = text.rows["de"]
    for row, length in zip(rows.ids, rows.length, strict=True):
        kept = ~torch.isin(row[:length], torch.tensor(text.special_ids))
        kind = "pre" if fires_by == "activation" else "post"
        for shown, layer, values in recorded(model, row[None, :length].long(), kind):
            active = (Kinked()(values) if kind == "pre" else values) > 0
            for number, token in enumerate(shown.token.tolist()):
                expert = 0 if shown.expert is None else int(shown.expert[number])
                first = shown.first + expert * active.shape[1]
                if kept[token]:
                    wanted[layer, first : first + active.shape[1]] += active[number]
    assert (found.total[0] - wanted).abs().sum() <= 3  # within rounding of zero
    by_gate = collect(model, text, progress=False).firing
    assert found.experts is not None
    assert by_gate.experts is not None
    assert found.experts.routed.equal(by_gate.experts.routed)
    dense, _, _ = model.layout.sizes[0]
    for part in (slice(dense), slice(dense, None)):  # both kinds of neurons differ
        assert not found.total[:, 0, part].equal(by_gate.total[:, 0, part])


# ---------------------------------------------------------------- from caches


@pytest.fixture(scope="module")
def caches(model: NeuronModel, text: Corpora) -> tuple[Caches, Masks]:
    return cached(model, text)


@pytest.mark.parametrize("fires_by", WAYS)
def test_counts_from_caches_are_those_of_collect(
    model: NeuronModel, text: Corpora, caches: tuple[Caches, Masks], fires_by: FiresBy
):
    keep = Keep(fires_by=fires_by)
    wanted = collect(model, text, keep=keep, tokens_per_batch=AT_ONCE, progress=False).firing
    found = FiringStats.from_caches(caches[0], keep=caches[1], fires_by=fires_by, model=model)
    assert found.fired.equal(wanted.fired)
    assert found.fires_by == fires_by
    rate = firing_rate(caches[0]["de"][0], caches[1]["de"][0], fires_by=fires_by, model=model)
    assert rate.equal(wanted.shards([0]).rate[0])


def test_an_activation_needs_the_model(caches: tuple[Caches, Masks]):
    cache, keep = caches[0]["de"][0], caches[1]["de"][0]
    for ask in (
        lambda: FiringStats.from_caches(caches[0], keep=caches[1], fires_by="activation"),
        lambda: firing_rate(cache, keep, fires_by="activation"),
        lambda: fires(cache, keep=keep, fires_by="activation"),
    ):
        with pytest.raises(ValueError, match="does not know its activation function: give the mod"):
            ask()


# ---------------------------------------------------------------- at the end of prompts


def test_prompts_are_classified_by_the_activation(model: NeuronModel):
    lists = {code: [line[:30].strip() for line in lines] for code, lines in made_up(4).items()}
    rows = prompt_rows(read_prompts(lists, LANGUAGES), model)
    signs = collect(model, rows, keep=Keep(signs="activation"), progress=False).signs
    assert signs.fires_by == "activation"
    wanted = torch.zeros(len(signs.prompts), len(LANGUAGES), model.n_layers, model.d_mlp)
    endings: list[list[Ending]] = []
    caches: list[dict[str, Any]] = []
    for number, id in enumerate(signs.prompts):
        endings.append([])
        caches.append({})
        for language, code in enumerate(LANGUAGES):
            index = rows.rows[code].source.index(id)
            ids = rows.rows[code].ids[index, : int(rows.rows[code].length[index])].long()
            caches[-1][code] = run(model, ids[None])
            for layer in range(model.n_layers):
                gate = caches[-1][code][model.site(layer, "pre")][0, -1]
                wanted[number, language, layer] = Kinked()(gate) > 0
            endings[-1].append(Ending(model, ids, kinds=("pre", "post")))
    found = torch.stack([signs.fires(layer) for layer in range(model.n_layers)], dim=2)
    assert (found != wanted.bool()).sum() <= 3  # within rounding of zero
    by_gate = FiringSigns.from_caches({code: [one[code] for one in caches] for code in LANGUAGES})
    assert (found[..., PLANTED] & ~by_gate.fires(LAYER)[:, :, None, PLANTED]).any()
    for number, ends in enumerate(endings):
        expected = sharing_categories(wanted[number].bool())
        assert (categories_at(ends, "activation") != expected).sum() <= 1
        from_caches = categories_from_caches(caches[number], fires_by="activation", model=model)
        assert (from_caches[:, 0] != expected).sum() <= 1
    tokens = sharing_over_tokens(model, rows, fires_by="activation")
    by_prompt = torch.stack([sharing_categories(one.bool()) for one in wanted])
    order = torch.tensor([rows.rows["de"].source.index(id) for id in signs.prompts])
    for category in range(4):
        counts = (by_prompt == category).sum(dim=-1)
        assert (tokens.count[order, :, category] - counts).abs().sum() <= 2

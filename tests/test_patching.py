"""Patching against a plain loop, against TransformerLens, and on models that are built by hand."""

import functools
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformer_lens.patching as peer
import transformers
from einops import rearrange
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import interp
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.prompts.alignment import PatchSource, align_prompts
from interp.prompts.patching import heads, patch
from interp.prompts.patching_result import PatchingResult
from interp.prompts.sweep import random_matching, record
from interp.selections.neuron_selection import NeuronSelection
from interp.text.tokens import by_length, prompt_ids
from tests import tiny_models
from tests.tiny_models import BOS, D_MLP, N_LAYERS, N_VOCAB

SHAPES = ("llama", "qwen3", "bloom", "xglm")
SOURCE, TARGET = "the quiet sea", "the dog in the city"
ANSWERS = {"one": 40, "two": (55, 70), "three": 90}


@pytest.fixture(scope="session")
def open_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NeuronModel]:
    @functools.cache
    def open_once(name: str, attention: Any = "native") -> NeuronModel:
        if name == "babel":
            return load("babel", attention=attention, dtype=torch.float32)
        folder = tiny_models.build(name, tmp_path_factory.mktemp("checkpoint"))
        return load(folder, attention=attention)

    return open_once


def some_ids(n: int, seed: int) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(len(tiny_models.SPECIAL), N_VOCAB, (n,), generator=drawn)


def seen(model: NeuronModel, ids: Sequence[int], place: Any) -> dict[int, Tensor]:
    """What a prompt has at a place, by layer: [pos, unit]."""
    found = {}

    def keep(layer: int) -> Any:
        def run(values: Tensor, hook: Any) -> None:
            found[layer] = values[0].flatten(1).clone()

        return run

    hooks = [(model.site(n, place), keep(n)) for n in range(model.n_layers)]
    with model.hooks(hooks), torch.no_grad():
        model.logits(torch.tensor([list(ids)]))
    return found


def plain(
    model: NeuronModel, ids: Sequence[int], writes: Sequence[tuple[Any, int, int, Tensor, Tensor]]
) -> Tensor:
    """The definition: one whole prompt, with (place, layer, pos, units, values) written into it."""

    def hook_for(pos: int, units: Tensor, values: Tensor) -> Any:
        def run(found: Tensor, hook: Any) -> Tensor:
            flat = found.flatten(2).clone()
            flat[0, pos, units] = values.to(flat)
            return flat.reshape(found.shape)

        return run

    hooks = [
        (model.site(layer, place), hook_for(pos, units, values))
        for place, layer, pos, units, values in writes
    ]
    with model.hooks(hooks), torch.no_grad():
        return model.logits(torch.tensor([list(ids)]))[0, -1].double().log_softmax(-1)


def answers_of(row: Tensor) -> Tensor:
    return torch.stack([row[40], row[[55, 70]].logsumexp(0), row[90]])


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("name", SHAPES)
def test_a_prompt_patched_into_itself_is_unchanged(open_model, name, generator):
    model = open_model(name)
    mask = torch.rand(N_LAYERS, model.d_mlp, generator=generator) < 0.2
    parts = {"resid_pre": "resid_pre", "mlp_out": "mlp_out", "some": mask}
    ways: Any = (("each", "tokens"), ("from", "last"), ("all", "all"))
    for layers, at in ways:
        found = patch(model, TARGET, TARGET, ANSWERS, parts, layers, at)
        assert (found.log_probability - found.unpatched).abs().max() < 1e-5
        assert found.probability.allclose(
            found.unpatched.exp().expand_as(found.probability), atol=1e-6
        )


@pytest.mark.parametrize("name", SHAPES)
def test_patching_everything_gives_the_answer_of_the_source(open_model, name):
    model = open_model(name)
    alike, ids = some_ids(9, 1), some_ids(9, 2)
    whole = patch(model, alike, ids, ANSWERS, "resid_post", "all", "all")
    end = patch(model, SOURCE, TARGET, ANSWERS, "resid_post", "all")
    for found in (whole, end):
        assert (found.own[0] - found.unpatched).abs().min() > 1e-3
        assert (found.log_probability.squeeze() - found.own[0]).abs().max() < 1e-5
        assert found.recovered("one").item() == pytest.approx(1, abs=1e-3)
        assert found.difference("one", "three").item() == pytest.approx(
            float(found.own[0, 0] - found.own[0, 2]), abs=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHAPES, "babel"])
def test_every_entry_equals_one_forward_pass(open_model, name, generator):
    model = open_model(name)
    source, ids = prompt_ids(model, SOURCE), prompt_ids(model, TARGET)
    mask = torch.rand(model.n_layers, model.d_mlp, generator=generator) < 0.3
    mask[1] = False
    parts: dict[str, Any] = {
        "stream": "resid_post",
        "set": mask,
        "two": {"pre": mask, "mlp_out": torch.ones(model.n_layers, model.d_model).bool()},
    }
    given = PatchSource(SOURCE, ("quiet", "sea"))
    spans = align_prompts(model, given, TARGET, ("dog", "the city"))
    assert any(len(span.target) > 1 for span in spans)
    values = {
        place: seen(model, source, place) for place in ("resid_post", "post", "pre", "mlp_out")
    }
    units = {
        name: ({part: None} if isinstance(part, str) else part) for name, part in parts.items()
    }
    units["set"] = {"post": mask}
    for layers in ("each", "from"):
        found = patch(
            model, given, TARGET, ANSWERS, parts, layers, ("dog", "the city"), max_positions=40
        )
        for (p, part), layer, (s, span) in product(
            enumerate(parts), range(model.n_layers), enumerate(spans)
        ):
            reach = range(layer, layer + 1 if layers == "each" else model.n_layers)
            writes = []
            for (place, chosen), n in product(units[part].items(), reach):
                row = (
                    torch.arange(model.d_model) if chosen is None else chosen[n].nonzero().flatten()
                )
                for theirs, mine in zip(span.source, span.target, strict=True):
                    writes.append((place, n, mine, row, values[place][n][theirs, row]))
            expected = answers_of(plain(model, ids, writes))
            assert (found.log_probability[0, p, layer, s] - expected).abs().max() < 2e-4
        assert (found.log_probability - found.unpatched).abs().max() > 0.01
        if layers == "each":  # a part without units there leaves the target as it is
            assert (found.log_probability[0, 1, 1] - found.unpatched).abs().max() < 1e-5


@pytest.mark.slow
def test_a_sweep_over_tokens_equals_one_forward_pass_for_each(open_model):
    model = open_model("llama")
    source, ids = some_ids(24, 3), some_ids(24, 4)
    found = patch(model, source, ids, ANSWERS, "resid_pre", "each", "tokens", max_positions=70)
    values = seen(model, source.tolist(), "resid_pre")
    every = torch.arange(model.d_model)
    for layer, pos in product(range(N_LAYERS), range(24)):
        writes = [("resid_pre", layer, pos, every, values[layer][pos])]
        expected = answers_of(plain(model, ids.tolist(), writes))
        assert (found.log_probability[0, 0, layer, pos] - expected).abs().max() < 1e-4
    assert found.spans == tuple(model.decode([id]) for id in ids.tolist())
    assert found.top.shape == (1, 1, N_LAYERS, 24)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "bloom"])
def test_equal_lengths_agree_with_transformer_lens(open_model, name):
    model = open_model(name, "hooked")
    source, ids = some_ids(7, 5), some_ids(7, 6)
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(source[None])
        sweeps: dict[Any, Any] = {
            "resid_pre": peer.get_act_patch_resid_pre,
            "attn_out": peer.get_act_patch_attn_out,
            "mlp_out": peer.get_act_patch_mlp_out,
        }

        def metric(logits: Tensor) -> Tensor:
            return logits[0, -1, 40] - logits[0, -1, 90]

        found = patch(
            model, source, ids, ANSWERS, {str(name): name for name in sweeps}, "each", "tokens"
        ).difference("one", "three")
        for row, sweep in enumerate(sweeps.values()):
            theirs = sweep(model.bridge, ids[None], cache, metric)
            assert (found[0, row] - theirs).abs().max() < 1e-4
        by_head = patch(model, source, ids, ANSWERS, heads(model), "each", "all")
        theirs = peer.get_act_patch_attn_head_out_all_pos(model.bridge, ids[None], cache, metric)
        mine = by_head.difference("one", "three")[0, :, :, 0].T
        assert (mine - theirs).abs().max() < 1e-4
        assert (mine - metric(model.logits(ids[None]))).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHAPES, "babel"])
def test_every_head_equals_one_forward_pass(open_model, name):
    model = open_model(name, "hooked")
    parts = heads(model)
    given, at = PatchSource(SOURCE, ("quiet", "sea")), ("dog", "the city")
    ids, spans = prompt_ids(model, TARGET), align_prompts(model, given, TARGET, at)
    values = seen(model, prompt_ids(model, SOURCE), "z")
    itself = patch(model, TARGET, TARGET, ANSWERS, parts, "each", "words")
    assert (itself.log_probability - itself.unpatched).abs().max() < 1e-5
    for layers in ("each", "from"):
        found = patch(model, given, TARGET, ANSWERS, parts, layers, at, max_positions=60)
        some = [*product((0, len(parts) - 1), (0, model.n_layers - 1), range(len(spans)))]
        for p, layer, s in some:
            units = list(parts.values())[p]["z"]
            reach = range(layer, layer + 1 if layers == "each" else model.n_layers)
            writes = [
                ("z", n, mine, units[n].nonzero().flatten(), values[n][theirs, units[n]])
                for n in reach
                for theirs, mine in zip(spans[s].source, spans[s].target, strict=True)
            ]
            expected = answers_of(plain(model, ids, writes))
            assert (found.log_probability[0, p, layer, s] - expected).abs().max() < 2e-4
        assert (found.log_probability - found.unpatched).abs().max() > 1e-3


def test_all_heads_together_are_what_attention_gives(open_model):
    model = open_model("llama", "hooked")
    both = torch.stack([part["z"] for part in heads(model).values()]).any(dim=0)
    assert both.all()
    parts = {"heads": {"z": both}, "attention": "attn_out"}
    for layers, at in product(("each", "from"), ("last", "words")):
        found = patch(model, "the red sea", "a cold night", ANSWERS, parts, layers, at)
        assert (found.log_probability[:, 0] - found.log_probability[:, 1]).abs().max() < 1e-4
        assert (found.log_probability - found.unpatched).abs().max() > 0.01


@pytest.mark.parametrize("name", SHAPES)
def test_prompts_that_share_a_pass_give_what_each_gives_alone(open_model, name):
    model = open_model(name)
    prompts = [model.encode(text) for text in (TARGET, "hus", SOURCE, "the long road home")]
    spans = [[[0], [len(each) - 1, 1]] for each in prompts]
    places = ("resid_post", "post")
    alone = [record(model, [p], [s], places, 1)[0] for p, s in zip(prompts, spans, strict=True)]
    for max_positions in (30, 1000):
        together = record(model, prompts, spans, places, max_positions)
        for one, other, prompt in zip(alone, together, prompts, strict=True):
            assert one.logits.allclose(other.logits, atol=1e-4)
            for place in places:
                whole = seen(model, prompt, place)
                for span, values in zip(([0], [-1, 1]), other.values[place], strict=True):
                    expected = torch.stack([whole[layer][span] for layer in range(N_LAYERS)])
                    assert values.allclose(expected, atol=1e-4)
    lengths = [len(each) for each in prompts]
    assert len(set(lengths)) == 4
    batches = list(by_length(lengths, 30))
    assert sorted(n for batch in batches for n in batch) == [0, 1, 2, 3]
    assert 1 < len(batches) < 4
    assert all(len(batch) * max(lengths[n] for n in batch) <= 30 for batch in batches)


@pytest.mark.parametrize("name", SHAPES)
def test_several_sources_are_averaged(open_model, name):
    model = open_model(name)
    prompts, at = (SOURCE, "the long road home"), "last"
    mean = patch(model, prompts, TARGET, ANSWERS, "mlp_out", "each", at)
    ids = prompt_ids(model, TARGET)
    each = [seen(model, prompt_ids(model, prompt), "mlp_out") for prompt in prompts]
    for layer in range(N_LAYERS):
        new = (each[0][layer][-1] + each[1][layer][-1]) / 2
        row = plain(model, ids, [("mlp_out", layer, len(ids) - 1, torch.arange(64), new)])
        assert (mean.log_probability[0, 0, layer, 0] - answers_of(row)).abs().max() < 1e-4
    alone = [patch(model, prompt, TARGET, ANSWERS, "mlp_out").own for prompt in prompts]
    assert mean.own.allclose(torch.stack(alone).mean(0))
    twice = patch(model, [SOURCE, SOURCE], TARGET, ANSWERS, "mlp_out")
    once = patch(model, SOURCE, TARGET, ANSWERS, "mlp_out")
    assert twice.log_probability.allclose(once.log_probability, atol=1e-6)


# ---------------------------------------------------------------- caches and metrics


def by_batch(logits: Tensor) -> Tensor:
    return logits[:, -1, 40] - logits[:, -1, 90]


def of_one(logits: Tensor) -> Tensor:
    return logits[0, -1, 40] - logits[0, -1, 90]


def cache_of(model: NeuronModel, ids: Any, **settings: Any) -> Any:
    with torch.no_grad():
        return model.run_with_cache(torch.as_tensor(ids)[None], **settings)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "bloom"])
def test_a_cache_and_a_metric_give_every_cell_of_transformer_lens(open_model, name):
    model = open_model(name, "hooked")
    clean, corrupted = some_ids(7, 5), some_ids(7, 6)[None]
    cache = cache_of(model, clean)
    sweeps: dict[str, Any] = {
        "resid_pre": peer.get_act_patch_resid_pre,
        "attn_out": peer.get_act_patch_attn_out,
        "mlp_out": peer.get_act_patch_mlp_out,
    }
    with torch.no_grad():
        parts: Any = {site: site for site in sweeps}
        found = patch(model, cache, corrupted, of_one, parts, at="tokens")
        assert found.answers == found.metrics == ("metric",)
        for row, sweep in enumerate(sweeps.values()):
            theirs = sweep(model.bridge, corrupted, cache, of_one)
            assert (found.value[0, row, :, :, 0] - theirs).abs().max() < 1e-4
            assert (found.value[0, row] - found.unpatched).abs().max() > 1e-3
        by_head = patch(model, cache, corrupted, by_batch, heads(model), at="tokens")
        theirs = peer.get_act_patch_attn_head_out_by_pos(model.bridge, corrupted, cache, of_one)
        mine = rearrange(by_head.value[0, ..., 0], "head layer pos -> layer pos head")
        assert (mine - theirs).abs().max() < 1e-4
        everywhere = patch(model, cache, corrupted, of_one, heads(model), at="all")
        theirs = peer.get_act_patch_attn_head_out_all_pos(model.bridge, corrupted, cache, of_one)
        mine = rearrange(everywhere.value[0, :, :, 0, 0], "head layer -> layer head")
        assert (mine - theirs).abs().max() < 1e-4
        for found_value, ids in ((found.unpatched, corrupted), (found.own, clean[None])):
            assert (found_value - of_one(model.logits(ids))).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHAPES, "babel"])
def test_a_cache_is_the_prompt_it_was_made_from(open_model, name, generator):
    model = open_model(name)
    clean, corrupted = some_ids(6, 7), some_ids(6, 8)
    mask = torch.rand(model.n_layers, model.d_mlp, generator=generator) < 0.2
    parts = {"stream": "resid_post", "set": mask, "all others": ~mask}
    cache = cache_of(model, clean)
    ways: Any = (("each", "tokens"), ("from", "last"), ("all", "all"))
    for layers, at in ways:
        given = (corrupted, ANSWERS, parts, layers, at, {"as a control": cache})
        expected, found = patch(model, clean, *given), patch(model, cache, *given)
        assert (found.value - expected.value).abs().max() < 1e-4
        assert found.own.allclose(expected.own, atol=1e-4)
        assert (found.value[0] - found.unpatched).abs().max() > 1e-3
        assert (found.value[1] - found.value[0]).abs().max() < 1e-4
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    noisy = [
        patch(model, source, corrupted, ANSWERS, {"set": mask}, generator=seed)
        for source, seed in zip((clean, cache), seeds, strict=True)
    ]
    assert noisy[0].sources == ("source", "noise")
    assert (noisy[0].value - noisy[1].value).abs().max() < 1e-4
    other = cache_of(model, some_ids(3, 9))
    mean = patch(model, [cache, other], corrupted, ANSWERS)
    as_prompts = patch(model, [clean, some_ids(3, 9)], corrupted, ANSWERS)
    assert (mean.value - as_prompts.value).abs().max() < 1e-4
    assert mean.own.allclose(as_prompts.own, atol=1e-4)


def test_a_cache_without_the_last_stream_does_not_tell_its_own_answer(open_model):
    model = open_model("llama")
    cache = cache_of(model, some_ids(6, 7), names_filter=lambda name: name.endswith("hook_mlp_out"))
    found = patch(model, cache, TARGET, ANSWERS, "mlp_out")
    assert found.own.isnan().all()
    assert found.recovered("one").isnan().all()
    assert found.value.isfinite().all()
    as_prompt = patch(model, some_ids(6, 7), TARGET, ANSWERS, "mlp_out")
    assert (found.value - as_prompt.value).abs().max() < 1e-4


def test_a_dict_of_activations_is_a_cache(open_model):
    model = open_model("llama")
    cache = cache_of(model, some_ids(6, 7))
    as_dict = {name: cache[name] for name in cache.keys()}  # noqa: SIM118
    expected = patch(model, cache, TARGET, ANSWERS, "mlp_out")
    assert torch.equal(patch(model, as_dict, TARGET, ANSWERS, "mlp_out").value, expected.value)


def test_metrics_and_answers_stand_side_by_side(open_model):
    model = open_model("llama")
    both: Any = {**ANSWERS, "difference": by_batch, "float": lambda logits: float(of_one(logits))}
    found = patch(model, SOURCE, TARGET, both, "resid_pre")
    expected = patch(model, SOURCE, TARGET, ANSWERS, "resid_pre")
    assert (found.value[..., :3] - expected.value).abs().max() < 1e-9
    difference = expected.difference("one", "three")
    for name in ("difference", "float"):
        index = found.answers.index(name)
        assert (found.value[..., index] - difference).abs().max() < 1e-5
        share, same = found.recovered(name), expected.recovered("one", "three")
        assert (share - same).abs().max() < 1e-3
    assert found.metrics == ("difference", "float")
    assert list(found.to_frame().columns[-2:]) == ["value", "change"]
    with pytest.raises(ValueError, match="difference, float is a function of the logits"):
        _ = found.probability
    assert f"difference {float(found.unpatched[3]):.4g}" in repr(found)
    mean = patch(model, SOURCE, TARGET, lambda logits: by_batch(logits).mean(), "resid_pre")
    assert (mean.value[..., 0] - difference).abs().max() < 1e-5  # of each patch by itself


def test_metrics_that_are_none_are_refused(open_model):
    model = open_model("llama")
    wrong: dict[str, Any] = {
        r"'metric' gives numbers of shape \[1, 1\] for one row": lambda x: x[..., 40],
        rf"gives numbers of shape \[{N_VOCAB}\]": lambda x: x[0, -1],
        "'metric' depends on the logits of tokens before the last": lambda x: x[0, 0, 40],
        "of tokens before the last, which are not": lambda x: x[0, :, 40].mean(),
        r"fails on logits of shape \[1, \d, \d+\].*index this token by -1": lambda x: x[0, 5, 40],
        "'metric' gives None, not a number": lambda x: None,
        "'metric' is NaN": lambda x: (x[0, -1, 40] - x[0, -1].max() - 1).log(),
    }
    for said, metric in wrong.items():
        with pytest.raises(ValueError, match=said):
            patch(model, SOURCE, TARGET, metric)
    with pytest.raises(ValueError, match="'mine' is NaN"):
        patch(model, SOURCE, TARGET, {"mine": lambda logits: float("nan")})


def test_caches_that_cannot_be_patched_from_are_refused(open_model, tmp_path: Path):
    model = open_model("llama")
    ids, target = some_ids(6, 7), some_ids(5, 8)
    cache = cache_of(model, ids)
    with pytest.raises(
        ValueError, match=r"(?s)given as 'source' has 6 tokens and the target '.*' 5"
    ):
        patch(model, cache, target, ANSWERS, at="tokens")
    with pytest.raises(ValueError, match="holds no tokens, so it cannot be aligned by words"):
        patch(model, cache, target, ANSWERS, at="words")
    with pytest.raises(ValueError, match="given as 'c' holds no tokens"):
        patch(model, TARGET, TARGET, ANSWERS, at="words", controls={"c": cache})
    few = cache_of(model, ids, names_filter=lambda name: name.endswith("hook_mlp_out"))
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.hook_resid_post: .*names_filter"):
        patch(model, few, target, ANSWERS)
    two = model.run_with_cache(torch.stack([ids, ids]))[1]
    with pytest.raises(ValueError, match="given as 'source' holds 2 prompts"):
        patch(model, two, target, ANSWERS)
    other = cache_of(open_model("babel"), ids)
    with pytest.raises(ValueError, match=r"given as 'source' (was made by|has 6 layers)"):
        patch(model, other, target, ANSWERS)
    broken = {name: cache[name] * torch.nan for name in cache.keys()}  # noqa: SIM118
    with pytest.raises(ValueError, match="has a NaN or infinite activation"):
        patch(model, broken, target, ANSWERS)
    unchecked = getattr(patch, "__wrapped__", patch)
    with pytest.raises(ValueError, match="The target is of type ActivationCache: give text"):
        unchecked(model, ids, cache, ANSWERS)


def test_a_mask_and_a_selections_units_are_parts(open_model, generator):
    model = open_model("llama")
    mask = torch.rand(1, N_LAYERS, D_MLP, generator=generator) < 0.2
    selection = NeuronSelection(mask, ("de",))
    alone = patch(model, SOURCE, TARGET, ANSWERS, selection["de"])
    assert alone.parts == ("neurons",)
    named = patch(model, SOURCE, TARGET, ANSWERS, {"de": selection.units("de")})
    assert torch.equal(alone.value, named.value)
    assert (alone.value - alone.unpatched).abs().max() > 1e-3


def test_the_heat_map_has_the_tokens_on_its_axis(open_model):
    model = open_model("llama")
    ids = model.encode("the city")
    found = patch(model, some_ids(len(ids), 7), ids, of_one, "resid_pre", at="tokens")
    assert len(set(found.spans)) > 2
    ax = interp.plots.patching(found.to_frame())
    assert [label.get_text() for label in ax.get_yticklabels()] == list(found.spans)
    assert ax.figure.axes[-1].get_xlabel() == "Change in the metric"  # below the colors
    shown = ax.collections[0].get_array()
    expected = rearrange(found.value[0, 0, ..., 0] - found.unpatched, "layer span -> span layer")
    assert torch.tensor(shown.data).reshape(expected.shape).allclose(expected)


# ---------------------------------------------------------------- controls


def test_noise_goes_as_far_as_the_source_and_elsewhere(open_model, monkeypatch, generator):
    model = open_model("llama")
    source, ids = prompt_ids(model, SOURCE), prompt_ids(model, TARGET)
    written: dict[Any, Tensor] = {}
    from interp.prompts import sweep

    original = sweep.Sweep._new

    def spy(self: Any, patch: Any, place: Any, layer: int, units: Tensor) -> Tensor:
        new = original(self, patch, place, layer, units)
        written[patch.source, patch.part, layer] = new
        return new

    monkeypatch.setattr(sweep.Sweep, "_new", spy)
    mask = torch.rand(N_LAYERS, D_MLP, generator=generator) < 0.1
    parts = {"stream": "resid_post", "set": mask}
    found = patch(model, SOURCE, TARGET, ANSWERS, parts, generator=generator)
    assert found.sources == ("source", "noise")
    assert found.parts == ("stream", "set", "random set")
    assert found.own[1].isnan().all()
    for part, place in ((0, "resid_post"), (1, "post")):
        theirs, mine = (seen(model, each, place) for each in (source, ids))
        for layer in range(N_LAYERS):
            units = mask[layer] if part else torch.ones(64).bool()
            way = theirs[layer][-1, units] - mine[layer][-1, units]
            moved = written[1, part, layer][0] - mine[layer][-1, units]
            assert moved.norm() == pytest.approx(float(way.norm()), rel=1e-3)
            assert torch.cosine_similarity(moved, way, dim=0).abs() < 0.9
            assert written[0, part, layer][0].allclose(theirs[layer][-1, units], atol=1e-5)


def test_random_units_are_as_many_others_in_each_layer(generator):
    mask = torch.rand(5, 40, generator=generator) < torch.tensor(
        [[0.0], [0.1], [0.2], [0.3], [0.4]]
    )
    drawn = random_matching(mask, generator)
    assert torch.equal(drawn.sum(1), mask.sum(1))
    assert not (drawn & mask).any()
    assert not torch.equal(drawn, random_matching(mask, generator))
    again = random_matching(mask, torch.Generator().manual_seed(3))
    assert torch.equal(again, random_matching(mask, torch.Generator().manual_seed(3)))
    with pytest.raises(ValueError, match="not as many others"):
        random_matching(torch.ones(2, 4).bool(), generator)


def test_controls_are_rows_of_their_own(open_model, generator):
    model = open_model("llama")
    found = patch(
        model, SOURCE, TARGET, ANSWERS, "resid_post", "each", "last",
        {"other": "a red sky", "same": ["the cat", "the old man"]}, generator,
    )  # fmt: skip
    assert found.sources == ("source", "other", "same", "noise")
    alone = patch(model, "a red sky", TARGET, ANSWERS)
    assert found.log_probability[1].allclose(alone.log_probability[0], atol=1e-6)
    assert found.own[1].allclose(alone.own[0])


# ---------------------------------------------------------------- alignment


def test_places_follow_words_and_texts_whatever_the_tokens(open_model):
    model = open_model("llama")
    source = [BOS, *model.encode("a thé b")]
    by_words = align_prompts(model, source, "the house is", "words")
    assert [span.name for span in by_words] == ["the", "house", "is"]
    pieces = [[model.decode([source[n]]) for n in span.source] for span in by_words]
    assert 0 not in by_words[0].source  # beginning-of-text belongs to no word
    assert len(pieces[1]) == len(by_words[1].target)
    for span in by_words:
        assert list(span.source) == sorted(span.source)
    last = prompt_ids(model, "the house")
    assert by_words[1].target[-1] == len(last) - 1
    ids = prompt_ids(model, "hus hus 火曜日 er")
    (span,) = align_prompts(
        model, PatchSource("hus 火曜日", ("hus",)), "hus hus 火曜日 er", ("火曜日",)
    )
    assert len(span.target) >= 9  # a character is three bytes
    text = model.decode([ids[n] for n in span.target])
    assert text.strip() == "火曜日"
    (second,) = align_prompts(model, PatchSource("x", ("x",)), "hus hus", ("hus",))
    assert min(second.target) >= len(model.encode("hus"))


def test_unequal_spans_are_stretched_from_end_to_end():
    from interp.prompts.alignment import _stretched

    assert _stretched((4, 5, 6), 3) == (4, 5, 6)
    assert _stretched((4, 5, 6), 1) == (6,)
    assert _stretched((4,), 3) == (4, 4, 4)
    assert _stretched((4, 5), 4) == (4, 4, 5, 5)
    assert _stretched((4, 5, 6, 7), 2) == (5, 7)


def test_what_cannot_be_aligned_is_shown_in_tokens(open_model):
    model = open_model("llama")
    with pytest.raises(ValueError, match=r"'t\|h.*|th.*' and the target") as error:
        align_prompts(model, SOURCE, TARGET, "tokens")
    assert model.decode(model.encode("dog")[:1]) + "|" in str(error.value)
    assert "have 12 and" in str(error.value) or "tokens, so" in str(error.value)
    with pytest.raises(ValueError, match="3 and 5 words"):
        align_prompts(model, SOURCE, TARGET, "words")
    with pytest.raises(ValueError, match="'cat' is not in the prompt 'the quiet sea'"):
        align_prompts(model, PatchSource(SOURCE, ("cat",)), TARGET, ("dog",))
    with pytest.raises(ValueError, match="one text for each"):
        align_prompts(model, SOURCE, TARGET, ("dog",))
    with pytest.raises(ValueError, match="'ends' is not a way to align"):
        align_prompts(model, SOURCE, TARGET, "ends")
    with pytest.raises(ValueError, match="0 tokens"):
        align_prompts(model, "", TARGET, "last")


# ---------------------------------------------------------------- errors


def test_answers_that_begin_alike_are_refused(open_model):
    model = open_model("llama")
    with pytest.raises(ValueError, match="'a' and 'b' both begin with the token"):
        patch(model, SOURCE, TARGET, {"a": " the", "b": " they"})
    with pytest.raises(ValueError, match="both begin with the token"):
        patch(model, SOURCE, TARGET, {"a": (7, 8), "b": 8})
    with pytest.raises(ValueError, match="There are no answers"):
        patch(model, SOURCE, TARGET, {})
    with pytest.raises(ValueError, match="'c' is not one of the answers"):
        patch(model, SOURCE, TARGET, {"a": 7}).difference("a", "c")


def test_heads_of_a_native_model_say_how_to_load_it(open_model):
    model = open_model("llama")
    with pytest.raises(ValueError, match=r"'z' is not a site of .* attention=\"hooked\""):
        heads(model)
    mask = torch.ones(N_LAYERS, 64).bool()
    with pytest.raises(ValueError, match='attention="hooked"'):
        patch(model, SOURCE, TARGET, ANSWERS, {"head": {"z": mask}})


def test_parts_that_do_not_fit_are_refused(open_model):
    model = open_model("llama")
    with pytest.raises(ValueError, match=r"shape \(3, 5\) at post.*3 layers of 160"):
        patch(model, SOURCE, TARGET, ANSWERS, {"few": torch.ones(3, 5).bool()})
    with pytest.raises(ValueError, match="'none' has no unit"):
        patch(model, SOURCE, TARGET, ANSWERS, {"none": torch.zeros(3, D_MLP).bool()})
    with pytest.raises(ValueError, match='patch the neurons\' outputs instead, at "post"'):
        patch(model, SOURCE, TARGET, ANSWERS, "act")


def test_what_is_no_prompt_is_refused(open_model):
    model = open_model("llama")
    unchecked = getattr(patch, "__wrapped__", patch)
    batch = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for given, said in (
        ({"a": TARGET}, "of type dict"),
        (batch, r"a tensor of torch\.int64 and shape \[2, 3\]"),
        (batch[0].float(), r"a tensor of torch\.float32"),
        ([], "empty"),
    ):
        source = PatchSource(SOURCE)
        object.__setattr__(source, "prompt", given)  # what types are for, and need not be read
        for wrong, told in ((given, said), ([SOURCE, given], "of type list"), (source, said)):
            with pytest.raises(ValueError, match=f"The source 'source' is .*{told}.*: give text"):
                unchecked(model, wrong, TARGET, ANSWERS)
        with pytest.raises(ValueError, match=f"The source 'c' is {said}.*: give text"):
            unchecked(model, SOURCE, TARGET, ANSWERS, controls={"c": given})
        with pytest.raises(ValueError, match=f"The target is {said}.*: give text"):
            unchecked(model, SOURCE, given, ANSWERS)


def test_token_ids_are_one_prompt_in_every_form(open_model):
    model = open_model("llama")
    ids = prompt_ids(model, SOURCE)
    expected = patch(model, SOURCE, TARGET, ANSWERS, "mlp_out").log_probability
    for source in (
        ids,
        tuple(ids),
        torch.tensor(ids),
        torch.tensor([ids]),
        [torch.tensor(ids)],
        [ids],
        PatchSource(ids),
    ):
        found = patch(model, source, TARGET, ANSWERS, "mlp_out")
        assert torch.equal(found.log_probability, expected)


def test_a_result_comes_back_from_disk(open_model, tmp_path: Path):
    found = patch(open_model("llama"), SOURCE, TARGET, ANSWERS, layers="from")
    found.save(tmp_path / "patching.safetensors")
    again = PatchingResult.load(tmp_path / "patching.safetensors")
    assert again.to_frame().equals(found.to_frame())
    assert (again.extent, again.layers) == ("from", (0, 1, 2))
    frame = found.to_frame()
    row = frame[(frame.layer == 1) & (frame.answer == "two")].iloc[0]
    assert row.log_probability == found.log_probability[0, 0, 1, 0, 1].item()
    assert row.change == pytest.approx(row.log_probability - found.unpatched[1].item())


# ---------------------------------------------------------------- planted


def planted(folder: Path, apart: bool, layer: int = 0) -> NeuronModel:
    """One token says a language and a concept; the neurons behind it hold them apart, or in pairs.

    Tokens 0 to 3 ask about concept c in language l (number 2l + c), tokens 4 to 7 are the answers.
    """
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, hidden_act="relu", max_position_embeddings=16,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    hf = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        mlp = hf.model.layers[layer].mlp
        mlp.up_proj.weight[:, 12] = 1.0
        for pair in range(4):
            language, concept = divmod(pair, 2)
            embedding = hf.model.embed_tokens.weight[pair]
            embedding[[language, 2 + concept, 12]] = 1.0
            if apart:
                hf.lm_head.weight[4 + pair, [4 + language, 6 + concept]] = 4.0
            else:
                mlp.gate_proj.weight[pair, [language, 2 + concept, 12]] = torch.tensor(
                    [1.0, 1.0, -1.0]
                )
                mlp.down_proj.weight[8 + pair, pair] = 4.0
                hf.lm_head.weight[4 + pair, 8 + pair] = 4.0
        if apart:
            for neuron in range(4):
                mlp.gate_proj.weight[neuron, neuron] = 1.0
                mlp.down_proj.weight[4 + neuron, neuron] = 4.0
        hf.model.embed_tokens.weight[8, 12] = 1.0
    hf.save_pretrained(folder)
    vocabulary = {f"t{n}": n for n in range(9)}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="t8"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return load(folder)


def moved(model: NeuronModel, mask: Tensor) -> tuple[float, float]:
    """How much of the concept and of the language came from the source, with these neurons."""
    names = [f"{concept} {language}" for language in "st" for concept in "AB"]
    answers = dict(zip(names, range(4, 8), strict=True))
    source, target = [8, 0], [8, 8, 3]  # A in s, B in t
    found = patch(model, source, target, answers, {"set": mask}, "all")
    assert found.unpatched.argmax() == 3
    assert found.own[0].argmax() == 0
    return found.share(["A s", "A t"]).item(), found.share(["A s", "B s"]).item()


def test_language_and_concept_in_different_neurons_are_told_apart(tmp_path: Path):
    model = planted(tmp_path, apart=True)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, :2] = True  # those that fire for one language alone
    concept, language = moved(model, mask)
    assert concept < 0.05
    assert language > 0.95
    concept, language = moved(model, mask.roll(2, dims=1))
    assert concept > 0.95
    assert language < 0.05


def test_language_and_concept_in_the_same_neurons_are_not_told_apart(tmp_path: Path):
    model = planted(tmp_path, apart=False)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, :4] = True  # each fires for one language alone, and for one concept alone
    concept, language = moved(model, mask)
    assert concept > 0.95
    assert language > 0.95
    for chosen in range(4):
        one = torch.zeros_like(mask)
        one[0, chosen] = True
        concept, language = moved(model, one)
        assert abs(concept - language) < 0.4


def test_a_metric_moves_with_the_planted_neurons_and_with_no_others(tmp_path: Path):
    model = planted(tmp_path, apart=True)
    language, decoy = (torch.zeros(2, 8, dtype=torch.bool) for _ in range(2))
    language[0, :2] = True
    decoy[0, 2:4] = True  # they tell the concepts apart, and fire just as much
    source, target = [8, 8, 0], [8, 8, 3]  # A in s, B in t
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([source]))

    def s_against_t(logits: Tensor) -> Tensor:
        return logits[:, -1, 4] + logits[:, -1, 5] - logits[:, -1, 6] - logits[:, -1, 7]

    parts = {"language": language, "all others": ~language, "decoy": decoy, "all": "post"}
    found = patch(model, cache, target, s_against_t, parts, at="tokens")
    moved = found.value[0, :, :, :, 0]
    start, end = float(found.unpatched), float(found.own)
    assert start == pytest.approx(-end, rel=1e-5)
    assert end > 1
    for row, expected in enumerate((end, start, start, end)):
        assert moved[row, 0, 2].item() == pytest.approx(expected, rel=1e-4)
        assert moved[row, 0, :2].tolist() == pytest.approx([start, start], rel=1e-4)
        assert moved[row, 1].tolist() == pytest.approx([start] * 3, rel=1e-4)

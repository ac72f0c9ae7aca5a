"""Attention heads: what is counted of them, which are chosen, and edits of whole heads."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import cli
from interp.counting.collect import collect
from interp.counting.head_effects import HeadEffects
from interp.counting.keep import Keep
from interp.counting.unit_moments import UnitMoments
from interp.interventions.baked_weights import Weights
from interp.interventions.movable import movables_of
from interp.models.load import load
from interp.scores.choosers import measured
from interp.scores.heads import head_importance, without_general
from interp.scores.methods import METHODS, Settings
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select
from interp.text.reading import read_sentences
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, files, made_up
from tests.test_caches import AT_ONCE, cached
from tests.test_collect import seen
from tests.tiny_models import N_HEADS, N_LAYERS

HEADS = Keep(heads=True, head_effects=True)
D_HEAD = tiny_models.D_MODEL // N_HEADS


@pytest.fixture(scope="module")
def hooked(tmp_path_factory) -> Any:
    """Heads with keys and values of their own, in 64 bits, so that differences are no rounding."""
    folder = tiny_models.build("llama_mha", tmp_path_factory.mktemp("hooked"))
    return load(folder, attention="hooked", dtype=torch.float64)


@pytest.fixture(scope="module")
def text(hooked) -> Any:
    """Sentences of different lengths, padded, each after a token that never counts."""
    return read_sentences(
        made_up(8), LANGUAGES, hooked, n_shards=2, bos="document", max_length=40, hygiene="off"
    )


@pytest.fixture(scope="module")
def run(hooked, text) -> Any:
    return collect(hooked, text, keep=HEADS, tokens_per_batch=AT_ONCE, progress=False)


# ---------------------------------------------------------------- against definitions


def test_norms_of_heads_are_those_of_the_definition(hooked, text, run):
    heads = run.heads
    assert heads.mean.shape == (len(LANGUAGES), N_LAYERS, N_HEADS)
    for row, code in enumerate(LANGUAGES):
        for layer, values in enumerate(seen(hooked, text, code, "z")[0]):
            for head in range(N_HEADS):
                norms = [
                    math.sqrt(sum(number**2 for number in token))
                    for token in values.view(len(values), N_HEADS, D_HEAD)[:, head].tolist()
                ]
                mean = sum(norms) / len(norms)
                square = sum(norm**2 for norm in norms) / len(norms)
                assert heads.mean[row, layer, head].item() == pytest.approx(mean, rel=1e-5)
                deviation = math.sqrt(square - mean**2)
                assert heads.deviation[row, layer, head].item() == pytest.approx(deviation, 1e-3)
    assert torch.equal(heads.tokens, run.firing.tokens.sum(0))
    assert heads.mean.flatten().unique().numel() == heads.mean.numel()


def loss_with(model: Any, row: Tensor, layer: int, head: int, factor: float) -> float:
    """Mean nats of a row's tokens with one head's output multiplied at every position."""

    def scaled(values: Tensor, hook: Any) -> Tensor:
        flat = values.reshape(*values.shape[:2], N_HEADS, -1).clone()
        flat[:, :, head] *= factor
        return flat.view_as(values)

    with torch.no_grad(), model.hooks([(model.site(layer, "z"), scaled)]):
        nats = model.losses(row[None])[0]
    return nats[[int(id) not in model.special_ids for id in row[1:]]].mean().item()


def test_effects_of_heads_are_slopes_of_the_mean_loss_of_each_row(hooked, text, run):
    """LAHIS: mean over rows of the slope's size, times the share of rows where it is negative."""
    step, effects = 1e-2, run.head_effects
    rows, signs = text.rows["de"], set()
    for layer, head in ((0, 1), (1, 3), (2, 0), (2, 2)):
        slopes = []
        for ids, length in zip(rows.ids, rows.length.tolist(), strict=True):
            row = ids[:length].long()
            more, less = (loss_with(hooked, row, layer, head, 1 + by) for by in (step, -step))
            slopes.append((more - less) / (2 * step))
        size = sum(map(abs, slopes)) / len(slopes)
        helps = sum(slope < 0 for slope in slopes) / len(slopes)
        signs |= {slope < 0 for slope in slopes}
        found = (0, layer, head)
        assert effects.size[found].item() == pytest.approx(size, rel=1e-2, abs=1e-4)
        assert effects.share_helped[found].item() == pytest.approx(helps)
        importance = head_importance(effects)[found].item()
        assert importance == pytest.approx(size * helps, rel=1e-2, abs=1e-4)
    assert signs == {True, False}
    assert effects.rows.tolist() == [len(text.rows[code].ids) for code in LANGUAGES]
    assert effects.size.max() > 1e-3


def test_rows_read_some_at_a_time_are_as_many_and_as_strong(hooked, text, run, monkeypatch):
    monkeypatch.setattr("interp.counting.loss_effects.AT_ONCE", 20)
    some = collect(hooked, text, keep=HEADS, tokens_per_batch=60, progress=False).head_effects
    assert torch.allclose(some.absolute, run.head_effects.absolute, atol=1e-9)
    assert torch.equal(some.helped, run.head_effects.helped)
    assert torch.equal(some.rows, run.head_effects.rows)


def test_both_effects_come_from_one_backward_pass_as_from_two(hooked, text, run):
    both = collect(
        hooked,
        text.languages_only(["en"]),
        keep=Keep(head_effects=True, loss_effects=True),
        tokens_per_batch=AT_ONCE,
        progress=False,
    )
    assert torch.allclose(both.head_effects.absolute[0], run.head_effects.absolute[1], atol=1e-9)
    alone = collect(
        hooked,
        text.languages_only(["en"]),
        keep=Keep(loss_effects=True),
        tokens_per_batch=AT_ONCE,
        progress=False,
    )
    assert torch.allclose(both.loss_effects.total, alone.loss_effects.total, atol=1e-9)


# ---------------------------------------------------------------- from caches, in parts


def test_caches_give_the_norms_that_text_gives(hooked, text, run):
    caches, keep = cached(hooked, text)
    found = UnitMoments.from_caches(caches, keep=keep)
    assert torch.equal(found.sums, run.heads.sums)
    assert torch.equal(found.tokens, run.heads.tokens)
    assert found.units == run.heads.units == "head"
    flat = {"de": {"blocks.0.attn.hook_z": torch.rand(2, 3, 8)}}
    with pytest.raises(ValueError, match="without an axis of heads, so their number is unknown"):
        UnitMoments.from_caches(flat)
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.attn\.hook_z"):
        UnitMoments.from_caches({"de": {"blocks.0.mlp.hook_pre": torch.rand(2, 3, 8)}})


def test_caches_with_gradients_give_effects_on_what_was_followed_back(hooked, text):
    """TransformerLens follows back the mean loss, here over all tokens of one row."""
    rows = text.rows["de"]
    row = rows.ids[:1, : int(rows.length[0])].long()
    cache = hooked.run_with_cache(row, return_type="loss", incl_bwd=True)[1]
    found = HeadEffects.from_caches({"de": cache}, keep={"de": hooked.text_mask(row)})
    slope = (loss_with(hooked, row[0], 1, 2, 1.01) - loss_with(hooked, row[0], 1, 2, 0.99)) / 0.02
    assert found.absolute[0, 1, 2].item() == pytest.approx(abs(slope), rel=1e-2, abs=1e-5)
    assert found.helped[0, 1, 2].item() == (slope < 0)
    assert found.rows.tolist() == [1]


@pytest.mark.slow
def test_parts_leave_the_same_bytes_and_both_halves_add_up(hooked, text, run, tmp_path):
    keep = {"keep": HEADS, "tokens_per_batch": AT_ONCE, "progress": False}
    collect(hooked, text, tmp_path / "whole", **keep)
    for index in (3, 1, 2):
        part = collect(hooked, text, tmp_path / "parts", part=(index, 3), **keep)
    part.merge()
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    stopped = collect(hooked, text, stop_when=lambda _: True, **keep)
    assert (stopped.head_effects.rows < run.head_effects.rows).all()
    twice = run.heads.merge(run.heads)
    assert torch.equal(twice.sums, 2 * run.heads.sums)
    assert torch.allclose(twice.mean, run.heads.mean)
    assert torch.equal(run.head_effects.merge(run.head_effects).helped, 2 * run.head_effects.helped)
    for name in ("heads", "head_effects"):
        result = getattr(run, name)
        result.save(tmp_path / "result.safetensors")
        assert str(type(result).load(tmp_path / "result.safetensors")) == str(result)


def test_a_model_without_the_site_is_refused_before_anything_is_read(model, corpora, tmp_path):
    for keep in (Keep(heads=True), Keep(head_effects=True)):
        with pytest.raises(ValueError, match=r"'z' is not a site of .* attention=\"hooked\""):
            collect(model, corpora, tmp_path / "run", keep=keep, progress=False)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- selectors


def kept(**results: Any) -> Any:
    """A run with these results, and rates that nothing reads."""
    firing = SimpleNamespace(languages=LANGUAGES, rate=torch.ones(3, 2, 5), total=None, layout=None)
    return SimpleNamespace(firing=firing, **results)


def effects(absolute: Tensor, helped: Tensor, rows: int = 100) -> HeadEffects:
    return HeadEffects(
        absolute=absolute.double(),
        helped=helped.long(),
        rows=torch.full((len(absolute),), rows),
        languages=LANGUAGES[: len(absolute)],
    )


def test_importance_has_its_limits():
    """Nothing is done; harm in every text; help in every text; help in a quarter."""
    found = effects(torch.tensor([[[0.0, 50.0, 50.0, 50.0]]]), torch.tensor([[[0, 0, 100, 25]]]))
    assert head_importance(found)[0, 0].tolist() == [0.0, 0.0, 0.5, 0.125]


def test_lahis_finds_a_planted_head_beside_one_that_harms_and_one_of_all():
    """Head 1 of layer 0 is French; head 3 harms French more; head 0 of layer 1 helps everywhere."""
    absolute, helped = torch.ones(3, 2, 4), torch.full((3, 2, 4), 50)
    absolute[2, 0, 1], helped[2, 0, 1] = 20.0, 95
    absolute[2, 0, 3], helped[2, 0, 3] = 80.0, 2
    absolute[:, 1, 0], helped[:, 1, 0] = 70.0, 99
    run = kept(head_effects=effects(absolute, helped))
    seen_heads = measured(run, torch.Generator())
    important = METHODS["lahis-per-language"].choose(seen_heads, Settings(n=2))
    assert important[2].nonzero().tolist() == [[0, 1], [1, 0]]
    specific = METHODS["lahis"].choose(seen_heads, Settings(n=2))
    assert specific[2].nonzero().tolist() == [[0, 1]]
    assert not specific[:, 1, 0].any()
    with pytest.raises(ValueError, match=r"0\.01 of 8 units is none of them"):
        METHODS["lahis"].choose(seen_heads, Settings())


def test_a_head_is_general_if_four_languages_or_all_have_it():
    chosen = torch.zeros(6, 1, 4, dtype=torch.bool)
    chosen[:4, 0, 0] = True  # of four
    chosen[:3, 0, 1] = True  # of three
    assert without_general(chosen)[..., 0].sum() == 0
    assert without_general(chosen)[:3, 0, 1].all()
    assert without_general(chosen, many=3).sum() == 0
    few = chosen[:3]
    assert not without_general(few)[:, 0].any()
    assert torch.equal(without_general(chosen[:1]), chosen[:1])


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Any:
    """Head 1 of layer 0 reads what German tokens have and others lack; head 2, what all have."""
    model = load(
        tiny_models.build("llama_mha", tmp_path_factory.mktemp("planted")), attention="hooked"
    )
    block = model.bridge.original_model.model.layers[0]
    means = {}
    text = read_sentences(made_up(30), LANGUAGES, model, n_shards=1, hygiene="off")
    for code in LANGUAGES:
        (resid,) = (layers[0] for layers in seen(model, text, code, "resid_pre"))
        means[code] = block.input_layernorm(resid).mean(dim=0)
    others = torch.stack([means["en"], means["fr"]]).T
    basis = torch.linalg.qr(others).Q
    german = means["de"] - basis @ (basis.T @ means["de"])
    with torch.no_grad():
        weight = block.self_attn.v_proj.weight
        weight[D_HEAD : 2 * D_HEAD] = 20 * german / german.norm() ** 2
        common = others.mean(dim=1)
        weight[2 * D_HEAD : 3 * D_HEAD] = 20 * common / common.norm() ** 2
    return model, text


def test_norms_find_a_planted_head_beside_one_that_is_large_everywhere(planted):
    model, text = planted
    run = collect(model, text, keep=Keep(heads=True), progress=False)
    mean = run.heads.mean[:, 0]
    assert (mean[0, 1] > 1.3 * mean[1:, 1]).all()
    assert (mean[:, 2] > mean[:, [0, 3]].amax(dim=1)).all()
    found = select(run, "head-norms", n=1, busy_quantile=0.6)
    assert found["de"].nonzero().tolist() == [[0, 1]]
    assert found.sites == (("head", N_HEADS),)


# ---------------------------------------------------------------- edits


def of_heads(*heads: tuple[int, int]) -> NeuronSelection:
    mask = torch.zeros(2, N_LAYERS, N_HEADS, dtype=torch.bool)
    for layer, head in heads:
        mask[0, layer, head] = True
    return NeuronSelection(mask, ("de", "en"), (("head", N_HEADS),))


def by_hand(factor: float, head: int) -> Callable[[Tensor, Any], Tensor]:
    def edit(values: Tensor, hook: Any) -> Tensor:
        flat = values.reshape(*values.shape[:2], N_HEADS, D_HEAD).clone()
        flat[:, :, head] *= factor
        return flat.view_as(values)

    return edit


@pytest.mark.parametrize(("edit", "factor"), [(interp.deactivate, 0.0), (interp.scale(2.5), 2.5)])
def test_a_head_is_edited_whole_and_others_are_not(hooked, edit, factor):
    ids = torch.tensor([hooked.encode("the dog sees a red moon")])
    before = hooked.logits(ids)
    change = of_heads((1, 2)).change("de", edit)
    with hooked.hooks(change.hooks(hooked)):
        found = hooked.logits(ids)
    with hooked.hooks([(hooked.site(1, "z"), by_hand(factor, 2))]):
        expected = hooked.logits(ids)
    assert (expected - before).abs().max() > 1e-3
    assert torch.equal(found, expected)
    assert torch.equal(hooked.logits(ids), before)
    numbers = torch.zeros(N_LAYERS, N_HEADS * D_HEAD, dtype=torch.bool)
    numbers[0, 5] = True  # one number of head 0 in layer 0, at the same time
    both = interp.Change({"head": change.masks["head"], "z": numbers}, edit)
    with hooked.hooks(both.hooks(hooked)):
        assert not torch.equal(hooked.logits(ids), expected)


def test_controls_of_heads_are_whole_heads(hooked, text, generator):
    selection = of_heads((0, 1), (2, 3), (2, 0))
    alike = selection.random_like(generator, selection.union())
    assert alike.layer_profile().tolist() == selection.layer_profile().tolist()
    assert not (alike.mask & selection.mask).any()
    most = of_heads((0, 0), (0, 1), (0, 2))
    with pytest.raises(ValueError, match=r"only 1 of 4 are left to draw from: .*--n-draws 0"):
        most.random_like(generator, most.union())
    matrix = interp.perplexity_matrix(
        hooked, selection, text.languages_only(["de", "en"]), n_draws=1, progress=False
    )
    assert matrix.neurons == (3, 0)
    assert matrix.increase.value[0].abs().min() > 1e-4


def test_a_selection_of_heads_is_read_back_and_is_no_edit_of_weights(hooked, tmp_path):
    selection = of_heads((1, 2), (2, 0))
    selection.to_json(tmp_path / "heads.json")
    assert NeuronSelection.from_json(tmp_path / "heads.json") == selection
    with pytest.raises(ValueError, match="z is a mixture of values that no weight writes"):
        interp.bake(hooked, selection.units("de"), interp.deactivate, tmp_path / "baked")


def test_what_cannot_be_done_with_heads_is_said(hooked, model):
    selection = of_heads((1, 2))
    push = interp.push({"head": torch.ones(N_LAYERS, N_HEADS)})
    with pytest.raises(ValueError, match="values for whole heads, which can be switched off or"):
        selection.change("de", push).check(hooked)
    with pytest.raises(ValueError, match="'z' is not a site of"):
        selection.check_model(model)
    with pytest.raises(ValueError, match="no neurons of the MLP"):
        selection.neurons()
    wide = torch.ones(N_LAYERS, N_HEADS * D_HEAD, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"{N_LAYERS} layers of {N_HEADS} units there"):
        interp.Change({"head": wide}, interp.deactivate).check(hooked)
    with pytest.raises(ValueError, match="Units of head have no rows of their own"):
        movables_of(Weights(hooked), selection.units("de"))


@pytest.mark.slow
def test_heads_are_collected_found_and_switched_off_by_commands(tmp_path, capsys):
    model = tiny_models.build("llama_mha", tmp_path / "model")
    (tmp_path / "text").mkdir()
    for code, lines in made_up().items():
        (tmp_path / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    out = str(tmp_path / "run")
    reading = ["--text", str(tmp_path / "text"), "--languages", *LANGUAGES, "--out", out]
    reading += ["--block-length", "32", "--n-shards", "4", "--hygiene", "off"]
    units = ["--attention", "hooked", "--units", "heads", "head-effects"]
    cli.main(["collect", str(model), *reading, *units])
    found = str(tmp_path / "run" / "neurons-lahis.json")
    cli.main(["find", out, "--method", "lahis", "--n", "3"])
    assert "de  head " in capsys.readouterr().out
    cli.main(["deactivate", found, "--n-draws", "1", "--split", "all"])
    assert (tmp_path / "run" / "deactivate-lahis" / "matrix.csv").is_file()
    with pytest.raises(SystemExit):
        cli.main(["find", out, "--method", "lahis"])
    assert "is none of them: give a larger one (--fraction)" in capsys.readouterr().err
    assert Path(found).is_file()

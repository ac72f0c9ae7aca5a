"""What a pass counts besides firing: against slow definitions, from text and from caches."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.counting import fitting
from interp.counting.batch import Batch
from interp.counting.collect import collect
from interp.counting.histograms import BINS, Grid, Histograms
from interp.counting.keep import Keep
from interp.counting.loss_effects import LossEffects, LossEffectsCounter, count_loss_effects
from interp.counting.negative_side import NegativeSide, NegativeSideCounter
from interp.counting.observe import batches, observe
from interp.counting.pieces import grid_path
from interp.counting.plan import plan_of, plan_run
from interp.counting.sign_cases import CASES, SignCases, SignCasesCounter
from interp.counting.statistics import OF_NEURONS
from interp.models.load import load
from interp.text.corpora import Rows
from interp.text.reading import read_corpora, read_sentences
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, files, made_up
from tests.test_caches import AT_ONCE, cached
from tests.test_collect import seen

EVERYTHING = Keep(**dict.fromkeys(OF_NEURONS, True))


@pytest.fixture(scope="module")
def text(model) -> Any:
    """Sentences of different lengths, padded, each after a token that never counts."""
    return read_sentences(
        made_up(16), LANGUAGES, model, n_shards=2, bos="document", max_length=40, hygiene="off"
    )


@pytest.fixture(scope="module")
def run(model, text, tmp_path_factory) -> Any:
    out = tmp_path_factory.mktemp("run") / "run"
    return collect(model, text, out, keep=EVERYTHING, tokens_per_batch=AT_ONCE, progress=False)


@pytest.fixture(scope="module")
def values(model, text) -> dict[str, list[list[Tensor]]]:
    """By language: gates, linear branches and outputs, per layer."""
    return {code: seen(model, text, code, "pre", "pre_linear", "post") for code in LANGUAGES}


# ---------------------------------------------------------------- against definitions


def test_sign_cases_are_those_of_the_definition(model, run, values):
    cases = run.sign_cases
    assert cases.counts.shape[0] == run.firing.n_shards == 2
    for row, code in enumerate(LANGUAGES):
        gates, linears, _ = values[code]
        for layer, (gate, linear) in enumerate(zip(gates, linears, strict=True)):
            expected = {
                "both": (gate > 0) & (linear > 0),
                "gate": (gate > 0) & ~(linear > 0),
                "linear": ~(gate > 0) & (linear > 0),
                "neither": ~(gate > 0) & ~(linear > 0),
            }
            for case, name in enumerate(CASES):
                found = cases.counts[:, row, case, layer].sum(dim=0)
                # Read in batches, a gate a hair from zero may fall to the other side.
                assert (found - expected[name].sum(dim=0)).abs().sum() <= 2, name
    fires = cases.counts[:, :, 0] + cases.counts[:, :, 1]
    assert torch.equal(fires, run.firing.fired)
    assert torch.equal(cases.counts.sum(dim=2)[..., 0, 0], run.firing.tokens)
    assert torch.allclose(cases.share.sum(dim=1), torch.ones((), dtype=torch.float64))
    assert torch.equal(cases.shards([1]).counts, cases.counts[1:])
    assert len({tuple(case.flatten().tolist()) for case in cases.share[0]}) == 4


def test_the_negative_side_is_that_of_the_definition(model, run, values):
    side = run.negative_side
    for row, code in enumerate(LANGUAGES):
        gates, _, outputs = values[code]
        for layer, (gate, output) in enumerate(zip(gates, outputs, strict=True)):
            below, output = gate < 0, output.double()
            total = (output * below).sum(dim=0)
            squares = (output**2 * below).sum(dim=0)
            assert (side.below[row, layer] - below.sum(dim=0)).abs().sum() <= 2
            assert torch.allclose(side.output[row, layer], total, atol=1e-4)
            assert torch.allclose(side.squares[row, layer], squares, atol=1e-4)
            mean = total / below.sum(dim=0)
            assert torch.allclose(side.mean[row, layer], mean, atol=1e-3, equal_nan=True)
            size = (squares / len(gate)).sqrt()
            assert torch.allclose(side.size[row, layer], size, atol=1e-4)
    assert (side.squares > 0).any()
    assert torch.equal(side.tokens, run.firing.tokens.sum(0))


@pytest.mark.slow
def test_a_gate_of_exactly_zero_is_on_neither_side(folder):
    model, silent = load(folder), 7
    with torch.no_grad():
        model.bridge.original_model.model.layers[1].mlp.gate_proj.weight[silent] = 0.0
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=2, hygiene="off")
    run = collect(model, text, keep=Keep(negative_side=True, sign_cases=True), progress=False)
    assert (run.negative_side.below[:, 1, silent] == 0).all()
    assert (run.sign_cases.counts[:, :, :2, 1, silent] == 0).all()
    assert run.negative_side.mean[:, 1, silent].isnan().all()


@pytest.mark.slow
def test_histograms_are_those_of_the_definition(model, run, values):
    histograms, off = run.histograms, 0
    low, width = histograms.low.double(), histograms.width.double()
    for row, code in enumerate(LANGUAGES):
        for layer, gate in enumerate(values[code][0]):
            act = model.act(layer, gate).double()
            expected = torch.zeros(model.d_mlp, BINS + 2, dtype=torch.int64)
            for neuron in range(0, model.d_mlp, 7):
                for value in act[:, neuron].tolist():
                    place = (value - low[layer, neuron].item()) / width[layer, neuron].item()
                    bin = 0 if place < 0 else BINS + 1 if place >= BINS else 1 + int(place)
                    expected[neuron, bin] += 1
            found = histograms.counts[row, layer, ::7].long()
            off += int((found - expected[::7]).abs().sum())
            assert torch.equal(found.sum(dim=-1), expected[::7].sum(dim=-1))
    # A value at the edge of a bin may fall to either side by rounding.
    assert off < 0.002 * histograms.tokens.sum() * model.n_layers * model.d_mlp / 7
    share = histograms.share(1)
    assert torch.allclose(share.sum(-1), torch.ones((), dtype=torch.float64))
    assert histograms.counts[..., 0].sum() + histograms.counts[..., -1].sum() > 0


@pytest.mark.slow
def test_bins_reach_three_deviations_from_the_mean_but_no_lower_than_the_least(model, run, text):
    """This text is smaller than the first sample, so the sample is all of it."""
    moments = run.moments
    mean = (moments.sums[0] / moments.tokens.sum()).sum(dim=0)
    square = (moments.sums[1] / moments.tokens.sum()).sum(dim=0)
    reach = 3 * (square - mean**2).sqrt()
    grid = run.histograms.grid
    high = grid.low + BINS * grid.width
    assert torch.allclose(high.double(), mean + reach, atol=1e-5)
    least = torch.stack(
        [
            torch.cat([seen(model, text, code, "pre")[0][layer] for code in LANGUAGES])
            for layer in range(model.n_layers)
        ]
    )
    least = torch.stack([model.act(n, gate).amin(dim=0) for n, gate in enumerate(least)])
    assert torch.allclose(grid.low.double(), torch.maximum(mean - reach, least.double()), atol=1e-5)
    assert (grid.low.double() > mean - reach + 1e-3).any()


@pytest.mark.slow
def test_an_ungated_model_has_a_negative_side_and_histograms_but_no_cases(tmp_path):
    model = load(tiny_models.build("gpt2", tmp_path / "model"))
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=2, hygiene="off")
    run = collect(model, text, keep=Keep(negative_side=True, histograms=True), progress=False)
    gates, outputs = seen(model, text, "en", "pre", "post")
    below, output = gates[1] < 0, outputs[1].double()
    assert torch.allclose(run.negative_side.output[1, 1], (output * below).sum(0), atol=1e-4)
    assert (run.histograms.counts.sum(-1) == run.histograms.tokens[:, None, None]).all()
    with pytest.raises(ValueError, match="no linear branch besides the gate"):
        collect(model, text, keep=Keep(sign_cases=True), progress=False)


# ---------------------------------------------------------------- effects on the loss


@pytest.fixture(scope="module")
def exact(folder) -> Any:
    """In 64 bits, so that small differences of losses are no rounding."""
    return load(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def few(exact) -> Any:
    """Three short rows of each language, padded, each after a token that never counts."""
    short = {
        code: [line[: 10 + n] for n, line in enumerate(lines)] for code, lines in made_up(3).items()
    }
    return read_sentences(short, LANGUAGES, exact, n_shards=1, bos="document", hygiene="off")


def loss_with(model: Any, text: Any, code: str, edit: Callable[[Tensor], Tensor]) -> float:
    """Nats of a language's tokens with the outputs of layer 1 edited, row by row."""
    total = 0.0
    for ids, length in zip(text.rows[code].ids, text.rows[code].length.tolist(), strict=True):
        row = ids[None, :length].long()
        hook = (model.site(1, "post"), lambda values, hook: edit(values.clone()))
        with torch.no_grad(), model.hooks([hook]):
            nats = model.losses(row)[0]
        total += nats[[int(id) not in model.special_ids for id in row[0, 1:]]].sum().item()
    return total


def slope(model: Any, text: Any, code: str, neuron: int, pos: int | slice) -> float:
    """How the loss grows with the factor of a neuron of layer 1, at some positions."""

    def scaled(factor: float) -> Callable[[Tensor], Tensor]:
        def edit(values: Tensor) -> Tensor:
            values[:, pos, neuron] *= factor
            return values

        return edit

    step = 1e-2  # smaller ones drown in rounding: norms are computed in 32 bits
    more, less = (loss_with(model, text, code, scaled(1 + by)) for by in (step, -step))
    return (more - less) / (2 * step)


def test_effects_on_the_loss_are_its_slope(exact, few):
    """Against differences of losses with a neuron a little weaker, and a little stronger."""
    effects = collect(exact, few, keep=Keep(loss_effects=True), progress=False).loss_effects
    for neuron in (0, 3, 50):
        # The token of beginning never counts, so its outputs are left alone.
        expected = slope(exact, few, LANGUAGES[1], neuron, slice(1, None))
        assert effects.total[1, 1, neuron].item() == pytest.approx(expected, rel=5e-3, abs=5e-4)
    assert (effects.absolute >= effects.total.abs() - 1e-9).all()
    assert effects.total.abs().max() > 1e-3


def test_sizes_of_effects_are_summed_token_by_token(exact, few):
    code = LANGUAGES[0]
    first = few.rows[code]
    alone = Rows(first.ids[:1], first.length[:1], first.shard[:1], first.source[:1])
    one = replace(few.languages_only((code,)), rows={code: alone})
    effects = collect(exact, one, keep=Keep(loss_effects=True), progress=False).loss_effects
    slopes = [slope(exact, one, code, 3, pos) for pos in range(1, int(alone.length))]
    expected = sum(map(abs, slopes))
    assert effects.absolute[0, 1, 3].item() == pytest.approx(expected, rel=5e-3, abs=5e-4)


def test_the_loss_of_a_token_that_does_not_count_is_left_out(exact, few):
    """Nothing before a last token depends on it, but its loss depends on all before it."""
    ids = few.rows[LANGUAGES[0]].ids[:1, :8].long()
    found = []
    for length in (8, 7):
        keep = exact.text_mask(ids[:, :length])
        keep[:, 7:] = False
        batch = Batch((0,), ids[:, :length], keep, torch.tensor([length]), ("row",), False)
        counter = LossEffectsCounter(exact)
        count_loss_effects(exact, batch, [counter])
        found.append(counter.tensors()["loss_effects.total"])
    assert torch.allclose(*found, atol=1e-6)
    assert found[0].abs().max() > 1e-3


def test_effects_of_many_rows_are_those_of_few_at_a_time(exact, few, monkeypatch):
    keep = Keep(loss_effects=True)
    whole = collect(exact, few, keep=keep, progress=False).loss_effects
    monkeypatch.setattr("interp.counting.loss_effects.AT_ONCE", 20)
    some = collect(exact, few, keep=keep, progress=False).loss_effects
    assert torch.allclose(whole.total, some.total, atol=1e-6)
    assert torch.allclose(whole.absolute, some.absolute, atol=1e-6)
    assert torch.equal(whole.tokens, some.tokens)


def test_caches_with_gradients_give_effects_on_what_was_followed_back(exact, few):
    """TransformerLens follows back the mean loss of a row, and here that of one row."""
    code = LANGUAGES[0]
    one = few.languages_only((code,))
    length = int(one.rows[code].length[0])
    ids = one.rows[code].ids[:1, :length].long()
    cache = exact.run_with_cache(ids, return_type="loss", incl_bwd=True)[1]
    mask = exact.text_mask(ids)
    found = LossEffects.from_caches({code: cache}, keep={code: mask})
    counter = LossEffectsCounter(exact)
    alone = Batch((0,), ids, mask, torch.tensor([length]), ("row",), False)
    count_loss_effects(exact, alone, [counter])
    total = counter.tensors()["loss_effects.total"]
    assert torch.allclose(found.total[0] * (length - 1), total, atol=1e-5)
    with pytest.raises(ValueError, match="holds no gradients"):
        LossEffects.from_caches({code: exact.run_with_cache(ids)[1]})


# ---------------------------------------------------------------- from caches


def test_caches_give_what_text_gives(model, run, text):
    caches, keep = cached(model, text)
    cases = SignCases.from_caches(caches, keep=keep, model=model)
    assert torch.equal(cases.counts, run.sign_cases.counts)
    assert torch.equal(cases.tokens, run.sign_cases.tokens)
    side = NegativeSide.from_caches(caches, keep=keep, model=model)
    for name in ("below", "output", "squares", "tokens"):
        assert torch.equal(getattr(side, name), getattr(run.negative_side, name)), name
    grid = run.histograms.grid
    found = Histograms.from_caches(caches, keep=keep, model=model, grid=grid)
    assert torch.equal(found.counts, run.histograms.counts)
    alone = Histograms.from_caches(caches, keep=keep, model=model)
    assert torch.allclose(alone.low, grid.low, atol=1e-6)
    assert torch.allclose(alone.width, grid.width, atol=1e-8)
    with pytest.raises(ValueError, match="pre_linear"):
        SignCases.from_caches({"de": {"blocks.0.mlp.hook_pre": torch.randn(1, 2, 3)}})
    small = Grid(low=grid.low[:, :5], width=grid.width[:, :5])
    with pytest.raises(ValueError, match="The grid is of"):
        Histograms.from_caches(caches, keep=keep, model=model, grid=small)


# ---------------------------------------------------------------- pieces


@pytest.mark.slow
def test_parts_and_a_killed_run_leave_the_same_bytes(model, corpora, tmp_path):
    collect(model, corpora, tmp_path / "whole", keep=EVERYTHING, progress=False)
    for index in (3, 1, 2):
        out = tmp_path / "parts"
        part = collect(model, corpora, out, part=(index, 3), keep=EVERYTHING, progress=False)
    part.merge()
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    stops = iter([False, True])
    stopped = collect(
        model, corpora, keep=EVERYTHING, stop_when=lambda _: next(stops), progress=False
    )
    whole = interp.Run.open(tmp_path / "whole")
    assert stopped.sign_cases.counts.equal(whole.sign_cases.counts[:2])
    assert (stopped.histograms.counts <= whole.histograms.counts).all()
    assert stopped.histograms.tokens.equal(whole.firing.tokens[:2].sum(0))


@pytest.mark.slow
def test_shards_add_up_to_the_whole(model, tmp_path):
    """The same sentences, one at a time, in three shards or in one."""
    results, grid = [], None
    for n in (3, 1):
        text = read_sentences(made_up(8), LANGUAGES, model, n_shards=n, hygiene="off")
        if grid is not None:
            (tmp_path / str(n)).mkdir()
            grid.save(grid_path(tmp_path / str(n)))
        run = collect(
            model, text, tmp_path / str(n), keep=EVERYTHING, tokens_per_batch=1, progress=False
        )
        grid = run.histograms.grid
        results.append(run)
    many, single = results
    assert torch.equal(many.sign_cases.counts.sum(0), single.sign_cases.counts[0])
    assert torch.equal(many.histograms.counts, single.histograms.counts)
    assert torch.equal(many.negative_side.below, single.negative_side.below)


@pytest.mark.slow
def test_pieces_on_other_bins_are_not_added(model, corpora, tmp_path):
    keep = Keep(histograms=True)
    collect(model, corpora, tmp_path, keep=keep, progress=False)
    grid = Grid.load(grid_path(tmp_path))
    Grid(low=grid.low + 1, width=grid.width).save(grid_path(tmp_path))
    (tmp_path / "pieces" / "0003-en.safetensors").unlink()
    with pytest.raises(ValueError, match="Shard 3 was counted in other bins"):
        collect(model, corpora, tmp_path, keep=keep, progress=False)


@pytest.mark.parametrize("make", [SignCasesCounter, NegativeSideCounter])
def test_memory_that_runs_out_between_two_sites_counts_nothing_twice(
    model, text, make: Callable[..., Any]
):
    """The second site of a layer fails once for all rows, then arrives in halves."""
    batch = next(batches(text, "de", 0, AT_ONCE))
    whole = make(model)
    observe(model, batch, [whole])
    halved, failed = make(model), []

    def fails_once(kind: str, layer: int, values: Tensor, batch: Any) -> None:
        if kind != "pre" and layer == 1 and not failed:
            failed.append(True)
            raise MemoryError
        make.update(halved, kind, layer, values, batch)

    halved.update = fails_once
    try:
        with pytest.warns(UserWarning, match="split in halves"):
            observe(model, batch, [halved])
    finally:
        model.ran_out_at = None
    assert failed
    for name, tensor in whole.tensors().items():
        assert torch.allclose(halved.tensors()[name].double(), tensor.double(), atol=1e-4), name


def test_what_is_not_asked_for_is_not_there(model, corpora):
    run = collect(model, corpora, progress=False)
    assert run.kept == ("firing",)
    for name in ("sign_cases", "negative_side", "histograms"):
        with pytest.raises(ValueError, match=f"kept no {name.replace('_', ' ')}"):
            getattr(run, name)


def test_infinite_values_are_refused_with_layer_row_and_language(folder, corpora, tmp_path):
    model = load(folder)
    with torch.no_grad():
        model.bridge.original_model.model.layers[1].mlp.up_proj.weight[3] = math.inf
    with pytest.raises(ValueError, match=r"layer 1 \((pre_linear|post)\) on the text .*shard 0 of"):
        collect(model, corpora, tmp_path, keep=Keep(sign_cases=True), progress=False)


# ---------------------------------------------------------------- the plan


def test_what_would_not_fit_is_refused_before_anything_is_read(
    model, corpora, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    keep = Keep(histograms=True)
    plan = plan_of(model, corpora, keep, 4096)
    monkeypatch.setattr(fitting, "free_memory", lambda device: plan.results - 1)
    with pytest.raises(ValueError, match=r"histograms of 480 neurons needs .* of memory"):
        collect(model, corpora, tmp_path / "run", keep=keep, progress=False)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    free = fitting.shutil.disk_usage(tmp_path)._replace(free=plan.disk - 1)
    monkeypatch.setattr(fitting.shutil, "disk_usage", lambda path: free)
    with pytest.raises(ValueError, match=r"needs .* of disk, where .* are free"):
        collect(model, corpora, tmp_path / "run", keep=keep, progress=False)
    collect(model, corpora, tmp_path / "counts", progress=False)


def test_histograms_cost_what_the_plan_says_of_a_large_model():
    few, many = (plan_run("babel", 6, 1_000_000, keep=Keep(histograms=on)) for on in (False, True))
    neurons = 6 * 2048
    assert many.counters - few.counters == neurons * (402 * 4 + 8) + 8
    assert many.disk - few.disk > 126 * neurons * 402 * 4


def test_no_token_in_the_sample_is_no_grid(model):
    from interp.counting.histograms import grid_of

    zero = torch.zeros(2, 1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="No token of the sample counts"):
        grid_of(zero, torch.zeros(1, 3), 0)
    flat = grid_of(torch.tensor([[[2.0]], [[4.0]]]).double(), torch.ones(1, 1), 1)
    assert flat.low.item() == pytest.approx(1.95)
    assert flat.width.item() == pytest.approx(0.1 / 400)


def test_results_come_back_as_they_were_saved(run: Any, tmp_path: Path):
    for name in ("sign_cases", "negative_side", "histograms"):
        result = getattr(run, name)
        result.save(tmp_path / "result.safetensors")
        again = type(result).load(tmp_path / "result.safetensors")
        assert again.languages == result.languages
        assert str(again) == str(result)


def test_merged_histograms_hold_no_more_tokens_than_32_bits():
    half = Histograms(
        counts=torch.zeros(2, 1, 1, BINS + 2, dtype=torch.int32),
        low=torch.zeros(1, 1),
        width=torch.ones(1, 1),
        tokens=torch.full((2,), 1 << 30),
        languages=("de", "fr"),
    )
    with pytest.raises(ValueError, match="2,147,483,648 tokens, and histograms hold at most"):
        half.merge(half)

"""The pass over text: exact counts, whatever the batches, order, processes and kills."""

import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.counting import pieces
from interp.counting.bits import pack_bits, unpack_bits
from interp.counting.collect import _cut_out, _Reading, collect
from interp.counting.counters import FiringCounter, SignsCounter
from interp.counting.keep import Keep
from interp.counting.observe import batches, observe
from interp.counting.pieces import in_order
from interp.counting.run import Run
from interp.counting.stats import ActivationMoments, FiringStats
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.selections.agreement import until_stable
from interp.selections.select import select_by_entropy
from interp.text.corpora import Corpora
from interp.text.reading import prompt_rows, read_corpora, read_sentences
from interp.text.sources import read_prompts
from interp.text.tokens import prompt_ids
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, files, made_up


def seen(model: NeuronModel, corpora: Corpora, language: str, *kinds: str) -> list[list[Tensor]]:
    """Per kind and layer, the activations at the tokens that count: row by row, plain hooks."""
    rows = corpora.rows[language]
    sites = [model.site(layer, kind) for kind in kinds for layer in range(model.n_layers)]
    values: dict[str, list[Tensor]] = {site: [] for site in sites}
    for ids, length in zip(rows.ids, rows.length.tolist(), strict=True):
        kept = [place for place in range(length) if int(ids[place]) not in model.special_ids]

        def keep(site: str, kept: list[int]) -> Callable[..., None]:
            return lambda activations, hook: values[site].append(activations[0, kept].clone())

        with model.hooks([(site, keep(site, kept)) for site in sites]), torch.no_grad():
            model.body(ids[None, :length].long())
    whole = [torch.cat(values[site]) for site in sites]
    return [whole[first : first + model.n_layers] for first in range(0, len(sites), model.n_layers)]


@pytest.fixture(scope="module")
def seen_in_corpora(model, corpora) -> dict[str, list[list[Tensor]]]:
    """By language: gates and outputs, per layer."""
    return {code: seen(model, corpora, code, "pre", "post") for code in LANGUAGES}


def test_counts_are_those_of_the_definition(model, corpora, seen_in_corpora):
    stats = collect(model, corpora, progress=False).firing
    for row, code in enumerate(LANGUAGES):
        gates, _ = seen_in_corpora[code]
        assert int(stats.tokens[:, row].sum()) == len(gates[0])
        for layer, gate in enumerate(gates):
            rate = (gate > 0).double().mean(dim=0)
            assert torch.allclose(stats.rate[row, layer], rate, atol=1.5 / len(gate))
            assert (stats.rate[row, layer] - rate).abs().sum() < 3 / len(gate)


@pytest.mark.slow
def test_a_gate_of_exactly_zero_does_not_fire(folder):
    model, silent = load(folder), 7
    with torch.no_grad():
        model.bridge.original_model.model.layers[1].mlp.gate_proj.weight[silent] = 0.0
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=2, hygiene="off")
    (gates,) = seen(model, text.languages_only(("de",)), "de", "pre")
    assert (gates[1][:, silent] == 0).all()
    fired = collect(model, text, progress=False).firing.fired.sum(dim=(0, 1))
    assert fired[1, silent] == 0
    assert (fired.flatten() > 0).sum() == fired.numel() - 1


def test_moments_are_those_of_the_definition(model, corpora, seen_in_corpora):
    moments = collect(model, corpora, keep=Keep(moments=True), progress=False).moments
    for row, code in enumerate(LANGUAGES):
        gates, outputs = seen_in_corpora[code]
        for layer in range(model.n_layers):
            gate = model.act(layer, gates[layer]).double()
            output = outputs[layer].double()
            for found, wanted in (
                (moments.gate_mean, gate.mean(dim=0)),
                (moments.gate_deviation, gate.std(dim=0, correction=0)),
                (moments.output_mean, output.mean(dim=0)),
                (moments.output_deviation, output.std(dim=0, correction=0)),
            ):
                assert torch.allclose(found[row, layer], wanted, atol=1e-5)


@pytest.mark.slow
def test_an_ungated_model_has_one_kind_of_moment(tmp_path):
    model = load(tiny_models.build("opt", tmp_path / "model"))
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=4, hygiene="off")
    moments = collect(model, text, keep=Keep(moments=True), progress=False).moments
    output = torch.stack(seen(model, text, "en", "post")[0])
    assert torch.allclose(moments.output_mean[1], output.double().mean(dim=1), atol=1e-5)
    assert torch.equal(moments.gate_mean, moments.output_mean)


@pytest.mark.slow
def test_batches_make_no_difference(model, corpora):
    text = corpora.languages_only(("de",))
    small, large = (
        collect(model, text, tokens_per_batch=n, progress=False).firing for n in (16, 10_000)
    )
    assert torch.equal(small.tokens, large.tokens)
    # A gate within rounding of zero may fall to either side, so a handful of counts may differ.
    assert (small.fired - large.fired).abs().sum() <= 3


@pytest.mark.slow
def test_permuted_languages_give_permuted_counts(model, corpora):
    turned = tuple(reversed(LANGUAGES))
    other = read_corpora(
        made_up(), turned, model, block_length=16, n_shards=5, bos="block", hygiene="off"
    )
    here, there = (collect(model, each, progress=False).firing for each in (corpora, other))
    assert torch.equal(here.fired, there.fired.flip(1))
    assert torch.equal(here.tokens, there.tokens.flip(1))


@pytest.mark.slow
def test_a_sum_beyond_the_range_of_half_precision_is_no_infinity():
    narrow = load("babel", dtype=torch.float16)
    settings = {"tokens": 1024, "block_length": 128, "n_shards": 1, "progress": False}
    corpora = read_corpora("babel", ["en"], narrow, **settings)
    seen: list[Tensor] = []
    (batch,) = batches(corpora, "en", 0, tokens_per_batch=1024)
    site = narrow.site(narrow.n_layers - 1, "pre")
    with torch.no_grad(), narrow.hooks([(site, lambda values, hook: seen.append(values.clone()))]):
        narrow.body(batch.ids)
    assert seen[0].isfinite().all()
    assert seen[0].sum().isinf()  # in half precision
    counter = FiringCounter(narrow)
    observe(narrow, batch, [counter])
    assert counter.tensors()["firing.tokens"].sum() > 0


@pytest.mark.slow
def test_padding_and_special_tokens_never_count(model):
    """Rows of different lengths, padded: the same counts as each row read alone."""
    sentences = read_sentences(made_up(40), LANGUAGES, model, n_shards=4, hygiene="off")
    assert len({int(n) for n in sentences.rows["de"].length}) > 1
    stats = collect(model, sentences, progress=False).firing
    for row, code in enumerate(LANGUAGES):
        (gates,) = seen(model, sentences, code, "pre")
        assert int(stats.tokens[:, row].sum()) == len(gates[0])
        total = sum(int((gate > 0).sum()) for gate in gates)
        assert abs(int(stats.fired[:, row].sum()) - total) <= 3


def test_the_planted_neuron_is_found_from_text(tmp_path):
    """Neuron 7 of layer 1 is given a gate that only French opens, and a decoy that all open."""
    model = load(tiny_models.build("llama_mha", tmp_path / "model"))
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=4, hygiene="off")
    inside = {code: [] for code in LANGUAGES}
    for code in LANGUAGES:
        for batch in batches(text, code, 0, 4096):
            hook = (
                model.site(1, "pre"),
                lambda values, hook, code=code: inside[code].append(values.clone()),
            )
            with model.hooks([hook]), torch.no_grad():
                model.body(batch.ids)

    def planted(values: Tensor, hook: object) -> Tensor:
        values = values.clone()
        values[..., 7] = 1.0 if current == "fr" else -1.0
        values[..., 9] = 1.0
        return values

    stats = []
    for current in LANGUAGES:
        with model.hooks([(model.site(1, "pre"), planted)]):
            stats.append(collect(model, text.languages_only((current,)), progress=False).firing)
    fired = torch.cat([each.fired for each in stats], dim=1)
    tokens = torch.cat([each.tokens for each in stats], dim=1)
    whole = FiringStats(fired=fired, tokens=tokens, languages=LANGUAGES)
    share = 1 / (model.n_layers * model.d_mlp)
    assert select_by_entropy(whole, fraction=share).triples() == [(2, 1, 7)]


@pytest.mark.slow
def test_sentence_means_are_those_of_the_definition(model):
    sentences = read_sentences(made_up(20), LANGUAGES, model, n_shards=4, hygiene="off")
    keep = Keep(sentence_means=("pre", "resid_post"))
    means = collect(model, sentences, keep=keep, progress=False).sentence_means
    for kind in ("pre", "resid_post"):
        for code in LANGUAGES:
            rows = means.labels == LANGUAGES.index(code)
            alone = []
            one, n_prefix = sentences.rows[code], len(sentences.prefix_ids)
            for number in range(len(one.ids)):
                subset = one.ids[number : number + 1, : int(one.length[number])].long()
                caught = []
                hook = (
                    model.site(2, kind),
                    lambda values, hook, caught=caught, n=n_prefix: caught.append(
                        values[0, n:].mean(dim=0)
                    ),
                )
                with model.hooks([hook]), torch.no_grad():
                    model.body(subset)
                alone.append(caught[0])
            found = means.read(kind, 2)[rows]
            order = torch.stack(alone)
            assert found.shape == order.shape
            distance = torch.cdist(found, order)
            assert (distance.min(dim=1).values < 1e-4).all()  # every row is there, once
            assert len(set(distance.argmin(dim=1).tolist())) == len(order)


@pytest.mark.slow
def test_signs_at_the_last_token_are_those_of_the_definition(model):
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(12).items()}
    prompts = read_prompts(short, LANGUAGES)
    rows = prompt_rows(prompts, model, n_shards=3)
    signs = collect(model, rows, keep=Keep(signs="gate"), progress=False).signs
    assert sorted(signs.prompts) == sorted(prompts.ids)
    for row, code in enumerate(LANGUAGES):
        for prompt, text in zip(prompts.ids, prompts.texts[code], strict=True):
            caught = []
            hook = (
                model.site(2, "pre"),
                lambda values, hook, caught=caught: caught.append(values[0, -1] > 0),
            )
            with model.hooks([hook]), torch.no_grad():
                model.body(torch.tensor([prompt_ids(model, text)]))
            found = signs.fires(2)[signs.prompts.index(prompt), row]
            assert (found != caught[0]).sum() <= 1


def test_an_output_of_exactly_zero_does_not_fire(tmp_path):
    """With ReLU what a silent neuron gives is zero, and about half of them are silent."""
    model = load(tiny_models.build("opt", tmp_path / "model"))
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(12).items()}
    rows = prompt_rows(read_prompts(short, LANGUAGES), model)
    fires = []
    for source in ("gate", "output"):
        run = collect(model, rows, keep=Keep(signs=source), progress=False)
        fires.append(run.signs.fires(1))
    assert torch.equal(*fires)
    assert 0.2 < fires[0].double().mean() < 0.8


@pytest.mark.parametrize("n", [1, 7, 8, 9, 160])
def test_bits_come_back_as_they_went_in(n, generator):
    fires = torch.rand(3, 2, n, generator=generator) > 0.5
    assert torch.equal(unpack_bits(pack_bits(fires), n), fires)
    assert pack_bits(fires).shape == (3, 2, -(-n // 8))


def test_a_counter_shares_no_memory_with_its_result(model, corpora):
    counter = FiringCounter(model)
    batch = next(batches(corpora, "de", 0, 64))
    observe(model, batch, [counter])
    first = counter.tensors()["firing.fired"]
    before = first.clone()
    observe(model, batch, [counter])
    assert torch.equal(first, before)
    assert torch.equal(counter.tensors()["firing.fired"], 2 * before)


# ---------------------------------------------------------------- resuming


@pytest.mark.slow
def test_parts_in_any_order_leave_the_same_bytes(model, corpora, tmp_path):
    keep = Keep(moments=True)
    collect(model, corpora, tmp_path / "whole", keep=keep, progress=False)
    for index in (3, 1, 2):
        run = collect(
            model, corpora, tmp_path / "parts", part=(index, 3), keep=keep, progress=False
        )
    assert not run.status().missing
    run.merge()
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_a_result_is_out_of_memory_before_the_next_is_merged(corpora, model, tmp_path, monkeypatch):
    """As `interp plan` says: it counts the largest result, not the sum of all."""
    alive = []
    save, read = ActivationMoments.save, pieces.read_firing

    def saved(self: ActivationMoments, *given: Any) -> None:
        alive.append(weakref.ref(self))
        save(self, *given)

    def checked(*given: Any) -> FiringStats:
        assert [each() for each in alive] == [None]
        return read(*given)

    monkeypatch.setattr(ActivationMoments, "save", saved)
    monkeypatch.setattr(pieces, "read_firing", checked)
    collect(model, corpora, tmp_path, keep=Keep(moments=True), progress=False)
    assert len(alive) == 1


def test_an_unfinished_run_is_not_merged(model, corpora, tmp_path):
    run = collect(model, corpora, tmp_path, part=(1, 3), progress=False)
    with pytest.raises(ValueError, match="5 of 15 pieces"):
        run.merge()


@pytest.mark.campaign
def test_killed_at_random_moments_nothing_is_lost_or_counted_twice(folder, tmp_path):
    """Ten kills each of one, two and three processes, against a run left in peace."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.kills", str(folder), str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("same bytes: ")[1] for line in lines] == ["True"] * 3
    landed = sum(int(line.split()[2]) for line in lines)
    assert landed >= 5, done.stdout  # kills after the end would prove nothing


# ---------------------------------------------------------------- bad input


def test_another_model_is_refused(model, corpora, tmp_path):
    collect(model, corpora, tmp_path / "run", part=(1, 5), progress=False)
    other = load(tiny_models.build("qwen2", tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match=r"started with another model .*weights was"):
        collect(other, corpora, tmp_path / "run", progress=False)


@pytest.mark.slow
def test_the_same_model_in_another_folder_is_accepted(model, corpora, tmp_path):
    collect(model, corpora, tmp_path / "run", part=(1, 5), progress=False)
    copy = load(tiny_models.build("qwen2", tmp_path / "copy"))
    finished = collect(copy, corpora, tmp_path / "run", progress=False)
    alone = collect(model, corpora, progress=False)
    assert torch.equal(finished.firing.fired, alone.firing.fired)


def test_another_text_is_refused(model, corpora, tmp_path):
    collect(model, corpora, tmp_path, part=(1, 5), progress=False)
    other = read_corpora(
        made_up(50), LANGUAGES, model, block_length=16, n_shards=5, bos="block", hygiene="off"
    )
    with pytest.raises(ValueError, match="started with another corpora"):
        collect(model, other, tmp_path, progress=False)


def test_another_setting_is_refused(model, corpora, tmp_path):
    collect(model, corpora, tmp_path, part=(1, 5), progress=False)
    with pytest.raises(ValueError, match="tokens_per_batch: was 4096, now 64"):
        collect(model, corpora, tmp_path, tokens_per_batch=64, progress=False)


def test_a_truncated_piece_is_named_and_only_it_is_read_again(model, corpora, tmp_path):
    collect(model, corpora, tmp_path, progress=False)
    before = files(tmp_path)
    piece = tmp_path / "pieces" / "0002-en.safetensors"
    piece.write_bytes(piece.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"0002-en\.safetensors.* Delete that file"):
        collect(model, corpora, tmp_path, progress=False)
    piece.unlink()
    collect(model, corpora, tmp_path, progress=False)
    assert files(tmp_path) == before


def test_a_nan_names_the_layer_and_the_text(corpora, tmp_path):
    broken = load(tiny_models.build("qwen2", tmp_path / "model"))
    broken.w_in(1)[0, 3] = float("nan")
    with pytest.raises(ValueError, match=r"layer 1 \(post\).*shard 0 of de; 0 finished pieces"):
        collect(broken, corpora, tmp_path / "run", keep=Keep(moments=True), progress=False)
    gate = broken.w_gate(2)
    assert gate is not None
    broken.w_in(1)[0, 3] = 0.0
    gate[0, 3] = float("inf")
    with pytest.raises(ValueError, match=r"layer 2 \(pre\)"):
        collect(broken, corpora, tmp_path / "other", progress=False)


def test_a_full_disk_is_one_sentence_and_loses_nothing(model, corpora, tmp_path, monkeypatch):
    collect(model, corpora, tmp_path, part=(1, 5), progress=False)
    before = files(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"was not saved .*No space left"):
        collect(model, corpora, tmp_path, progress=False)
    monkeypatch.undo()
    assert files(tmp_path) == before
    collect(model, corpora, tmp_path, progress=False)


@pytest.mark.slow
def test_ctrl_c_keeps_finished_pieces(model, corpora, tmp_path, monkeypatch):
    saved = artifacts.save
    written = []

    def interrupted(*arguments: object) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(arguments)
        saved(*arguments)

    monkeypatch.setattr(artifacts, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(model, corpora, tmp_path, progress=False)
    monkeypatch.undo()
    assert len(Run.open(tmp_path).status().done) == 4
    run = collect(model, corpora, tmp_path, progress=False)
    assert torch.equal(run.firing.fired, collect(model, corpora, progress=False).firing.fired)


def test_packed_blocks_have_no_sentence_means(model, corpora, tmp_path):
    with pytest.raises(ValueError, match="read_sentences"):
        collect(model, corpora, tmp_path, keep=Keep(sentence_means=("pre",)), progress=False)


# ---------------------------------------------------------------- stopping


def test_a_run_stops_when_the_rule_says_so_also_after_a_kill(model, corpora, tmp_path):
    asked = []

    def rule(stats: FiringStats) -> bool:
        asked.append(stats.n_shards)
        return stats.n_shards == 3

    whole = collect(model, corpora, tmp_path / "a", stop_when=rule, progress=False).firing
    assert whole.n_shards == 3
    assert asked == [1, 2, 3]
    stopped = json.loads((tmp_path / "a" / "stopped.json").read_text())
    assert stopped["shards"] == 3
    assert sum(stopped["tokens"].values()) >= int(whole.tokens.sum())
    again = collect(model, corpora, tmp_path / "a", stop_when=rule, progress=False).firing
    assert torch.equal(whole.fired, again.fired)


@pytest.mark.slow
def test_the_stability_rule_stops_sooner_when_less_is_asked(model, corpora, tmp_path):
    short, long = (
        collect(
            model,
            corpora,
            tmp_path / str(level),
            stop_when=until_stable(level, fraction=0.1, busy_quantile=0.5),
            progress=False,
        ).firing
        for level in (0.05, 0.9999)
    )
    assert short.n_shards == 4 < long.n_shards == corpora.n_shards


# ---------------------------------------------------------------- what a run keeps


PRODUCTS = ("firing", "moments", "signs", "contexts", "sentence_means")


@pytest.fixture(scope="module")
def prompts(model) -> Corpora:
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(12).items()}
    return prompt_rows(read_prompts(short, LANGUAGES), model, n_shards=3)


EVERYTHING = Keep(moments=True, signs="gate", contexts=2, sentence_means=("pre", "mlp_out"))


def tensors_of(run: Run) -> dict[str, Tensor]:
    means = run.sentence_means
    return {
        "fired": run.firing.fired,
        "tokens": run.firing.tokens,
        "sums": run.moments.sums,
        "bits": run.signs.bits,
        "gates": run.contexts.gate,
        "rows": run.contexts.ids,
        "labels": means.labels,
        **{f"means at {kind}": means.read(kind, 1) for kind in means.kinds},
    }


@pytest.mark.slow
def test_nothing_that_was_asked_for_is_lost_without_a_folder(model, prompts, tmp_path):
    """Every result of a temporary run equals that of a folder, opened again in another Run."""
    here = collect(model, prompts, keep=EVERYTHING, progress=False)
    there = collect(model, prompts, tmp_path, keep=EVERYTHING, progress=False)
    again = Run.open(tmp_path)
    assert here.kept == there.kept == again.kept == PRODUCTS
    assert (here.folder, there.folder, again.folder) == (None, tmp_path, tmp_path)
    values = [tensors_of(run) for run in (here, there, again)]
    for name, expected in values[0].items():
        assert all(torch.equal(other[name], expected) for other in values[1:]), name
    assert again.signs.prompts == here.signs.prompts
    assert again.provenance == json.loads((tmp_path / "run.json").read_text()) | {"shards_read": 3}


@pytest.mark.slow
def test_a_temporary_folder_lasts_as_long_as_anything_that_reads_it(model, prompts):
    run = collect(model, prompts, keep=EVERYTHING, progress=False)
    first = run.sentence_means.pieces[0]
    assert isinstance(first, Path)
    place = first.parents[1]
    means = run.sentence_means
    assert run.firing.n_shards == 3
    del run
    gc.collect()
    assert means.read("pre", 0).shape == (36, model.d_mlp)
    del means
    gc.collect()
    assert not place.exists()


@pytest.mark.slow
def test_a_run_that_fails_leaves_no_temporary_folder(corpora, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    broken = load(tiny_models.build("qwen2", tmp_path / "model"))
    broken.w_in(1)[0, 3] = float("nan")
    with pytest.raises(ValueError, match="layer 1"):
        collect(broken, corpora, keep=Keep(moments=True), progress=False)
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "python", "command"),
    [
        ("moments", "moments=True", "interp collect --moments"),
        ("signs", 'signs="gate"', "interp share TASK"),
        ("contexts", "contexts=8", "interp collect --contexts 8"),
        ("sentence_means", 'sentence_means=("pre",)', "interp collect --sentences pre"),
    ],
)
def test_a_result_that_was_not_kept_is_refused_with_what_keeps_it(
    model, corpora, tmp_path, name, python, command
):
    for out in (None, tmp_path):
        run = collect(model, corpora, out, progress=False)
        assert run.kept == ("firing",)
        with pytest.raises(ValueError, match=f"kept no {name.replace('_', ' ')}") as refusal:
            getattr(run, name)
        said = str(refusal.value)
        assert f"keep=interp.Keep({python})" in said
        assert f"`{command}`" in said
        assert (str(tmp_path) in said) == (out is not None)


@pytest.mark.slow
def test_an_unfinished_run_says_what_is_missing_instead_of_results(model, corpora, tmp_path):
    keep = Keep(moments=True)
    run = collect(model, corpora, tmp_path, part=(1, 2), keep=keep, progress=False)
    for name in ("firing", "moments"):
        with pytest.raises(ValueError, match=r"8 of 15 pieces; the first missing one"):
            getattr(run, name)
    collect(model, corpora, tmp_path, part=(2, 2), keep=keep, progress=False)
    with pytest.raises(ValueError, match=r"run `interp merge .*`, in Python run\.merge\(\)"):
        run.firing  # noqa: B018
    assert run.merge() is run
    alone = collect(model, corpora, keep=keep, progress=False)
    assert torch.equal(run.firing.fired, alone.firing.fired)
    assert torch.equal(run.moments.sums, alone.moments.sums)


def test_results_without_their_pieces_are_still_a_run(model, corpora, tmp_path):
    run = collect(model, corpora, tmp_path / "run", keep=Keep(contexts=1), progress=False)
    (tmp_path / "copy").mkdir()
    for name in ("firing.safetensors", "contexts.safetensors"):
        (tmp_path / "copy" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    copy = Run.open(tmp_path / "copy")
    assert copy.kept == ("firing", "contexts")
    assert torch.equal(copy.firing.fired, run.firing.fired)
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json"):
        copy.status()
    with pytest.raises(FileNotFoundError, match="holds neither run"):
        Run.open(tmp_path)


def test_a_part_needs_a_folder_and_reads_all_it_is_given(model, corpora, tmp_path):
    with pytest.raises(ValueError, match="the folder that all parts share"):
        collect(model, corpora, part=(1, 2), progress=False)
    with pytest.raises(ValueError, match="There is no part 3 of 2"):
        collect(model, corpora, tmp_path, part=(3, 2), progress=False)
    with pytest.raises(ValueError, match="part and stop_when exclude each other"):
        collect(model, corpora, tmp_path, part=(1, 2), stop_when=bool, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"special_tokens": True}, "special_tokens=True affects sentence means only"),
        ({"signs_above": 0.5}, "signs_above=0.5 affects signs only"),
        ({"contexts": -1}, "contexts is -1"),
    ],
)
def test_what_would_change_nothing_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Keep(**options)


def test_a_run_says_in_a_few_words_what_it_holds(model, corpora, tmp_path):
    run = collect(model, corpora, tmp_path, part=(1, 3), keep=Keep(moments=True), progress=False)
    assert repr(run) == f"Run(de, en, fr; 5 of 15 pieces; in {tmp_path})"
    run = collect(model, corpora, tmp_path, keep=Keep(moments=True), progress=False)
    assert repr(run) == f"Run(de, en, fr; firing, moments; in {tmp_path})"
    shown = run._repr_html_()
    assert "<td>kept</td>" in shown
    assert "Keep(contexts=8)" in shown
    assert "Keep(moments=True)" not in shown
    (tmp_path / "run.json").write_text("damaged")
    assert repr(run) == f"Run(in {tmp_path})"


@pytest.mark.slow
def test_the_rows_of_a_piece_keep_their_numbers_when_they_are_sent(model, corpora, tmp_path):
    """What an actor is sent holds the text of its piece alone, and leaves the same bytes."""
    keep = Keep(moments=True, contexts=3)
    collect(model, corpora, tmp_path / "whole", keep=keep, progress=False)
    reading = _Reading(tmp_path / "sent", corpora, keep, 4096)
    reading.start(model, stops_early=False, settings={})
    size = len(pickle.dumps(corpora))
    for shard, language in reversed(in_order(corpora.n_shards, corpora.languages)):
        sent = pickle.dumps(_cut_out(reading, shard, language))
        assert len(sent) < size / 5
        pickle.loads(sent)(model)
    Run.open(tmp_path / "sent").merge()
    assert files(tmp_path / "sent") == files(tmp_path / "whole")


def test_an_output_of_exactly_zero_does_not_fire_and_one_at_a_threshold_does_not(tmp_path):
    """Of a model with ReLU, most outputs are exactly zero."""
    model = load(tiny_models.build("opt", tmp_path / "model"))
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=1, hygiene="off")
    german = text.languages_only(("de",))
    counter = SignsCounter(model, len(german.rows["de"].ids), "output")
    values = torch.tensor([[[0.0, 1.0, -1.0, 0.5]]]).expand(1, 1, 4).repeat(1, 1, model.d_mlp // 4)
    at_half = SignsCounter(model, len(german.rows["de"].ids), "output", 0.5)
    batch = next(iter(batches(german, "de", 0, tokens_per_batch=16)))
    values = values.expand(len(batch.rows), batch.keep.shape[1], -1)
    for signs, fires in ((counter, [0, 1, 0, 1]), (at_half, [0, 1, 0, 0])):
        signs.update("post", 0, values, batch)
        bits = unpack_bits(signs.tensors()["signs.bits"], model.d_mlp)
        assert bits[batch.rows[0], 0, :4].int().tolist() == fires

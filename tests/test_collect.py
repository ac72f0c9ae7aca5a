"""The pass over text: exact counts, whatever the batches, order, processes and kills."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.counting.collect import Wanted, collect, collect_part
from interp.counting.counters import FiringCounter
from interp.counting.observe import batches, observe
from interp.counting.run import look, merge, open_sentence_means
from interp.counting.stats import (
    ActivationMoments,
    FiringSigns,
    FiringStats,
    pack_bits,
    unpack_bits,
)
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.selections.agreement import until_stable
from interp.selections.neuron_selection import select_by_entropy
from interp.text.corpora import Corpora, prompt_rows, read_corpora, read_sentences
from interp.text.sources import read_prompts
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, files, made_up


def seen(model: NeuronModel, corpora: Corpora, language: str, kind: str) -> list[Tensor]:
    """Per layer, the activations at the tokens that count: one row at a time, plain hooks."""
    rows = corpora.rows[language]
    layers: list[list[Tensor]] = [[] for _ in range(model.n_layers)]
    for ids, length in zip(rows.ids, rows.length.tolist(), strict=True):
        kept = [place for place in range(length) if int(ids[place]) not in model.special_ids]
        caught = {}

        def hook_for(layer: int, caught: dict[int, Tensor]) -> Callable[..., None]:
            def look_at(values: Tensor, hook: object) -> None:
                caught[layer] = values[0].detach().clone()

            return look_at

        hooks = [
            (model.site(layer, kind), hook_for(layer, caught)) for layer in range(model.n_layers)
        ]
        with model.hooks(hooks), torch.no_grad():
            model.body(ids[None, :length].long())
        for layer in range(model.n_layers):
            layers[layer].append(caught[layer][kept])
    return [torch.cat(each) for each in layers]


def test_counts_are_those_of_the_definition(model, corpora):
    stats = collect(model, corpora, progress=False)
    for row, code in enumerate(LANGUAGES):
        gates = seen(model, corpora, code, "pre")
        assert int(stats.tokens[:, row].sum()) == len(gates[0])
        for layer, gate in enumerate(gates):
            rate = (gate > 0).double().mean(dim=0)
            assert torch.allclose(stats.rate[row, layer], rate, atol=1.5 / len(gate))
            assert (stats.rate[row, layer] - rate).abs().sum() < 3 / len(gate)


def test_a_gate_of_exactly_zero_does_not_fire(folder):
    model, silent = load(folder), 7
    with torch.no_grad():
        model.bridge.original_model.model.layers[1].mlp.gate_proj.weight[silent] = 0.0
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=2, hygiene="off")
    assert all((each[:, silent] == 0).all() for each in seen(model, text, "de", "pre")[1:2])
    fired = collect(model, text, progress=False).fired.sum(dim=(0, 1))
    assert fired[1, silent] == 0
    assert (fired.flatten() > 0).sum() == fired.numel() - 1


def test_moments_are_those_of_the_definition(model, corpora, tmp_path):
    collect(model, corpora, tmp_path, wanted=Wanted(moments=True), progress=False)
    moments = ActivationMoments.load(tmp_path / "moments.safetensors")
    for row, code in enumerate(LANGUAGES):
        gates, outputs = (seen(model, corpora, code, kind) for kind in ("pre", "post"))
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


def test_an_ungated_model_has_one_kind_of_moment(tmp_path):
    model = load(tiny_models.build("opt", tmp_path / "model"))
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=4, hygiene="off")
    collect(model, text, tmp_path / "run", wanted=Wanted(moments=True), progress=False)
    moments = ActivationMoments.load(tmp_path / "run" / "moments.safetensors")
    output = torch.cat([each[None] for each in seen(model, text, "en", "post")])
    assert torch.allclose(moments.output_mean[1], output.double().mean(dim=1), atol=1e-5)
    assert torch.equal(moments.gate_mean, moments.output_mean)


def test_batches_make_no_difference(model, corpora):
    small, large = (
        collect(model, corpora, tokens_per_batch=n, progress=False) for n in (16, 10_000)
    )
    assert torch.equal(small.tokens, large.tokens)
    # A gate within rounding of zero may fall to either side, so a handful of counts may differ.
    assert (small.fired - large.fired).abs().sum() <= 3


def test_permuted_languages_give_permuted_counts(model, corpora):
    turned = tuple(reversed(LANGUAGES))
    other = read_corpora(
        made_up(), turned, model, block_length=16, n_shards=5, bos="block", hygiene="off"
    )
    here, there = (collect(model, each, progress=False) for each in (corpora, other))
    assert torch.equal(here.fired, there.fired.flip(1))
    assert torch.equal(here.tokens, there.tokens.flip(1))


def test_padding_and_special_tokens_never_count(model):
    """Rows of different lengths, padded: the same counts as each row read alone."""
    sentences = read_sentences(made_up(40), LANGUAGES, model, n_shards=4, hygiene="off")
    assert len({int(n) for n in sentences.rows["de"].length}) > 1
    stats = collect(model, sentences, progress=False)
    for row, code in enumerate(LANGUAGES):
        gates = seen(model, sentences, code, "pre")
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
            stats.append(collect(model, text.subset((current,)), progress=False))
    fired = torch.cat([each.fired for each in stats], dim=1)
    tokens = torch.cat([each.tokens for each in stats], dim=1)
    whole = FiringStats(fired=fired, tokens=tokens, languages=LANGUAGES)
    share = 1 / (model.n_layers * model.d_mlp)
    assert select_by_entropy(whole, fraction=share).triples() == [(2, 1, 7)]


def test_sentence_means_are_those_of_the_definition(model, tmp_path):
    sentences = read_sentences(made_up(20), LANGUAGES, model, n_shards=4, hygiene="off")
    wanted = Wanted(sentence_means=("pre", "resid_post"))
    collect(model, sentences, tmp_path, wanted=wanted, progress=False)
    means = open_sentence_means(tmp_path)
    for kind in ("pre", "resid_post"):
        for code in LANGUAGES:
            rows = means.labels == LANGUAGES.index(code)
            alone = []
            one = sentences.rows[code]
            for number in range(len(one.ids)):
                subset = one.ids[number : number + 1, : int(one.length[number])].long()
                caught = []
                hook = (
                    model.site(2, kind),
                    lambda values, hook, caught=caught: caught.append(values[0].mean(dim=0)),
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


def test_signs_at_the_last_token_are_those_of_the_definition(model, tmp_path):
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(12).items()}
    prompts = read_prompts(short, LANGUAGES)
    rows = prompt_rows(prompts, model, n_shards=3)
    collect(model, rows, tmp_path, wanted=Wanted(signs=True), progress=False)
    signs = FiringSigns.load(tmp_path / "signs.safetensors")
    assert sorted(signs.prompts) == sorted(prompts.ids)
    for row, code in enumerate(LANGUAGES):
        for prompt, text in zip(prompts.ids, prompts.texts[code], strict=True):
            caught = []
            hook = (
                model.site(2, "pre"),
                lambda values, hook, caught=caught: caught.append(values[0, -1] > 0),
            )
            with model.hooks([hook]), torch.no_grad():
                model.body(torch.tensor([model.encode(text)]))
            found = signs.fires(2)[signs.prompts.index(prompt), row]
            assert (found != caught[0]).sum() <= 1


def test_an_output_of_exactly_zero_does_not_fire(tmp_path):
    """With ReLU what a silent neuron gives is zero, and about half of them are silent."""
    model = load(tiny_models.build("opt", tmp_path / "model"))
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(12).items()}
    rows = prompt_rows(read_prompts(short, LANGUAGES), model)
    fires = []
    for source in ("gate", "output"):
        out = tmp_path / source
        collect(model, rows, out, wanted=Wanted(signs=True, signs_of=source), progress=False)
        fires.append(FiringSigns.load(out / "signs.safetensors").fires(1))
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


def test_parts_in_any_order_leave_the_same_bytes(model, corpora, tmp_path):
    wanted = Wanted(moments=True)
    collect(model, corpora, tmp_path / "whole", wanted=wanted, progress=False)
    for index in (3, 1, 2):
        state = collect_part(
            model, corpora, tmp_path / "parts", (index, 3), wanted=wanted, progress=False
        )
    assert not state.missing
    merge(tmp_path / "parts")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_an_unfinished_run_is_not_merged(model, corpora, tmp_path):
    collect_part(model, corpora, tmp_path, (1, 3), progress=False)
    with pytest.raises(ValueError, match="5 of 15 pieces"):
        merge(tmp_path)


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
    collect_part(model, corpora, tmp_path / "run", (1, 5), progress=False)
    other = load(tiny_models.build("qwen2", tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match=r"started with another model .*weights was"):
        collect(other, corpora, tmp_path / "run", progress=False)


def test_the_same_model_in_another_folder_is_accepted(model, corpora, tmp_path):
    collect_part(model, corpora, tmp_path / "run", (1, 5), progress=False)
    copy = load(tiny_models.build("qwen2", tmp_path / "copy"))
    finished = collect(copy, corpora, tmp_path / "run", progress=False)
    assert torch.equal(finished.fired, collect(model, corpora, progress=False).fired)


def test_another_text_is_refused(model, corpora, tmp_path):
    collect_part(model, corpora, tmp_path, (1, 5), progress=False)
    other = read_corpora(
        made_up(50), LANGUAGES, model, block_length=16, n_shards=5, bos="block", hygiene="off"
    )
    with pytest.raises(ValueError, match="started with another corpora"):
        collect(model, other, tmp_path, progress=False)


def test_another_setting_is_refused(model, corpora, tmp_path):
    collect_part(model, corpora, tmp_path, (1, 5), progress=False)
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
        collect(broken, corpora, tmp_path / "run", wanted=Wanted(moments=True), progress=False)
    gate = broken.w_gate(2)
    assert gate is not None
    broken.w_in(1)[0, 3] = 0.0
    gate[0, 3] = float("inf")
    with pytest.raises(ValueError, match=r"layer 2 \(pre\)"):
        collect(broken, corpora, tmp_path / "other", progress=False)


def test_a_full_disk_is_one_sentence_and_loses_nothing(model, corpora, tmp_path, monkeypatch):
    collect_part(model, corpora, tmp_path, (1, 5), progress=False)
    before = files(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"was not saved .*No space left"):
        collect(model, corpora, tmp_path, progress=False)
    monkeypatch.undo()
    assert files(tmp_path) == before
    collect(model, corpora, tmp_path, progress=False)


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
    assert len(look(tmp_path).done) == 4
    stats = collect(model, corpora, tmp_path, progress=False)
    assert torch.equal(stats.fired, collect(model, corpora, progress=False).fired)


def test_packed_blocks_have_no_sentence_means(model, corpora, tmp_path):
    with pytest.raises(ValueError, match="read_sentences"):
        collect(model, corpora, tmp_path, wanted=Wanted(sentence_means=("pre",)), progress=False)


# ---------------------------------------------------------------- stopping


def test_a_run_stops_when_the_rule_says_so_also_after_a_kill(model, corpora, tmp_path):
    asked = []

    def rule(stats: FiringStats) -> bool:
        asked.append(stats.n_shards)
        return stats.n_shards == 3

    whole = collect(model, corpora, tmp_path / "a", stop_when=rule, progress=False)
    assert whole.n_shards == 3
    assert asked == [1, 2, 3]
    stopped = json.loads((tmp_path / "a" / "stopped.json").read_text())
    assert stopped["shards"] == 3
    assert sum(stopped["tokens"].values()) >= int(whole.tokens.sum())
    again = collect(model, corpora, tmp_path / "a", stop_when=rule, progress=False)
    assert torch.equal(whole.fired, again.fired)


def test_the_stability_rule_stops_sooner_when_less_is_asked(model, corpora, tmp_path):
    short, long = (
        collect(
            model,
            corpora,
            tmp_path / str(level),
            stop_when=until_stable(level, fraction=0.1, busy_quantile=0.5),
            progress=False,
        )
        for level in (0.05, 0.9999)
    )
    assert short.n_shards == 4 < long.n_shards == corpora.n_shards

"""Neurons planted in a pretrained model: it stays as it is, and they follow what they should."""

import copy
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

import interp
from experiments import confuse_pretrained as subject
from experiments.confuse_methods import EVERY_DECOY
from experiments.confuse_pretrained import (
    found_table,
    of_known,
    planted_and_measured,
    read_planting,
    silent,
)
from experiments.plant_in_pretrained import (
    LEAST_NOISE,
    SHRINKAGE,
    Host,
    Inputs,
    Planted,
    _gate,
    firing,
    read_inputs,
)
from experiments.planted import KINDS, Truth
from experiments.pretrained_features import (
    Feature,
    Sentence,
    Tokens,
    parallel_sentences,
    script_of,
)
from experiments.recover_planted import ALL, NONE, recovery
from experiments.runner import Record
from interp.plots.files import read_table
from interp.plots.style import Table
from interp.scores.choosers import Measurement
from interp.scores.methods import COMPARED

TINY = read_planting("pretrained-tiny")
EFFECT = max(TINY.effects)

# ---------------------------------------------------------------- features


def tokens_of(rows: list[list[int]], languages: list[int], n_vocab: int = 30) -> Tokens:
    sentences = [Sentence(language=row, topic=0, text="") for row in languages]
    return Tokens.of(rows, sentences, n_vocab)


def test_every_token_knows_its_language_and_place():
    tokens = tokens_of([[3, 4], [5, 5, 3]], [0, 1])
    assert tokens.ids.tolist() == [3, 4, 5, 5, 3]
    assert tokens.language.tolist() == [0, 0, 1, 1, 1]
    assert tokens.place.tolist() == [0, 1, 0, 1, 2]
    assert tokens.counts[:, [3, 4, 5]].tolist() == [[1, 1, 0], [1, 0, 2]]
    assert tokens.shared().nonzero().flatten().tolist() == [3]


def test_words_of_a_language_are_its_own_and_by_frequency():
    own = [id for id in range(1, 10) for _ in range(30 - id)]  # 1 is the commonest
    tokens = tokens_of([own + [20] * 50, [20] * 50], [0, 1])  # 20 is nobody's
    common, middle = tokens.words_of(0, 3)
    assert common == [1, 2, 3]
    assert middle == [4, 5, 6]
    with pytest.raises(ValueError, match="too few for 1 common and 1 middling"):
        tokens.words_of(1, 1)


def test_rare_tokens_make_up_the_stated_share_of_the_text():
    tokens = tokens_of([[1] * 80 + [2] * 10 + [3] * 6 + [4] * 4], [0])
    assert tokens.rare().nonzero().flatten().tolist() == [3, 4]


@pytest.mark.parametrize(
    ("text", "script"),
    [(" der", "Latin"), ("水", "Han"), ("の", None), ("12.", None), ("\ufffd", None)],
)
def test_a_token_is_written_in_the_script_of_its_first_letter(text: str, script: str | None):
    assert script_of(text) == script


def test_a_language_favors_its_topic_and_no_sentence_is_read_twice():
    languages = ("en", "de", "ja")
    learned, read = parallel_sentences(languages)
    assert len(learned) == 600
    assert not {(x.language, x.text) for x in learned} & {(x.language, x.text) for x in read}
    for row in range(3):
        topics = torch.bincount(torch.tensor([x.topic for x in read if x.language == row]))
        assert topics.argmax() == row
        assert topics[row] > 2.5 * topics.sum() / 3 / 2  # three times as many as of each other


# ---------------------------------------------------------------- directions


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    """What an MLP might read: correlated numbers, far from zero."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    states = torch.randn(4000, 6, generator=generator, dtype=torch.float64) @ mix + 3
    states[:1000] += torch.tensor([2.0, 0, 0, -1, 0, 0]).double()
    return states


def inputs_of(states: torch.Tensor, on: torch.Tensor) -> Inputs:
    return Inputs(
        gram=states.T @ states / len(states),
        mean=states.mean(dim=0),
        on=states[on].mean(dim=0)[None],
        share=on.double().mean()[None],
    )


def test_the_direction_of_a_feature_has_the_stated_means_and_tells_it_best(states: torch.Tensor):
    on = torch.arange(len(states)) < 1000
    inputs = inputs_of(states, on)
    assert (states @ inputs.constant).mean().item() == pytest.approx(1)
    direction, variance = inputs.following(0, 1.5, -2.5)
    value = states @ direction
    assert value[on].mean().item() == pytest.approx(1.5)
    assert value[~on].mean().item() == pytest.approx(-2.5)
    around = torch.cat([value[on] - 1.5, value[~on] + 2.5])
    assert variance == pytest.approx((around**2).mean().item())
    # No change that keeps both means makes it vary less.
    means = torch.stack([states[on].mean(dim=0), states[~on].mean(dim=0)])
    _, _, basis = torch.linalg.svd(means)
    spread = inputs.covariance + SHRINKAGE * torch.diag(inputs.covariance.diagonal())
    for change in basis[2:]:
        for step in (-0.1, 0.1):
            moved = direction + step * change
            assert (moved @ spread @ moved) > direction @ spread @ direction


def test_a_gate_has_the_effect_and_a_variance_of_one(
    states: torch.Tensor, generator: torch.Generator
):
    on = torch.arange(len(states)) < 1000
    inputs = inputs_of(states, on)
    noise = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    _, variance = inputs.following(0, 0.5, -0.5)
    most = math.sqrt((1 - LEAST_NOISE**2) / variance)
    for effect, expected in ((0.5 * most, 0.5 * most), (9 * most, most)):
        gates = torch.stack([_gate(inputs, 0, effect, 1.0, drawn) for drawn in noise])
        value = states @ gates.T  # the noise tells the feature too, one way or the other
        assert (value[on].mean() - value[~on].mean()).item() == pytest.approx(expected, abs=0.15)
        within = (value[on].var(dim=0) + 3 * value[~on].var(dim=0)) / 4
        assert within.mean().item() == pytest.approx(1, rel=0.1)
    busy = states @ _gate(inputs, None, 9.0, -2.0, noise[0])
    assert (busy > 0).double().mean() > 0.9


def test_noise_has_mean_zero_and_variance_one(states: torch.Tensor, generator: torch.Generator):
    inputs = inputs_of(states, torch.arange(len(states)) < 1000)
    drawn = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    value = states @ inputs.noise(drawn).T
    assert value.mean(dim=0).abs().max() < 1e-9
    assert torch.allclose(value.var(dim=0, correction=0), torch.ones(50).double())


def test_a_dimension_that_is_always_zero_changes_nothing(
    states: torch.Tensor, generator: torch.Generator
):
    """As some of what Gemma's MLPs read are."""
    on = torch.arange(len(states)) < 1000
    wider = torch.cat([states[:, :3], torch.zeros(len(states), 1), states[:, 3:]], dim=1).double()
    one, other = inputs_of(states, on), inputs_of(wider, on)
    assert torch.allclose(states @ one.constant, wider @ other.constant)
    narrow, variance = one.following(0, 1.5, -2.5)
    wide, same = other.following(0, 1.5, -2.5)
    assert torch.allclose(states @ narrow, wider @ wide)
    assert variance == pytest.approx(same)
    drawn = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    noise = other.noise(drawn)
    assert torch.allclose((wider @ noise.T).var(dim=0, correction=0), torch.ones(50).double())
    assert noise[:, 3].abs().max() < 10 * noise[:, :3].abs().max()


@pytest.mark.parametrize("prefix", [(), (2,)])
def test_inputs_are_what_the_gates_read_of_text(
    prefix: tuple[int, ...], model: interp.NeuronModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(model), "prefix_ids", prefix)
    encoded = [[5, 9, 12, 7], [8, 3]]
    on = torch.tensor([True, False, False, False, True, False])
    features = [Feature(kind="word", group=0, neurons=1, on=on)]
    found = read_inputs(model, encoded, features, at_once=2)
    gates: list[torch.Tensor] = []

    def keep(gate: torch.Tensor, hook: object) -> None:
        gates.append(gate[0, len(model.prefix_ids) :].double())

    for ids in encoded:
        with model.hooks([(model.site(1, "pre"), keep)]):
            model.body(torch.tensor([[*model.prefix_ids, *ids]]))
    gate, weight = torch.cat(gates), model.w_gate(1)
    assert weight is not None
    assert torch.allclose(gate.mean(dim=0), found[1].mean @ weight.double(), atol=1e-5)
    assert torch.allclose(gate[on].mean(dim=0), found[1].on[0] @ weight.double(), atol=1e-5)
    products = (gate.T @ gate) / len(gate)
    assert torch.allclose(products, weight.double().T @ found[1].gram @ weight.double(), atol=1e-5)
    assert found[1].share.item() == pytest.approx(2 / 6)
    size = gate.std(dim=0, correction=0).median().item()
    assert found[1].size(weight) == pytest.approx(size, rel=1e-4)


# ---------------------------------------------------------------- in Babel


@pytest.fixture(scope="module")
def host() -> Host:
    return Host(interp.load("babel"), TINY, *parallel_sentences(TINY.languages))


@pytest.fixture(scope="module")
def planted(host: Host) -> Planted:
    return host.plant(EFFECT, 0, EVERY_DECOY)


@pytest.fixture(scope="module")
def rate(host: Host, planted: Planted) -> torch.Tensor:
    return interp.collect(planted.model, host.text, progress=False).firing.rate


@pytest.mark.slow
def test_the_model_itself_stays_as_it_was(host: Host, planted: Planted):
    before, after, width = host.model, planted.model, host.model.d_mlp
    assert after.d_mlp > width
    for layer in range(before.n_layers):
        assert torch.equal(before.w_in(layer), after.w_in(layer)[:, :width])
        assert torch.equal(before.w_out(layer), after.w_out(layer)[:width])
    ids = torch.tensor([before.encode("Meine Großmutter bewahrt die Briefe auf.")])
    silent = host._widened(host._added(EFFECT, torch.Generator().manual_seed(0), EVERY_DECOY), 0.0)
    assert torch.allclose(silent.logits(ids), before.logits(ids), atol=1e-3)
    assert not torch.allclose(after.logits(ids), before.logits(ids), atol=1e-3)


@pytest.mark.slow
def test_no_language_loses_more_than_was_allowed(host: Host, planted: Planted):
    losses = interp.evaluations.losses_under(
        planted.model, host._judged, {"nothing": None}, progress=False
    )
    nats = losses.nats[:, 0].sum(dim=0) / losses.tokens.sum(dim=0)
    rise = (nats - host._before).max().item()
    assert rise == pytest.approx(planted.rise)
    assert rise <= TINY.loss
    loud = copy.copy(host)
    loud.planting = replace(TINY, loss=-1.0)
    with pytest.raises(ValueError, match=r"and at most -1\.0 is allowed"):
        loud.plant(EFFECT, 0, EVERY_DECOY)


@pytest.mark.slow
def test_planted_neurons_follow_their_language_and_decoys_something_else(
    host: Host, planted: Planted, rate: torch.Tensor
):
    cells = firing(rate, planted.truth)
    assert cells["own"] > 0.5
    assert cells["own"] > 5 * cells["others"]
    assert cells["busy_others"] > 0.8
    for kind in ("script", "domain", "position", "rarity", "pair"):  # no language's own
        assert cells[f"{kind}_most"] < 12 * cells[f"{kind}_others"], kind
    for kind in ("word", "rare", "context"):  # a language's own, but seldom
        assert cells[f"{kind}_most"] < 0.5 * cells["own"], kind
        assert cells[f"{kind}_most"] > 2 * cells[f"{kind}_others"], kind
    count = torch.bincount(planted.truth.kind.flatten(), minlength=len(KINDS))
    assert count[1] == TINY.planted * len(TINY.languages)
    assert (count[2:] > 0).all()


@pytest.mark.slow
def test_the_effect_changes_planted_gates_alone_and_the_seed_changes_all(host: Host):
    def added(effect: float, seed: int, decoys: tuple[str, ...] = EVERY_DECOY):
        return host._added(effect, torch.Generator().manual_seed(seed), decoys)

    one, other, again = added(2.0, 0), added(5.0, 0), added(2.0, 0)
    language = one.truth.kind[:, host.model.d_mlp :] == KINDS.index("language")
    assert torch.equal((one.gate != other.gate).any(dim=-1), language)
    assert torch.equal(one.gate, again.gate)
    assert not torch.equal(one.gate, added(2.0, 1).gate)
    bare = added(2.0, 0, ())
    assert torch.equal(bare.gate[language], one.gate[language])
    assert not bare.gate[~language].any()
    assert not bare.linear[~language].any()


def test_a_model_without_gates_is_refused(model: interp.NeuronModel, monkeypatch):
    monkeypatch.setattr(model, "gated", False)
    with pytest.raises(ValueError, match="MLPs without gates: plant in a gated model"):
        Host(model, TINY, [], [])


# ---------------------------------------------------------------- the tables


def test_the_models_own_neurons_are_in_no_share():
    kind = torch.tensor([[0, 0, 0, 1, 2]])
    own = torch.zeros(1, 1, 5, dtype=torch.bool)
    own[0, 0, 3] = True
    truth = Truth(
        interp.NeuronSelection(own, ("de",)), kind, torch.zeros(1, 5, dtype=torch.float64), 1.0
    )
    chosen = interp.NeuronSelection(torch.tensor([[[True, True, False, True, True]]]), ("de",))
    labels = {"decoys": ALL, "effect": 1.0, "seed": 0, "selector": "a"}
    rows = of_known(recovery(chosen, truth).assign(**labels))
    row = found_table(rows).iloc[0]
    assert row["chosen"] == 2
    assert row["precision"] == 0.5
    assert row["recall"] == 1
    assert row["natural"] == 0.5
    assert row["busy"] == 0.5


def run_tiny(host: Host, out: Path, seeds: int | None = None) -> None:
    """The preset `tiny` with a second seed, or the first alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "Host", lambda *_: host)
        patch.setattr(subject, "read_planting", lambda _: replace(TINY, seeds=2))
        config = replace(subject.experiment.presets["tiny"][1], out=out, seeds=seeds)
        subject.main(config, Record(out))


@pytest.fixture(scope="module")
def tables(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    out = tmp_path_factory.mktemp("tables")
    run_tiny(host, out)
    return out


@pytest.mark.slow
def test_a_killed_run_loses_one_model_and_changes_no_digit(
    host: Host, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plant, made = host.plant, []

    def killed(effect: float, seed: int, decoys: Collection[str]) -> Planted:
        if seed == 1:
            raise KeyboardInterrupt
        return plant(effect, seed, decoys)

    def noted(effect: float, seed: int, decoys: Collection[str]) -> Planted:
        made.append((seed, len(decoys)))
        return plant(effect, seed, decoys)

    monkeypatch.setattr(host, "plant", killed)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(host, tmp_path)
    monkeypatch.setattr(host, "plant", noted)
    run_tiny(host, tmp_path)
    assert made == [(1, len(EVERY_DECOY)), (0, 0), (1, 0)]
    for path in tables.glob("*.csv"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_more_seeds_go_on_from_fewer(
    host: Host, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plant, made = host.plant, []

    def noted(effect: float, seed: int, decoys: Collection[str]) -> Planted:
        made.append((seed, len(decoys)))
        return plant(effect, seed, decoys)

    run_tiny(host, tmp_path, seeds=1)
    assert set(read_table(tmp_path / "planting.csv")["seed"]) == {0}
    monkeypatch.setattr(host, "plant", noted)
    run_tiny(host, tmp_path)
    assert made == [(1, len(EVERY_DECOY)), (1, 0)]
    for path in tables.glob("*.csv"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_a_decoy_that_is_left_out_is_measured_as_a_silent_neuron(host: Host, tmp_path: Path):
    truth, bare = planted_and_measured(host, Record(tmp_path), EFFECT, 0, ())
    left_out = truth.is_kind("background")
    left_out[:, : host.model.d_mlp] = False
    assert left_out.any()
    other = silent(host)
    not_compared = {"head_norm", "head_importance", "apart_at_the_end"}
    for name in set(get_args(Measurement)) - not_compared:
        one, two = (seen[name][:, left_out] for seen in (bare, other))
        assert torch.allclose(one, two, rtol=0, atol=0, equal_nan=True), name


@pytest.mark.slow
def test_the_preset_tiny_finds_the_planted_and_is_fooled(tables: Path):
    names = ("found", "confusions", "planting")
    read: list[Table] = [read_table(tables / f"{name}.csv") for name in names]
    found, table, did = read
    assert set(found["selector"]) == set(COMPARED)
    assert set(table["decoy"]) == set(EVERY_DECOY)
    assert (did["rise"] <= TINY.loss).all()
    by_method = found.set_index(["decoys", "selector"])
    for method in ("lead in rate", "precision of gate", "divergence from others"):
        assert by_method.loc[(NONE, method), "recall"] > 0.4, method
    assert by_method.loc[(ALL, "random"), "recall"] < 0.3
    assert by_method.loc[(ALL, "rate (LAP)"), "natural"] > 0.5  # Babel has busy neurons of its own
    share = table.set_index(["method", "decoy"])["share"]
    assert share[("entropy alone", "word")] > 0.2
    assert share[("entropy (LAPE)", "pair")] > 0.2
    assert share[("entropy (LAPE)", "busy")] == 0

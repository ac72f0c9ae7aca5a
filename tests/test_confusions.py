"""Which decoy fools which method: the subtle decoys, the fixed planting, and the table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import confuse_methods as subject
from experiments.confuse_methods import EVERY_DECOY, PLANTING, confusions, read_planting
from experiments.planted import DECOYS, KINDS, SUBTLE, Planted, Truth, plant, read_text
from experiments.recover_planted import ALL, NONE, compare
from experiments.runner import Record
from interp.scores.choosers import Measured
from interp.scores.methods import COMPARED

DESIGN = read_planting("tiny").design
N = len(DESIGN.languages)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    generator = torch.Generator().manual_seed(0)
    return plant(DESIGN, 6.0, generator, tmp_path_factory.mktemp("model"), EVERY_DECOY)


def fires_on(planted: Planted, kind: str) -> torch.Tensor:
    """Whether the neurons of a kind fire on a word without context, as [neuron word]."""
    return planted.gates[planted.truth.is_kind(kind)] @ planted.vectors.T > 0


def test_neurons_of_a_word_fire_on_it_and_hardly_on_others(planted):
    fires = fires_on(planted, "word")
    assert len(fires) == N * DESIGN.decoys
    assert (fires.sum(dim=1) == 1).all()
    words = fires.long().argmax(dim=1).sort().values
    common = torch.cat([planted.words.by_frequency(row)[: DESIGN.decoys] for row in range(N)])
    assert torch.equal(words, common.sort().values)


def test_neurons_of_rarity_fire_on_rare_words_of_every_language(planted):
    fires, words = fires_on(planted, "rarity").double(), planted.words
    for row in range(N):
        speaks = words.speaks[:, row]
        assert fires[:, speaks & words.rare].mean() > 0.6
        assert fires[:, speaks & ~words.rare].mean() < 0.1


def test_neurons_of_a_pair_fire_on_two_languages_of_different_scripts(planted):
    fires, words = fires_on(planted, "pair").double(), planted.words
    assert len(fires) == N // 2 * DESIGN.decoys
    rate = torch.stack([fires[:, words.speaks[:, row]].mean(dim=1) for row in range(N)])
    two = rate.topk(2, dim=0).indices.sort(dim=0).values
    assert torch.equal(two[1] - two[0], torch.full((len(fires),), N // 2))
    assert rate.topk(2, dim=0).values.mean() > 0.6
    assert rate.sort(dim=0).values[:-2].mean() < 0.1


def test_neurons_of_context_fire_on_shared_words_in_their_language_alone(planted):
    assert not fires_on(planted, "context")[:, planted.words.speaks.any(dim=1)].any()
    corpora = read_text(DESIGN, planted, 60, torch.Generator().manual_seed(1))
    rate = interp.collect(planted.model, corpora, progress=False).firing.rate
    context = rate[:, planted.truth.is_kind("context")]
    best = context.sort(dim=0).values
    assert best[-1].mean() > 0.04
    assert best[-2].mean() < 0.25 * best[-1].mean()
    assert torch.bincount(context.argmax(dim=0), minlength=N).min() >= DESIGN.decoys - 2


def test_other_neurons_are_as_without_the_subtle_decoys(planted, tmp_path):
    without = plant(DESIGN, 6.0, torch.Generator().manual_seed(0), tmp_path, DECOYS)
    subtle = torch.stack([planted.truth.is_kind(kind) for kind in SUBTLE]).any(dim=0)
    assert torch.equal(planted.gates[~subtle], without.gates[~subtle])
    assert torch.equal(planted.truth.kind[~subtle], without.truth.kind[~subtle])
    assert (without.truth.kind[subtle] == KINDS.index("background")).all()
    assert planted.truth.selection == without.truth.selection


def test_the_planting_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("tiny", "babel"):
        planting = read_planting(name)
        assert max(planting.effects) == 6.0
        assert planting.seeds >= 2
    assert read_planting("babel").seeds == 20
    misspelled = PLANTING.read_text(encoding="utf-8").replace("n_noise", "noise")
    (tmp_path / "planting.toml").write_text(misspelled, encoding="utf-8")
    monkeypatch.setattr(subject, "PLANTING", tmp_path / "planting.toml")
    with pytest.raises(ValueError, match="sets noise, which no design has"):
        read_planting("tiny")


def test_a_confusion_is_a_share_of_the_chosen_and_what_it_costs():
    rows = []
    for seed in (0, 1):
        for code in DESIGN.languages:
            for decoys, found, word in ((NONE, 8, 0), ("word", 6, 2), ("pair", 8, 0)):
                rows.append(
                    {"selector": "a", "decoys": decoys, "effect": 6.0, "seed": seed}
                    | {"language": code, "planted": 8, "chosen": 8, "found": found}
                    | {"word": word, "pair": 0}
                )
    table = confusions(pd.DataFrame(rows), ("word", "pair")).set_index("decoy")
    word, pair = table.loc["word"], table.loc["pair"]
    assert (word["share"], pair["share"]) == (0.25, 0)
    assert word["share_low"] < 0.25 < word["share_high"]
    assert word["lost"] == pytest.approx(0.25)
    assert pair["lost"] == pytest.approx(0)
    wide = subject.who_is_fooled(table.reset_index())
    assert list(wide.columns) == ["method", "word", "pair"]
    assert wide.loc[0].tolist() == ["a", 0.25, 0.0]


@pytest.mark.slow
def test_the_preset_tiny_says_who_is_fooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With one strength and one seed: the words of a language fool who looks at entropy alone."""
    tiny = read_planting("tiny")
    few = replace(tiny, effects=(6.0,), seeds=1, design=replace(tiny.design, sentences=30))
    monkeypatch.setattr(subject, "read_planting", lambda name: few)
    config = replace(subject.experiment.presets["tiny"][1], out=tmp_path)
    subject.main(config, Record(tmp_path))
    found, table = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("found", "confusions"))
    assert set(found["selector"]) == set(COMPARED) == set(table["method"])
    assert set(found["decoys"]) == {NONE, ALL}
    assert set(table["decoy"]) == set(EVERY_DECOY)
    share = table.set_index(["method", "decoy"])["share"]
    assert share[("entropy alone", "word")] > 0.3
    assert share[("rate (LAP)", "busy")] > 0.9
    assert share[("entropy (LAPE)", "rarity")] == 0
    by_kind = found.set_index(["decoys", "selector"])
    assert by_kind.loc[(NONE, "distribution (DLN)"), "recall"] > 0.5
    assert by_kind.loc[(NONE, "divergence from others"), "recall"] > 0.5
    assert not math.isnan(by_kind.loc[(ALL, "effect on the loss"), "recall"])
    monkeypatch.setattr(subject, "planted_and_measured", lambda *_: pytest.fail("made anew"))
    subject.main(config, Record(tmp_path))
    assert pd.read_csv(tmp_path / "confusions.csv").equals(table)


def test_a_killed_comparison_makes_the_models_that_are_missing(tmp_path: Path):
    """And the model without decoys once for each seed that has one to make."""
    made, killed_at = [], "2-1"
    languages, shape = ("de", "ja"), (1, 6)
    truth = Truth(
        interp.NeuronSelection(torch.ones(2, *shape, dtype=torch.bool), languages),
        torch.ones(shape, dtype=torch.int64),
        torch.zeros(shape, dtype=torch.float64),
        1.0,
    )

    def make(effect: float, seed: int, decoys: Sequence[str]) -> tuple[Truth, Measured]:
        made.append((effect, seed, bool(decoys)))
        generator = torch.Generator().manual_seed(seed)
        rate = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
        return truth, Measured(languages, generator, {"rate": lambda: rate})

    def kept(name: str, rows: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        if name == killed_at:
            raise KeyboardInterrupt
        return Record(tmp_path).piece(name, rows)

    methods = {name: COMPARED[name] for name in ("random", "rate (LAP)")}
    run = partial(compare, make, 2, (1.0, 2.0), range(2), methods, progress=False)
    with pytest.raises(KeyboardInterrupt):
        run(piece=kept)
    assert made == [(1, 0, False), (1, 0, True), (2, 0, True), (1, 1, False), (1, 1, True)]
    made.clear()
    killed_at = ""
    resumed = run(piece=kept)
    assert made == [(1, 1, False), (2, 1, True)]
    pd.testing.assert_frame_equal(resumed, run(), check_exact=True)

"""The study of training: every part runs, and its tables are what they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interp
from experiments import train_neurons as study
from interp.inference.claims import load_claims
from interp.interventions.recipe import Recipe
from tests import tiny_models


def test_lora_has_as_many_weights_and_changes_nothing_untrained():
    pytest.importorskip("peft")
    model = interp.load("babel", dtype=torch.float32)
    mask = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    mask[:, :40] = True
    size = study.n_weights(model, mask)
    assert size == 6 * 40 * 3 * 256
    plain = study.with_lora(study.Weights(model).runnable(), size, seed=0)
    movables = study.whole(plain, "lora_")
    found = sum(plain.get_parameter(movable.name).numel() for movable in movables)
    assert 0.6 * size < found < 1.4 * size
    ids = torch.tensor([model.encode("Der Hund schl\u00e4ft.")])
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=ids).logits, model.logits(ids), atol=1e-4)


def small(folder: Path) -> study.Config:
    """The preset `tiny`, on a model that knows nothing."""
    preset = study.experiment.presets["tiny"][1]
    model = tiny_models.build("llama", folder / "model")
    return replace(
        preset,
        study=replace(preset.study, model=str(model), tokens=1280, out=folder),
        learned_tokens=1280,
        fraction=0.05,
        recipe=Recipe(steps=2, rows=2, rows_at_once=2),
        out=folder,
    )


@pytest.mark.slow
def test_the_rate_is_raised_until_the_gain_falls(tmp_path: Path, monkeypatch):
    """Trained on nothing: the gain of each rate is given. The one before it fell is the best."""
    gains = {1e-4: 0.1, 1e-3: 0.3, 1e-2: 0.2, 1e-1: 0.9}
    made = []

    def make(self: Any, path: Path, way: str, rate: float, seed: int, model: Any) -> None:
        made.append((way, rate, seed))
        before = self._before
        learned = before.languages.index("de")
        nats = before.nats.clone()
        nats[..., learned] -= gains[rate] * before.tokens[:, None, learned]
        replace(before, nats=nats, interventions=(way,)).save(path)

    monkeypatch.setattr(study.Trainings, "_make", make)
    config = replace(small(tmp_path), rates=tuple(gains), seeds=2)
    trainings = study.Trainings(config, interp.load(config.study.model)).all()
    for way in study.WAYS:
        own = [(part.rate, part.seed) for part in trainings if part.way == way]
        assert own == [(1e-3, 0), (1e-4, 0), (1e-2, 0), (1e-3, 1)]
    _, ways = study.tables(trainings, "de")
    assert ways["gain"].tolist() == pytest.approx([0.3] * 8)
    assert ways["forgetting"].abs().max() == 0


@pytest.mark.campaign
def test_every_way_is_trained_with_every_rate_and_then_with_its_best(tmp_path: Path):
    pytest.importorskip("peft")
    config = small(tmp_path)
    study.experiment.run(config)
    ways = pd.read_csv(tmp_path / "ways.csv")
    assert ways.groupby("way")["seed"].apply(list).to_dict() == {way: [0, 1] for way in study.WAYS}
    assert (ways.groupby("way")["rate"].nunique() == 1).all()
    losses = pd.read_csv(tmp_path / "losses.csv")
    assert len(losses) == 4 * 3 * 3  # ways; two rates and one more seed; languages
    assert (losses["increase"].abs() > 0).all()
    assert len(load_claims(tmp_path / "claims.json")) == 4
    gain = -losses[(losses["read"] == "de") & (losses["rate"] == ways["rate"][0])]["increase"]
    assert ways["gain"][0] == pytest.approx(gain.iloc[0], abs=1e-4)
    again = (tmp_path / "ways.csv").read_bytes()
    (tmp_path / "ways.csv").unlink()
    trained = sorted((tmp_path / "trainings").iterdir())
    assert len(trained) == 4 * 3
    trained[5].unlink()
    written = {path: path.stat().st_mtime_ns for path in trained if path.exists()}
    study.experiment.run(config)
    assert (tmp_path / "ways.csv").read_bytes() == again
    assert {path: path.stat().st_mtime_ns for path in written} == written
    with pytest.raises(ValueError, match="was started with another recipe"):
        study.experiment.run(replace(config, recipe=Recipe(steps=3, rows=2, rows_at_once=2)))

"""The study of training: every part runs, and its tables are what they say."""

from dataclasses import replace
from pathlib import Path

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


@pytest.mark.campaign
def test_every_way_is_trained_with_every_rate_and_then_with_its_best(tmp_path: Path):
    pytest.importorskip("peft")
    preset = study.experiment.presets["tiny"][1]
    model = tiny_models.build("llama", tmp_path / "model")
    small = replace(preset.study, model=str(model), tokens=1280, out=tmp_path)
    config = replace(
        preset,
        study=small,
        learned_tokens=1280,
        fraction=0.05,
        recipe=Recipe(steps=2, rows=2, rows_at_once=2),
        out=tmp_path,
    )
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

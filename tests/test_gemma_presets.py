"""The presets `gemma`: they name a model that can be fetched, take other data, and run through.

The model is replaced by a tiny Gemma 3 with random weights, which knows no facts: the study that
patches between known facts is left out.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tyro

import interp
from experiments import compare_methods, gemma, reproduce, study
from experiments.real_models import MODELS
from experiments.runner import for_model
from tests import planted_rows, tiny_models

MAX_LENGTH = 512

STUDIES = tuple(name for name in reproduce.STUDIES if name != "recover_planted")

SHORT = {"n_texts": 2, "max_new_tokens": 6}
SMALLER: Mapping[str, Mapping[str, Any]] = {
    "deactivate_neurons": {**SHORT, "fractions": (0.08,), "tried": 0.08, "n_draws": 1, "begin": 4},
    "detect_languages": {"sizes": (20,)},
    "steer_language": {
        "fractions": (0.08,),
        "units": (20,),
        "strengths": (2.0,),
        "layers": (1,),
        "n_natural": 20,
        "n_sweep": 1,
        "n_final": 2,
        "max_new_tokens": 6,
    },
    "steer_translation": {"units": 20, "n": 2, "max_new_tokens": 6},
    "edit_knowledge": {"n_prompts": 2, "steps": 4, "n_draws": 1},
    "map_shared_neurons": {
        "tasks": ("babel/word_translation",),
        "n_prompts": 2,
        "steps": 4,
        "thresholds": (0.0, 0.2),
        "n_draws": 1,
    },
    "attribute_neurons": {"n_prompts": 2, "n_neurons": 20, "steps": 4, "top": 5},
    "compare_methods": {**SHORT, "neurons": 10, "read": 128, "guard_texts": 20},
    "lens_by_language": {"n_facts": 30, "n_draws": 1},
    "compare_readings": {"fraction": 0.08},
    "explain_language": {"fraction": 0.08},
    "compare_labels": {"fraction": 0.08},
}


def preset(name: str) -> tuple[str, Any]:
    return importlib.import_module(f"experiments.{name}").experiment.presets["gemma"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_the_preset_of_a_model_that_can_be_fetched(name: str):
    text, config = preset(name)
    assert text.startswith("Gemma 3 270M")
    assert config.study.model == gemma.MODEL
    assert gemma.MODEL in MODELS


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_reads_other_text_and_tasks_in_more_languages(name: str):
    folders = {name: Path(name) for name in ("facts", "pairs", "edits", "topics")}
    data = gemma.Data(text=Path("news"), inferences=Path("inferences"), **folders)
    _, config = preset(name)
    found = tyro.cli(type(config), default=config, args=data.options(name))
    tasks = {"task": "facts", "facts": "facts", "tasks": ("facts", "inferences")}
    tasks |= {"pairs": Path("pairs"), "edits": "edits", "topics": "topics"}
    for field, value in tasks.items():
        if hasattr(config, field):
            assert getattr(found, field) == value
    only_tasks = ("map_shared_neurons", "edit_knowledge", "attribute_neurons", "compare_labels")
    reads_text = name not in only_tasks
    assert found.study.text == ("news" if reads_text else "babel")
    many = {
        "detect_languages": gemma.MANY,
        "explain_language": gemma.SCRIPTS,
        "map_shared_neurons": gemma.MANY_TASKS,
    }
    assert found.study.languages == many.get(name, study.LANGUAGES)
    assert gemma.Data().options(name) == []


def test_studies_of_the_same_text_and_languages_share_what_they_count():
    folders = {for_model(preset(name)[1]).study.out for name in STUDIES}
    assert len(folders) == 1
    _, config = preset("detect_languages")
    args = gemma.Data(text=Path("news")).options("detect_languages")
    assert for_model(tyro.cli(type(config), default=config, args=args)).study.out not in folders


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
@pytest.mark.filterwarnings("ignore:The selection has no neurons")  # of so few
@pytest.mark.parametrize("name", SMALLER)
def test_a_preset_runs_through_on_a_small_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "model"
    tiny_models.build("gemma3", folder)
    config = json.loads((folder / "config.json").read_text())
    lengths = {"max_position_embeddings": MAX_LENGTH, "sliding_window": MAX_LENGTH}
    (folder / "config.json").write_text(json.dumps(config | lengths))
    tokenizer = tiny_models.tokenizer()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr(study, "fetched", lambda _: folder)
    monkeypatch.setattr(compare_methods, "recovery", planted_rows.made_up)  # alike in all presets
    monkeypatch.chdir(tmp_path)
    config = preset(name)[1]
    sizes = {"tokens": 1280, "held_out_tokens": 256, "sentences": 12, "n_shards": 2}
    languages = ("en", "de", "ja")
    small = replace(config.study, **sizes, block_length=32, languages=languages)
    experiment = importlib.import_module(f"experiments.{name}").experiment
    experiment.run(replace(config, study=small, **SMALLER[name]))
    written = Path("results") / name / "gemma" / gemma.MODEL
    claims = interp.inference.load_claims(written / "claims.json")
    models = {claim.on.split(",")[0] for claim in claims}
    assert models <= {MODELS[gemma.MODEL].title, "planted models"}
    assert all(len(pd.read_csv(path)) for path in written.rglob("*.csv"))


@pytest.mark.parametrize("name", compare_methods.PRESETS)
def test_every_shard_of_what_is_read_has_a_block(name: str):
    config = compare_methods.experiment.presets[name][1]
    shards = max(config.study.n_shards, 2)
    assert config.read >= shards * config.study.block_length

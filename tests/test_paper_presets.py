"""The presets `paper`: they name what they should, and each runs through on small models.

Replaced for that are the model, by one with random weights of the same architecture whose tokenizer
treats beginnings as the real one does, the data sets of the hub, by folders in their layout, and
sizes. Every study runs on one architecture, and every architecture through one study; all pairs of
them with POLYNEURON_GRID=1 pytest tests/test_paper_presets.py, in a few minutes.
"""

import importlib
import json
import os
import random
import re
import string
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import transformers
import tyro
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import interp
from experiments import compare_methods, paper_tasks, papers, study
from experiments.runner import for_model
from experiments.study import Study
from interp.counting.plan import plan_run
from tests import planted_rows, tiny_models

MAX_LENGTH = 512

ARCHITECTURES = {
    "bloom-560m": "bloom",
    "bloom-7b1": "bloom",
    "bloomz-7b1-mt": "bloom",
    "xglm-564M": "xglm",
    "Llama-2-7b-hf": "llama_mha",
    "Llama-3.2-1B": "llama",
    "Qwen3-0.6B-Base": "qwen3",
    "Mistral-7B-v0.1": "mistral",
}
"""Last part of the real name → the tiny model that stands for it."""

LETTERS = {
    "zh": "的一是在不了有和人这中大为上个国",
    "ja": "あいうえおかきくけこのはをにがで",
    "ru": "абвгдежзиклмнопрст",
    "th": "กขคงจชดตนบปมยรลวสห",
}

CODES = paper_tasks.Config().languages
"""Languages of the tasks."""

Shrunk = Mapping[str, Any]
SHORT = {"n_texts": 2, "max_new_tokens": 6}
FEW = {"languages": ("en", "zh", "ja")}

STUDIES: Mapping[str, tuple[Shrunk, str, tuple[str, ...]]] = {
    "deactivate_neurons": (
        {**SHORT, **FEW, "fractions": (0.08,), "tried": 0.08, "n_draws": 1, "begin": 4},
        "Llama-2-7b-hf",
        ("table.csv", "0.08/matrix.csv", "claims.json"),
    ),
    "detect_languages": ({"sizes": (20,)}, "bloom-560m", ("precision.csv", "claims.json")),
    "steer_language": (
        {
            **FEW,
            "fractions": (0.03,),
            "units": (20,),
            "strengths": (2.0,),
            "layers": (1,),
            "n_natural": 20,
            "n_sweep": 1,
            "n_final": 2,
            "max_new_tokens": 6,
        },
        "xglm-564M",
        ("sweep.csv", "final.csv", "claims.json"),
    ),
    "steer_translation": (
        {**FEW, "prompts": (2, 3), "units": 20, "n": 2, "max_new_tokens": 6, "japanese": "char"},
        "Llama-2-7b-hf",
        ("scores.csv", "texts.csv", "claims.json"),
    ),
    "map_shared_neurons": (
        {"n_prompts": 2, "steps": 4, "thresholds": (0.0, 0.2), "n_draws": 1}
        | {"languages": ("en", "th", "zh")},
        "bloomz-7b1-mt",
        ("xnli/off.csv", "mlama/enrichment.csv", "numbers.csv", "claims.json"),
    ),
    "edit_knowledge": (
        {"n_prompts": 2, "steps": 4, "n_draws": 1, "languages": ("en", "th", "zh")},
        "bloomz-7b1-mt",
        ("from-en/told.csv", "into-en/off.csv", "into-en/scores.csv", "claims.json"),
    ),
    "compare_tuned": (
        {
            "languages": ("en", "vi", "zh"),
            "tuned": "models/bloomz-7b1-mt",
            "fraction": 0.08,
            "n_draws": 1,
        },
        "bloom-7b1",
        ("xnli/sharing.csv", "mlama/answers.csv", "neurons.csv", "rates.csv", "claims.json"),
    ),
    "attribute_neurons": (
        {"n_prompts": 2, "n_neurons": 20, "steps": 4, "top": 5},
        "Qwen3-0.6B-Base",
        ("prompts.csv", "table.csv"),
    ),
    "compare_methods": (
        {
            **SHORT,
            **FEW,
            "tokens": 2400,  # of which an eighth must do
            "neurons": 10,
            "read": 128,
            "guard_texts": 20,
        },
        "Llama-3.2-1B",
        ("methods.csv", "stability.csv", "claims.json"),
    ),
    "patch_across_languages": (
        {**FEW, "n_told": 2, "n_held_out": 1},
        "Mistral-7B-v0.1",
        ("table.csv", "known.csv", "claims.json"),
    ),
    "lens_by_language": (
        {"n_draws": 1},
        "Llama-2-7b-hf",
        ("lens.csv", "promoted.csv", "claims.json"),
    ),
}
"""Study → what is made smaller, the real model of its preset, and some of what it writes."""

PAIRS = [
    (name, each)
    for name, (_, model, _) in STUDIES.items()
    for each in ARCHITECTURES
    if each == model or "POLYNEURON_GRID" in os.environ
]
"""Which studies run on which models."""


# ---------------------------------------------------------------- models and data


def tokenizer(model: str) -> PreTrainedTokenizerFast:
    """What stands before a text: BLOOM puts nothing though it has a token, XGLM another token than
    it calls so, Qwen has none, the others theirs."""
    fast = tiny_models.tokenizer().backend_tokenizer
    pad, bos, eos, _ = tiny_models.SPECIAL
    if model.startswith(("bloom", "Qwen")):
        fast.post_processor = processors.ByteLevel(trim_offsets=False)
    elif model.startswith("xglm"):
        fast.post_processor = processors.TemplateProcessing(
            single=f"{eos} $A", special_tokens=[(eos, tiny_models.EOS)]
        )
    named = {} if model.startswith("Qwen") else {"bos_token": bos}
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token=pad,
        eos_token=eos,
        model_max_length=MAX_LENGTH,
        **named,
    )


def checkpoint(model: str, folder: Path) -> Path:
    tiny_models.build(ARCHITECTURES[model], folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("max_position_embeddings", "sliding_window"):  # rows are shorter than the window
        if config.get(key):
            config[key] = MAX_LENGTH
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(model).save_pretrained(folder)
    return folder


def on_hub(folder: Path, split: str, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """A data set in the layout of the hub, with a configuration for each key."""
    folder.mkdir(parents=True)
    card = "---\nconfigs:\n"
    for name, each in rows.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in each)
        (folder / f"{name}.jsonl").write_text("".join(lines))
        card += f"- config_name: {name}\n  data_files:\n"
        card += f"  - split: {split}\n    path: {name}.jsonl\n"
    (folder / "README.md").write_text(card + "---\n")


def words(code: str, n: int, drawn: random.Random) -> str:
    letters = LETTERS.get(code) or random.Random(code).sample(string.ascii_lowercase, 14)
    gap = "" if code in ("zh", "ja", "th") else " "
    return gap.join("".join(drawn.choices(letters, k=drawn.randint(2, 6))) for _ in range(n))


def fact_rows(code: str) -> list[dict[str, Any]]:
    """Two relations of twelve subjects and three objects; no two objects, in any two languages,
    begin with the same token."""
    drawn = random.Random(code)
    names = {f"Q{n}": words(code, 1, drawn) for n in range(30)}
    for n in range(6):
        first = (string.ascii_letters + string.digits)[6 * CODES.index(code) + n]
        names[f"Q{20 + n}"] = first + names[f"Q{20 + n}"]
    rows = []
    for relation in ("P1", "P2"):
        verb = words(code, 1, drawn)
        for subject in range(12):
            thing = f"Q{20 + subject % 3 + 3 * (relation == 'P2')}"
            rows.append(
                {
                    "predicate_id": relation,
                    "sub_uri": f"Q{subject}",
                    "obj_uri": thing,
                    "sub_label": names[f"Q{subject}"],
                    "obj_label": names[thing],
                    "template": f"[X] {verb}: \u201c[Y]\u201d.",
                }
            )
    return rows


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data sets of the hub, small, the tasks made of them, and the models."""
    world = tmp_path_factory.mktemp("world")
    drawn = random.Random(0)
    read_in = dict.fromkeys((*papers.TANG.languages, *papers.LANGUAGES))
    articles = {
        study.TEXTS["wikipedia"].configs[code]: [
            {"title": "t", "text": words(code, 30, drawn)} for _ in range(40)
        ]
        for code in read_in
    }
    sentences = {
        code: [{"sentence1": words(code, 12, drawn), "label": 0} for _ in range(400)]
        for code in papers.KOJIMA.languages
    }
    pairs = {
        code: [
            {"premise": words(code, 3, drawn), "hypothesis": words(code, 3, drawn), "label": n % 3}
            for n in range(6)
        ]
        for code in papers.WANG.languages
    }
    on_hub(world / "hub/wikipedia", "train", articles)
    on_hub(world / "hub/paws-x", "train", sentences)
    on_hub(world / "hub/xnli", "test", pairs)
    on_hub(world / "hub/m_lama", "test", {code: fact_rows(code) for code in CODES})
    edits = world / papers.EDITS
    edits.mkdir(parents=True)
    for code in papers.WANG.languages:
        answers = [f"{('oak', 'day')[n % 2]} {n}" for n in range(6)]  # first tokens that differ
        texts = [[*(words(code, 3, drawn) for _ in range(3)), answer] for answer in answers]
        names = ("subject", "question", "rephrase", "target")
        rows = [{"id": str(n), **dict(zip(names, row, strict=True))} for n, row in enumerate(texts)]
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (edits / f"{code}.jsonl").write_text(lines, encoding="utf-8")
    for name in ARCHITECTURES:
        checkpoint(name, world / "models" / name)
    with pytest.MonkeyPatch.context() as patch:
        offline(patch, world)
        paper_tasks.main(
            paper_tasks.Config(
                facts=str(world / "hub/m_lama"),
                inferences=str(world / "hub/xnli"),
                out=world / "results/tasks",
            )
        )
    return world


def offline(patch: pytest.MonkeyPatch, world: Path) -> None:
    patch.setattr("datasets.config.HF_DATASETS_CACHE", world / "cache")
    patch.setattr("datasets.config.HF_MODULES_CACHE", str(world / "modules"))
    patch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture
def world(_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside it the paths of the presets are as they are."""
    offline(monkeypatch, _world)
    monkeypatch.chdir(_world)
    there = {
        name: replace(text, name=str(_world / "hub" / name)) for name, text in study.TEXTS.items()
    }
    monkeypatch.setattr(study, "TEXTS", there)
    monkeypatch.setattr(compare_methods, "recovery", planted_rows.made_up)  # alike in all presets
    return _world


def preset(name: str) -> tuple[str, Any]:
    return importlib.import_module(f"experiments.{name}").experiment.presets["paper"]


def dry_run(name: str, model: str) -> Path:
    """Run a preset through, small; its folder."""
    (_, config), smaller = preset(name), dict(STUDIES[name][0])
    small = replace(
        config.study,
        model=f"models/{model}",
        languages=smaller.pop("languages", config.study.languages),
        tokens=config.study.tokens and smaller.pop("tokens", 640),
        held_out_tokens=config.study.held_out_tokens and 256,
        sentences=config.study.sentences and 12,
        n_shards=2,
        block_length=32,
    )
    importlib.import_module(f"experiments.{name}").experiment.run(
        replace(config, study=small, **smaller)
    )
    return Path("results") / name / "paper" / model


def check(name: str, folder: Path) -> None:
    """Tables have rows, and claims were made where there are any."""
    for path in (folder / each for each in STUDIES[name][2]):
        assert len(
            pd.read_csv(path) if path.suffix == ".csv" else interp.inference.load_claims(path)
        )


# ---------------------------------------------------------------- they run


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
@pytest.mark.filterwarnings("ignore:The selection has no neurons")  # of so few
@pytest.mark.filterwarnings("ignore:.* is in torch.float16")  # as large models are
@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_a_paper_preset_runs_through_on_a_small_model(name: str, model: str, world: Path):
    check(name, dry_run(name, model))


# ---------------------------------------------------------------- they say what they are


def test_the_model_and_hours_of_a_preset_stand_in_its_description_and_in_the_table():
    table = (Path(study.__file__).parent / "README.md").read_text(encoding="utf-8")
    for name, (_, model, _) in STUDIES.items():
        text, config = preset(name)
        assert config.study.model.endswith(f"/{model}")
        assert text.startswith(config.study.model)
        (estimate,) = re.findall("Estimate: (.*) GPU hours", text)
        row = rf"\| `{name}` \| {re.escape(config.study.model)} \| .* \| {estimate}( \||,)"
        assert re.search(row, table), row


def test_hours_are_operations_divided_by_throughput():
    tokens = papers.TERAFLOPS["bfloat16"] * 1e12 * 3600 * 5 / (14.496e9)
    mistral = Study(model="mistralai/Mistral-7B-v0.1", dtype="bfloat16")
    assert papers.hours(mistral, tokens) == pytest.approx(5)
    assert papers.hours(replace(mistral, dtype="float32"), tokens) == pytest.approx(5 * 200 / 30)
    assert "Estimate: 5 GPU hours" in papers.preset(mistral, "text", tokens).text
    assert "less than 0.1 GPU hours for 1,000 tokens" in papers.preset(mistral, "text", 1000).text


SHAPES = {
    "bigscience/bloom-560m": ("Bloom", {"hidden_size": 1024, "n_layer": 24, "n_head": 16}, 250_880),
    "bigscience/bloomz-7b1-mt": (
        "Bloom",
        {"hidden_size": 4096, "n_layer": 30, "n_head": 32},
        250_880,
    ),
    "bigscience/bloom-7b1": ("Bloom", {"hidden_size": 4096, "n_layer": 30, "n_head": 32}, 250_880),
    "facebook/xglm-564M": (
        "XGLM",
        {"d_model": 1024, "ffn_dim": 4096, "num_layers": 24, "attention_heads": 16},
        256_008,
    ),
    "meta-llama/Llama-2-7b-hf": ("Llama", (4096, 11_008, 32, 32, 32), 32_000),
    "meta-llama/Llama-3.2-1B": ("Llama", (2048, 8192, 16, 32, 8), 128_256),
    "Qwen/Qwen3-0.6B-Base": ("Qwen3", (1024, 3072, 28, 16, 8), 151_936),
    "mistralai/Mistral-7B-v0.1": ("Mistral", (4096, 14_336, 32, 32, 8), 32_000),
}
"""The configs of the real models: kind, sizes, vocabulary."""
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@pytest.mark.parametrize("name", SHAPES)
def test_operations_per_token_are_those_that_a_plan_counts(name: str, tmp_path: Path):
    kind, sizes, vocabulary = SHAPES[name]
    if isinstance(sizes, tuple):
        sizes = dict(zip((*NAMES, "num_key_value_heads"), sizes, strict=True))
    more = {"Qwen3": {"head_dim": 128}, "XGLM": {"max_position_embeddings": 2048}}.get(kind, {})
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, vocab_size=vocabulary)
    config.architectures = [f"{kind}ForCausalLM"]
    config.save_pretrained(tmp_path)
    plan = plan_run(tmp_path, 1, 2048, n_shards=1, row_tokens=2048)
    assert plan.flops / plan.tokens / 1e9 == pytest.approx(papers.GIGAFLOPS[name], rel=1e-3)


def test_the_presets_have_the_settings_of_their_papers():
    tang, sharing, edits, translation = (
        preset(name)[1]
        for name in (
            "deactivate_neurons",
            "map_shared_neurons",
            "edit_knowledge",
            "steer_translation",
        )
    )
    assert tang.study.tokens % tang.study.block_length == 0
    assert (tang.study.block_length, tang.study.dtype) == (4096, "float16")
    assert (tang.tried, tang.study.held_out_tokens) == (0.01, 2**20)
    assert sharing.thresholds == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert round(sharing.top_share * 16_384) == round(edits.top_share * 16_384) == 800
    for config in (sharing, edits):
        assert config.off_at[0] == "all"
        assert config.study.model == "bigscience/bloomz-7b1-mt"
    assert set(edits.study.languages) == {*sharing.study.languages, "pt"}
    assert (translation.units, translation.n, translation.max_new_tokens) == (2000, 100, 128)
    assert translation.prompts == tuple(range(8))
    assert translation.study.special_tokens


# ---------------------------------------------------------------- folders


@pytest.mark.slow
def test_results_follow_the_model_that_is_asked_for():
    for name in STUDIES:
        module = importlib.import_module(f"experiments.{name}")
        parsed = tyro.extras.subcommand_type_from_defaults(
            {key: config for key, (_, config) in module.experiment.presets.items()}
        )
        folders = set()
        for model in papers.GIGAFLOPS:
            config = for_model(tyro.cli(parsed, args=["paper", "--study.model", model]))
            short = model.split("/")[1]
            assert config.out == config.study.out == Path(f"results/{name}/paper/{short}")
            folders.add(config.out)
        assert len(folders) == len(papers.GIGAFLOPS)


def test_no_two_presets_share_a_folder_but_babel_and_those_with_its_statistics():
    outs = [preset(name)[1].study.out for name in STUDIES]
    assert len(set(outs)) == len(outs)
    assert Study().out not in outs
    for name in STUDIES.keys() - {"compare_tuned"}:  # the shipped model has no tuned one
        module = importlib.import_module(f"experiments.{name}")
        _, config = module.experiment.presets["babel"]
        assert for_model(config) == config


def test_the_second_half_and_sentences_have_sizes_of_their_own():
    model = interp.load("babel")
    small = Study(languages=("de",), tokens=1024, held_out_tokens=256, n_shards=2, block_length=64)
    assert len(small.read(model, "train").rows["de"].ids) == 1024 // 64
    assert len(small.read(model, "held_out").rows["de"].ids) == 256 // 64
    alike = replace(small, held_out_tokens=None)
    assert len(alike.read(model, "held_out").rows["de"].ids) == 1024 // 64
    assert (small.n_sentences, replace(small, sentences=7).n_sentences) == (1024 // 30, 7)
    assert replace(small, tokens=None).n_sentences is None


def test_weights_are_opened_in_the_precision_asked_for():
    model = Study(dtype="bfloat16").open("hooked")
    assert str(model.dtype) == "torch.bfloat16"
    assert model.attention == "hooked"

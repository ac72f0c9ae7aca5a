"""The Language Model Evaluation Harness under interventions, offline, on local task files."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from interp.evaluations import harness
from interp.evaluations.harness import run_harness
from interp.evaluations.multiple_choice import choose
from interp.inference.intervals import mean_over_examples
from interp.interventions.edits import Change, deactivate
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.text.tasks import Item, Task
from tests import tiny_models
from tests.tiny_models import D_MLP, N_LAYERS

ROWS = [
    {"text": "the other day", "endings": [" in the city", " quiet", " on"], "answer": 1},
    {"text": "the end of", "endings": [" the table", " a day", " it"], "answer": 0},
    {"text": "never in", "endings": [" the city", " in", " quiet"], "answer": 2},
    {"text": "a quiet", "endings": [" day", " city", " thing"], "answer": 1},
]
YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: {target}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    folder = tmp_path_factory.mktemp("harness")
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    data = folder / "rows.jsonl"
    choice = YAML.format(name="endings", data=data, kind="multiple_choice", target="answer")
    choice += 'doc_to_choice: endings\ntarget_delimiter: ""\nmetric_list:\n  - metric: acc\n'
    (folder / "endings.yaml").write_text(choice, encoding="utf-8")
    reading = YAML.format(name="reading", data=data, kind="loglikelihood_rolling", target='""')
    reading = reading.replace("{{text}}", "").replace('target: ""', 'target: "{{text}}"')
    reading += "metric_list:\n  - metric: bits_per_byte\n"
    (folder / "reading.yaml").write_text(reading, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    return load(tiny_models.build("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def interventions(model: NeuronModel) -> dict:
    units = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
    units[:, :100] = True
    return {"nothing": None, "off": Change(units, deactivate)}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))


quiet = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports


@quiet
def test_multiple_choice_agrees_with_our_own(place, model, interventions):
    found = run_harness(model, ["endings"], interventions, include_path=place)
    items = [
        Item(str(n), row["text"], tuple(row["endings"]), row["answer"])
        for n, row in enumerate(ROWS)
    ]
    ours = choose(model, [Task("endings", "en", tuple(items))], interventions, progress=False)
    for name, mine in zip(interventions, ours, strict=True):
        here = found.scores[(found.scores["intervention"] == name)]
        accuracy = here[here["metric"] == "acc"]["value"].item()
        assert accuracy == pytest.approx(mine.accuracy().value.item())
        each = found.samples[
            (found.samples["intervention"] == name) & (found.samples["metric"] == "acc")
        ]
        assert list(each.sort_values("doc")["value"]) == mine.correct.double().tolist()


@quiet
def test_an_edit_changes_what_the_harness_reads(place, model, interventions):
    found = run_harness(model, ["reading"], {**interventions, "again": None}, include_path=place)
    values = found.scores.set_index("intervention")["value"]
    assert values["off"] != values["nothing"]
    assert values["again"] == values["nothing"]
    total, size = 0.0, 0
    for row in ROWS:
        # The harness puts its own token before those of a tokenizer that begins texts by itself.
        ids = [model.bos_id, model.bos_id, *model.encode(row["text"])]
        total += model.losses(torch.tensor([ids])).double().sum().item()
        size += len(row["text"].encode())
    assert values["nothing"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


@quiet
def test_intervals_are_over_examples_and_differences_paired(place, model, interventions):
    found = run_harness(model, ["endings", "reading"], interventions, include_path=place)
    frame = found.to_frame()
    off = frame[(frame["intervention"] == "off") & (frame["metric"] == "acc")].iloc[0]
    values = {
        name: torch.tensor(part.sort_values("doc")["value"].to_list())
        for name, part in found.samples[found.samples["metric"] == "acc"].groupby("intervention")
    }
    mean = mean_over_examples(values["off"])
    assert off["low"] == pytest.approx(mean.low.item())
    paired = mean_over_examples(values["off"] - values["nothing"])
    assert off["difference"] == pytest.approx(paired.value.item())
    assert off["difference_high"] == pytest.approx(paired.high.item())
    rolling = frame[frame["metric"] == "bits_per_byte"]
    assert len(rolling) == 2
    assert rolling["low"].isna().all()  # no mean over examples


@quiet
def test_the_model_and_its_tokenizer_stay_as_they_are(place, model, interventions):
    before, tokenizer = model.fingerprint, copy.deepcopy(model.tokenizer.special_tokens_map)
    run_harness(model, ["endings"], interventions, include_path=place, limit=2)
    assert model.fingerprint == before
    assert model.tokenizer.special_tokens_map == tokenizer


def test_what_cannot_be_run_is_refused(model, monkeypatch):
    with pytest.raises(ValueError, match="give a list of one or more task names"):
        run_harness(model, [])
    monkeypatch.setattr(harness.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install polyneuron\[eval\]"):
        run_harness(model, ["endings"])


def missing(name: str) -> None:
    raise ImportError(name)

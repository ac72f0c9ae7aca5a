"""What is written for Neuronpedia has the fields of its layout, and the numbers of the run."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.counting.collect import Keep, collect
from interp.reports.neuronpedia import read_neuronpedia, write_neuronpedia
from interp.selections.select import select_by_entropy
from tests import test_bake
from tests.campaigns.kills import blocks

checkpoint, open_model, llama = test_bake.checkpoint, test_bake.open_model, test_bake.llama

FIELDS = {
    "release.jsonl": {"name", "description", "creatorName", "creatorId", "urls"},
    "model.jsonl": {"id", "instruct", "creatorId", "layers", "neuronsPerLayer"},
    "sourceset.jsonl": {"modelId", "name", "creatorId", "releaseName", "visibility"},
    "source.jsonl": {"id", "modelId", "setName", "creatorId"},
    "features": {
        *("modelId", "layer", "index", "creatorId", "createdAt", "maxActApprox", "hasVector"),
        *("vector", "pos_str", "pos_values", "neg_str", "neg_values", "frac_nonzero"),
        *("neuron_alignment_indices", "correlated_features_l1", "decoder_weights_dist"),
        *("freq_hist_data_bar_heights", "logits_hist_data_bar_values"),
    },
    "activations": {
        *("id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex"),
        *("minValue", "values", "creatorId", "createdAt", "dataSource"),
    },
}
"""What the layout's importer reads, as its public converter writes it."""


def rows(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    text = gzip.decompress(content).decode() if path.suffix == ".gz" else content.decode()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_neurons_are_features_and_contexts_activations(llama, tmp_path):
    run = collect(llama, blocks(llama), keep=Keep(contexts=2), progress=False)
    chosen = select_by_entropy(run.firing, 0.1, 0.5)
    out = write_neuronpedia(llama, run.firing, chosen, run.contexts, tmp_path, name="tiny")
    mask = chosen.union()
    assert sorted(path.name for path in out.iterdir()) == [
        f"{layer}-language-neurons" for layer in mask.any(dim=1).nonzero().flatten().tolist()
    ]
    for source in out.iterdir():
        layer = int(source.name.split("-")[0])
        for file, fields in FIELDS.items():
            path = source / file
            written = rows(path if path.is_file() else path / "batch-0.jsonl.gz")
            assert all(fields <= row.keys() for row in written), file
        features = rows(source / "features" / "batch-0.jsonl.gz")
        assert [int(row["index"]) for row in features] == mask[layer].nonzero().flatten().tolist()
        activations = rows(source / "activations" / "batch-0.jsonl.gz")
        assert len({row["id"] for row in activations}) == len(activations)
        for feature in features:
            neuron = int(feature["index"])
            own = [row for row in activations if row["index"] == feature["index"]]
            strongest = run.contexts.gate[:, layer, neuron].max()
            wanted = torch.nn.functional.silu(strongest).item()
            assert feature["maxActApprox"] == pytest.approx(wanted, rel=1e-3)
            fired = run.firing.total[:, layer, neuron].sum().item()
            assert feature["frac_nonzero"] * run.firing.tokens.sum().item() == pytest.approx(fired)
            assert len(own) == int((run.contexts.row[:, layer, neuron] >= 0).sum())
            for row in own:
                assert len(row["tokens"]) == len(row["values"])
                assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
                assert row["dataSource"] in run.firing.languages
            assert feature["pos_values"] == sorted(feature["pos_values"], reverse=True)
            assert feature["neg_values"] == sorted(feature["neg_values"])
    table = read_neuronpedia(tmp_path).set_index(["layer", "neuron"])
    assert list(table.index) == [tuple(unit) for unit in mask.nonzero().tolist()]
    rate = run.firing.total.sum(dim=0) / run.firing.tokens.sum()
    for (layer, neuron), row in table.iterrows():
        assert row["rate"] == pytest.approx(rate[layer, neuron].item())
        assert row["contexts"] == int((run.contexts.row[:, layer, neuron] >= 0).sum())
    with pytest.raises(ValueError, match=r"tiny exists: name a new folder"):
        write_neuronpedia(llama, run.firing, chosen, run.contexts, tmp_path, name="tiny")


@pytest.mark.slow
def test_results_of_two_runs_are_refused(llama, tmp_path):
    run = collect(llama, blocks(llama), keep=Keep(contexts=2), progress=False)
    fewer = collect(llama, blocks(llama).languages_only(["de", "en"]), progress=False).firing
    chosen = interp.select_by_entropy(run.firing, 0.1, 0.5)
    with pytest.raises(ValueError, match="are not of one run"):
        write_neuronpedia(llama, fewer, chosen, run.contexts, tmp_path, name="tiny")


def exported(folder: Path, layer: str, features: list[Any], activations: list[Any]) -> Path:
    """One source of an export, by hand; the second kind of file is not compressed."""
    for name, records in (("features", features), ("activations", activations)):
        (folder / layer / name).mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(record) + "\n" for record in records)
        if name == "features":
            packed = gzip.compress(text.encode())
            (folder / layer / name / "batch-0.jsonl.gz").write_bytes(packed)
        else:
            (folder / layer / name / "batch-0.jsonl").write_text(text)
    return folder


def feature(layer: str, index: int, **other: Any) -> dict[str, Any]:
    return {
        **{"modelId": "m", "layer": layer, "index": str(index), "frac_nonzero": index / 100},
        **{"maxActApprox": 2.5, "pos_str": ["a", "b"], "neg_str": [], **other},
    }


def test_an_export_of_others_is_a_table(tmp_path):
    best = {"index": "7", "tokens": ["x", "y"], "maxValueTokenIndex": 1, "maxValue": 2.5}
    weaker = best | {"maxValueTokenIndex": 0, "maxValue": 1.0}
    exported(tmp_path, "10-mlp", [feature("10-mlp", 9), feature("10-mlp", 7)], [weaker, best])
    exported(tmp_path, "2-mlp", [feature("2-mlp", 7)], [])
    table = read_neuronpedia(tmp_path)
    assert table[["layer", "neuron"]].values.tolist() == [[2, 7], [10, 7], [10, 9]]
    assert table["rate"].tolist() == [0.07, 0.07, 0.09]
    assert table["contexts"].tolist() == [0, 2, 0]
    assert table["strongest"].tolist() == ["", "y", ""]
    assert table["promotes"][0] == "a  b"


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no folder named features: give the folder"):
        read_neuronpedia(tmp_path)
    wrong = feature("0-mlp", 1)
    del wrong["frac_nonzero"]
    for features, match in (
        ([wrong], r"batch-0.jsonl.gz is not a batch of an export .*'frac_nonzero'.*download"),
        ([feature("first", 1)], "is not a batch of an export"),
        ([["a"]], "is not a batch of an export"),
        ([], "hold no neuron"),
        ([feature("0-mlp", 1)] * 2, "has neuron 1 of 0-mlp twice"),
    ):
        with pytest.raises(ValueError, match=match):
            read_neuronpedia(exported(tmp_path, "0-mlp", features, []))
    (tmp_path / "0-mlp" / "features" / "batch-0.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-3])
    with pytest.raises(ValueError, match="or is damaged"):
        read_neuronpedia(tmp_path)

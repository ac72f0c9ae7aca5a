"""What is published comes back as it was, from a server that speaks the hub's few calls."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.repocard import metadata_load

import interp
from interp.cli import main
from interp.interventions.bake_card import read_edit
from interp.interventions.edits import Change, deactivate
from interp.models.neuron_model import NeuronModel
from interp.reports.hub import CHECKSUMS, from_hub, push_to_hub
from interp.results import artifacts
from interp.selections.neuron_selection import NeuronSelection
from tests import test_bake
from tests.campaigns.kills import LANGUAGES, blocks
from tests.hub_server import Hub, hub_server
from tests.test_bake import plain, some_units

checkpoint, open_model, llama = test_bake.checkpoint, test_bake.open_model, test_bake.llama


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A local hub, without a token on this machine."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("interp.reports.hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with hub_server() as server:
        yield server


def push(hub: Hub, path: Path, repo: str, **settings: object) -> str:
    return push_to_hub(path, repo, token="secret", endpoint=hub.address, **settings)


def pull(hub: Hub, repo: str, folder: Path) -> Path:
    return from_hub(repo, folder=folder, endpoint=hub.address)


def some_run(model: NeuronModel, folder: Path) -> Path:
    interp.collect(model, blocks(model), folder, progress=False)
    return folder


@pytest.mark.slow
def test_statistics_and_a_selection_come_back(hub: Hub, llama: NeuronModel, tmp_path: Path):
    run = some_run(llama, tmp_path / "run")
    neurons = interp.select_by_entropy(interp.Run.open(run).firing, 0.1, 0.5)
    record = artifacts.provenance(fraction=0.1, run=interp.Run.open(run).provenance)
    neurons.to_json(run / "neurons.json", record)
    address = push(hub, run, "me/statistics", license="cc0-1.0", note="By hand.", private=True)
    assert address == f"{hub.address}/datasets/me/statistics"
    assert hub.private["dataset", "me/statistics"]
    assert not any("pieces" in name for name in hub.repos["dataset", "me/statistics"])
    before = len(hub.tokens)
    folder = pull(hub, "me/statistics", tmp_path / "there")
    assert {token for _, token in hub.tokens[before:]} == {None}, "reading sends no token"
    assert torch.equal(interp.Run.open(folder).firing.fired, interp.Run.open(run).firing.fired)
    assert NeuronSelection.from_json(folder / "neurons.json") == neurons
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = metadata_load(folder / "README.md")
    assert front["license"] == "cc0-1.0"
    assert front["language"] == list(LANGUAGES)
    assert front["library_name"] == "polyneuron"
    assert "By hand." in card
    assert str(tmp_path) not in card
    for part in ("jackknife", "| shards of documents | 5 |", llama.fingerprint["weights"]):
        assert part in card
    push(hub, folder, "me/again")  # with the checksums that came with it
    again = pull(hub, "me/again", tmp_path / "again")
    assert torch.equal(interp.Run.open(again).firing.fired, interp.Run.open(run).firing.fired)
    push(hub, run / "neurons.json", "me/neurons")
    alone = pull(hub, "me/neurons", tmp_path / "alone")
    assert NeuronSelection.from_json(alone / "neurons.json") == neurons
    assert "| fraction | 0.1 |" in (alone / "README.md").read_text(encoding="utf-8")


def test_an_adapter_and_a_checkpoint_are_models(
    hub: Hub, llama: NeuronModel, checkpoint, tmp_path: Path
):
    change = Change(some_units(llama), deactivate)
    change.to_lora(llama, tmp_path / "off")
    interp.bake(llama, change.units, change.edit, tmp_path / "baked")
    for name in ("off", "baked"):
        push(hub, tmp_path / name, f"me/{name}-there", note="By hand.")
        folder = pull(hub, f"me/{name}-there", tmp_path / f"{name}-pulled")
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f'"me/{name}-there"' in card
        assert f'"{name}"' not in card
        assert "By hand." in card
        units, _ = read_edit(folder)
        assert torch.equal(units["post"], some_units(llama))
    assert set(hub.repos) == {("model", "me/off-there"), ("model", "me/baked-there")}
    here, there = (plain(tmp_path / name).state_dict() for name in ("baked", "baked-pulled"))
    assert all(torch.equal(tensor, there[key]) for key, tensor in here.items())


def test_a_page_comes_back(hub: Hub, tmp_path: Path):
    (tmp_path / "page.html").write_text("<p>one file</p>", encoding="utf-8")
    push(hub, tmp_path / "page.html", "me/page")
    folder = pull(hub, "me/page", tmp_path / "there")
    assert (folder / "page.html").read_text(encoding="utf-8") == "<p>one file</p>"
    many = tmp_path / "many"
    (many / "parts").mkdir(parents=True)
    (many / "index.html").write_text("<p>many</p>", encoding="utf-8")
    (many / "parts" / "1.js").write_text("1", encoding="utf-8")
    push(hub, many, "me/many")
    folder = pull(hub, "me/many", tmp_path / "many-there")
    assert (folder / "parts" / "1.js").read_text(encoding="utf-8") == "1"


def test_what_was_altered_on_the_way_is_refused(hub: Hub, tmp_path: Path):
    (tmp_path / "page.html").write_text("<p>one file</p>", encoding="utf-8")
    push(hub, tmp_path / "page.html", "me/page")
    files = hub.repos["dataset", "me/page"]
    files["page.html"] += b" "
    with pytest.raises(ValueError, match=r"page\.html of me/page is not what was published"):
        pull(hub, "me/page", tmp_path / "there")
    del files["page.html"]
    with pytest.raises(ValueError, match=r"page\.html of me/page is not what was published"):
        pull(hub, "me/page", tmp_path / "gone")
    sums = json.loads(files.pop(CHECKSUMS))
    assert set(sums) == {"page.html", "README.md"}
    with pytest.raises(ValueError, match=r"was not published by interp"):
        pull(hub, "me/page", tmp_path / "none")


def test_without_a_token_nothing_is_sent(hub: Hub, tmp_path: Path, capsys):
    (tmp_path / "page.html").write_text("<p>one file</p>", encoding="utf-8")
    with pytest.raises(ValueError, match="needs a token of the Hugging Face hub: run"):
        push_to_hub(tmp_path / "page.html", "me/page", endpoint=hub.address)
    assert hub.tokens == []
    with pytest.raises(OSError, match=r"me/page was not published: .*401"):
        push_to_hub(tmp_path / "page.html", "me/page", token="wrong", endpoint=hub.address)
    assert hub.repos == {}
    with pytest.raises(SystemExit):
        main(["push", str(tmp_path / "page.html"), "me/page"])
    assert "needs a token" in capsys.readouterr().err


def test_what_cannot_be_published_or_read_is_named(hub: Hub, tmp_path: Path):
    with pytest.raises(ValueError, match="is nothing to publish: give the folder of a finished"):
        push(hub, tmp_path, "me/nothing")
    with pytest.raises(FileNotFoundError, match=r"none\.json is missing"):
        push(hub, tmp_path / "none.json", "me/nothing")
    with pytest.raises(FileNotFoundError, match="me/nothing is neither a data set nor a model"):
        pull(hub, "me/nothing", tmp_path / "there")

"""A hub that cannot be reached is noticed at once, whoever wanted something of it."""

import socket
from pathlib import Path

import huggingface_hub
import pytest

import interp
from interp.models.hub import check_reachable
from interp.text.sources import HubDataset, read_documents


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The network is down: each look-up of an address fails, and is noted."""
    asked: list[str] = []

    def nowhere(host: str, *args: object, **settings: object) -> None:
        asked.append(str(host))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    return asked


def test_a_model_that_is_not_here_is_asked_for_once(refused: list[str]) -> None:
    sentence = (
        r"^nobody/nothing is neither a local folder nor cached, and the hub cannot be reached "
        r"\(.*not known\): check the name and the network"
    )
    with pytest.raises(OSError, match=sentence):
        interp.load("nobody/nothing")
    assert 1 <= len(refused) < 6  # Hugging Face's own loader asks six times, and waits in between


def test_a_dataset_that_is_not_here_is_asked_for_once(refused: list[str]) -> None:
    source = HubDataset("nobody/nothing", {"fr": "2023.fr"})
    with pytest.raises(OSError, match=r"^nobody/nothing .* give a folder that holds the dataset"):
        next(read_documents(source, "fr"))
    assert 1 <= len(refused) < 6


def test_where_it_is_told_to_stay_offline_it_asks_nobody(
    refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"nothing .* cannot be reached \(HF_HUB_OFFLINE is set\)"):
        interp.load("nobody/nothing")
    assert refused == []


def test_what_was_fetched_before_is_asked_for_nowhere(refused: list[str], tmp_path: Path) -> None:
    commit, repository = "0" * 40, tmp_path / "models--somebody--something"
    config = repository / "snapshots" / commit / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    check_reachable("somebody/something", "config.json", cache_dir=tmp_path)
    assert refused == []
    with pytest.raises(OSError, match="neither a local folder nor cached"):
        check_reachable("somebody/something", "config.json", cache_dir=tmp_path / "elsewhere")


def test_a_name_that_no_hub_has_is_left_to_its_loader(refused: list[str]) -> None:
    check_reachable("/a/folder/of/another/machine", "config.json")
    assert refused == []

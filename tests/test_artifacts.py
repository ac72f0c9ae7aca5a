"""Results on disk: whole or not at all, equal bytes for equal results, damage never read."""

import errno
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from interp.results import artifacts
from interp.runs.folder import begin, read_plan

KIND = "FiringStats"
LABELS = {"languages": ["de", "zh"], "note": 'größer, "大"'}
PROVENANCE = {"settings": {"seed": 0, "fraction": 0.01}, "versions": {"torch": "2.13.0"}}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.tensor([[3, 4], [5, 6]]),
        "fires": torch.tensor([[True, False, True]]),
        "rate": torch.rand(2, 3, generator=generator, dtype=torch.float64),
        "half": torch.rand(3, 2, generator=generator).bfloat16(),
        "one": torch.tensor(7.5),
        "none": torch.zeros(0, 4, dtype=torch.int32),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "stats.safetensors"
    artifacts.save(path, KIND, tensors(), LABELS, PROVENANCE)
    return path


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def save_again(path: Path) -> None:
    """Something else than the fixture saves, and larger than a write buffer."""
    artifacts.save(path, KIND, {"rate": torch.ones(100_000)}, {}, {})


def test_what_was_saved_comes_back(saved: Path):
    artifact = artifacts.load(saved, KIND)
    assert same(artifact.tensors, tensors())
    assert artifact.labels == LABELS
    assert artifact.provenance == PROVENANCE


@pytest.mark.parametrize("dtype", artifacts.DTYPES)
def test_every_stored_type_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path):
    given = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    artifacts.save(tmp_path / "x", KIND, {"given": given.T}, {}, {})  # not contiguous
    assert same(artifacts.load(tmp_path / "x", KIND).tensors, {"given": given.T.contiguous()})


def in_chunks(whole: Tensor, size: int) -> artifacts.ChunkedTensor:
    chunks = (chunk.clone() for chunk in whole.flatten().split(size))
    return artifacts.ChunkedTensor(whole.dtype, tuple(whole.shape), chunks)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_tensor_in_chunks_is_the_same_file_as_the_whole(size: int, saved: Path):
    other = saved.with_name("other")
    cut = {name: in_chunks(each, size) for name, each in tensors().items() if each.numel()}
    artifacts.save(other, KIND, tensors() | cut, LABELS, PROVENANCE)
    assert other.read_bytes() == saved.read_bytes()


def test_chunks_that_fail_leave_the_old_file_and_their_own_words(saved: Path):
    before = saved.read_bytes()

    def broken(error: Exception) -> Iterator[Tensor]:
        yield torch.zeros(2)
        raise error

    for error in (ValueError("piece 3 is damaged"), FileNotFoundError("piece 3 is missing")):
        chunks = artifacts.ChunkedTensor(torch.float32, (2, 2), broken(error))
        with pytest.raises(type(error), match=r"^piece 3 is"):
            artifacts.save(saved, KIND, {"rate": chunks}, {}, {})
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]


def test_a_lazy_tensor_is_read_by_entries(saved: Path):
    artifact = artifacts.load(saved, KIND, lazy=("tokens", "rate", "half"))
    assert set(artifact.tensors) == {"fires", "one", "none"}
    for name, lazy in artifact.lazy.items():
        whole = tensors()[name]
        assert (lazy.dtype, lazy.shape) == (whole.dtype, tuple(whole.shape))
        assert torch.equal(lazy.read(), whole)
        for row in range(len(whole)):
            assert torch.equal(lazy.read(row), whole[row])
            assert torch.equal(lazy.read(row, 1), whole[row, 1])
    with pytest.raises(ValueError, match="has no tensor 'speed'"):
        _ = artifact.lazy["speed"]


@pytest.mark.slow
def test_a_lazy_tensor_is_checked_like_the_others(saved: Path):
    whole = bytearray(saved.read_bytes())
    for place in range(len(whole)):
        broken = whole.copy()
        broken[place] ^= 1
        saved.write_bytes(broken)
        with pytest.raises(ValueError, match=r"truncated|damaged|not a result|newer"):
            artifacts.load(saved, KIND, lazy=list(tensors()))


def test_another_file_under_an_open_name_is_noticed(saved: Path):
    lazy = artifacts.load(saved, KIND, lazy=("rate",)).lazy["rate"]
    whole = saved.read_bytes()
    save_again(saved)
    with pytest.raises(ValueError, match="is not the file that was opened"):
        lazy.read(0)
    saved.write_bytes(whole[:-60])
    with pytest.raises(ValueError, match="was truncated after"):
        lazy.read(1)


def test_the_safetensors_library_reads_the_file(saved: Path):
    with safe_open(saved, "pt") as file:
        assert same({name: file.get_tensor(name) for name in file.keys()}, tensors())  # noqa: SIM118
        metadata = file.metadata()
    assert metadata["format"] == "polyneuron"
    assert metadata["version"] == "1"
    assert json.loads(metadata["labels"]) == LABELS


def test_equal_results_are_equal_files_whatever_the_order_of_the_keys(saved: Path):
    other = saved.with_name("other")
    backwards = dict(reversed(tensors().items()))
    artifacts.save(
        other, KIND, backwards, dict(reversed(LABELS.items())), dict(reversed(PROVENANCE.items()))
    )
    assert other.read_bytes() == saved.read_bytes()


def test_tensor_data_are_aligned_to_their_elements(saved: Path):
    blob = saved.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    widths = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "BOOL": 1}
    header = json.loads(blob[8 : 8 + length])
    del header["__metadata__"]
    assert length % 8 == 0
    for entry in header.values():
        assert entry["data_offsets"][0] % widths[entry["dtype"]] == 0


def test_a_loaded_result_survives_a_change_of_the_file(saved: Path):
    artifact = artifacts.load(saved, KIND)
    with saved.open("r+b") as file:
        file.write(bytes(saved.stat().st_size))
    assert same(artifact.tensors, tensors())


def test_a_file_cut_at_any_byte_is_refused(saved: Path):
    for size in reversed(range(saved.stat().st_size)):
        os.truncate(saved, size)
        with pytest.raises(ValueError, match=r"truncated|damaged"):
            artifacts.load(saved, KIND)


def test_a_byte_too_many_is_refused(saved: Path):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        artifacts.load(saved, KIND)


@pytest.mark.slow
def test_any_flipped_bit_is_refused(saved: Path):
    with saved.open("r+b", buffering=0) as file:
        for place, byte in enumerate(saved.read_bytes()):
            for bit in range(8):
                file.seek(place)
                file.write(bytes([byte ^ 1 << bit]))
                with pytest.raises(ValueError, match=r"truncated|damaged|not a result|newer"):
                    artifacts.load(saved, KIND)
            file.seek(place)
            file.write(bytes([byte]))
    assert same(artifacts.load(saved, KIND).tensors, tensors())


def test_another_kind_is_refused_with_both_names(saved: Path):
    with pytest.raises(ValueError, match="holds a FiringStats, not a SentenceMeans"):
        artifacts.load(saved, "SentenceMeans")


def test_a_newer_format_asks_for_an_upgrade(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(artifacts, "VERSION", 2)
    save_again(saved)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format 2 of a newer polyneuron.*upgrade"):
        artifacts.load(saved, KIND)


def test_other_files_and_folders_are_refused_in_words(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"missing\. Make it with the call that saves a FiringStats"
    ):
        artifacts.load(tmp_path / "none", KIND)
    with pytest.raises(ValueError, match="is a folder"):
        artifacts.load(tmp_path, KIND)
    other = tmp_path / "picture.png"
    other.write_bytes(b"\x89PNG\r\n\x1a\n" * 20)
    with pytest.raises(ValueError, match="not a result that polyneuron saved"):
        artifacts.load(other, KIND)


def test_what_cannot_be_stored_is_refused_and_nothing_is_written(tmp_path: Path):
    path = tmp_path / "x"
    with pytest.raises(ValueError, match=r"'phase' of type torch\.complex64"):
        artifacts.save(path, KIND, {"phase": torch.zeros(2, dtype=torch.complex64)}, {}, {})
    with pytest.raises(ValueError, match=r"provenance of .* must be JSON.*got a Tensor"):
        artifacts.save(path, KIND, {}, {}, {"mean": torch.zeros(2)})
    with pytest.raises(ValueError, match="must be JSON"):
        artifacts.save(path, KIND, {}, {"mean": float("nan")}, {})
    assert list(tmp_path.iterdir()) == []


class _FullDisk:
    """A file that takes `room` bytes and then fails as a full disk, or an impatient user, does."""

    def __init__(self, file: Any, room: int, failure: BaseException):
        self.file, self.room, self.failure = file, room, failure

    def __enter__(self) -> "_FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, chunk: bytes | memoryview) -> None:
        self.file.write(bytes(chunk)[: self.room])
        self.file.flush()
        self.room -= len(chunk)
        if self.room < 0:
            raise self.failure


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failure", [FULL, KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
@pytest.mark.parametrize("room", [0, 50, 1000, 300_000])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    failure: BaseException, room: int, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    before, opened, real_open = saved.read_bytes(), [], Path.open

    def open_full(path: Path, mode: str = "r", *rest: Any) -> Any:
        file = real_open(path, mode, *rest)
        if "x" not in mode:
            return file
        opened.append(path)
        return _FullDisk(file, room, failure)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(type(failure)) as caught:
        save_again(saved)
    monkeypatch.undo()
    assert len(opened) == 1
    assert opened[0].parent == saved.parent  # os.replace is one step only within one file system
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
    if failure is FULL:
        assert caught.value.errno == errno.ENOSPC
        message = str(caught.value)
        assert str(saved) in message
        assert "No space left" in message
        assert "it needs 400,2" in message
        assert "are free there" in message
        assert "make room" in message


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [FULL, KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_failure_in_the_last_steps_leaves_the_old_file(
    step: str, failure: BaseException, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise failure

    before = saved.read_bytes()
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(failure)):
        save_again(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


LIMITED = """
import resource, sys
import torch
from interp.results import artifacts
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
artifacts.save(sys.argv[1], "FiringStats", {"rate": torch.ones(100_000)}, {}, {})
"""


@pytest.mark.slow
def test_a_limit_of_the_operating_system_leaves_the_old_file(saved: Path):
    pytest.importorskip("resource")
    before = saved.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(saved)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 1
    assert f"{saved} was not saved (File too large): it needs 400," in done.stderr
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_data_are_on_the_disk_before_the_name_changes(saved: Path, monkeypatch: pytest.MonkeyPatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *ends: (order.append("replace"), replace(*ends)))
    save_again(saved)
    assert order == ["fsync", "replace", "fsync"]


def test_a_new_file_gets_the_usual_permissions_and_its_folder(tmp_path: Path):
    (tmp_path / "usual").touch()
    path = tmp_path / "new" / "folder" / "x.json"
    artifacts.write_text(path, "ö\n")
    assert path.read_bytes() == "ö\n".encode()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_is_followed_and_not_replaced(saved: Path):
    link = saved.with_name("link")
    link.symlink_to(saved)
    artifacts.write_text(link, "new")
    assert link.is_symlink()
    assert saved.read_text() == "new"


def test_text_that_cannot_be_written_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "selection.json"
    artifacts.write_text(path, "old")

    def fail(_: object) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"it needs 3 bytes"):
        artifacts.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_provenance_names_versions_and_settings_and_no_time(tmp_path: Path):
    first = artifacts.provenance(seed=1, out=tmp_path, languages=("de", "zh"))
    assert first == artifacts.provenance(seed=1, out=tmp_path, languages=("de", "zh"))
    assert first["settings"] == {"seed": 1, "out": str(tmp_path), "languages": ["de", "zh"]}
    assert first["versions"]["torch"] == importlib.metadata.version("torch")
    assert first["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    with pytest.raises(ValueError, match=r"must be JSON.*got a Tensor"):
        artifacts.provenance(mean=torch.zeros(1))


def test_a_copy_inside_another_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout="0123abcd-dirty\n")

    monkeypatch.setattr(subprocess, "run", answer)
    checkout, copy = tmp_path / "checkout", tmp_path / "checkout" / "site-packages"
    copy.mkdir(parents=True)
    (checkout / ".git").mkdir()
    assert artifacts._commit(checkout) == "0123abcd-dirty"
    assert artifacts._commit(copy) is None


def test_a_folder_goes_on_only_with_what_it_was_begun_with(tmp_path: Path):
    plan = {"model": {"weights": "a", "layers": 2}, "languages": ("en", "de")}
    begin(tmp_path, plan, {"when": "today"})
    assert read_plan(tmp_path) == {**plan, "languages": ["en", "de"], "when": "today"}
    before = (tmp_path / "run.json").read_bytes()
    begin(tmp_path, plan, {"when": "tomorrow"})
    assert (tmp_path / "run.json").read_bytes() == before
    for other, told in (
        (
            {**plan, "model": {"weights": "b", "layers": 2}},
            "another model .*weights was 'a', now 'b'",
        ),
        ({**plan, "languages": ("en",)}, "another languages"),
        ({**plan, "steps": 20}, "another steps .*was None, now 20"),
    ):
        with pytest.raises(ValueError, match=told):
            begin(tmp_path, other, {"when": "tomorrow"})
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_without_a_readable_plan_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json"):
        read_plan(tmp_path)
    (tmp_path / "run.json").write_text("{")
    for read in (read_plan, lambda folder: begin(folder, {"a": 1})):
        with pytest.raises(ValueError, match="is damaged: delete it"):
            read(tmp_path)

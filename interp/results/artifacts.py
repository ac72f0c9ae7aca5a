"""Results on disk: one safetensors file each, written atomically, with its provenance.

The safetensors library can read these files: eight bytes of header length, a JSON header, tensor
data. The header's metadata begin with a checksum of every other byte, then say what the file
holds, how its axes are labeled and where it comes from. Equal results are equal files, byte for
byte: no time, no host, and keys in a fixed order (the library's own writer does not fix that order,
and needs a second copy of the data in memory).
"""

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from interp.results.display import Cells, Shown
from interp.results.reader import (
    CHECKSUM_BYTES,
    DTYPES,
    START,
    VERSION,
    LazyTensor,
    raw_bytes,
    read,
)

FORMAT = "polyneuron"
PACKAGES = {
    "interp": "polyneuron",
    "torch": "torch",
    "transformers": "transformers",
    "transformer_lens": "transformer-lens",
}
"""Imported name → distribution, for `provenance`."""

UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part")
ABANDONED_AFTER = 24 * 3600.0  # seconds; clocks of nodes that share a disk differ by far less


@dataclass(frozen=True, eq=False)
class ChunkedTensor:
    """A tensor too large for memory, passed to `save` chunk by chunk."""

    dtype: torch.dtype
    """One of `DTYPES`."""

    shape: tuple[int, ...]
    """Shape of the whole tensor."""

    chunks: Iterable[Tensor]
    """Consecutive elements, from the first to the last; iterated once, by `save`."""


@dataclass(frozen=True)
class Artifact(Shown):
    """The contents of a file."""

    tensors: dict[str, Tensor]
    """Name → tensor, on the CPU."""

    labels: dict[str, Any]
    """What the axes mean, such as the languages in their order; JSON, so tuples become lists."""

    provenance: dict[str, Any]
    """Where the numbers come from: versions, commit, settings; JSON."""

    lazy: dict[str, LazyTensor] = field(default_factory=dict)
    """Name → tensor that is verified but stays in the file, to be read entry by entry."""

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in self.tensors.items())
        return f"Artifact({shapes or 'no tensors'}; labels: {', '.join(self.labels) or 'none'})"

    def _cells(self) -> Cells:
        tensors = [
            [name, str(list(value.shape)), str(value.dtype).removeprefix("torch.")]
            for name, value in (self.tensors | self.lazy).items()
        ]
        labels = [[name, "label", str(value)] for name, value in self.labels.items()]
        return Cells(("", "shape", "holds"), tensors + labels)


def save(
    path: Path | str,
    kind: str,
    tensors: Mapping[str, Tensor | ChunkedTensor],
    labels: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a result. If this fails or is interrupted, an existing file is unchanged.

    Tensors are ordered by element width, widest first, then by name. A chunked tensor is stored
    as the same bytes as the whole one.
    """
    entries = _entries(path, tensors)
    metadata = {
        "checksum": "",
        "format": FORMAT,
        "version": str(VERSION),
        "kind": kind,
        "labels": _json(labels, f"The labels of {path}"),
        "provenance": _json(provenance, f"The provenance of {path}"),
    }
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    assert header.startswith(START)
    header = header[len(START) :]
    length = len(START) + 2 * CHECKSUM_BYTES + len(header)
    header += b" " * (-length % 8)
    prefix = (length + -length % 8).to_bytes(8, "little")

    def write(file: BinaryIO) -> None:
        checksum = blake2b(prefix + header, digest_size=CHECKSUM_BYTES)
        file.write(prefix + START + bytes(2 * CHECKSUM_BYTES) + header)
        for name, entry in entries.items():
            tensor, written = tensors[name], 0
            for chunk in tensor.chunks if isinstance(tensor, ChunkedTensor) else (tensor,):
                assert chunk.dtype == tensor.dtype
                data = raw_bytes(chunk)
                checksum.update(data)
                file.write(data)
                written += len(data)
            start, stop = entry["data_offsets"]
            assert written == stop - start
        file.seek(len(prefix + START))  # the checksum is only known now
        file.write(checksum.hexdigest().encode())

    n_bytes = sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values())
    _write(Path(path), len(prefix) + length + -length % 8 + n_bytes, write)


def _entries(
    path: Path | str, tensors: Mapping[str, Tensor | ChunkedTensor]
) -> dict[str, dict[str, Any]]:
    """The header's entry for each tensor, in file order.

    Wide elements come first, so that every tensor starts at a multiple of its element width.
    """
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        dtype, shape = tensors[name].dtype, tensors[name].shape
        if dtype not in DTYPES or name == "__metadata__":
            raise ValueError(
                f"Tensor {name!r} of type {dtype} cannot be stored in {path}: convert it to "
                f"one of {', '.join(map(str, DTYPES))}, and do not name it '__metadata__'."
            )
        stop = start + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    return entries


def load(path: Path | str, kind: str, lazy: Collection[str] = (), made_by: str = "") -> Artifact:
    """Read a result back; refuses a file that is not a complete, undamaged `kind`.

    Tensors named in `lazy` are verified like the others but stay in the file, see `LazyTensor`.
    If the file is missing, the error says that `made_by` makes it.
    """
    path = Path(path)
    if not path.exists():
        made_by = made_by or f"the call that saves a {kind}"
        raise FileNotFoundError(f"{path} is missing. Make it with {made_by}.")
    if not path.is_file():
        raise ValueError(f"{path} is a folder: give the path of a {kind} file inside it.")
    contents = read(path, lazy)
    if contents.kind != kind:
        raise ValueError(
            f"{path} holds a {contents.kind}, not a {kind}: give the path of a {kind}."
        )
    return Artifact(
        StrictDict(f"{path} has no tensor", contents.tensors),
        StrictDict(f"{path} has no label", contents.labels),
        contents.provenance,
        StrictDict(f"{path} has no tensor", contents.lazy),
    )


class StrictDict(dict[str, Any]):
    """Entries of a file; a missing key is reported as a fault of the file, not of the program."""

    def __init__(self, missing: str, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self._missing = missing

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"{self._missing} {name!r}, which every result of its kind has: it was not made by "
            "this version of polyneuron. Recreate it."
        )


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically, as `save` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file of any other format atomically, as `save` does."""
    _write(Path(path), len(content), lambda file: file.write(content))


def refuse_existing(path: Path, what: str = "folder") -> None:
    """Refuse to write over a folder or file."""
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists: name a new {what}, or remove that one first.")


def provenance(**settings: Any) -> dict[str, Any]:
    """Versions, the commit of the source if it is a checkout, and the settings; no time, no host.

    The commit ends in "-dirty" if tracked files have changed since.
    """
    commit = _commit(Path(__file__).parents[2])
    origin = {"versions": dict(_versions())} | ({"commit": commit} if commit else {})
    return origin | {"settings": json.loads(_json(settings, "The settings"))}


@cache  # as a package's metadata takes longer to read than a batch of a small model
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(distribution)
    return versions


@cache
def _commit(folder: Path) -> str | None:
    # An installed copy inside an unrelated repository must not report that repository's commit.
    if not (folder / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [*command, "--exclude=*"], cwd=folder, capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() or None
    return None


def _json(value: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(
            dict(value), ensure_ascii=False, sort_keys=True, allow_nan=False, default=_plain
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must be JSON (text, finite numbers, lists, text → value): {error}."
        ) from None


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"got a {type(value).__name__}")


def _write(path: Path, size: int, write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file in the same folder, then rename it to `path` in one step."""
    path = Path(os.path.realpath(path))  # resolve a link, or the link itself would be replaced
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.errno is None:  # our own errors are clear as is
            raise
        raise OSError(error.errno, f"{path} was not saved {_why(error, path, size)}") from error
    with contextlib.suppress(OSError):  # not every system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _why(error: OSError, path: Path, size: int) -> str:
    unchanged = "and save again (an existing file is unchanged)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"({error.strerror}): it needs {size:,} bytes and {_free(path.parent):,} are free "
            f"there; make room or choose another folder, {unchanged}"
        )
    if isinstance(error, FileExistsError | NotADirectoryError):  # of the folder, by mkdir
        file = next(parent for parent in path.parents if parent.exists() or parent.is_symlink())
        return f"({file} is not a folder, as it must be): choose another, {unchanged}"
    if path.is_dir():
        return f"(it is a folder): give the name of a file, {unchanged}"
    return f"({error.strerror}): choose another folder, {unchanged}"


def _free(folder: Path) -> int:
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def hash_of(value: Any) -> str:
    """Hash of a tensor's bytes, or of any other value as JSON: equal values have equal hashes."""
    raw = raw_bytes(value) if isinstance(value, Tensor) else json.dumps(value).encode()
    return blake2b(raw, digest_size=CHECKSUM_BYTES).hexdigest()

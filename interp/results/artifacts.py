"""Results on disk: one safetensors file each, written whole or not at all, with its provenance.

A file is what the safetensors library reads: eight bytes of header length, a JSON header, tensor
data. The header's metadata say what the file holds, how its axes are labeled and where it comes
from, and begin with a checksum of every other byte. Equal results are equal files, byte for byte:
no time, no host, and keys in a fixed order (the library's own writer leaves that order open, and
needs a second copy of the data in memory).
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
FORGOTTEN = 24 * 3600.0  # seconds; clocks of nodes that share a disk differ by far less


@dataclass(frozen=True, eq=False)
class ChunkedTensor:
    """A tensor too large for memory, for `save`: its data come chunk by chunk."""

    dtype: torch.dtype
    """One of `DTYPES`."""

    shape: tuple[int, ...]
    """Of the whole."""

    chunks: Iterable[Tensor]
    """Consecutive elements, from the first to the last; iterated once, by `save`."""


@dataclass(frozen=True)
class Artifact:
    """What a file holds."""

    tensors: dict[str, Tensor]
    """Name → tensor, on the CPU."""

    labels: dict[str, Any]
    """What the axes mean, such as the languages in their order; JSON, so tuples come as lists."""

    provenance: dict[str, Any]
    """Where the numbers come from: versions, commit, settings; JSON."""

    lazy: dict[str, LazyTensor] = field(default_factory=dict)
    """Name → tensor that was checked and stays in the file, to be read entry by entry."""

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in self.tensors.items())
        return f"Artifact({shapes or 'no tensors'}; labels: {', '.join(self.labels) or 'none'})"


def save(
    path: Path | str,
    kind: str,
    tensors: Mapping[str, Tensor | ChunkedTensor],
    labels: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a result, or, if that fails or is interrupted, leave the old file as it was.

    Tensors are written one after the other, those of wide elements first and then by name, and a
    tensor in chunks is the same bytes as the whole.
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
        file.seek(len(prefix + START))  # only now is it known
        file.write(checksum.hexdigest().encode())

    n_bytes = sum(math.prod(each.shape) * each.dtype.itemsize for each in tensors.values())
    _write(Path(path), len(prefix) + length + -length % 8 + n_bytes, write)


def _entries(
    path: Path | str, tensors: Mapping[str, Tensor | ChunkedTensor]
) -> dict[str, dict[str, Any]]:
    """What the header says of each tensor, in the order of the file.

    Wide elements come first, so that every tensor starts at a multiple of its element's width.
    """
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        dtype, shape = tensors[name].dtype, tensors[name].shape
        if dtype not in DTYPES or name == "__metadata__":
            raise ValueError(
                f"Tensor {name!r} of type {dtype} cannot be stored in {path}: convert it to "
                f"one of {', '.join(map(str, DTYPES))}, under a name of its own."
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
    """Read a result back; refuses a file that is not a whole, undamaged `kind`.

    Tensors named in `lazy` are checked like the others and stay in the file, see `LazyTensor`.
    Where the file is missing, the error says that `made_by` makes it.
    """
    path = Path(path)
    if not path.exists():
        made_by = made_by or f"what saves a {kind}"
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
    """What a file holds; what it does not hold is an error of the file, not of the program."""

    def __init__(self, missing: str, found: Mapping[str, Any]) -> None:
        super().__init__(found)
        self._missing = missing

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"{self._missing} {name!r}, which a result of its kind has: it was not made by this "
            "version of polyneuron. Make it anew."
        )


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text whole or not at all, as `save` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file of another format whole or not at all, as `save` does."""
    _write(Path(path), len(content), lambda file: file.write(content))


def provenance(**settings: Any) -> dict[str, Any]:
    """Versions, the commit of the source if it is a checkout, and the settings; no time, no host.

    The commit ends in "-dirty" where tracked files have been changed since.
    """
    versions = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(distribution)
    commit = _commit(Path(__file__).parents[2])
    origin = {"versions": versions} | ({"commit": commit} if commit else {})
    return origin | {"settings": json.loads(_json(settings, "The settings"))}


@cache
def _commit(folder: Path) -> str | None:
    # An installed copy inside somebody else's repository must not borrow that one's commit.
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
    """Into a temporary file beside `path`, then in one step to its place."""
    path = Path(os.path.realpath(path))  # through a link, or the link itself would be replaced
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
        if not isinstance(error, OSError) or error.errno is None:  # one of ours says what is wrong
            raise
        raise OSError(error.errno, f"{path} was not saved {_why(error, path, size)}") from error
    with contextlib.suppress(OSError):  # not every system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _why(error: OSError, path: Path, size: int) -> str:
    unchanged = "and save again (a file that was there before is unchanged)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"({error.strerror}): it needs {size:,} bytes and {_free(path.parent):,} are free "
            f"there; make room or choose another folder, {unchanged}"
        )
    if isinstance(error, FileExistsError | NotADirectoryError):  # of the folder, by mkdir
        return f"({error.filename} is no folder, and one is needed): choose another, {unchanged}"
    if path.is_dir():
        return f"(it is a folder): give the name of a file, {unchanged}"
    return f"({error.strerror}): choose another place, {unchanged}"


def _free(folder: Path) -> int:
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def hash_of(value: Any) -> str:
    """Of a tensor's bytes, or of another value as JSON: to tell whether two are equal."""
    raw = raw_bytes(value) if isinstance(value, Tensor) else json.dumps(value).encode()
    return blake2b(raw, digest_size=CHECKSUM_BYTES).hexdigest()

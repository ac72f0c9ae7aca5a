"""Results on disk: one safetensors file each, written whole or not at all, with its provenance.

A file is what the safetensors library reads: eight bytes of header length, a JSON header, tensor
data. The header's metadata say what the file holds, how its axes are labelled and where it comes
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

FORMAT = "polyneuron"
VERSION = 1

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What can be stored, by the names of the safetensors format."""

PACKAGES = {
    "interp": "polyneuron",
    "torch": "torch",
    "transformers": "transformers",
    "transformer_lens": "transformer-lens",
}
"""Imported name → distribution, for `provenance`."""

_CHECKSUM_BYTES = 16
_START = b'{"__metadata__":{"checksum":"'
_CHUNK = 1 << 20
UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part")
FORGOTTEN = 24 * 3600.0  # seconds; clocks of nodes that share a disk differ by far less


@dataclass(frozen=True, eq=False)
class InParts:
    """A tensor too large to hold, for `save`: its data come part by part."""

    dtype: torch.dtype
    """One of `DTYPES`."""

    shape: tuple[int, ...]
    """Of the whole."""

    parts: Iterable[Tensor]
    """Each a stretch of the elements, from the first to the last; taken once, when written."""


@dataclass(frozen=True, eq=False)
class InFile:
    """A tensor that `load` left in its file, to be read entry by entry."""

    path: Path
    """The file, which must stay as it is."""

    head: bytes
    """How the file began, checksum included, when the whole of it was checked."""

    start: int
    """Bytes of the file before the tensor."""

    dtype: torch.dtype
    """Of the whole, as stored."""

    shape: tuple[int, ...]
    """Of the whole."""

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, *index: int) -> Tensor:
        """The entry at these places of the first axes."""
        entry = torch.empty(self.shape[len(index) :], dtype=self.dtype)
        number = 0
        for place, size in zip(index, self.shape, strict=False):
            assert 0 <= place < size
            number = number * size + place
        with self.path.open("rb") as file:
            if file.read(len(self.head)) != self.head:
                raise ValueError(
                    f"{self.path} is another file than the one that was opened: open it again."
                )
            file.seek(self.start + number * entry.nbytes)
            if file.readinto(_bytes(entry)) != entry.nbytes:
                raise ValueError(f"{self.path} was cut short after it was opened: make it anew.")
        return entry


@dataclass(frozen=True)
class Artifact:
    """What a file holds."""

    tensors: dict[str, Tensor]
    """Name → tensor, on the CPU."""

    labels: dict[str, Any]
    """What the axes mean, such as the languages in their order; JSON, so tuples come as lists."""

    provenance: dict[str, Any]
    """Where the numbers come from: versions, commit, settings; JSON."""

    left: dict[str, InFile] = field(default_factory=dict)
    """Tensors that were checked and left where they are."""

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in self.tensors.items())
        return f"Artifact({shapes or 'no tensors'}; labels: {', '.join(self.labels) or 'none'})"


def save(
    path: Path | str,
    kind: str,
    tensors: Mapping[str, Tensor | InParts],
    labels: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a result, or, if that fails or is interrupted, leave the old file as it was.

    Tensors are written one after the other, those of wide elements first and then by name, and a
    tensor in parts is the same bytes as the whole.
    """
    # Wide elements first, so that every tensor starts at a multiple of its element's width.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for name in names:
        dtype, shape = tensors[name].dtype, tensors[name].shape
        if dtype not in DTYPES or name == "__metadata__":
            raise ValueError(
                f"Tensor {name!r} of type {dtype} cannot be stored in {path}: convert it to "
                f"one of {', '.join(str(each) for each in DTYPES)}, under a name of its own."
            )
        stop = start + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    metadata = {
        "checksum": "",
        "format": FORMAT,
        "version": str(VERSION),
        "kind": kind,
        "labels": _json(labels, f"The labels of {path}"),
        "provenance": _json(provenance, f"The provenance of {path}"),
    }
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    assert header.startswith(_START)
    header = header[len(_START) :]
    length = len(_START) + 2 * _CHECKSUM_BYTES + len(header)
    header += b" " * (-length % 8)
    prefix = (length + -length % 8).to_bytes(8, "little")

    def write(file: BinaryIO) -> None:
        checksum = blake2b(prefix + header, digest_size=_CHECKSUM_BYTES)
        file.write(prefix + _START + bytes(2 * _CHECKSUM_BYTES) + header)
        for name in names:
            tensor, written = tensors[name], 0
            for part in tensor.parts if isinstance(tensor, InParts) else (tensor,):
                assert part.dtype == tensor.dtype
                data = _bytes(part)
                checksum.update(data)
                file.write(data)
                written += len(data)
            first, stop = entries[name]["data_offsets"]
            assert written == stop - first
        file.seek(len(prefix + _START))  # only now is it known
        file.write(checksum.hexdigest().encode())

    _write(Path(path), len(prefix) + length + -length % 8 + start, write)


def load(path: Path | str, kind: str, leave: Collection[str] = (), made_by: str = "") -> Artifact:
    """Read a result back; refuses a file that is not a whole, undamaged `kind`.

    Tensors named in `leave` are checked like the others and stay in the file, see `InFile`. Where
    the file is missing, the error says that `made_by` makes it.
    """
    path = Path(path)
    if not path.exists():
        made_by = made_by or f"what saves a {kind}"
        raise FileNotFoundError(f"{path} is missing. Make it with {made_by}.")
    if not path.is_file():
        raise ValueError(f"{path} is a folder: give the path of a {kind} file inside it.")
    metadata, tensors, left = _read(path, leave)
    if metadata["kind"] != kind:
        raise ValueError(
            f"{path} holds a {metadata['kind']}, not a {kind}: give the path of a {kind}."
        )
    labels = metadata["labels"]
    return Artifact(
        StrictDict(f"{path} has no tensor", tensors),
        StrictDict(f"{path} has no label", labels),
        metadata["provenance"],
        StrictDict(f"{path} has no tensor", left),
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


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


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


def _read(
    path: Path, leave: Collection[str]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, InFile]]:
    """Metadata, tensors and those left, in one pass over the file and without a second copy.

    Nothing is believed that a header says: it is from a stranger as likely as from `save`.
    """
    size = path.stat().st_size
    again = "copy it again or make it anew"
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        start = file.read(len(_START))
        if _START[: len(start)] != start:
            raise ValueError(
                f"{path} is not a result that polyneuron saved (a safetensors file with its "
                "metadata): give another path."
            )
        stored = file.read(2 * _CHECKSUM_BYTES)
        if not start or not len(start) + len(stored) <= length <= size - 8:
            raise ValueError(f"{path} is truncated or damaged, inside its header: {again}.")
        rest = file.read(length - len(start) - len(stored))
        try:
            header = json.loads(start + stored + rest)
            metadata = header.pop("__metadata__")
            version, kind = int(metadata["version"]), str(metadata["kind"])
            whole = (
                8 + length + max((each["data_offsets"][1] for each in header.values()), default=0)
            )
            labels, origin, places, tensors, left = {}, {}, {}, {}, {}
            if version <= VERSION and whole <= size:
                labels, origin = (json.loads(metadata[name]) for name in ("labels", "provenance"))
                places = _places(header, whole - 8 - length)
                head = prefix + start + stored
                left = {
                    name: InFile(path, head, 8 + length + place, dtype, shape)
                    for name, (place, shape, dtype) in places.items()
                    if name in leave
                }
                tensors = {
                    name: torch.empty(shape, dtype=dtype)
                    for name, (_, shape, dtype) in places.items()
                    if name not in leave
                }
                if not isinstance(labels, dict) or not isinstance(origin, dict):
                    raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError):
            raise ValueError(f"{path} is damaged, inside its header: {again}.") from None
        if version > VERSION:
            raise ValueError(
                f"{path} is in format {version} of a newer polyneuron, and this one reads up to "
                f"{VERSION}: upgrade polyneuron."
            )
        if size < whole:
            raise ValueError(f"{path} is truncated ({size:,} of {whole:,} bytes): {again}.")
        checksum = blake2b(prefix + rest, digest_size=_CHECKSUM_BYTES)
        spare = memoryview(bytearray(_CHUNK))
        for name in places:
            room = _bytes(tensors[name]) if name in tensors else None
            n_bytes = left[name].n_bytes if room is None else len(room)
            for first in range(0, n_bytes, _CHUNK):
                stop = min(first + _CHUNK, n_bytes)
                chunk = spare[: stop - first] if room is None else room[first:stop]
                file.readinto(chunk)
                checksum.update(chunk)
        checksum.update(file.read(1))  # there must be nothing more
    if stored.decode(errors="replace") != checksum.hexdigest():
        raise ValueError(f"{path} is damaged (its checksum does not fit its content): {again}.")
    return {"kind": kind, "labels": labels, "provenance": origin}, tensors, left


def _places(
    header: dict[str, Any], n_bytes: int
) -> dict[str, tuple[int, tuple[int, ...], torch.dtype]]:
    """Start, shape and type of each tensor, in the order of the file, where they lie without gaps
    in so many bytes."""
    known = {name: dtype for dtype, name in DTYPES.items()}
    found: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {}
    place = 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        start, stop = header[name]["data_offsets"]
        dtype, shape = known[header[name]["dtype"]], header[name]["shape"]
        whole = all(type(each) is int and each >= 0 for each in shape)
        if not whole or start != place or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError
        place = stop
        found[name] = (start, tuple(shape), dtype)
    if place != n_bytes:
        raise ValueError
    return found


def hash_of(value: Any) -> str:
    """Of a tensor's bytes, or of another value as JSON: to tell whether two are equal."""
    raw = _bytes(value) if isinstance(value, Tensor) else json.dumps(value).encode()
    return blake2b(raw, digest_size=_CHECKSUM_BYTES).hexdigest()

"""Read the file of a result: header, tensors, and the checksum over both.

Headers are untrusted input: anybody can write one, with a checksum that fits. So a header is taken
apart in steps, and each step uses nothing that an earlier one did not check. Only when the tensors
are known to fill the file, without a gap, is memory taken for them.
"""

import contextlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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

CHECKSUM_BYTES = 16
START = b'{"__metadata__":{"checksum":"'
"""How every header begins; the checksum follows, in hexadecimal digits."""

_DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}
_CHUNK = 1 << 20
_MAX_AXES = 64  # as many as NumPy has
_MAX_BYTES = 1 << 63  # more than torch can count
_AGAIN = "copy it again or make it anew"


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that `load` checked and did not read, to be read entry by entry."""

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

    def read(self, *index: int) -> Tensor:
        """The entry at this index into the first axes; no index: the whole tensor."""
        entry = torch.empty(self.shape[len(index) :], dtype=self.dtype)
        number = 0
        for position, size in zip(index, self.shape, strict=False):
            assert 0 <= position < size
            number = number * size + position
        with self.path.open("rb") as file:
            if file.read(len(self.head)) != self.head:
                raise ValueError(
                    f"{self.path} is another file than the one that was opened: open it again."
                )
            file.seek(self.start + number * entry.nbytes)
            if file.readinto(raw_bytes(entry)) != entry.nbytes:
                raise ValueError(f"{self.path} was cut short after it was opened: make it anew.")
        return entry


@dataclass(frozen=True, eq=False)
class Contents:
    """All that is in a file."""

    kind: str
    """Name of the class of the result."""

    labels: dict[str, Any]
    """What the axes mean; JSON."""

    provenance: dict[str, Any]
    """Where the numbers come from; JSON."""

    tensors: dict[str, Tensor]
    """Name → tensor, on the CPU."""

    lazy: dict[str, LazyTensor]
    """Name → tensor that stays in the file."""


@dataclass(frozen=True)
class _Span:
    """Where a tensor lies."""

    start: int
    """Bytes between the header and the tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Header:
    """A header that agrees with itself and with the size of the file."""

    head: bytes
    """The length of the header, its start, and the checksum."""

    rest: bytes
    """The header behind the checksum."""

    kind: str
    labels: dict[str, Any]
    provenance: dict[str, Any]

    spans: dict[str, _Span]
    """Tensors in the order of the file, which they fill."""

    @property
    def n_bytes(self) -> int:
        return len(self.head) + len(self.rest)

    @property
    def checksum(self) -> str:
        """The one that is stored; of bytes that are no text, not equal to any."""
        return self.head[-2 * CHECKSUM_BYTES :].decode(errors="replace")

    @property
    def covered(self) -> bytes:
        """What the checksum covers of the header: all but itself and the start before it."""
        return self.head[:8] + self.rest


def read(path: Path, lazy: Collection[str]) -> Contents:
    """What is in the file, in one pass over it and without a second copy in memory.

    Tensors named in `lazy` are checked like the others and stay where they are.
    """
    with path.open("rb") as file:
        header = _header(path, file)
        tensors = {
            name: torch.empty(span.shape, dtype=span.dtype)
            for name, span in header.spans.items()
            if name not in lazy
        }
        _fill_and_verify(path, file, header, tensors)
    left = {
        name: LazyTensor(path, header.head, header.n_bytes + span.start, span.dtype, span.shape)
        for name, span in header.spans.items()
        if name in lazy
    }
    return Contents(header.kind, header.labels, header.provenance, tensors, left)


def _header(path: Path, file: BufferedReader) -> _Header:
    """Read the header, and refuse it unless the tensors that it names would fill the file."""
    size = os.fstat(file.fileno()).st_size
    head, rest = _header_bytes(path, file, size)
    with _refusing(path):
        header = json.loads(head[8:] + rest)
        metadata = header.pop("__metadata__")
        version = int(metadata["version"])
    if version > VERSION:
        raise ValueError(
            f"{path} is in format {version} of a newer polyneuron, and this one reads up to "
            f"{VERSION}: upgrade polyneuron."
        )
    with _refusing(path):
        spans = _spans(header)
        kind = str(metadata["kind"])
        labels, provenance = _json_object(metadata["labels"]), _json_object(metadata["provenance"])
    whole = len(head) + len(rest) + sum(span.n_bytes for span in spans.values())
    if size < whole:
        raise ValueError(f"{path} is truncated ({size:,} of {whole:,} bytes): {_AGAIN}.")
    return _Header(head, rest, kind, labels, provenance, spans)


def _header_bytes(path: Path, file: BufferedReader, size: int) -> tuple[bytes, bytes]:
    """The bytes up to the end of the checksum, and the bytes of the header behind it."""
    prefix = file.read(8)
    start = file.read(len(START))
    checksum = file.read(2 * CHECKSUM_BYTES)
    if not START.startswith(start):
        raise ValueError(
            f"{path} is not a result that polyneuron saved (a safetensors file with its "
            "metadata): give another path."
        )
    length, begun = int.from_bytes(prefix, "little"), len(start) + len(checksum)
    if not start or not begun <= length <= size - 8:
        raise ValueError(f"{path} is truncated or damaged, inside its header: {_AGAIN}.")
    return prefix + start + checksum, file.read(length - begun)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside, with values that may be of any type, is damage of the header."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise ValueError(f"{path} is damaged, inside its header: {_AGAIN}.") from None


def _json_object(text: Any) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _spans(entries: Mapping[str, Any]) -> dict[str, _Span]:
    """Where the tensors lie, in the order of the file; ValueError where there are gaps."""
    spans: dict[str, _Span] = {}
    end = 0
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        entry = entries[name]
        span = _Span(end, _DTYPE_OF[entry["dtype"]], _shape(entry["shape"]))
        if _whole_numbers(entry["data_offsets"]) != [end, end + span.n_bytes]:
            raise ValueError
        spans[name] = span
        end += span.n_bytes
    return spans


def _shape(sizes: Any) -> tuple[int, ...]:
    """Sizes of axes that torch can take, also where the tensor is empty."""
    axes = _whole_numbers(sizes)
    if len(axes) > _MAX_AXES or any(not 0 <= size < _MAX_BYTES for size in axes):
        raise ValueError
    if math.prod(size for size in axes if size) * torch.float64.itemsize >= _MAX_BYTES:
        raise ValueError
    return tuple(axes)


def _whole_numbers(value: Any) -> list[int]:
    """A list of integers; ValueError for anything else, also for what Python calls equal to one."""
    if not isinstance(value, list) or any(type(number) is not int for number in value):
        raise ValueError
    return value


def _fill_and_verify(
    path: Path, file: BufferedReader, header: _Header, tensors: Mapping[str, Tensor]
) -> None:
    """Read the rest of the file into the tensors; ValueError where the checksum does not fit."""
    checksum = blake2b(header.covered, digest_size=CHECKSUM_BYTES)
    spare = memoryview(bytearray(_CHUNK))
    for name, span in header.spans.items():
        room = raw_bytes(tensors[name]) if name in tensors else None
        for first in range(0, span.n_bytes, _CHUNK):
            stop = min(first + _CHUNK, span.n_bytes)
            chunk = spare[: stop - first] if room is None else room[first:stop]
            file.readinto(chunk)
            checksum.update(chunk)
    checksum.update(file.read(1))  # there must be nothing more
    if header.checksum != checksum.hexdigest():
        raise ValueError(f"{path} is damaged (its checksum does not fit its content): {_AGAIN}.")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; of one that is contiguous on the CPU, the tensor's own memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

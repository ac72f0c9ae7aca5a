"""Read a result file: header, tensors, and the checksum over both.

Headers are untrusted input: anybody can write one with a valid checksum. So a header is parsed in
steps, and each step uses only what earlier steps have checked. Memory for the tensors is allocated
only once they are known to fill the file without gaps.
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
"""Types that can be stored, with their names in the safetensors format."""

CHECKSUM_BYTES = 16
START = b'{"__metadata__":{"checksum":"'
"""The first bytes of every header; the checksum follows, in hexadecimal digits."""

_DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}
_CHUNK = 1 << 20
_MAX_AXES = 64  # as many as NumPy has
_MAX_BYTES = 1 << 63  # more than torch can count
_ADVICE = "copy it again or recreate it"


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that `load` verified but did not keep in memory, to be read entry by entry."""

    path: Path
    """The file, which must not change."""

    head: bytes
    """The first bytes of the file, checksum included, when the whole file was verified."""

    start: int
    """Bytes of the file before the tensor."""

    dtype: torch.dtype
    """Type of the elements, as stored."""

    shape: tuple[int, ...]
    """Shape of the whole tensor."""

    def read(self, *index: int) -> Tensor:
        """The entry at this index into the leading axes; without an index, the whole tensor."""
        entry = torch.empty(self.shape[len(index) :], dtype=self.dtype)
        flat_index = 0
        for position, size in zip(index, self.shape, strict=False):
            assert 0 <= position < size
            flat_index = flat_index * size + position
        with self.path.open("rb") as file:
            if file.read(len(self.head)) != self.head:
                raise ValueError(
                    f"{self.path} is not the file that was opened (it was replaced): open it again."
                )
            file.seek(self.start + flat_index * entry.nbytes)
            if file.readinto(raw_bytes(entry)) != entry.nbytes:
                raise ValueError(f"{self.path} was truncated after it was opened: recreate it.")
        return entry


@dataclass(frozen=True, eq=False)
class Contents:
    """The contents of a file."""

    kind: str
    """Class name of the result."""

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
    """Position of a tensor in the file."""

    start: int
    """Bytes between the header and the tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Header:
    """A header that is consistent, also with the size of the file."""

    head: bytes
    """The length of the header, its start, and the checksum."""

    rest: bytes
    """The header after the checksum."""

    kind: str
    labels: dict[str, Any]
    provenance: dict[str, Any]

    spans: dict[str, _Span]
    """Tensors in file order; together they fill the file."""

    @property
    def n_bytes(self) -> int:
        return len(self.head) + len(self.rest)

    @property
    def checksum(self) -> str:
        """The stored checksum; if its bytes are not text, it equals no valid checksum."""
        return self.head[-2 * CHECKSUM_BYTES :].decode(errors="replace")

    @property
    def covered(self) -> bytes:
        """The part of the header that the checksum covers: all but itself and `START`."""
        return self.head[:8] + self.rest


def read(path: Path, lazy: Collection[str]) -> Contents:
    """The contents of a file, read in one pass without a second copy in memory.

    Tensors named in `lazy` are verified like the others but stay in the file.
    """
    with path.open("rb") as file:
        header = _header(path, file)
        tensors = {
            name: torch.empty(span.shape, dtype=span.dtype)
            for name, span in header.spans.items()
            if name not in lazy
        }
        _fill_and_verify(path, file, header, tensors)
    lazy_tensors = {
        name: LazyTensor(path, header.head, header.n_bytes + span.start, span.dtype, span.shape)
        for name, span in header.spans.items()
        if name in lazy
    }
    return Contents(header.kind, header.labels, header.provenance, tensors, lazy_tensors)


def _header(path: Path, file: BufferedReader) -> _Header:
    """Read the header; refuse it unless the tensors it names fit in the file."""
    size = os.fstat(file.fileno()).st_size
    head, rest = _header_bytes(path, file, size)
    with _damage_reported(path):
        header = json.loads(head[8:] + rest)
        metadata = header.pop("__metadata__")
        version = int(metadata["version"])
    if version > VERSION:
        raise ValueError(
            f"{path} is in format {version} of a newer polyneuron, and this version reads up to "
            f"{VERSION}: upgrade polyneuron."
        )
    with _damage_reported(path):
        spans = _spans(header)
        kind = str(metadata["kind"])
        labels, provenance = _json_object(metadata["labels"]), _json_object(metadata["provenance"])
    whole = len(head) + len(rest) + sum(span.n_bytes for span in spans.values())
    if size < whole:
        raise ValueError(f"{path} is truncated ({size:,} of {whole:,} bytes): {_ADVICE}.")
    return _Header(head, rest, kind, labels, provenance, spans)


def _header_bytes(path: Path, file: BufferedReader, size: int) -> tuple[bytes, bytes]:
    """The bytes up to the end of the checksum, and the rest of the header."""
    prefix = file.read(8)
    start = file.read(len(START))
    checksum = file.read(2 * CHECKSUM_BYTES)
    if not START.startswith(start):
        raise ValueError(
            f"{path} is not a result that polyneuron saved (a safetensors file with its "
            "metadata): give another path."
        )
    length, n_read = int.from_bytes(prefix, "little"), len(start) + len(checksum)
    if not start or not n_read <= length <= size - 8:
        raise ValueError(f"{path} is truncated or damaged, inside its header: {_ADVICE}.")
    return prefix + start + checksum, file.read(length - n_read)


@contextlib.contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Report any error inside, where values may be of any type, as a damaged header."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise ValueError(f"{path} is damaged, inside its header: {_ADVICE}.") from None


def _json_object(text: Any) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _spans(entries: Mapping[str, Any]) -> dict[str, _Span]:
    """Positions of the tensors, in file order; ValueError if there are gaps."""
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
    """Axis sizes that torch accepts, checked even if the tensor is empty."""
    axes = _whole_numbers(sizes)
    if len(axes) > _MAX_AXES or any(not 0 <= size < _MAX_BYTES for size in axes):
        raise ValueError
    if math.prod(size for size in axes if size) * torch.float64.itemsize >= _MAX_BYTES:
        raise ValueError
    return tuple(axes)


def _whole_numbers(value: Any) -> list[int]:
    """A list of integers; ValueError for anything else, also for bools and floats."""
    if not isinstance(value, list) or any(type(number) is not int for number in value):
        raise ValueError
    return value


def _fill_and_verify(
    path: Path, file: BufferedReader, header: _Header, tensors: Mapping[str, Tensor]
) -> None:
    """Read the rest of the file into the tensors; ValueError if the checksum does not match."""
    checksum = blake2b(header.covered, digest_size=CHECKSUM_BYTES)
    scratch = memoryview(bytearray(_CHUNK))
    for name, span in header.spans.items():
        memory = raw_bytes(tensors[name]) if name in tensors else None
        for first in range(0, span.n_bytes, _CHUNK):
            stop = min(first + _CHUNK, span.n_bytes)
            chunk = scratch[: stop - first] if memory is None else memory[first:stop]
            file.readinto(chunk)
            checksum.update(chunk)
    checksum.update(file.read(1))  # extra bytes at the end change the checksum
    if header.checksum != checksum.hexdigest():
        raise ValueError(f"{path} is damaged (its checksum does not match its content): {_ADVICE}.")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; if it is contiguous on the CPU, its own memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

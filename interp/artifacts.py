"""Results on disk: one safetensors file each, written whole or not at all, with its provenance.

A file is what the safetensors library reads: eight bytes of header length, a JSON header, tensor
data. The header's metadata say what the file holds, how its axes are labelled and where it comes
from, and begin with a checksum of every other byte. Equal results are equal files, byte for byte:
no time, no host, and keys in a fixed order (the library's own writer leaves that order open, and
needs a second copy of the data in memory).
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

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

MADE_BY = {
    kind: "interp.collect(model, corpora, out=...), or `interp collect` on the command line"
    for kind in ("FiringStats", "ActivationMoments", "SentenceMeans", "FiringSigns")
} | {
    "TopContexts": "interp.collect(..., wanted=interp.Wanted(contexts=8)) with a folder",
    "Precision": "interp.scores.average_precision.measure_precision(means)",
    "SharingProfile": "interp.sharing_profile(signs, generator)",
    "Losses": "interp.losses_under(model, corpora, interventions)",
    "PerplexityMatrix": "interp.perplexity_matrix(model, selection, corpora, out=...)",
    "Choices": "interp.choose(model, tasks)",
    "Written": "interp.exact_match(model, tasks)",
    "SwitchOff": "interp.switch_off(model, tasks, generator)",
    "CategorySums": "interp.attribute_categories(model, tasks)",
    "PatchingResult": "interp.patch(model, source, target, answers)",
    "Lens": "interp.logit_lens(model, questions)",
}
"""Kind of result → what makes it, for the message about a missing file."""

_CHECKSUM_BYTES = 16
_START = b'{"__metadata__":{"checksum":"'
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """What a file holds."""

    tensors: dict[str, Tensor]
    """Name → tensor, on the CPU."""

    labels: dict[str, Any]
    """What the axes mean, such as the languages in their order; JSON, so tuples come as lists."""

    provenance: dict[str, Any]
    """Where the numbers come from: versions, commit, settings; JSON."""


def save(
    path: Path | str,
    kind: str,
    tensors: Mapping[str, Tensor],
    labels: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a result, or, if that fails or is interrupted, leave the old file as it was."""
    # Wide elements first, so that every tensor starts at a multiple of its element's width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES or name == "__metadata__":
            raise ValueError(
                f"Tensor {name!r} of type {tensor.dtype} cannot be stored in {path}: convert it to "
                f"one of {', '.join(str(each) for each in DTYPES)}, under a name of its own."
            )
        stop = start + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
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

    checksum = blake2b(prefix + header, digest_size=_CHECKSUM_BYTES)
    for name in names:
        checksum.update(_bytes(tensors[name]))
    head = prefix + _START + checksum.hexdigest().encode() + header
    _write(Path(path), len(head) + start, (head, *(_bytes(tensors[name]) for name in names)))


def load(path: Path | str, kind: str) -> Artifact:
    """Read a result back; refuses a file that is not a whole, undamaged `kind`."""
    path = Path(path)
    if not path.exists():
        made_by = MADE_BY.get(kind, f"what saves a {kind}")
        raise FileNotFoundError(f"{path} is missing. Make it with {made_by}.")
    if not path.is_file():
        raise ValueError(f"{path} is a folder: give the path of a {kind} file inside it.")
    metadata, tensors = _read(path)
    if metadata["kind"] != kind:
        raise ValueError(
            f"{path} holds a {metadata['kind']}, not a {kind}: give the path of a {kind}."
        )
    labels = metadata["labels"]
    return Artifact(
        _Named(f"{path} has no tensor", tensors),
        _Named(f"{path} has no label", labels),
        metadata["provenance"],
    )


class _Named(dict[str, Any]):
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
    _write(Path(path), len(content), (content,))


def provenance(**settings: Any) -> dict[str, Any]:
    """Versions, the commit of the source if it is a checkout, and the settings; no time, no host.

    The commit ends in "-dirty" where tracked files have been changed since.
    """
    versions = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(distribution)
    commit = _commit(Path(__file__).parents[1])
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


def _write(path: Path, size: int, chunks: Iterable[bytes | memoryview]) -> None:
    """Into a temporary file beside `path`, then in one step to its place."""
    path = path.resolve()  # through a link, or the link itself would be replaced
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            error.errno,
            f"{path} was not saved ({error.strerror}): it needs {size:,} bytes and "
            f"{_free(path.parent):,} are free there; make room or choose another folder, and save "
            "again (a file that was there before is unchanged)",
        ) from error
    with contextlib.suppress(OSError):  # not every system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _free(folder: Path) -> int:
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors, in one pass over the file and without a second copy in memory.

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
            labels, origin, tensors = {}, {}, {}
            if version <= VERSION and whole <= size:
                labels, origin = (json.loads(metadata[name]) for name in ("labels", "provenance"))
                tensors = _empty(header, whole - 8 - length)
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
        for tensor in tensors.values():
            place = _bytes(tensor)
            for first in range(0, len(place), _CHUNK):
                chunk = place[first : first + _CHUNK]
                file.readinto(chunk)
                checksum.update(chunk)
        checksum.update(file.read(1))  # there must be nothing more
    if stored.decode(errors="replace") != checksum.hexdigest():
        raise ValueError(f"{path} is damaged (its checksum does not fit its content): {again}.")
    return {"kind": kind, "labels": labels, "provenance": origin}, tensors


def _empty(header: dict[str, Any], n_bytes: int) -> dict[str, Tensor]:
    """Tensors to be filled, in the order of the file; they lie without gaps in so many bytes."""
    known = {name: dtype for dtype, name in DTYPES.items()}
    found: dict[str, tuple[list[int], torch.dtype]] = {}
    place = 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        start, stop = header[name]["data_offsets"]
        dtype, shape = known[header[name]["dtype"]], header[name]["shape"]
        whole = all(type(each) is int and each >= 0 for each in shape)
        if not whole or start != place or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError
        place = stop
        found[name] = (shape, dtype)
    if place != n_bytes:
        raise ValueError
    return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in found.items()}


# ---------------------------------------------------------------- folders that runs go on in


def begin(folder: Path, plan: Mapping[str, Any], also: Mapping[str, Any] | None = None) -> None:
    """Begin a folder with all that its numbers depend on, or make sure that it was begun with it.

    `also` is told and not compared, such as when it was begun.
    """
    path = folder / "run.json"
    if not path.exists():
        told = json.dumps({**plan, **(also or {})}, indent=1, ensure_ascii=False)
        write_text(path, told + "\n")
        return
    started, now = read_plan(folder), json.loads(json.dumps(plan))  # tuples are lists there
    if differ := [key for key in now if started.get(key) != now[key]]:
        key = differ[0]
        raise ValueError(
            f"{folder} was started with another {', '.join(differ)} ({key}: "
            f"{_difference(started.get(key), now[key])}). Go on with what it was started "
            "with, or give another folder."
        )


def read_plan(folder: Path) -> dict[str, Any]:
    """What a folder was begun with."""
    path = folder / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a run: it holds no run.json.")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        plan = None
    if not isinstance(plan, dict):
        raise ValueError(
            f"{path} is damaged: delete it and run the same again; finished pieces are kept."
        )
    return _Named(f"{path} has no entry", plan)


def _difference(before: object, now: object) -> str:
    """The part in which two settings differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                return f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
    return f"was {before!r}, now {now!r}"

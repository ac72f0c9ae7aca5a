"""GGUF files, opened as the checkpoints they were made from.

transformers reads the weights and the tokenizer out of such a file. That takes a minute or two for
a large vocabulary, so the result is kept as an ordinary checkpoint in a cache folder, named after
the hash of the file, and the next opening is that of any folder.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from interp.models.gguf_reading import (
    GgufHeader,
    check_tokenizer,
    read_config,
    read_header,
    read_model,
    read_tokenizer,
)
from interp.results import artifacts
from interp.results.bars import bars_of_transformers, tqdm

_BYTES_PER_WEIGHT = 4  # float32
_FACTS = "gguf.json"
_CONVERSION = 1  # raise it when a change of the conversion makes older checkpoints wrong


def gguf_in(source: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder without a checkpoint."""
    if source.suffix.lower() == ".gguf" and not source.is_dir():
        if not source.is_file():
            raise FileNotFoundError(f"{source} is not a file: give the path of a GGUF file.")
        return source
    if not source.is_dir() or (source / "config.json").exists():
        return None
    files = sorted(path for path in source.iterdir() if path.suffix.lower() == ".gguf")
    if len(files) > 1 and "-of-" not in files[0].name:
        raise ValueError(
            f"{source} holds {len(files)} GGUF files: give the path of one, such as {files[0]}."
        )
    return files[0] if files else None


@contextmanager
def checkpoint_of(path: Path, keep: bool = True) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with the file's weights, config and tokenizer, and facts of the file for provenance.

    With `keep` it is in the cache folder, made on the first call; without, it goes after the block.
    Each call hashes the file, in about a second per GB.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if keep:
        folder = cache_folder() / f"{digest[:32]}-{_CONVERSION}"
        if not (folder / _FACTS).exists():
            _convert(path, digest, folder)
        yield folder, _facts(folder, path)
        return
    with tempfile.TemporaryDirectory(prefix="polyneuron-") as parent:
        folder = Path(parent) / "checkpoint"
        _convert(path, digest, folder)
        yield folder, _facts(folder, path)


def cache_folder() -> Path:
    """Where converted checkpoints are kept; the variable POLYNEURON_CACHE moves it."""
    if own := os.environ.get("POLYNEURON_CACHE"):
        return Path(own) / "gguf"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "polyneuron" / "gguf"


def _facts(folder: Path, path: Path) -> dict[str, str]:
    """What the fingerprint says of the file, under its present name."""
    stored = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    return {"file": path.name, "sha256": stored["sha256"], "quantization": stored["quantization"]}


def _convert(path: Path, digest: str, folder: Path) -> None:
    """Write the checkpoint, whole or not at all.

    Of two processes that convert the same file, the first to finish writes the folder. What a
    killed one leaves is removed by a conversion a day later.
    """
    header = read_header(path)
    config = read_config(header)  # refuses in seconds what could not be opened
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder.parent)
    size = _refuse_small_disk(header, folder.parent)
    facts = {
        "sha256": digest,
        "quantization": header.quantization,
        "converted_by": f"transformers {version('transformers')}, gguf {version('gguf')}",
    }
    temporary = folder.parent / f".{secrets.token_hex(8)}.part"
    # A bar, as of every long step: on stderr, or a widget in a notebook, and no one need act on it.
    title = f"converting {path.name} once, to {size} in {folder.parent}"
    try:
        with tqdm(total=3, desc=title, unit="step") as bar, bars_of_transformers():
            bar.refresh()  # at once, as it takes minutes
            model = read_model(header, config)
            bar.update()
            model.save_pretrained(temporary)
            bar.update()
            read_tokenizer(header).save_pretrained(temporary)
            check_tokenizer(header, temporary)
            artifacts.write_text(temporary / _FACTS, json.dumps(facts, indent=1))
            bar.update()
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / _FACTS).exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_small_disk(header: GgufHeader, folder: Path) -> str:
    """The size of the checkpoint, in words; raises if the disk has less."""
    needed, free = header.n_weights * _BYTES_PER_WEIGHT, shutil.disk_usage(folder).free
    if free < 1.1 * needed:
        raise ValueError(
            f"{header.path.name} takes {needed / 2**20:,.0f} MiB as a checkpoint in {folder}, and "
            f"{free / 2**20:,.0f} MiB are free: free some, or set POLYNEURON_CACHE (or TMPDIR, if "
            "nothing is kept) to a folder on another disk."
        )
    return f"{needed / 2**20:,.0f} MiB"


def _clear(folder: Path) -> None:
    """Delete what killed conversions left: folders in which nothing was written for a day."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process may be clearing too
            newest = max(part.stat().st_mtime for part in (path, *path.iterdir()))
            abandoned = time.time() - newest > artifacts.ABANDONED_AFTER
            if artifacts.UNFINISHED.fullmatch(path.name) and abandoned:
                shutil.rmtree(path, ignore_errors=True)

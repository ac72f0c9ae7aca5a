"""GGUF files, opened as the checkpoints they were made from.

transformers reads the weights and the tokenizer out of such a file. That takes a minute or two for
a large vocabulary, so the result is kept as an ordinary checkpoint in a cache folder, named after
the hash of the file, and the next opening is that of any folder.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.results import artifacts

_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
_BYTES_PER_WEIGHT = 4  # what is dequantized is kept in float32, which loses nothing
_FACTS = "gguf.json"


@dataclass(frozen=True)
class GgufFile:
    """What a header says."""

    path: Path
    """The file."""

    sha256: str
    """Of its bytes."""

    architecture: str
    """As the file names it, such as gemma3."""

    quantization: str
    """The type that most weights have, such as Q4_K."""

    n_weights: int
    """Numbers in all tensors."""

    @property
    def facts(self) -> dict[str, str]:
        """For the provenance of results."""
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "quantization": self.quantization,
        }


def gguf_in(source: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder without a checkpoint."""
    if source.suffix.lower() == ".gguf":
        return source
    if not source.is_dir() or (source / "config.json").exists():
        return None
    files = sorted(source.glob("*.gguf"))
    if len(files) > 1 and not _SPLIT.search(files[0].name):
        raise ValueError(
            f"{source} holds {len(files)} GGUF files: give the path of one, such as {files[0]}."
        )
    return files[0] if files else None


@contextmanager
def checkpoint_of(path: Path, keep: bool = True) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with the file's weights, config and tokenizer, and what is known of the file.

    With `keep` it is in the cache folder, made on the first call; without, it goes after the block.
    """
    file = read_header(path)
    if keep:
        folder = cache_folder() / file.sha256[:32]
        if not (folder / _FACTS).exists():
            _convert(file, folder)
        yield folder, file.facts
        return
    with tempfile.TemporaryDirectory() as parent:
        _convert(file, Path(parent) / "checkpoint")
        yield Path(parent) / "checkpoint", file.facts


def cache_folder() -> Path:
    """Where converted checkpoints are kept; POLYNEURON_CACHE moves it."""
    if own := os.environ.get("POLYNEURON_CACHE"):
        return Path(own) / "gguf"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "polyneuron" / "gguf"


def read_header(path: Path) -> GgufFile:
    """Refuse what cannot be read, before anything is converted."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: give the path of a GGUF file.")
    if split := _SPLIT.search(path.name):
        raise ValueError(
            f"{path.name} is one of {int(split[1])} parts of a model: join them first, with "
            "llama-gguf-split --merge of llama.cpp, and give the whole file."
        )
    reader = _reader(path)
    kinds: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        kinds[kind] = kinds.get(kind, 0) + int(tensor.n_elements)
    if not kinds:
        raise ValueError(f"{path} holds no weights: it may be a tokenizer or an adapter alone.")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    field = reader.fields.get("general.architecture")
    architecture = "unknown" if field is None else str(field.contents())
    return GgufFile(
        path, digest, architecture, max(kinds, key=lambda kind: kinds[kind]), sum(kinds.values())
    )


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ImportError(
            f'{path.name} is a GGUF file, which needs the package gguf: pip install "polyneuron[gguf]".'
        ) from None
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as a GGUF file, it may be cut short: download it again. "
            f"({type(error).__name__}: {error})"
        ) from None


def _convert(file: GgufFile, folder: Path) -> None:
    """Write the checkpoint, whole or not at all."""
    needed = file.n_weights * _BYTES_PER_WEIGHT
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < 1.1 * needed:
        raise ValueError(
            f"{file.path.name} takes {needed / 2**20:,.0f} MiB as a checkpoint in {folder.parent}, "
            f"and {free / 2**20:,.0f} MiB are free: free some, or set POLYNEURON_CACHE to a folder "
            "on another disk."
        )
    print(
        f"Converting {file.path.name} to a checkpoint of {needed / 2**20:,.0f} MiB in {folder}: "
        "once, a minute or more."
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
        made = Path(parent) / "checkpoint"
        model, tokenizer = _read(file)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        artifacts.write_text(made / _FACTS, json.dumps(file.facts, indent=1))
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            if not (folder / _FACTS).exists():
                raise


def _read(file: GgufFile) -> tuple[Any, Any]:
    where, name = file.path.parent, file.path.name
    # From transformers 5.24 on weights stay packed unless one asks otherwise.
    config = getattr(transformers, "GgufConfig", None)
    options = {} if config is None else {"quantization_config": config(dequantize=True)}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"transformers {transformers.__version__} cannot read {file.path.name}, which is of "
            f"architecture {file.architecture}: give the checkpoint it was made from. ({error})"
        ) from None
    model.config.quantization_config = None
    return model, tokenizer

"""Options of a benchmark, and the file of its measurements.

A file has the command, the date and the machine (cores, processor and GPU, but neither its name nor
any folder).
"""

import dataclasses
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional

from interp.results import artifacts

RESULTS = Path(__file__).parent / "results"

Size = Literal["full", "bench", "toy"]

Row = dict[str, Any]
"""A row of a table: strings and numbers by column name."""


@dataclass(frozen=True)
class Config:
    """What to run."""

    size: Positional[Size] = "full"
    """bench: shorter, for `make bench`; toy: seconds, to check that every part runs."""

    out: Path | None = None
    """Folder for the results; None: benchmarks/results, or nowhere for toy."""


@dataclass(frozen=True)
class OnDevice(Config):
    """What to run, and where."""

    device: str = "cpu"
    """Or cuda."""


@dataclass(frozen=True)
class SpeedOrMemory(OnDevice):
    """What to run, and where."""

    memory: bool = False
    """Peak memory instead of speed."""

    def __post_init__(self) -> None:
        if self.memory and self.device != "cpu":
            raise ValueError(
                f"Memory is measured for a process, not for {self.device}: leave out --memory or "
                "--device."
            )


@dataclass(frozen=True)
class Record:
    """The measurements of one command."""

    command: str
    """Command that repeats the measurement."""

    date: str
    """Year, month and day, or year and month."""

    machine: str
    """Cores and processor, in words."""

    device: str
    """"CPU", or the name of the GPU."""

    minutes: float
    """Duration."""

    provenance: dict[str, Any]
    """Versions, commit and settings, as in every result."""

    rows: tuple[Row, ...]
    """Measurements, one for each row of a table."""

    def where(self, **values: str | int) -> list[Row]:
        """The rows with these values."""
        return [row for row in self.rows if values.items() <= row.items()]


@contextmanager
def recording(
    name: str, config: Config, settings: Any, package: str = "benchmarks"
) -> Iterator[Callable[..., None]]:
    """A function that prints rows and records them; they are saved when the block ends well.

    `name` begins with the module's name: "collect", "collect-memory". `settings` is a dataclass.
    """
    device = config.device if isinstance(config, OnDevice) else "cpu"
    start = time.perf_counter()
    rows: list[Row] = []

    def record_rows(*measured: Row) -> None:
        for row in measured:
            rows.append({key: rounded(value) for key, value in row.items()})
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)

    yield record_rows
    record = Record(
        command_of(f"{package}.{name.partition('-')[0]}", config),
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine(),
        device_name(device),
        round((time.perf_counter() - start) / 60, 2),
        artifacts.provenance(**dataclasses.asdict(settings), threads=torch.get_num_threads()),
        tuple(rows),
    )
    if folder := config.out or (None if config.size == "toy" else RESULTS):
        path = folder / f"{name}{'' if device == 'cpu' else f'-{device}'}.json"
        save(record, path)
        print(f"\n{len(rows)} rows: {path}")


def save(record: Record, path: Path) -> None:
    """Save as JSON with a line for each row, so that diffs are readable."""
    lines = [f" {json.dumps(row, ensure_ascii=False)}" for row in record.rows]
    header = json.dumps(dataclasses.asdict(record) | {"rows": []}, indent=1, ensure_ascii=False)
    rows = ",\n".join(lines)
    artifacts.write_text(path, header.removesuffix("[]\n}") + f"[\n{rows}\n]}}\n")


def load(path: Path) -> Record:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Record(**fields | {"rows": tuple(fields["rows"])})


def rounded(value: Any) -> Any:
    """The value with four digits, more than timings are good for."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def command_of(module: str, config: Config) -> str:
    """The command line for these settings, without --out."""
    words = ["python", "-m", module]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "out" or value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if field.name == "size":
            words.append(value)
        elif isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return " ".join(words)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "CPU"


def machine() -> str:
    """Number of cores that this process may use, and the processor's name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return f"{cores} core{'s' * (cores != 1)} of {processor}"

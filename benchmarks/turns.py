"""What benchmarks share: variants that take turns in one process, and a file for what was measured.

Each turn is divided by the first variant's of the same round, so a machine that is slow for a while
is slow for all. What is kept of a run says which command made it, when, and on what machine: its
cores, its processor and its GPU, but neither its name nor any folder.
"""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional

from interp.results import artifacts

RESULTS = Path(__file__).parent / "results"

Size = Literal["full", "bench", "toy"]

Variants = dict[str, Callable[[], Any]]
"""Names and what is timed; the first is the measure."""

Row = dict[str, Any]
"""A line of a table: texts and numbers by the names of the columns."""


@dataclass(frozen=True)
class Config:
    """What to run."""

    size: Positional[Size] = "full"
    """bench: shorter, for `make bench`; toy: seconds, to see that every part runs."""

    out: Path | None = None
    """Folder for the numbers; None: benchmarks/results, and for toy nowhere."""


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
                f"Memory is that of a process, not of {self.device}: leave out --memory or "
                "--device."
            )


# ---------------------------------------------------------------- turns


@dataclass(frozen=True)
class Turns:
    """What became of the turns."""

    seconds: dict[str, list[float]]
    """Of each variant's turns, in their order."""

    values: dict[str, Any]
    """What each gave last."""

    def multiples(self) -> dict[str, list[float]]:
        """Each turn as a multiple of the first variant's of the same round."""
        first = next(iter(self.seconds.values()))
        return {
            name: [mine / its for mine, its in zip(spent, first, strict=True)]
            for name, spent in self.seconds.items()
        }


def clock(device: str, work: bool = False) -> Callable[[], float]:
    """Tells the time, once a GPU has done what it was given; `work`: CPU seconds of this process,
    which mean something on a machine that does other work too. Those of a GPU nobody counts."""
    if torch.device(device).type == "cuda":

        def when_done() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return when_done
    return time.process_time if work else time.perf_counter


def take_turns(
    variants: Variants,
    rounds: int,
    now: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> Turns:
    """Each variant once a round, in an order that is turned round from one to the next."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    values = {}
    for number in range(not warm_up, rounds + 1):  # round zero warms up, and compiles
        for name in variants if number % 2 else reversed(variants):
            start = now()
            values[name] = variants[name]()
            spent = now() - start
            if number:
                seconds[name].append(spent)
    return Turns(seconds, values)


def spread(found: Sequence[float]) -> Row:
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def compare(case: str, variants: Variants, rounds: int, device: str = "cpu") -> list[Row]:
    """Let them take turns; print, and return, the time of each as a multiple of the first's."""
    turns = take_turns(variants, rounds, clock(device))
    print(f"\n{case}, {where(device)}")
    rows: list[Row] = []
    for name, found in turns.multiples().items():
        rows.append({"case": case, "way": name, **spread(found)})
        low, high = min(found), max(found)
        print(f"  {statistics.median(found):5.2f}  [{low:.2f} to {high:.2f}]  {name}", flush=True)
    return rows


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of the largest value of the first."""
    one, other = one.double().cpu(), other.double().cpu()
    return ((one - other).abs().max() / one.abs().max()).item()


# ---------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class Record:
    """What one command measured."""

    command: str
    """What measures it again."""

    date: str
    """Year, month and day, or year and month."""

    machine: str
    """Cores and processor, in words."""

    device: str
    """"CPU", or what the GPU is called."""

    minutes: float
    """How long it took."""

    provenance: dict[str, Any]
    """Versions, commit and settings, as with every result."""

    rows: tuple[Row, ...]
    """What was measured, a line of a table each."""

    def where(self, **values: str | int) -> list[Row]:
        """The rows that have these values."""
        return [row for row in self.rows if values.items() <= row.items()]

    def each(self, name: str) -> list[Any]:
        """The different values of a column, in their order."""
        return list(dict.fromkeys(row[name] for row in self.rows if name in row))


@contextmanager
def kept(name: str, config: Config, settings: Any) -> Iterator[list[Row]]:
    """A list for rows, which are written to a file where the block ends well.

    `name` begins with that of the module: "collect", "collect-memory". `settings` is a dataclass.
    """
    device = config.device if isinstance(config, OnDevice) else "cpu"
    folder = config.out or (None if config.size == "toy" else RESULTS)
    path = folder and folder / f"{name}{'' if device == 'cpu' else f'-{device}'}.json"
    command = command_of(name.partition("-")[0], config)
    with keeping(path, command, dataclasses.asdict(settings), device) as rows:
        yield rows


@contextmanager
def keeping(
    path: Path | None, command: str, settings: dict[str, Any], device: str = "cpu"
) -> Iterator[list[Row]]:
    """The same for any file, or None, and any command."""
    began = time.perf_counter()
    rows: list[Row] = []
    yield rows
    record = Record(
        command,
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine(),
        device_name(device),
        round((time.perf_counter() - began) / 60, 2),
        artifacts.provenance(**settings, threads=torch.get_num_threads()),
        tuple({key: rounded(value) for key, value in row.items()} for row in rows),
    )
    if path is not None:
        save(record, path)
        print(f"\n{len(rows)} rows: {path}")


def save(record: Record, path: Path) -> None:
    """JSON, with a line for each row, so that a change can be read."""
    lines = [f" {json.dumps(row, ensure_ascii=False)}" for row in record.rows]
    told = json.dumps(dataclasses.asdict(record) | {"rows": []}, indent=1, ensure_ascii=False)
    rows = ",\n".join(lines)
    artifacts.write_text(path, told.removesuffix("[]\n}") + f"[\n{rows}\n]}}\n")


def load(path: Path) -> Record:
    told = json.loads(path.read_text(encoding="utf-8"))
    return Record(**told | {"rows": tuple(told["rows"])})


def rounded(value: Any) -> Any:
    """Four digits: more than a stopwatch has."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def command_of(module: str, config: Config) -> str:
    """What is typed for these settings; where the numbers go does not matter."""
    words = ["python", "-m", f"benchmarks.{module}"]
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


def where(device: str) -> str:
    """What a printed table says of it."""
    if device_name(device) != "CPU":
        return device_name(device)
    return f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "CPU"


def machine() -> str:
    """Cores that this process may use, and the processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        said = [line for line in about.read_text().splitlines() if line.startswith("model name")]
        processor = said[0].partition(":")[2].strip() if said else processor
    return f"{cores} core{'s' * (cores != 1)} of {processor}"

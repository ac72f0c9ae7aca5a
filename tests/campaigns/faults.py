"""Does a pass over text survive faults? Injects hundreds of them and counts the outcomes.

    python -m tests.campaigns.faults                # 280 faults: 15 minutes on one busy core
    python -m tests.campaigns.faults --no-ray       # 260 of them, without the cluster: 5 minutes
    python -m tests.campaigns.faults bench          # 60 of them, without the cluster: 2 minutes

The first command needs Ray (pip install 'polyneuron[ray]') and the right to mount a small file
system; without that right the faults with such a file system are left out.

Every run is the command `interp collect` on a tiny model and synthetic text, in a process forked
after everything is loaded, so that faults hit the pass itself. After each fault the same command
runs again until it ends. Then its folder must equal that of an undisturbed run, byte for byte;
unfinished files of killed writers (.part) are not compared. A fault may stop a run, but only with
one sentence, and once its cause is gone the run must end the same way. Kills that come too late to
hit anything are not counted. A jump of the clock changes the time that processes see and the times
of files.
"""

import contextlib
import importlib.util
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

import interp
from benchmarks import records
from benchmarks.records import Row, Size, recording
from interp import cli
from interp.commands import collect as reading
from interp.commands.common import ModelChoice
from interp.counting.collect import collect
from interp.counting.run import Run
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from tests import tiny_models
from tests.campaigns import faults_of_disks
from tests.campaigns.disturbed import (
    Bench,
    Outcome,
    command,
    finish,
    fork,
    kill,
    stopped_then_finished,
    wait_for,
)
from tests.campaigns.kills import blocks, files


@dataclass(frozen=True)
class Config(records.Config):
    """What to run."""

    ray: bool = True
    """With `full`: also kill actors, drivers and nodes of a Ray cluster on this machine."""

    def __post_init__(self) -> None:
        if self.with_ray and importlib.util.find_spec("ray") is None:
            raise ValueError(
                "Ray is not installed: pip install 'polyneuron[ray]', or leave the cluster out "
                "with --no-ray."
            )

    @property
    def with_ray(self) -> bool:
        return self.ray and self.size == "full"


@dataclass(frozen=True)
class Amount:
    """How many faults are injected."""

    share: float = 1.0
    """Share of all runs; each kind has at least one."""

    kinds: int | None = None
    """Number of kinds to use, from the end of the list; None: all."""

    seed: int = 0
    """Seeds moments, files and bits."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(share=0.2),
    "toy": Amount(share=0.01, kinds=2),
}


# ---------------------------------------------------------------- kills


def kill_workers(bench: Bench, out: Path) -> Outcome:
    """Five kills among three processes that each read one part."""

    def start(index: int) -> int:
        return fork(partial(command, out, "--shard", f"{index}/3"))

    workers = {index: start(index) for index in (1, 2, 3)}
    landed = 0
    for _ in range(5):
        bench.wait(0.3)
        index = bench.rng.choice((1, 2, 3))
        landed += kill(workers[index])
        workers[index] = start(index)
    if any([wait_for(worker) for worker in workers.values()]):
        raise SystemExit("A worker failed.")
    return Outcome(landed)


def kill_drivers(bench: Bench, out: Path) -> Outcome:
    """Up to five successive kills of a process that reads and merges."""
    landed = 0
    for _ in range(5):
        child = fork(partial(command, out))
        bench.wait(0.6)
        landed += kill(child)
    finish(out)
    return Outcome(landed)


def kill_writers(bench: Bench, out: Path) -> Outcome:
    """A kill around a flush: before the file is complete, before it is renamed, or right after."""
    number, after = bench.rng.randrange(2 * len(files(bench.quiet))), bench.rng.random() < 0.5

    def work() -> None:
        flush, calls = os.fsync, itertools.count()

        def deadly(file: int) -> None:
            kills = next(calls) == number
            if after or not kills:
                flush(file)
            if kills:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = deadly
        command(out)

    landed = wait_for(fork(work)) == -signal.SIGKILL
    finish(out)
    return Outcome(int(landed))


def same_pieces(bench: Bench, out: Path) -> Outcome:
    """Three processes read all pieces at the same time, and one of them is killed."""
    log = bench.folder / "saved"
    log.write_text("")

    def work() -> None:
        save = artifacts.save

        def save_and_log(path: Path | str, *rest: Any) -> None:
            save(path, *rest)
            with log.open("a") as file:
                file.write(f"{path}\n")

        artifacts.save = save_and_log
        command(out)

    workers = [fork(work) for _ in range(3)]
    bench.wait(2)
    kill(workers[0])
    if any([wait_for(worker) for worker in workers[1:]]):
        raise SystemExit("One of several processes failed.")
    saved = Counter(log.read_text().splitlines())
    return Outcome(int(max(saved.values()) > 1))


def interrupt_twice(bench: Bench, out: Path) -> Outcome:
    """Ctrl-C, and again within a hundredth of a second."""
    ready, signal_ready = os.pipe()

    def work() -> None:
        read = cli.Collect.read

        def read_when_ready(self: cli.Collect, model: NeuronModel) -> Any:
            os.write(signal_ready, b"1")
            return read(self, model)

        cli.Collect.read = read_when_ready
        sys.argv = ["interp", "collect", "--out", str(out), "--moments", "--keep-pieces"]
        cli.main()  # the program itself, which handles a second Ctrl-C differently

    child = fork(work, bench.stderr)
    os.read(ready, 1)
    os.close(ready)
    os.close(signal_ready)
    bench.wait()
    for pause in (bench.rng.uniform(0, 0.01), 0.0):
        os.kill(child, signal.SIGINT)
        time.sleep(pause)
    stopped = stopped_then_finished(bench, out, child, lambda: None)
    return Outcome(stopped, stopped)


def clock_jumps(bench: Bench, out: Path) -> Outcome:
    """In the middle of a run the clocks and the times of all files jump, by up to decades."""
    jump = bench.rng.choice((-1, 1)) * bench.rng.uniform(1, 1e9)

    def work() -> None:
        seconds, ticks = time.time, time.monotonic

        def jumped(*_: object) -> None:
            time.time = lambda: seconds() + jump
            time.monotonic = lambda: ticks() + abs(jump)

        signal.signal(signal.SIGUSR1, jumped)
        os.write(signal_ready, b"1")
        command(out)

    ready, signal_ready = os.pipe()
    child = fork(work)
    os.read(ready, 1)
    os.close(ready)
    os.close(signal_ready)
    bench.wait()
    os.kill(child, signal.SIGUSR1)
    now = time.time()
    for path in list(out.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a lock, or a file being written
            os.utime(path, (now + jump, now + jump))
    started = (out / "run.json").exists()
    if wait_for(child):
        raise SystemExit("A run did not survive a jump of the clock.")
    finish(out)
    return Outcome(int(started))


# ---------------------------------------------------------------- the campaign

FAULTS: tuple[tuple[str, int, Callable[[Bench, Path], Outcome]], ...] = (
    ("SIGKILL of one of three workers", 14, kill_workers),
    ("SIGKILL of the only process", 12, kill_drivers),
    ("SIGKILL around a flush", 30, kill_writers),
    ("two or three processes on the same pieces", 10, same_pieces),
    ("Ctrl-C twice", 25, interrupt_twice),
    ("jumps of the clock that a process sees", 15, clock_jumps),
    *faults_of_disks.FAULTS,
)
"""Name, number of runs in a whole campaign, and fault function."""


def miscounted(quiet: Path, out: Path) -> tuple[int, int]:
    """Numbers of tokens and firings that were lost, and that were counted twice."""
    lost = twice = 0
    expected, actual = (Run.open(folder).firing for folder in (quiet, out))
    for extra in (actual.tokens - expected.tokens, actual.fired - expected.fired):
        lost += int((-extra).clamp_min(0).sum())
        twice += int(extra.clamp_min(0).sum())
    return lost, twice


def inject(name: str, runs: int, fault: Callable[[Bench, Path], Outcome], bench: Bench) -> Row:
    """Run with this fault `runs` times; returns a row of totals."""
    injected = stopped = different = lost = twice = 0
    expected = files(bench.quiet)
    for _ in range(runs):
        out = bench.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        outcome = fault(bench, out)
        injected, stopped = injected + outcome.injected, stopped + outcome.stopped
        different += files(out) != expected
        new_lost, new_twice = miscounted(bench.quiet, out)
        lost, twice = lost + new_lost, twice + new_twice
    return {
        "fault": name,
        "runs": runs,
        "injected": injected,
        "stopped": stopped,
        "different": different,
        "lost": lost,
        "twice": twice,
    }


def prepare(folder: Path, seed: int) -> Bench:
    """Load everything that forked processes need, and complete an undisturbed run."""
    torch.set_num_threads(1)  # a forked process has no thread pool
    os.environ["OMP_NUM_THREADS"] = "1"
    model = load(tiny_models.build("qwen2", folder / "model"))
    corpora = blocks(model)
    ModelChoice.open = lambda self: model
    cli.Collect.read = lambda self, model: corpora
    reading.counts_table = reading.show_counts = lambda _: None
    interp.collect = partial(collect, progress=False)
    artifacts.provenance()  # asks git once, for all forked processes
    _ = model.identity, corpora.fingerprint
    finish(folder / "warm")
    start = time.perf_counter()
    finish(folder / "quiet")
    return Bench(folder, folder / "quiet", time.perf_counter() - start, random.Random(seed))


def campaign(config: Config, amount: Amount, folder: Path) -> Iterator[Row]:
    bench = prepare(folder, amount.seed)
    print(f"undisturbed run: {bench.seconds:.2f} s, {len(files(bench.quiet))} files\n")

    def count(runs: int) -> int:
        return max(1, round(runs * amount.share))

    # Run first, so that a cluster that does not start costs nothing; reported last.
    of_ray = list(faults_on_ray(bench, count)) if config.with_ray else []
    for name, runs, fault in FAULTS[-(amount.kinds or len(FAULTS)) :]:
        yield inject(name, count(runs), fault, bench)
    yield from of_ray


def faults_on_ray(bench: Bench, count: Callable[[int], int]) -> Iterator[Row]:
    from tests.campaigns import faults_of_ray

    with faults_of_ray.Nodes() as nodes:
        for name, runs, fault in faults_of_ray.FAULTS:
            bound = partial(fault, nodes, str(bench.folder / "model"))
            yield inject(name, count(runs), bound, bench)


def main(config: Config) -> None:
    amount = AMOUNTS[config.size]
    name = "faults" if config.with_ray else "faults-short"
    package = "tests.campaigns"
    with (
        tempfile.TemporaryDirectory() as folder,
        recording(name, config, amount, package) as record,
    ):
        total = Counter[str]()
        for row in campaign(config, amount, Path(folder)):
            record(row)
            total.update({key: value for key, value in row.items() if isinstance(value, int)})
        equal = not (total["different"] or total["lost"] or total["twice"])
        print(
            f"\n{total['injected']} faults; {total['stopped']} stopped a run, each with one "
            f"sentence. All finished folders equal, byte for byte: {equal}"
        )
    raise SystemExit(not equal)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

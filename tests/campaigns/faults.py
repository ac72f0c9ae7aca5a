"""What is left of a pass over text when things go wrong? Faults by the hundred, and a table.

    python -m tests.campaigns.faults                # 280 faults: 15 minutes on one busy core
    python -m tests.campaigns.faults --no-ray       # 260 of them, without the cluster: 5 minutes
    python -m tests.campaigns.faults bench          # 60 of them, without the cluster: 2 minutes

The first of these takes Ray (pip install 'polyneuron[ray]') and the right to mount a small file
system; without the latter the disk is full in one way less.

Every run is the command `interp collect` on a tiny model and made-up text, in a process that is
forked once all is loaded, so that what is hit is the pass itself. After each fault the same command
runs again until it ends. Then its folder must equal that of an undisturbed run, byte for byte; what
killed writers leave unfinished (.part) is not compared. A fault may stop a run, but with one
sentence, and once its cause is gone the run must end the same way. Kills that come too late to hit
anything are not counted. A jump of the clock is what processes see of one: time itself, and the
times of files.
"""

import contextlib
import importlib.util
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
    ended,
    finish,
    fork,
    kill,
    stopped_then_finished,
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
    """How much goes wrong."""

    share: float = 1.0
    """Of all runs; each kind has one at the least."""

    kinds: int | None = None
    """So many of them, the last ones; None: all."""

    seed: int = 0
    """Decides on moments, files and bits."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(share=0.2),
    "toy": Amount(share=0.01, kinds=2),
}


# ---------------------------------------------------------------- kills


def kill_workers(bench: Bench, out: Path) -> Outcome:
    """Five kills among three processes that read a part each."""

    def start(index: int) -> int:
        return fork(partial(command, out, "--shard", f"{index}/3"))

    workers = {index: start(index) for index in (1, 2, 3)}
    landed = 0
    for _ in range(5):
        bench.wait(0.3)
        index = bench.dice.choice((1, 2, 3))
        landed += kill(workers[index])
        workers[index] = start(index)
    if any([ended(worker) for worker in workers.values()]):
        raise SystemExit("a worker did not end well")
    return Outcome(landed)


def kill_drivers(bench: Bench, out: Path) -> Outcome:
    """Up to five kills, one after the other, of a process that reads and merges."""
    landed = 0
    for _ in range(5):
        child = fork(partial(command, out))
        bench.wait(0.6)
        landed += kill(child)
    finish(out)
    return Outcome(landed)


def kill_writers(bench: Bench, out: Path) -> Outcome:
    """A kill at a flush: before the file is whole, before it is in its place, or right after."""
    number, after = bench.dice.randrange(2 * len(files(bench.quiet))), bench.dice.random() < 0.5

    def work() -> None:
        flush, calls = os.fsync, iter(range(10**6))

        def deadly(file: int) -> None:
            mine = next(calls) == number
            if after or not mine:
                flush(file)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = deadly
        command(out)

    landed = ended(fork(work)) == -signal.SIGKILL
    finish(out)
    return Outcome(int(landed))


def same_pieces(bench: Bench, out: Path) -> Outcome:
    """Three processes read all pieces at the same time, and one of them is killed."""
    log = bench.place / "saved"
    log.write_text("")

    def work() -> None:
        save = artifacts.save

        def noted(path: Path | str, *rest: Any) -> None:
            save(path, *rest)
            with log.open("a") as file:
                file.write(f"{path}\n")

        artifacts.save = noted
        command(out)

    workers = [fork(work) for _ in range(3)]
    bench.wait(2)
    kill(workers[0])
    if any([ended(worker) for worker in workers[1:]]):
        raise SystemExit("one of several processes did not end well")
    saved = Counter(log.read_text().splitlines())
    return Outcome(int(max(saved.values()) > 1))


def interrupt_twice(bench: Bench, out: Path) -> Outcome:
    """Ctrl-C, and once more within a hundredth of a second."""
    ready, told = os.pipe()

    def work() -> None:
        read = cli.Collect.read

        def tell(self: cli.Collect, model: NeuronModel) -> Any:
            os.write(told, b"1")
            return read(self, model)

        cli.Collect.read = tell
        sys.argv = ["interp", "collect", "--out", str(out), "--moments"]
        cli.main()  # as the program itself, which takes a second one differently

    child = fork(work, bench.said)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    bench.wait()
    for pause in (bench.dice.uniform(0, 0.01), 0.0):
        os.kill(child, signal.SIGINT)
        time.sleep(pause)
    stopped = stopped_then_finished(bench, out, child, lambda: None)
    return Outcome(stopped, stopped)


def clock_jumps(bench: Bench, out: Path) -> Outcome:
    """In the middle of a run the clocks jump by years, and the times of all files with them."""
    jump = bench.dice.choice((-1, 1)) * bench.dice.uniform(1, 1e9)

    def work() -> None:
        seconds, ticks = time.time, time.monotonic

        def jumped(*_: object) -> None:
            time.time = lambda: seconds() + jump
            time.monotonic = lambda: ticks() + abs(jump)

        signal.signal(signal.SIGUSR1, jumped)
        os.write(told, b"1")
        command(out)

    ready, told = os.pipe()
    child = fork(work)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    bench.wait()
    os.kill(child, signal.SIGUSR1)
    now = time.time()
    for path in list(out.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a sign of life, a file being written
            os.utime(path, (now + jump, now + jump))
    begun = (out / "run.json").exists()
    if ended(child):
        raise SystemExit("a run did not survive a jump of the clock")
    finish(out)
    return Outcome(int(begun))


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
"""Names, runs in a whole campaign, and what is done to each."""


def miscounted(quiet: Path, out: Path) -> tuple[int, int]:
    """Tokens and firings that were lost, and that were counted twice."""
    lost = twice = 0
    one, other = (Run.open(each).firing for each in (quiet, out))
    for expected, found in ((one.tokens, other.tokens), (one.fired, other.fired)):
        lost += int((expected - found).clamp_min(0).sum())
        twice += int((found - expected).clamp_min(0).sum())
    return lost, twice


def inject(name: str, runs: int, fault: Callable[[Bench, Path], Outcome], bench: Bench) -> Row:
    """What became of so many runs."""
    injected = stopped = different = lost = twice = 0
    expected = files(bench.quiet)
    for _ in range(runs):
        out = bench.place / "run"
        shutil.rmtree(out, ignore_errors=True)
        outcome = fault(bench, out)
        injected, stopped = injected + outcome.injected, stopped + outcome.stopped
        different += files(out) != expected
        more = miscounted(bench.quiet, out)
        lost, twice = lost + more[0], twice + more[1]
    return {
        "fault": name,
        "runs": runs,
        "injected": injected,
        "stopped": stopped,
        "different": different,
        "lost": lost,
        "twice": twice,
    }


def prepare(place: Path, seed: int) -> Bench:
    """Loads all, so that what is forked has it, and has a run that nothing disturbs."""
    torch.set_num_threads(1)  # a forked process has no thread pool
    os.environ["OMP_NUM_THREADS"] = "1"
    model = load(tiny_models.build("qwen2", place / "model"))
    corpora = blocks(model)
    ModelChoice.open = lambda self: model
    cli.Collect.read = lambda self, model: corpora
    reading.show_stats = lambda stats: None
    interp.collect = partial(collect, progress=False)
    artifacts.provenance()  # asks git once, for all that are forked
    _ = model.identity, corpora.fingerprint
    finish(place / "warm")
    begun = time.perf_counter()
    finish(place / "quiet")
    return Bench(place, place / "quiet", time.perf_counter() - begun, random.Random(seed))


def campaign(config: Config, amount: Amount, place: Path) -> Iterator[Row]:
    bench = prepare(place, amount.seed)
    print(f"an undisturbed run: {bench.seconds:.2f} s, {len(files(bench.quiet))} files\n")

    def count(runs: int) -> int:
        return max(1, round(runs * amount.share))

    # First, so that a cluster that does not start costs nothing; told last.
    of_ray = list(faults_on_ray(bench, count)) if config.with_ray else []
    for name, runs, fault in FAULTS[-(amount.kinds or len(FAULTS)) :]:
        yield inject(name, count(runs), fault, bench)
    yield from of_ray


def faults_on_ray(bench: Bench, count: Callable[[int], int]) -> Iterator[Row]:
    from tests.campaigns import faults_of_ray

    with faults_of_ray.Nodes() as nodes:
        for name, runs, fault in faults_of_ray.FAULTS:
            given = partial(fault, nodes, str(bench.place / "model"))
            yield inject(name, count(runs), given, bench)


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
            f"sentence. Every finished folder equal, byte for byte: {equal}"
        )
    raise SystemExit(not equal)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

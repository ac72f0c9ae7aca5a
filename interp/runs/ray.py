"""Work shared among processes: signs of life for those who watch, and Ray to hand jobs out.

A job is done when its file is there. That is the whole ledger: what an actor says, who holds a sign
of life and what the clocks show decide nothing, so nobody's death can spoil a result. No job
belongs to an actor. Each goes to one that is free, and goes to another if that one is lost.
"""

import contextlib
import math
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ATTEMPTS = 5
"""Actors that one job, or the opening of the model, may cost before the run stops."""

_UNSEEN = 90.0
"""Seconds after which a file that an actor wrote must be seen here; network folders are slow."""

_OPENING = 3600.0
"""Seconds in which some actor must have found a place and opened the model."""

_TICK = 1.0
"""Seconds between looks at the cluster."""


@dataclass(frozen=True)
class Ray:
    """Where the actors of a run live, and what each of them gets.

    >>> where = interp.runs.Ray(actors=4, num_gpus=0.5)  # for `interp.collect(..., ray=where)`
    >>> where.address is None, where.num_cpus  # two GPUs of this machine, or of its cluster
    (True, 1.0)
    """

    address: str | None = None
    """A running cluster, such as "auto" or "10.0.0.1:6379". None: what ray.init() finds, which is
    the cluster that this program was submitted to, or else this machine."""

    actors: int | None = None
    """Processes that hold the model; None: as many as there is room for, also when nodes join."""

    num_cpus: float = 1.0
    """CPUs of each actor, which is also how many threads it computes with."""

    num_gpus: float | None = None
    """GPUs of each actor; 0.5 puts two on one. None: one if the cluster has any, else none."""

    patience: float = 3600.0
    """Seconds for one piece; then it goes to another actor, with twice the time."""

    open: Callable[[], Any] | None = None
    """Opens the model in each actor. None: as `load(name)` does, which takes no more than a name,
    so give a function for a model that was opened with other options or wrapped."""


@dataclass(frozen=True)
class Job:
    """Something to do that leaves one file behind, equal whoever does it and however often."""

    name: str
    """What it is called in a message."""

    path: Path
    """The file, which is there when the job is done; a path that every node understands."""

    work: Callable[[Any], None]
    """Does it, with a model that is open already."""

    size: int = 1
    """How far it moves a progress bar."""

    to_send: Callable[[], Callable[[Any], None]] | None = None
    """Makes what an actor is sent in place of `work`, where that would carry along more than the
    actor needs, such as the text of all jobs."""

    def sent(self) -> Callable[[Any], None]:
        """What an actor calls with the model that it holds."""
        return self.work if self.to_send is None else self.to_send()


# ---------------------------------------------------------------- Ray


class _Actor:
    """Holds a model in a process of its own."""

    def __init__(self, opens: Callable[[], Any]) -> None:
        self._opens = opens
        self._held: Any = None

    def open(self) -> None:
        self._held = self._opens()

    def run(self, work: Callable[[Any], None]) -> list[UserWarning]:
        """What was warned of, which nobody would read here."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work(self._held)
        return [each.message for each in caught if isinstance(each.message, UserWarning)]


@dataclass(frozen=True)
class _Call:
    """What an actor is at."""

    actor: Any

    job: Job | None
    """None: it opens the model."""

    until: float
    """When patience ends, on the clock that nobody can set."""


class Crew:
    """Actors that hold a model and take jobs one by one; used in a `with` block."""

    holds: Any
    """What the actors hold, in words that tell two crews apart; see `interp.runs.jobs`."""

    def __init__(self, settings: Ray, opens: Callable[[], Any], holds: Any = None) -> None:
        if min(settings.num_cpus, settings.num_gpus or 0) < 0 or settings.patience <= 0:
            raise ValueError(f"CPUs, GPUs and patience must be positive: {settings}.")
        self._ray = _library()
        self._settings = settings
        self._opens = opens
        self.holds = holds
        self._waiting: deque[Job] = deque()
        self._calls: dict[Any, _Call] = {}
        self._free: list[Any] = []
        self._attempts: Counter[Path | None] = Counter()
        self._heard = time.monotonic()
        self._connected_here = False

    def __enter__(self) -> "Crew":
        if not self._ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unasked
            self._ray.init(
                address=self._settings.address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
            self._connected_here = True
        if self._settings.actors is None and self._room() == 0:
            there = self._ray.cluster_resources()
            self.__exit__()
            raise ValueError(
                f"No node has room for an actor of {self._needs()}; the whole cluster has "
                f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs. Ask for less."
            )
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._free, *(call.actor for call in self._calls.values())]:
            self._end(actor)
        if self._connected_here:
            self._ray.shutdown()

    def do(self, jobs: Sequence[Job], done: Callable[[Job], None]) -> None:
        """Have every job done, and tell `done` of each once its file is seen here.

        An error that a job raises is raised here; ended actors and lost nodes are not errors.
        """
        try:
            self._do(jobs, done)
        except BaseException:  # what is left of these jobs is not to meet the next ones
            self._waiting.clear()
            for answer, call in list(self._calls.items()):
                if call.job is not None:
                    del self._calls[answer]
                    self._end(call.actor)
            raise

    def _do(self, jobs: Sequence[Job], done: Callable[[Job], None]) -> None:
        self._waiting.extend(jobs)
        self._heard = time.monotonic()
        unseen: dict[Path, tuple[Job, float]] = {}
        while self._waiting or unseen or any(call.job for call in self._calls.values()):
            self._hire()
            while self._waiting and self._free:
                job = self._waiting.popleft()
                if job.path.exists():  # by an actor before it was lost, or by another run
                    done(job)
                else:
                    self._hand(job)
            for job in self._answers():
                unseen[job.path] = (job, time.monotonic() + _UNSEEN)
            self._end_overdue()
            for path, (job, until) in list(unseen.items()):
                if path.exists():
                    del unseen[path]
                    done(job)
                elif until < time.monotonic():
                    raise OSError(
                        f"An actor has finished {job.name}, and {path} is not seen here: give a "
                        "folder that all nodes of the cluster share."
                    )

    def _hire(self) -> None:
        """Start actors while jobs wait and there is room."""
        busy = sum(call.job is not None for call in self._calls.values())
        room = self._room() if self._settings.actors is None else self._settings.actors
        wanted = min(room, busy + len(self._waiting)) - len(self._calls) - len(self._free)
        remote = self._ray.remote(_Actor).options(
            num_cpus=self._settings.num_cpus,
            num_gpus=self._gpus(),
            max_restarts=0,  # a new actor goes where there is room; one that restarts may wait
        )
        for _ in range(wanted):
            actor = remote.remote(self._opens)
            self._calls[actor.open.remote()] = _Call(actor, None, math.inf)

    def _hand(self, job: Job) -> None:
        actor = self._free.pop()
        patience = self._settings.patience * 2 ** self._attempts[job.path]
        until = time.monotonic() + patience
        self._calls[actor.run.remote(job.sent())] = _Call(actor, job, until)

    def _answers(self) -> list[Job]:
        """Wait a moment for whoever has finished: jobs that actors call done."""
        if not self._calls:  # a cluster without any room, for now
            time.sleep(_TICK)
            return []
        answered, _ = self._ray.wait(list(self._calls), timeout=_TICK)
        finished = []
        for answer in answered:
            call = self._calls.pop(answer)
            try:
                warned = self._ray.get(answer) or ()
            except self._ray.exceptions.RayTaskError as error:
                self._free.append(call.actor)
                told = isinstance(error.cause, (ValueError, KeyError, OSError))
                raise (error.cause if told else error) from None
            except self._ray.exceptions.RayError as error:  # killed, or its node is lost
                self._take_back(call, str(error).strip().splitlines()[0])
                continue
            self._free.append(call.actor)
            self._heard = time.monotonic()
            self._attempts[None] = 0
            for each in warned:
                warnings.warn(each, stacklevel=2)
            if call.job is not None:
                finished.append(call.job)
        return finished

    def _end_overdue(self) -> None:
        """End actors that took too long; and the run, where no actor can be had at all."""
        now = time.monotonic()
        for answer, call in list(self._calls.items()):
            if call.until < now:
                del self._calls[answer]
                self._take_back(call, "it took longer than it was given")
        at_work = self._free or any(call.job for call in self._calls.values())
        if self._waiting and not at_work and now - self._heard > _OPENING:
            raise TimeoutError(
                f"No actor of {self._needs()} was ready in {_OPENING:g} seconds: see with `ray "
                "status` who holds the cluster. Finished pieces are kept."
            )

    def _take_back(self, call: _Call, why: str) -> None:
        """End an actor, and let its job wait for another, unless that has happened too often."""
        self._end(call.actor)
        self._heard = time.monotonic()
        key = None if call.job is None else call.job.path
        self._attempts[key] += 1
        if self._attempts[key] >= _ATTEMPTS:
            what = "opening the model" if call.job is None else call.job.name
            raise OSError(
                f"{_ATTEMPTS} actors were lost at {what} ({why}): give each more memory or "
                "patience, or smaller batches. Finished pieces are kept."
            )
        if call.job is not None:
            self._waiting.appendleft(call.job)

    def _end(self, actor: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)

    def _room(self) -> int:
        """Actors that the living nodes can hold."""
        needs = {"CPU": self._settings.num_cpus, "GPU": self._gpus()}
        if not any(needs.values()):
            raise ValueError(
                "An actor needs some share of a CPU or GPU: give num_cpus or num_gpus."
            )
        return sum(
            min(int(node["Resources"].get(each, 0) / n) for each, n in needs.items() if n)
            for node in self._ray.nodes()
            if node["Alive"]
        )

    def _gpus(self) -> float:
        if self._settings.num_gpus is not None:
            return self._settings.num_gpus
        return float(self._ray.cluster_resources().get("GPU", 0) > 0)

    def _needs(self) -> str:
        return f"{self._settings.num_cpus:g} CPUs and {self._gpus():g} GPUs"


def _library() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Ray is not installed: pip install 'polyneuron[ray]', or share the work without it, "
            "as parts (`interp collect --shard 1/4`)."
        ) from None
    return ray

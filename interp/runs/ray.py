"""Running jobs on a Ray cluster.

A job is done when its file exists, and nothing else counts: not what an actor reports, not locks,
not clocks. So a lost actor cannot spoil a result. No job belongs to an actor: a job goes to a free
actor, and to another one if that actor is lost.
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
"""Actors that may be lost to one job, or to opening the model, before the run stops."""

_VISIBLE_WITHIN = 90.0
"""Seconds until a file that an actor wrote must be visible here; network folders are slow."""

_READY_WITHIN = 3600.0
"""Seconds until at least one actor must have started and opened the model."""

_POLL = 1.0
"""Seconds between checks of the cluster."""


@dataclass(frozen=True)
class Ray:
    """The cluster on which actors run, and the resources of each actor.

    >>> ray = interp.runs.Ray(actors=4, num_gpus=0.5)  # for `interp.collect(..., ray=ray)`
    >>> ray.address is None, ray.num_cpus  # two GPUs of this machine, or of its cluster
    (True, 1.0)
    """

    address: str | None = None
    """A running cluster, such as "auto" or "10.0.0.1:6379". None: what ray.init() finds: the
    cluster that this program was submitted to, else this machine."""

    actors: int | None = None
    """Processes that hold the model; None: as many as fit, also when nodes join."""

    num_cpus: float = 1.0
    """CPUs of each actor, which is also its number of threads."""

    num_gpus: float | None = None
    """GPUs of each actor; 0.5 puts two actors on a GPU. None: one if the cluster has any, else
    none."""

    patience: float = 3600.0
    """Seconds for one piece; after that, another actor gets it, with twice the time."""

    open: Callable[[], Any] | None = None
    """Opens the model in each actor. None: `load` with the model's name, attention and dtype; give
    a function for a model that was wrapped or opened with other options."""


@dataclass(frozen=True)
class Job:
    """Work that writes one file, the same in any process and however often it is repeated."""

    name: str
    """Its name in messages."""

    path: Path
    """The file, which exists once the job is done; a path that is valid on every node."""

    work: Callable[[Any], None]
    """Does the job, given an open model."""

    size: int = 1
    """Steps of the progress bar."""

    to_send: Callable[[], Callable[[Any], None]] | None = None
    """Makes the callable to send to an actor instead of `work`, if `work` would carry more data
    than the actor needs, such as the text of all jobs."""

    def sent(self) -> Callable[[Any], None]:
        """The callable that an actor runs on its model."""
        return self.work if self.to_send is None else self.to_send()


# ---------------------------------------------------------------- actors


class _Actor:
    """Holds a model in its own process."""

    def __init__(self, open_model: Callable[[], Any]) -> None:
        self._open_model = open_model
        self._model: Any = None

    def open(self) -> None:
        self._model = self._open_model()

    def run(self, work: Callable[[Any], None]) -> list[UserWarning]:
        """Run `work` on the model; returns its warnings, which nobody would see in an actor."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work(self._model)
        return [entry.message for entry in caught if isinstance(entry.message, UserWarning)]


@dataclass(frozen=True)
class _Call:
    """The current call of an actor."""

    actor: Any

    job: Job | None
    """None: the actor is opening the model."""

    deadline: float
    """When patience ends, on the monotonic clock."""


class ActorPool:
    """Actors that hold a model and take jobs one by one; use it in a `with` block."""

    identity: Any
    """Identity of the model that the actors hold; see `NeuronModel.identity`."""

    def __init__(self, settings: Ray, open_model: Callable[[], Any], identity: Any = None) -> None:
        if min(settings.num_cpus, settings.num_gpus or 0) < 0 or settings.patience <= 0:
            raise ValueError(f"CPUs, GPUs and patience must be positive: {settings}.")
        self._ray = _import_ray()
        self._settings = settings
        self._open_model = open_model
        self.identity = identity
        self._waiting: deque[Job] = deque()
        self._calls: dict[Any, _Call] = {}
        self._free: list[Any] = []
        self._attempts: Counter[Path | None] = Counter()
        self._last_event = time.monotonic()
        self._connected_here = False

    def __enter__(self) -> "ActorPool":
        if not self._ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # telemetry is opt-in
            self._ray.init(
                address=self._settings.address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
            self._connected_here = True
        if self._settings.actors is None and self._room() == 0:
            total = self._ray.cluster_resources()
            self.__exit__()
            raise ValueError(
                f"No node has room for an actor with {self._needs()}; the whole cluster has "
                f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs. Ask for less."
            )
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._free, *(call.actor for call in self._calls.values())]:
            self._end(actor)
        if self._connected_here:
            self._ray.shutdown()

    def do(self, jobs: Sequence[Job], done: Callable[[Job], None]) -> None:
        """Run every job, and call `done` with it once its file is visible here.

        An error in a job is raised here; killed actors and lost nodes are not errors.
        """
        try:
            self._do(jobs, done)
        except BaseException:  # drop the remaining jobs, so that they do not mix with later ones
            self._waiting.clear()
            for answer, call in list(self._calls.items()):
                if call.job is not None:
                    del self._calls[answer]
                    self._end(call.actor)
            raise

    def _do(self, jobs: Sequence[Job], done: Callable[[Job], None]) -> None:
        self._waiting.extend(jobs)
        self._last_event = time.monotonic()
        invisible: dict[Path, tuple[Job, float]] = {}
        while self._waiting or invisible or any(call.job for call in self._calls.values()):
            self._start_actors()
            while self._waiting and self._free:
                job = self._waiting.popleft()
                if job.path.exists():  # written by an actor before it was lost, or by another run
                    done(job)
                else:
                    self._submit(job)
            for job in self._finished_jobs():
                invisible[job.path] = (job, time.monotonic() + _VISIBLE_WITHIN)
            self._end_overdue()
            for path, (job, deadline) in list(invisible.items()):
                if path.exists():
                    del invisible[path]
                    done(job)
                elif deadline < time.monotonic():
                    raise OSError(
                        f"An actor has finished {job.name}, but {path} is not visible here: give a "
                        "folder that all nodes of the cluster share."
                    )

    def _start_actors(self) -> None:
        """Start actors while jobs wait and there is room."""
        busy = sum(call.job is not None for call in self._calls.values())
        room = self._room() if self._settings.actors is None else self._settings.actors
        n_new = min(room, busy + len(self._waiting)) - len(self._calls) - len(self._free)
        remote = self._ray.remote(_Actor).options(
            num_cpus=self._settings.num_cpus,
            num_gpus=self._gpus(),
            max_restarts=0,  # a new actor goes where there is room; a restarted one may wait
        )
        for _ in range(n_new):
            actor = remote.remote(self._open_model)
            self._calls[actor.open.remote()] = _Call(actor, None, math.inf)

    def _submit(self, job: Job) -> None:
        actor = self._free.pop()
        patience = self._settings.patience * 2 ** self._attempts[job.path]
        deadline = time.monotonic() + patience
        self._calls[actor.run.remote(job.sent())] = _Call(actor, job, deadline)

    def _finished_jobs(self) -> list[Job]:
        """Jobs that actors report as finished; waits a moment for them."""
        if not self._calls:  # the cluster has no room for now
            time.sleep(_POLL)
            return []
        answered, _ = self._ray.wait(list(self._calls), timeout=_POLL)
        finished = []
        for answer in answered:
            call = self._calls.pop(answer)
            try:
                messages = self._ray.get(answer) or ()
            except self._ray.exceptions.RayTaskError as error:
                self._free.append(call.actor)
                is_clear = isinstance(error.cause, (ValueError, KeyError, OSError))
                raise (error.cause if is_clear else error) from None
            except self._ray.exceptions.RayError as error:  # killed, or its node is lost
                self._requeue(call, str(error).strip().splitlines()[0])
                continue
            self._free.append(call.actor)
            self._last_event = time.monotonic()
            self._attempts[None] = 0
            for message in messages:
                warnings.warn(message, stacklevel=2)
            if call.job is not None:
                finished.append(call.job)
        return finished

    def _end_overdue(self) -> None:
        """End actors that take too long, and the run if no actor can be started at all."""
        now = time.monotonic()
        for answer, call in list(self._calls.items()):
            if call.deadline < now:
                del self._calls[answer]
                self._requeue(call, "it exceeded its time limit")
        at_work = self._free or any(call.job for call in self._calls.values())
        if self._waiting and not at_work and now - self._last_event > _READY_WITHIN:
            raise TimeoutError(
                f"No actor with {self._needs()} was ready within {_READY_WITHIN:g} seconds: check "
                "with `ray status` what occupies the cluster. Finished pieces are kept."
            )

    def _requeue(self, call: _Call, why: str) -> None:
        """End an actor and requeue its job, unless that has happened too often."""
        self._end(call.actor)
        self._last_event = time.monotonic()
        key = None if call.job is None else call.job.path
        self._attempts[key] += 1
        if self._attempts[key] >= _ATTEMPTS:
            what = "opening the model" if call.job is None else call.job.name
            raise OSError(
                f"{_ATTEMPTS} actors were lost during {what} ({why}): give each more memory or "
                "patience, or smaller batches. Finished pieces are kept."
            )
        if call.job is not None:
            self._waiting.appendleft(call.job)

    def _end(self, actor: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)

    def _room(self) -> int:
        """Number of actors that fit on the live nodes."""
        needs = {"CPU": self._settings.num_cpus, "GPU": self._gpus()}
        if not any(needs.values()):
            raise ValueError("An actor needs a share of a CPU or GPU: give num_cpus or num_gpus.")
        return sum(
            min(int(node["Resources"].get(resource, 0) / n) for resource, n in needs.items() if n)
            for node in self._ray.nodes()
            if node["Alive"]
        )

    def _gpus(self) -> float:
        if self._settings.num_gpus is not None:
            return self._settings.num_gpus
        return float(self._ray.cluster_resources().get("GPU", 0) > 0)

    def _needs(self) -> str:
        return f"{self._settings.num_cpus:g} CPUs and {self._gpus():g} GPUs"


def _import_ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Ray is not installed: pip install 'polyneuron[ray]', or split the work without it "
            "(`interp collect --shard 1/4`)."
        ) from None
    return ray

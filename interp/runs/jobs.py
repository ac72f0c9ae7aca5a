"""Long loops in pieces: run in this process, by processes that share a folder, or on Ray.

A piece is a `Job`: one file, the same whichever process makes it. Every loop passes its list of
jobs to `finish`, which skips those whose file exists. So a killed run, the tasks of a job array
with the same folder, and the actors of a cluster complete one another's work. Pieces are
bit-identical only on the same hardware with the same number of threads: floating-point sums depend
on their order.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from interp.models.any_model import AnyModel, as_model
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.runs.locks import hold_lock, lock_owner, remove_stale_locks
from interp.runs.ray import ActorPool, Job, Ray

Result = TypeVar("Result")

_POLL = 0.2
"""Seconds between checks of a piece that another process is making."""


def finish(
    jobs: Sequence[Job],
    load_piece: Callable[[Path], Result],
    bar: Any,
    model: NeuronModel,
    ray: Ray | ActorPool | None,
) -> list[Result]:
    """Run the jobs whose file is missing; returns the contents of all files, in the order of jobs.

    Existing files are read first, so that a damaged or unrelated file stops the run at the start:
    `load_piece` raises.
    """

    def done(job: Job) -> None:
        bar.update(job.size)

    results: dict[Path, Result] = {}
    for job in jobs:
        if job.path.exists():
            results[job.path] = load_piece(job.path)
            bar.found(job.size)
    missing = [job for job in jobs if job.path not in results]
    try:
        if missing:
            with pool_for(model, ray) as pool:
                if pool is None:
                    _do_locally(missing, done, model)
                else:
                    pool.do([replace(job, to_send=partial(_to_send, job)) for job in missing], done)
    finally:
        for folder in {_lock_path(job.path).parent for job in jobs}:
            remove_stale_locks(folder)
    return [results[job.path] if job.path in results else load_piece(job.path) for job in jobs]


@contextmanager
def pool_for(model: NeuronModel, ray: Ray | ActorPool | None) -> Iterator[ActorPool | None]:
    """Actors that hold this model, or None without Ray; a given pool stays open afterwards."""
    if ray is None:
        yield None
    elif isinstance(ray, ActorPool):
        refuse_edited(model, "hooks do not reach the actors, so pass edits as interp.Change")
        if ray.identity != model.identity:
            raise ValueError(
                f"The actors of this pool hold another model than {model.name}: open a pool for "
                "it with interp.runs.actor_pool(model, ray)."
            )
        yield ray
    else:
        with actor_pool(model, ray) as pool:
            yield pool


def actor_pool(model: AnyModel, ray: Ray | None = None) -> ActorPool:
    """Actors that open this model once for several long loops; use it in a `with` block.

    >>> pool = interp.runs.actor_pool(model, interp.runs.Ray("auto", num_gpus=0.5))
    >>> with pool:  # doctest: +SKIP
    ...     interp.collect(model, text, "counts", ray=pool)
    ...     interp.perplexity_matrix(model, neurons, text, out="matrix", ray=pool)
    """
    model = as_model(model)
    refuse_edited(model, "hooks do not reach the actors, so pass edits as interp.Change")
    ray, folder = ray or Ray(), Path(model.name)
    name = str(folder.resolve()) if folder.is_dir() else model.name  # actors run in other folders
    open_model = ray.open or partial(load, name, attention=model.attention, dtype=model.dtype)
    return ActorPool(ray, partial(_open_same, open_model, model.identity), model.identity)


@contextmanager
def folder_for(out: Path | str | None) -> Iterator[Path]:
    """The folder, as an absolute path that actors can use; None: a temporary folder."""
    if out is not None:
        yield Path(out).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def refuse_edited(model: NeuronModel, why: str) -> None:
    """Refuse a model with hooks, where edits around a call would be lost or do harm.

    Permanent hooks are not edits: the bridges of XGLM and OPT have some of their own.
    """
    handles = [handle for point in model.bridge.hook_dict.values() for handle in point.fwd_hooks]
    if any(not handle.is_permanent for handle in handles):
        raise ValueError(
            f"{model.name} has active hooks: {why}. Call this outside the `with` block."
        )


# ---------------------------------------------------------------- internals


def _do_locally(jobs: Sequence[Job], done: Callable[[Job], None], model: NeuronModel) -> None:
    """Run jobs one by one; wait for those locked by another process, then run what is missing."""
    locked, longest = [], 0.0
    for job in jobs:
        if not job.path.exists() and lock_owner(_lock_path(job.path)) is not None:
            locked.append(job)
            continue
        started = time.monotonic()
        _do(job, model)
        longest = max(longest, time.monotonic() - started)
        done(job)
    # A process that takes twice as long as the slowest piece here may be stuck.
    deadline = time.monotonic() + 2 * longest
    for job in locked:
        while time.monotonic() < deadline and lock_owner(_lock_path(job.path)) is not None:
            time.sleep(_POLL)
        _do(job, model)
        done(job)


def _do(job: Job, model: NeuronModel) -> None:
    if not job.path.exists():
        _make(job.path, job.work, model)


def _to_send(job: Job) -> Callable[[NeuronModel], None]:
    return partial(_make, job.path, job.sent())


def _make(path: Path, work: Callable[[NeuronModel], None], model: NeuronModel) -> None:
    with hold_lock(_lock_path(path)):
        work(model)


def _lock_path(path: Path) -> Path:
    return path.parent.parent / "running" / f"{path.parent.name}-{path.stem}"


def _open_same(open_model: Callable[[], AnyModel], identity: Mapping[str, str]) -> NeuronModel:
    """Runs in an actor: the model, refused if it is not the one the run was started with."""
    model = as_model(open_model())
    opened: Mapping[str, Any] = model.identity
    if differ := [key for key in identity if opened.get(key) != identity[key]]:
        key = differ[0]
        raise ValueError(
            f"An actor opened another model than yours ({key} was {identity[key]}, in the actor it "
            f"is {opened.get(key)}): give Ray(open=...) a function that opens yours, and install "
            "the same library versions on all nodes."
        )
    return model

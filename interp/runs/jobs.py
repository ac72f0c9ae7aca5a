"""Long loops in pieces: done here, by several processes that share a folder, or on Ray.

A piece is a `Job`: one file, equal whoever makes it. Every loop makes a list of them and hands it
to `finish`, which knows what is done by the files alone. So a run that was killed, the tasks of a
job array that are given the same folder, and the actors of a cluster complete one another's work.
Equal to the last bit are pieces made on like hardware with as many threads: sums of floating-point
numbers depend on their order.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.runs.locks import clear_signs, sign_of_life, who_is_at
from interp.runs.ray import Crew, Job, Ray

Result = TypeVar("Result")

_LOOK = 0.2
"""Seconds between looks at a piece that another process makes."""


def finish(
    jobs: Sequence[Job],
    load_piece: Callable[[Path], Result],
    bar: Any,
    model: NeuronModel,
    ray: Ray | Crew | None,
) -> list[Result]:
    """What is in the file of every job, in their order, once all are there.

    What is there already is read first, so that a file that is damaged, or of something else, ends
    the run before it begins: `load_piece` raises.
    """

    def done(job: Job) -> None:
        bar.update(job.size)

    found: dict[Path, Result] = {}
    for job in jobs:
        if job.path.exists():
            found[job.path] = load_piece(job.path)
            done(job)
    missing = [job for job in jobs if job.path not in found]
    try:
        if missing:
            with hired(model, ray) as crew:
                if crew is None:
                    _do_here(missing, done, model)
                else:
                    crew.do([replace(job, to_send=partial(_to_send, job)) for job in missing], done)
    finally:
        for folder in {_sign_path(job.path).parent for job in jobs}:
            clear_signs(folder)
    return [found[job.path] if job.path in found else load_piece(job.path) for job in jobs]


@contextmanager
def hired(model: NeuronModel, ray: Ray | Crew | None) -> Iterator[Crew | None]:
    """Actors that hold this model, if Ray is asked for; a crew that is given stays hired."""
    if ray is None:
        yield None
    elif isinstance(ray, Crew):
        refuse_edited(model, "they stay in this process, and edits are sent as interp.Change")
        if ray.holds != model.identity:
            raise ValueError(
                f"The actors of this crew hold another model than {model.name}: hire a crew for "
                "it, with interp.runs.crew_of(model, ray)."
            )
        yield ray
    else:
        with crew_of(model, ray) as crew:
            yield crew


def crew_of(model: NeuronModel, ray: Ray | None = None) -> Crew:
    """Actors that open this model once, for several long loops; used in a `with` block.

    >>> crew = interp.runs.crew_of(model, interp.runs.Ray("auto", num_gpus=0.5))
    >>> with crew:  # doctest: +SKIP
    ...     interp.collect(model, text, "counts", ray=crew)
    ...     interp.perplexity_matrix(model, neurons, text, out="matrix", ray=crew)
    """
    refuse_edited(model, "they stay in this process, and edits are sent as interp.Change")
    ray, place = ray or Ray(), Path(model.name)
    name = str(place.resolve()) if place.is_dir() else model.name  # actors live elsewhere
    opens = ray.open or partial(load, name, attention=model.attention, dtype=model.dtype)
    return Crew(ray, partial(_open_the_same, opens, model.identity), model.identity)


@contextmanager
def folder_for(out: Path | str | None) -> Iterator[Path]:
    """The folder, by a path that actors understand; None: one that is gone afterwards."""
    if out is not None:
        yield Path(out).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def refuse_edited(model: NeuronModel, why: str) -> None:
    """Where an edit that surrounds a call would be missed, or would do harm.

    Permanent hooks are no edit: the bridges of XGLM and OPT have some of their own.
    """
    handles = [each for point in model.bridge.hook_dict.values() for each in point.fwd_hooks]
    if any(not each.is_permanent for each in handles):
        raise ValueError(
            f"{model.name} has hooks on it now: {why}. Call this outside the `with` block."
        )


# ---------------------------------------------------------------- inside


def _do_here(jobs: Sequence[Job], done: Callable[[Job], None], model: NeuronModel) -> None:
    """One after the other; those that another process is seen at come last, or from there."""
    elsewhere, longest = [], 0.0
    for job in jobs:
        if not job.path.exists() and who_is_at(_sign_path(job.path)) is not None:
            elsewhere.append(job)
            continue
        began = time.monotonic()
        _do(job, model)
        longest = max(longest, time.monotonic() - began)
        done(job)
    # Whoever takes twice as long as any piece took here may be stuck.
    until = time.monotonic() + 2 * longest
    for job in elsewhere:
        while time.monotonic() < until and who_is_at(_sign_path(job.path)) is not None:
            time.sleep(_LOOK)
        _do(job, model)
        done(job)


def _do(job: Job, model: NeuronModel) -> None:
    if not job.path.exists():
        _make(job.path, job.work, model)


def _to_send(job: Job) -> Callable[[NeuronModel], None]:
    return partial(_make, job.path, job.sent())


def _make(path: Path, work: Callable[[NeuronModel], None], model: NeuronModel) -> None:
    with sign_of_life(_sign_path(path)):
        work(model)


def _sign_path(path: Path) -> Path:
    return path.parent.parent / "running" / f"{path.parent.name}-{path.stem}"


def _open_the_same(opens: Callable[[], NeuronModel], identity: Mapping[str, str]) -> NeuronModel:
    """Runs in an actor: the model, refused if it is not the one that the run was begun with."""
    model = opens()
    here: Mapping[str, Any] = model.identity
    if differ := [key for key in identity if here.get(key) != identity[key]]:
        key = differ[0]
        raise ValueError(
            f"An actor opened another model than yours ({key} was {identity[key]}, there it is "
            f"{here.get(key)}): give Ray(open=...) a function that opens yours, and the same "
            "versions of the libraries to all nodes."
        )
    return model

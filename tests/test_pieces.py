"""Loops in pieces: gone on with, shared among processes, and closed to what is not theirs."""

import io
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.evaluations.category_ablation import CategoryAblation, ablate_categories
from interp.evaluations.languages_written import generated_languages, language_rates
from interp.evaluations.neuron_sets import EQUAL, RANDOM
from interp.evaluations.writing import generate_texts
from interp.interventions.edits import Change, deactivate, intervene, override, scale
from interp.interventions.under import applied
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.prompts.attribution import attribute_prompts, integrated_gradients
from interp.results.bars import tqdm
from interp.runs.jobs import _open_same, finish
from interp.runs.locks import hold_lock
from interp.runs.ray import Job
from interp.text.tasks import Task
from tests import tiny_models
from tests.campaigns.kills import files
from tests.test_category_ablation import seeded, tasks_of

LONG_AGO = 1e9


def notes(place: Path, made: list[str], seconds: float = 0.0) -> list[Job]:
    """Three jobs, each of which writes its name; `made` tells which were done here."""

    def work(path: Path, model: NeuronModel) -> None:
        time.sleep(seconds)
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
        made.append(path.name)

    paths = [place / "pieces" / name for name in ("a", "b", "c")]
    return [Job(path.name, path, partial(work, path), size=2) for path in paths]


def test_an_actor_is_sent_the_work_or_what_stands_in_for_it(tmp_path: Path):
    def work(model: Any) -> None: ...
    def less(model: Any) -> None: ...

    assert Job("a", tmp_path / "a", work).sent() is work
    assert Job("a", tmp_path / "a", work, to_send=lambda: less).sent() is less


def finished(jobs: list[Job], model: NeuronModel) -> list[str]:
    return finish(jobs, Path.read_text, tqdm(disable=True), model, None)


def in_another_process(path: Path, then: Callable[[], None]) -> int:
    """A process that is seen at a piece, and then does something; returns its id."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with hold_lock(path.parent.parent / "running" / f"pieces-{path.name}"):
            os.write(told, b"1")
            then()
        os._exit(0)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(told)
    return child


def test_what_is_there_is_not_made_again_and_what_is_damaged_ends_the_run_first(model, tmp_path):
    made: list[str] = []
    jobs = notes(tmp_path, made)
    (tmp_path / "pieces").mkdir()
    jobs[1].path.write_text("by another run")
    with tqdm(total=6, disable=False, file=io.StringIO()) as bar:
        assert finish(jobs, Path.read_text, bar, model, None) == ["a", "by another run", "c"]
        assert (bar.initial, bar.n) == (2, 6)  # the piece that was there tells nothing of speed
    assert made == ["a", "c"]
    jobs[0].path.unlink()

    def refuse(path: Path) -> str:
        raise ValueError(f"{path} is damaged")

    with pytest.raises(ValueError, match="is damaged"):
        finish(jobs, refuse, tqdm(disable=True), model, None)
    assert made == ["a", "c"]


@pytest.mark.slow
def test_what_another_process_is_at_comes_last_and_is_its_to_make(model, tmp_path):
    made: list[str] = []
    jobs = notes(tmp_path, made, seconds=0.5)
    first, last = jobs[0].path, jobs[2].path

    def then() -> None:
        while not last.exists():
            time.sleep(0.01)
        time.sleep(0.3)
        first.write_text("made there")

    child = in_another_process(first, then)
    assert finished(jobs, model) == ["made there", "b", "c"]
    assert made == ["b", "c"]
    os.waitpid(child, 0)
    assert not (tmp_path / "running").exists()


@pytest.mark.slow
def test_whoever_is_stuck_is_not_waited_for(model, tmp_path):
    made: list[str] = []
    jobs = notes(tmp_path, made, seconds=0.2)
    child = in_another_process(jobs[0].path, lambda: time.sleep(60))
    assert finished(jobs, model) == ["a", "b", "c"]
    assert made == ["b", "c", "a"]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_an_actor_refuses_another_model_than_that_of_the_run(model, tmp_path):
    assert _open_same(lambda: model, model.identity) is model
    other = load(tiny_models.build("qwen2", tmp_path, seed=1))
    with pytest.raises(ValueError, match=r"another model than yours \(weights was"):
        _open_same(lambda: other, model.identity)


# ---------------------------------------------------------------- the loops that gained a folder


def some_neurons(model: NeuronModel) -> torch.Tensor:
    mask = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    mask[:, ::3] = True
    return mask


def goes_on(loop: Callable[[Path], Any], out: Path, others: dict[str, Callable[[], Any]]) -> Any:
    """Half of the pieces are lost and made again, the other half is kept; others are refused."""
    found = loop(out)
    before = files(out)
    pieces = sorted(out.glob("*/*.safetensors"))
    assert len(pieces) >= 3
    for path in pieces:
        os.utime(path, (LONG_AGO, LONG_AGO))
    for path in pieces[::2]:
        path.unlink()
    loop(out)
    assert files(out) == before
    assert [path.stat().st_mtime == LONG_AGO for path in pieces] == [
        place % 2 == 1 for place in range(len(pieces))
    ]
    for key, other in others.items():
        with pytest.raises(ValueError, match=f"was started with another {key}"):
            other()
    return found


@pytest.mark.slow
def test_texts_are_kept_by_batches_and_each_edit_has_its_folder(model, tmp_path):
    neurons = some_neurons(model)
    settings: dict[str, Any] = {
        "n": 3,
        "max_new_tokens": 8,
        "tokens_per_batch": 24,
        "progress": False,
    }
    prompts = ("the dog", "der Hund")

    def write(out: Path | None, edit: Any = deactivate, **other: Any) -> Any:
        under = {"off": Change(neurons, edit), "nothing": None}
        settled = {**settings, **other}
        return generate_texts(model, prompts, under=under, out=out, **settled)

    out = tmp_path / "out"
    others = {
        "under": lambda: write(out, scale(0.5)),
        "seed": lambda: write(out, seed=1),
        "temperature": lambda: write(out, temperature=0.5),
    }
    found = goes_on(write, out, others)
    with intervene(model, neurons, deactivate):
        assert generate_texts(model, prompts, **settings)["nothing"] == found["off"]
        with pytest.raises(ValueError, match="only the changes in `under`"):
            write(tmp_path / "other")
    assert write(None) == found
    untouched = generate_texts(model, prompts, **settings)["nothing"]
    assert found["nothing"] == untouched != found["off"]


@pytest.mark.slow
def test_texts_and_their_losses_are_kept_together(model, tmp_path):
    settings: dict[str, Any] = {
        "n": 5,
        "max_new_tokens": 8,
        "tokens_per_batch": 24,
        "progress": False,
    }
    change = Change(some_neurons(model), deactivate)

    def judged(out: Path | None) -> Any:
        under = {"off": change}
        return generated_languages(model, ["de", "en"], under, out=out, **settings)["off"]

    found = goes_on(judged, tmp_path / "out", {})
    found.save(tmp_path / "judged.safetensors")
    again = type(found).load(tmp_path / "judged.safetensors")
    assert again.to_frame().equals(found.to_frame())
    assert again.texts_frame().equals(judged(None).texts_frame())
    by_hand = language_rates(
        found.texts, ["de", "en"], None, model, tokens_per_batch=24, progress=False
    )
    assert by_hand.texts_frame().equals(found.texts_frame())


@pytest.mark.filterwarnings("ignore:Attributions of")
def test_attributions_are_kept_and_are_those_of_single_prompts(model, tmp_path):
    questions = [("the dog sees", 9), ("le chien", (11, 17)), ("der Hund", 23)]

    def attribute(out: Path | None, steps: int = 3) -> list[Any]:
        found = attribute_prompts(model, questions, steps, "logit", progress=False, out=out)
        return list(found)

    out = tmp_path / "out"
    found = goes_on(attribute, out, {"steps": lambda: attribute(out, 4)})
    for (prompt, target), each, streamed in zip(questions, found, attribute(None), strict=True):
        single = integrated_gradients(model, prompt, target, 3, "logit")
        assert single.values.any()
        for name, value in vars(single).items():
            for other in (getattr(each, name), getattr(streamed, name)):
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(value, other)


@pytest.mark.slow
def test_items_switched_off_are_kept_and_their_draws_do_not_depend_on_who_makes_them(
    model, tmp_path
):
    def off(out: Path | None, seed: int = 0, **other: Any) -> CategoryAblation:
        settings: Any = {"n_draws": 2, "progress": False, **other}
        return ablate_categories(model, tasks_of(), seeded(seed), out=out, **settings)

    out = tmp_path / "out"
    others = {"generator": lambda: off(out, 1), "n_draws": lambda: off(out, n_draws=3)}
    found, at_once = goes_on(off, out, others), off(None)
    assert torch.equal(found.probability, at_once.probability)
    assert not torch.equal(found.probability, off(None, 1).probability)
    # One item twice: what is drawn for it differs, what is not drawn is the same.
    twice = [
        Task("made", task.language, (task.items[0], task.items[0]._replace(id="again")))
        for task in tasks_of()
    ]
    first, again = ablate_categories(model, twice, seeded(), n_draws=1, progress=False).probability
    drawn = [first[row].ne(again[row]).any().item() for row in range(len(first))]
    assert drawn == [off == RANDOM or size == EQUAL for off, size in found.conditions]
    generator, parts = seeded(), []
    for ids in ("0", "12"):
        some = [task.where(lambda item, ids=ids: item.id in ids) for task in tasks_of()]
        parts.append(ablate_categories(model, some, generator, n_draws=2, progress=False))
    assert torch.equal(torch.cat([part.probability for part in parts]), found.probability)


# ---------------------------------------------------------------- edits as data


def test_changes_hold_one_within_the_other_and_tell_all_that_they_change(model):
    neurons, ids = some_neurons(model), torch.tensor([model.encode("the dog sees a moon")])
    values = torch.full(neurons.shape, 0.5)
    first, second = Change(neurons, override(values)), Change(neurons, scale(2.0))
    with intervene(model, neurons, override(values)), intervene(model, neurons, scale(2.0)):
        expected = model.logits(ids)
    with applied((first, second), model):
        assert torch.equal(model.logits(ids), expected)
    with applied((second, first), model):
        assert not torch.equal(model.logits(ids), expected)
    with applied(None, model):
        untouched = model.logits(ids)
    assert torch.equal(model.logits(ids), untouched)
    others = [
        Change(~neurons, override(values)),
        Change(neurons, override(values + 1)),
        Change(neurons, override(values), "last"),
        Change({"pre": neurons}, override({"pre": values})),
        second,
    ]
    plans = [str(each.plan) for each in (first, *others)]
    assert len(set(plans)) == 6
    assert Change(neurons.clone(), override(values.clone())).plan == first.plan

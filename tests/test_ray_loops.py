"""Every long loop on Ray: the bytes of one process, whoever dies, and whoever began the folder."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interp import cli
from interp.commands.common import ModelChoice, OnRay
from interp.commands.evaluate import Evaluate
from interp.commands.steer import Steer
from interp.commands.tasks import Attribute, Share
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.run import Run
from interp.evaluations.category_ablation import ablate_categories
from interp.evaluations.category_attribution import attribute_categories
from interp.evaluations.languages_written import generated_languages
from interp.evaluations.perplexity import perplexity_matrix
from interp.evaluations.writing import generate_texts
from interp.interventions.edits import Change, deactivate, intervene
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.prompts.attribution import attribute_prompts
from interp.runs.jobs import actor_pool
from interp.runs.ray import ActorPool, Ray
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora
from interp.text.reading import read_sentences
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, files, made_up
from tests.test_category_ablation import seeded, tasks_of
from tests.test_task_commands import write_tasks

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("default"),  # Ray's own
    pytest.mark.filterwarnings("ignore:Attributions of"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the actors look what is to befall them."""
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def pool(nodes: Any, folder: Path, model: NeuronModel, place: Path) -> Iterator[ActorPool]:
    """Two actors for all tests of this file: to open the library takes seconds."""
    name = str(folder)
    while len(nodes.worker_nodes) < 2:
        nodes.add_node(num_cpus=1)

    def open_in_trouble() -> NeuronModel:
        import os
        import signal
        import time

        from interp.models.load import load
        from interp.runs import jobs as pieces

        make = pieces._make

        def troubled(*given: Any) -> None:
            try:
                (place / "killed").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            except FileNotFoundError:
                pass
            if (place / "slow").exists() and given[0].stem != "00000":
                (place / f"at work {os.getpid()}").touch()
                time.sleep(1000)
            make(*given)

        pieces._make = troubled
        return load(name)

    settings = Ray(address=nodes.address, actors=2, open=open_in_trouble)
    with actor_pool(model, settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def selection(model: NeuronModel) -> NeuronSelection:
    noise = torch.rand(len(LANGUAGES), model.n_layers, model.d_mlp, generator=seeded(3))
    return NeuronSelection(noise < 0.2, LANGUAGES)


@pytest.fixture(scope="module")
def loops(
    model: NeuronModel, corpora: Corpora, selection: NeuronSelection
) -> dict[str, Callable[[Path, ActorPool | None], object]]:
    sentences = read_sentences(
        made_up(), LANGUAGES, model, sentences=9, n_shards=3, hygiene="off", progress=False
    )
    keep = Keep(sentence_means=("pre", "mlp_out"))
    tasks = tasks_of()
    questions = [("the dog sees", 9), ("le chien", (11, 17)), ("der Hund", 23)]
    change = Change(selection["de"], deactivate)
    alike: dict[str, Any] = {"progress": False}
    written: dict[str, Any] = {"prompts": ("the dog", ""), "n": 4, "max_new_tokens": 6}
    return {
        "sentence means": lambda out, ray: collect(
            model, sentences, out, keep=keep, ray=ray, **alike
        ),
        "perplexity matrix": lambda out, ray: perplexity_matrix(
            model, selection, corpora, n_draws=1, out=out, ray=ray, **alike
        ),
        "attributions by category": lambda out, ray: attribute_categories(
            model, tasks, out / "pieces", steps=3, quantity="logit", ray=ray, **alike
        ),
        "attributions": lambda out, ray: list(
            attribute_prompts(model, questions, 3, "logit", out=out, ray=ray, **alike)
        ),
        "switching off": lambda out, ray: ablate_categories(
            model, tasks, seeded(), n_draws=1, out=out, ray=ray, **alike
        ),
        "generation": lambda out, ray: generated_languages(
            model,
            ["de"],
            {"off": change},
            tokens_per_batch=60,
            out=out,
            ray=ray,
            **written,
            **alike,
        ),
    }


LOOPS = {
    **{"sentence means": 9, "perplexity matrix": 15, "attributions by category": 3},
    **{"attributions": 3, "switching off": 3, "generation": 6},
}
"""Pieces of each."""


@pytest.mark.parametrize("name", LOOPS)
def test_a_laptop_begins_and_ray_ends_with_the_bytes_of_one_process(
    name, loops, pool, place, tmp_path
):
    quiet, run = tmp_path / "quiet", tmp_path / "run"
    loops[name](quiet, None)
    pieces = [path for path in sorted(quiet.rglob("*")) if path.parent.name == "pieces"]
    assert len(pieces) == LOOPS[name]
    begun = [*quiet.glob("run.json"), pieces[1]]
    for path in begun:
        there = run / path.relative_to(quiet)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, there)
    begun_elsewhere = run / pieces[1].relative_to(quiet)
    before = begun_elsewhere.stat().st_ino
    if name == "perplexity matrix":
        (place / "killed").touch()
    loops[name](run, pool)
    assert not (place / "killed").exists()  # an actor met it, and is no more
    assert files(run) == files(quiet)
    assert begun_elsewhere.stat().st_ino == before  # it was not made again
    if name == "sentence means":
        means, same = (Run.open(out).sentence_means for out in (run, quiet))
        for layer in range(3):
            assert torch.equal(means.read("mlp_out", layer), same.read("mlp_out", layer))


def test_the_commands_give_the_files_of_one_process(
    model, folder, selection, corpora, pool, tmp_path, monkeypatch, capsys
):
    made = write_tasks(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    for code, lines in made_up().items():
        (text / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    collect(model, corpora, tmp_path, keep=Keep(moments=True), progress=False)
    selection.to_json(tmp_path / "neurons.json")
    neurons, choice = tmp_path / "neurons.json", ModelChoice(str(folder))
    codes = ("en", "de")

    def commands(out: Path) -> list[Any]:
        return [
            Share(str(made), choice, codes, n_shards=2, n_draws=2, out=out / "share"),
            Attribute(str(made), choice, codes, items=3, steps=3, out=out / "attribute"),
            Evaluate(neurons, choice, (str(made),), codes, n_draws=1, out=out / "evaluate"),
            Steer(
                *(neurons, choice, ("de",)),
                **{"n": 2, "max_new_tokens": 4, "text": str(text), "out": out / "steer"},
            ),
        ]

    for command in commands(tmp_path / "quiet"):
        command.run()
    monkeypatch.setattr(OnRay, "open", lambda self, choice: (model, pool))
    said = []
    for command in commands(tmp_path / "run"):
        capsys.readouterr()
        command.run()
        said.append(capsys.readouterr().out)
    assert files(tmp_path / "run") == files(tmp_path / "quiet")
    assert all(said)


def test_what_is_warned_of_there_is_said_here(model, pool):
    questions = [("the dog sees", " a")]
    for ray in (None, pool):
        with pytest.warns(UserWarning, match=r"do not add up: the values of layer \d are off"):
            list(attribute_prompts(model, questions, 1, progress=False, ray=ray))


def test_edits_that_would_stay_here_and_other_models_are_refused(model, selection, pool, tmp_path):
    units = selection["de"]
    few: dict[str, Any] = {"n": 2, "max_new_tokens": 4, "progress": False}
    with intervene(model, units, deactivate):
        for ray in (pool, Ray()):
            with pytest.raises(ValueError, match=r"pass edits as interp\.Change"):
                generate_texts(model, **few, ray=ray)
    other = load(tiny_models.build("qwen2", tmp_path, seed=1))
    with pytest.raises(ValueError, match="hold another model than"):
        generate_texts(other, **few, ray=pool)


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_stops_the_actors_keeps_what_is_done_and_says_so(
    model, folder, pool, place, tmp_path, monkeypatch, capsys
):
    """Last, since the actors that are at work are gone."""
    made = write_tasks(tmp_path)
    options = [str(made), str(folder), "--languages", "en", "de", "es", "--steps", "3"]
    out, quiet = tmp_path / "run", tmp_path / "quiet"
    cli.main(["attribute", *options, "--out", str(quiet)])
    monkeypatch.setattr(OnRay, "open", lambda self, choice: (model, pool))
    # Whoever runs tests in the background may have told them to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    (place / "slow").touch()

    def press() -> None:
        until = time.monotonic() + 200
        while time.monotonic() < until:
            time.sleep(0.02)
            if list(out.glob("pieces/*")) and len(list(place.glob("at work *"))) == 2:
                break
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["attribute", *options, "--out", str(out), "--ray"])
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert stop.value.code == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("interrupted. Finished pieces are kept; run the same command to resume.")
    assert not pool._waiting
    assert not [call for call in pool._calls.values() if call.job]
    assert [path.stem for path in out.glob("pieces/*")] == ["00000"]
    at_work = [int(path.name.split()[-1]) for path in place.glob("at work *")]
    until = time.monotonic() + 60
    while any(map(lives, at_work)):
        assert time.monotonic() < until
        time.sleep(0.02)
    monkeypatch.undo()
    cli.main(["attribute", *options, "--out", str(out)])
    assert files(out) == files(quiet)

"""Signs of life, and Ray: dead actors and lost nodes change no byte, stuck ones block nothing."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import interp
from interp import cli
from interp.commands.common import ModelChoice
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.runs import ray as cluster
from interp.runs.locks import hold_lock, lock_owner, remove_stale_locks
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.corpora import Corpora
from tests.campaigns.kills import files

KEEP = Keep(moments=True, contexts=2)


# ---------------------------------------------------------------- signs of life


def held_elsewhere(path: Path) -> int:
    """A process that gives a sign of life until it is killed; returns its id."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with hold_lock(path):
            os.write(told, b"1")
            time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(told)
    return child


def test_who_works_is_seen_and_who_was_killed_is_not(tmp_path):
    path = tmp_path / "running" / "0003-de"
    assert lock_owner(path) is None
    child = held_elsewhere(path)
    assert f"process {child}, since 20" in (lock_owner(path) or "")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.exists()
    assert lock_owner(path) is None
    with hold_lock(path):
        assert f"process {os.getpid()}" in (lock_owner(path) or "")
    assert not path.exists()


def test_only_the_signs_of_the_dead_are_cleared(tmp_path):
    (tmp_path / "left").write_text("somebody, long ago", encoding="utf-8")
    with hold_lock(tmp_path / "alive"):
        remove_stale_locks(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["alive"]
    remove_stale_locks(tmp_path)
    assert not tmp_path.exists()


def test_without_room_or_locks_for_signs_the_work_goes_on(tmp_path, monkeypatch):
    (tmp_path / "running").write_text("a file where the folder should be", encoding="utf-8")
    with hold_lock(tmp_path / "running" / "0000-de"):
        done = True
    assert done

    def refused(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with hold_lock(tmp_path / "0000-de"):
        assert lock_owner(tmp_path / "0000-de") is None


@pytest.mark.slow
def test_stale_signs_and_wrong_clocks_change_no_byte(model, corpora, tmp_path, monkeypatch):
    collect(model, corpora, tmp_path / "quiet", progress=False)
    collect(model, corpora, tmp_path / "run", part=(1, 3), progress=False)
    stale = tmp_path / "run" / "running"
    stale.mkdir(exist_ok=True)
    for number in range(5):
        (stale / f"{number:04d}-en").write_text("nowhere, process 1, since 2099-01-01 00:00")
    for path in (tmp_path / "run" / "pieces").iterdir():
        os.utime(path, (4e9, 4e9))
    monkeypatch.setattr(time, "time", lambda: -1e9)
    collect(model, corpora, tmp_path / "run", progress=False)
    assert files(tmp_path / "run") == files(tmp_path / "quiet")


# ---------------------------------------------------------------- the command


def given_to_collect(
    monkeypatch: pytest.MonkeyPatch, model: NeuronModel, corpora: Corpora, *options: str
) -> dict[str, Any]:
    """What `interp collect` calls `collect` with."""
    given: dict[str, Any] = {}

    def note(*_: object, **named: Any) -> None:
        given.update(named)
        raise KeyboardInterrupt

    monkeypatch.setattr(interp, "collect", note)
    monkeypatch.setattr(ModelChoice, "open", lambda self: model)
    monkeypatch.setattr(cli.Collect, "read", lambda self, model: corpora)
    with pytest.raises(SystemExit):
        cli.main(["collect", *options])
    return given


def test_the_command_tells_where_and_with_what_and_keeps_that_out_of_the_results(
    model, corpora, monkeypatch
):
    alone = given_to_collect(monkeypatch, model, corpora)
    assert alone["ray"] is None
    here = given_to_collect(monkeypatch, model, corpora, "--ray")
    assert here["ray"].address is None
    there = given_to_collect(
        monkeypatch, model, corpora, "--ray", "10.0.0.1:6379", "--num-gpus", "0.5"
    )
    assert (there["ray"].address, there["ray"].num_gpus) == ("10.0.0.1:6379", 0.5)
    assert there["ray"].open() is model
    assert alone["settings"] == here["settings"] == there["settings"]


def test_ray_with_parts_or_without_ray_is_refused_in_one_sentence(
    model, corpora, tmp_path, capsys, monkeypatch
):
    with pytest.raises(SystemExit):
        cli.main(["collect", "--ray", "--shard", "1/2"])
    assert "--ray and --shard exclude each other" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'polyneuron\[ray\]'"):
        collect(model, corpora, tmp_path, progress=False, ray=Ray())


def test_a_second_ctrl_c_changes_nothing(monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    class Again:
        """Where the sentence goes; Ctrl-C is pressed once more while it is written."""

        def write(self, text: str) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            said.append(text)

    said: list[str] = []
    monkeypatch.setattr(cli.Collect, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["interp", "collect"])
    monkeypatch.setattr(sys, "stderr", Again())
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
        monkeypatch.undo()
    assert stop.value.code == 130
    assert "run the same command to resume" in said[0]


# ---------------------------------------------------------------- Ray


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors that need not import the library, which takes seconds."""

    class Light:
        def __init__(self, opens: Callable[[], Any]) -> None:
            self.opens, self.held = opens, None

        def open(self) -> None:
            self.held = self.opens()

        def run(self, work: Callable[[Any], None]) -> None:
            work(self.held)

    monkeypatch.setattr(cluster, "_Actor", Light)


def jobs(place: Path, n: int, work: Callable[[Path], Callable[[Any], None]]) -> list[Job]:
    paths = [place / str(number) for number in range(n)]
    return [Job(f"job {path.name}", path, work(path)) for path in paths]


@pytest.mark.ray
@pytest.mark.filterwarnings("default")  # Ray's own
def test_jobs_go_to_whoever_is_free_and_one_that_is_stuck_goes_to_another(nodes, light, tmp_path):
    def stuck_once(path: Path) -> Callable[[Any], None]:
        def work(held: Any) -> None:
            import time as clock

            mark = path.with_suffix(".begun")
            if path.name == "0" and not mark.exists():
                mark.touch()
                clock.sleep(1000)
            path.write_text(held)

        return work

    done: list[str] = []
    settings = Ray(address=nodes.address, actors=1, patience=3.0)
    with ActorPool(settings, lambda: "held") as pool:
        pool.do(jobs(tmp_path, 4, stuck_once), lambda job: done.append(job.name))
        assert sorted(done) == ["job 0", "job 1", "job 2", "job 3"]
        assert (tmp_path / "0").read_text() == "held"

        # What is there already is not done again.
        def never(path: Path) -> Callable[[Any], None]:
            def work(held: Any) -> None:
                raise AssertionError(f"{path} was handed out")

            return work

        pool.do(jobs(tmp_path, 4, never), lambda job: done.append(job.name))
        assert len(done) == 8


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_what_cannot_be_done_ends_in_one_sentence(nodes, light, tmp_path, monkeypatch):
    def writes(path: Path) -> Callable[[Any], None]:
        def work(held: Any) -> None:
            path.write_text(held)

        return work

    def refuses(path: Path) -> Callable[[Any], None]:
        def work(held: Any) -> None:
            raise OSError(28, f"{path.name} was not saved")

        return work

    def dies(path: Path) -> Callable[[Any], None]:
        def work(held: Any) -> None:
            import os

            os._exit(1)

        return work

    def forgets(path: Path) -> Callable[[Any], None]:
        return lambda held: None

    monkeypatch.setattr(cluster, "_VISIBLE_WITHIN", 0.5)
    settings = Ray(address=nodes.address, actors=1)
    with ActorPool(settings, lambda: "held") as pool:
        pool.do(jobs(tmp_path, 1, writes), lambda job: None)
        with pytest.raises(OSError, match="folder that all nodes of the cluster share"):
            pool.do(jobs(tmp_path / "b", 1, forgets), lambda job: None)
        with pytest.raises(OSError, match=r"0 was not saved"):
            pool.do(jobs(tmp_path / "a", 1, refuses), lambda job: None)
    with (
        ActorPool(settings, lambda: "held") as pool,
        pytest.raises(OSError, match="5 actors were lost during job 0"),
    ):
        pool.do(jobs(tmp_path / "c", 1, dies), lambda job: None)
    with (
        pytest.raises(ValueError, match=r"0 GPUs\. Ask for less"),
        ActorPool(Ray(address=nodes.address, num_gpus=1.0), lambda: "held"),
    ):
        pass


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_what_is_wrong_with_a_model_is_said_where_it_is_opened(nodes, light, tmp_path):
    def refused() -> None:
        raise ValueError("an actor opened another model")

    with (
        ActorPool(Ray(address=nodes.address, actors=1), refused) as pool,
        pytest.raises(ValueError, match="an actor opened another model"),
    ):
        pool.do(jobs(tmp_path, 1, lambda path: lambda held: None), lambda job: None)


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_a_killed_worker_and_a_lost_node_change_no_byte(nodes, folder, model, corpora, tmp_path):
    """Begun as a part of a job array, finished by Ray, which loses an actor and then a node."""
    collect(model, corpora, tmp_path / "quiet", keep=KEEP, progress=False)
    out, killed = tmp_path / "run", tmp_path / "killed"
    collect(model, corpora, out, part=(4, 4), keep=KEEP, progress=False)
    assert len(files(out / "pieces")) == 3
    name, place, seen_before = str(folder), tmp_path, []

    def open_in_trouble() -> NeuronModel:
        """The first actor to reach a second batch is killed there; at a third its node is named."""
        import ray

        model = load(name)
        body, seen = model.body, []

        def troubled(*given: Any) -> None:
            seen.append(given)
            if len(seen) == 2 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if len(seen) == 3:
                (place / f"node {ray.get_runtime_context().get_node_id()}").touch()
                time.sleep(5)
            time.sleep(0.2)
            body(*given)

        model.body = troubled
        return model

    def lose_a_node() -> None:
        until = time.monotonic() + 200
        while not (named := list(tmp_path.glob("node *"))) and time.monotonic() < until:
            time.sleep(0.02)
        lost = next(each for each in nodes.worker_nodes if named[0].name.endswith(each.node_id))
        nodes.remove_node(lost, allow_graceful=False)
        seen_before.append(len(files(out / "pieces")))

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    settings = Ray(address=nodes.address, open=open_in_trouble)
    collect(model, corpora, out, keep=KEEP, progress=False, ray=settings)
    thread.join()
    assert killed.exists()
    assert len(nodes.worker_nodes) == 1
    assert 3 < seen_before[0] < 15  # the node was lost in between
    assert files(out) == files(tmp_path / "quiet")

"""Faults of a Ray cluster of three nodes on this machine; for `tests.campaigns.faults`."""

import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from interp.commands.common import OnRay
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.runs.ray import Ray
from tests.campaigns.disturbed import Bench, Outcome, command, ended, finish, fork, kill


@dataclass(frozen=True)
class Slow:
    """Opens a model that takes its time, so that faults find it at work."""

    folder: str

    def __call__(self) -> NeuronModel:
        model = load(self.folder)
        body = model.body

        def slow(*given: Any) -> None:
            time.sleep(0.5)
            body(*given)

        model.body = slow  # pyright: ignore[reportAttributeAccessIssue] - takes all the same
        return model


class Nodes:
    """Three nodes, in a `with` block.

    They belong to a process of their own: one that talks to a cluster cannot be forked, and the
    campaign forks its runs.
    """

    def __enter__(self) -> "Nodes":
        # By default Ray's workers wait behind all else that runs, and numbers of use are sent.
        os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        processes = multiprocessing.get_context("fork")
        self._ask, told = processes.Pipe()
        self._keeper = processes.Process(target=_keep, args=(told,))
        self._keeper.start()
        told.close()  # or its end would go unnoticed
        try:
            self.address: str = self._ask.recv()
        except EOFError:
            raise SystemExit("The cluster did not start; what it said is above.") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._ask.send(None)
        self._keeper.join()

    def actors(self) -> list[int]:
        """Their process ids."""
        self._ask.send("actors")
        return self._ask.recv()

    def lose_one(self) -> None:
        """One of the two that are not the head is gone at once; another one comes."""
        self._ask.send("lose one")
        self._ask.recv()


def _keep(told: Any) -> None:
    """The process that the nodes belong to."""
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    told.send(nodes.address)
    while (asked := told.recv()) is not None:
        if asked == "lose one":
            nodes.remove_node(min(nodes.worker_nodes, key=lambda node: node.node_id), False)
            told.send(None)
            nodes.add_node(num_cpus=1)
        else:
            told.send(_actors([nodes.head_node, *nodes.worker_nodes]))
    nodes.shutdown()


def _actors(nodes: list[Any]) -> list[int]:
    raylets = {each.process.pid for node in nodes for each in node.all_processes.get("raylet", ())}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                found.append(int(folder.name))
    return found


def go_on_ray(out: Path, folder: str, address: str) -> None:
    OnRay.open = lambda self, choice: (choice.open(), Ray(address, open=Slow(folder)))
    command(out, "--ray", address)


def running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def kill_actors(nodes: Nodes, folder: str, bench: Bench, out: Path) -> Outcome:
    """Three kills of actors in one run, while they open the model or read."""
    driver = fork(partial(go_on_ray, out, folder, nodes.address), bench.said)
    landed = 0
    for _ in range(3):
        while running(driver) and not nodes.actors():
            time.sleep(0.05)
        time.sleep(bench.dice.uniform(0, 4))
        if running(driver) and (alive := nodes.actors()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(bench.dice.choice(alive), signal.SIGKILL)
                landed += 1
    if code := ended(driver):
        raise SystemExit(f"a Ray run that lost actors ended with {code}: {bench.said.read_text()}")
    return Outcome(landed)


def lose_node(nodes: Nodes, folder: str, bench: Bench, out: Path) -> Outcome:
    """One of the nodes is gone in the middle of a run."""
    driver = fork(partial(go_on_ray, out, folder, nodes.address), bench.said)
    pieces = bench.dice.randrange(10)
    while running(driver) and len(list(out.glob("pieces/*.safetensors"))) < pieces:
        time.sleep(0.05)
    landed = running(driver)
    nodes.lose_one()
    if code := ended(driver):
        raise SystemExit(f"a Ray run that lost a node ended with {code}: {bench.said.read_text()}")
    return Outcome(int(landed))


def kill_ray_driver(nodes: Nodes, folder: str, bench: Bench, out: Path) -> Outcome:
    """The process that hands pieces out is killed; another one goes on without Ray."""
    driver = fork(partial(go_on_ray, out, folder, nodes.address), bench.said)
    pieces = bench.dice.randrange(10)
    while running(driver) and len(list(out.glob("pieces/*.safetensors"))) < pieces:
        time.sleep(0.05)
    landed = kill(driver)
    finish(out)
    return Outcome(int(landed))


FAULTS = (
    ("Ray: SIGKILL of an actor", 4, kill_actors),
    ("Ray: a node removed", 4, lose_node),
    ("Ray: SIGKILL of the driver", 4, kill_ray_driver),
)

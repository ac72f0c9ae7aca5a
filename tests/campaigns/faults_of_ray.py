"""Faults of a Ray cluster of three nodes on this machine, for `tests.campaigns.faults`."""

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
from tests.campaigns.disturbed import Bench, Outcome, command, finish, fork, kill, wait_for


@dataclass(frozen=True)
class Slow:
    """Opens a model that is slow, so that faults hit it at work."""

    folder: str

    def __call__(self) -> NeuronModel:
        model = load(self.folder)
        body = model.body

        def slow(*arguments: Any) -> None:
            time.sleep(0.5)
            body(*arguments)

        model.body = slow  # pyright: ignore[reportAttributeAccessIssue] - same arguments
        return model


class Nodes:
    """Three nodes, in a `with` block.

    A separate process owns them: one that is connected to a cluster cannot be forked, and the
    campaign forks its runs.
    """

    def __enter__(self) -> "Nodes":
        # By default Ray's workers have a low priority, and usage statistics are sent.
        os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        processes = multiprocessing.get_context("fork")
        self._connection, other_end = processes.Pipe()
        self._owner = processes.Process(target=_own_nodes, args=(other_end,))
        self._owner.start()
        other_end.close()  # so that the end of the owner closes the pipe
        try:
            self.address: str = self._connection.recv()
        except EOFError:
            raise SystemExit("The cluster did not start; its output is above.") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.send(None)
        self._owner.join()

    def actors(self) -> list[int]:
        """Process ids of the actors."""
        self._connection.send("actors")
        return self._connection.recv()

    def lose_one(self) -> None:
        """Remove one of the two worker nodes abruptly, and add a new one."""
        self._connection.send("lose one")
        self._connection.recv()


def _own_nodes(connection: Any) -> None:
    """Start the nodes, answer requests, and shut the nodes down."""
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    connection.send(nodes.address)
    while (request := connection.recv()) is not None:
        if request == "lose one":
            nodes.remove_node(min(nodes.worker_nodes, key=lambda node: node.node_id), False)
            connection.send(None)
            nodes.add_node(num_cpus=1)
        else:
            connection.send(_actors([nodes.head_node, *nodes.worker_nodes]))
    nodes.shutdown()


def _actors(nodes: list[Any]) -> list[int]:
    raylets = {info.process.pid for node in nodes for info in node.all_processes.get("raylet", ())}
    actors = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                actors.append(int(folder.name))
    return actors


def collect_on_ray(out: Path, folder: str, address: str) -> None:
    OnRay.open = lambda self, choice: (choice.open(), Ray(address, open=Slow(folder)))
    command(out, "--ray", address)


def running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def kill_actors(nodes: Nodes, folder: str, bench: Bench, out: Path) -> Outcome:
    """Three kills of actors in one run, while they open the model or read text."""
    driver = fork(partial(collect_on_ray, out, folder, nodes.address), bench.stderr)
    landed = 0
    for _ in range(3):
        while running(driver) and not nodes.actors():
            time.sleep(0.05)
        time.sleep(bench.rng.uniform(0, 4))
        if running(driver) and (alive := nodes.actors()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(bench.rng.choice(alive), signal.SIGKILL)
                landed += 1
    if code := wait_for(driver):
        raise SystemExit(
            f"A Ray run that lost actors ended with {code}: {bench.stderr.read_text()}"
        )
    return Outcome(landed)


def lose_node(nodes: Nodes, folder: str, bench: Bench, out: Path) -> Outcome:
    """A node disappears in the middle of a run."""
    driver = fork(partial(collect_on_ray, out, folder, nodes.address), bench.stderr)
    pieces = bench.rng.randrange(10)
    while running(driver) and len(list(out.glob("pieces/*.safetensors"))) < pieces:
        time.sleep(0.05)
    landed = running(driver)
    nodes.lose_one()
    if code := wait_for(driver):
        raise SystemExit(
            f"A Ray run that lost a node ended with {code}: {bench.stderr.read_text()}"
        )
    return Outcome(int(landed))


def kill_ray_driver(nodes: Nodes, folder: str, bench: Bench, out: Path) -> Outcome:
    """The process that assigns pieces is killed; another one resumes the run without Ray."""
    driver = fork(partial(collect_on_ray, out, folder, nodes.address), bench.stderr)
    pieces = bench.rng.randrange(10)
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

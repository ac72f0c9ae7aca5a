"""What many tests need: a seeded generator, a tiny model and text, shared data, a Ray cluster.

A warning that points at a line of ours fails its test, in an environment that was made from a lock:
there it can only come from a change of ours. What other packages say of themselves is printed at
the end.
"""

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Sums are equal to the last bit with as many threads; actors of Ray and subprocesses have one.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


OURS = ("interp", "experiments", "benchmarks")
LOCK = Path(sys.prefix) / "lock.txt"
"""There, and a copy of the lock, where `constraints/install.sh` made the environment."""

_said: Counter[tuple[str, str, str]] = Counter()
"""How often each warning came: what it points at, its category, and its first line."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--said", type=Path, help="also write the warnings to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    if LOCK.is_file():
        for package in OURS:
            config.addinivalue_line("filterwarnings", rf"error:::{package}(\.|$)")


def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    path, where = Path(warning_message.filename), "site-packages"
    parts = path.parts[path.parts.index(where) + 1 :] if where in path.parts else path.parts[-2:]
    first = (str(warning_message.message).strip() or "(nothing)").splitlines()[0]
    _said["/".join(parts), warning_message.category.__name__, first] += 1


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _said:
        terminalreporter.section("what other packages say of themselves")
        for (path, category, first), times in _said.most_common():
            terminalreporter.line(f"{times:>5} x {path}: {category}: {first[:160]}")
    if file := config.getoption("--said"):
        rows = [[*key, times] for key, times in _said.most_common()]
        file.write_text(json.dumps(rows, indent=1), encoding="utf-8")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Published counts and masks, which are not part of this repository."""
    folder = Path(os.environ.get("POLYNEURON_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("the shared data are not beside this checkout")
    return folder


# The library is imported within: this file is read before its types are set to be checked.


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny_models

    return tiny_models.build("qwen2", tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    from interp.models.load import load

    return load(folder)


@pytest.fixture(scope="session")
def corpora(model: Any) -> Any:
    """Three languages in five shards, which are fifteen pieces."""
    from tests.campaigns.kills import blocks

    return blocks(model)


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """Three nodes in processes of this machine: a head that takes no work, and two for an actor."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Ray lets its workers wait behind all else that runs on a machine; tests are in a hurry.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        started = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        started.add_node(num_cpus=1)
        started.add_node(num_cpus=1)
        try:
            yield started
        finally:
            ray.shutdown()
            started.shutdown()

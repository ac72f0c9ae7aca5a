"""Shared fixtures: a seeded generator, a tiny model and text, shared data, a Ray cluster.

In an environment made from a lock, a warning that points at our own code fails its test: there only
a change of ours can cause it. Warnings of other packages are listed at the end.
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

import tests.checker  # noqa: F401  # the import hook looks it up by this name

# Sums agree to the last bit only with equally many threads; Ray actors and subprocesses have one.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


OURS = ("interp", "experiments", "benchmarks")
LOCK = Path(sys.prefix) / "lock.txt"
"""A copy of the lock, in environments made by `constraints/install.sh`."""

_warnings: Counter[tuple[str, str, str]] = Counter()
"""Number of warnings by file, category and first line."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--said", type=Path, help="also write the warnings to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    if LOCK.is_file():
        for package in OURS:
            config.addinivalue_line("filterwarnings", rf"error:::{package}(\.|$)")


def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    parts, packages = Path(warning_message.filename).parts, "site-packages"
    parts = parts[parts.index(packages) + 1 :] if packages in parts else parts[-2:]
    first = (str(warning_message.message).strip() or "(nothing)").splitlines()[0]
    _warnings["/".join(parts), warning_message.category.__name__, first] += 1


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _warnings:
        terminalreporter.section("warnings of other packages")
        for (path, category, first), times in _warnings.most_common():
            terminalreporter.line(f"{times:>5} x {path}: {category}: {first[:160]}")
    if file := config.getoption("--said"):
        rows = [[*key, times] for key, times in _warnings.most_common()]
        file.write_text(json.dumps(rows, indent=1), encoding="utf-8")


@pytest.fixture(autouse=True, scope="module")
def seed_of_module() -> None:
    """Before models and text that a module's tests share; see `seed`."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seed(seed_of_module: None) -> None:
    """A test that draws without a generator of its own draws the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Published counts and masks, which are not in this repository."""
    folder = Path(os.environ.get("POLYNEURON_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no folder of shared data next to this checkout")
    return folder


# Fixtures import the library themselves: an import here would precede the type-checking hook.


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
    """Three languages in five shards: fifteen pieces."""
    from tests.campaigns.kills import blocks

    return blocks(model)


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """A cluster of three local nodes: a head that takes no work, and two with one actor each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # By default Ray's workers have a low priority, which would slow the tests.
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

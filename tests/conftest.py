"""What many tests need: a seeded generator, a tiny model and text, shared data, a Ray cluster."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Sums are equal to the last bit with as many threads; actors of Ray and subprocesses have one.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


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
    from interp.loading import load

    return load(folder)


@pytest.fixture(scope="session")
def corpora(model: Any) -> Any:
    """Three languages in five shards, which are fifteen pieces."""
    from tests.kill_campaign import blocks

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

"""What many tests need: a seeded generator, and the shared data where it is there."""

import os
from pathlib import Path

import pytest
import torch


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

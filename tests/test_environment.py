"""The environment that `make test` makes: what is in it; what is said where it cannot be made."""

import importlib.metadata
import os
import re
import stat
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import LOCK

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
OF_EVERY_ENVIRONMENT = {"pip", "setuptools", "wheel"}
"""What a new environment holds by itself; `pip freeze` leaves it out too."""


def pins(lock: Path) -> dict[str, str]:
    """The versions that a lock has for this Python on this system."""
    versions = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            if requirement.marker is None or requirement.marker.evaluate():
                versions[canonicalize_name(requirement.name)] = pin.version
    return versions


def installed() -> dict[str, str]:
    """The versions imported here, without this project and what a build of torch for GPUs needs."""
    here: dict[str, str] = {}
    for each in importlib.metadata.distributions():  # in the order of sys.path: the first counts
        here.setdefault(canonicalize_name(each.metadata["Name"]), each.version.partition("+")[0])
    for name in [PROJECT["name"], *OF_EVERY_ENVIRONMENT]:
        here.pop(name, None)
    return {name: here[name] for name in here if not re.match(r"nvidia-|cuda-|triton$", name)}


def unmet(requirements: list[str], versions: Mapping[str, str]) -> list[str]:
    return [
        each
        for each in requirements
        for requirement in [Requirement(each)]
        if not requirement.specifier.contains(
            versions.get(canonicalize_name(requirement.name), "0"), prereleases=True
        )
    ]


@pytest.mark.skipif(not LOCK.is_file(), reason="this environment was not made from a lock")
def test_what_is_installed_is_the_lock() -> None:
    locked = {name: v for name, v in pins(LOCK).items() if name not in OF_EVERY_ENVIRONMENT}
    assert installed() == locked


@pytest.mark.skipif(not LOCK.is_file(), reason="this environment was not made from a lock")
def test_a_warning_that_points_at_a_line_of_ours_is_an_error() -> None:
    def warn(module: str) -> None:
        warnings.warn_explicit("old", FutureWarning, "file.py", 1, module=module)

    for ours in ("interp", "interp.scores.lape", "experiments.study", "benchmarks.timing"):
        with pytest.raises(FutureWarning, match="old"):
            warn(ours)
    with warnings.catch_warnings(record=True) as said:
        warn("transformers.utils")
        warn("interpolation")
    assert len(said) == 2


def test_the_locks_meet_what_the_project_asks_for() -> None:
    extras = PROJECT["optional-dependencies"]
    dev = PROJECT["dependencies"] + extras["dev"]
    assert unmet(dev, pins(CONSTRAINTS / "dev.txt")) == []
    assert unmet(dev, pins(CONSTRAINTS / "transformer-lens-3.9.txt")) == []
    everything = [each for extra in extras.values() for each in extra]
    assert unmet(dev + everything, pins(CONSTRAINTS / "all.txt")) == []
    assert unmet(PYPROJECT["dependency-groups"]["docs"], pins(CONSTRAINTS / "docs.txt")) == []
    assert unmet(["numpy>=2"], {"numpy": "1.26.4"}) == unmet(["numpy>=2"], {}) == ["numpy>=2"]


def test_the_locks_differ_only_in_what_they_are_for() -> None:
    dev, all_extras = pins(CONSTRAINTS / "dev.txt"), pins(CONSTRAINTS / "all.txt")
    older = pins(CONSTRAINTS / "transformer-lens-3.9.txt")
    assert dev.items() <= all_extras.items()
    assert {"ray", "lm-eval", "jupyterlab"} <= all_extras.keys() - dev.keys()
    assert Version(older["transformer-lens"]).release[:2] == (3, 9)
    assert dev["torch"] == older["torch"] == all_extras["torch"]
    assert "torch" not in pins(CONSTRAINTS / "docs.txt")  # a site needs no model


def test_a_lock_names_no_address_and_no_build_for_gpus() -> None:
    for lock in CONSTRAINTS.glob("*.txt"):
        text = lock.read_text(encoding="utf-8")
        assert not re.search(r"://|index|@|^(nvidia|cuda|triton)", text, re.MULTILINE), lock


# ---------------------------------------------------------------- what is said where it fails


def installation(folder: Path, lock: Path = CONSTRAINTS / "dev.txt", **environment: str) -> str:
    """The one sentence of an installation that fails."""
    (folder / "here").mkdir(exist_ok=True)
    settings = {"PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, **environment}
    settings = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **settings}
    command = ["sh", str(CONSTRAINTS / "install.sh"), "environment", str(lock)]
    done = subprocess.run(
        command, cwd=folder / "here", env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done
    assert not (folder / "here" / "environment" / "lock.txt").exists()
    (sentence,) = done.stderr.splitlines()
    return sentence


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_without_a_python_it_says_so(tmp_path: Path) -> None:
    said = installation(tmp_path, PYTHON="python3-of-nowhere")
    assert said.startswith("python3-of-nowhere is not installed: install Python 3.11 or newer")
    broken = program(tmp_path / "broken", "exit 1")
    assert installation(tmp_path, PYTHON=broken).startswith(f"{broken} does not run")


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.10"])
def test_a_python_that_is_too_old_is_named(tmp_path: Path, version: str) -> None:
    old = program(tmp_path / "old", f"echo {version}")
    said = installation(tmp_path, PYTHON=old)
    assert f"is Python {version}, but 3.11 or newer is needed" in said


def test_a_disk_without_room_is_seen_beforehand(tmp_path: Path) -> None:
    said = installation(tmp_path, NEEDED_MB="999999999")
    assert re.search(r"has room for \d+ MB, but an environment needs 999999999 MB", said)


def test_a_disk_that_fills_up_is_named(tmp_path: Path) -> None:
    full = "echo 'OSError: [Errno 28] No space left on device'; exit 1"
    python = program(tmp_path / "full", f'[ "$1" = -m ] || {{ echo 3.11; exit; }}; {full}')
    assert installation(tmp_path, PYTHON=python).startswith("The disk is full")


@pytest.mark.slow
def test_without_the_network_it_says_so(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("what-nobody-has==1.0\n")
    (tmp_path / "here" / "environment" / "bin").mkdir(parents=True)  # an interrupted installation
    python = tmp_path / "here" / "environment" / "bin" / "python"
    program(python, f'exec {sys.executable} "$@"')
    said = installation(tmp_path, lock, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert said.startswith("Packages cannot be downloaded: check the network")


def test_any_other_failure_shows_where_the_log_is(tmp_path: Path) -> None:
    python = program(tmp_path / "other", '[ "$1" = -m ] || { echo 3.11; exit; }; exit 1')
    said = installation(tmp_path, PYTHON=python)
    assert said == "The installation failed: see environment/install.log."

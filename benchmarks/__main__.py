"""The CPU part of the benchmarks, one after another, and the tables of both READMEs.

    python -m benchmarks            # 13 minutes on two idle cores; `make bench`
    python -m benchmarks --again    # an interrupted run from its beginning

Writes  benchmarks/results/*.json, benchmarks/README.md, README.md; logs in results/benchmarks

Where it was interrupted, the next one goes on; where it came to its end, the next one measures all
anew. Nothing else should run on the machine meanwhile. The whole campaign of faults, the large
models and the GPU are commands of their own: see benchmarks/README.md.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from interp.results import artifacts

STEPS = (
    "start",
    "collect",
    "collect --memory",
    "interventions",
    "perplexity",
    "attribution",
    "attribution --memory",
    "patching",
    "average_precision",
    "faults",
)
"""Modules, and what they are asked for beside their size."""


@dataclass(frozen=True)
class Config:
    """How to begin."""

    again: bool = False
    """Run also what an interrupted run has finished."""

    out: Path = Path("results/benchmarks")
    """Folder for logs, and for the marks of what is finished."""


def run_all(commands: Mapping[str, Sequence[str]], out: Path) -> list[str]:
    """Run what has no mark yet, one after another; the names of those that failed."""
    failed = []
    for name, command in commands.items():
        mark = out / f"{name}.done"
        if mark.exists():
            print(f"{name}: finished before", flush=True)
            continue
        began = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        with (out / f"{name}.log").open("wb") as log:
            code = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT)
        took = f"{(time.monotonic() - began) / 60:.1f} minutes"
        print(f"{name}: {f'failed after {took}' if code else took}", flush=True)
        if code:
            failed.append(name)
        else:
            artifacts.write_text(mark, took + "\n")
    return failed


def forget(out: Path) -> None:
    for mark in out.glob("*.done"):
        mark.unlink()


def main(config: Config) -> None:
    if config.again:
        forget(config.out)
    commands = {
        step.replace(" --", "-"): [sys.executable, "-m", f"benchmarks.{module}", "bench", *flags]
        for step in STEPS
        for module, *flags in [step.split()]
    }
    began = time.monotonic()
    failed = run_all(commands, config.out)
    print(f"all: {(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        logs = ", ".join(str(config.out / f"{name}.log") for name in failed)
        raise SystemExit(f"{len(failed)} benchmarks failed: read {logs}, and run this again.")
    subprocess.run([sys.executable, "-m", "benchmarks.tables"], check=True)
    forget(config.out)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. Finished benchmarks are kept; the same goes on.") from None

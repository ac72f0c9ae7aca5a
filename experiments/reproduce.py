"""Every study of the shipped model, then the figures and the report.

    python -m experiments.reproduce       # half an hour on 2 cores; `make reproduce`

Reads   the shipped model and its parallel sentences
Writes  results/<study>/babel/..., results/reproduce/<study>.log, figures/*, results/report.html

Studies run in parallel, one thread each. Finished ones are skipped unless `--again` is given; a
second run gives the same numbers. Results of another model are refused.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm.auto import tqdm

from experiments.study import Study
from interp.results import artifacts
from interp.runs.folder import begin

STUDIES = (
    "compare_methods",
    "steer_language",
    "deactivate_neurons",
    "map_shared_neurons",
    "patch_across_languages",
    "attribute_neurons",
    "recover_planted",
    "detect_languages",
    "lens_by_language",
)
"""Longest first, so that no long study runs alone at the end."""


@dataclass(frozen=True)
class Config:
    """Which studies are run, and how many at a time."""

    studies: tuple[str, ...] = STUDIES
    """Names of scripts in experiments/ that have presets."""

    preset: str = "babel"
    """tiny: seconds each, to check that every part runs."""

    at_once: int = 2
    """Studies in parallel; as many as there are cores."""

    again: bool = False
    """Also run finished studies."""

    out: Path = Path("results/reproduce")
    """Folder for logs and completion markers."""


def marker(config: Config, study: str) -> Path:
    """Written when a study has finished."""
    return config.out / f"{study}-{config.preset}.json"


def run_all(config: Config, studies: Sequence[str]) -> list[str]:
    """Run studies in parallel; the names of those that failed."""
    failed = []
    with ThreadPoolExecutor(config.at_once) as pool:
        running = {pool.submit(run, config, study): study for study in studies}
        try:
            for done in tqdm(as_completed(running), total=len(studies), unit="study"):
                if done.result():
                    failed.append(running[done])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


def run(config: Config, study: str) -> int:
    """Run a study, and mark it if it succeeds; its exit code."""
    began = time.monotonic()
    with (config.out / f"{study}.log").open("wb") as log:
        command = [sys.executable, "-m", f"experiments.{study}", config.preset]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    if code == 0:
        seconds = json.dumps({"seconds": round(time.monotonic() - began)})
        artifacts.write_text(marker(config, study), seconds + "\n")
    return code


def main(config: Config) -> None:
    study = Study()
    model = study.open()
    begin(config.out, {"model": model.identity}, {"name": model.name})
    unfinished = [
        name for name in config.studies if config.again or not marker(config, name).exists()
    ]
    if unfinished and config.preset == "babel":  # several studies read these: made once, first
        study.statistics(model)
        study.sentence_means(model)
    if failed := run_all(config, unfinished):
        logs = ", ".join(str(config.out / f"{name}.log") for name in failed)
        raise SystemExit(f"{len(failed)} studies failed: read {logs}, and run this again.")
    for script in (["experiments.draw_figures"], ["experiments.report", config.preset]):
        subprocess.run([sys.executable, "-m", *script], check=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. Finished studies are kept; run this again.") from None

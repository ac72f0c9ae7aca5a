"""Every study of a model, then the figures and the report.

    python -m experiments.reproduce                  # an hour on 2 cores; `make reproduce`
    python -m experiments.reproduce --preset gemma   # Gemma 3 270M, fetched before; `make real`

Reads   the model, text and tasks; those of this project unless `--data.text`, `--data.facts` and
        `--data.inferences` name others
Writes  results/<study>/<preset>/..., results/reproduce/<preset>/<study>.log, figures/*,
        results/report.html, for Gemma results/report-gemma.html; experiments/measured,
        docs/scoreboard.md, docs/findings.md, README.md

Studies run in parallel, one thread each; those without the preset are left out. Finished ones are
skipped unless `--again` is given; a second run gives the same numbers. Results of another model or
text are refused.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from tqdm.auto import tqdm

from experiments import runner
from experiments.gemma import STUDY, Data
from experiments.runner import for_model
from experiments.study import Study
from interp.results import artifacts
from interp.runs.folder import begin

STUDIES = (
    "compare_methods",
    "steer_language",
    "deactivate_neurons",
    "steer_translation",
    "map_shared_neurons",
    "edit_knowledge",
    "patch_across_languages",
    "attribute_neurons",
    "recover_planted",
    "detect_languages",
    "explain_language",
    "compare_readings",
    "compare_labels",
    "lens_by_language",
)
"""Longest first, so that no long study runs alone at the end."""

DRAWN = ("babel", "gemma")
"""Presets whose results are in figures/ and on the scoreboard."""


@dataclass(frozen=True)
class Config:
    """Which studies are run, and how many at a time."""

    studies: tuple[str, ...] = STUDIES
    """Names of scripts in experiments/ that have presets."""

    preset: str = "babel"
    """tiny: seconds each, to check that every part runs."""

    data: Data = field(default_factory=Data)
    """What the preset gemma reads instead of this project's own text and tasks."""

    at_once: int = 2
    """Studies in parallel; as many as there are cores."""

    again: bool = False
    """Also run finished studies."""

    out: Path = Path("results/reproduce")
    """Folder for logs and completion markers, in a folder of the preset."""


def with_preset(config: Config) -> dict[str, Any]:
    """The config of every requested study that has the preset, by the name of the study."""
    configs = {}
    for name in config.studies:
        presets = importlib.import_module(f"experiments.{name}").experiment.presets
        if config.preset in presets:
            _, configs[name] = presets[config.preset]
    if not configs:
        raise SystemExit(
            f"No study has the preset {config.preset!r}: `python -m experiments.{STUDIES[0]} "
            "--help` lists those of a study."
        )
    return configs


def identities(configs: Mapping[str, Any]) -> dict[str, Any]:
    """What the models of the studies are, by name.

    Each is opened here once, so that studies which start together do not both convert a file.
    """
    studies = {config.study.model: config.study for config in configs.values() if reads(config)}
    return {name: study.open().identity for name, study in studies.items()}


def reads(config: Any) -> bool:
    """Whether a study opens a model and reads text; one of planted models does not."""
    return hasattr(config, "study")


def shared(config: Config) -> Study:
    """The text whose statistics several studies read."""
    text = str(config.data.text or Study.text)
    study = replace(STUDY, text=text) if config.preset == "gemma" else Study()
    return for_model(runner.Config(study=study)).study


def marker(config: Config, study: str) -> Path:
    """Written when a study has finished."""
    return config.out / config.preset / f"{study}.json"


def run_all(config: Config, studies: Mapping[str, Any]) -> list[str]:
    """Run studies in parallel; the names of those that failed."""
    failed = []
    with ThreadPoolExecutor(config.at_once) as pool:
        running = {pool.submit(run, config, name): name for name in studies}
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
    with marker(config, study).with_suffix(".log").open("wb") as log:
        options = config.data.options(study)
        command = [sys.executable, "-m", f"experiments.{study}", config.preset, *options]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    if code == 0:
        seconds = json.dumps({"seconds": round(time.monotonic() - began)})
        artifacts.write_text(marker(config, study), seconds + "\n")
    return code


def main(config: Config) -> None:
    configs = with_preset(config)
    read = {name: str(folder) for name, folder in vars(config.data).items() if folder}
    # Of all studies, so that some of them can be run again in the same folder.
    models = identities(with_preset(replace(config, studies=STUDIES)))
    plan = {"models": models, "data": read}
    begin(config.out / config.preset, plan)
    unfinished = {
        name: study
        for name, study in configs.items()
        if config.again or not marker(config, name).exists()
    }
    if unfinished and config.preset in DRAWN:  # several studies read these: made once, first
        study = shared(config)
        model = study.open()
        study.statistics(model)
        if config.preset == "babel":
            study.sentence_means(model)
    if failed := run_all(config, unfinished):
        logs = ", ".join(str(marker(config, name).with_suffix(".log")) for name in failed)
        raise SystemExit(f"{len(failed)} studies failed: read {logs}, and run this again.")
    figures = [["experiments.draw_figures"]] if config.preset in DRAWN else []
    pages = [["experiments.board"], ["experiments.headline"]] if config.preset in DRAWN else []
    pages += [["experiments.findings"]] if config.preset == "gemma" else []
    for script in (*figures, ["experiments.report", config.preset], *pages):
        subprocess.run([sys.executable, "-m", *script], check=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. Finished studies are kept; run this again.") from None

"""Parts of one run in processes of their own, as a job array has them; and what `status` says."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from interp import cli
from interp.counting.collect import collect
from interp.counting.pieces import LOCK_FOLDER
from interp.models.load import load
from interp.runs.locks import hold_lock
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, blocks, files, made_up

# The script of docs/guides/cluster.md, but for the model and text.
RECIPE = """#!/bin/bash
#SBATCH --array=1-4 --gpus=1 --cpus-per-task=4 --requeue
interp collect {model} --text {text} --languages {languages} --out {out} {settings} \\
  --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
"""
SETTINGS = ("--block-length", "16", "--n-shards", "5", "--hygiene", "off")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("array")
    tiny_models.build("qwen2", folder / "model")
    (folder / "text").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = RECIPE.format(
        model=folder / "model",
        text=folder / "text",
        languages=" ".join(LANGUAGES),
        out=folder / "parts",
        settings=" ".join(SETTINGS),
    )
    (folder / "job.sh").write_text(recipe, encoding="utf-8")
    return folder


def submit(place: Path, index: int) -> subprocess.Popen[str]:
    """One of two tasks of the array, as SLURM starts it."""
    task = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_TASK_COUNT": "2"}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(place / "job.sh")],
        env=os.environ | task | {"PATH": programs, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(task: subprocess.Popen[str]) -> str:
    said, errors = task.communicate(timeout=300)
    assert task.returncode == 0, errors
    return said


@pytest.mark.campaign
def test_a_job_array_that_loses_a_task_leaves_the_bytes_of_one_process(place, capsys):
    stays, lost = submit(place, 1), submit(place, 2)
    os.killpg(lost.pid, signal.SIGKILL)  # its node is gone
    lost.communicate()
    assert "missing" in finish(stays)

    cli.main(["status", str(place / "parts")])
    shown = capsys.readouterr().out
    assert "8 of 15 pieces are done, 0 running, 7 missing, 0 bad." in shown
    assert "missing: shard 0 of en" in shown

    assert "Counts are in" in finish(submit(place, 2))  # requeued; the last one puts all together
    cli.main(
        [
            *("collect", str(place / "model"), "--text", str(place / "text")),
            *("--languages", *LANGUAGES, "--out", str(place / "whole"), *SETTINGS),
        ]
    )
    assert files(place / "parts") == files(place / "whole")


@pytest.mark.slow
def test_status_tells_done_running_missing_and_bad_apart(tmp_path, capsys):
    model = load(tiny_models.build("qwen2", tmp_path / "model"))
    out = tmp_path / "run"
    run = collect(model, blocks(model), out, part=(1, 3), progress=False)
    assert len(run.status().done) == 5
    piece = out / "pieces" / "0002-de.safetensors"
    content = bytearray(piece.read_bytes())
    content[-100] ^= 4
    piece.write_bytes(content)
    with hold_lock(out / LOCK_FOLDER / "0003-en"):
        found = run.verify()
        cli.main(["status", str(out)])
    assert set(found.bad) == {(2, "de")}
    assert set(found.running) == {(3, "en")}
    assert (len(found.done), len(found.missing)) == (4, 9)
    shown = capsys.readouterr().out
    assert "4 of 15 pieces are done, 1 running, 9 missing, 1 bad." in shown
    assert "running: shard 3 of en (" in shown
    assert f"process {os.getpid()}" in shown
    assert "bad: shard 2 of de: " in shown
    assert "0002-de.safetensors is damaged" in shown
    assert "Delete that file" in shown

    # Bad and missing pieces are what the run still takes.
    piece.unlink()
    run = collect(model, blocks(model), out, progress=False)
    assert len(run.verify().done) == 15
    assert not (out / LOCK_FOLDER).exists()

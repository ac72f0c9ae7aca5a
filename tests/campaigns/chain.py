"""From a folder of text to a figure: every command killed at random moments, and started again.

    python -m tests.campaigns.chain FOLDER

Model and text are named once, to `interp collect`; the commands after it are given its run alone.
The processes are forked from one that has run every command, so that kills hit the command and not
its imports. Prints a line per command, and whether the run is in the end, byte for byte, one that
nothing disturbed.
"""

import io
import random
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch

from interp import cli
from tests import tiny_models
from tests.campaigns.disturbed import fork, kill, wait_for
from tests.campaigns.kills import files, made_up

KILLS = 3
"""Of every command."""


def prepare(folder: Path) -> None:
    """A model, and a folder of text with three labels."""
    tiny_models.build("qwen2", folder / "model")
    (folder / "text").mkdir()
    for label, lines in made_up().items():
        (folder / "text" / f"{label}.txt").write_text("\n".join(lines), encoding="utf-8")


def commands(folder: Path) -> Mapping[str, list[str]]:
    """What is typed, in order; the settings make it quick."""
    run = str(folder / "run")
    source = [str(folder / "model"), "--text", str(folder / "text"), "--out", run]
    kept = ["--moments", "--contexts", "2", "--block-length", "16", "--n-shards", "4"]
    return {
        "collect": ["collect", *source, *kept, "--hygiene", "off"],
        "find": ["find", run, "--fraction", "0.1", "--busy-quantile", "0.5"],
        "deactivate": ["deactivate", run, "--n-draws", "1"],
        "steer": ["steer", run, "--n", "2", "--max-new-tokens", "4"],
        "page": ["page", run],
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # a forked process has no thread pool
    prepare(folder)
    with redirect_stdout(io.StringIO()):
        for arguments in commands(folder).values():
            cli.main(arguments)
    (folder / "run").rename(folder / "first")
    seconds: dict[str, float] = {}
    for name, arguments in commands(folder).items():
        begin = time.perf_counter()
        end(arguments)
        seconds[name] = time.perf_counter() - begin
    quiet = (folder / "run").rename(folder / "quiet")
    rng = random.Random(0)
    for name, arguments in commands(folder).items():
        landed = 0
        for _ in range(KILLS):
            child = fork(partial(cli.main, arguments))
            time.sleep(rng.uniform(0, seconds[name] / 2))  # what is done is not done again
            landed += kill(child)
        end(arguments)
        print(f"{name}: {landed} of {KILLS} kills landed", flush=True)
    same = files(folder / "run") == files(quiet) == files(folder / "first")
    print(f"same files: {same}")


def end(arguments: list[str]) -> None:
    """Run a command to its end; an error ends the campaign."""
    if code := wait_for(fork(partial(cli.main, arguments))):
        raise SystemExit(f"interp {' '.join(arguments)}: exit code {code}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

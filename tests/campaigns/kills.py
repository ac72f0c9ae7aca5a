"""Kill collecting processes at random moments, restart them, and compare the results.

    python -m tests.campaigns.kills MODEL_FOLDER OUT_FOLDER

Run by test_collect in a separate process: it loads the model once and forks the workers, so that
kills hit only the pass itself. Prints one line per number of processes.
"""

import faulthandler
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.run import Run
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.text.corpora import Corpora
from interp.text.reading import read_corpora

LANGUAGES = ("de", "en", "fr")
WORDS = {
    "de": "der Hund sieht einen roten Mond und schweigt lange",
    "en": "the dog sees a red moon and keeps silent for long",
    "fr": "le chien voit une lune rouge et se tait longtemps",
}
KILLS = 10


def made_up(n_lines: int = 60) -> dict[str, list[str]]:
    """Random words in three languages, always the same."""
    rng = random.Random(0)
    return {
        code: [" ".join(rng.choices(words.split(), k=rng.randint(5, 14))) for _ in range(n_lines)]
        for code, words in WORDS.items()
    }


def blocks(model: NeuronModel, n_lines: int = 60) -> Corpora:
    return read_corpora(
        made_up(n_lines), LANGUAGES, model, block_length=16, n_shards=5, bos="block", hygiene="off"
    )


def start(model: NeuronModel, corpora: Corpora, out: Path, part: tuple[int, int]) -> int:
    """Start a worker on one part of the pieces; returns its process id."""
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(100, exit=True)  # shows where a worker hangs
        tqdm.set_lock(
            threading.RLock()
        )  # the default is shared: a killed worker would never release it
        keep = Keep(moments=True)
        try:
            collect(model, corpora, out, part=part, keep=keep, progress=False)
        except BaseException as error:
            print(f"{part}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"A worker ended with status {status}.")


def paths(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".part"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths(folder)}


def campaign(model: NeuronModel, corpora: Corpora, out: Path, n: int, seconds: float) -> int:
    """`KILLS` successive kills of random workers, then a run to the end; returns kills in time."""
    rng = random.Random(n)
    workers = {index: start(model, corpora, out, (index, n)) for index in range(1, n + 1)}
    landed = 0
    for _ in range(KILLS):
        time.sleep(rng.uniform(0, 1.5 * seconds / KILLS))
        index = rng.choice(sorted(workers))
        before = len(paths(out))  # not read: the locks of the others come and go
        os.kill(workers[index], signal.SIGKILL)
        wait(workers[index])
        landed += before < 3 * 5 + 1  # the plan and all pieces
        workers[index] = start(model, corpora, out, (index, n))
    for child in workers.values():
        wait(child)
    Run.open(out).merge()
    return landed


def main(model_folder: Path, out: Path) -> None:
    torch.set_num_threads(1)  # a forked process has no thread pool
    model = load(model_folder)
    corpora = blocks(model)
    begin = time.perf_counter()
    wait(start(model, corpora, out / "quiet", (1, 1)))
    seconds = time.perf_counter() - begin
    Run.open(out / "quiet").merge()
    for n in (1, 2, 3):
        landed = campaign(model, corpora, out / str(n), n, seconds)
        same = files(out / "quiet") == files(out / str(n))
        print(
            f"{n} processes: {landed} of {KILLS} kills landed inside the pass, same bytes: {same}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

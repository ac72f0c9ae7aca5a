"""What one pass over text left: its results, and how far it is."""

import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from interp.counting.pieces import (
    SIGNS_OF_LIFE,
    in_order,
    load_piece,
    piece_path,
    put_together,
    sign_path,
)
from interp.counting.stats import ActivationMoments, FiringSigns, FiringStats, SentenceMeans
from interp.counting.top_contexts import TopContexts
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.display import html_table, listed
from interp.runs.folder import read_plan
from interp.runs.locks import lock_owner, remove_stale_locks

_MOST = 1_000_000  # pieces; a file that speaks of more is damaged, and counting them would not end


class _Product(NamedTuple):
    """Something that a run can keep."""

    title: str
    """What it is."""

    keep: str
    """What keeps it, in Python."""

    command: str
    """The command that keeps it."""


PRODUCTS = {
    "firing": _Product("how often every neuron fires", "", ""),
    "moments": _Product(
        "mean and spread of every activation", "moments=True", "`interp collect --moments`"
    ),
    "signs": _Product(
        "which neurons fire at the last token of each prompt", 'signs="gate"', "`interp share TASK`"
    ),
    "contexts": _Product(
        "where every neuron fires most", "contexts=8", "`interp collect --contexts 8`"
    ),
    "sentence_means": _Product(
        "the mean of every unit on each sentence",
        'sentence_means=("pre",)',
        "`interp collect --sentences pre`",
    ),
}
"""By their names in `Run`."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: tuple[tuple[int, str], ...]
    """Finished pieces, as (shard, language)."""

    missing: tuple[tuple[int, str], ...]
    """Pieces still to be read."""

    stopped_after: int | None
    """Shards per language after which a stopping rule ended the run; None: it reads all."""

    def __repr__(self) -> str:
        ended = "" if self.stopped_after is None else f", stopped after {self.stopped_after} shards"
        return f"Progress({len(self.done):,} pieces done, {len(self.missing):,} missing{ended})"


@dataclass(frozen=True)
class Verification:
    """The state of every piece of a run; pieces are named as (shard, language)."""

    done: tuple[tuple[int, str], ...]
    """Finished, and whole by their checksum."""

    running: dict[tuple[int, str], str]
    """Being read now, and by which process; known only where file locks reach, see
    `interp.runs.locks`."""

    missing: tuple[tuple[int, str], ...]
    """No process is known to read them."""

    bad: dict[tuple[int, str], str]
    """There, but not whole, and what is wrong with them; delete the files."""

    def __repr__(self) -> str:
        names = ("done", "running", "missing", "bad")
        counts = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in names)
        return f"Verification(pieces: {counts})"


class TemporaryFolder:
    """A folder that is removed when the last object that refers to this one is gone."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="interp-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Run:
    """What one pass over text left. A result is read from its file when it is first used.

    `collect` gives one, and `Run.open(folder)` opens one that is on disk.

    >>> run = interp.collect(model, text, keep=interp.Keep(contexts=2), progress=False)
    >>> run
    Run(en, de, zh; firing, contexts; in a temporary folder)
    >>> run.firing.tokens.sum(0).tolist(), run.contexts.n
    ([640, 640, 640], 2)
    >>> run.moments
    Traceback (most recent call last):
        ...
    ValueError: This run kept no moments: collect with keep=interp.Keep(moments=True), or ...
    """

    def __init__(self, folder: Path, temporary: TemporaryFolder | None = None) -> None:
        self._folder, self._temporary = folder, temporary

    @staticmethod
    def open(folder: Path | str) -> "Run":
        """The run in a folder, finished or not.

        >>> _ = interp.collect(model, text, folder, part=(1, 3), progress=False)
        >>> run = interp.Run.open(folder)
        >>> run.status()
        Progress(5 pieces done, 10 missing)
        """
        folder = Path(folder)
        if not any((folder / name).exists() for name in ("run.json", "firing.safetensors")):
            raise FileNotFoundError(
                f"{folder} is not a run: it holds neither run.json nor firing.safetensors. Make "
                "one with `interp collect`, or interp.collect(model, corpora, out)."
            )
        return Run(folder)

    @property
    def folder(self) -> Path | None:
        """Where the files are; None: in a temporary folder, which goes when the run does."""
        return self._folder if self._temporary is None else None

    # ------------------------------------------------------------ results

    @cached_property
    def firing(self) -> FiringStats:
        """How often every neuron fires in every language; every run keeps that."""
        stats = FiringStats.load(self._file("firing"))
        if self._temporary is None:
            return stats
        return FiringStats(stats.fired, stats.tokens, stats.languages)  # all of it in memory

    @cached_property
    def moments(self) -> ActivationMoments:
        """Mean and spread of act(gate) and of the neuron's output, with `Keep(moments=True)`."""
        return ActivationMoments.load(self._file("moments"))

    @cached_property
    def signs(self) -> FiringSigns:
        """Which neurons fire at the last token of each prompt, with `Keep(signs="gate")`."""
        return FiringSigns.load(self._file("signs"))

    @cached_property
    def contexts(self) -> TopContexts:
        """The tokens on which every neuron's gate is highest, with `Keep(contexts=8)`."""
        return TopContexts.load(self._file("contexts"))

    @cached_property
    def sentence_means(self) -> SentenceMeans:
        """Mean of every unit on each sentence, with `Keep(sentence_means=("pre",))`; on disk, to
        be read one site at a time."""
        self._check_kept("sentence_means")
        plan, state = read_plan(self._folder), self.status()
        if state.missing:
            raise ValueError(self._unfinished(state))
        paths = [piece_path(self._folder, shard, code) for shard, code in state.done]
        rows = [len(load_piece(path).labels["sources"]) for path in paths]
        languages = tuple(plan["languages"])
        labels = [
            languages.index(code)
            for (_, code), n_rows in zip(state.done, rows, strict=True)
            for _ in range(n_rows)
        ]
        kinds = tuple(plan["wanted"]["sentence_means"])
        return SentenceMeans(
            pieces=tuple(paths),
            labels=torch.tensor(labels),
            languages=languages,
            kinds=kinds,
            owner=self._temporary,
        )

    @property
    def kept(self) -> tuple[str, ...]:
        """The results that were asked for, by their names here.

        >>> interp.collect(model, text, progress=False).kept
        ('firing',)
        """
        wanted = {}
        if (self._folder / "run.json").exists():
            wanted = read_plan(self._folder)["wanted"]
        return tuple(
            name
            for name in PRODUCTS
            if name == "firing" or wanted.get(name) or self._path(name).is_file()
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """Model, text, settings and versions that the results were made with."""
        path = self._file("firing")
        return dict(artifacts.load(path, "FiringStats", lazy=("fired",)).provenance)

    # ------------------------------------------------------------ pieces

    def status(self) -> Progress:
        """Which pieces are finished, by their files."""
        folder = self._folder
        plan = read_plan(folder)
        stop = folder / "stopped.json"
        try:
            stopped_after = int(json.loads(stop.read_text())["shards"]) if stop.exists() else None
            n_shards = plan["n_shards"] if stopped_after is None else stopped_after
            if n_shards * len(plan["languages"]) > _MOST:
                raise ValueError(f"{len(plan['languages'])} languages in {n_shards:,} shards")
            pieces = in_order(n_shards, plan["languages"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{folder} is damaged: its run.json or stopped.json says nothing that can be read "
                f"({error}). Delete the one that is wrong and run the same again; pieces are kept."
            ) from None
        done = tuple(piece for piece in pieces if piece_path(folder, *piece).exists())
        finished = set(done)
        missing = tuple(piece for piece in pieces if piece not in finished)
        return Progress(done, missing, stopped_after)

    def verify(self) -> Verification:
        """The state of every piece; each finished one is read and checked.

        >>> run = interp.collect(model, text, folder, part=(1, 15), progress=False)
        >>> run.verify()
        Verification(pieces: 1 done, 0 running, 14 missing, 0 bad)
        """
        folder, state = self._folder, self.status()
        bad: dict[tuple[int, str], str] = {}
        for piece in tqdm(state.done, "checking", unit="piece", delay=2, leave=False):
            try:
                load_piece(piece_path(folder, *piece))
            except (ValueError, FileNotFoundError) as error:
                bad[piece] = str(error)
        seen = {piece: lock_owner(sign_path(folder, *piece)) for piece in state.missing}
        running = {piece: who for piece, who in seen.items() if who is not None}
        return Verification(
            tuple(piece for piece in state.done if piece not in bad),
            running,
            tuple(piece for piece in state.missing if piece not in running),
            bad,
        )

    def merge(self) -> "Run":
        """Put the pieces together once all are there; the same pieces give the same bytes.

        `collect` does it at the end, unless it read a part alone.

        >>> for index in (1, 2, 3):
        ...     run = interp.collect(model, text, folder, part=(index, 3), progress=False)
        >>> run.merge().firing.n_shards
        5
        """
        folder = self._folder
        plan, state = read_plan(folder), self.status()
        if state.missing:
            raise ValueError(self._unfinished(state))
        n_shards = plan["n_shards"] if state.stopped_after is None else state.stopped_after
        put_together(folder, plan, n_shards)
        remove_stale_locks(folder / SIGNS_OF_LIFE)
        for name in PRODUCTS:
            self.__dict__.pop(name, None)  # what was read before is out of date
        return self

    # ------------------------------------------------------------ showing and refusing

    def __repr__(self) -> str:
        place = f"in {self._folder}" if self._temporary is None else "in a temporary folder"
        try:
            languages = read_plan(self._folder)["languages"]
            contents = ", ".join(self.kept)
            if not self._path("firing").is_file():
                state = self.status()
                contents = f"{len(state.done)} of {len(state.done) + len(state.missing)} pieces"
        except (ValueError, OSError, KeyError, TypeError):
            return f"Run({place})"
        return f"Run({listed(languages)}; {contents}; {place})"

    def _repr_html_(self) -> str:
        kept = self.kept
        rows = [
            [f".{name}", product.title, "kept" if name in kept else f"Keep({product.keep})"]
            for name, product in PRODUCTS.items()
        ]
        return html_table(repr(self), ["", "what it is", "kept, or what keeps it"], rows)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _file(self, name: str) -> Path:
        """The file of a result, refused with a sentence where it is not there."""
        self._check_kept(name)
        path = self._path(name)
        if path.is_file() or not (self._folder / "run.json").exists():
            return path
        state = self.status()
        if state.missing:
            raise ValueError(self._unfinished(state))
        raise ValueError(
            f"All pieces of {self._folder} are there and not yet put together: call run.merge(), "
            f"or `interp merge {self._folder}`."
        )

    def _check_kept(self, name: str) -> None:
        if name not in self.kept:
            product = PRODUCTS[name]
            where = "This run" if self._temporary is not None else str(self._folder)
            raise ValueError(
                f"{where} kept no {name.replace('_', ' ')}: collect with "
                f"keep=interp.Keep({product.keep}), or {product.command}, into another folder."
            )

    def _unfinished(self, state: Progress) -> str:
        shard, language = state.missing[0]
        return (
            f"{self._folder} has {len(state.done)} of {len(state.done) + len(state.missing)} "
            f"pieces; the first that is missing is shard {shard} of {language}. Run the same "
            "`interp collect` again, or the parts that did not finish."
        )

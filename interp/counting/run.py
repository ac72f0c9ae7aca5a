"""A run folder: the results of one pass over text, and its progress."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from interp.counting.head_effects import HeadEffects
from interp.counting.histograms import Histograms
from interp.counting.loss_effects import LossEffects
from interp.counting.negative_side import NegativeSide
from interp.counting.pieces import (
    LOCK_FOLDER,
    grid_path,
    in_order,
    load_piece,
    lock_path,
    piece_path,
    write_results,
)
from interp.counting.progress import Progress, Verification, damaged_results, other_settings
from interp.counting.sentence_means import SentenceMeans
from interp.counting.sign_cases import SignCases
from interp.counting.signs import FiringSigns
from interp.counting.statistics import STATISTICS, option_of
from interp.counting.stats import ActivationMoments, FiringStats
from interp.counting.tidying import is_tidied, remove_pieces
from interp.counting.top_contexts import TopContexts
from interp.counting.unit_moments import UnitMoments
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.display import Cells, Shown, listed
from interp.results.words import Bos
from interp.runs.folder import read_plan
from interp.runs.locks import lock_owner, remove_stale_locks
from interp.runs.refusals import check_run
from interp.text.languages import Tags, recorded_tags

_MAX_PIECES = 1_000_000  # a file that names more is damaged, and listing them would take forever


def recorded_bos(provenance: Mapping[str, Any]) -> Bos:
    """The setting that a run's provenance records; "auto" if it records none."""
    begins = provenance.get("bos")
    setting = begins.get("setting") if isinstance(begins, Mapping) else None
    return next((bos for bos in get_args(Bos) if bos == setting), "auto")


class _Product(NamedTuple):
    """A result that a run can keep."""

    title: str
    """What it is."""

    keep: str
    """The argument of `Keep` that requests it."""

    command: str
    """The command that requests it."""


PRODUCTS = {
    "firing": _Product("how often every neuron fires", "", ""),
    **{
        name: _Product(row.title, f"{name}=True", f"`interp collect {option_of(name)}`")
        for name, row in STATISTICS.items()
    },
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
"""By attribute name in `Run`."""


class TemporaryFolder:
    """A folder that is deleted when nothing refers to this object any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="interp-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Run(Shown):
    """Results of one pass over text; each is read from its file on first use.

    `collect` returns one, and `Run.open(folder)` opens one from disk.

    >>> run = interp.collect(model, text, keep=interp.Keep(contexts=2), progress=False)
    >>> run
    Run(en, de, zh; firing, contexts; in a temporary folder)
    >>> run.firing.tokens.sum(0).tolist(), run.contexts.n
    ([640, 640, 640], 2)
    >>> run.moments
    Traceback (most recent call last):
        ...
    ValueError: This run kept no moments: collect it into another folder with ...
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
        check_run(folder)
        return Run(folder)

    @property
    def folder(self) -> Path | None:
        """Where the files are. None: in a temporary folder, which lasts as long as this object."""
        return self._folder if self._temporary is None else None

    # ------------------------------------------------------------ results

    @cached_property
    def firing(self) -> FiringStats:
        """How often every neuron fires in every language; kept by every run."""
        stats = FiringStats.load(self._file("firing"))
        return stats if self._temporary is None else stats.in_memory()

    @cached_property
    def moments(self) -> ActivationMoments:
        """Means and deviations of act(gate) and of the output, with `Keep(moments=True)`."""
        return ActivationMoments.load(self._file("moments"))

    @cached_property
    def sign_cases(self) -> SignCases:
        """Signs of gate and linear branch together, with `Keep(sign_cases=True)`."""
        return SignCases.load(self._file("sign_cases"))

    @cached_property
    def negative_side(self) -> NegativeSide:
        """What neurons write where their gates are below zero, with `Keep(negative_side=True)`."""
        return NegativeSide.load(self._file("negative_side"))

    @cached_property
    def histograms(self) -> Histograms:
        """How act(gate) is distributed, with `Keep(histograms=True)`."""
        return Histograms.load(self._file("histograms"))

    @cached_property
    def loss_effects(self) -> LossEffects:
        """Gradient times activation of the loss, with `Keep(loss_effects=True)`."""
        return LossEffects.load(self._file("loss_effects"))

    @cached_property
    def heads(self) -> UnitMoments:
        """Means and deviations of the norms of heads' outputs, with `Keep(heads=True)`."""
        return UnitMoments.load(self._file("heads"))

    @cached_property
    def head_effects(self) -> HeadEffects:
        """How the loss depends on every attention head, with `Keep(head_effects=True)`."""
        return HeadEffects.load(self._file("head_effects"))

    @cached_property
    def dimensions(self) -> UnitMoments:
        """Means and deviations of the residual stream, with `Keep(dimensions=True)`."""
        return UnitMoments.load(self._file("dimensions"))

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
        """Mean of every unit on each sentence, with `Keep(sentence_means=("pre",))`; on disk, read
        one site at a time."""
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
        """Names of the results that this run keeps.

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
        """Model, text, settings and versions behind the results."""
        path = self._file("firing")
        stored = artifacts.load(path, "FiringStats", lazy=("fired",)).provenance
        return {**stored, **({"tags": dict(self.tags)} if self.tags else {})}

    @property
    def bos(self) -> Bos:
        """How its text began; what follows on the run should use the same.

        >>> interp.collect(model, text, progress=False).bos
        'auto'
        """
        return recorded_bos(self.provenance)

    @property
    def tags(self) -> Tags:
        """The language tags that its labels were given, for `interp.text.tagged`.

        >>> prose = {"prose": [f"Im Jahr {year} fuhr der Zug." for year in range(200)]}
        >>> settings = {"tags": {"prose": "de"}, "block_length": 16, "n_shards": 2}
        >>> tagged = interp.read_corpora(prose, ["prose"], model, **settings)
        >>> run = interp.collect(model, tagged, progress=False)
        >>> with interp.text.tagged(run.tags):
        ...     print(interp.text.naming_prompt("prose"))
        Hier steht ein Text auf Deutsch:
        """
        path = self._folder / "run.json"
        return recorded_tags(read_plan(self._folder)) if path.is_file() else {}

    # ------------------------------------------------------------ pieces

    def status(self) -> Progress:
        """Which pieces are finished: those whose files exist, or all if they were tidied away."""
        folder = self._folder
        plan = read_plan(folder)
        stop = folder / "stopped.json"
        try:
            stopped_after = int(json.loads(stop.read_text())["shards"]) if stop.exists() else None
            n_shards = plan["n_shards"] if stopped_after is None else stopped_after
            if n_shards * len(plan["languages"]) > _MAX_PIECES:
                raise ValueError(f"{len(plan['languages'])} languages in {n_shards:,} shards")
            pieces = in_order(n_shards, plan["languages"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{folder} is damaged: its run.json or stopped.json cannot be read ({error}). "
                "Delete the damaged one and run the same command again; finished pieces are kept."
            ) from None
        tidied = is_tidied(folder)
        done = tuple(piece for piece in pieces if tidied or piece_path(folder, *piece).exists())
        finished = set(done)
        missing = tuple(piece for piece in pieces if piece not in finished)
        return Progress(done, missing, stopped_after)

    def verify(self) -> Verification:
        """State of every piece; finished ones, and the merged results, are read and checked.

        >>> run = interp.collect(model, text, folder, part=(1, 15), progress=False)
        >>> run.verify()
        Verification(pieces: 1 done, 0 running, 14 missing, 0 bad)
        """
        folder, state = self._folder, self.status()
        bad: dict[tuple[int, str], str] = {}
        on_disk = () if is_tidied(folder) else state.done
        for piece in tqdm(on_disk, "checking", unit="piece"):
            try:
                load_piece(piece_path(folder, *piece))
            except (ValueError, FileNotFoundError) as error:
                bad[piece] = str(error)
        owners = {piece: lock_owner(lock_path(folder, *piece)) for piece in state.missing}
        running = {piece: owner for piece, owner in owners.items() if owner is not None}
        return Verification(
            tuple(piece for piece in state.done if piece not in bad),
            running,
            tuple(piece for piece in state.missing if piece not in running),
            bad,
            self._damaged(state),
        )

    def _damaged(self, state: Progress) -> dict[str, str]:
        """Files of a merged run besides its pieces that are damaged, and what to do."""
        folder = self._folder
        results = [name for name in self.kept if name != "sentence_means"]  # in pieces alone
        if not any(self._path(name).is_file() for name in results):
            return {}
        recreate = f"run `interp merge {folder}`, which makes it from the pieces"
        if state.missing:
            recreate = "run the same `interp collect` again, which reads the missing pieces"
        elif is_tidied(folder):
            recreate = (
                "delete it and run the same `interp collect` again, which reads all text again: "
                "the pieces were deleted after the merge"
            )
        problems = damaged_results(folder, results, recreate)
        if grid_path(folder).is_file():
            anew = "delete it: `interp collect` makes it again if it needs it"
            problems |= damaged_results(folder, ["grid"], anew)
        if "firing.safetensors" not in problems:
            n_shards = len({shard for shard, _ in state.done + state.missing})
            merged = self.provenance
            problems |= other_settings(folder, read_plan(folder), merged, n_shards)
        return problems

    def merge(self) -> "Run":
        """Write the results from the pieces, once all are finished; same pieces, same bytes.

        `collect` calls this at the end, unless it read only a part.

        >>> for index in (1, 2, 3):
        ...     run = interp.collect(model, text, folder, part=(index, 3), progress=False)
        >>> run.merge().firing.n_shards
        5
        """
        folder = self._folder
        plan, state = read_plan(folder), self.status()
        if state.missing:
            raise ValueError(self._unfinished(state))
        if is_tidied(folder):
            return self
        n_shards = plan["n_shards"] if state.stopped_after is None else state.stopped_after
        write_results(folder, plan, n_shards)
        remove_stale_locks(folder / LOCK_FOLDER)
        for name in PRODUCTS:
            self.__dict__.pop(name, None)  # results loaded earlier are out of date
        return self

    def tidy(self) -> int:
        """Delete the pieces, which the results hold too; returns the bytes that are free now.

        It merges them once more and reads the results back first. Sentence means are kept in
        pieces alone, so a run with them is refused.

        >>> run = interp.collect(model, text, folder, progress=False)
        >>> run.tidy() > 0, run.status(), run.firing.n_shards
        (True, Progress(15 pieces done, 0 missing), 5)
        """
        if "sentence_means" in self.kept:
            raise ValueError(f"{self._folder} keeps sentence means, which are in its pieces alone.")
        pieces = [piece_path(self._folder, *piece) for piece in self.status().done]
        if is_tidied(self._folder):
            pieces = [path for path in pieces if path.exists()]  # left by one that was killed
            if not pieces:
                return 0
        else:
            self.merge()
        results = [self._path(name) for name in self.kept]
        return remove_pieces(self._folder, pieces, results)

    # ------------------------------------------------------------ showing and refusing

    def __repr__(self) -> str:
        location = f"in {self._folder}" if self._temporary is None else "in a temporary folder"
        try:
            languages = read_plan(self._folder)["languages"]
            contents = ", ".join(self.kept)
            if not self._path("firing").is_file():
                state = self.status()
                contents = f"{len(state.done)} of {len(state.done) + len(state.missing)} pieces"
        except (ValueError, OSError, KeyError, TypeError):
            return f"Run({location})"
        return f"Run({listed(languages)}; {contents}; {location})"

    def _cells(self) -> Cells:
        kept = self.kept
        rows = [
            [f".{name}", product.title, "kept" if name in kept else f"Keep({product.keep})"]
            for name, product in PRODUCTS.items()
        ]
        return Cells(("", "what it is", "kept, or how to keep it"), rows)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _file(self, name: str) -> Path:
        """Path of a result's file; an error that says what to do if it is missing."""
        self._check_kept(name)
        path = self._path(name)
        if path.is_file() or not (self._folder / "run.json").exists():
            return path
        state = self.status()
        if state.missing:
            raise ValueError(self._unfinished(state))
        raise ValueError(
            f"All pieces of {self._folder} are finished but not merged: run `interp merge "
            f"{self._folder}`, in Python run.merge()."
        )

    def _check_kept(self, name: str) -> None:
        if name not in self.kept:
            product = PRODUCTS[name]
            subject = "This run" if self._temporary is not None else str(self._folder)
            raise ValueError(
                f"{subject} kept no {name.replace('_', ' ')}: collect it into another folder with "
                f"{product.command}, in Python keep=interp.Keep({product.keep})."
            )

    def _unfinished(self, state: Progress) -> str:
        shard, language = state.missing[0]
        return (
            f"{self._folder} has {len(state.done)} of {len(state.done) + len(state.missing)} "
            f"pieces; the first missing one is shard {shard} of {language}. Run the same "
            "`interp collect` again, or the parts that did not finish."
        )

"""Collect statistics in one pass over text, in pieces that can be resumed and read in parallel.

A piece is one shard of one language, see `interp.counting.pieces`. Counts are integers, and the
order within a piece depends only on its rows, so one process, twenty parallel jobs and a run killed
nine times write the same bytes.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from interp.counting.batch import Observer
from interp.counting.caches import Counter
from interp.counting.counters import SentenceMeansCounter, SignsCounter
from interp.counting.expert_counter import MIXTURE_COUNTS, OF_EXPERTS, firing_counter
from interp.counting.fitting import check_that_it_fits
from interp.counting.histograms import SAMPLE, Grid, RangeCounter
from interp.counting.keep import FIRING_ALONE, Keep
from interp.counting.loss_effects import count_loss_effects
from interp.counting.observe import batches, observe
from interp.counting.pieces import (
    PIECE,
    grid_path,
    in_order,
    load_piece,
    lock_path,
    piece_path,
    read_firing,
)
from interp.counting.run import Run, TemporaryFolder
from interp.counting.sign_cases import check_gated
from interp.counting.statistics import STATISTICS
from interp.counting.stats import FiringStats
from interp.counting.tidying import is_tidied
from interp.counting.top_contexts import ContextsCounter
from interp.models.any_model import AnyModel, as_model
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.models.sites import hooked_at
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.runs.folder import begin, put, read_plan
from interp.runs.jobs import pool_for
from interp.runs.locks import hold_lock
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.corpora import Corpora, Rows


def collect(
    model: AnyModel,
    corpora: Corpora,
    out: Path | str | None = None,
    *,
    keep: Keep = FIRING_ALONE,
    part: tuple[int, int] | None = None,
    tokens_per_batch: int = 4096,
    stop_when: Callable[[FiringStats], bool] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> Run:
    """Count how often every neuron fires in every language, and keep what else is asked for.

    Results are written to the folder `out`, and the same call resumes an interrupted run; without
    `out` they last as long as the `Run`. `stop_when` receives the counts after each round of shards
    (one per language) and ends the run by returning True; shards come in random order, so what was
    read is a fair sample of the text. `settings` are stored with every result.

    With `part=(i, n)` only the i-th of n parts is read, counted from 1; other processes may read
    the other parts at any time, and `Run.merge` makes the results once all are finished. With
    `ray`, actors read the pieces, on this machine or on a cluster (see `Ray`) whose nodes share
    `out` and have this version of the library.

    >>> run = interp.collect(model, text, folder, progress=False)
    >>> run.firing.tokens.sum(0).tolist()
    [640, 640, 640]
    >>> interp.Run.open(folder).firing.n_shards
    5
    """
    model = as_model(model)
    _check(model, corpora, keep, tokens_per_batch)
    first, n_parts = _check_part(part, out, stop_when)
    temporary = None
    if out is None:
        temporary = TemporaryFolder()
        out = temporary.path
    folder = Path(out)
    shared = folder if ray is None else folder.resolve()  # actors have other working directories
    reading = _Reading(shared, corpora, keep, tokens_per_batch)
    reading.start(model, stops_early=stop_when is not None, settings=settings or {})
    pieces = in_order(corpora.n_shards, corpora.languages)[first - 1 :: n_parts]
    if is_tidied(folder):
        pieces = []
    # `stop_when` is called after each round; without it, all pieces are one round.
    per_round = len(corpora.languages) if stop_when is not None else max(1, len(pieces))
    bar = _bar(corpora, pieces, progress)
    with _reader(reading, model, ray) as read:
        for start in range(0, len(pieces), per_round):
            read(pieces[start : start + per_round], bar)
            n_shards = (start + per_round) // len(corpora.languages)
            if stop_when is not None and stop_when(reading.firing(n_shards)):
                reading.stop(n_shards)
                break
    bar.close()
    run = Run(folder, temporary)
    return run if part is not None else run.merge()


def _check(model: NeuronModel, corpora: Corpora, keep: Keep, tokens_per_batch: int) -> None:
    """Refuse incompatible options, before anything is read."""
    counted = {name: False for name in keep.statistics if name in OF_EXPERTS}
    rest = replace(keep, fires_by="gate", contexts=0, **counted)
    if isinstance(model, MixtureModel) and rest != FIRING_ALONE:
        raise ValueError(MIXTURE_COUNTS.format(model.name))
    if keep.sign_cases:
        check_gated(model)
    for name, layer in itertools.product(keep.statistics, range(model.n_layers)):
        model.rows_site(layer, hooked_at(STATISTICS[name].units))  # refuses one that is not there
    if keep.sentence_means and corpora.packed:
        raise ValueError(
            "Sentence means need rows that are sentences, and these are packed blocks: read the "
            "text with read_sentences."
        )
    if keep.signs and corpora.packed:
        raise ValueError(
            "Signs at the last token need rows that are prompts, and these are packed blocks: "
            "read them with read_prompts and prompt_rows."
        )
    if tokens_per_batch < 1:
        raise ValueError(
            f"tokens_per_batch is {tokens_per_batch}; it must be 1 or more, such as 4096."
        )


def _check_part(
    part: tuple[int, int] | None, out: Path | str | None, stop_when: object
) -> tuple[int, int]:
    """The part to read. None: everything, which is part 1 of 1."""
    if part is None:
        return 1, 1
    index, n_parts = part
    if not 1 <= index <= n_parts:
        raise ValueError(
            f"There is no part {index} of {n_parts}: parts are counted from 1 to {n_parts}."
        )
    if out is None:
        raise ValueError("A part needs the folder that all parts share: give `out` as well.")
    if stop_when is not None:
        raise ValueError(
            "part and stop_when exclude each other: whether to stop depends on all parts "
            "together. Leave one out."
        )
    return index, n_parts


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class _Piece:
    """One shard of one language and how to read it; holds no other text, so it is cheap to send."""

    folder: Path

    shard: int

    language: str

    text: Corpora
    """The rows of this piece alone."""

    number: Int64[Tensor, " row"]
    """Their indices among all rows of the language."""

    keep: Keep

    tokens_per_batch: int

    @property
    def name(self) -> str:
        return f"shard {self.shard} of {self.language}"

    @property
    def path(self) -> Path:
        return piece_path(self.folder, self.shard, self.language)

    @property
    def rows(self) -> Rows:
        return self.text.rows[self.language]

    @property
    def n_tokens(self) -> int:
        """Tokens as the progress bar counts them, including special tokens."""
        return int(self.rows.length.sum())

    def read(self, model: NeuronModel, seen: Callable[[int], object] | None = None) -> None:
        """Write the piece's file unless a valid one exists; `seen` gets each batch's tokens."""
        seen = seen or _ignore
        if is_tidied(self.folder):
            seen(self.n_tokens)
            return
        if self.path.exists():
            load_piece(self.path)
            seen(self.n_tokens)
            return
        with hold_lock(lock_path(self.folder, self.shard, self.language)):
            counters, effects = self._counters(model), self._statistics(model, of_gradients=True)
            self._observe(model, counters, effects, seen)
            counted = [*counters, *effects]
            tensors = {name: one for counter in counted for name, one in counter.tensors().items()}
            by_row = self.keep.sentence_means or self.keep.signs or self.keep.contexts
            sources = list(self.rows.source) if by_row else []
            labels = {"shard": self.shard, "language": self.language, "sources": sources}
            artifacts.save(self.path, PIECE, tensors, labels, {})

    def _observe(
        self,
        model: NeuronModel,
        counters: Sequence[Observer],
        effects: Sequence[Observer],
        seen: Callable[[int], object],
    ) -> None:
        for batch in batches(self.text, self.language, self.shard, self.tokens_per_batch):
            try:
                observe(model, batch, counters)
                if effects:
                    count_loss_effects(model, batch, effects)
            except ValueError as error:
                done = len(Run(self.folder).status().done)
                raise ValueError(
                    f"{error} ({self.name}; {done} finished pieces are kept in {self.folder})"
                ) from None
            seen(int(batch.length.sum()))

    def _counters(self, model: NeuronModel) -> list[Counter]:
        keep, n_rows = self.keep, len(self.number)
        counters: list[Counter] = [firing_counter(model, keep.fires_by)]
        counters += self._statistics(model, of_gradients=False)
        if keep.sentence_means:
            counters.append(
                SentenceMeansCounter(model, keep.sentence_means, n_rows, keep.special_tokens)
            )
        if keep.signs:
            counters.append(SignsCounter(model, n_rows, keep.signs, keep.signs_above))
        if keep.contexts:
            counters.append(ContextsCounter(model, keep.contexts, self.rows, self.number))
        return counters

    def _statistics(self, model: NeuronModel, of_gradients: bool) -> list[Counter]:
        """Counters of the statistics to keep: of those of gradients, or of the others."""
        grid = Grid.load(grid_path(self.folder)) if self.keep.histograms else None
        return [
            OF_EXPERTS[name](model)
            if isinstance(model, MixtureModel)
            else STATISTICS[name].counter(model, grid)
            for name in self.keep.statistics
            if STATISTICS[name].of_gradients == of_gradients
        ]


@dataclass(frozen=True)
class _Reading:
    """All pieces of a run."""

    folder: Path
    corpora: Corpora
    keep: Keep
    tokens_per_batch: int

    def start(self, model: NeuronModel, stops_early: bool, settings: Mapping[str, Any]) -> None:
        """Create the run folder, or check that it was created with the same plan."""
        corpora = self.corpora
        if (self.keep.statistics or self.keep.contexts) and not is_tidied(self.folder):
            check_that_it_fits(model, corpora, self.keep, self.tokens_per_batch, self.folder)
        plan = {
            "model": model.identity,
            "n_layers": model.n_layers,
            "d_mlp": model.d_mlp,
            **({"units": model.layout.sizes} if isinstance(model, MixtureModel) else {}),
            "corpora": corpora.fingerprint,
            "languages": list(corpora.languages),
            "n_shards": corpora.n_shards,
            "tokens": corpora.tokens(),
            "wanted": self.keep.plan(),
            "tokens_per_batch": self.tokens_per_batch,
            "stops_early": stops_early,
            "versions": artifacts.provenance()["versions"],
        }
        origin = artifacts.provenance(**settings) | {"name": model.name, "bos": corpora.begins}
        begin(self.folder, plan, origin)
        if corpora.tags:  # they change no count: other ones are noted, and none keeps what there is
            put(self.folder, "tags", dict(corpora.tags))
        if self.keep.histograms and not grid_path(self.folder).exists():
            self._grid(model).save(grid_path(self.folder), plan)

    def _grid(self, model: NeuronModel) -> Grid:
        """The bins of histograms, from the first rows of every language."""
        counter = RangeCounter(model)
        for language in self.corpora.languages:
            rows = self.corpora.rows[language]
            first = rows.shard.argsort(stable=True)
            n_rows = 1 + int((rows.length[first].cumsum(0) < SAMPLE).sum())
            sample = self._rows(language, first[:n_rows], shard=0)
            for batch in batches(sample, language, 0, self.tokens_per_batch):
                observe(model, batch, [counter])
        return counter.grid()

    def piece(self, shard: int, language: str) -> _Piece:
        number = (self.corpora.rows[language].shard == shard).nonzero().flatten()
        text = self._rows(language, number, shard)
        return _Piece(self.folder, shard, language, text, number, self.keep, self.tokens_per_batch)

    def _rows(self, language: str, number: Int64[Tensor, " row"], shard: int) -> Corpora:
        """Some rows of a language, in one shard."""
        rows = self.corpora.rows[language]
        sources = tuple(rows.source[row] for row in number.tolist())
        starts = None if rows.starts is None else rows.starts[number]
        shards = torch.full_like(rows.shard[number], shard)
        own = Rows(rows.ids[number], rows.length[number], shards, sources, starts)
        return Corpora(
            rows={language: own},
            languages=(language,),
            n_shards=self.corpora.n_shards,
            special_ids=self.corpora.special_ids,
            packed=self.corpora.packed,
        )

    def firing(self, n_shards: int) -> FiringStats:
        return read_firing(self.folder, read_plan(self.folder), n_shards)

    def stop(self, n_shards: int) -> None:
        tokens = {
            code: int(rows.length[rows.shard < n_shards].sum())
            for code, rows in self.corpora.rows.items()
        }
        text = json.dumps({"shards": n_shards, "tokens": tokens}, indent=1)
        artifacts.write_text(self.folder / "stopped.json", text + "\n")


@contextmanager
def _reader(
    reading: _Reading, model: NeuronModel, ray: Ray | ActorPool | None
) -> Iterator[Callable[[Sequence[tuple[int, str]], Any], None]]:
    """Reads pieces: one by one in this process, or on Ray, each by an actor that is free."""
    with pool_for(model, ray) as pool:

        def read_all(pieces: Sequence[tuple[int, str]], bar: Any) -> None:
            jobs = []
            for shard, language in pieces:
                piece = reading.piece(shard, language)
                if piece.path.exists():
                    piece.read(model, bar.found)
                elif pool is None:
                    piece.read(model, bar.update)
                else:  # the text is cut out when it is sent, so that memory does not hold it twice
                    read = partial(_read_piece, reading, shard, language)
                    cut = partial(_cut_out, reading, shard, language)
                    jobs.append(Job(piece.name, piece.path, read, piece.n_tokens, to_send=cut))
            if pool is not None:
                pool.do(jobs, lambda job: bar.update(job.size))

        yield read_all


def _read_piece(reading: _Reading, shard: int, language: str, model: NeuronModel) -> None:
    reading.piece(shard, language).read(model)


def _cut_out(reading: _Reading, shard: int, language: str) -> Callable[[NeuronModel], None]:
    """What an actor needs to read one piece, without the text of the others."""
    return reading.piece(shard, language).read


def _ignore(n_tokens: int) -> None:
    """Used if no progress is shown."""


def _bar(corpora: Corpora, pieces: list[tuple[int, str]], show: bool) -> tqdm:
    total = sum(
        int(corpora.rows[code].length[corpora.rows[code].shard == shard].sum())
        for shard, code in pieces
    )
    return tqdm(
        total=total,
        unit=" tokens",
        unit_scale=True,
        desc="reading",
        disable=not show,
    )

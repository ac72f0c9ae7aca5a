"""Collect statistics in one pass over text, in pieces that can be resumed and read in parallel.

A piece is one shard of one language, see `interp.counting.pieces`. Counts are integers, and the
order within a piece depends only on its rows, so one process, twenty parallel jobs and a run killed
nine times write the same bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from interp.counting.batch import Observer
from interp.counting.counters import (
    FiringCounter,
    MomentsCounter,
    SentenceMeansCounter,
    SignsCounter,
)
from interp.counting.expert_counter import MIXTURE_COUNTS, ExpertFiringCounter
from interp.counting.observe import batches, observe
from interp.counting.pieces import (
    PIECE,
    in_order,
    load_piece,
    lock_path,
    piece_path,
    read_firing,
)
from interp.counting.run import Run, TemporaryFolder
from interp.counting.stats import FiringStats
from interp.counting.tidying import is_tidied
from interp.counting.top_contexts import ContextsCounter
from interp.models.any_model import AnyModel, as_model
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.words import FiresBy, Kind
from interp.runs.folder import begin, read_plan
from interp.runs.jobs import pool_for
from interp.runs.locks import hold_lock
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.corpora import Corpora, Rows


@dataclass(frozen=True)
class Keep:
    """What a run keeps besides firing counts, which every run keeps.

    >>> keep = interp.Keep(moments=True, contexts=2)
    >>> interp.collect(model, text, keep=keep, progress=False).kept
    ('firing', 'moments', 'contexts')
    """

    moments: bool = False
    """Mean and standard deviation of act(gate) and of the neuron's output, per language."""

    sentence_means: tuple[Kind, ...] = ()
    """Sites whose units are averaged over the tokens of each row; rows must be sentences."""

    special_tokens: bool = False
    """Include special tokens, such as beginning-of-text, in sentence means, as the code of Kojima
    et al. (2024) does if the tokenizer adds them; `bos` of `read_sentences` says what rows contain.
    Activations at the first token can be so large that they dominate the mean.
    Firing counts and moments always leave special tokens out."""

    signs: FiresBy | None = None
    """Which neurons fire at the last token of each row, by the sign of the gate or of the output;
    rows must be parallel prompts."""

    signs_above: float = 0.0
    """Threshold that the gate or output must exceed to fire; affects `signs` only."""

    contexts: int = 0
    """Number of rows to keep per neuron and language: those where its gate is highest, with their
    tokens, see `interp.counting.top_contexts`."""

    def __post_init__(self) -> None:
        if self.special_tokens and not self.sentence_means:
            raise ValueError(
                "special_tokens=True affects sentence means only, and none are kept: name their "
                'sites too, such as sentence_means=("pre",).'
            )
        if self.signs_above and self.signs is None:
            raise ValueError(
                f"signs_above={self.signs_above:g} affects signs only, and none are kept: add "
                'signs="gate" or signs="output".'
            )
        if self.contexts < 0:
            raise ValueError(f"contexts is {self.contexts}; it must be 0 or more.")

    def plan(self) -> dict[str, Any]:
        """The entry in run.json. Options added later are written only if they are used, so that
        older runs can be resumed."""
        entry: dict[str, Any] = {
            "moments": self.moments,
            "sentence_means": list(self.sentence_means),
            "signs": self.signs is not None,
        }
        if self.special_tokens:
            entry["special_tokens"] = True
        if self.contexts:
            entry["contexts"] = self.contexts
        if self.signs == "output":
            entry["signs_of"] = self.signs
        if self.signs_above:
            entry["signs_above"] = self.signs_above
        return entry


FIRING_ALONE = Keep()
"""Firing counts and nothing else."""


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
    _check(corpora, keep, tokens_per_batch)
    if isinstance(model, MixtureModel) and keep != FIRING_ALONE:
        raise ValueError(MIXTURE_COUNTS.format(model.name))
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


def _check(corpora: Corpora, keep: Keep, tokens_per_batch: int) -> None:
    """Refuse incompatible options, before anything is read."""
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
            counters = self._counters(model)
            self._observe(model, counters, seen)
            tensors = {
                name: tensor for counter in counters for name, tensor in counter.tensors().items()
            }
            by_row = self.keep.sentence_means or self.keep.signs or self.keep.contexts
            sources = list(self.rows.source) if by_row else []
            labels = {"shard": self.shard, "language": self.language, "sources": sources}
            artifacts.save(self.path, PIECE, tensors, labels, {})

    def _observe(
        self, model: NeuronModel, counters: Sequence[Observer], seen: Callable[[int], object]
    ) -> None:
        for batch in batches(self.text, self.language, self.shard, self.tokens_per_batch):
            try:
                observe(model, batch, counters)
            except ValueError as error:
                done = len(Run(self.folder).status().done)
                raise ValueError(
                    f"{error} ({self.name}; {done} finished pieces are kept in {self.folder})"
                ) from None
            seen(int(batch.length.sum()))

    def _counters(
        self, model: NeuronModel
    ) -> list[
        FiringCounter
        | ExpertFiringCounter
        | MomentsCounter
        | SentenceMeansCounter
        | SignsCounter
        | ContextsCounter
    ]:
        keep, n_rows = self.keep, len(self.number)
        if isinstance(model, MixtureModel):
            return [ExpertFiringCounter(model)]
        counters: list[Any] = [FiringCounter(model)]
        if keep.moments:
            counters.append(MomentsCounter(model))
        if keep.sentence_means:
            counters.append(
                SentenceMeansCounter(model, keep.sentence_means, n_rows, keep.special_tokens)
            )
        if keep.signs:
            counters.append(SignsCounter(model, n_rows, keep.signs, keep.signs_above))
        if keep.contexts:
            counters.append(ContextsCounter(model, keep.contexts, self.rows, self.number))
        return counters


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

    def piece(self, shard: int, language: str) -> _Piece:
        rows = self.corpora.rows[language]
        number = (rows.shard == shard).nonzero().flatten()
        sources = tuple(rows.source[row] for row in number.tolist())
        starts = None if rows.starts is None else rows.starts[number]
        own = Rows(rows.ids[number], rows.length[number], rows.shard[number], sources, starts)
        text = Corpora(
            rows={language: own},
            languages=(language,),
            n_shards=self.corpora.n_shards,
            special_ids=self.corpora.special_ids,
            packed=self.corpora.packed,
        )
        return _Piece(self.folder, shard, language, text, number, self.keep, self.tokens_per_batch)

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
                if pool is None or piece.path.exists():
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

"""One pass over text, in pieces that survive a kill and may be read by anyone, in any order.

A piece is one shard of one language, see `run_folder`. Counts are integers and the order inside a
piece depends on its rows alone, so one process, twenty jobs and a run that was killed nine times
leave the same bytes behind.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from interp.counting.counters import (
    FiringCounter,
    MomentsCounter,
    SentenceMeansCounter,
    SignsCounter,
)
from interp.counting.observe import Observer, batches, observe
from interp.counting.run import (
    PIECE,
    Progress,
    in_order,
    load_piece,
    look,
    merge,
    piece_path,
    read_firing,
    sign_path,
)
from interp.counting.stats import FiringStats
from interp.counting.top_contexts import ContextsCounter
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.words import Kind, Source
from interp.runs.folder import begin
from interp.runs.jobs import hired
from interp.runs.locks import sign_of_life
from interp.runs.ray import Crew, Job, Ray
from interp.text.corpora import Corpora, Rows


@dataclass(frozen=True)
class Wanted:
    """What a run keeps, beside the counts of firing that every run keeps.

    >>> wanted = interp.Wanted(moments=True, contexts=2)
    >>> _ = interp.collect(model, text, folder, wanted=wanted, progress=False)
    >>> sorted(path.name for path in folder.glob("*.safetensors"))
    ['contexts.safetensors', 'firing.safetensors', 'moments.safetensors']
    """

    moments: bool = False
    """Mean and spread of act(gate) and of the neuron's output, per language."""

    sentence_means: tuple[Kind, ...] = ()
    """Sites whose units are averaged over the tokens of each row; for rows that are sentences."""

    special_tokens: bool = False
    """Let special tokens in a row, such as beginning-of-text, count in its sentence means, as the
    code of Kojima et al. (2024) does wherever the tokenizer adds some. They are in a row only if
    the text was read so (bos="document"). What a first token gives can be far larger than the rest,
    and then it decides the mean. Counts of firing and moments leave special tokens out."""

    signs: bool = False
    """Which neurons fire at the last token of each row; for rows that are parallel prompts."""

    signs_of: Source = "gate"
    """By what they fire; of signs alone."""

    signs_above: float = 0.0
    """What that must exceed; of signs alone."""

    contexts: int = 0
    """For each neuron, the so many rows of each language in which its gate is highest, see
    `interp.counting.top_contexts`; their tokens are kept too."""


def collect(
    model: NeuronModel,
    corpora: Corpora,
    out: Path | str | None = None,
    *,
    wanted: Wanted | None = None,
    tokens_per_batch: int = 4096,
    stop_when: Callable[[FiringStats], bool] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    ray: Ray | Crew | bool = False,
) -> FiringStats:
    """How often every neuron fires in every language; goes on where `out` was left.

    `out` also receives what else is wanted: moments.safetensors, signs.safetensors,
    contexts.safetensors, and the pieces that `open_sentence_means(out)` reads. `stop_when` sees the
    counts after each round of shards (one of every language) and ends the run by saying True; the
    shards come in random order, so what was read is a fair sample of the text. `settings` are
    stored with every result. With `ray`, actors read the pieces, on this machine or, as `Ray` says,
    on a cluster, whose nodes must share `out` and have this version of the library.

    >>> counted = interp.collect(model, text, folder, progress=False)
    >>> counted.tokens.sum(0).tolist()
    [640, 640, 640]
    >>> interp.FiringStats.load(folder / "firing.safetensors").n_shards
    5
    """
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            stats = collect(
                model,
                corpora,
                folder,
                wanted=wanted,
                tokens_per_batch=tokens_per_batch,
                stop_when=stop_when,
                settings=settings,
                progress=progress,
                ray=ray,
            )
            # The folder goes, and what is left there with it.
            return FiringStats(fired=stats.fired, tokens=stats.tokens, languages=stats.languages)
    run = _open(Path(out), model, corpora, wanted or Wanted(), tokens_per_batch)
    run.start(stops_early=stop_when is not None, settings=settings or {})
    pieces = in_order(corpora.n_shards, corpora.languages)
    # Whether to stop is asked after each round; where nobody asks, all is one round.
    per_round = len(corpora.languages) if stop_when is not None else len(pieces)
    bar = _bar(corpora, pieces, progress)
    with _reader(run, Ray() if ray is True else ray or None) as read:
        for begin in range(0, len(pieces), per_round):
            read(pieces[begin : begin + per_round], bar)
            n_shards = (begin + per_round) // len(corpora.languages)
            if stop_when is not None and stop_when(run.firing(n_shards)):
                run.stop(n_shards)
                break
    bar.close()
    return merge(out)


def collect_part(
    model: NeuronModel,
    corpora: Corpora,
    out: Path | str,
    part: tuple[int, int],
    *,
    wanted: Wanted | None = None,
    tokens_per_batch: int = 4096,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Progress:
    """Read part i of n of the pieces, counted from 1; whoever runs the other parts may do so later.

    Writes pieces alone: `merge(out)` makes the results once all parts are there.

    >>> for index in (1, 2, 3):
    ...     state = interp.collect_part(model, text, folder, (index, 3), progress=False)
    >>> len(state.done), state.missing
    (15, ())
    >>> interp.merge(folder).n_shards
    5
    """
    index, n = part
    if not 1 <= index <= n:
        raise ValueError(f"There is no part {index} of {n}: parts are counted from 1 to {n}.")
    run = _open(Path(out), model, corpora, wanted or Wanted(), tokens_per_batch)
    run.start(stops_early=False, settings=settings or {})
    pieces = in_order(corpora.n_shards, corpora.languages)[index - 1 :: n]
    bar = _bar(corpora, pieces, progress)
    for shard, language in pieces:
        run.read(shard, language, bar)
    bar.close()
    return look(out)


# ---------------------------------------------------------------- one run


@dataclass(frozen=True)
class _Run:
    folder: Path
    model: NeuronModel
    corpora: Corpora
    wanted: Wanted
    tokens_per_batch: int

    def start(self, stops_early: bool, settings: Mapping[str, Any]) -> None:
        """Begin the folder, or make sure that it was begun with the very same things."""
        model, corpora = self.model, self.corpora
        plan = {
            "model": model.identity,
            "n_layers": model.n_layers,
            "d_mlp": model.d_mlp,
            "corpora": corpora.fingerprint,
            "languages": list(corpora.languages),
            "n_shards": corpora.n_shards,
            "tokens": corpora.tokens(),
            "wanted": {
                "moments": self.wanted.moments,
                "sentence_means": list(self.wanted.sentence_means),
                "signs": self.wanted.signs,
                # Named only where it is asked for, so that older runs can go on.
                **({"special_tokens": True} if self.wanted.special_tokens else {}),
                **({"contexts": self.wanted.contexts} if self.wanted.contexts else {}),
                **({"signs_of": self.wanted.signs_of} if self.wanted.signs_of != "gate" else {}),
                **({"signs_above": self.wanted.signs_above} if self.wanted.signs_above else {}),
            },
            "tokens_per_batch": self.tokens_per_batch,
            "stops_early": stops_early,
            "versions": artifacts.provenance()["versions"],
        }
        also = artifacts.provenance(**settings) | {"name": model.name}
        begin(self.folder, plan, also)

    def read(self, shard: int, language: str, bar: Any) -> None:
        """Read one piece, unless its file is there and whole."""
        path = piece_path(self.folder, shard, language)
        rows = self.corpora.rows[language]
        mine = (rows.shard == shard).nonzero().flatten()
        if path.exists():
            load_piece(path)
            bar.update(self.n_tokens(shard, language))
            return
        with sign_of_life(sign_path(self.folder, shard, language)):
            self._read(shard, language, rows, mine, bar)

    def _read(self, shard: int, language: str, rows: Rows, mine: Tensor, bar: Any) -> None:
        path = piece_path(self.folder, shard, language)
        counters = self._counters(rows, mine)
        observers: list[Observer] = list(counters)
        for batch in batches(self.corpora, language, shard, self.tokens_per_batch):
            try:
                observe(self.model, batch, observers)
            except ValueError as error:
                done = len(look(self.folder).done)
                raise ValueError(
                    f"{error} (shard {shard} of {language}; {done} finished pieces are kept in "
                    f"{self.folder})"
                ) from None
            bar.update(int(batch.length.sum()))
        tensors = {name: each for counter in counters for name, each in counter.tensors().items()}
        labels = {"shard": shard, "language": language, "sources": []}
        if self.wanted.sentence_means or self.wanted.signs or self.wanted.contexts:
            labels["sources"] = [rows.source[row] for row in mine.tolist()]
        artifacts.save(path, PIECE, tensors, labels, {})

    def _counters(
        self, rows: Rows, mine: Tensor
    ) -> list[
        FiringCounter | MomentsCounter | SentenceMeansCounter | SignsCounter | ContextsCounter
    ]:
        counters: list[Any] = [FiringCounter(self.model)]
        n_rows = len(mine)
        if self.wanted.moments:
            counters.append(MomentsCounter(self.model))
        if self.wanted.sentence_means:
            kinds, special = self.wanted.sentence_means, self.wanted.special_tokens
            counters.append(SentenceMeansCounter(self.model, kinds, n_rows, special))
        if self.wanted.signs:
            source, threshold = self.wanted.signs_of, self.wanted.signs_above
            counters.append(SignsCounter(self.model, n_rows, source, threshold))
        if self.wanted.contexts:
            counters.append(ContextsCounter(self.model, self.wanted.contexts, rows, mine))
        return counters

    def n_tokens(self, shard: int, language: str) -> int:
        """As the progress bar counts them, special ones included."""
        rows = self.corpora.rows[language]
        return int(rows.length[rows.shard == shard].sum())

    def firing(self, n_shards: int) -> FiringStats:
        return read_firing(self.folder, self.corpora.languages, n_shards)

    def stop(self, n_shards: int) -> None:
        tokens = {
            code: int(rows.length[rows.shard < n_shards].sum())
            for code, rows in self.corpora.rows.items()
        }
        text = json.dumps({"shards": n_shards, "tokens": tokens}, indent=1)
        artifacts.write_text(self.folder / "stopped.json", text + "\n")


def _open(
    folder: Path, model: NeuronModel, corpora: Corpora, wanted: Wanted, tokens_per_batch: int
) -> _Run:
    """A run of these things in this folder, refused where they do not go together."""
    if wanted.sentence_means and corpora.packed:
        raise ValueError(
            "Sentence means need rows that are sentences, and these are packed blocks: read the "
            "text with read_sentences."
        )
    if wanted.special_tokens and not wanted.sentence_means:
        raise ValueError(
            "Special tokens count in sentence means alone, and none are kept: name their sites too."
        )
    if tokens_per_batch < 1:
        raise ValueError(
            f"tokens_per_batch is {tokens_per_batch}; it must be 1 or more, such as 4096."
        )
    if wanted.contexts < 0:
        raise ValueError(f"{wanted.contexts} contexts cannot be kept: ask for one or more.")
    if (wanted.signs_of != "gate" or wanted.signs_above) and not wanted.signs:
        raise ValueError("It is said by what neurons fire, and no signs are kept: ask for them.")
    if wanted.signs and corpora.packed:
        raise ValueError(
            "Signs at the last token need rows that are prompts, and these are packed blocks: "
            "read them with read_prompts and prompt_rows."
        )
    return _Run(folder, model, corpora, wanted, tokens_per_batch)


@contextmanager
def _reader(
    run: _Run, ray: Ray | Crew | None
) -> Iterator[Callable[[Sequence[tuple[int, str]], Any], None]]:
    """Reads pieces: here, one after the other, or on Ray, each by whoever is free."""
    if ray is None:

        def read_here(pieces: Sequence[tuple[int, str]], bar: Any) -> None:
            for shard, language in pieces:
                run.read(shard, language, bar)

        yield read_here
        return

    with hired(run.model, ray) as crew:
        assert crew is not None

        def hand_out(pieces: Sequence[tuple[int, str]], bar: Any) -> None:
            paths = {piece_path(run.folder.resolve(), *piece): piece for piece in pieces}
            for path, piece in paths.items():
                if path.exists():
                    run.read(*piece, bar)
            jobs = [
                Job(f"shard {piece[0]} of {piece[1]}", path, partial(_to_send, run, *piece))
                for path, piece in paths.items()
                if not path.exists()
            ]
            crew.do(jobs, lambda job: bar.update(run.n_tokens(*paths[job.path])))

        yield hand_out


def _to_send(run: _Run, shard: int, language: str) -> Callable[[NeuronModel], None]:
    """What an actor needs for one piece, which is not the text of all the others."""
    text, rows = run.corpora, run.corpora.rows[language]
    mine = (rows.shard == shard).nonzero().flatten()
    sources = tuple(rows.source[row] for row in mine.tolist())
    sent = Rows(rows.ids[mine], rows.length[mine], rows.shard[mine], sources)
    part = Corpora({language: sent}, (language,), text.n_shards, text.special_ids, text.packed)
    place = run.folder.resolve()
    return partial(_read_there, place, part, mine, len(rows.ids), run.wanted, run.tokens_per_batch)


def _read_there(
    folder: Path,
    part: Corpora,
    mine: Int64[Tensor, " row"],
    n_rows: int,
    wanted: Wanted,
    tokens_per_batch: int,
    model: NeuronModel,
) -> None:
    """Runs in an actor; returns when the piece is on disk."""
    language, shard = part.languages[0], int(part.rows[part.languages[0]].shard[0])
    # Rows keep their numbers, which results may hold: those of other shards are there, and empty.
    sent, sources = part.rows[language], [""] * n_rows
    ids = sent.ids.new_zeros(n_rows, sent.ids.shape[1])
    length, shards = torch.ones(n_rows).long(), torch.full((n_rows,), (shard + 1) % part.n_shards)
    ids[mine], length[mine], shards[mine] = sent.ids, sent.length, sent.shard
    for row, source in zip(mine.tolist(), sent.source, strict=True):
        sources[row] = source
    text = replace(part, rows={language: Rows(ids, length, shards, tuple(sources))})
    _Run(folder, model, text, wanted, tokens_per_batch).read(shard, language, tqdm(disable=True))


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
        delay=2,
        leave=False,
    )

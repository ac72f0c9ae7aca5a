"""One pass over text, in pieces that survive a kill and may be read by anyone, in any order.

A piece is one shard of one language. It is a file, written whole or not at all, and the folder of
files is the ledger: what is there is done. Counts are integers and the order inside a piece depends
on its rows alone, so one process, twenty jobs and a run that was killed nine times leave the same
bytes behind.
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
from tqdm.auto import tqdm

from interp import artifacts
from interp.activations import Observer, batches, observe
from interp.cluster import Crew, Job, Ray, clear_signs, sign_of_life, who_is_at
from interp.contexts import ContextsCounter, merge_contexts
from interp.corpora import Corpora, Rows
from interp.model import Kind, NeuronModel, load
from interp.stats import (
    ActivationMoments,
    FiringCounter,
    FiringSigns,
    FiringStats,
    MomentsCounter,
    SentenceMeans,
    SentenceMeansCounter,
    SignsCounter,
    Source,
)

PIECE = "Piece"
SIGNS_OF_LIFE = "running"


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
    `interp.contexts`; their tokens are kept too."""


@dataclass(frozen=True)
class Progress:
    """How far a folder is."""

    done: tuple[tuple[int, str], ...]
    """Finished pieces, as (shard, language)."""

    missing: tuple[tuple[int, str], ...]
    """Pieces still to be read."""

    stopped_after: int | None
    """Shards per language after which a stopping rule ended the run; None: it reads all."""


@dataclass(frozen=True)
class Survey:
    """What became of every piece of a run; pieces are named as (shard, language).

    >>> _ = interp.collect(model, text, folder, progress=False)
    >>> found = interp.survey(folder)
    >>> len(found.done), found.running, found.missing, found.bad
    (15, {}, (), {})
    """

    done: tuple[tuple[int, str], ...]
    """Finished, and whole by their checksum."""

    running: dict[tuple[int, str], str]
    """Being read now, and by which process; only where file locks reach, see `cluster`."""

    missing: tuple[tuple[int, str], ...]
    """Nobody is seen reading them."""

    bad: dict[tuple[int, str], str]
    """There, but not whole, and what is wrong with them; delete the files."""


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
    ray: Ray | bool = False,
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
            return collect(
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
    run = _open(Path(out), model, corpora, wanted or Wanted(), tokens_per_batch)
    run.start(stops_early=stop_when is not None, settings=settings or {})
    pieces = _order(corpora.n_shards, corpora.languages)
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
    pieces = _order(corpora.n_shards, corpora.languages)[index - 1 :: n]
    bar = _bar(corpora, pieces, progress)
    for shard, language in pieces:
        run.read(shard, language, bar)
    bar.close()
    return look(out)


def look(out: Path | str) -> Progress:
    """Which pieces of a run are finished, by their files.

    >>> _ = interp.collect_part(model, text, folder, (1, 3), progress=False)
    >>> state = interp.look(folder)
    >>> len(state.done), len(state.missing), state.missing[0]
    (5, 10, (0, 'de'))
    """
    folder = Path(out)
    plan = artifacts.read_plan(folder)
    stop = folder / "stopped.json"
    try:
        stopped_after = int(json.loads(stop.read_text())["shards"]) if stop.exists() else None
        n_shards = plan["n_shards"] if stopped_after is None else stopped_after
        every = _order(n_shards, plan["languages"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{folder} is damaged: its run.json or stopped.json says nothing that can be read "
            f"({error}). Delete the one that is wrong and run the same again; pieces are kept."
        ) from None
    done = tuple(piece for piece in every if _piece_path(folder, *piece).exists())
    return Progress(done, tuple(piece for piece in every if piece not in done), stopped_after)


def survey(out: Path | str) -> Survey:
    """What became of every piece of a run; reads each finished one to check it.

    >>> _ = interp.collect_part(model, text, folder, (1, 15), progress=False)
    >>> found = interp.survey(folder)
    >>> found.done, found.bad, len(found.missing)
    (((0, 'en'),), {}, 14)
    """
    folder, state = Path(out), look(out)
    bad: dict[tuple[int, str], str] = {}
    for piece in state.done:
        try:
            _load_piece(_piece_path(folder, *piece))
        except (ValueError, FileNotFoundError) as error:
            bad[piece] = str(error)
    seen = {piece: who_is_at(_sign_path(folder, *piece)) for piece in state.missing}
    running = {piece: who for piece, who in seen.items() if who is not None}
    return Survey(
        tuple(piece for piece in state.done if piece not in bad),
        running,
        tuple(piece for piece in state.missing if piece not in running),
        bad,
    )


def merge(out: Path | str) -> FiringStats:
    """Put the pieces of a finished run together; the same pieces give the same bytes.

    >>> _ = interp.collect_part(model, text, folder, (1, 1), progress=False)
    >>> interp.merge(folder).tokens.sum(0).tolist()
    [640, 640, 640]
    >>> (folder / "firing.safetensors").exists()
    True
    """
    folder = Path(out)
    plan, state = artifacts.read_plan(folder), look(folder)
    if state.missing:
        shard, language = state.missing[0]
        raise ValueError(
            f"{folder} has {len(state.done)} of {len(state.done) + len(state.missing)} pieces; "
            f"the first that is missing is shard {shard} of {language}. Run the same `interp "
            "collect` again, or the parts that did not finish."
        )
    languages = tuple(plan["languages"])
    n_shards = plan["n_shards"] if state.stopped_after is None else state.stopped_after
    origin = plan | {"shards_read": n_shards}
    stats = _firing(folder, languages, n_shards)
    if plan["wanted"]["moments"]:
        pieces = _pieces(folder, languages, n_shards)
        _moments(pieces, languages).save(folder / "moments.safetensors", origin)
    if plan["wanted"]["signs"]:
        pieces = _pieces(folder, languages, n_shards)
        _signs(pieces, languages, plan).save(folder / "signs.safetensors", origin)
    if plan["wanted"].get("contexts"):
        pieces = _pieces(folder, languages, n_shards)
        parts = ((row, piece.tensors, piece.labels["sources"]) for _, row, piece in pieces)
        merge_contexts(parts, languages).save(folder / "contexts.safetensors", origin)
    stats.save(folder / "firing.safetensors", origin)
    clear_signs(folder / SIGNS_OF_LIFE)
    return stats


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
        artifacts.begin(self.folder, plan, also)

    def read(self, shard: int, language: str, bar: Any) -> None:
        """Read one piece, unless its file is there and whole."""
        path = _piece_path(self.folder, shard, language)
        rows = self.corpora.rows[language]
        mine = (rows.shard == shard).nonzero().flatten()
        if path.exists():
            _load_piece(path)
            bar.update(self.n_tokens(shard, language))
            return
        with sign_of_life(_sign_path(self.folder, shard, language)):
            self._read(shard, language, rows, mine, bar)

    def _read(self, shard: int, language: str, rows: Rows, mine: Tensor, bar: Any) -> None:
        path = _piece_path(self.folder, shard, language)
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
        return _firing(self.folder, self.corpora.languages, n_shards)

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
    run: _Run, ray: Ray | None
) -> Iterator[Callable[[Sequence[tuple[int, str]], Any], None]]:
    """Reads pieces: here, one after the other, or on Ray, each by whoever is free."""
    if ray is None:

        def read_here(pieces: Sequence[tuple[int, str]], bar: Any) -> None:
            for shard, language in pieces:
                run.read(shard, language, bar)

        yield read_here
        return

    place = Path(run.model.name)
    name = str(place.resolve()) if place.is_dir() else run.model.name  # actors live elsewhere
    opens = ray.open or partial(load, name, attention=run.model.attention, dtype=run.model.dtype)
    with Crew(ray, partial(_open_the_same, opens, run.model.identity)) as crew:

        def hand_out(pieces: Sequence[tuple[int, str]], bar: Any) -> None:
            paths = {_piece_path(run.folder.resolve(), *piece): piece for piece in pieces}
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


def _open_the_same(opens: Callable[[], NeuronModel], identity: Mapping[str, str]) -> NeuronModel:
    """Runs in an actor: the model, refused if it is not the one that the run was begun with."""
    model = opens()
    here = model.identity
    if differ := [key for key in identity if here.get(key) != identity[key]]:
        key = differ[0]
        raise ValueError(
            f"An actor opened another model than yours ({key} was {identity[key]}, there it is "
            f"{here.get(key)}): give Ray(open=...) a function that opens yours, and the same "
            "versions of the libraries to all nodes."
        )
    return model


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


def _order(n_shards: int, languages: Sequence[str]) -> list[tuple[int, str]]:
    """All pieces as they are read: a round of every language, shard by shard."""
    return [(shard, language) for shard in range(n_shards) for language in languages]


def _piece_path(folder: Path, shard: int, language: str) -> Path:
    return folder / "pieces" / f"{shard:04d}-{language}.safetensors"


def _sign_path(folder: Path, shard: int, language: str) -> Path:
    return folder / SIGNS_OF_LIFE / f"{shard:04d}-{language}"


def _load_piece(path: Path) -> artifacts.Artifact:
    try:
        return artifacts.load(path, PIECE)
    except ValueError as error:
        raise ValueError(
            f"{error} Delete that file and run the same `interp collect` again: only this piece is "
            "read again."
        ) from None


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


# ---------------------------------------------------------------- merging


def _pieces(
    folder: Path, languages: tuple[str, ...], n_shards: int
) -> Iterator[tuple[int, int, artifacts.Artifact]]:
    for shard, language in _order(n_shards, languages):
        yield shard, languages.index(language), _load_piece(_piece_path(folder, shard, language))


def _firing(folder: Path, languages: tuple[str, ...], n_shards: int) -> FiringStats:
    fired: Tensor | None = None
    tokens = torch.zeros(n_shards, len(languages), dtype=torch.int64)
    for shard, row, piece in _pieces(folder, languages, n_shards):
        counts = piece.tensors["firing.fired"]
        if fired is None:
            fired = torch.zeros(n_shards, len(languages), *counts.shape, dtype=torch.int64)
        fired[shard, row] = counts
        tokens[shard, row] = piece.tensors["firing.tokens"][0]
    assert fired is not None
    return FiringStats(fired, tokens, languages)


def _moments(
    pieces: Iterator[tuple[int, int, artifacts.Artifact]], languages: tuple[str, ...]
) -> ActivationMoments:
    sums: Tensor | None = None
    tokens = torch.zeros(len(languages), dtype=torch.int64)
    for _, row, piece in pieces:
        added = piece.tensors["moments.sums"]
        if sums is None:
            n_moments, n_layers, d_mlp = added.shape
            sums = torch.zeros(n_moments, len(languages), n_layers, d_mlp, dtype=torch.float64)
        sums[:, row] += added
        tokens[row] += piece.tensors["moments.tokens"][0]
    assert sums is not None
    return ActivationMoments(sums, tokens, languages)


def _signs(
    pieces: Iterator[tuple[int, int, artifacts.Artifact]],
    languages: tuple[str, ...],
    plan: Mapping[str, Any],
) -> FiringSigns:
    found: dict[str, dict[int, Tensor]] = {}
    for _, row, piece in pieces:
        for prompt, bits in zip(piece.labels["sources"], piece.tensors["signs.bits"], strict=True):
            found.setdefault(prompt, {})[row] = bits
    partial = [prompt for prompt, rows in found.items() if len(rows) < len(languages)]
    if partial:
        raise ValueError(
            f"Prompt {partial[0]} is not there in all of {', '.join(languages)}: parallel prompts "
            "have the same ids in every language."
        )
    prompts = tuple(sorted(found))
    bits = torch.stack(
        [torch.stack([found[p][row] for row in range(len(languages))]) for p in prompts]
    )
    source = plan["wanted"].get("signs_of", "gate")
    threshold = plan["wanted"].get("signs_above", 0.0)
    return FiringSigns(bits, prompts, languages, plan["d_mlp"], source, threshold)


def open_sentence_means(out: Path | str) -> SentenceMeans:
    """The sentence means of a finished run, to be read one site at a time.

    >>> lines = {"en": ["It is late.", "It is very late by now."]}
    >>> rows = interp.read_sentences(lines, ["en"], model, n_shards=1)
    >>> wanted = interp.Wanted(sentence_means=("post",))
    >>> _ = interp.collect(model, rows, folder, wanted=wanted, progress=False)
    >>> interp.open_sentence_means(folder).read("post", 0).shape
    torch.Size([2, 2048])
    """
    folder = Path(out)
    plan, state = artifacts.read_plan(folder), look(folder)
    if not plan["wanted"]["sentence_means"]:
        raise ValueError(
            f"{folder} kept no sentence means: run `interp collect` with --sentences and their "
            "sites, such as --sentences pre, into another folder."
        )
    if state.missing:
        raise ValueError(f"{folder} misses {len(state.missing)} pieces: finish the run first.")
    paths = [_piece_path(folder, shard, code) for shard, code in state.done]
    rows = [len(_load_piece(path).labels["sources"]) for path in paths]
    languages = tuple(plan["languages"])
    labels = [
        languages.index(code)
        for (_, code), n in zip(state.done, rows, strict=True)
        for _ in range(n)
    ]
    return SentenceMeans(
        tuple(paths), torch.tensor(labels), languages, tuple(plan["wanted"]["sentence_means"])
    )

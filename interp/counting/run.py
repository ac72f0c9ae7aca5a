"""The folder of a run: which pieces are there, and what they are when they are put together.

A piece is one shard of one language. It is a file, written whole or not at all, and the folder of
files is the ledger: what is there is done.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.counting.stats import (
    ActivationMoments,
    FiringSigns,
    FiringStats,
    SentenceMeans,
    read_counts,
)
from interp.counting.top_contexts import merge_contexts
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.runs.folder import read_plan
from interp.runs.locks import clear_signs, who_is_at

PIECE = "Piece"
SIGNS_OF_LIFE = "running"
_MOST = 1_000_000  # pieces; a file that speaks of more is damaged, and counting them would not end


@dataclass(frozen=True)
class Progress:
    """How far a folder is."""

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

    def __repr__(self) -> str:
        names = ("done", "running", "missing", "bad")
        counts = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in names)
        return f"Survey(pieces: {counts})"


def look(out: Path | str) -> Progress:
    """Which pieces of a run are finished, by their files.

    >>> _ = interp.collect_part(model, text, folder, (1, 3), progress=False)
    >>> state = interp.look(folder)
    >>> len(state.done), len(state.missing), state.missing[0]
    (5, 10, (0, 'de'))
    """
    folder = Path(out)
    plan = read_plan(folder)
    stop = folder / "stopped.json"
    try:
        stopped_after = int(json.loads(stop.read_text())["shards"]) if stop.exists() else None
        n_shards = plan["n_shards"] if stopped_after is None else stopped_after
        if n_shards * len(plan["languages"]) > _MOST:
            raise ValueError(f"{len(plan['languages'])} languages in {n_shards:,} shards")
        every = in_order(n_shards, plan["languages"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{folder} is damaged: its run.json or stopped.json says nothing that can be read "
            f"({error}). Delete the one that is wrong and run the same again; pieces are kept."
        ) from None
    done = tuple(piece for piece in every if piece_path(folder, *piece).exists())
    there = set(done)
    return Progress(done, tuple(piece for piece in every if piece not in there), stopped_after)


def survey(out: Path | str) -> Survey:
    """What became of every piece of a run; reads each finished one to check it.

    >>> _ = interp.collect_part(model, text, folder, (1, 15), progress=False)
    >>> found = interp.survey(folder)
    >>> found.done, found.bad, len(found.missing)
    (((0, 'en'),), {}, 14)
    """
    folder, state = Path(out), look(out)
    bad: dict[tuple[int, str], str] = {}
    for piece in tqdm(state.done, "checking", unit="piece", delay=2, leave=False):
        try:
            load_piece(piece_path(folder, *piece))
        except (ValueError, FileNotFoundError) as error:
            bad[piece] = str(error)
    seen = {piece: who_is_at(sign_path(folder, *piece)) for piece in state.missing}
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
    plan, state = read_plan(folder), look(folder)
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
    path = folder / "firing.safetensors"
    read_firing(folder, languages, n_shards).save(path, origin)
    clear_signs(folder / SIGNS_OF_LIFE)
    return FiringStats.load(path)


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
    plan, state = read_plan(folder), look(folder)
    if not plan["wanted"]["sentence_means"]:
        raise ValueError(
            f"{folder} kept no sentence means: run `interp collect` with --sentences and their "
            "sites, such as --sentences pre, into another folder."
        )
    if state.missing:
        raise ValueError(f"{folder} misses {len(state.missing)} pieces: finish the run first.")
    paths = [piece_path(folder, shard, code) for shard, code in state.done]
    rows = [len(load_piece(path).labels["sources"]) for path in paths]
    languages = tuple(plan["languages"])
    labels = [
        languages.index(code)
        for (_, code), n in zip(state.done, rows, strict=True)
        for _ in range(n)
    ]
    return SentenceMeans(
        pieces=tuple(paths),
        labels=torch.tensor(labels),
        languages=languages,
        kinds=tuple(plan["wanted"]["sentence_means"]),
    )


# ---------------------------------------------------------------- pieces


def in_order(n_shards: int, languages: Sequence[str]) -> list[tuple[int, str]]:
    """All pieces as they are read: a round of every language, shard by shard."""
    return [(shard, language) for shard in range(n_shards) for language in languages]


def piece_path(folder: Path, shard: int, language: str) -> Path:
    return folder / "pieces" / f"{shard:04d}-{language}.safetensors"


def sign_path(folder: Path, shard: int, language: str) -> Path:
    return folder / SIGNS_OF_LIFE / f"{shard:04d}-{language}"


def load_piece(path: Path) -> artifacts.Artifact:
    try:
        return artifacts.load(path, PIECE)
    except ValueError as error:
        raise ValueError(
            f"{error} Delete that file and run the same `interp collect` again: only this piece is "
            "read again."
        ) from None


# ---------------------------------------------------------------- putting them together


def _pieces(
    folder: Path, languages: tuple[str, ...], n_shards: int
) -> Iterator[tuple[int, int, artifacts.Artifact]]:
    order = in_order(n_shards, languages)
    for shard, language in tqdm(order, "merging", unit="piece", delay=2, leave=False):
        yield shard, languages.index(language), load_piece(piece_path(folder, shard, language))


def read_firing(folder: Path, languages: tuple[str, ...], n_shards: int) -> FiringStats:
    """Counts of the first shards, from their pieces, which are read again and again if the counts
    are too many for the memory."""
    tokens = torch.zeros(n_shards, len(languages), dtype=torch.int64)
    shape: Sequence[int] = ()
    for shard, language in in_order(n_shards, languages):
        n, shape = _outline(piece_path(folder, shard, language))
        tokens[shard, languages.index(language)] = n

    def read(shard: int, row: int) -> Tensor:
        return load_piece(piece_path(folder, shard, languages[row])).tensors["firing.fired"]

    return read_counts(read, tokens, languages, shape)


def _outline(path: Path) -> tuple[int, list[int]]:
    """Tokens of a piece, and layers and neurons; whoever reads the counts checks the piece."""
    try:
        with safe_open(path, framework="pt") as file:
            shape = file.get_slice("firing.fired").get_shape()
            return int(file.get_tensor("firing.tokens")[0]), shape
    except (SafetensorError, OSError):
        load_piece(path)  # says what is wrong with it
        raise


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
    return ActivationMoments(sums=sums, tokens=tokens, languages=languages)


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
    return FiringSigns(
        bits=bits,
        prompts=prompts,
        languages=languages,
        d_mlp=plan["d_mlp"],
        source=source,
        threshold=threshold,
    )

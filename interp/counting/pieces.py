"""The pieces of a run, and how they are merged into its results.

A piece is one shard of one language, in a file that is written atomically. A piece is finished if
and only if its file exists.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.counting.expert_tokens import ExpertTokens
from interp.counting.parts import Parts
from interp.counting.signs import FiringSigns
from interp.counting.statistics import STATISTICS
from interp.counting.stats import FiringStats, read_counts
from interp.counting.top_contexts import merge_contexts
from interp.models.units import UnitLayout
from interp.results import artifacts
from interp.results.bars import tqdm

PIECE = "Piece"
LOCK_FOLDER = "running"


def in_order(n_shards: int, languages: Sequence[str]) -> list[tuple[int, str]]:
    """All pieces in reading order: shard by shard, and all languages of each shard."""
    return [(shard, language) for shard in range(n_shards) for language in languages]


def piece_path(folder: Path, shard: int, language: str) -> Path:
    return folder / "pieces" / f"{shard:04d}-{language}.safetensors"


def lock_path(folder: Path, shard: int, language: str) -> Path:
    return folder / LOCK_FOLDER / f"{shard:04d}-{language}"


def grid_path(folder: Path) -> Path:
    """Where the bins of a run's histograms are."""
    return folder / "grid.safetensors"


def load_piece(path: Path) -> artifacts.Artifact:
    try:
        return artifacts.load(path, PIECE)
    except ValueError as error:
        raise ValueError(
            f"{error} Delete that file and run the same `interp collect` again: only this piece is "
            "read again."
        ) from None


# ---------------------------------------------------------------- merging


def write_results(folder: Path, plan: Mapping[str, Any], n_shards: int) -> None:
    """Write the results that the plan asks for, from the pieces of the first `n_shards` shards."""
    languages, wanted, layout = tuple(plan["languages"]), plan["wanted"], _layout(plan)
    origin = {**plan, "shards_read": n_shards}
    for name, statistic in STATISTICS.items():
        if wanted.get(name):
            pieces = _pieces(folder, languages, n_shards)
            tensors = ((shard, row, piece.tensors) for shard, row, piece in pieces)
            # Without a name, so that memory is free for the next.
            statistic.of(Parts(languages, n_shards, tensors, layout)).save(
                folder / f"{name}.safetensors", origin
            )
    if wanted["signs"]:
        pieces = _pieces(folder, languages, n_shards)
        _signs(pieces, languages, plan).save(folder / "signs.safetensors", origin)
    if wanted.get("contexts"):
        pieces = _pieces(folder, languages, n_shards)
        parts = ((row, piece.tensors, piece.labels["sources"]) for _, row, piece in pieces)
        contexts = merge_contexts(parts, languages, layout)
        contexts.save(folder / "contexts.safetensors", origin)
    read_firing(folder, plan, n_shards).save(folder / "firing.safetensors", origin)


def _pieces(
    folder: Path, languages: tuple[str, ...], n_shards: int
) -> Iterator[tuple[int, int, artifacts.Artifact]]:
    order = in_order(n_shards, languages)
    for shard, language in tqdm(order, "merging", unit="piece"):
        yield shard, languages.index(language), load_piece(piece_path(folder, shard, language))


def read_firing(folder: Path, plan: Mapping[str, Any], n_shards: int) -> FiringStats:
    """Firing counts of the first `n_shards` shards; if they are too large for memory, their pieces
    are read again on every use."""
    languages = tuple(plan["languages"])
    layout = _layout(plan)
    tokens = torch.zeros(n_shards, len(languages), dtype=torch.int64)
    routed: list[Tensor] = []
    shape: Sequence[int] = ()
    for shard, language in in_order(n_shards, languages):
        path = piece_path(folder, shard, language)
        n, shape = _outline(path)
        tokens[shard, languages.index(language)] = n
        if layout is not None:
            routed.append(load_piece(path).tensors["firing.routed"])

    def read(shard: int, row: int) -> Tensor:
        return load_piece(piece_path(folder, shard, languages[row])).tensors["firing.fired"]

    experts = None
    if layout is not None:
        by_piece = rearrange(
            routed,
            "(shard language) layer expert -> shard language layer expert",
            shard=n_shards,
        )
        experts = ExpertTokens(layout, by_piece, tokens)
    fires_by = plan["wanted"].get("fires_by", "gate")
    return read_counts(read, tokens, languages, shape, experts, fires_by)


def _layout(plan: Mapping[str, Any]) -> UnitLayout | None:
    return UnitLayout.of(plan["units"]) if "units" in plan else None


def _outline(path: Path) -> tuple[int, list[int]]:
    """Tokens of a piece, and (layers, neurons); its checksum is verified when counts are read."""
    try:
        with safe_open(path, framework="pt") as file:
            shape = file.get_slice("firing.fired").get_shape()
            return int(file.get_tensor("firing.tokens")[0]), shape
    except (SafetensorError, OSError):
        load_piece(path)  # its error says what is wrong
        raise


def _signs(
    pieces: Iterator[tuple[int, int, artifacts.Artifact]],
    languages: tuple[str, ...],
    plan: Mapping[str, Any],
) -> FiringSigns:
    by_prompt: dict[str, dict[int, Tensor]] = {}
    for _, row, piece in pieces:
        for prompt, bits in zip(piece.labels["sources"], piece.tensors["signs.bits"], strict=True):
            by_prompt.setdefault(prompt, {})[row] = bits
    partial = [prompt for prompt, rows in by_prompt.items() if len(rows) < len(languages)]
    if partial:
        raise ValueError(
            f"Prompt {partial[0]} is missing in some of {', '.join(languages)}: parallel prompts "
            "have the same ids in every language."
        )
    prompts = tuple(sorted(by_prompt))
    bits = torch.stack(
        [torch.stack([by_prompt[p][row] for row in range(len(languages))]) for p in prompts]
    )
    fires_by = plan["wanted"].get("signs_of", "gate")
    threshold = plan["wanted"].get("signs_above", 0.0)
    return FiringSigns(
        bits=bits,
        prompts=prompts,
        languages=languages,
        d_mlp=plan["d_mlp"],
        fires_by=fires_by,
        threshold=threshold,
    )

"""Counts that are too many for the memory: the same numbers and bytes as of those that fit."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.counting import stats
from interp.counting.counts import InMemory, OnDisk
from interp.counting.pieces import PIECE
from interp.counting.run import Run
from interp.counting.stats import FiringStats, read_counts
from interp.inference.intervals import jackknife, selection_frequency
from interp.results import artifacts
from interp.runs.folder import begin
from interp.selections.agreement import predicted_agreement
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_by_entropy
from interp.selections.stability import entropy_settings, measure_stability

LANGUAGES = ("de", "en", "fr", "zh")
N_SHARDS, N_LAYERS, N_NEURONS = 5, 3, 200


def made_up() -> FiringStats:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(500, 600, (N_SHARDS, len(LANGUAGES)), generator=generator)
    shape = (N_SHARDS, len(LANGUAGES), N_LAYERS, N_NEURONS)
    usual = torch.rand(shape[1:], generator=generator) ** 3
    fired = (usual * 500 * (0.8 + 0.2 * torch.rand(shape, generator=generator))).long()
    return FiringStats(fired=fired, tokens=tokens, languages=LANGUAGES)


def write_pieces(counts: FiringStats, folder: Path) -> None:
    """The folder of a run that counted this."""
    plan = {
        "languages": list(counts.languages),
        "n_shards": counts.n_shards,
        "wanted": {"moments": False, "sentence_means": [], "signs": False},
    }
    begin(folder, plan)
    for shard in range(counts.n_shards):
        for row, code in enumerate(counts.languages):
            n = counts.tokens[shard, row : row + 1]
            tensors = {"firing.fired": counts.fired[shard, row], "firing.tokens": n}
            labels = {"shard": shard, "language": code, "sources": []}
            path = folder / "pieces" / f"{shard:04d}-{code}.safetensors"
            artifacts.save(path, PIECE, tensors, labels, {})


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "IN_MEMORY", 0)


@pytest.fixture
def on_disk(tmp_path: Path, small_memory: None) -> FiringStats:
    made_up().save(tmp_path / "firing.safetensors")
    return FiringStats.load(tmp_path / "firing.safetensors")


def select(counts: FiringStats) -> NeuronSelection:
    return select_by_entropy(counts, fraction=0.1, busy_quantile=0.7)


def same(left: object, right: object) -> bool:
    """Equal to the last bit, NaN included."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        both = left.dtype == right.dtype and left.shape == right.shape
        return both and bool(((left == right) | (left != left) & (right != right)).all())
    if isinstance(left, FiringStats) and isinstance(right, FiringStats):
        names = ("fired", "tokens", "languages")
        return all(same(getattr(left, name), getattr(right, name)) for name in names)
    if dataclasses.is_dataclass(left):
        names = [field.name for field in dataclasses.fields(left)]
        return all(same(getattr(left, name), getattr(right, name)) for name in names)
    return left == right


def frequency(counts: FiringStats) -> Tensor:
    return selection_frequency(counts, lambda part: select(part).mask)


ASKED: dict[str, Callable[[FiringStats], object]] = {
    "rate": lambda counts: counts.rate,
    "total": lambda counts: counts.total,
    "fired": lambda counts: counts.fired,
    "words": repr,
    "shape": lambda counts: (counts.n_shards, counts.n_layers, counts.d_mlp),
    "without one": lambda counts: counts.without(2).rate,
    "some": lambda counts: counts.shards([3, 0]).total,
    "one twice": lambda counts: counts.shards([1, 1, 0, 2, 3, 4]).total,
    "the last": lambda counts: counts.shards([-1]).total,
    "without two, one by one": lambda counts: counts.without(4).without(0).rate,
    "some languages": lambda counts: counts.languages_only(["zh", "en"]).without(1).rate,
    "some neurons": lambda counts: counts.at(torch.tensor([2, 0, 1]), torch.tensor([0, 7, 7])),
    "together": lambda counts: counts.shards([0]).merge(counts.shards([2])).fired,
    "selection": lambda counts: select(counts).mask,
    "jackknife": lambda counts: jackknife(counts, lambda part: part.rate),
    "how often selected": frequency,
    "agreement": lambda counts: predicted_agreement(
        counts, select, torch.Generator().manual_seed(0)
    ),
    "stability": lambda counts: measure_stability(
        counts,
        select,
        torch.Generator().manual_seed(0),
        changes=entropy_settings(fractions=(0.15,), busy_quantiles=()),
    ),
}


@pytest.mark.parametrize("what", ASKED)
def test_counts_left_on_disk_give_what_counts_in_memory_give(what: str, on_disk: FiringStats):
    assert isinstance(on_disk.counts, OnDisk)
    assert same(ASKED[what](made_up()), ASKED[what](on_disk))


@pytest.mark.parametrize("what", sorted(set(ASKED) - {"fired", "together"}))
def test_only_who_asks_for_all_counts_at_once_gets_them(
    what: str, on_disk: FiringStats, monkeypatch: pytest.MonkeyPatch
):
    def refuse(counts: OnDisk) -> Tensor:
        raise AssertionError("all counts are read at once")

    monkeypatch.setattr(OnDisk, "whole", refuse)
    ASKED[what](on_disk)


def test_nobody_who_opens_a_file_reads_all_counts_at_once(
    on_disk: FiringStats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(counts: OnDisk) -> Tensor:
        raise AssertionError("all counts are read at once")

    monkeypatch.setattr(OnDisk, "whole", refuse)
    again = FiringStats.load(tmp_path / "firing.safetensors")
    assert torch.equal(again.tokens, on_disk.tokens)


def test_the_rate_is_the_share_of_tokens():
    counts = made_up()
    wanted = counts.fired.sum(dim=0).double() / counts.tokens.sum(dim=0).double()[:, None, None]
    assert torch.equal(counts.rate, wanted)
    assert torch.equal(counts.total, counts.fired.sum(dim=0))


def test_what_is_handed_out_shares_no_memory(on_disk: FiringStats):
    before = on_disk.total
    on_disk.total.zero_()
    on_disk.rate.zero_()
    on_disk.fired.zero_()
    assert torch.equal(on_disk.total, before)
    assert int(before.sum()) > 0


def test_a_jackknife_reads_every_count_twice_and_no_more():
    """Once for the sum of all shards, and once more to take it away."""
    counts, asked = made_up(), []

    def read(shard: int, row: int) -> Tensor:
        asked.append((shard, row))
        return counts.fired[shard, row]

    shape = (N_LAYERS, N_NEURONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "IN_MEMORY", 0)
        large = read_counts(read, counts.tokens, LANGUAGES, shape)
    jackknife(large, lambda part: part.rate)
    assert len(asked) == 2 * N_SHARDS * len(LANGUAGES)


# ---------------------------------------------------------------- files


def test_both_ways_write_the_same_bytes(on_disk: FiringStats, tmp_path: Path):
    for name, counts in {"memory": made_up(), "disk": on_disk}.items():
        counts.save(tmp_path / name, {"seed": 0})
        counts.shards([1, 3]).languages_only(["zh", "de"]).save(tmp_path / f"some {name}")
    assert (tmp_path / "memory").read_bytes() == (tmp_path / "disk").read_bytes()
    assert (tmp_path / "some memory").read_bytes() == (tmp_path / "some disk").read_bytes()


def test_pieces_are_put_together_to_the_same_bytes_in_little_memory(tmp_path: Path):
    write_pieces(made_up(), tmp_path)
    whole = Run.open(tmp_path).merge().firing
    file = tmp_path / "firing.safetensors"
    before = file.read_bytes()
    file.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "IN_MEMORY", 0)
        large = Run.open(tmp_path).merge().firing
    assert isinstance(whole.counts, InMemory)
    assert isinstance(large.counts, OnDisk)
    assert file.read_bytes() == before
    for piece in (tmp_path / "pieces").iterdir():
        piece.unlink()  # the result needs them no longer
    assert torch.equal(whole.fired, large.fired)


def test_a_damaged_piece_is_not_put_together(tmp_path: Path, small_memory: None):
    write_pieces(made_up(), tmp_path)
    piece = tmp_path / "pieces" / "0002-en.safetensors"
    content = bytearray(piece.read_bytes())
    for place in (-100, -4, 3):  # a count, the tokens, the header
        broken = content.copy()
        broken[place] ^= 4
        piece.write_bytes(broken)
        with pytest.raises(ValueError, match=r"0002-en\.safetensors.* Delete that file"):
            Run.open(tmp_path).merge()
    assert not (tmp_path / "firing.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


def test_wrong_counts_are_refused_wherever_they_are(tmp_path: Path):
    counts = made_up()
    fired = counts.fired.clone()
    fired[3, 1, 2, 5] = 1000
    told = "exceeds the number of tokens read"
    with pytest.raises(ValueError, match=told):
        FiringStats(fired=fired, tokens=counts.tokens, languages=LANGUAGES)
    tensors = {"fired": fired, "tokens": counts.tokens}
    path, labels = tmp_path / "f.safetensors", {"languages": list(LANGUAGES)}
    artifacts.save(path, "FiringStats", tensors, labels, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "IN_MEMORY", 0)
        large = FiringStats.load(path)
        with pytest.raises(ValueError, match=told):
            _ = large.rate
        artifacts.save(path, "FiringStats", tensors | {"fired": fired[0]}, labels, {})
        with pytest.raises(ValueError, match="do not fit together"):
            FiringStats.load(path)
    with pytest.raises(ValueError, match="No token was read in en"):
        counts.languages_only(["en"]).shards([])


def test_a_language_that_was_not_read_is_named(on_disk: FiringStats):
    for counts in (made_up(), on_disk):
        with pytest.raises(KeyError, match="'ja' is not in these counts, which cover de, en, fr"):
            counts.languages_only(["de", "ja"])

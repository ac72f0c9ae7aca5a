"""What do statistics from caches cost, beside the caches?

    python -m benchmarks.caches                 # time: a minute on one core
    python -m benchmarks.caches --memory        # peak memory: a minute
    python -m benchmarks.caches --device cuda

Caches of all gates of a Llama-shaped model with random weights (d_model 512, 8 layers of 2048
neurons), with a mask that leaves out a tenth of the positions. The variants take turns in one
process; each time is divided by that of the `run_with_cache` that made the caches. By hand means
`(gate > 0)[mask].sum(0)`, layer by layer.

Memory is the rise of the peak over the caches that are there already, in caches of random numbers.
Stacking them first, as one would for `(gates > 0).mean()`, is the alternative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from torch import Tensor

import interp
from benchmarks import memory, synthetic
from benchmarks.records import Size, SpeedOrMemory, recording
from benchmarks.timing import Variants, clock, take_turns

FORWARD = "run_with_cache of all gates"
OURS = "FiringStats.from_caches"
BY_HAND = "by hand, layer by layer"
STACKED = "by hand, caches stacked"

CODES = ("en", "de", "zh")

Caches = dict[str, list[Any]]
Masks = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Amount:
    """How many caches of what size."""

    rounds: int = 5
    """Turns of each variant."""

    layers: int = 8
    neurons: int = 2048
    shards: int = 4
    """Caches of each language."""

    rows: int = 4
    """Rows of a cache."""

    length: int = 128
    """Positions of a row."""


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(),
    "bench": Amount(rounds=3),
    "toy": Amount(rounds=1, layers=2, neurons=160, shards=2, rows=2, length=16),
}


def names_of(n_layers: int) -> list[str]:
    return [f"blocks.{layer}.mlp.hook_pre" for layer in range(n_layers)]


def masks_of(amount: Amount) -> Masks:
    generator = torch.Generator().manual_seed(0)
    shape = (amount.rows, amount.length)
    return {
        code: [torch.rand(shape, generator=generator) > 0.1 for _ in range(amount.shards)]
        for code in CODES
    }


def by_hand(caches: Caches, keep: Masks, n_layers: int) -> Tensor:
    """Rates by language, layer and neuron."""
    rates = []
    for code, shards in caches.items():
        n_tokens = sum(int(mask.sum()) for mask in keep[code])
        for name in names_of(n_layers):
            pairs = zip(shards, keep[code], strict=True)
            fired = [(cache[name] > 0)[mask.to(cache[name].device)].sum(0) for cache, mask in pairs]
            rates.append(torch.stack(fired).sum(0).double() / n_tokens)
    return torch.stack(rates).cpu().unflatten(0, (len(caches), n_layers))


def stacked(caches: Caches, keep: Masks, n_layers: int) -> Tensor:
    """The same, with the gates of each language in one tensor."""
    rates = []
    for code, shards in caches.items():
        gates = torch.cat(
            [torch.stack([c[name] for name in names_of(n_layers)]) for c in shards], 1
        )
        mask = torch.cat(keep[code])
        rates.append((gates > 0)[:, mask].sum(dim=1).double() / int(mask.sum()))
    return torch.stack(rates)


def from_caches(caches: Caches, keep: Masks, n_layers: int) -> Tensor:
    return interp.FiringStats.from_caches(caches, keep=keep).rate


WAYS: dict[str, Callable[[Caches, Masks, int], Tensor]] = {
    OURS: from_caches,
    BY_HAND: by_hand,
    STACKED: stacked,
}


# ---------------------------------------------------------------- speed


def measure_speed(config: SpeedOrMemory) -> None:
    torch.set_num_threads(1)
    amount = AMOUNTS[config.size]
    shape = synthetic.llama(amount.layers, 512, amount.neurons, 8000)
    with TemporaryDirectory() as temporary, recording("caches", config, amount) as record:
        model = interp.load(synthetic.save_model(shape, Path(temporary)), device=config.device)
        keep = masks_of(amount)
        size = (amount.rows, amount.length, 8000)
        ids = {
            code: [synthetic.tokens(*size, seed).to(model.device) for seed in range(amount.shards)]
            for code in CODES
        }

        def run() -> Caches:
            names = names_of(amount.layers)
            with torch.no_grad():
                return {
                    code: [model.run_with_cache(one, names_filter=names)[1] for one in shards]
                    for code, shards in ids.items()
                }

        caches = run()
        variants: Variants = {FORWARD: run}
        for way in (OURS, BY_HAND):
            variants[way] = lambda way=way: WAYS[way](caches, keep, amount.layers)
        turns = take_turns(variants, amount.rounds, clock(config.device, work=True))
        assert turns.values[OURS].equal(turns.values[BY_HAND])
        case = f"{len(CODES) * amount.shards} caches"
        record(*turns.rows(case=f"{case} of {amount.rows} x {amount.length} tokens"))


# ---------------------------------------------------------------- memory


def measure_memory(config: SpeedOrMemory) -> None:
    amount = AMOUNTS[config.size]
    with recording("caches-memory", config, amount) as record:
        for dtype in ("float32", "bfloat16"):
            for way in WAYS:
                cache_mib, mib = memory.in_subprocess(added, way, amount, dtype)
                share = (cache_mib + mib) / cache_mib
                record(
                    {"dtype": dtype, "way": way, "cache_mib": cache_mib, "mib": mib, "share": share}
                )


def added(way: str, amount: Amount, dtype: str) -> tuple[float, float]:
    """MiB of the caches, and MiB that the statistics take above them at their peak."""
    torch.set_num_threads(1)
    caches, keep = random_caches(amount, getattr(torch, dtype)), masks_of(amount)
    tensors = [values for shards in caches.values() for one in shards for values in one.values()]
    n_bytes = sum(values.numel() * values.element_size() for values in tensors)
    first = {code: [one[:1] for one in masks] for code, masks in keep.items()}
    small = {
        code: [{name: values[:1] for name, values in one.items()} for one in shards]
        for code, shards in caches.items()
    }
    WAYS[way](small, first, amount.layers)  # what a first call loads is no memory of the statistics
    return n_bytes / memory.MIB, memory.added_mib(lambda: WAYS[way](caches, keep, amount.layers))


def random_caches(amount: Amount, dtype: torch.dtype) -> Caches:
    generator = torch.Generator().manual_seed(0)
    shape = (amount.rows, amount.length, amount.neurons)
    return {
        code: [
            {
                name: torch.empty(shape, dtype=dtype).normal_(generator=generator)
                for name in names_of(amount.layers)
            }
            for _ in range(amount.shards)
        ]
        for code in CODES
    }


def main(config: SpeedOrMemory) -> None:
    (measure_memory if config.memory else measure_speed)(config)


if __name__ == "__main__":
    main(tyro.cli(SpeedOrMemory, description=__doc__))

"""Is `interp plan` right? Planned memory and disk against those of runs.

python -m benchmarks.plan              # 5 minutes on two cores

Goal: memory within 15 % of what is planned, with every statistic of the pass. The larger of
`interp collect` and `interp find` counts, as in the plan.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from benchmarks.memory import MIB
from benchmarks.records import Config, Row, Size, recording
from benchmarks.scaling import Run, measure, save_model
from interp.counting.plan import RunPlan, plan_run

GATED = Run(languages=1, shards=2, row_tokens=256)
UNGATED = replace(GATED, family="neox")
BFLOAT16 = replace(GATED, tokens=8192, keep=("moments",), dtype="bfloat16")
STATISTICS = replace(GATED, layers=8, neurons=3072, d_model=640)
CHEAP = ("moments", "sign_cases", "negative_side")
SHAPES = {
    "4 x 4,096, gated": replace(GATED, neurons=4096, d_model=512),
    "16 x 2,048, gated, bfloat16, moments": replace(BFLOAT16, layers=16, neurons=2048, d_model=768),
    "6 x 3,072, ungated": replace(UNGATED, layers=6, neurons=3072, d_model=768, vocabulary=20_000),
    # The number of copies in the plan was fitted on the three above, not on those below.
    "10 x 3,072, gated": replace(GATED, layers=10, neurons=3072, d_model=640, row_tokens=128),
    "5 x 2,560, ungated, moments": replace(
        UNGATED, layers=5, neurons=2560, d_model=640, languages=2, row_tokens=512, keep=("moments",)
    ),
    "8 x 3,072, gated, moments, cases of signs, negative side": replace(STATISTICS, keep=CHEAP),
    "8 x 3,072, gated, histograms": replace(STATISTICS, keep=("histograms",)),
    "8 x 8,192, 50 languages": Run(
        layers=8, neurons=8192, d_model=64, languages=50, shards=8, tokens=512, keep=("moments",)
    ),
    "32 x 11,008, 100 labels": Run(  # those of a model of 7 billion parameters
        layers=32, neurons=11_008, d_model=64, languages=100, shards=2, tokens=128
    ),
}


@dataclass(frozen=True)
class Amount:
    """Which runs are planned and measured."""

    shapes: dict[str, Run]


AMOUNTS: dict[Size, Amount] = {
    "full": Amount(SHAPES),
    "bench": Amount(SHAPES),
    "toy": Amount({"2 x 32, gated": Run(layers=2, neurons=32, languages=2, tokens=256)}),
}


def planned(run: Run) -> RunPlan:
    with TemporaryDirectory() as folder:
        return plan_run(
            save_model(run, Path(folder)),
            run.languages,
            run.tokens,
            n_shards=run.shards,
            row_tokens=run.row_tokens,
            tokens_per_batch=run.tokens_per_batch,
            keep=run.kept,
        )


def compare(name: str, run: Run) -> Row:
    """Planned and measured memory, in MiB, and the relative error of the planned disk."""
    plan, measured = planned(run), measure(run, find=run.languages > 1)
    error = abs(plan.disk / MIB / measured["disk_mib"] - 1)
    memory = {
        "planned": plan.memory / MIB,
        "measured": max(measured["mib"], measured.get("find_mib", 0.0)),
    }
    return {"shape": name, **memory, "disk_error": error}


def main(config: Config) -> None:
    amount = AMOUNTS[config.size]
    with recording("plan", config, amount) as record:
        for name, run in amount.shapes.items():
            record(compare(name, run))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

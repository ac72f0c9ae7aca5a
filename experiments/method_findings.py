"""Findings of the method comparison: the numbers of its claims, and a page in words.

Both are made from the tables of one run, so that no sentence outlives its numbers.
"""

import itertools
from collections.abc import Sequence

import torch

from experiments import recover_planted
from experiments.judges import Effects, Switching
from experiments.recover_planted import ALL
from interp.inference.claims import Claim, markdown
from interp.inference.intervals import Estimate, mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table

LAPE, GATE, KOJIMA = "entropy (LAPE)", "precision of gate", "precision of output, both ends"
LAP, LAVE, RANDOM = "rate (LAP)", "mean entropy (LAVE)", "random"

MEASURES = {
    "recovery_alone": "planted neurons found, no decoys",
    "recovery": "planted neurons found among all decoys",
    "selectivity": "rise of the own loss minus that of the others (nats per token)",
    "switching": "share of good texts in the language under a push",
    "stability": "Jaccard index with the selection from other text",
}
"""Column of the table → what it measures."""

PLANTED = ("recovery_alone", "recovery")
"""Columns that are of planted models, whatever model was read."""

JUDGED = ("recovery", "selectivity", "switching", "stability")
"""Columns that the claims compare methods on."""


def measures(
    recovery: Table, effect: Effects, written: Switching, stable: Table
) -> dict[str, Measurement | None]:
    """LAPE against methods that were named beforehand, and the papers' own claims."""
    largest = max(recovery["effect"].tolist())
    last = stable[stable["tokens"] == stable["tokens"].max()].set_index(["method", "language"])

    def more_found(one: str, other: str) -> Estimate:
        return recover_planted.difference_in_recall(recovery, (one, ALL), (other, ALL), largest)

    def more_stable(one: str, other: str) -> Estimate:
        more = last.loc[one, "jaccard"] - last.loc[other, "jaccard"]
        return mean_over_examples(torch.tensor(more.to_numpy()))

    differences = (more_found, effect.difference, written.difference, more_stable)
    measured: dict[str, Measurement | None] = {
        f"methods-{column}-lape-gate": Measurement(difference(LAPE, GATE))
        for column, difference in zip(JUDGED, differences, strict=True)
    }
    own, random = (mean_over_examples(effect.over_languages(name)) for name in (LAPE, RANDOM))
    return measured | {
        "methods-lape-own": Measurement(own, random, effect.difference(LAPE, RANDOM)),
        "methods-kojima-switch": Measurement(written.difference(KOJIMA, RANDOM)),
        "methods-lape-rate": Measurement(effect.difference(LAPE, LAP)),
        "methods-lape-lave": Measurement(effect.difference(LAPE, LAVE)),
    }


def findings(table: Table, claims: Sequence[Claim], on: str) -> str:
    """A page in words, from the numbers of the table and the verdicts; `on` names the model."""
    lines = [f"- {line}" for line in (*of_planted(table), *of_model(table, on))]
    return "\n".join([*lines, "", markdown(claims), ""])


def of_planted(table: Table) -> list[str]:
    """A sentence for each measure of planted models, then what decoys cost."""
    rows = table.set_index("method")
    lost = (rows["recovery_alone"] - rows["recovery"]).sort_values(ascending=False)
    points = ", ".join(f"{name} ({100 * x:.0f})" for name, x in lost.items() if x >= 0.05)
    return [
        *(_ranking(rows, column, "") for column in PLANTED),
        f"Points of recovery lost to decoys, where 5 or more: {points or 'none'}.",
    ]


def of_model(table: Table, on: str) -> list[str]:
    """A sentence for each measure of a model, then which of them agree."""
    rows = table.set_index("method")
    nothing = rows["stability"].isna()  # ReLU has no negative side to choose by
    rows, empty = rows[~nothing], rows.index[nothing]
    return [
        *(_ranking(rows, column, f", {on}") for column in MEASURES if column not in PLANTED),
        *(f"{_capital(name)} chooses no neurons of {on}." for name in empty),
        *_together(rows.drop(index=RANDOM), on),
    ]


def alike(one: Table, other: Table) -> str:
    """How alike two models rank the methods that choose neurons in both, without random ones."""
    tables = [table.set_index("method").drop(index=RANDOM) for table in (one, other)]
    first, second = (table[table["stability"].notna()] for table in tables)
    both = first.index.intersection(second.index)
    correlations = []
    for name in JUDGED:
        if name not in PLANTED:
            r = float(first.loc[both, name].corr(second.loc[both, name], method="spearman"))
            correlations.append(f"{r:.2f} by {name}")
    return f"rank {len(both)} methods with a correlation of {', '.join(correlations)}."


def _ranking(rows: Table, column: str, on: str) -> str:
    """The first three with their intervals, the last, LAPE and random neurons."""
    order = rows[column].sort_values(ascending=False, kind="stable")
    alike = int((order == order.iloc[0]).sum())
    names = order.index[:3] if alike <= 3 else order.index[:1]
    first = [
        f"{name if alike <= 3 else f'{alike} methods'} {order[name]:.3g} "
        f"({rows.loc[name, f'{column}_low']:.3g} to {rows.loc[name, f'{column}_high']:.3g})"
        for name in names
    ]
    rank = int((order > order[LAPE]).sum()) + 1
    return (
        f"{_capital(MEASURES[column])}{on}: {', '.join(first)}; last is {order.index[-1]} with "
        f"{order.iloc[-1]:.3g}. LAPE ranks {rank} of {len(order)} with {order[LAPE]:.3g}; random "
        f"neurons have {order[RANDOM]:.3g}."
    )


def _together(rows: Table, on: str) -> list[str]:
    """Which measures agree across methods, and which disagree."""
    correlations = rows[list(JUDGED)].corr(method="spearman")
    lines = [
        f"Across {len(rows)} methods, {one} and {other} have a rank correlation of {r:.2f}, {on}."
        for one, other in itertools.combinations(JUDGED, 2)
        if abs(r := float(correlations.loc[one, other])) >= 0.5
    ]
    no_two = f"No two measures rank the methods alike, {on} (all rank correlations below 0.5)."
    return lines or [no_two]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]

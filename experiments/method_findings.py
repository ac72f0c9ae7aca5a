"""What the comparison of methods comes to: claims with their verdicts, and a page in words.

All of it is made from the numbers of one run, so that no sentence outlives the table behind it.
"""

import itertools
from collections.abc import Sequence

import torch

from experiments import recover_planted
from experiments.judges import Effects, Switching
from experiments.recover_planted import ALL
from interp.inference.claims import Claim, Measurement, markdown
from interp.inference.intervals import Estimate, mean_over_examples
from interp.plots.style import Table

LAPE, GATE, KOJIMA = "entropy (LAPE)", "precision of gate", "precision of output, both ends"
RANDOM = "random"

MEASURES = {
    "recovery_alone": "planted neurons found, no decoys",
    "recovery": "planted neurons found beside all decoys",
    "selectivity": "rise of the own loss beyond the others' (nats per token)",
    "switching": "good texts in the language when pushed",
    "stability": "Jaccard with the choice from other text",
}
"""Column of the table → what it says."""

JUDGED = ("recovery", "selectivity", "switching", "stability")
"""What methods are compared on in the claims."""


def measures(
    table: Table, each: Table, effect: Effects, written: Switching, stable: Table
) -> dict[str, Measurement | None]:
    """Who is best at what, against the second best; and what the papers say of their own."""
    largest = max(each["effect"].tolist())
    last = stable[stable["tokens"] == stable["tokens"].max()].set_index(["method", "language"])

    def more_found(one: str, other: str) -> Estimate:
        return recover_planted.difference_in_recall(each, (one, ALL), (other, ALL), largest)

    def more_stable(one: str, other: str) -> Estimate:
        more = last.loc[one, "jaccard"] - last.loc[other, "jaccard"]
        return mean_over_examples(torch.tensor(more.to_numpy()))

    measured: dict[str, Measurement | None] = {}
    apart = (more_found, effect.apart, written.apart, more_stable)
    for column, difference in zip(JUDGED, apart, strict=True):
        first, second = table.sort_values(column, ascending=False, kind="stable")["method"][:2]
        words = {"first": first, "First": _capital(first), "second": second}
        measured[f"methods-{column}-best"] = Measurement(difference(first, second), words=words)
        measured[f"methods-{column}-lape-gate"] = Measurement(difference(LAPE, GATE))
    random = float(table.set_index("method").loc[RANDOM, "selectivity"])
    return measured | {
        "methods-lape-own": Measurement(effect.selectivity(LAPE), random),
        "methods-kojima-switch": Measurement(written.apart(KOJIMA, RANDOM)),
    }


def findings(table: Table, claims: Sequence[Claim]) -> str:
    """A page in words, made from the numbers of the table and the verdicts."""
    rows = table.set_index("method")
    lines = [_ranking(rows, column) for column in MEASURES]
    lines += _together(rows.drop(index=RANDOM))
    cost = (rows["recovery_alone"] - rows["recovery"]).sort_values(ascending=False)
    taken = [f"{name} ({100 * value:.0f})" for name, value in cost.items() if value >= 0.05]
    lines.append(f"Points of recovery that decoys cost, where they are 5 or more: {_list(taken)}.")
    return "\n".join([*(f"- {line}" for line in lines), "", markdown(claims), ""])


def _ranking(rows: Table, column: str) -> str:
    """The first three with their intervals, the last, LAPE and random neurons."""
    order = rows[column].sort_values(ascending=False, kind="stable")
    first = [
        f"{name} {order[name]:.3g} ({rows.loc[name, f'{column}_low']:.3g} to "
        f"{rows.loc[name, f'{column}_high']:.3g})"
        for name in order.index[:3]
    ]
    place = int((order > order[LAPE]).sum()) + 1
    what = _capital(MEASURES[column])
    return (
        f"{what}: {_list(first)}; last is {order.index[-1]} with {order.iloc[-1]:.3g}. LAPE is "
        f"number {place} of {len(order)} with {order[LAPE]:.3g}, random neurons have "
        f"{order[RANDOM]:.3g}."
    )


def _together(rows: Table) -> list[str]:
    """Which judgements go together over methods, and which exclude each other."""
    found = []
    for one, other in itertools.combinations(JUDGED, 2):
        correlation = float(rows[[one, other]].corr(method="spearman").iloc[0, 1])
        if abs(correlation) >= 0.5:
            does = "go together" if correlation > 0 else "go against each other"
            found.append(
                f"Over the {len(rows)} methods, {one} and {other} {does} (rank correlation "
                f"{correlation:.2f})."
            )
    return found or ["No two of the judgements rank the methods alike (rank correlations < 0.5)."]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]

"""What the comparison of methods comes to: claims with their verdicts, and a page in words.

All of it is made from the numbers of one run, so that no sentence outlives the table behind it.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from experiments import recover_planted
from experiments.judges import Effects, Switching
from experiments.recover_planted import ALL
from interp.inference.claims import Claim, claim_of, markdown
from interp.inference.intervals import Estimate, mean_over_examples
from interp.plots.style import Table

COMMAND = "python -m experiments.compare_methods"
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

DOES = {
    "recovery": "finds more planted neurons beside all decoys",
    "selectivity": "chooses neurons that matter more to their own language alone",
    "switching": "chooses neurons that switch the language more often",
    "stability": "chooses more of the same neurons from other text",
}


def claims_of(
    table: Table, each: Table, effect: Effects, written: Switching, stable: Table, on: str
) -> list[Claim]:
    """Who is best at what, against the second best; and what the papers say of their own.

    The best of many is lucky, and its lead over the second is what it is for that reason too.
    """
    largest = max(each["effect"].tolist())
    last = stable[stable["tokens"] == stable["tokens"].max()].set_index(["method", "language"])

    def more_found(one: str, other: str) -> Estimate:
        return recover_planted.difference_in_recall(each, (one, ALL), (other, ALL), largest)

    def more_stable(one: str, other: str) -> Estimate:
        more = last.loc[one, "jaccard"] - last.loc[other, "jaccard"]
        return mean_over_examples(torch.tensor(more.to_numpy()))

    apart: dict[str, Callable[[str, str], Estimate]] = {
        "recovery": more_found,
        "selectivity": effect.apart,
        "switching": written.apart,
        "stability": more_stable,
    }
    said: dict[str, Any] = {"command": COMMAND, "source": "this project"}
    claims = []
    for column, does in DOES.items():
        first, second = table.sort_values(column, ascending=False, kind="stable")["method"][:2]
        where = "planted models" if column == "recovery" else on
        for kind, one, other, than in (
            ("best", first, second, "any other method"),
            ("lape-gate", LAPE, GATE, GATE),
        ):
            claims.append(
                claim_of(
                    apart[column](one, other),
                    name=f"methods-{column}-{kind}",
                    statement=f"{one[0].upper()}{one[1:]} {does} than {than}.",
                    on=where,
                    how=f"{MEASURES[column]}: {one} less {other}",
                    **said,
                )
            )
    random = float(table.set_index("method").loc[RANDOM, "selectivity"])
    claims.append(
        claim_of(
            effect.selectivity(LAPE),
            name="methods-lape-own",
            statement="Without its LAPE neurons a language suffers more than the others do.",
            how=MEASURES["selectivity"],
            on=on,
            control=random,
            control_name="random neurons",
            **said | {"source": "Tang et al. (2024)"},
        )
    )
    claims.append(
        claim_of(
            written.apart(KOJIMA, RANDOM),
            name="methods-kojima-switch",
            statement="Neurons that detect a language best and worst make the model write in it.",
            how="share of good texts in the language, less that with random neurons",
            on=on,
            **said | {"source": "Kojima et al. (2024)"},
        )
    )
    return claims


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
    what = MEASURES[column][0].upper() + MEASURES[column][1:]
    return (
        f"{what}: {_list(first)}; last is {order.index[-1]} with {order.iloc[-1]:.3g}. LAPE is "
        f"number {place} of {len(order)} with {order[LAPE]:.3g}, random neurons have "
        f"{order[RANDOM]:.3g}."
    )


def _together(rows: Table) -> list[str]:
    """Which judgements go together over methods, and which exclude each other."""
    found = []
    for one, other in itertools.combinations(DOES, 2):
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

"""The scoreboard: what was put up, on what, how it came out, and what is not covered.

Everything is counted from the claims that were measured and from claims/*.toml; only what no
command does is listed by hand, in not_covered.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from experiments.runner import CLAIMS, stated
from interp.inference.claims import Claim, Verdict, false_discovery_rates, markdown, tally
from interp.inference.statements import Statement

NOT_COVERED = Path(__file__).parent / "not_covered.md"
RATE = 0.05
"""Verdicts whose false discovery rate is above this are named."""


def every_statement() -> tuple[Statement, ...]:
    """What is claimed in all files, in the order of their names."""
    return tuple(
        statement for path in sorted(CLAIMS.glob("*.toml")) for statement in stated(path.stem)
    )


def unmeasured(claims: Sequence[Claim], statements: Sequence[Statement]) -> tuple[Statement, ...]:
    """Statements without a claim: their study was not run since the rule was written.

    A claim's name contains that of its statement, beside the model or task it was tested on.
    """
    return tuple(
        statement
        for statement in statements
        if not any(
            statement.name in claim.name and statement.command == claim.command for claim in claims
        )
    )


def counts(claims: Sequence[Claim]) -> str:
    """A Markdown table: how many claims of each paper were tested on what, by verdict."""
    verdicts = get_args(Verdict)
    lines = [
        f"| paper | on | put up | {' | '.join(verdicts)} |",
        "|---" * (3 + len(verdicts)) + "|",
    ]
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for claim in claims:
        groups.setdefault((claim.source, claim.on), []).append(claim.verdict)
    for (source, on), found in sorted(groups.items()):
        numbers = [len(found), *(found.count(verdict) for verdict in verdicts)]
        lines.append(f"| {source} | {on} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def doubtful(claims: Sequence[Claim]) -> str:
    """A sentence on false discoveries among the claims that hold."""
    pairs = zip(claims, false_discovery_rates(claims), strict=True)
    names = [claim.name for claim, q in pairs if claim.verdict == "holds" and q > RATE]
    n_tests = sum(claim.p_value == claim.p_value for claim in claims)
    tested = f"q is the false discovery rate over the {n_tests} claims that have an interval"
    if not names:
        return f"{tested} (Benjamini and Hochberg, 1995); no claim that holds has one above {RATE}."
    return (
        f"{tested} (Benjamini and Hochberg, 1995). Above {RATE}, and so perhaps among the few that "
        f"hold by chance: {', '.join(names)}."
    )


def measured_from(claims: Sequence[Claim]) -> str:
    """A sentence on claims whose code was not the committed one."""
    changed = [claim.name for claim in claims if claim.from_changed_files]
    if not changed:
        return "All were measured with committed code."
    return f"Measured with code that is not that of a commit: {', '.join(changed)}."


def waiting(statements: Sequence[Statement]) -> str:
    """A Markdown list of what is stated and not measured, by command."""
    by_command: dict[str, list[str]] = {}
    for statement in statements:
        by_command.setdefault(statement.command, []).append(statement.name)
    lines = [f"- `{command}`: {', '.join(names)}" for command, names in by_command.items()]
    return "\n".join(lines)


def board(claims: Sequence[Claim], statements: Sequence[Statement] | None = None) -> str:
    """The whole scoreboard in Markdown."""
    statements = every_statement() if statements is None else statements
    left = unmeasured(claims, statements)
    first = f"**{tally(claims)}.** {measured_from(claims)} {doubtful(claims)}"
    parts = [first, counts(claims)]
    if left:
        parts.append(
            f"Not measured yet by the present rules: {len(left)} of the {len(statements)} "
            f"statements in `experiments/claims`.\n\n{waiting(left)}"
        )
    parts.append(NOT_COVERED.read_text(encoding="utf-8").strip())
    table = (
        f"<details><summary>All {len(claims)} claims.</summary>\n\n{markdown(claims)}\n\n</details>"
    )
    return "\n\n".join([*parts, table])

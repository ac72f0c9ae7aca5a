"""Which published claims hold, on published files, on the shipped model and on a real one?

    python -m experiments.board     # writes the page again, from what was measured before

Reads   results/*/{babel,gemma}/**/claims.json, if they are there, and those of published files;
        experiments/measured, claims/*.toml, not_covered.md
Writes  experiments/measured/{published,babel,gemma}/<study>.json, docs/scoreboard.md; its summary
        in README.md, between <!-- scoreboard --> and <!-- /scoreboard -->

Everything is counted from the claims that were measured and from what is stated; only what no
command does is listed by hand, in not_covered.md. What was measured is kept beside the statements,
so that the page can be made without any model.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from benchmarks.markdown import with_blocks
from experiments.runner import CLAIMS, EXPERIMENTS, stated
from interp.inference.claims import (
    Claim,
    Verdict,
    false_discovery_rates,
    load_claims,
    markdown,
    measured_in_short,
    save_claims,
    tally,
)
from interp.inference.statements import Statement
from interp.reports.sections import claims_in
from interp.results import artifacts

NOT_COVERED = EXPERIMENTS / "not_covered.md"
MEASURED = EXPERIMENTS / "measured"
PAGE = EXPERIMENTS.parent / "docs" / "scoreboard.md"
README = EXPERIMENTS.parent / "README.md"

COLUMNS: Mapping[str, str] = {
    "published": "published masks and texts",
    "babel": "Babel",
    "gemma": "Gemma 3 270M",
}
"""Presets whose claims are kept, and what they are about; studies of published files have none."""

RATE = 0.05
"""Verdicts whose false discovery rate is above this are named."""

Kept = Mapping[str, Sequence[Claim]]
"""What was measured, by preset."""


# ---------------------------------------------------------------- what was measured


def studies(results: Path, preset: str) -> list[tuple[str, Path]]:
    """The studies with results, and their folders, in the order of experiments/README.md.

    A study of published files has no presets: its results are directly in its folder.
    """
    index = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    order = list(dict.fromkeys(re.findall(r"python -m experiments\.(\w+)", index)))
    found = []
    for folder in sorted(results.iterdir()) if results.is_dir() else []:
        if not (EXPERIMENTS / f"{folder.name}.py").is_file():
            continue
        if (folder / preset).is_dir():
            found.append((folder.name, folder / preset))
        elif (folder / "claims.json").is_file():
            found.append((folder.name, folder))
    rank = {name: number for number, name in enumerate(order)}
    return sorted(found, key=lambda study: rank.get(study[0], len(rank)))


def keep(results: Path, measured: Path = MEASURED) -> None:
    """Copy the claims of finished studies to where the page is made from."""
    for preset in COLUMNS:
        for study, folder in studies(results, preset):
            published = (folder / "claims.json").is_file() and folder.parent == results
            if published == (preset == "published") and (claims := claims_in([folder])):
                save_claims(claims, measured / preset / f"{study}.json")


def kept(measured: Path = MEASURED) -> dict[str, list[Claim]]:
    """The claims that were kept, by preset.

    Every comparison of methods plants the same neurons, so what a later preset says of them is left
    out.
    """
    found: dict[str, list[Claim]] = {}
    for preset in COLUMNS:
        known = {(claim.name, claim.on) for claims in found.values() for claim in claims}
        found[preset] = [
            claim
            for path in sorted((measured / preset).glob("*.json"))
            for claim in load_claims(path)
            if (claim.name, claim.on) not in known
        ]
    return found


def every_statement() -> tuple[Statement, ...]:
    """What is claimed in all files, in the order of their names."""
    return tuple(
        statement for path in sorted(CLAIMS.glob("*.toml")) for statement in stated(path.stem)
    )


def judges(claim: Claim, statement: Statement) -> bool:
    return claim.stated_as == statement.name and claim.command == statement.command


def unmeasured(claims: Sequence[Claim], statements: Sequence[Statement]) -> tuple[Statement, ...]:
    """Statements without a claim: their study was not run since the rule was written."""
    return tuple(
        statement
        for statement in statements
        if not any(judges(claim, statement) for claim in claims)
    )


# ---------------------------------------------------------------- the page


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


def by_model(measured: Kept, statements: Sequence[Statement]) -> str:
    """A Markdown table: a row for each statement, a column for each model, verdicts and values."""
    columns = [preset for preset in COLUMNS if measured.get(preset)]
    lines = [
        f"| claim | {' | '.join(COLUMNS[preset] for preset in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for statement in statements:
        cells = [
            "<br>".join(
                outcome(claim, measured[preset])
                for claim in measured[preset]
                if judges(claim, statement)
            )
            for preset in columns
        ]
        if any(cells):
            says = next(
                claim.statement
                for preset in columns
                for claim in measured[preset]
                if judges(claim, statement)
            )
            lines.append(f"| {says} *{statement.source}* | {' | '.join(cells)} |")
    return "\n".join(lines)


def outcome(claim: Claim, others: Sequence[Claim]) -> str:
    """The verdict and the number; with what it is about, if that differs in the column."""
    about = "" if len({other.on for other in others}) == 1 else f"{claim.on}: "
    return f"{about}**{claim.verdict}**, {measured_in_short(claim)}".replace("|", "\\|")


def summary(measured: Kept) -> str:
    """A Markdown table of a few lines: how many claims on what, by verdict."""
    verdicts = get_args(Verdict)
    lines = [f"| claims about | tested | {' | '.join(verdicts)} |", "|---" * 6 + "|"]
    for preset, title in COLUMNS.items():
        found = [claim.verdict for claim in measured.get(preset, ())]
        numbers = [len(found), *(found.count(verdict) for verdict in verdicts)]
        lines.append(f"| {title} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def page(measured: Kept, statements: Sequence[Statement] | None = None) -> str:
    """The whole scoreboard in Markdown."""
    statements = every_statement() if statements is None else statements
    claims = [claim for preset in COLUMNS for claim in measured.get(preset, ())]
    left = unmeasured(claims, statements)
    parts = [
        "# Scoreboard",
        "<!-- Written by python -m experiments.board: change the claims, not this page. -->",
        "What papers claim, and this project beside them, with the rule that decides it "
        "stated before anything was measured (`experiments/claims`). A claim holds only beyond its "
        "bar and beyond its control.",
        f"**{tally(claims)}.** {measured_from(claims)} {doubtful(claims)}",
        summary(measured),
        "## By claim",
        by_model(measured, statements),
        "## By paper",
        counts(claims),
    ]
    if left:
        parts += [
            "## Not measured yet",
            f"By the present rules, {len(left)} of the {len(statements)} statements:",
            waiting(left),
        ]
    parts += ["## Not covered", NOT_COVERED.read_text(encoding="utf-8").strip()]
    for preset, title in COLUMNS.items():
        if measured.get(preset):
            parts += [f"## Every number: {title}", markdown(measured[preset])]
    return "\n\n".join(parts) + "\n"


def main(results: Path = Path("results")) -> None:
    """Keep what the studies measured, and write the page and README's summary."""
    keep(results)
    found = kept()
    blocks = {"scoreboard": summary(found)}
    readme = with_blocks(README.read_text(encoding="utf-8"), blocks)
    artifacts.write_text(PAGE, page(found))
    artifacts.write_text(README, readme)
    print(f"{tally([claim for claims in found.values() for claim in claims])}: {PAGE}")


if __name__ == "__main__":
    main()

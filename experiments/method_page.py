"""Which method finds what: the tables and sentences of docs/methods/compared.md.

`experiments.findings` writes them, from tables that are kept: those of the figures
method_comparison-<preset>, and those of the studies of confusions in experiments/measured.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.markdown import table, unique
from experiments import method_findings
from experiments.board import COLUMNS, kept
from experiments.compare_methods import MEASURES
from experiments.method_findings import LAPE
from experiments.recover_planted import ALL
from interp.inference.claims import Claim
from interp.plots.files import read_table
from interp.plots.style import Table
from interp.results import artifacts

PAGE = Path("docs") / "methods" / "compared.md"
COMPARE = {
    preset: f"python -m experiments.compare_methods {preset}" for preset in ("babel", "gemma")
}
"""Preset of the comparison → its command."""


@dataclass(frozen=True)
class Confused:
    """A study of confusions that was run."""

    study: str
    preset: str

    models: str
    """In what the neurons were planted."""

    at: str
    """Folder of experiments/measured with its tables."""

    @property
    def command(self) -> str:
        return f"python -m experiments.{self.study} {self.preset}"

    def kept(self, measured: Path, table_name: str) -> Path:
        """Where one of its tables is kept."""
        return measured / self.at / self.study / f"{table_name}.csv"


CONFUSED = {
    "confused": Confused("confuse_methods", "short", "made-up models", "babel"),
    "confused in babel": Confused("confuse_pretrained", "short", "Babel", "babel"),
    "confused in gemma": Confused("confuse_pretrained", "gemma", "Gemma 3 270M", "gemma"),
}
"""Mark on the page → the study whose table is there."""

TABLES = ("found", "confusions")
"""Tables of theirs that the page is made from."""

FOOLED = 0.1
"""Share of what a method chooses that a decoy has to be, to be said to fool it."""


def by_method(figure: Table) -> pd.DataFrame:
    """The table of the figure as `method_findings` reads it: a row per method, in its order."""
    columns = {label: column for column, label in MEASURES.items()}
    parts = []
    for label, part in figure.groupby("measure", sort=False):
        name = columns[str(label)]
        ends = {"value": name} | {end: f"{name}_{end}" for end in ("low", "high", "control")}
        parts.append(part.set_index("method")[list(ends)].rename(columns=ends))
    return pd.concat(parts, axis=1).reset_index()


def comparison(methods: Table) -> str:
    """A row per method, the most specific first: four judgments with their intervals."""
    names = ("recovery", "selectivity", "switching", "stability")
    lines = [
        [row["method"], *(_interval(row[x], row[f"{x}_low"], row[f"{x}_high"]) for x in names)]
        for row in methods.sort_values("selectivity", ascending=False).to_dict("records")
    ]
    header = ["method", "planted, found among decoys", "own loss less others', nats"]
    return table([*header, "good texts in the language", "chosen again from other text"], lines)


def _interval(value: float, low: float, high: float) -> str:
    return "none chosen" if pd.isna(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"


# ---------------------------------------------------------------- confusions


def of_effect(rows: Table, effect: float) -> Table:
    """The rows of one strength."""
    return rows[rows["effect"] == effect]


def fooled(confusions: Table, found: Table) -> str:
    """A row per method: recall among all decoys, and the decoys that fool it.

    At the least and the greatest strength.
    """
    effects = dict.fromkeys((confusions["effect"].min(), confusions["effect"].max()))
    header = ["method"]
    columns = [unique(confusions["method"])]
    for effect in effects:
        all_decoys = found[(found["effect"] == effect) & (found["decoys"] == ALL)]
        recall = all_decoys.set_index("selector")
        rows = of_effect(confusions, effect).sort_values("share", ascending=False)
        unknown = set(rows.loc[rows["share"].isna(), "method"])  # chose nothing that was planted
        rows = rows[rows["share"] >= FOOLED]
        header += [f"found, effect {effect:g}", f"fooled by, effect {effect:g}"]
        columns += [
            [
                _interval(row["recall"], row["recall_low"], row["recall_high"])
                for row in recall.loc[columns[0]].to_dict("records")
            ],
            [
                ", ".join(
                    f"{row['decoy']} {row['share']:.2f}"
                    for row in rows[rows["method"] == method].to_dict("records")
                )
                or ("chose no planted neuron" if method in unknown else "none")
                for method in columns[0]
            ],
        ]
    return table(header, [list(line) for line in zip(*columns, strict=True)])


def confusion_sentences(confusions: Table, found: Table, models: str) -> list[str]:
    """What fools LAPE, and which methods find half of the planted and are not fooled.

    At the least and the greatest strength.
    """
    rows = confusions[confusions["method"] != method_findings.RANDOM]
    said = []
    for effect in dict.fromkeys((rows["effect"].min(), rows["effect"].max())):
        part = of_effect(rows, effect)
        worst = part[part["method"] == LAPE].nlargest(1, "share").iloc[0]
        share, lost = (
            _interval(*(worst[f"{name}{end}"] for end in ("", "_low", "_high")))
            for name in ("share", "lost")
        )
        recall = of_effect(found[found["decoys"] == ALL], effect).set_index("selector")["recall"]
        fooled = set(part.loc[part["share"] >= FOOLED, "method"])
        honest = [
            f"{method} ({recall[method]:.2f})"
            for method in unique(part["method"])
            if method not in fooled and recall[method] >= 0.5
        ]
        said += [
            f"At an effect of {effect:g} in {models}, LAPE is fooled most by neurons of kind "
            f"{worst['decoy']}, which are {share} of its choice and cost it {lost} of the planted.",
            "Half of the planted neurons or more are found among all decoys, and no decoy alone is "
            f"a tenth of the choice, by {', '.join(honest) or 'no method'}.",
        ]
    return said


# ---------------------------------------------------------------- the page


def sentences(compared: Mapping[str, Table], confused: Mapping[str, tuple[Table, Table]]) -> str:
    """Every sentence with the command that made its numbers.

    Planted neurons are the same for every model: what is said of them is said once.
    """
    pairs: list[tuple[str, str]] = []
    for preset, methods in compared.items():
        of_planted = [] if pairs else method_findings.of_planted(methods)
        lines = [*of_planted, *method_findings.of_model(methods, COLUMNS[preset])]
        pairs += [(line, COMPARE[preset]) for line in lines]
    for (one, first), (other, second) in itertools.combinations(compared.items(), 2):
        names = f"{COLUMNS[one]} and {COLUMNS[other]}"
        pairs.append((f"{names} {method_findings.alike(first, second)}", COMPARE[other]))
    for name, tables in confused.items():
        of = CONFUSED[name]
        pairs += [(line, of.command) for line in confusion_sentences(*tables, of.models)]
    return "\n".join(f"{number}. {line} `{by}`" for number, (line, by) in enumerate(pairs, 1))


def predicted_and_wrong(claims: Sequence[Claim]) -> str:
    """Claims, stated before they were measured, that do not hold."""
    wrong = [claim for claim in claims if claim.verdict != "holds"]
    lines = [
        f"- {claim.statement} On {COLUMNS.get(claim.on, claim.on)}: "
        f"{claim.value:.2f} ({claim.low:.2f} to {claim.high:.2f}), {claim.verdict}."
        for claim in wrong
    ]
    return "\n".join([f"Of {len(claims)} predictions, {len(wrong)} are not borne out:", "", *lines])


def keep(studies: Path, measured: Path) -> None:
    """Copy the tables of finished studies to where the page is made from."""
    for of in CONFUSED.values():
        for name in TABLES:
            source = studies / of.study / of.preset / f"{name}.csv"
            if source.is_file():
                artifacts.write_text(of.kept(measured, name), source.read_text(encoding="utf-8"))


def blocks(root: Path) -> dict[str, str]:
    """What stands between the marks of the page, by their name."""
    measured = root / "experiments" / "measured"
    compared = {
        preset: by_method(read_table(path))
        for preset in COMPARE
        if (path := root / "figures" / f"method_comparison-{preset}.csv").is_file()
    }
    confused = {
        name: (read_table(of.kept(measured, "confusions")), read_table(of.kept(measured, "found")))
        for name, of in CONFUSED.items()
        if of.kept(measured, "confusions").is_file()
    }
    commands = {f"compared on {preset}": command for preset, command in COMPARE.items()}
    commands |= {name: of.command for name, of in CONFUSED.items()}
    shown = {name: f"Not measured yet: `{command}`." for name, command in commands.items()}
    shown |= {f"compared on {preset}": comparison(methods) for preset, methods in compared.items()}
    shown |= {name: fooled(*tables) for name, tables in confused.items()}
    claims = [
        claim
        for preset in COMPARE
        for claim in kept(measured)[preset]
        if claim.command.endswith("compare_methods")
    ]
    return {
        **shown,
        "sentences": sentences(compared, confused),
        "predicted and wrong": predicted_and_wrong(claims),
    }

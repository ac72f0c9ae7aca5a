"""What was found on the real model, and by which method: the numbers of two pages of the docs.

    python -m experiments.findings     # changes the pages between their marks

Reads   tables of results/<study>/gemma and of the studies of confusions, if they are there;
        experiments/measured, figures
Writes  experiments/measured/gemma/<study>/<table>.csv and measured/babel/<study>/<table>.csv,
        copies; docs/findings.md; docs/methods/compared.md (experiments/method_page.py)

The copies are kept with the claims, so that the page can be made without the model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import pandas as pd
import torch

from benchmarks.markdown import table, unique, with_blocks
from experiments import method_page
from experiments.board import MEASURED, kept
from experiments.compare_labels import LANGUAGES, TOPICS
from experiments.draw_figures import STUDIES, Results, read, without_parts
from experiments.edit_knowledge import DIRECTIONS
from experiments.explain_language import ALL, AS_IT_IS, BOTH, IN_LATIN
from experiments.lens_by_language import middle
from interp.inference.claims import Claim, Verdict
from interp.inference.intervals import mean_over_examples
from interp.plots.files import read_table
from interp.plots.style import Table
from interp.results import artifacts
from interp.results.words import NOTHING
from interp.text.languages import label_name

ROOT = Path(__file__).parents[1]
PAGE = Path("docs") / "findings.md"
FRACTIONS = ("0.003", "0.01", "0.03")
"""Of all neurons; the middle one is that of the claims."""

TASKS = {"bmlama53": "facts (BMLAMA)", "xnli": "inference (XNLI)"}
"""Folder of a task whose neurons were shared → its name."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

KEPT = (
    *(f"deactivate_neurons/{fraction}/matrix" for fraction in FRACTIONS),
    "deactivate_neurons/writing",
    "compare_readings/readings",
    "explain_language/explanation",
    "explain_language/overlap",
    "explain_language/off",
    "compare_labels/labels",
    "steer_language/final",
    "steer_translation/scores",
    "detect_languages/precision",
    "lens_by_language/top",
    "attribute_neurons/table",
    *(f"edit_knowledge/{way}/{what}" for way in DIRECTIONS for what in ("told", "off")),
    "patch_across_languages/table",
    *(f"map_shared_neurons/{task}/off" for task in TASKS),
    "train_neurons/ways",
)
"""Tables of studies that the page is made from."""


def keep(results: Results, measured: Path) -> None:
    """Copy the tables of finished studies to where the page is made from."""
    for name in KEPT:
        if (source := results.file(name)).is_file():
            artifacts.write_text(measured / f"{name}.csv", source.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- neurons off


def edited(matrix: Table) -> Table:
    """The rows with a language's neurons off; `own`: those of the language read."""
    rows = matrix[matrix["off"] != NOTHING]
    return rows.assign(own=rows["own"].astype(bool))


def by_language(matrix: Table) -> str:
    """A table: what a language loses without its own neurons, and what the controls cost it."""
    rows = edited(matrix)
    lines = []
    for row in rows[rows["own"]].to_dict("records"):
        others = rows[(rows["off"] == row["off"]) & ~rows["own"]].nlargest(1, "increase").iloc[0]
        interval = f"{row['increase_low']:.3f} to {row['increase_high']:.3f}"
        lines.append(
            [
                label_name(row["off"]),
                f"{row['neurons']}",
                f"{row['increase']:.3f} ({interval})",
                f"{row['random']:.3f}",
                f"{row['rate_matched']:.3f}",
                f"{others['increase']:.2f}, {label_name(others['read'])}",
            ]
        )
    own, others = rows[rows["own"]], rows[~rows["own"]]
    controls = [f"{own[control].mean():.3f}" for control in ("random", "rate_matched")]
    means = [f"{own['increase'].mean():.3f}", *controls, f"{others['increase'].mean():.2f}, all"]
    header = ["off", "neurons", "the language's own loss", "random neurons off", "as often firing"]
    return table([*header, "loss of another, at most"], [*lines, ["mean", "", *means]])


def by_size(matrices: Mapping[str, Table]) -> str:
    """A table: the rise of the own and of the other languages' loss, by the share switched off."""
    lines = []
    for fraction, matrix in matrices.items():
        rows = edited(matrix)
        sizes, own = rows["neurons"], rows["own"]
        lines.append(
            [
                f"{100 * float(fraction):g} %",
                f"{sizes.min()} to {sizes.max()}",
                f"{rows.loc[own, 'increase'].mean():.2f}",
                f"{rows.loc[~own, 'increase'].mean():.2f}",
            ]
        )
    header = ["share of all neurons", "neurons of a language", "rise on the own language"]
    return table([*header, "on the others"], lines)


def by_reading(readings: Table) -> str:
    """A table: how the usual reading of the text and another differ, means over languages."""
    lines = []
    for reading in unique(readings["reading"]):
        rows = readings[readings["reading"] == reading]
        numbers = [
            f"{rows[column].mean():.2f}"
            for column in ("loss", "jaccard", "increase", "own_minus_others")
        ]
        sizes = rows["neurons"]
        lines.append([reading, f"{sizes.min()} to {sizes.max()}", *numbers])
    header = ["read", "neurons of a language", "loss", "Jaccard with the usual ones"]
    return table([*header, "rise without a language's own", "own less others"], lines)


def by_script(explanation: Table, overlap: Table, off: Table) -> str:
    """A table: of each romanised language, the neurons that stay, and what both texts lose."""
    kept = explanation[explanation["without"] == "script"].set_index("language")
    moved = overlap[overlap["without"] == "script"].set_index("language")
    rise = off.set_index(["language", "off", "read"])["increase"]
    alike = off.set_index(["language", "off", "read"])["rate_matched"]
    lines = []
    for code in unique(off["language"]):
        row, new = kept.loc[code], moved.loc[code]
        both = (code, BOTH, IN_LATIN)
        lines.append(
            [
                label_name(code),
                f"{row['neurons']}",
                f"{new['jaccard']:.2f}",
                f"{new['elsewhere']:.2f}, {label_name(str(new['closest']))}",
                f"{100 * row['kept']:.0f} % ({100 * row['random']:.0f} %)",
                f"{rise[code, ALL, AS_IT_IS]:z.2f}",
                f"{rise[code, ALL, IN_LATIN]:z.2f}",
                f"{rise[both]:z.2f} ({alike[both]:z.2f})" if both in rise.index else "",
            ]
        )
    header = ["language", "neurons", "Jaccard, own script and romanised", "with another, at most"]
    header += ["kept in both (random ones)", "all off: own script", "romanised"]
    return table([*header, "those kept off: romanised (firing alike)"], lines)


def by_label(labels: Table) -> str:
    """A table: neurons of every topic beside the means of topics and of languages."""

    def line(name: str, rows: Table) -> list[str]:
        sizes = sorted(rows["neurons"])
        count = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        columns = ("own", "others", "alike_own", "entropy", "again", "also_languages")
        numbers = [f"{rows[column].mean():.2f}" for column in columns]
        return [name, count, *numbers]

    topics = labels[labels["labels"] == TOPICS]
    lines = [line(name, topics[topics["label"] == name]) for name in unique(topics["label"])]
    lines += [
        line(f"mean of {name}", labels[labels["labels"] == name]) for name in (TOPICS, LANGUAGES)
    ]
    header = ["label", "neurons", "its own loss", "loss of the others", "own, firing alike"]
    header += ["entropy, of 1", "Jaccard of two halves", "also a language's"]
    return table(header, lines)


def most_shared(overlap: Table) -> str:
    """A sentence: the two pairs of languages that share most."""
    pairs = overlap[overlap["language"] != overlap["other"]].nlargest(2, "jaccard")
    names = [
        f"{label_name(pair['language'])} and {label_name(pair['other'])}"
        for pair in pairs.to_dict("records")
    ]
    jaccard, chance = (100 * pairs[column].to_numpy() for column in ("jaccard", "chance"))
    return (
        f"{names[0]} share {jaccard[0]:.0f} % of the neurons that either has (by chance "
        f"{chance[0]:.1f} %), {names[1]} {jaccard[1]:.0f} %."
    )


def by_prompt(writing: Table) -> str:
    """A table: whether texts stay in the language of their prompt, by what was off."""
    rows = writing.set_index(["begun", "off"])
    columns = ((NOTHING, "in_language"), ("own", "in_language"), ("own", "in_english"))
    columns += (("another's", "in_language"), ("random", "in_language"))
    lines = [
        [
            label_name(code),
            *(
                "" if (code, column) == ("en", "in_english") else f"{100 * share:.0f} %"
                for off, column in columns
                for share in [rows.loc[(code, off), column]]
            ),
        ]
        for code in unique(writing["begun"])
    ]
    header = ["prompt", "nothing off: stays in it", "its own off: stays in it", "is English"]
    return table([*header, "another language's off: stays in it", "random ones off"], lines)


def by_way(switching: Table) -> str:
    """A table: the share of texts in the language, and of good ones, by way of steering."""
    lines = []
    for way in unique(switching["way"]):
        rows = switching[switching["way"] == way].set_index("to")
        cells = [
            f"{100 * rate:.0f} ({100 * good:.0f})"
            for rate, good in rows[["rate", "good"]].to_numpy()
        ]
        means = (100 * rows[column].mean() for column in ("rate", "good"))
        lines.append([way, *cells, "{:.0f} ({:.0f})".format(*means)])
    names = [label_name(code) for code in unique(switching["to"])]
    return table(["way", *names, "mean"], lines)


def by_units(precision: Table) -> str:
    """A table: how well single units detect their language, and where these units are."""
    lines = []
    halves = precision[precision["set"] != "both"]
    for (units, which), rows in halves.groupby(["units", "set"], sort=False):
        scores = rows.set_index("language")["precision"]
        ends = [
            f"{scores[code]:.3f}, {label_name(code)}" for code in (scores.idxmax(), scores.idxmin())
        ]
        outer, chance = (100 * rows[f"outer_{what}"].mean() for what in ("layers", "by_chance"))
        cells = [f"{scores.mean():.3f}", *ends, f"{outer:.0f} % ({chance:.0f} %)"]
        lines.append([f"{units:,}, {which}", *cells])
    header = ["units", "average precision, mean", "highest", "lowest"]
    return table([*header, "in the outer layers (by chance)"], lines)


# ---------------------------------------------------------------- layer by layer


def by_layer(top: Table, pivot: str = "en") -> str:
    """A table: the share of the pivot and of the own language in the likeliest tokens."""
    shares = top.pivot_table(index=["asked_in", "layer"], columns="language", values="share")
    lines = []
    for code in unique(top["asked_in"]):
        rows = shares.loc[code]
        parts = (rows.iloc[middle(len(rows))].mean(), rows.iloc[-1])
        shown = [f"{100 * part[who]:.0f} %" for part in parts for who in (pivot, code)]
        lines.append([label_name(code), *shown])
    name = label_name(pivot)
    header = ["asked in", f"middle layers: {name}", "its own"]
    return table([*header, f"last layer: {name}", "its own"], lines)


# ---------------------------------------------------------------- single neurons


def by_score(means: Table) -> str:
    """A table: how well each score foretells what switching a neuron off does."""
    lines = []
    for score in unique(means["score"]):
        rows = means[means["score"] == score].set_index("measure")
        cells = [
            f"{rows.loc[measure, 'mean']:.2f}" if measure in rows.index else "no sign"
            for measure in ("signed", "size", "hits")
        ]
        lines.append([score, *cells])
    return table(["score", "direction", "size", "of the 50 largest, found"], lines)


# ---------------------------------------------------------------- shared neurons


def by_category(tables: Mapping[str, Table]) -> str:
    """A table: how many answers are right with as many neurons of each category off, by task.

    Off at the last token, and where it was measured at every token.
    """
    shares, header = [], ["off"]
    for task, off in tables.items():
        rows = off[(off["language"] == "all") & (off["size"].isna() | (off["size"] == "equal"))]
        for where in sorted(unique(rows["where"]), reverse=True):
            part = rows[rows["where"] == where]
            shares.append(part.set_index("off")["accuracy"])
            at = "at the last token" if where == "last" else "at every token"
            header.append(f"{task}, {part['neurons'].max():,.0f} neurons {at}")
    lines = [[off, *(f"{100 * of[off]:.0f} %" for of in shares)] for off in shares[0].index]
    return table(header, lines)


def by_telling(tables: Mapping[str, Table]) -> str:
    """A table: how often the answer is the one that was told, and that without its being told."""
    told = pd.concat(tables, names=["task"])
    rates = told.pivot_table("accuracy", ["task", "fact told"], "language", sort=False)
    lines = [
        [*map(str, key), *(f"{100 * rate:.0f} %" for rate in rates.loc[key])] for key in rates.index
    ]
    return table(["", "fact told", *map(label_name, rates.columns)], lines)


def by_part(patched: Table) -> str:
    """A table: what moves from a prompt to one in another language with a set of neurons."""
    rows = patched[(patched["source"] == "source") & (patched["layer"] == "all")]
    rows = rows[rows["facts"] == "told"]
    lines = []
    for row in rows.to_dict("records"):
        moved = [
            f"{row[name]:z.2f} ({row[f'{name} low']:z.2f} to {row[f'{name} high']:z.2f})"
            for name in ("concept moved", "language moved")
        ]
        lines.append([row["part"], *moved, row["verdict"]])
    return table(["patched at the last token", "concept", "language", "so"], lines)


# ---------------------------------------------------------------- translation


def by_edit(scores: Table) -> str:
    """A table: how often a translation is in the language, and its BLEU, by prompt and edit."""
    names = scores["named"].fillna("")
    asked = names.where(names == "", "another").mask(names == scores["to"], "this one")
    lines = []
    for (prompt, edit), rows in scores.groupby([asked, "edit"], sort=False):
        cells = [
            f"{100 * part['rate'].mean():.0f} ({part['bleu'].mean():.1f})"
            for part in (rows, *(part for _, part in rows.groupby("to", sort=False)))
        ]
        lines.append([prompt or "no language", edit, *cells[1:], cells[0]])
    languages = [label_name(code) for code in unique(scores["to"])]
    return table(["the prompt names", "edit", *languages, "mean"], lines)


# ---------------------------------------------------------------- training


def by_training(ways: Table) -> str:
    """A table: what each way of training gains and forgets, with intervals over seeds."""
    lines = []
    for way, rows in ways.groupby("way", sort=False):
        cells = []
        for name in ("gain", "forgetting"):
            mean = mean_over_examples(torch.tensor(rows[name].tolist(), dtype=torch.float64))
            value, low, high = (end.item() for end in (mean.value, mean.low, mean.high))
            cells.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
        lines.append([f"{way}", f"{rows['rate'].iloc[0]:g}", *cells])
    header = ["trained", "learning rate", "fall of the language's loss"]
    return table([*header, "rise of the other six"], lines)


# ---------------------------------------------------------------- the page


def verdicts(claims: Sequence[Claim]) -> str:
    """A table: how many claims of each source have which verdict; and those that do not hold."""
    sources = unique(claim.source for claim in claims)
    rows = []
    for source in sources:
        found = [claim.verdict for claim in claims if claim.source == source]
        rows.append([source, *(f"{found.count(verdict)}" for verdict in VERDICTS)])
    lines = [table(["source", *VERDICTS], rows)]
    for verdict in VERDICTS[1:]:
        named = [
            f"- {claim.statement}{_on_what(claim)}" for claim in claims if claim.verdict == verdict
        ]
        lines += ["", f"{verdict.capitalize()}:", "", *named] if named else []
    return "\n".join(lines)


def _on_what(claim: Claim) -> str:
    """What the claim is about beside the model: " (told in English)"."""
    _, _, part = claim.on.partition(", ")
    return f" ({part})" if part else ""


def blocks(root: Path = ROOT) -> dict[str, str]:
    """What stands between the marks of the page, by their name."""
    measured = root / MEASURED.relative_to(ROOT) / "gemma"
    tables = {name: read(measured / f"{name}.csv") for name in KEPT}

    def by_direction(what: str) -> dict[str, Table]:
        return {said: tables[f"edit_knowledge/{way}/{what}"] for way, said in DIRECTIONS.items()}

    matrices = {name: tables[f"deactivate_neurons/{name}/matrix"] for name in FRACTIONS}
    return {
        "by language": by_language(matrices[FRACTIONS[1]]),
        "most shared": most_shared(read_table(root / "figures" / "overlap-gemma.csv")),
        "by size": by_size(matrices),
        "by reading": by_reading(tables["compare_readings/readings"]),
        "by script": by_script(
            *(tables[f"explain_language/{name}"] for name in ("explanation", "overlap", "off"))
        ),
        "by label": by_label(tables["compare_labels/labels"]),
        "by prompt": by_prompt(tables["deactivate_neurons/writing"]),
        "by way": by_way(without_parts(tables["steer_language/final"])),
        "by edit": by_edit(tables["steer_translation/scores"]),
        "by units": by_units(tables["detect_languages/precision"]),
        "by layer": by_layer(tables["lens_by_language/top"]),
        "by score": by_score(tables["attribute_neurons/table"]),
        "by telling": by_telling(by_direction("told")),
        "by category": by_category(by_direction("off")),
        "by task": by_category(
            {name: tables[f"map_shared_neurons/{task}/off"] for task, name in TASKS.items()}
        ),
        "by part": by_part(tables["patch_across_languages/table"]),
        "by training": by_training(tables["train_neurons/ways"]),
        "verdicts": verdicts(kept(measured.parent)["gemma"]),
    }


def main(root: Path = ROOT) -> None:
    measured = root / MEASURED.relative_to(ROOT)
    keep(Results("gemma"), measured / "gemma")
    method_page.keep(STUDIES, measured)
    for page, make in ((PAGE, blocks), (method_page.PAGE, method_page.blocks)):
        text = (root / page).read_text(encoding="utf-8")
        artifacts.write_text(root / page, with_blocks(text, make(root)))


if __name__ == "__main__":
    main()

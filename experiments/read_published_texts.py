"""What do the texts that Kojima et al. (2024) published say about their own claims?

    python -m experiments.read_published_texts --texts FILE     # a minute; no model is needed

Reads   FILE: a line of JSON, perhaps gzipped, for each unconditional sample of bloom-560m, with its
        `language` (the one requested), `units` (how many were held), `kind` ("both" ends, or the
        "top" or "bottom" half of 2000 units), `seed` and `text`, as in the authors' CSVs
Writes  results/read_published_texts/rates.csv (a row per setting and language), claims.json

Texts with no unit held are filed under English and compared with every language. Comparisons are
paired by seed, and intervals are over languages and seeds: texts of one seed are one. The authors
have no control with random units; two units, of 221,184, replace it. A
text is good if it is long enough and does not repeat itself; its likelihood is not checked, since
no model is loaded.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import interp
from experiments.runner import Experiment, Record
from experiments.steering_claims import difference
from experiments.study import LANGUAGES
from interp.inference.statements import Measurement
from interp.plots.style import Table

NONE, CONTROL, FEW, MANY, NEARLY_ALL = (0, 2, 2000, 20_000, 200_000)
"""Numbers of units, half from each end."""


@dataclass(frozen=True)
class Config:
    """What is read."""

    texts: Path
    """The published texts."""

    out: Path = Path("results/read_published_texts")
    """Folder for the table and claims."""


def read_texts(path: Path) -> Table:
    """A row for each text, with its language and whether it is good.

    Texts with no unit held are repeated for each requested language.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the file of the published texts.")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        rows: Any = pd.DataFrame([json.loads(line) for line in lines])
    keys = ("language", "units", "kind", "seed", "text")
    if missing := [key for key in keys if key not in rows]:
        raise ValueError(f"{path} has no {', '.join(missing)}: each line needs {', '.join(keys)}.")
    rates = interp.evaluations.language_rates(rows["text"].tolist(), LANGUAGES)
    texts: Table = rows.rename(columns={"language": "to"}).assign(
        language=rates.found, passes=rates.passes.tolist()
    )
    copies = [texts[texts["units"] == NONE].assign(to=code) for code in LANGUAGES]
    held = texts[texts["units"] != NONE]
    return pd.concat([*copies, held]).sort_values(["units", "kind", "to", "seed"])


def rates_of(texts: Table) -> Table:
    """Share of the texts in the requested language, and share that are also good."""
    hits = texts["language"] == texts["to"]
    rows = texts.assign(rate=hits, good=hits & texts["passes"])
    groups = rows.groupby(["units", "kind", "to"], sort=False)
    return groups[["rate", "good"]].mean().assign(texts=groups.size()).reset_index()


def measures(texts: Table) -> dict[str, Measurement | None]:
    """What the texts alone say about the claims of the paper."""
    of: dict[Any, Table] = dict(list(texts.groupby(["units", "kind"], sort=False)))

    def more(held: tuple[int, str], baseline: tuple[int, str], good: bool = False) -> Measurement:
        return difference(of[held], of[baseline], of[CONTROL, "both"], good)

    both, many = (FEW, "both"), (MANY, "both")
    return {
        "bloom-560m-steers": more(both, (NONE, "both")),
        "bloom-560m-both-top": more(both, (FEW // 2, "top")),
        "bloom-560m-both-bottom": more(both, (FEW // 2, "bottom")),
        "bloom-560m-tenfold": more(many, both),
        "bloom-560m-tenfold-good": more(many, both, good=True),
        "bloom-560m-collapse": more(both, (NEARLY_ALL, "both")),
    }


def main(config: Config, record: Record) -> None:
    texts = read_texts(config.texts)
    rates = rates_of(texts)
    record.tables({"rates": rates})
    for column in ("rate", "good"):
        wide = rates.pivot(index=["units", "kind"], columns="to", values=column)
        print(f"\n{column}\n{wide[list(LANGUAGES)].to_string(float_format='%.2f')}")
    record.judge("read_published_texts", measures(texts))


experiment = Experiment("read_published_texts", __doc__, main, Config)

if __name__ == "__main__":
    experiment.command()

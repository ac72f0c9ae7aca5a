"""What do the texts that Kojima et al. (2024) published say about their own claims?

    python -m experiments.read_published_texts --texts FILE     # a minute; no model is needed

Reads   FILE: a line of JSON (or of gzipped JSON) for each text that bloom-560m wrote from nothing,
        with its `language` (the one asked for), `units` (how many were held), `kind` ("both" ends,
        or the "top" or "bottom" half of 2000 units), `seed` and `text`, as in the authors' CSVs
Writes  results/read_published_texts/rates.csv (a row per setting and language), claims.json

What is written with no unit held stands under English and is compared with every language. Texts
of one seed are compared with each other. They were written without random units as a control; two
units, of 221,184, stand in for one. Good texts are those that are long enough and do not repeat
themselves: the model that would find broken ones unlikely is not here.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

import interp
from experiments.steering_claims import KOJIMA, OURS, difference
from experiments.study import LANGUAGES
from interp.inference.claims import Claim, markdown, save_claims
from interp.plots.style import Table
from interp.results import artifacts

COMMAND = "python -m experiments.read_published_texts --texts FILE"
ON = "bloom-560m, the published texts"
NONE, CONTROL, FEW, MANY, NEARLY_ALL = (0, 2, 2000, 20_000, 200_000)
"""Numbers of units that are compared; half from each end."""


@dataclass(frozen=True)
class Config:
    """What is read."""

    texts: Path
    """The published texts."""

    out: Path = Path("results/read_published_texts")
    """Folder for the table and claims."""


def read_texts(path: Path) -> Table:
    """A row for each text, with the language it is in and whether it is good; those of no unit
    once for each language asked for."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the file of the published texts.")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        rows: Any = pd.DataFrame([json.loads(line) for line in lines])
    wanted = ("language", "units", "kind", "seed", "text")
    if missing := [name for name in wanted if name not in rows]:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: each line needs {', '.join(wanted)}."
        )
    found = interp.language_rates(rows["text"].tolist(), LANGUAGES)
    frame: Table = rows.rename(columns={"language": "to"}).assign(
        language=found.found, passes=found.passes.tolist()
    )
    untouched = frame[frame["units"] == NONE]
    held = frame[frame["units"] != NONE]
    copies = [untouched.assign(to=code) for code in LANGUAGES]
    return pd.concat([*copies, held]).sort_values(["units", "kind", "to", "seed"])


def rates_of(texts: Table) -> Table:
    """Share of the texts in the language asked for, and in it and good."""
    mine = texts["language"] == texts["to"]
    rows = texts.assign(rate=mine, good=mine & texts["passes"])
    told = rows.groupby(["units", "kind", "to"], sort=False)
    return told[["rate", "good"]].mean().assign(texts=told.size()).reset_index()


def claims_of(texts: Table) -> list[Claim]:
    """The claims of the paper that its texts can tell about."""
    of: dict[Any, Table] = dict(list(texts.groupby(["units", "kind"], sort=False)))

    def claim(
        name: str,
        statement: str,
        one: tuple[int, str],
        than: tuple[int, str],
        source: str = KOJIMA,
        good: bool = False,
        bar: float = 0.0,
    ) -> Claim:
        return difference(
            of[one],
            of[than],
            (of[CONTROL, "both"], of[than]),
            good,
            f"{_told(*one)} minus {_told(*than)}",
            name=f"bloom-560m-{name}",
            statement=statement,
            source=source,
            on=ON,
            command=COMMAND,
            bar=bar,
            control_name=f"{_told(CONTROL, 'both')} minus the same",
        )

    both, many = (FEW, "both"), (MANY, "both")
    halves = {end: (FEW // 2, end) for end in ("top", "bottom")}
    return [
        claim(
            "steers",
            "Holding the units that detect a language at their medians switches what is written.",
            both,
            (NONE, "both"),
        ),
        *(
            claim(
                f"both-{end}",
                f"Units from both ends steer no worse than the {end} half alone, within 5 points.",
                both,
                half,
                bar=-0.05,
            )
            for end, half in halves.items()
        ),
        claim("tenfold", "Holding ten times as many units steers more often.", many, both),
        claim(
            "tenfold-good",
            "Holding ten times as many units also makes more good texts.",
            many,
            both,
            OURS,
            good=True,
        ),
        claim(
            "collapse",
            "Holding nearly all units steers worse than holding the best few.",
            both,
            (NEARLY_ALL, "both"),
        ),
    ]


def _told(units: int, kind: str) -> str:
    words = {"both": f"{units:,} units", "top": f"the top {units:,}"}
    return words.get(kind, f"the bottom {units:,}") if units else "no unit"


def main(config: Config) -> None:
    texts = read_texts(config.texts)
    rates = rates_of(texts)
    artifacts.write_text(config.out / "rates.csv", rates.to_csv(index=False))
    for column in ("rate", "good"):
        wide = rates.pivot(index=["units", "kind"], columns="to", values=column)
        print(f"\n{column}\n{wide[list(LANGUAGES)].to_string(float_format='%.2f')}")
    claims = claims_of(texts)
    save_claims(claims, config.out / "claims.json")
    print(f"\n{markdown(claims)}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

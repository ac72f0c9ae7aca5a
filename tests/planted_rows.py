"""What methods find of planted neurons, made up: for studies of which that is one part."""

import pandas as pd

from experiments import recover_planted
from experiments.planted import KINDS
from experiments.recover_planted import ALL, NONE, TINY
from interp.scores.methods import COMPARED


def made_up(config: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and summary as of `compare_methods.recovery`, without a model."""
    mistakes = {name.replace("language", "other language"): 0 for name in KINDS}
    rows = pd.DataFrame(
        {"selector": method, "decoys": decoys, "effect": 6.0, "seed": 0, "language": code}
        | {"planted": 8, "chosen": 8, "found": number % 9, **mistakes}
        for number, method in enumerate(COMPARED)
        for decoys in (NONE, ALL)
        for code in TINY.languages
    )
    return rows, recover_planted.summarize(rows)

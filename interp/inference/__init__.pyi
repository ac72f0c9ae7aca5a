from .claims import Claim, load_claims, save_claims, scoreboard
from .crossed import mean_over_crossed
from .intervals import bootstrap_shards, jackknife_shards, mean_over_examples, selection_frequency
from .two_runs import between

__all__ = [
    "Claim",
    "between",
    "bootstrap_shards",
    "jackknife_shards",
    "load_claims",
    "mean_over_crossed",
    "mean_over_examples",
    "save_claims",
    "scoreboard",
    "selection_frequency",
]

from .claims import Claim, load_claims, save_claims, scoreboard
from .intervals import selection_frequency

__all__ = ["Claim", "load_claims", "save_claims", "scoreboard", "selection_frequency"]

from .control_vector import directions
from .edits import sentence_medians
from .recipe import RECIPES, Recipe
from .residual import ResidualMeans, residual_means
from .train import train_units
from .trained_units import TrainedUnits

__all__ = [
    "RECIPES",
    "Recipe",
    "ResidualMeans",
    "TrainedUnits",
    "directions",
    "residual_means",
    "sentence_medians",
    "train_units",
]

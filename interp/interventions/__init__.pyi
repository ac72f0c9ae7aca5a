from .control_vector import directions
from .edits import sentence_medians
from .residual import residual_means

__all__ = ["directions", "residual_means", "sentence_medians"]

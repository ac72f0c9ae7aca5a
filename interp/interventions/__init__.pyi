from .edits import sentence_medians
from .residual import residual_means

__all__ = ["residual_means", "sentence_medians"]

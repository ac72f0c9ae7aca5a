from .load import outline

__all__ = ["outline"]

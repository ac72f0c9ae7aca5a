from . import artifacts

__all__ = ["artifacts"]

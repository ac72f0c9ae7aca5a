from .jobs import crew_of
from .ray import Ray

__all__ = ["Ray", "crew_of"]

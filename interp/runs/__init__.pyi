from .jobs import actor_pool
from .ray import Ray

__all__ = ["Ray", "actor_pool"]

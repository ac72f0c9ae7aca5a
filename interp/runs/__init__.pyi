from .forecasts import Forecast, forecast, seconds_per_token
from .jobs import actor_pool
from .ray import Ray

__all__ = ["Forecast", "Ray", "actor_pool", "forecast", "seconds_per_token"]

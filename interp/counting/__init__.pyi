from .caches import fires, firing_rate, gradients_at, units_at
from .plan import RunPlan, plan_run
from .top_contexts import TopContexts, gates_around

__all__ = [
    "RunPlan",
    "TopContexts",
    "fires",
    "firing_rate",
    "gates_around",
    "gradients_at",
    "plan_run",
    "units_at",
]

from .plan import RunPlan, plan_run
from .top_contexts import TopContexts, gates_around

__all__ = ["RunPlan", "TopContexts", "gates_around", "plan_run"]
